"""The network: hosts cut off, both ways or one way; messages late, connections reset, calls never answered."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterable

from tests.sim.story import FAULT, Event, Size, spread
from tests.sim.world import World


def draw(draw: random.Random, size: Size) -> Iterable[Event]:
    """Cuts of a host or of one link, and spells of bad weather everywhere."""
    hosts = [*size.controller_names, *size.node_names]
    for at_s in spread(draw, size, size.faults):
        name, for_s = draw.choice(hosts), round(draw.choice((1.0, 8.0, 30.0)), 2)
        match draw.choice(("cut", "cut", "cut_one_way", "bad_weather")):
            case "cut":
                yield Event(at_s, FAULT, "cut", (name, draw.choice(("*", "*", draw.choice(hosts))), for_s))
            case "cut_one_way":
                yield Event(at_s, FAULT, "cut_one_way", (*draw.choice(((name, "*"), ("*", name))), for_s))
            case "bad_weather":
                share = draw.choice((0.002, 0.01, 0.05))
                yield Event(at_s, FAULT, "bad_weather", (share, draw.choice((0.0, 0.02)), draw.choice((0.02, 0.2)), for_s))


async def cut(world: World, name: str, other: str, for_s: float) -> None:
    """Nothing passes between two hosts, or between one and all others."""
    await _block(world, name, other, for_s, both=True)


async def cut_one_way(world: World, source: str, target: str, for_s: float) -> None:
    """What one sends is lost; what it is sent arrives."""
    await _block(world, source, target, for_s, both=False)


async def _block(world: World, source: str, target: str, for_s: float, *, both: bool) -> None:
    if source == target:
        return
    world.network.block(source, target, both=both)
    await asyncio.sleep(for_s)
    world.network.heal(source if source != "*" else target)


async def bad_weather(world: World, reset: float, silence: float, late: float, for_s: float) -> None:
    """Connections break, calls are never answered, messages are late."""
    faults = world.network.faults
    faults.reset, faults.silence, faults.late = reset, silence, late
    await asyncio.sleep(for_s)
    faults.reset = faults.silence = faults.late = 0.0


ACTS = {"cut": cut, "cut_one_way": cut_one_way, "bad_weather": bad_weather}
