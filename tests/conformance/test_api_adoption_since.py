"""Adopting what was changed, moved or imported between a backup and its restore: names, sizes, places and images follow."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from cairn.controller.jobs.import_image import ImportImage
from cairn.controller.model.where import volume_node, where
from cairn.controller.store.base import Txn
from cairn.controller.store.memory import MemoryStore
from cairn.proto import kinds
from cairn.proto.v1.agent_pb2 import Desired, DesiredImage, DesiredVm, DesiredVolume, Unknown, VmDisk, VmNic
from cairn.proto.v1.cluster_pb2 import AdoptImageRequest, AdoptVmRequest, AdoptVolumeRequest
from cairn.proto.v1.image_pb2 import IMAGE_FORMAT_QCOW2, ImageContent
from cairn.proto.v1.vm_pb2 import DeleteVmRequest, Vm
from cairn.proto.v1.volume_pb2 import CreateVolumeRequest, Volume, VolumeSpec

from tests.conformance.api_world import GIB, World, world_on

DIGEST = "sha256:" + "ab" * 32


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with world_on(MemoryStore(), tmp_path) as world:
        await world.furnish()
        yield world


async def tell(world: World, node: str, desired: Desired, *, contested: bool = False) -> None:
    """Have a node say that it holds something."""
    kind = desired.WhichOneof("object")
    assert kind is not None
    key = f"{kind}/{getattr(desired, kind).id}"
    told = Unknown(key=key, node=node, desired=desired, contested=contested)
    await world.commit(Txn("sync").put(kinds.UNKNOWN, f"{node}/{key}", told))


def as_told(world: World, vm: Vm, **more: Any) -> Desired:
    """What a VM's node was told of it last."""
    (nic,) = vm.spec.nics
    binding = world.cache.view.get(kinds.PORT_BINDING, nic.port)
    assert binding is not None
    card = VmNic(port=nic.port, subnet=nic.subnet, addresses=binding.addresses)
    disks = [VmDisk(volume=vm.spec.root_volume, boot=True)]
    given = {"name": vm.name, "cpus": vm.spec.cpus, "memory_bytes": vm.spec.memory_bytes, "disks": disks, **more}
    return Desired(vm=DesiredVm(id=vm.id, project=vm.project, arch="x86_64", nics=[card], **given))


async def test_a_vm_renamed_since_gives_its_old_name_back(world: World) -> None:
    made = await world.vm("old")
    await world.reconcile()
    node = where(world.cache.view, made.id).runs_on
    await tell(world, node, as_told(world, made, name="new", cpus=2), contested=True)
    await world.api.cluster.AdoptVm(AdoptVmRequest(node=node, id=made.id))
    again = await world.vm("old")
    assert again.id != made.id
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await world.vm("new")
    assert refused.value.code() is grpc.StatusCode.ALREADY_EXISTS


async def test_a_vm_brought_back_since_has_the_name_of_its_disk_again(world: World) -> None:
    """A deleted VM's disk has given its name back; brought back by its node's word it must not share it with another's."""
    made = await world.vm("web")
    await world.reconcile()
    node = where(world.cache.view, made.id).runs_on
    told = as_told(world, made)
    await world.api.vms.DeleteVm(DeleteVmRequest(id="web"))
    await tell(world, node, told, contested=True)
    await world.api.cluster.AdoptVm(AdoptVmRequest(node=node, id=made.id))
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await world.api.volumes.CreateVolume(
            CreateVolumeRequest(volume=Volume(name="web-root", spec=VolumeSpec(size_bytes=GIB)))
        )
    assert refused.value.code() is grpc.StatusCode.ALREADY_EXISTS


async def test_a_volume_that_grew_since_stays_so_when_its_vm_is_adopted(world: World) -> None:
    """The VM's adoption writes the volume's record, which is a word of today then: it must not say the size of before."""
    made = await world.vm("web")
    await world.reconcile()
    node, root = where(world.cache.view, made.id).runs_on, made.spec.root_volume
    await tell(world, node, as_told(world, made, cpus=2), contested=True)
    await tell(world, node, Desired(volume=DesiredVolume(id=root, size_bytes=7 * GIB)), contested=True)
    await world.api.cluster.AdoptVm(AdoptVmRequest(node=node, id=made.id))
    volume = world.cache.view.get(kinds.VOLUME, root)
    assert volume is not None
    assert volume.spec.size_bytes == 7 * GIB


async def test_a_volume_that_had_no_place_at_the_backup_is_where_its_node_has_it(world: World) -> None:
    made = await world.api.volumes.CreateVolume(
        CreateVolumeRequest(volume=Volume(name="data", spec=VolumeSpec(size_bytes=GIB)))
    )
    node = next(each.id for each in world.cache.view.all(kinds.NODE) if each.name == "n2")
    await tell(world, node, Desired(volume=DesiredVolume(id=made.id, size_bytes=2 * GIB, pool="local/node-before")))
    adopted = await world.api.cluster.AdoptVolume(AdoptVolumeRequest(node=node, id=made.id))
    assert adopted.spec.size_bytes == 2 * GIB
    assert volume_node(world.cache.view, made.id) == node
    place = world.cache.view.get(kinds.VOLUME_PLACEMENT, made.id)
    assert place is not None
    assert place.pool == f"local/{node}", "of a server that joined anew its pool is that of the node it is now"


async def test_an_image_is_adopted_and_kept_where_it_is(world: World) -> None:
    image = DesiredImage(id="img-since000", digest=DIGEST, size_bytes=1 << 20, format=IMAGE_FORMAT_QCOW2)
    first, second = sorted(world.cache.view.ids(kinds.NODE))
    for node in (first, second):
        await tell(world, node, Desired(image=image))
    request = AdoptImageRequest(node=first, id=image.id, name="debian")
    adopted = await world.api.cluster.AdoptImage(request)
    assert (adopted.name, adopted.spec.digest, adopted.spec.arch) == ("debian", DIGEST, "x86_64")
    again = await world.api.cluster.AdoptImage(AdoptImageRequest(node=second, id=image.id))
    assert again.name == "debian", "it is one image, however many hold it"
    (job,) = (each for each in world.cache.view.all(kinds.JOB) if each.spec.target == image.id)
    await world.commit(Txn("sync").delete(kinds.NODE_SESSION, first))
    step = ImportImage().choose(world.cache.view, job, world.clock.now())
    assert step.next == "upload"
    await world.commit(step.txn)
    content = world.cache.view.get(kinds.IMAGE_CONTENT, image.id)
    assert content is not None
    assert sorted(content.nodes) == [first, second], "whoever has its bytes keeps them, also one that is away now"


async def test_an_image_the_records_know_is_kept_by_one_more_node_that_holds_it(world: World) -> None:
    first, second = sorted(world.cache.view.ids(kinds.NODE))
    image = min(world.cache.view.ids(kinds.IMAGE))
    content = ImageContent(image=image, nodes=[first], virtual_size_bytes=1 << 20)
    await world.commit(Txn("jobs").put(kinds.IMAGE_CONTENT, image, content))
    await tell(world, second, Desired(image=DesiredImage(id=image, digest=DIGEST)))
    answer = await world.api.cluster.AdoptImage(AdoptImageRequest(node=second, id=image))
    kept = world.cache.view.get(kinds.IMAGE_CONTENT, image)
    assert (answer.id, sorted(kept.nodes) if kept is not None else []) == (image, [first, second])


async def test_no_node_is_made_a_keeper_of_an_image_that_could_not_be_imported(world: World) -> None:
    image, node = min(world.cache.view.ids(kinds.IMAGE)), min(world.cache.view.ids(kinds.NODE))
    await world.commit(Txn("jobs").put(kinds.IMAGE_CONTENT, image, ImageContent(image=image, failed=True, error="bad bytes")))
    await tell(world, node, Desired(image=DesiredImage(id=image, digest=DIGEST)))
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await world.api.cluster.AdoptImage(AdoptImageRequest(node=node, id=image))
    assert "adopt it anew" in str(refused.value.details())


async def test_a_vm_made_of_an_image_since_waits_for_that_to_be_adopted(world: World) -> None:
    node, vm, root = next(iter(world.cache.view.ids(kinds.NODE))), "i-since000", "vol-since000"
    disks = [VmDisk(volume=root, boot=True)]
    await tell(world, node, Desired(vm=DesiredVm(id=vm, name="young", cpus=1, memory_bytes=GIB, arch="x86_64", disks=disks)))
    await tell(world, node, Desired(volume=DesiredVolume(id=root, size_bytes=GIB, image="img-since000")))
    image = DesiredImage(id="img-since000", digest=DIGEST, size_bytes=1 << 20, format=IMAGE_FORMAT_QCOW2)
    await tell(world, node, Desired(image=image))
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await world.api.cluster.AdoptVm(AdoptVmRequest(node=node, id=vm))
    assert "img-since000" in str(refused.value.details())
    await world.api.cluster.AdoptImage(AdoptImageRequest(node=node, id=image.id))
    adopted = await world.api.cluster.AdoptVm(AdoptVmRequest(node=node, id=vm))
    assert adopted.spec.image == image.id


async def test_a_disk_that_was_a_volume_of_its_own_at_the_backup_is_the_root_disk_again(world: World) -> None:
    """Its VM was deleted at the backup, the disk kept; brought back since, it must not be detached as data volumes can be."""
    made = await world.vm("web")
    await world.reconcile()
    node, root = where(world.cache.view, made.id).runs_on, made.spec.root_volume
    told = as_told(world, made)
    await world.api.vms.DeleteVm(DeleteVmRequest(id="web"))
    volume, kept = Volume(), world.cache.view.get(kinds.VOLUME, root)
    assert kept is not None
    volume.CopyFrom(kept)
    volume.spec.vm, volume.spec.boot, volume.spec.delete_with_vm = "", False, False
    await world.commit(Txn("api").put(kinds.VOLUME, root, volume))
    await tell(world, node, told, contested=True)
    adopted = await world.api.cluster.AdoptVm(AdoptVmRequest(node=node, id=made.id))
    assert (adopted.spec.root_volume, list(adopted.spec.volumes)) == (root, [])
    after = world.cache.view.get(kinds.VOLUME, root)
    assert after is not None
    assert (after.spec.vm, after.spec.boot) == (made.id, True)
