"""Disks: the ledger cannot be written or is slow, the pool is full, also under a guest. (Power loss brings torn tails.)"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterable

from tests.sim.story import FAULT, Event, Size, spread
from tests.sim.user import pick
from tests.sim.world import World


def draw(draw: random.Random, size: Size) -> Iterable[Event]:
    """Each on one node."""
    for at_s in spread(draw, size, max(1, size.faults // 2) if size.faults else 0):
        node, for_s = draw.choice(size.node_names), draw.choice((2.0, 10.0, 30.0))
        match draw.choice(("ledger_full", "ledger_errors", "ledger_slow", "pool_full", "disk_fills")):
            case "disk_fills":
                yield Event(at_s, FAULT, "disk_fills", (node, draw.randrange(8), for_s))
            case "ledger_errors":
                yield Event(at_s, FAULT, "ledger_errors", (node, draw.choice((1, 2, 5))))
            case "ledger_slow":
                yield Event(at_s, FAULT, "ledger_slow", (node, draw.choice((0.05, 1.0, 5.0)), for_s))
            case act:
                yield Event(at_s, FAULT, act, (node, for_s))


async def ledger_full(world: World, node: str, for_s: float) -> None:
    """There is no room for the ledger: nothing new can be accepted."""
    disk = world.machines[node].disk
    disk.full = True
    world.network.count("ledger_full")
    await asyncio.sleep(for_s)
    disk.full = False


async def ledger_errors(world: World, node: str, count: int) -> None:
    """The next writes fail."""
    world.machines[node].disk.errors = count
    world.network.count("ledger_errors")


async def ledger_slow(world: World, node: str, by_s: float, for_s: float) -> None:
    """Each sync of the ledger takes so long."""
    disk = world.machines[node].disk
    disk.sync_s = by_s
    world.network.count("ledger_slow")
    await asyncio.sleep(for_s)
    disk.sync_s = 0.0


async def pool_full(world: World, node: str, for_s: float) -> None:
    """Somebody else's bytes fill the pool."""
    pool = world.machines[node].pool
    pool.foreign_bytes = pool.capacity_bytes
    world.network.count("pool_full")
    await asyncio.sleep(for_s)
    pool.foreign_bytes = 0


async def disk_fills(world: World, node: str, index: int, for_s: float) -> None:
    """There is no room for what a guest writes: the hypervisor pauses it, again and again, until there is."""
    host = world.machines[node].host
    disks = sorted({id for guest in host.guests.values() if guest.live is not None for id in guest.live.disks})
    id = pick(disks, index)
    if id is not None:
        host.fill(id)
        world.network.count("disk_fills")
        await asyncio.sleep(for_s)
        host.full.discard(id)


ACTS = {
    "ledger_full": ledger_full,
    "ledger_errors": ledger_errors,
    "ledger_slow": ledger_slow,
    "pool_full": pool_full,
    "disk_fills": disk_fills,
}
