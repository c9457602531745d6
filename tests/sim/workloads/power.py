"""Users start, stop and reboot VMs, and the guests themselves shut down or crash; the restart policy says what must be then."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterable

from cairn.agent.hypervisor.fake import FakeHost
from cairn.agent.hypervisor.mark import Phase
from cairn.proto.v1.vm_pb2 import (
    RESTART_POLICY_ALWAYS,
    RESTART_POLICY_NEVER,
    RESTART_POLICY_ON_FAILURE,
    Vm,
    VmStatus,
)

from tests.sim.asked import AskedVm
from tests.sim.machine import Machine
from tests.sim.story import Event, Size, spread
from tests.sim.user import IMAGE, SUBNET, Code, User

_POLICIES = {
    "on_failure": RESTART_POLICY_ON_FAILURE,
    "always": RESTART_POLICY_ALWAYS,
    "never": RESTART_POLICY_NEVER,
}
# A guest that crashes again and again is started again later and later: not so often that it takes longer than a story.
_CRASHES_MAX = 4
# How long somebody waits to see a VM run before giving up on what he was about to do in it.
_PATIENCE_S = 20.0


_CRASHES = ("crash_inside", "crash_inside", "panic_inside")


def draw(draw: random.Random, size: Size) -> Iterable[Event]:
    """Each user has a VM or two of its own and does things to them, and to the others he has."""
    for user in size.user_names:
        crashes = 0
        for number in range(draw.choice((1, 1, 2))):
            at_s = round(draw.uniform(0, size.duration_s / 4), 2)
            yield Event(at_s, user, "create_with_policy", (f"power-{user}-{number}", draw.choice(sorted(_POLICIES))))
        for at_s in spread(draw, size, size.rounds):
            index = draw.randrange(8)
            act = draw.choice(
                ("start", "start", "stop", "stop", "stop_hard", "reboot", "reboot_hard", "shut_down_inside", "crash_inside")
            )
            if act == "crash_inside":
                act = draw.choice(_CRASHES)
            crashes += act in _CRASHES
            if act in _CRASHES and crashes > _CRASHES_MAX:
                act = "start"
            yield Event(at_s, user, act, (index,))
            if draw.random() < 0.3:
                # At once the opposite: what was asked for first may not have arrived yet.
                yield Event(at_s, user, draw.choice(("start", "stop", "reboot")), (index,))


async def create_with_policy(user: User, name: str, policy: str) -> None:
    """Make a VM with a restart policy."""
    vm = await user.client.create_vm(name, image=IMAGE, subnet=SUBNET, memory_mib=128, restart_policy=_POLICIES[policy])
    never, always = policy == "never", policy == "always"
    user.keep(vm, never_restarts=never, may_be_off=never, always_restarts=always)


async def start(user: User, index: int) -> None:
    """Run one of his VMs."""
    vm = user.vm(index)
    if vm is not None:
        vm.switch(on=True, revision=(await user.client.start_vm(vm.id)).revision)


async def stop(user: User, index: int) -> None:
    """Ask its guest to shut down."""
    vm = user.vm(index)
    if vm is not None:
        vm.switch(on=False, revision=(await user.client.stop_vm(vm.id)).revision)


async def stop_hard(user: User, index: int) -> None:
    """Cut its power."""
    vm = user.vm(index)
    if vm is not None:
        vm.switch(on=False, revision=(await user.client.stop_vm(vm.id, force=True)).revision)


async def reboot(user: User, index: int, *, force: bool = False) -> None:
    """Restart its guest; refused for a VM that is to be off."""
    vm = user.vm(index)
    if vm is None:
        return
    if not vm.power_on:
        if await user.attempt(user.client.reboot_vm(vm.id, force=force), Code.FAILED_PRECONDITION) is not None:
            user.asked.contradict(f"{vm.name} ({vm.id}) is to be off and could be rebooted")
        return
    vm.switch(on=True, revision=(await user.client.reboot_vm(vm.id, force=force)).revision)


async def reboot_hard(user: User, index: int) -> None:
    """The same by cutting its power."""
    await reboot(user, index, force=True)


async def shut_down_inside(user: User, index: int) -> None:
    """Log in and shut the guest down: it stays off, unless its policy is to be always on. Not while it does so already."""
    vm = user.vm(index)
    if vm is None:
        return
    seen = await _seen_running(user, vm)
    machine = _machine_of(user, vm.id)
    if seen is None or machine is None or machine.host.guests[vm.id].mark.phase is Phase.STOPPING:
        return
    user.world.note(f"the guest of {vm.id} shuts down")
    machine.host.guest_poweroff(vm.id)
    vm.running, vm.may_be_off = vm.always_restarts, False


async def crash_inside(user: User, index: int) -> None:
    """The guest's process dies: it is started again, unless its policy is never to."""
    if (struck := _struck(user, index, "the guest of {} crashes")) is not None:
        host, id = struck
        host.crash(id)


async def panic_inside(user: User, index: int) -> None:
    """The guest's kernel panics, and the hypervisor leaves its process there: its power is cut, and it has crashed."""
    if (struck := _struck(user, index, "the kernel of {} panics")) is not None:
        host, id = struck
        host.panic(id)


def _struck(user: User, index: int, say: str) -> tuple[FakeHost, str] | None:
    """Return where the guest of one of his VMs runs, and its id, having noted what happens to it; None: it does not run."""
    vm = user.vm(index)
    machine = _machine_of(user, vm.id) if vm is not None else None
    if vm is None or machine is None:
        return None
    user.world.note(say.format(vm.id))
    return machine.host, vm.id


async def _seen_running(user: User, vm: AskedVm) -> Vm | None:
    """Wait until the API says that it runs as asked; None when that takes too long, or it is to be off."""
    if not vm.running:
        return None
    loop = asyncio.get_running_loop()
    # A controller may be behind: what was asked for a moment ago through another is to be done first.
    until_s, revision = loop.time() + _PATIENCE_S, max(vm.revision, (await user.client.vm(vm.id)).revision)
    while loop.time() < until_s:
        seen = await user.client.vm(vm.id, revision)
        if seen.status.state == VmStatus.STATE_RUNNING and not seen.reconciling:
            return seen
        await asyncio.sleep(1.0)
    return None


def _machine_of(user: User, id: str) -> Machine | None:
    """Return where a guest runs now."""
    return next((machine for machine in user.world.machines.values() if id in machine.running()), None)


ACTS = {
    "create_with_policy": create_with_policy,
    "start": start,
    "stop": stop,
    "stop_hard": stop_hard,
    "reboot": reboot,
    "reboot_hard": reboot_hard,
    "shut_down_inside": shut_down_inside,
    "crash_inside": crash_inside,
    "panic_inside": panic_inside,
}
