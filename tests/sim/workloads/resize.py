"""Users give VMs more or less CPU and memory; what a guest is started with follows at its next start."""

from __future__ import annotations

import random
from collections.abc import Iterable

from cairn.proto.v1.vm_pb2 import Vm

from tests.sim.asked import AskedVm
from tests.sim.client import MIB
from tests.sim.story import Event, Size, spread
from tests.sim.user import Code, User

# More than any node has.
HUGE_MIB = 1 << 19


def draw(draw: random.Random, size: Size) -> Iterable[Event]:
    """One user makes a VM and resizes what he has, often while it starts; sometimes he asks for the impossible."""
    user = draw.choice(size.user_names)
    yield Event(round(draw.uniform(0, 5), 2), user, "create_vm", (f"sized-{user}", 1, 256))
    for at_s in spread(draw, size, size.rounds):
        index = draw.randrange(8)
        yield Event(at_s, user, "resize", (index, draw.choice((1, 2, 3)), draw.choice((128, 256, 384, 512))))
        if draw.random() < 0.4:
            yield Event(at_s, user, "reboot", (index,))
        if draw.random() < 0.2:
            yield Event(at_s, user, "resize_too_far", (index,))


async def resize(user: User, index: int, cpus: int, memory_mib: int) -> None:
    """Change both."""
    vm = user.vm(index)
    if vm is not None:
        await user.client.update_vm(_sized(vm, cpus, memory_mib), "spec.cpus", "spec.memory_bytes")
        vm.cpus, vm.memory_bytes = cpus, memory_mib * MIB


async def resize_too_far(user: User, index: int) -> None:
    """Ask for more than any node has: refused, and nothing changes."""
    vm = user.vm(index)
    if vm is None:
        return
    asked = user.client.update_vm(_sized(vm, vm.cpus, HUGE_MIB), "spec.memory_bytes")
    if await user.attempt(asked, Code.RESOURCE_EXHAUSTED) is not None:
        user.asked.contradict(f"{vm.name} ({vm.id}) could have {HUGE_MIB} MiB")


def _sized(vm: AskedVm, cpus: int, memory_mib: int) -> Vm:
    change = Vm(id=vm.id)
    change.spec.cpus, change.spec.memory_bytes = cpus, memory_mib * MIB
    return change


ACTS = {"resize": resize, "resize_too_far": resize_too_far}
