"""A mutation happens once, whatever is repeated, lost or raced; on the memory store and on real etcd."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from cairn.controller.model.roles import BUILTIN
from cairn.controller.store.base import Indeterminate, Store, Txn
from cairn.proto import kinds
from cairn.proto.errors import status_of
from cairn.proto.seams import timestamp
from cairn.proto.v1.secret_pb2 import VmData
from cairn.proto.v1.subnet_pb2 import CreateSubnetRequest, DeleteSubnetRequest, Subnet, SubnetSpec
from cairn.proto.v1.vm_pb2 import (
    POWER_STATE_STOPPED,
    CreateVmRequest,
    DeleteVmRequest,
    GetVmRequest,
    ListVmsRequest,
    Nic,
    RebootVmRequest,
    StartVmRequest,
    StopVmRequest,
    UndeleteVmRequest,
    UpdateVmRequest,
    Vm,
    VmSpec,
    VmStatus,
)
from cairn.proto.v1.volume_pb2 import CreateVolumeRequest, DeleteVolumeRequest, GetVolumeRequest, UpdateVolumeRequest, Volume
from cairn.proto.v1.vpc_pb2 import DeleteVpcRequest, Vpc
from google.protobuf.field_mask_pb2 import FieldMask
from google.rpc import error_details_pb2

from tests.conformance.api_stores import STORES, made_store
from tests.conformance.api_world import GIB, MIB, World, vm, world_on


@pytest.fixture(params=STORES)
async def world(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[World]:
    async with made_store(request) as store, world_on(Lossy(store), tmp_path) as world:
        await world.furnish()
        yield world


class Lossy:
    """A store whose next answers are lost: the commit happens, or does not, and the caller never learns."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.lose: list[str] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def commit(self, txn: Txn) -> int:
        fate = self.lose.pop(0) if self.lose and any("/vm/" in key for key in txn.puts) else ""
        if fate == "before":
            raise Indeterminate("the request was lost")
        revision = await self._store.commit(txn)
        if fate == "after":
            raise Indeterminate("the answer was lost")
        return revision


def lossy(world: World) -> Lossy:
    assert isinstance(world.store, Lossy)
    return world.store


async def code_of(call: Any) -> grpc.StatusCode:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value.code()


async def test_twenty_times_the_same_request_makes_one_vm(world: World) -> None:
    request = CreateVmRequest(vm=vm(), request_id=world.ids.uuid())
    answers = await asyncio.gather(*(world.api.vms.CreateVm(request) for _ in range(20)))
    assert len({answer.id for answer in answers}) == 1
    assert await world.count(kinds.VM) == 1
    assert await world.count(kinds.VOLUME) == 1
    assert await world.count(kinds.PORT) == 1


async def test_another_body_under_the_same_request_id_is_refused(world: World) -> None:
    id = world.ids.uuid()
    await world.api.vms.CreateVm(CreateVmRequest(vm=vm("web"), request_id=id))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await world.api.vms.CreateVm(CreateVmRequest(vm=vm("db"), request_id=id))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    bad = error_details_pb2.BadRequest()
    assert status_of(caught.value).details[0].Unpack(bad)
    assert bad.field_violations[0].field == "request_id"


async def test_a_request_id_must_be_a_uuid(world: World) -> None:
    call = world.api.vms.CreateVm(CreateVmRequest(vm=vm(), request_id="again"))
    assert await code_of(call) is grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize("fate", ["after", "before"])
async def test_an_answer_lost_between_commit_and_caller_is_found_again(world: World, fate: str) -> None:
    """The commit's outcome is unknown to the controller; it re-reads and answers right, and so does the repeat."""
    lossy(world).lose = [fate]
    request = CreateVmRequest(vm=vm(), request_id=world.ids.uuid())
    first = await world.api.vms.CreateVm(request)
    assert not lossy(world).lose
    again = await world.api.vms.CreateVm(request)
    assert first.id == again.id
    assert await world.count(kinds.VM) == 1
    made = {"project", "image", "vpc", "subnet", "n1", "n2", "vm", "root volume", *BUILTIN}
    assert await world.count(kinds.NAME) == len(made)


async def test_a_repeat_through_another_controller_finds_the_first_answer(world: World, tmp_path: Path) -> None:
    request = CreateVmRequest(vm=vm(), request_id=world.ids.uuid())
    first = await world.api.vms.CreateVm(request)
    other = World(lossy(world)._store, tmp_path / "other")
    other.authority = world.authority
    await other.start()
    try:
        again = await other.api.vms.CreateVm(request)
        assert again.id == first.id
    finally:
        other._following.cancel()
        other._feeding.cancel()
        await other.server.stop(0)
        await other.enrolment_server.stop(0)


async def test_many_creates_at_once_get_a_name_each_and_one_wins_a_name(world: World) -> None:
    names = [f"web-{number}" for number in range(12)] + ["same"] * 4
    calls = [world.api.vms.CreateVm(CreateVmRequest(vm=vm(name))) for name in names]
    results = await asyncio.gather(*calls, return_exceptions=True)
    refused = [result for result in results if isinstance(result, grpc.aio.AioRpcError)]
    assert [error.code() for error in refused] == [grpc.StatusCode.ALREADY_EXISTS] * 3
    assert await world.count(kinds.VM) == 13
    assert await world.count(kinds.PORT) == 13


async def test_what_a_vm_is_made_of(world: World) -> None:
    made = await world.vm(root_disk_bytes=GIB)
    volume = await world.api.volumes.GetVolume(GetVolumeRequest(id=made.spec.root_volume))
    assert (volume.name, volume.spec.vm, volume.spec.boot, volume.spec.delete_with_vm) == ("web-root", made.id, True, True)
    assert volume.spec.size_bytes == GIB
    port = world.cache.view.get(kinds.PORT, made.spec.nics[0].port)
    assert port is not None
    # Clients and controllers of the release before look at the second.
    assert (port.spec.owner.kind, port.spec.owner.id, port.spec.vm) == ("vm", made.id, made.id)
    assert made.etag == str(made.revision) != "0"
    assert made.status.state == VmStatus.STATE_PENDING
    assert made.reconciling


async def test_a_stale_etag_is_refused_and_allow_stale_overrides(world: World) -> None:
    made = await world.vm()
    new = Vm(id=made.id, etag=made.etag, spec=VmSpec(cpus=2))
    changed = await world.api.vms.UpdateVm(UpdateVmRequest(vm=new, update_mask=FieldMask(paths=["spec.cpus"])))
    assert changed.spec.cpus == 2
    new.spec.cpus = 3
    assert await code_of(world.api.vms.UpdateVm(UpdateVmRequest(vm=new))) is grpc.StatusCode.ABORTED
    new.etag = ""
    assert await code_of(world.api.vms.UpdateVm(UpdateVmRequest(vm=new))) is grpc.StatusCode.INVALID_ARGUMENT
    changed = await world.api.vms.UpdateVm(UpdateVmRequest(vm=new, allow_stale=True))
    assert changed.spec.cpus == 3


async def test_power_operations_count_and_set(world: World) -> None:
    made = await world.vm()
    stopped = await world.api.vms.StopVm(StopVmRequest(id="web", force=True))
    assert (stopped.spec.power_state, stopped.spec.force) == (POWER_STATE_STOPPED, True)
    assert await code_of(world.api.vms.RebootVm(RebootVmRequest(id="web"))) is grpc.StatusCode.FAILED_PRECONDITION
    started = await world.api.vms.StartVm(StartVmRequest(id="web"))
    assert started.spec.power_generation == made.spec.power_generation + 1
    assert not started.spec.force
    rebooted = await world.api.vms.RebootVm(RebootVmRequest(id="web"))
    assert rebooted.spec.reboot_generation == 1


async def test_delete_is_soft_and_undelete_brings_back(world: World) -> None:
    made = await world.vm()
    data = await world.api.volumes.CreateVolume(CreateVolumeRequest(volume=_volume("data", vm="web")))
    gone = await world.api.vms.DeleteVm(DeleteVmRequest(id="web"))
    assert gone.HasField("delete_time")
    assert gone.purge_time.ToSeconds() - gone.delete_time.ToSeconds() == 7200
    assert not (await world.api.volumes.GetVolume(GetVolumeRequest(id=data.id))).spec.vm
    assert not (await world.api.vms.ListVms(ListVmsRequest())).vms
    assert [each.id for each in (await world.api.vms.ListVms(ListVmsRequest(show_deleted=True))).vms] == [made.id]
    assert await code_of(world.api.vms.DeleteVm(DeleteVmRequest(id="web"))) is grpc.StatusCode.NOT_FOUND
    other = await world.vm("web")
    assert await code_of(world.api.vms.UndeleteVm(UndeleteVmRequest(id=made.id))) is grpc.StatusCode.ALREADY_EXISTS
    await world.api.vms.DeleteVm(DeleteVmRequest(id=other.id, purge=True))
    back = await world.api.vms.UndeleteVm(UndeleteVmRequest(id=made.id))
    assert not back.HasField("delete_time")
    assert (await world.api.vms.GetVm(GetVmRequest(id="web"))).id == made.id


async def test_a_volume_that_goes_with_its_vm_comes_back_with_it(world: World) -> None:
    made = await world.vm()
    data = _volume("data", vm="web")
    data.spec.delete_with_vm = True
    volume = await world.api.volumes.CreateVolume(CreateVolumeRequest(volume=data))
    await world.api.vms.DeleteVm(DeleteVmRequest(id="web"))
    back = await world.api.vms.UndeleteVm(UndeleteVmRequest(id=made.id))
    assert list(back.spec.volumes) == [volume.id]
    assert (await world.api.volumes.GetVolume(GetVolumeRequest(id="data"))).spec.vm == made.id


def _volume(name: str, vm: str = "") -> Volume:
    volume = Volume(name=name)
    volume.spec.size_bytes, volume.spec.vm = 64 * MIB, vm
    return volume


async def test_volumes_attach_detach_and_refuse(world: World) -> None:
    await world.vm("web")
    await world.vm("db")
    made = await world.api.volumes.CreateVolume(CreateVolumeRequest(volume=_volume("data")))

    async def attach(vm: str) -> Volume:
        new = Volume(id="data")
        new.spec.vm = vm
        mask = FieldMask(paths=["spec.vm"])
        answer: Volume = await world.api.volumes.UpdateVolume(
            UpdateVolumeRequest(volume=new, update_mask=mask, allow_stale=True)
        )
        return answer

    attached = await attach("web")
    assert attached.spec.vm == world.cache.view.by(kinds.VM, "project", made.project)[0] or attached.status.vm_name == "web"
    assert await code_of(attach("db")) is grpc.StatusCode.FAILED_PRECONDITION
    assert await code_of(world.api.volumes.DeleteVolume(DeleteVolumeRequest(id="data"))) is grpc.StatusCode.FAILED_PRECONDITION
    assert not (await attach("")).spec.vm
    assert (await attach("db")).status.vm_name == "db"
    root = Volume(id="web-root")
    detach = UpdateVolumeRequest(volume=root, update_mask=FieldMask(paths=["spec.vm"]), allow_stale=True)
    assert await code_of(world.api.volumes.UpdateVolume(detach)) is grpc.StatusCode.FAILED_PRECONDITION


async def test_a_vpc_with_subnets_stays_and_its_mark_is_taken_back(world: World) -> None:
    assert await code_of(world.api.vpcs.DeleteVpc(DeleteVpcRequest(id="home"))) is grpc.StatusCode.FAILED_PRECONDITION
    vpc = next(iter(world.cache.view.all(kinds.VPC)))
    assert not vpc.HasField("delete_time")


async def test_a_deleted_vpc_is_the_answer_of_the_repeat_too(world: World) -> None:
    await world.api.subnets.DeleteSubnet(DeleteSubnetRequest(id="blue"))
    request = DeleteVpcRequest(id="home", request_id=world.ids.uuid())
    first = await world.api.vpcs.DeleteVpc(request)
    again = await world.api.vpcs.DeleteVpc(request)
    assert first == again
    assert first.name == "home"
    assert await world.count(kinds.VPC) == 0
    assert await world.count(kinds.VNI) == 0
    assert await code_of(world.api.vpcs.DeleteVpc(DeleteVpcRequest(id="home"))) is grpc.StatusCode.NOT_FOUND


async def test_no_vm_is_made_in_a_subnet_that_goes_at_the_same_moment(world: World) -> None:
    """The two transactions share no key they write; the deletion's mark is what makes them conflict."""
    refusals = {grpc.StatusCode.NOT_FOUND, grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.UNAVAILABLE}
    for number in range(8):
        name = f"s{number}"
        spec = SubnetSpec(vpc="home", cidr=f"10.1.{number + 10}.0/24")
        made = await world.api.subnets.CreateSubnet(CreateSubnetRequest(subnet=Subnet(name=name, spec=spec)))
        results = await asyncio.gather(
            world.api.vms.CreateVm(CreateVmRequest(vm=vm(f"vm-{number}", nics=[Nic(subnet=name)]))),
            world.api.subnets.DeleteSubnet(DeleteSubnetRequest(id=name)),
            return_exceptions=True,
        )
        failed = [each for each in results if isinstance(each, grpc.aio.AioRpcError)]
        assert all(each.code() in refusals for each in failed), failed
        ports = world.cache.view.by(kinds.PORT, "subnet", made.id)
        left = world.cache.view.get(kinds.SUBNET, made.id)
        assert bool(ports) == (left is not None)
        assert left is None or not left.HasField("delete_time")


async def test_a_deletion_that_died_half_way_is_finished_by_the_next(world: World) -> None:
    await world.api.subnets.DeleteSubnet(DeleteSubnetRequest(id="blue"))
    (id,) = world.cache.view.ids(kinds.VPC)
    marked = Vpc()
    marked.CopyFrom(world.cache.view.get(kinds.VPC, id) or Vpc())
    marked.delete_time.CopyFrom(timestamp(world.clock.now()))
    await world.commit(Txn("api").put(kinds.VPC, id, marked))
    spec = SubnetSpec(vpc="home", cidr="10.1.9.0/24")
    late = world.api.subnets.CreateSubnet(CreateSubnetRequest(subnet=Subnet(name="late", spec=spec)))
    assert await code_of(late) is grpc.StatusCode.FAILED_PRECONDITION
    assert (await world.api.vpcs.DeleteVpc(DeleteVpcRequest(id="home"))).id == id
    assert await world.count(kinds.VPC) == 0


async def test_every_mutation_leaves_an_event(world: World) -> None:
    await world.vm()
    await world.api.vms.DeleteVm(DeleteVmRequest(id="web"))
    from cairn.proto.v1.event_pb2 import ListEventsRequest

    found = await world.api.events.ListEvents(ListEventsRequest(filter="object_name=web"))
    assert sorted(event.reason for event in found.events) == ["Created", "Deleted"]
    assert {event.actor for event in found.events} == {"admin"}


async def test_keys_and_user_data_are_kept_apart_and_sealed(world: World) -> None:
    """In no answer, list, plan or record but the sealed one; that one goes with its VM."""
    key, data = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIB" + "A" * 42, b"#cloud-config\npassword: s3cr3t\n"
    planned = await world.api.vms.CreateVm(CreateVmRequest(vm=vm(ssh_keys=[key], user_data=data), validate_only=True))
    made = await world.api.vms.CreateVm(CreateVmRequest(vm=vm(ssh_keys=[key], user_data=data), request_id=world.ids.uuid()))
    listed = (await world.api.vms.ListVms(ListVmsRequest())).vms[0]
    for shown in (planned, made, listed):
        assert (shown.spec.ssh_key_count, shown.spec.user_data_bytes) == (1, len(data))
        assert not shown.spec.ssh_keys
        assert not shown.spec.user_data
    items, _ = await world.store.read(kinds.ROOT)
    assert not [item.key for item in items if b"s3cr3t" in item.value]
    secret = world.cache.view.get(kinds.SECRET, f"vm/{made.id}")
    assert secret is not None
    held = VmData.FromString(world.core.seals.open(secret))
    assert (list(held.ssh_keys), held.user_data) == ([key], data)
    plain = await world.api.vms.CreateVm(CreateVmRequest(vm=vm("plain")))
    assert world.cache.view.get(kinds.SECRET, f"vm/{plain.id}") is None
