"""Two people change one VM at the same time: whoever writes on an old revision is refused, and nothing is lost."""

from __future__ import annotations

import random
from collections.abc import Iterable

from cairn.proto import kinds
from cairn.proto.v1.vm_pb2 import Vm

from tests.sim.story import Event, Size, spread
from tests.sim.user import Code, User


def draw(draw: random.Random, size: Size) -> Iterable[Event]:
    """One user changes labels of what he has."""
    user = draw.choice(size.user_names)
    yield Event(round(draw.uniform(0, 5), 2), user, "create_vm", (f"tagged-{user}", 1, 64))
    for number, at_s in enumerate(spread(draw, size, max(2, size.rounds // 2))):
        yield Event(at_s, user, "write_on_old", (draw.randrange(8), number))


async def write_on_old(user: User, index: int, number: int) -> None:
    """Change it blindly, then on what that answered, then on the same again: only the last is refused."""
    vm = user.vm(index)
    if vm is None:
        return
    first = await user.client.update_vm(_labelled(vm.id, number, "a"), "labels.mark")
    again = user.client.update_vm(_labelled(vm.id, number, "b", first.etag), "labels.mark", stale=False)
    second = await user.attempt(again, Code.ABORTED)
    if second is None:
        if kinds.VM.key(vm.id) not in user.world.were_spoiled:
            user.asked.contradict(f"{vm.name} ({vm.id}) has etag {first.etag} and could not be written on it")
        return
    third = user.client.update_vm(_labelled(vm.id, number, "c", first.etag), "labels.mark", stale=False)
    if await user.attempt(third, Code.ABORTED) is not None:
        user.asked.contradict(f"{vm.name} ({vm.id}) has changed since etag {first.etag} and could be overwritten")
    seen = await user.client.vm(vm.id, second.revision)
    if seen.labels["mark"] != f"{number}-b":
        user.asked.contradict(f"{vm.name} ({vm.id}) was marked {number}-b and says {seen.labels['mark']}")


def _labelled(id: str, number: int, letter: str, etag: str = "") -> Vm:
    return Vm(id=id, etag=etag, labels={"mark": f"{number}-{letter}"})


ACTS = {"write_on_old": write_on_old}
