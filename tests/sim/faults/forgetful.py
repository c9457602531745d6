"""Controllers say nothing of a node's guests for a while, from its next snapshot on; then it is told again."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterable

from tests.sim.story import FAULT, Event, Size, spread
from tests.sim.world import World


def draw(draw: random.Random, size: Size) -> Iterable[Event]:
    """A few, each for a while."""
    for at_s in spread(draw, size, max(1, size.faults // 4) if size.faults else 0):
        yield Event(at_s, FAULT, "guests_forgotten", (draw.choice(size.node_names), draw.choice((5.0, 20.0, 60.0))))


async def guests_forgotten(world: World, node: str, for_s: float) -> None:
    """The node is sent a snapshot without its guests."""
    forgotten = world.network.faults.forgotten
    if node in forgotten:
        return
    forgotten.add(node)
    world.network.count("guests_forgotten")
    world.crash(node)
    world.restart(node)
    await asyncio.sleep(for_s)
    if node in world.network.faults.forgotten:
        world.network.faults.forgotten.discard(node)
        world.crash(node)
        world.restart(node)


ACTS = {"guests_forgotten": guests_forgotten}
