"""A VM was deleted, brought back and erased before its node had said anything new: that it was ABSENT the first time gave back
what its running guest held, and erased its records.

Mended by: each life of a VM has a power generation of its own, which the node says with ABSENT (model/absence.py).
"""

from __future__ import annotations

from tests.sim.story import Event, Size, Story

STORY = Story(
    1,
    Size(controllers=1, nodes=1, users=1, faults=0, duration_s=20.0, skew_s=0.0),
    (
        Event(0.0, "u1", "create_vm", ("web", 1, 128)),
        Event(6.0, "u1", "delete", (0,)),
        Event(7.0, "", "cut_one_way", ("n1", "c1", 2.0)),
        Event(7.5, "u1", "undelete", (0,)),
        Event(8.0, "u1", "purge_vm", (0,)),
    ),
)
