"""Users delete VMs, bring them back and delete them again, often before their node has heard of the step before.

What a node said last of a VM may then be about an earlier life of it: nothing may be erased, and no address, memory or disk be
given back, on the strength of that.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterable

from tests.sim.asked import AskedVm
from tests.sim.story import Event, Size, spread
from tests.sim.user import Code, User

_PAUSES_S = (0.0, 0.0, 0.0, 0.05, 0.2, 1.0, 5.0)


def draw(draw: random.Random, size: Size) -> Iterable[Event]:
    """Single steps, and whole sequences with short pauses or none."""
    for user in size.user_names[: draw.choice((1, 2))]:
        for number in range(draw.choice((1, 2, 3))):
            yield Event(round(draw.uniform(0, 5), 2), user, "create_vm", (f"soft-{user}-{number}", 1, 128))
        for at_s in spread(draw, size, size.rounds):
            index, pauses_s = draw.randrange(8), (draw.choice(_PAUSES_S), draw.choice(_PAUSES_S))
            act = draw.choice(
                ("delete", "undelete", "purge_deleted", "brought_back", "back_and_erased", "back_and_erased", "back_and_erased")
            )
            match act:
                case "brought_back":
                    yield Event(at_s, user, act, (index, pauses_s[0]))
                case "back_and_erased":
                    yield Event(at_s, user, act, (index, *pauses_s))
                case _:
                    yield Event(at_s, user, act, (index,))


async def delete(user: User, index: int) -> None:
    """Put a VM away: it cannot be started."""
    vm = user.vm(index)
    if vm is None:
        return
    await _delete(user, vm)
    if await user.attempt(user.client.start_vm(vm.id), Code.FAILED_PRECONDITION, Code.NOT_FOUND) is not None:
        user.asked.contradict(f"{vm.name} ({vm.id}) is deleted and could be started")


async def undelete(user: User, index: int) -> None:
    """Bring one back."""
    vm = user.vm(index, deleted=True)
    if vm is not None:
        await _undelete(user, vm)


async def purge_deleted(user: User, index: int) -> None:
    """Erase one that was put away."""
    vm = user.vm(index, deleted=True)
    if vm is not None:
        await _erase(user, vm)


async def brought_back(user: User, index: int, pause_s: float) -> None:
    """Delete it, and bring it back."""
    vm = user.vm(index)
    if vm is not None:
        await _there_and_back(user, vm, pause_s)


async def back_and_erased(user: User, index: int, pause_s: float, then_s: float) -> None:
    """Delete it, bring it back, and erase it."""
    vm = user.vm(index)
    if vm is not None:
        await _there_and_back(user, vm, pause_s)
        await asyncio.sleep(then_s)
        await _erase(user, vm)


async def _there_and_back(user: User, vm: AskedVm, pause_s: float) -> None:
    await _delete(user, vm)
    await asyncio.sleep(pause_s)
    await _undelete(user, vm)


async def _delete(user: User, vm: AskedVm) -> None:
    await user.client.delete_vm(vm.id, purge=False)
    # Its data volumes are detached, and stay.
    vm.deleted, vm.volumes = True, set()


async def _undelete(user: User, vm: AskedVm) -> None:
    back = await user.attempt(user.client.undelete_vm(vm.id), Code.ALREADY_EXISTS)
    if back is None:
        # Somebody was given its name since.
        back = await user.client.undelete_vm(vm.id, f"back-{vm.id[2:]}")
    vm.deleted, vm.name = False, back.name
    vm.switch(on=vm.power_on)


async def _erase(user: User, vm: AskedVm) -> None:
    await user.client.delete_vm(vm.id)
    user.asked.erase_vm(vm.id)


ACTS = {
    "delete": delete,
    "undelete": undelete,
    "purge_deleted": purge_deleted,
    "brought_back": brought_back,
    "back_and_erased": back_and_erased,
}
