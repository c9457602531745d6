"""Nobody works for hours, or for more than a day: what was deleted goes for good, and certificates end.

When all is at rest the night begins: each process has a certificate that will not last until the morning. Mostly the whole
cloud is suspended, so that hours cost nothing; between it is awake for a while, and something happens: a process dies, a node
loses its power, leases end, the store finds another leader. In the morning everybody is restarted, and has to show his
certificate.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterable, Sequence
from typing import Final

from tests.sim.asked import Asked
from tests.sim.certificates import Certificates
from tests.sim.faults import leases, processes
from tests.sim.story import Event, Size, spread
from tests.sim.user import User, pick
from tests.sim.world import World

HOUR_S: Final = 3600.0
# A controller looks at its certificate once an hour, and has the last third of its life to replace it.
LOOK_S: Final = HOUR_S
SETTLE_S: Final = 120.0
PATIENCE_S: Final = 300.0
_HAPPENS: Final = ("nothing", "crash", "crash", "power_loss", "all_controllers", "leases_end", "leader_lost", "compacted")


def draw(draw: random.Random, size: Size) -> Iterable[Event]:
    """One user puts things away; seldom a night follows, and more seldom a long one."""
    user = draw.choice(size.user_names)
    for number, at_s in enumerate(spread(draw, size, 2)):
        yield Event(at_s, user, "create_vm", (f"night-{user}-{number}", 1, 128))
        yield Event(round(at_s + draw.uniform(5, 20), 2), user, "delete", (draw.randrange(8),))
    if draw.random() < 0.1:
        hours, pieces = draw.choice(((3.0, 4), (27.0, 9)))
        names = (*size.controller_names, *size.node_names)
        happens = tuple((draw.choice(_HAPPENS), draw.choice(names)) for _ in range(pieces))
        yield Event(size.duration_s, user, "night", (hours, happens, draw.choice((SETTLE_S, SETTLE_S, 900.0))))


async def night(user: User, hours: float, happens: Sequence[tuple[str, str]], awake_s: float) -> None:
    """Once the story is over."""
    user.world.at_rest.append(lambda: _night(user.world, hours * HOUR_S, happens, awake_s))


async def _night(world: World, for_s: float, happens: Sequence[tuple[str, str]], awake_s: float) -> None:
    piece_s = for_s / len(happens)
    # Time to replace it in: two looks, and a sleep between.
    third_s = piece_s + 2 * LOOK_S
    Certificates(world).issue(3 * third_s, min(third_s + LOOK_S, 0.9 * for_s))
    for what, name in happens:
        world.suspend(piece_s - awake_s)
        await asyncio.sleep(awake_s / 2)
        await _happen(world, what, name)
        await asyncio.sleep(awake_s / 2)
    world.note("it is morning")
    for name in list(world.processes):
        world.crash(name)
    world.restart_all()
    nodes = {machine.id for machine in world.machines.values() if not machine.away}
    await world.until("all nodes to be connected in the morning", lambda: nodes <= set(world.connected()), PATIENCE_S)
    _forget(world.referee.asked)


async def _happen(world: World, what: str, name: str) -> None:
    world.note(f"in the night: {what} {name}")
    match what:
        case "crash":
            await processes.crash(world, name, 5.0)
        case "power_loss" if name in world.machines and not world.machines[name].away:
            await processes.power_loss(world, name, 5.0)
        case "all_controllers":
            await processes.all_controllers(world, 5.0)
        case "leases_end":
            await leases.leases_end(world, pick(world.controllers, len(name)) or name, 1, 0.1)
        case "leader_lost":
            await leases.leader_lost(world, 2.0)
        case "compacted":
            await leases.compacted(world)


def _forget(asked: Asked) -> None:
    """Whatever was deleted is beyond its retention."""
    for vm in [each for each in asked.vms.values() if each.deleted]:
        asked.erase_vm(vm.id)
    for volume in [each for each in asked.volumes.values() if each.deleted]:
        asked.erase_volume(volume.id)


ACTS = {"night": night}
