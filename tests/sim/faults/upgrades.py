"""Several releases at once: some agents are older for a while, some processes newer; then they are what all are."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterable

from tests.sim.story import FAULT, Event, Size, spread
from tests.sim.world import World


def draw(draw: random.Random, size: Size) -> Iterable[Event]:
    """Some processes, each for a part of the story; an upgrade of an agent, or a release that is taken back."""
    for at_s in spread(draw, size, max(1, size.faults // 2) if size.faults else 0):
        for_s = draw.choice((5.0, 20.0, 60.0))
        match draw.choice(("older_agent", "older_agent", "newer_agent", "newer_agent", "newer_controller")):
            case "newer_controller":
                yield Event(at_s, FAULT, "newer_controller", (draw.choice(size.controller_names), for_s))
            case act:
                yield Event(at_s, FAULT, act, (draw.choice(size.node_names), for_s))


async def older_agent(world: World, name: str, for_s: float) -> None:
    """An agent that was not upgraded yet."""
    await _as(world, world.releases.older, name, for_s)


async def newer_controller(world: World, name: str, for_s: float) -> None:
    """A controller that was upgraded first, and is put back."""
    await _as(world, world.releases.newer, name, for_s)


async def newer_agent(world: World, name: str, for_s: float) -> None:
    """An agent that was upgraded first, and is put back: it reads its newer ledger."""
    await _as(world, world.releases.newer, name, for_s)


async def _as(world: World, release: set[str], name: str, for_s: float) -> None:
    if name in world.releases.older | world.releases.newer:
        return
    world.network.count("newer" if release is world.releases.newer else "older")
    release.add(name)
    world.crash(name)
    world.restart(name)
    await asyncio.sleep(for_s)
    world.put_back(name)


ACTS = {"older_agent": older_agent, "newer_controller": newer_controller, "newer_agent": newer_agent}
