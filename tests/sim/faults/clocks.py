"""Wall clocks: those of single processes jump, or run too fast or too slow, by minutes."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterable

from tests.sim.story import FAULT, Event, Size, spread
from tests.sim.world import World


def draw(draw: random.Random, size: Size) -> Iterable[Event]:
    """Any process."""
    names = [*size.controller_names, *size.node_names]
    for at_s in spread(draw, size, max(1, size.faults // 2) if size.faults else 0):
        name = draw.choice(names)
        if draw.random() < 0.6:
            yield Event(at_s, FAULT, "clock_jumps", (name, draw.choice((-600.0, -60.0, -2.0, 2.0, 60.0, 600.0))))
        else:
            yield Event(at_s, FAULT, "clock_drifts", (name, draw.choice((-0.9, -0.1, 0.1, 5.0)), draw.choice((10.0, 30.0))))


async def clock_jumps(world: World, name: str, by_s: float) -> None:
    """Somebody, or NTP, sets it."""
    process = world.processes.get(name)
    if process is not None:
        process.clock.skew_s += by_s
        world.network.count("clock_jumps")


async def clock_drifts(world: World, name: str, rate: float, for_s: float) -> None:
    """It gains so many seconds in each."""
    process = world.processes.get(name)
    if process is None:
        return
    world.network.count("clock_drifts")
    for _ in range(int(for_s)):
        process.clock.skew_s += rate
        await asyncio.sleep(1.0)


ACTS = {"clock_jumps": clock_jumps, "clock_drifts": clock_drifts}
