"""Users give VMs other names, also one that several want at the same moment, and take the names that are free then."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterable
from typing import Any

from cairn.proto.v1.vm_pb2 import Vm

from tests.sim.asked import AskedVm
from tests.sim.story import Event, Size, spread
from tests.sim.user import Code, User

# The VM was deleted meanwhile.
_GONE = (Code.FAILED_PRECONDITION, Code.NOT_FOUND)
# Names that all users want at one moment.
_WANTED = "wanted-"


def draw(draw: random.Random, size: Size) -> Iterable[Event]:
    """Single renames, and now and then all users for one name."""
    for user in size.user_names[: draw.choice((1, 2))]:
        yield Event(round(draw.uniform(0, 5), 2), user, "create_vm", (f"called-{user}", 1, 64))
    for number, at_s in enumerate(spread(draw, size, max(2, size.rounds // 2))):
        if draw.random() < 0.4:
            for user in size.user_names:
                yield Event(at_s, user, "rename_to_one", (draw.randrange(8), number))
        else:
            yield Event(at_s, draw.choice(size.user_names), "rename", (draw.randrange(8), number, draw.random() < 0.5))


async def rename(user: User, index: int, number: int, taken: bool) -> None:
    """Rename it; its old name is nobody's then, and somebody else may take it."""
    vm = user.vm(index)
    if vm is None:
        return
    old, new = vm.name, f"new-{user.name}-{number}"
    if await _rename(user, vm, new) is None:
        return
    if taken:
        made = await user.attempt(user.client.create_vm(old, memory_mib=64), Code.ALREADY_EXISTS)
        if made is None and not _taken(user, vm, old):
            user.asked.contradict(f"{vm.id} is called {new} now, and {old} is not free")
        elif made is not None:
            user.keep(made)


def _taken(user: User, vm: AskedVm, name: str) -> bool:
    """Tell whether another VM has, or may have, a name by now: one that several want."""
    others = (other for other in user.asked.vms.values() if other.id != vm.id)
    return name.startswith(_WANTED) and any(other.name == name or other.renaming for other in others)


async def rename_to_one(user: User, index: int, number: int) -> None:
    """Each wants the name for two of his: at most one of all gets it."""
    vms = [vm for each in (index, index + 1) if (vm := user.vm(each)) is not None]
    name = f"{_WANTED}{number}"
    await asyncio.gather(*(_rename(user, vm, name) for vm in {vm.id: vm for vm in vms}.values()))


async def _rename(user: User, vm: AskedVm, name: str) -> Any:
    if vm.renaming:
        # Which of two came last, answers do not tell.
        return None
    vm.renaming = True
    try:
        asked = user.client.update_vm(Vm(id=vm.id, name=name), "name")
        answer = await user.attempt(asked, Code.ALREADY_EXISTS, *_GONE)
    finally:
        vm.renaming = False
    if answer is not None:
        vm.name = answer.name
        if (answer.id, answer.name) != (vm.id, name):
            user.asked.contradict(f"{vm.id} was to be called {name}, the answer was {answer.id} called {answer.name}")
    return answer


ACTS = {"rename": rename, "rename_to_one": rename_to_one}
