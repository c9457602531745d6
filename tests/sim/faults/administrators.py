"""The node that administers a volume of the shared pool is lost: killed, without power, or cut off, long enough for another one
to take over; and once, when all else is at rest, so that it can be seen who has its work then.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterable
from typing import Final

from tests.sim.checkers.base import Violation
from tests.sim.faults.links import cut
from tests.sim.story import FAULT, Event, Size, spread
from tests.sim.user import pick
from tests.sim.world import World

# Longer than its session lives, its work waits for it, and a controller may be busy: then another one has it.
TAKEN_OVER_S: Final = 60.0


def draw(draw: random.Random, size: Size) -> Iterable[Event]:
    """A few times; at rest in every other story."""
    for at_s in spread(draw, size, size.faults // 2):
        how, down_s = draw.choice(("crash", "power", "cut")), draw.choice((3.0, 40.0, 40.0))
        yield Event(at_s, FAULT, "administrator_lost", (draw.randrange(8), how, down_s))
    if size.nodes > 1 and draw.random() < 0.5:
        yield Event(0.0, FAULT, "administrator_lost_at_rest", (draw.randrange(8),))


async def administrator_lost(world: World, index: int, how: str, down_s: float) -> None:
    """Whoever has some work now."""
    name = _one(world, index)
    if name is None:
        return
    world.network.count(f"administrator {how}")
    if how == "cut":
        await cut(world, name, "*", down_s)
        return
    (world.crash if how == "crash" else world.lose_power)(name)
    await asyncio.sleep(down_s)
    world.restart(name)


async def administrator_lost_at_rest(world: World, index: int) -> None:
    """Leave it for when nobody is at work."""
    world.at_rest.append(lambda: _taken_over(world, index))


async def _taken_over(world: World, index: int) -> None:
    name = _one(world, index)
    if name is None:
        return
    world.crash(name)
    await asyncio.sleep(TAKEN_OVER_S)
    node, cloud = world.machines[name].id, world.referee.cloud
    able = [id for id, each in cloud.all("node").items() if id != node and cloud.get("node_session", id) is not None]
    left = sorted(key for key, work in cloud.all("assignment").items() if work.node == node)
    world.restart(name)
    if left and able:
        raise Violation("assigned", f"{name} is gone for {TAKEN_OVER_S:.0f} s and still has {left}, others could have it")


def _one(world: World, index: int) -> str | None:
    """Return the name of a living node that has some work."""
    nodes = {work.node for work in world.referee.cloud.all("assignment").values()}
    return pick([name for name, machine in world.machines.items() if machine.id in nodes and world.alive(name)], index)


ACTS = {"administrator_lost": administrator_lost, "administrator_lost_at_rest": administrator_lost_at_rest}
