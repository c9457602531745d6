"""Users have volumes in the pool that all nodes reach, also the disks of whole VMs, and do with them what they do with others.

Most acts are those of volumes.py: which of a user's volumes they concern is drawn among all of them.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from typing import Final

from cairn.storage.fake_shared import TYPE

from tests.sim.asked import AskedVolume
from tests.sim.story import Event, Size, spread
from tests.sim.user import IMAGE, SUBNET, User
from tests.sim.workloads.volumes import SIZE_BYTES, attach, detach

_ACTS: Final = (
    "attach", "attach", "detach", "grow", "delete_volume", "undelete_volume", "purge_volume",
    "delete", "undelete", "purge_vm", "hand_over", "hand_over", "hand_over",
)  # fmt: skip


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


ACTS = {"create_shared_vm": create_shared_vm, "create_shared_volume": create_shared_volume, "hand_over": hand_over}
