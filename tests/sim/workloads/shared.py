"""Users have volumes in the pool that all nodes reach, also the disks of whole VMs, and do with them what they do with others.

Most acts are those of volumes.py: which of a user's volumes they concern is drawn among all of them.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterable, Mapping
from typing import Final

from cairn.storage.fake_shared import TYPE

from tests.sim.asked import AskedVm, AskedVolume
from tests.sim.checkers.base import Violation
from tests.sim.cloud import Cloud
from tests.sim.story import Event, Size, spread
from tests.sim.user import IMAGE, SUBNET, Code, User, pick
from tests.sim.workloads.volumes import SIZE_BYTES, attach, detach

_ACTS: Final = (
    "attach", "attach", "detach", "grow", "delete_volume", "undelete_volume", "purge_volume",
    "delete", "undelete", "purge_vm", "hand_over", "hand_over", "hand_over",
)  # fmt: skip

# A node's session ends, its guest's claim is borne with for a while, another node shuts it out, a third plugs the disk in.
GIVEN_S: Final = 90.0
LET_GO_S: Final = 10.0


def draw(draw: random.Random, size: Size) -> Iterable[Event]:
    """Not in every story: VMs with disks there, and volumes that move between them."""
    for user in size.user_names[: draw.choice((1, 1, 2))]:
        for number in range(draw.choice((1, 2, 3))):
            yield Event(round(draw.uniform(0, 10), 2), user, "create_shared_vm", (f"netted-{user}-{number}",))
        for number in range(draw.choice((1, 2, 4))):
            at_s = round(draw.uniform(0, size.duration_s / 2), 2)
            yield Event(at_s, user, "create_shared_volume", (f"pooled-{user}-{number}", draw.choice((None, 0, 1))))
        for at_s in spread(draw, size, size.rounds + 2):
            act, index = draw.choice(_ACTS), draw.randrange(8)
            yield Event(at_s, user, act, (index, draw.randrange(8)) if act in ("attach", "hand_over") else (index,))
        if size.nodes > 1:
            at_s = round(draw.uniform(size.duration_s / 2, size.duration_s), 2)
            which, how = (draw.randrange(8), draw.randrange(8)), draw.choice(("crash", "cut"))
            yield Event(at_s, user, "shut_out_at_rest", (*which, how, draw.random() < 0.5))


async def create_shared_vm(user: User, name: str) -> None:
    """Make a VM whose disk is in the pool."""
    user.keep(await user.client.create_vm(name, image=IMAGE, subnet=SUBNET, memory_mib=128, volume_type=TYPE))


async def create_shared_volume(user: User, name: str, index: int | None) -> None:
    """Make a volume there, at a VM or at none."""
    vm = user.vm(index) if index is not None else None
    made = await user.client.create_volume(name, SIZE_BYTES, vm.id if vm is not None else "", type=TYPE)
    user.asked.volumes[made.id] = AskedVolume(made.id, name, user.name, SIZE_BYTES)
    if vm is not None:
        vm.volumes.add(made.id)


async def hand_over(user: User, index: int, vm_index: int) -> None:
    """Take one off its VM and give it to another at once, which may be on another node."""
    await detach(user, index)
    await attach(user, index, vm_index)


async def shut_out_at_rest(user: User, index: int, vm_index: int, how: str, back: bool) -> None:
    """Leave for when nobody is at work that a volume is given to another VM while the node of its guest is lost."""
    user.world.at_rest.append(lambda: _shut_out(user, index, vm_index, how, back))


async def _shut_out(user: User, index: int, vm_index: int, how: str, back: bool) -> None:
    """Whoever has it open can be asked nothing, and runs on; and yet the other guest is to have it, and only that one.

    back: it is given back to the first while that one is lost still, and has it by a connection that is dead.
    """
    world, cloud, asked = user.world, user.world.referee.cloud, user.asked
    machines = {machine.id: name for name, machine in world.machines.items() if world.alive(name)}
    pairs = [
        (volume, holder, vm)
        for volume in asked.volumes_of(user.name)
        if (holder := user.holder(volume.id)) is not None and volume.id in cloud.shared
        for vm in asked.vms_of(user.name)
        if _runs(cloud, vm, machines) and _runs(cloud, holder, machines) not in ("", _runs(cloud, vm, machines))
    ]
    chosen = pick(pairs, index + 8 * vm_index)
    if chosen is None:
        return
    volume, holder, vm = chosen
    lost, other = _runs(cloud, holder, machines), _runs(cloud, vm, machines)
    if how == "crash":
        world.crash(lost)
    else:
        world.network.block(lost, "*", both=True)
    if await _moved(user, volume, holder, vm):
        await asyncio.sleep(GIVEN_S)
        guest = cloud.hosts[world.machines[other].id].guests.get(vm.id)
        if guest is not None and volume.id not in guest.volumes:
            raise Violation("claimed", f"{volume.id} is given to {vm.id}, which does not get it while {lost} is lost")
        world.network.count("shut out")
        if back:
            await _moved(user, volume, vm, holder)
            await asyncio.sleep(LET_GO_S)
    if how == "crash":
        world.restart(lost)
    else:
        world.network.heal(lost)


async def _moved(user: User, volume: AskedVolume, source: AskedVm, target: AskedVm) -> bool:
    """Take a volume off a VM and give it to another; return whether that one may have it."""
    await user.client.update_volume(volume.id, vm="")
    source.volumes.discard(volume.id)
    if await user.attempt(user.client.update_volume(volume.id, vm=target.id), Code.FAILED_PRECONDITION) is None:
        return False
    target.volumes.add(volume.id)
    return True


def _runs(cloud: Cloud, vm: AskedVm, machines: Mapping[str, str]) -> str:
    """Return the name of the living machine on which a guest executes; empty: none."""
    placement = cloud.get("placement", vm.id)
    host = cloud.hosts.get(placement.node) if placement is not None else None
    guest = host.guests.get(vm.id) if host is not None else None
    return machines.get(placement.node, "") if guest is not None and guest.executing else ""


ACTS = {
    "create_shared_vm": create_shared_vm,
    "create_shared_volume": create_shared_volume,
    "hand_over": hand_over,
    "shut_out_at_rest": shut_out_at_rest,
}
