"""Proof that the simulation can fail: realistic bugs, one at a time, in a copy of the product, and the seed that catches each.

table.py   the bugs (bugs/)
copies.py  makes a copy, and puts one bug in
seeds.py   runs inside a copy: plays seeds until one fails
hunt.py    finds the first seed that fails with the bug and not without it
"""
