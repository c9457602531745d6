"""Adopting what nodes know better: what was adopted already is not refused because its node has not heard of it yet."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
from cairn.controller.model.restored import CLUSTER_ID
from cairn.controller.model.where import where
from cairn.controller.store.base import Txn
from cairn.controller.store.memory import MemoryStore
from cairn.proto import kinds
from cairn.proto.v1.agent_pb2 import Desired, DesiredVm, DesiredVolume, NodeHeard, Unknown, VmDisk
from cairn.proto.v1.backup_pb2 import Restored
from cairn.proto.v1.cluster_pb2 import AdoptVmRequest, AdoptVolumeRequest, Cluster, ForgetUnknownRequest
from cairn.proto.v1.vm_pb2 import DeleteVmRequest, StopVmRequest, UndeleteVmRequest, UpdateVmRequest, Vm
from cairn.proto.v1.volume_pb2 import CreateVolumeRequest, DeleteVolumeRequest, UpdateVolumeRequest, Volume, VolumeSpec

from tests.conformance.api_world import GIB, World, world_on

VOLUME = "vol-unkn000"


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with world_on(MemoryStore(), tmp_path) as world:
        await world.furnish()
        for node in ("n1", "n2"):
            desired = Desired(volume=DesiredVolume(id=VOLUME, size_bytes=GIB))
            id = next(each.id for each in world.cache.view.all(kinds.NODE) if each.name == node)
            told = Unknown(key=f"volume/{VOLUME}", node=id, desired=desired)
            await world.commit(Txn("sync").put(kinds.UNKNOWN, f"{id}/volume/{VOLUME}", told))
        yield world


async def test_a_volume_that_was_adopted_a_moment_ago_is_adopted(world: World) -> None:
    """Its node says that it is unknown until it hears of the record: `cairn cluster adopt --all` comes to it in between."""
    first = await world.api.cluster.AdoptVolume(AdoptVolumeRequest(node="n1", id=VOLUME))
    again = await world.api.cluster.AdoptVolume(AdoptVolumeRequest(node="n1", id=VOLUME))
    assert (again.id, again.revision) == (first.id, first.revision), "and nothing is written"
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await world.api.cluster.AdoptVolume(AdoptVolumeRequest(node="n2", id=VOLUME))
    assert "by the records it is elsewhere" in str(refused.value.details())


async def test_the_root_disk_of_a_deleted_vm_that_was_erased_since_the_backup(world: World) -> None:
    """The VM waits for its retention by the records, its node has erased its disk by explicit word: that is adopted at once."""
    made = await world.vm("old")
    await world.api.vms.DeleteVm(DeleteVmRequest(id="old"))
    root = made.spec.root_volume
    node = next(iter(world.cache.view.ids(kinds.NODE)))
    told = Unknown(key=f"volume/{root}", node=node, contested=True, desired=Desired(volume=DesiredVolume(id=root, absent=True)))
    await world.commit(Txn("sync").put(kinds.UNKNOWN, f"{node}/volume/{root}", told))
    adopted = await world.api.cluster.AdoptVolume(AdoptVolumeRequest(node=node, id=root))
    assert adopted.HasField("delete_time")
    assert not adopted.spec.vm
    assert adopted.purge_time == adopted.delete_time
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await world.api.vms.UndeleteVm(UndeleteVmRequest(id="old"))
    assert "root disk" in str(refused.value.details())


async def test_what_the_records_know_again_is_neither_adopted_over_nor_forgotten(world: World) -> None:
    """Its node has not heard yet that it was adopted: a change since is newer, and `node forget` would erase it."""
    made = await world.vm("web")
    await world.reconcile()
    node = where(world.cache.view, made.id).runs_on
    told = Unknown(key=f"vm/{made.id}", node=node, desired=Desired(vm=DesiredVm(id=made.id, cpus=7, memory_bytes=GIB)))
    await world.commit(Txn("sync").put(kinds.UNKNOWN, f"{node}/vm/{made.id}", told))
    adopted = await world.api.cluster.AdoptVm(AdoptVmRequest(node=node, id=made.id))
    assert adopted.spec.cpus == made.spec.cpus
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await world.api.cluster.ForgetUnknown(ForgetUnknownRequest(node=node, key=f"vm/{made.id}"))
    assert refused.value.code() is grpc.StatusCode.NOT_FOUND
    # Nor is what may be known and cannot be read.
    await world.spoil(kinds.PLACEMENT, made.id)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await world.api.cluster.ForgetUnknown(ForgetUnknownRequest(node=node, key=f"vm/{made.id}"))
    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
    assert f"placement {made.id} cannot be read" in str(refused.value.details())
    assert not list(world.cache.view.ids(kinds.ERASURE))


@pytest.mark.parametrize("known", ["", "deleted"])
async def test_a_disk_of_a_vm_that_is_undecided_is_not_deleted(world: World, known: str) -> None:
    """After a restore its record is nobody's, or its VM deleted; its guest runs on with it."""
    spec = VolumeSpec(size_bytes=GIB)
    volume = await world.api.volumes.CreateVolume(CreateVolumeRequest(volume=Volume(name="data", spec=spec)))
    id, node = "i-0000lost", next(iter(world.cache.view.ids(kinds.NODE)))
    if known:
        id = (await world.vm("old")).id
        await world.api.vms.DeleteVm(DeleteVmRequest(id="old"))
    desired = DesiredVm(id=id, cpus=1, memory_bytes=GIB, disks=[VmDisk(volume=volume.id)])
    key = f"{node}/vm/{id}"
    told = Unknown(key=f"vm/{id}", node=node, contested=bool(known), running=True, desired=Desired(vm=desired))
    await world.commit(Txn("sync").put(kinds.UNKNOWN, key, told))
    cluster = Cluster(epoch=7, restored=Restored(revision=world.cache.view.revision))
    await world.commit(Txn("peers").put(kinds.CLUSTER, CLUSTER_ID, cluster))
    with pytest.raises(grpc.aio.AioRpcError, match="adopt or forget that first") as refused:
        await world.api.volumes.DeleteVolume(DeleteVolumeRequest(id="data"))
    assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    await world.commit(Txn("sync").delete(kinds.UNKNOWN, key))
    assert (await world.api.volumes.DeleteVolume(DeleteVolumeRequest(id="data"))).HasField("delete_time")


@pytest.mark.parametrize("why", ["its node was told otherwise", "its node has not spoken"])
async def test_the_record_of_a_vm_that_is_undecided_is_not_written_in_passing(world: World, why: str) -> None:
    """Written, all of it counts: a guest that was stopped since the backup would start for a disk that is detached."""
    spec = VolumeSpec(size_bytes=GIB)
    await world.api.volumes.CreateVolume(CreateVolumeRequest(volume=Volume(name="data", spec=spec)))
    web = await world.vm("web")
    await world.api.volumes.UpdateVolume(attached("data", "web"))
    await world.reconcile()
    node = where(world.cache.view, web.id).owner
    cluster = Cluster(epoch=7, restored=Restored(revision=world.cache.view.revision))
    txn = Txn("peers").put(kinds.CLUSTER, CLUSTER_ID, cluster)
    await world.commit(txn)
    key = f"vm/{web.id}"
    if why == "its node was told otherwise":
        await world.commit(Txn("sync").put(kinds.NODE_HEARD, node, NodeHeard(epoch=7)))
        told = Unknown(key=key, node=node, contested=True, desired=Desired(vm=DesiredVm(id=web.id)))
        await world.commit(Txn("sync").put(kinds.UNKNOWN, f"{node}/{key}", told))
    labels = UpdateVmRequest(vm=Vm(id="web", labels={"a": "b"}), allow_stale=True)
    for call in (world.api.volumes.UpdateVolume(attached("data", "")), world.api.vms.UpdateVm(labels)):
        with pytest.raises(grpc.aio.AioRpcError, match="or start, stop or delete it, first") as refused:
            await call
        assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    await world.api.vms.StopVm(StopVmRequest(id="web"))
    await world.api.vms.UpdateVm(labels)
    await world.api.volumes.UpdateVolume(attached("data", ""))


def attached(volume: str, vm: str) -> UpdateVolumeRequest:
    request = UpdateVolumeRequest(volume=Volume(id=volume, spec=VolumeSpec(vm=vm)), allow_stale=True)
    request.update_mask.paths.append("spec.vm")
    return request
