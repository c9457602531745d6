"""A disk that is to outlive its VM does, whenever that is said, and is a volume like others: nothing refers to what is gone."""

from __future__ import annotations

from collections.abc import AsyncIterator
from itertools import product
from pathlib import Path
from typing import Any

import grpc
import pytest
from cairn.controller.api import nouns, resolution
from cairn.controller.reconcilers.garbage import Garbage
from cairn.controller.store.base import Txn
from cairn.controller.store.memory import MemoryStore
from cairn.proto import kinds
from cairn.proto.v1.agent_pb2 import Report, VmReport, VolumeReport
from cairn.proto.v1.cluster_pb2 import NameClaim
from cairn.proto.v1.vm_pb2 import DeleteVmRequest, Placement, UndeleteVmRequest, Vm
from cairn.proto.v1.volume_pb2 import (
    CreateVolumeRequest,
    DeleteVolumeRequest,
    GetVolumeRequest,
    ListVolumesRequest,
    Purge,
    UndeleteVolumeRequest,
    UpdateVolumeRequest,
    Volume,
    VolumePlacement,
    VolumeSpec,
    VolumeStatus,
)

from tests.conformance.api_world import MIB, World, world_on

STATE = grpc.StatusCode.FAILED_PRECONDITION
# What may be asked for of a VM's root disk and a data disk that goes with it, in any order.
ACTS = ("keep", "let_go", "detach", "delete", "undelete", "delete_disk", "undelete_disk")


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with world_on(MemoryStore(), tmp_path) as world:
        await world.furnish()
        yield world


async def changed(world: World, volume: str, path: str, **spec: Any) -> Volume:
    request = UpdateVolumeRequest(volume=Volume(id=volume, spec=VolumeSpec(**spec)), allow_stale=True)
    request.update_mask.paths.append(path)
    answer: Volume = await world.api.volumes.UpdateVolume(request)
    return answer


async def act(world: World, what: str, vm: Vm, disk: str) -> None:
    """Ask for it; what is refused for the state of things changes nothing."""
    try:
        if what in ("keep", "let_go"):
            await changed(world, disk, "spec.delete_with_vm", delete_with_vm=what == "let_go")
        elif what == "detach":
            await changed(world, disk, "spec.vm")
        elif what == "delete":
            await world.api.vms.DeleteVm(DeleteVmRequest(id=vm.id))
        elif what == "undelete":
            await world.api.vms.UndeleteVm(UndeleteVmRequest(id=vm.id))
        elif what == "delete_disk":
            await world.api.volumes.DeleteVolume(DeleteVolumeRequest(id=disk))
        else:
            await world.api.volumes.UndeleteVolume(UndeleteVolumeRequest(id=disk))
    except grpc.aio.AioRpcError as error:
        if error.code() not in (STATE, grpc.StatusCode.NOT_FOUND):
            raise


async def erased(world: World, vm: str) -> None:
    """Delete a VM for good, and let garbage collection do its part: it is on no node."""
    await world.api.vms.DeleteVm(DeleteVmRequest(id=vm, purge=True))
    await collected(world)
    assert world.cache.view.get(kinds.VM, vm) is None


async def collected(world: World) -> None:
    garbage, busy = Garbage(), True
    while busy:
        busy = False
        for key in sorted(garbage.all_keys(world.cache.view)):
            outcome = garbage.reconcile(world.cache.view, key, world.clock.now())
            if outcome.txn:
                await world.commit(outcome.txn)
                busy = True


def dangling(world: World) -> list[str]:
    """Return sentences about references and names that do not fit."""
    view, wrong = world.cache.view, list[str]()
    for volume in view.all(kinds.VOLUME):
        vm = view.get(kinds.VM, volume.spec.vm) if volume.spec.vm else None
        gone = volume.HasField("delete_time") or (vm is not None and vm.HasField("delete_time"))
        claim = view.get(kinds.NAME, resolution.claim_id(nouns.VOLUME, volume.project, volume.name))
        if volume.spec.vm and vm is None:
            wrong.append(f"{volume.name} refers to {volume.spec.vm}, which is gone")
        if volume.spec.boot != (vm is not None and vm.spec.root_volume == volume.id):
            wrong.append(f"{volume.name} is the root disk of nothing, or is not told to be one")
        if gone == (claim is not None and claim.id == volume.id):
            wrong.append(f"{volume.name} {'holds a name and is gone' if gone else 'has no name'}")
    for vm in view.all(kinds.VM):
        root = view.get(kinds.VOLUME, vm.spec.root_volume)
        if not vm.HasField("delete_time") and (root is None or root.spec.vm != vm.id):
            wrong.append(f"{vm.name} has no root disk")
        if any((held := view.get(kinds.VOLUME, id)) is None or held.spec.vm != vm.id for id in vm.spec.volumes):
            wrong.append(f"{vm.name} lists a volume that is not attached to it")
    return wrong


@pytest.mark.parametrize("first", ACTS)
async def test_in_whatever_order_nothing_is_stuck_and_nothing_dangles(world: World, first: str) -> None:
    for number, acts in enumerate(product(ACTS, repeat=2)):
        data = Volume(name=f"data-{number}", spec=VolumeSpec(size_bytes=MIB, delete_with_vm=True))
        made = await world.api.volumes.CreateVolume(CreateVolumeRequest(volume=data))
        vm = await world.vm(f"web-{number}", volumes=[made.id])
        disk = (vm.spec.root_volume, made.id)[(number + ACTS.index(first)) % 2]
        for what in (first, *acts):
            await act(world, what, vm, disk)
            assert dangling(world) == [], (first, *acts)
        await erased(world, vm.id)
        assert dangling(world) == [], (first, *acts)
        for volume in [id for id in (vm.spec.root_volume, made.id) if world.cache.view.get(kinds.VOLUME, id) is not None]:
            await world.api.volumes.DeleteVolume(DeleteVolumeRequest(id=volume, purge=True))
        await collected(world)
        assert world.cache.view.count(kinds.VOLUME) == 0


async def test_a_kept_root_disk_is_attached_elsewhere_and_its_vm_does_not_come_back(world: World) -> None:
    first, other = await world.vm("web"), await world.vm("other")
    await world.api.vms.DeleteVm(DeleteVmRequest(id="web"))
    kept = await changed(world, first.spec.root_volume, "spec.delete_with_vm", delete_with_vm=False)
    assert (kept.name, kept.spec.vm, kept.spec.boot) == ("web-root", "", False)
    await changed(world, kept.id, "spec.vm", vm="other")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await world.api.vms.UndeleteVm(UndeleteVmRequest(id=first.id))
    assert caught.value.code() is STATE
    assert "its root disk 'web-root' is attached to VM 'other': detach it first" in str(caught.value.details())
    await changed(world, kept.id, "spec.vm")
    await world.api.vms.UndeleteVm(UndeleteVmRequest(id=first.id))
    root = world.cache.view.get(kinds.VOLUME, kept.id)
    assert root is not None
    assert (root.spec.vm, root.spec.boot) == (first.id, True)
    assert list(world.cache.view.get(kinds.VM, other.id).spec.volumes) == []  # type: ignore[union-attr]


async def test_a_disk_whose_name_was_taken_goes_by_its_id(world: World) -> None:
    vm = await world.vm("web")
    await world.api.vms.DeleteVm(DeleteVmRequest(id="web"))
    await world.api.volumes.CreateVolume(CreateVolumeRequest(volume=Volume(name="web-root", spec=VolumeSpec(size_bytes=MIB))))
    kept = await changed(world, vm.spec.root_volume, "spec.delete_with_vm", delete_with_vm=False)
    assert kept.name == kept.id
    assert dangling(world) == []


async def test_a_disk_that_is_being_erased_with_its_vm_is_not_kept(world: World) -> None:
    vm = await world.vm("web")
    await world.api.vms.DeleteVm(DeleteVmRequest(id="web"))
    await world.commit(Txn("garbage").create(kinds.PURGE, vm.id, Purge(id=vm.id)))
    for path, spec in (("spec.delete_with_vm", {"delete_with_vm": False}), ("spec.vm", {})):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await changed(world, vm.spec.root_volume, path, **spec)
        assert caught.value.code() is STATE
        assert "is being erased with VM 'web'" in str(caught.value.details())


@pytest.mark.parametrize("boot", [True, False])
async def test_what_older_releases_left_attached_to_nothing_is_free(world: World, boot: bool) -> None:
    await world.vm("other")
    for number in range(3):
        left = Volume(id=f"vol-0000000{number}", name=f"left-{number}", project=nouns.DEFAULT_PROJECT_ID)
        left.spec.CopyFrom(VolumeSpec(size_bytes=MIB, vm="i-gone0000", boot=boot))
        claim = NameClaim(kind="volume", project=left.project, name=left.name, id=left.id)
        key = resolution.claim_id(nouns.VOLUME, left.project, left.name)
        await world.commit(Txn("api").create(kinds.VOLUME, left.id, left).create(kinds.NAME, key, claim))
    assert (await changed(world, "vol-00000000", "spec.vm")).spec.vm == ""
    attached = await changed(world, "vol-00000001", "spec.vm", vm="other")
    assert attached.spec.vm
    assert not attached.spec.boot
    await world.api.volumes.DeleteVolume(DeleteVolumeRequest(id="vol-00000002"))
    assert dangling(world) == []


async def test_disks_of_a_deleted_vm_say_so_and_are_listed_when_asked_for(world: World) -> None:
    """Kept with it for undelete, not attached: what is told is what is so, also while its guest has them open still."""
    vm = await world.vm("web")
    (node,) = (each.id for each in world.cache.view.all(kinds.NODE) if each.name == "n1")
    root = vm.spec.root_volume
    await world.commit(Txn("placement").put(kinds.PLACEMENT, vm.id, Placement(vm=vm.id, node=node)))
    place = VolumePlacement(volume=root, node=node, disk_bytes=MIB)
    await world.commit(Txn("placement").put(kinds.VOLUME_PLACEMENT, root, place))
    await world.report(node, f"volume/{root}", Report(volume=VolumeReport(state=VolumeReport.STATE_READY, size_bytes=64 * MIB)))
    has_it = Report(vm=VmReport(state=VmReport.STATE_RUNNING, open_volumes=[root]))
    await world.report(node, f"vm/{vm.id}", has_it)
    await world.api.vms.DeleteVm(DeleteVmRequest(id=vm.id))

    async def shown() -> Volume:
        answer: Volume = await world.api.volumes.GetVolume(GetVolumeRequest(id=root))
        return answer

    held = await shown()
    assert held.status.state == VolumeStatus.STATE_DETACHING
    assert held.status.say == "waits for n1 to say that VM web, which is deleted, let go of it"
    await world.report(node, f"vm/{vm.id}", Report(vm=VmReport(state=VmReport.STATE_ABSENT)))
    kept = await shown()
    assert kept.status.state == VolumeStatus.STATE_DELETED
    assert not kept.reconciling
    assert kept.status.say.startswith(f"deleted with VM web: `cairn vm undelete {vm.id}` brings both back until 20")
    assert f"`cairn volume detach {root}` keeps it alone" in kept.status.say
    listed = await world.api.volumes.ListVolumes(ListVolumesRequest())
    assert [volume.id for volume in listed.volumes] == []
    listed = await world.api.volumes.ListVolumes(ListVolumesRequest(show_deleted=True))
    assert [volume.id for volume in listed.volumes] == [root]
    await changed(world, root, "spec.vm")
    listed = await world.api.volumes.ListVolumes(ListVolumesRequest())
    assert [volume.id for volume in listed.volumes] == [root], "kept alone, it is a volume like others"


async def test_disks_of_a_vm_that_is_being_erased_say_so(world: World) -> None:
    vm = await world.vm("web")
    await world.api.vms.DeleteVm(DeleteVmRequest(id=vm.id, purge=True))
    shown = await world.api.volumes.GetVolume(GetVolumeRequest(id=vm.spec.root_volume))
    assert shown.status.say == "deleted for good with VM web; about to be erased"
    await world.commit(Txn("garbage").create(kinds.PURGE, vm.id, Purge(id=vm.id)))
    shown = await world.api.volumes.GetVolume(GetVolumeRequest(id=vm.spec.root_volume))
    assert (shown.status.state, shown.status.say) == (VolumeStatus.STATE_DELETING, "being erased with VM web")


async def test_a_vm_tells_its_volumes_by_name(world: World) -> None:
    await world.api.volumes.CreateVolume(CreateVolumeRequest(volume=Volume(name="data", spec=VolumeSpec(size_bytes=MIB))))
    vm = await world.vm("web", volumes=["data"])
    assert [volume.name for volume in vm.status.volumes] == ["web-root", "data"]
    assert vm.status.volumes[1].size_bytes == MIB
