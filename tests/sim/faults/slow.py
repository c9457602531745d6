"""Slow peers, half-open connections, and requests that arrive twice."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterable

from tests.sim.story import FAULT, Event, Size, spread
from tests.sim.world import World


def draw(draw: random.Random, size: Size) -> Iterable[Event]:
    """Hosts, processes, connections, requests."""
    names = [*size.controller_names, *size.node_names]
    for at_s in spread(draw, size, size.faults):
        name, for_s = draw.choice(names), draw.choice((5.0, 15.0, 40.0))
        match draw.choice(("slow_host", "slow_process", "half_open", "half_open", "patience", "twice", "twice")):
            case "slow_host":
                yield Event(at_s, FAULT, "slow_host", (name, draw.choice((0.05, 0.5, 2.0)), for_s))
            case "slow_process":
                yield Event(at_s, FAULT, "slow_process", (name, draw.choice((0.001, 0.01, 0.05)), for_s))
            case "half_open":
                yield Event(at_s, FAULT, "half_open", (name, draw.choice((1, 1, 4))))
            case "patience":
                yield Event(at_s, FAULT, "patience", (*draw.choice(((0.5, 2.0), (1.0, 60.0), (30.0, 90.0))), for_s))
            case "twice":
                yield Event(at_s, FAULT, "twice", (draw.choice((0.2, 1.0)), draw.choice((0.01, 1.0, 20.0)), for_s))


async def slow_host(world: World, name: str, by_s: float, for_s: float) -> None:
    """All that a host sends or is sent is late."""
    world.network.faults.slow_s[name] = by_s
    world.network.count("slow_host")
    await asyncio.sleep(for_s)
    world.network.faults.slow_s.pop(name, None)


async def slow_process(world: World, name: str, step_s: float, for_s: float) -> None:
    """A process has to wait before each of its steps."""
    process = world.processes.get(name)
    if process is None:
        return
    world.loop.slow_down(process.label, step_s)
    world.network.count("slow_process")
    await asyncio.sleep(for_s)
    world.loop.slow_down(process.label, 0.0)


async def half_open(world: World, name: str, count: int) -> None:
    """A host gives up connections, and those at the other ends go on to believe in them."""
    world.network.part(name, count)


async def patience(world: World, least_s: float, most_s: float, for_s: float) -> None:
    """Silent connections are given up sooner or later than usual."""
    world.network.faults.keepalive_s = (least_s, most_s)
    world.network.count("patience")
    await asyncio.sleep(for_s)
    world.network.faults.keepalive_s = type(world.network.faults)().keepalive_s


async def twice(world: World, share: float, late_s: float, for_s: float) -> None:
    """Requests arrive twice, the second time at any controller, and perhaps long after the answer."""
    faults = world.network.faults
    faults.duplicate, faults.duplicate_s = share, late_s
    await asyncio.sleep(for_s)
    faults.duplicate = 0.0


ACTS = {
    "slow_host": slow_host,
    "slow_process": slow_process,
    "half_open": half_open,
    "patience": patience,
    "twice": twice,
}
