"""The cloud on virtual time: the same seed tells the same story; turns are drawn, time is kept, a deadlock is told."""

from __future__ import annotations

import asyncio

import pytest

from tests.sim.loop import Deadlock, run, traced
from tests.sim.swarm import judge_seed


def story_hash(seed: int) -> str:
    with traced() as trace:
        judge_seed(seed)
    return trace.hash


def test_the_same_seed_tells_the_same_story() -> None:
    assert story_hash(1) == story_hash(1)
    assert story_hash(2) != story_hash(1)


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
