"""Users make VMs and delete some of them for good."""

from __future__ import annotations

import random
from collections.abc import Iterable

from tests.sim.asked import AskedVm
from tests.sim.story import Event, Size, spread
from tests.sim.user import IMAGE, SUBNET, User


def draw(draw: random.Random, size: Size) -> Iterable[Event]:
    """Each user makes a few, with pauses, and deletes about half."""
    for user in size.user_names:
        for number, at_s in enumerate(spread(draw, size, size.rounds)):
            yield Event(at_s, user, "create_vm", (f"web-{user}-{number}", draw.choice((1, 1, 2)), draw.choice((128, 256, 512))))
            if draw.random() < 0.5:
                yield Event(round(at_s + draw.uniform(0, 10), 2), user, "purge_vm", (draw.randrange(8),))


async def create_vm(user: User, name: str, cpus: int, memory_mib: int) -> None:
    """Make a VM."""
    vm = await user.client.create_vm(name, image=IMAGE, subnet=SUBNET, cpus=cpus, memory_mib=memory_mib)
    user.asked.vms[vm.id] = AskedVm(vm.id, name, user.name, cpus=cpus, memory_bytes=memory_mib << 20)


async def purge_vm(user: User, index: int) -> None:
    """Delete one of the user's VMs for good."""
    mine = user.asked.vms_of(user.name) + user.asked.vms_of(user.name, deleted=True)
    if not mine:
        return
    vm = mine[index % len(mine)]
    # Its data volumes stay, attached to nothing.
    await user.client.delete_vm(vm.id)
    user.asked.erase_vm(vm.id)


ACTS = {"create_vm": create_vm, "purge_vm": purge_vm}
