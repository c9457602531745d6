"""What drivers do to an agent: calls fail before or after they had an effect, or hang; events are lost; guests are deaf."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterable
from functools import partial
from typing import Any

from cairn.storage.base import StorageError

from tests.sim.machine import Machine
from tests.sim.story import FAULT, Event, Size, spread
from tests.sim.user import pick
from tests.sim.world import World

_OPERATIONS = {
    "hypervisor": (
        "define", "start", "resume", "stop", "reboot", "undefine", "attach_disk", "detach_disk", "list", "facts",
    ),
    "volume": ("create", "resize", "delete", "list", "observe"),
    "image": ("list_images", "put", "get", "put_chunk", "get_chunk", "delete_image"),
    "dataplane": (
        "observe", "apply", "EnsureNetwork", "BindPort", "UnbindPort", "AddForward", "RemoveForward", "RemoveNetwork",
        "SetPeers",
    ),
}  # fmt: skip


def draw(draw: random.Random, size: Size) -> Iterable[Event]:
    """Mostly calls that fail, on one node at a time."""
    for at_s in spread(draw, size, 2 * size.faults):
        node, for_s = draw.choice(size.node_names), draw.choice((2.0, 10.0, 30.0))
        match draw.choice(("calls_fail", "calls_fail", "calls_fail", "daemon_restarts", "events_lost", "deaf", "clinging")):
            case "calls_fail":
                driver, how = draw.choice(sorted(_OPERATIONS)), draw.choice(("before", "before", "after", "after", "hang"))
                some = draw.sample(_OPERATIONS[driver], draw.choice((1, 2, len(_OPERATIONS[driver]))))
                yield Event(at_s, FAULT, "calls_fail", (node, driver, tuple(some), how, draw.choice((1, 3, 10)), for_s))
            case "daemon_restarts":
                yield Event(at_s, FAULT, "daemon_restarts", (node,))
            case "events_lost":
                yield Event(at_s, FAULT, "events_lost", (node, for_s))
            case act:
                yield Event(at_s, FAULT, act, (node, draw.randrange(8), for_s))


async def calls_fail(
    world: World, node: str, driver: str, operations: tuple[str, ...], how: str, times: int, for_s: float
) -> None:
    """The next calls fail before or after their effect, or hang; after a while they do not any more, and go on."""
    machine = world.machines[node]
    fail = _storage_fails if driver in ("volume", "image") else partial(_knobs_fail, driver)
    left = await asyncio.gather(*(fail(machine, operation, how, times, for_s) for operation in operations))
    if sum(left) < times * len(operations):
        world.network.count(f"{driver} {how}")


async def _knobs_fail(driver: str, machine: Machine, operation: str, how: str, times: int, for_s: float) -> int:
    knobs: Any = machine.knobs if driver == "hypervisor" else machine.net_knobs
    knob = {"before": knobs.fail_before, "after": knobs.fail_after, "hang": knobs.hang}[how]
    knob[operation] = times
    await asyncio.sleep(for_s)
    left: int = knob.pop(operation, 0)
    if how == "hang":
        knobs.let_go()
    return left


async def _storage_fails(machine: Machine, operation: str, how: str, times: int, for_s: float) -> int:
    pool = machine.pool
    if how == "hang":
        pool.hang[operation] = times
        await asyncio.sleep(for_s)
        left = pool.hang.pop(operation, 0)
        pool.let_go()
        return left
    errors = (pool.faults if how == "before" else pool.faults_after)[operation]
    errors.extend(StorageError(f"{operation}: failed on purpose, {how} it was done") for _ in range(times))
    await asyncio.sleep(for_s)
    left = len(errors)
    errors.clear()
    return left


async def daemon_restarts(world: World, node: str) -> None:
    """The hypervisor daemon is restarted; guests run on."""
    world.machines[node].host.restart_daemon()
    world.network.count("daemon_restarts")


async def events_lost(world: World, node: str, for_s: float) -> None:
    """The hypervisor tells of nothing that happens: only looking helps."""
    notices = world.machines[node].notices
    notices.lost = True
    world.network.count("events_lost")
    await asyncio.sleep(for_s)
    notices.lost = False


async def deaf(world: World, node: str, index: int, for_s: float) -> None:
    """A guest ignores the power button."""
    host = world.machines[node].host
    id = pick(sorted(host.guests), index)
    if id is not None:
        host.deaf.add(id)
        world.network.count("deaf")
        await asyncio.sleep(for_s)
        host.deaf.discard(id)


async def clinging(world: World, node: str, index: int, for_s: float) -> None:
    """A guest does not let go of a disk."""
    host = world.machines[node].host
    disks = sorted({id for guest in host.guests.values() if guest.live is not None for id in guest.live.disks})
    id = pick(disks, index)
    if id is not None:
        host.clinging.add(id)
        world.network.count("clinging")
        await asyncio.sleep(for_s)
        host.clinging.discard(id)


ACTS = {
    "calls_fail": calls_fail,
    "daemon_restarts": daemon_restarts,
    "events_lost": events_lost,
    "deaf": deaf,
    "clinging": clinging,
}
