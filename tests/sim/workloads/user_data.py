"""Users make VMs with keys and user data of their own, which their guests get and nobody else sees."""

from __future__ import annotations

import random
from collections.abc import Iterable

from tests.sim.asked import AskedVm
from tests.sim.story import Event, Size, spread
from tests.sim.user import IMAGE, SUBNET, User

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIB" + "A" * 42


def draw(draw: random.Random, size: Size) -> Iterable[Event]:
    """Each user makes one or two."""
    for user in size.user_names:
        for number, at_s in enumerate(spread(draw, size, draw.randint(1, 2))):
            yield Event(at_s, user, "create_with_data", (f"told-{user}-{number}", f"{draw.getrandbits(64):016x}"))


async def create_with_data(user: User, name: str, password: str) -> None:
    """Make a VM whose user data holds a password."""
    user.world.referee.cloud.secrets.add(password)
    data = f"#cloud-config\npassword: {password}\n"
    vm = await user.client.create_vm(name, image=IMAGE, subnet=SUBNET, ssh_keys=[KEY], user_data=data.encode())
    user.asked.vms[vm.id] = AskedVm(vm.id, name, user.name, memory_bytes=256 << 20, user_data=data.encode(), ssh_keys=(KEY,))


ACTS = {"create_with_data": create_with_data}
