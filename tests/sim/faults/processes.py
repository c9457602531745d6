"""Processes are killed, at a moment or at any await; nodes lose power. After a while they are started again."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterable

from tests.sim.story import FAULT, Event, Size, spread
from tests.sim.world import World


def draw(draw: random.Random, size: Size) -> Iterable[Event]:
    """Any process; now and then all controllers at once."""
    for at_s in spread(draw, size, size.faults):
        name, down_s = draw.choice([*size.controller_names, *size.node_names]), round(draw.choice((0.1, 2.0, 20.0)), 2)
        match draw.choice(("crash", "crash", "crash_within", "crash_within", "power_loss", "all_controllers")):
            case "crash":
                yield Event(at_s, FAULT, "crash", (name, down_s))
            case "crash_within":
                yield Event(at_s, FAULT, "crash_within", (name, draw.randrange(1, 600), down_s))
            case "power_loss":
                yield Event(at_s, FAULT, "power_loss", (draw.choice(size.node_names), down_s))
            case "all_controllers":
                yield Event(at_s, FAULT, "all_controllers", (down_s,))


async def crash(world: World, name: str, down_s: float) -> None:
    """Kill -9."""
    world.crash(name)
    await asyncio.sleep(down_s)
    world.restart(name)


async def crash_within(world: World, name: str, steps: int, down_s: float) -> None:
    """Kill it after so many more steps of its own, wherever that is."""
    life = world.life_of(name)
    world.crash_within(name, steps)
    while world.life_of(name) == life and world.alive(name):
        await asyncio.sleep(0.1)
    await asyncio.sleep(down_s)
    world.restart(name)


async def power_loss(world: World, name: str, down_s: float) -> None:
    """The node is dark for a while."""
    world.lose_power(name)
    await asyncio.sleep(down_s)
    world.restart(name)


async def all_controllers(world: World, down_s: float) -> None:
    """Nobody decides."""
    for name in world.controllers:
        world.crash(name)
    await asyncio.sleep(down_s)
    for name in world.controllers:
        world.restart(name)


ACTS = {"crash": crash, "crash_within": crash_within, "power_loss": power_loss, "all_controllers": all_controllers}
