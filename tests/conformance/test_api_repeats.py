"""A request is what its id says, also after the name it used was given again; on the memory store and on real etcd."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import pytest
from cairn.controller.store.base import Txn
from cairn.proto import kinds
from cairn.proto.errors import status_of
from cairn.proto.kinds import Kind
from cairn.proto.v1.image_pb2 import CreateImageRequest, DeleteImageRequest
from cairn.proto.v1.node_pb2 import DeleteNodeRequest
from cairn.proto.v1.subnet_pb2 import CreateSubnetRequest, DeleteSubnetRequest, Subnet, SubnetSpec
from cairn.proto.v1.vm_pb2 import DeleteVmRequest, UndeleteVmRequest
from cairn.proto.v1.volume_pb2 import CreateVolumeRequest, DeleteVolumeRequest, UpdateVolumeRequest, Volume, VolumeSpec
from cairn.proto.v1.vpc_pb2 import CreateVpcRequest, DeleteVpcRequest, Vpc, VpcSpec

from tests.conformance.api_stores import STORES, made_store
from tests.conformance.api_world import MIB, World, image, world_on


@pytest.fixture(params=STORES)
async def world(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[World]:
    async with made_store(request) as store, world_on(store, tmp_path) as world:
        await world.furnish()
        yield world


class Case(NamedTuple):
    """A noun whose objects are deleted by name. make: makes one of that name."""

    kind: Kind[Any]
    make: Callable[[World], Awaitable[str]]
    service: str
    method: str
    request: Callable[..., Any]


async def make_vpc(world: World) -> str:
    made = await world.api.vpcs.CreateVpc(CreateVpcRequest(vpc=Vpc(name="again", spec=VpcSpec(cidr="10.9.0.0/16"))))
    return str(made.id)


async def make_subnet(world: World) -> str:
    spec = SubnetSpec(vpc="home", cidr="10.1.9.0/24")
    return str((await world.api.subnets.CreateSubnet(CreateSubnetRequest(subnet=Subnet(name="again", spec=spec)))).id)


async def make_image(world: World) -> str:
    return str((await world.api.images.CreateImage(CreateImageRequest(image=image("again")))).id)


async def make_node(world: World) -> str:
    return await world.node("again")


async def make_volume(world: World) -> str:
    volume = Volume(name="again", spec=VolumeSpec(size_bytes=MIB))
    return str((await world.api.volumes.CreateVolume(CreateVolumeRequest(volume=volume))).id)


async def make_vm(world: World) -> str:
    return (await world.vm("again")).id


CASES = (
    Case(kinds.VPC, make_vpc, "vpcs", "DeleteVpc", DeleteVpcRequest),
    Case(kinds.SUBNET, make_subnet, "subnets", "DeleteSubnet", DeleteSubnetRequest),
    Case(kinds.IMAGE, make_image, "images", "DeleteImage", DeleteImageRequest),
    Case(kinds.NODE, make_node, "nodes", "DeleteNode", DeleteNodeRequest),
    Case(kinds.VOLUME, make_volume, "volumes", "DeleteVolume", DeleteVolumeRequest),
    Case(kinds.VM, make_vm, "vms", "DeleteVm", DeleteVmRequest),
)
ERASED = CASES[:4]


def called(world: World, case: Case, request: Any) -> Any:
    return getattr(getattr(world.api, case.service), case.method)(request)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.kind.name)
async def test_a_repeated_delete_leaves_alone_what_has_the_name_now(world: World, case: Case) -> None:
    first = await case.make(world)
    request = case.request(id="again", request_id=world.ids.uuid())
    await called(world, case, request)
    second = await case.make(world)
    before = world.cache.view.record(case.kind, second)
    assert (await called(world, case, request)).id == first
    await world.core.mutations.freshen()
    assert world.cache.view.record(case.kind, second) == before, "not even marked for a moment"


@pytest.mark.parametrize("case", ERASED, ids=lambda case: case.kind.name)
async def test_a_plan_to_delete_leaves_alone_what_has_the_name_now(world: World, case: Case) -> None:
    await case.make(world)
    planned = await called(world, case, case.request(id="again", validate_only=True))
    await called(world, case, case.request(id="again"))
    second = await case.make(world)
    before = world.cache.view.record(case.kind, second)
    with pytest.raises(grpc.aio.AioRpcError):
        await called(world, case, case.request(id="again", plan_id=planned.plan.plan_id))
    await world.core.mutations.freshen()
    assert world.cache.view.record(case.kind, second) == before


@pytest.mark.parametrize("case", ERASED, ids=lambda case: case.kind.name)
async def test_an_id_used_for_another_request_marks_nothing(world: World, case: Case) -> None:
    id = world.ids.uuid()
    await world.api.volumes.CreateVolume(
        CreateVolumeRequest(volume=Volume(name="other", spec=VolumeSpec(size_bytes=MIB)), request_id=id)
    )
    made = await case.make(world)
    before = world.cache.view.record(case.kind, made)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await called(world, case, case.request(id="again", request_id=id))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    await world.core.mutations.freshen()
    assert world.cache.view.record(case.kind, made) == before


async def test_what_loses_its_mark_is_not_removed_without_a_look(world: World) -> None:
    """Somebody's refused deletion took the mark of ours back: whoever refers to it now did so rightly."""
    made = await make_vpc(world)
    commit, commits = world.core.store.commit, 0

    async def unmarking(txn: Txn) -> int:
        nonlocal commits
        revision = await commit(txn)
        commits += 1
        if commits == 1:
            marked = world.cache.view.record(kinds.VPC, made)
            while marked is None or not marked.message.HasField("delete_time"):
                await world.cache.wait_for(revision)
                marked = world.cache.view.record(kinds.VPC, made)
            bare = Vpc()
            bare.CopyFrom(marked.message)
            bare.ClearField("delete_time")
            await commit(Txn("api").put(kinds.VPC, made, bare))
        return revision

    world.core.store.commit = unmarking  # type: ignore[method-assign]
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await world.api.vpcs.DeleteVpc(DeleteVpcRequest(id="again"))
    world.core.store.commit = commit  # type: ignore[method-assign]
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert world.cache.view.get(kinds.VPC, made) is not None


async def test_a_repeated_undelete_and_update_act_once(world: World) -> None:
    """Those that decide inside the mutation: what was answered is answered, whoever has the name."""
    first = await make_vm(world)
    await world.api.vms.DeleteVm(DeleteVmRequest(id="again"))
    undelete = UndeleteVmRequest(id="again", request_id=world.ids.uuid())
    await world.api.vms.UndeleteVm(undelete)
    await world.api.vms.DeleteVm(DeleteVmRequest(id="again"))
    second = await make_vm(world)
    assert (await world.api.vms.UndeleteVm(undelete)).id == first
    volume = await make_volume(world)
    update = UpdateVolumeRequest(volume=Volume(name="again", labels={"a": "b"}), allow_stale=True, request_id=world.ids.uuid())
    await world.api.volumes.UpdateVolume(update)
    await world.api.volumes.DeleteVolume(DeleteVolumeRequest(id="again"))
    other = await make_volume(world)
    assert (await world.api.volumes.UpdateVolume(update)).id == volume
    assert not world.cache.view.get(kinds.VOLUME, other).labels  # type: ignore[union-attr]
    assert not world.cache.view.get(kinds.VM, second).HasField("delete_time")  # type: ignore[union-attr]


async def test_what_a_request_made_and_cannot_be_read_is_not_called_erased(world: World) -> None:
    request = CreateVolumeRequest(
        volume=Volume(name="data", spec=VolumeSpec(size_bytes=MIB)), request_id="6f7a3ad2-0f0d-4f6f-8e55-2a3a5f2d9c01"
    )
    made = await world.api.volumes.CreateVolume(request)
    await world.spoil(kinds.VOLUME, made.id)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await world.api.volumes.CreateVolume(request)
    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
    assert "cannot be read" in str(refused.value.details())


async def test_what_was_refused_for_the_state_of_things_is_refused_again(world: World) -> None:
    """A late repetition of it was carried out once the state allowed it, long after its caller had gone another way."""
    first, second, third = (world.ids.uuid() for _ in range(3))
    delete = DeleteVpcRequest(id="home", request_id=first)
    for _ in range(2):
        await refused(world.api.vpcs.DeleteVpc(delete), grpc.StatusCode.FAILED_PRECONDITION, "still has 1 subnet")
    await world.api.subnets.DeleteSubnet(DeleteSubnetRequest(id="blue"))
    await refused(world.api.vpcs.DeleteVpc(delete), grpc.StatusCode.FAILED_PRECONDITION, "still has 1 subnet")
    again = CreateVpcRequest(vpc=Vpc(name="home", spec=VpcSpec(cidr="10.9.0.0/16")), request_id=second)
    await refused(world.api.vpcs.CreateVpc(again), grpc.StatusCode.ALREADY_EXISTS, "'home' exists already")
    await world.api.vpcs.DeleteVpc(DeleteVpcRequest(id="home", request_id=third))
    await refused(world.api.vpcs.CreateVpc(again), grpc.StatusCode.ALREADY_EXISTS, "'home' exists already")
    await refused(world.api.vpcs.DeleteVpc(DeleteVpcRequest(id="home")), grpc.StatusCode.NOT_FOUND, "does not exist")
    other = CreateVpcRequest(vpc=Vpc(name="away", spec=VpcSpec(cidr="10.9.0.0/16")), request_id=second)
    await refused(world.api.vpcs.CreateVpc(other), grpc.StatusCode.INVALID_ARGUMENT, "was used for another request")
    assert await world.count(kinds.VPC) == 0


async def test_a_refusal_that_is_told_again_says_all_it_said(world: World) -> None:
    request = CreateVpcRequest(vpc=Vpc(name="home", spec=VpcSpec(cidr="10.9.0.0/16")), request_id=world.ids.uuid())
    said = []
    for _ in range(2):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await world.api.vpcs.CreateVpc(request)
        said.append(status_of(caught.value))
    assert said[0] == said[1]
    assert said[0].details, "which object it was about"


async def test_what_hangs_on_nothing_else_leaves_no_record(world: World) -> None:
    before = await world.count(kinds.REQUEST)
    bad = CreateVpcRequest(vpc=Vpc(name="V", spec=VpcSpec(cidr="10.9.0.0/16")), request_id=world.ids.uuid())
    await refused(world.api.vpcs.CreateVpc(bad), grpc.StatusCode.INVALID_ARGUMENT, "vpc.name")
    stale = DeleteVpcRequest(id="home", etag="0", request_id=world.ids.uuid())
    await refused(world.api.vpcs.DeleteVpc(stale), grpc.StatusCode.ABORTED, "")
    await refused(world.api.vpcs.DeleteVpc(DeleteVpcRequest(id="nope")), grpc.StatusCode.NOT_FOUND, "nope")
    assert await world.count(kinds.REQUEST) == before


async def test_of_a_refused_request_that_comes_twice_at_once_both_are_refused(world: World) -> None:
    request = DeleteVpcRequest(id="home", request_id=world.ids.uuid())
    calls = [refused(world.api.vpcs.DeleteVpc(request), grpc.StatusCode.FAILED_PRECONDITION, "subnet") for _ in range(3)]
    await asyncio.gather(*calls)


async def refused(call: Any, code: grpc.StatusCode, words: str) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    say = str(caught.value.details())
    assert (caught.value.code(), words in say) == (code, True), say
