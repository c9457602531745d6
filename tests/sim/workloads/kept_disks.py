"""Users have a VM's own disk stay when the VM goes: a data volume from then on, to be attached, detached, deleted."""

from __future__ import annotations

import random
from collections.abc import Iterable

from cairn.proto.v1.volume_pb2 import UpdateVolumeRequest, Volume
from cairn.proto.v1.volume_pb2_grpc import VolumeServiceStub

from tests.sim.story import Event, Size, spread
from tests.sim.user import Code, User


def draw(draw: random.Random, size: Size) -> Iterable[Event]:
    """One user: before he deletes the VM, or after."""
    user = draw.choice(size.user_names)
    for number, at_s in enumerate(spread(draw, size, 2)):
        yield Event(at_s, user, "create_vm", (f"keep-{user}-{number}", 1, 128))
        if draw.random() < 0.5:
            yield Event(round(at_s + draw.uniform(0, 10), 2), user, "keep_disk", (draw.randrange(8), draw.random() < 0.5))
        act = draw.choice(("delete", "delete", "purge_vm"))
        yield Event(round(at_s + draw.uniform(5, 20), 2), user, act, (draw.randrange(8),))
        if draw.random() < 0.5:
            yield Event(round(at_s + draw.uniform(20, 30), 2), user, "keep_disk", (draw.randrange(8), True))


async def keep_disk(user: User, index: int, deleted: bool) -> None:
    """Have a VM's own disk stay when the VM goes; of one that was deleted already it may be refused."""
    vm = user.vm(index, deleted=deleted)
    if vm is None:
        return
    seen = await user.attempt(user.client.vm(vm.id), Code.NOT_FOUND)
    disk = seen.spec.root_volume if seen is not None else ""
    request = UpdateVolumeRequest(volume=Volume(id=disk), allow_stale=True)
    request.update_mask.paths.append("spec.delete_with_vm")
    refusals = (Code.FAILED_PRECONDITION, Code.NOT_FOUND) if deleted else (Code.FAILED_PRECONDITION,)
    kept = await user.attempt(user.client.call(VolumeServiceStub, "UpdateVolume", request), *refusals) if disk else None
    if kept is not None:
        vm.kept_root = (disk, kept.name, kept.spec.size_bytes)


ACTS = {"keep_disk": keep_disk}
