"""The cloud on virtual time: the same seed tells the same story; turns are drawn, time is kept, a deadlock is told."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.sim.loop import Deadlock, run
from tests.sim.play import draw, play


def test_the_same_seed_tells_the_same_story() -> None:
    outcome = play(draw(1))
    assert play(draw(1)).trace_hash == outcome.trace_hash
    assert play(draw(2)).trace_hash != outcome.trace_hash
    command = [sys.executable, "-c", "from tests.sim.play import draw, play; print(play(draw(1)).trace_hash)"]
    environment = {**os.environ, "PYTHONHASHSEED": "4711", "PYTHONPATH": "."}
    root = Path(__file__).parent.parent.parent
    ran = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=True)
    assert ran.stdout.split()[-1] == outcome.trace_hash


def test_a_deadlock_tells_who_waits_where() -> None:
    async def scenario() -> None:
        await asyncio.Event().wait()

    with pytest.raises(Deadlock, match=r"scenario#1 waits at .*locks.py:\d+ wait"):
        run(0, scenario)


def test_turns_are_drawn_but_time_is_kept() -> None:
    orders = set()

    async def scenario() -> list[int]:
        order: list[int] = []

        async def one(number: int) -> None:
            await asyncio.sleep(0)
            order.append(number)

        await asyncio.gather(*(one(number) for number in range(4)))
        await asyncio.sleep(3600)
        return order

    for seed in range(20):
        outcome = run(seed, scenario)
        assert outcome.virtual_s >= 3600
        orders.add(tuple(outcome.result))
    assert len(orders) > 5
