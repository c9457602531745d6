"""Leases that end though their holder lives, or last longer as another member leads; history compacted under watchers."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterable
from typing import Final

from cairn.proto import kinds
from cairn.proto.v1.node_pb2 import NodeSession

from tests.sim.story import FAULT, Event, Size, spread
from tests.sim.world import World

# Sessions live no longer; requests and events are remembered for hours.
SESSION_S_MAX: Final = 120.0
# Of one node: its stream, and those of images.
CONNECTIONS: Final = 4
LOOK_S: Final = 0.05
LOOKS: Final = 100


def draw(draw: random.Random, size: Size) -> Iterable[Event]:
    """Once, or several times in a row."""
    for at_s in spread(draw, size, max(1, size.faults // 2) if size.faults else 0):
        if draw.random() < 0.25:
            yield Event(at_s, FAULT, "leader_lost", (draw.choice((0.2, 1.5, 5.0)),))
        elif draw.random() < 0.3:
            yield Event(at_s, FAULT, "taken_over", (draw.choice(size.node_names), draw.choice((0.5, 2.0))))
        elif draw.random() < 0.6:
            yield Event(
                at_s, FAULT, "leases_end", (draw.choice(size.controller_names), draw.choice((1, 1, 3)), draw.choice((0.1, 2.0)))
            )
        else:
            yield Event(at_s, FAULT, "compacted", ())


async def leases_end(world: World, name: str, times: int, pause_s: float) -> None:
    """A controller's own session and those of its nodes; what is to be remembered for hours is."""
    for _ in range(times):
        process = world.processes.get(name)
        if process is not None and process.store is not None:
            process.store.expire_leases(SESSION_S_MAX)
            world.network.count("leases_end")
        await asyncio.sleep(pause_s)


async def taken_over(world: World, name: str, for_s: float) -> None:
    """A node goes to another controller while the one before is cut off from the store; then that is, and its session ends.

    The one before believes in the node still, and hears of the other session when that is gone.
    """
    node = world.machines[name].id
    before = _holder(world, node)
    stores = {each: process.store for each, process in world.processes.items() if process.store is not None}
    if before not in stores:
        return
    stores[before].cut()
    world.network.part(name, CONNECTIONS)
    for _ in range(LOOKS):
        await asyncio.sleep(LOOK_S)
        if (now := _holder(world, node)) not in ("", before) and now in stores:
            stores[now].cut()
            stores[now].expire_leases(SESSION_S_MAX)
            stores[before].mend()
            world.network.count("taken_over")
            await asyncio.sleep(for_s)
            stores[now].mend()
            return
    stores[before].mend()


def _holder(world: World, node: str) -> str:
    """Return the controller that a node's session is at; empty: it has none."""
    key = kinds.NODE_SESSION.key(node)
    items = world.backend.scan(key, f"{key}\0", 0, 0)
    return NodeSession.FromString(items[0].value).controller if items else ""


async def compacted(world: World) -> None:
    """The store forgets all but the present: who is behind has to list again."""
    world.backend.compact(world.backend.revision)
    world.network.count("compacted")


async def leader_lost(world: World, for_s: float) -> None:
    """Nothing that needs a quorum is answered for a while; then every lease has its whole time before it, also of the dead."""
    world.backend.elect(for_s)
    world.network.count("leader_lost")


ACTS = {"leases_end": leases_end, "taken_over": taken_over, "compacted": compacted, "leader_lost": leader_lost}
