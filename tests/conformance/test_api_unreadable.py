"""What cannot be read is not absent: a change that would have to know it is refused until it can be read."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from cairn.controller.outage import removed
from cairn.controller.store.base import Txn
from cairn.controller.store.memory import MemoryStore
from cairn.proto import kinds
from cairn.proto.errors import NotFound, TryAgain
from cairn.proto.pki import Identity, make_csr
from cairn.proto.v1.agent_pb2 import Unknown
from cairn.proto.v1.api_token_pb2 import ApiToken, CreateApiTokenRequest
from cairn.proto.v1.cluster_pb2 import (
    ControllerMember,
    ForgetUnknownRequest,
    JoinNodeRequest,
    RenewCertificateRequest,
    RetireControllerRequest,
)
from cairn.proto.v1.node_pb2 import CreateJoinTokenRequest
from cairn.proto.v1.subnet_pb2 import CreateSubnetRequest, Subnet, SubnetSpec
from cairn.proto.v1.vm_pb2 import DeleteVmRequest
from cairn.proto.v1.volume_pb2 import (
    CreateVolumeRequest,
    DeleteVolumeRequest,
    UpdateVolumeRequest,
    Volume,
    VolumePlacement,
    VolumeSpec,
)
from cairn.proto.v1.vpc_pb2 import ListVpcsRequest
from google.protobuf.field_mask_pb2 import FieldMask

from tests.conformance.api_world import GIB, MIB, World, world_on


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with world_on(MemoryStore(), tmp_path) as world:
        await world.furnish()
        yield world


async def refused(call: Awaitable[Any]) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert "cannot be read; `cairn cluster fsck`" in str(caught.value.details())


async def attached(world: World) -> tuple[str, str]:
    vm = await world.vm("web")
    spec = VolumeSpec(size_bytes=MIB, vm=vm.id)
    volume = await world.api.volumes.CreateVolume(CreateVolumeRequest(volume=Volume(name="data", spec=spec)))
    return vm.id, volume.id


async def test_a_volume_of_a_vm_that_cannot_be_read_is_not_detached_nor_deleted(world: World) -> None:
    vm, volume = await attached(world)
    await world.spoil(kinds.VM, vm)
    free = UpdateVolumeRequest(volume=Volume(id=volume), update_mask=FieldMask(paths=["spec.vm"]), allow_stale=True)
    await refused(world.api.volumes.UpdateVolume(free))
    await refused(world.api.volumes.DeleteVolume(DeleteVolumeRequest(id=volume)))
    kept = world.cache.view.get(kinds.VOLUME, volume)
    assert kept is not None
    assert kept.spec.vm == vm
    assert not kept.HasField("delete_time")


async def test_a_vm_with_a_volume_that_cannot_be_read_is_not_deleted(world: World) -> None:
    """The volume would have stayed at a VM that does not list it."""
    vm, volume = await attached(world)
    await world.spoil(kinds.VOLUME, volume)
    await refused(world.api.vms.DeleteVm(DeleteVmRequest(id=vm)))


async def test_no_subnet_is_made_while_one_cannot_be_read(world: World) -> None:
    """They might overlap."""
    subnet = next(iter(world.cache.view.all(kinds.SUBNET)))
    await world.spoil(kinds.SUBNET, subnet.id)
    spec = SubnetSpec(vpc=subnet.spec.vpc, cidr=subnet.spec.cidr)
    await refused(world.api.subnets.CreateSubnet(CreateSubnetRequest(subnet=Subnet(name="over", spec=spec))))


async def test_who_asks_with_a_token_that_cannot_be_read_is_not_called_a_stranger(world: World) -> None:
    """A token and its user: who is told that it is not accepted makes another one."""
    bob = await world.user("bob", "viewer")
    made = await bob.tokens.CreateApiToken(CreateApiTokenRequest(api_token=ApiToken(name="laptop")))
    by, seen = world.by_token(made.token), ListVpcsRequest()
    await by.vpcs.ListVpcs(seen)
    for kind, id in ((kinds.USER, made.api_token.spec.user), (kinds.API_TOKEN, made.api_token.id)):
        await world.spoil(kind, id)
        await refused(by.vpcs.ListVpcs(seen))


async def test_a_node_that_cannot_be_read_is_not_called_removed(world: World) -> None:
    csr = make_csr("n9").cert_pem
    join = JoinNodeRequest(token=await join_token(world), node_name="n9", csr_pem=csr)
    stranger = world.stubs(None, world.enrolment)
    token = next(iter(world.cache.view.all(kinds.JOIN_TOKEN)))
    await world.spoil(kinds.JOIN_TOKEN, token.id)
    await refused(stranger.enrolment.JoinNode(join))
    await world.commit(Txn("api").put(kinds.JOIN_TOKEN, token.id, token))
    node = (await stranger.enrolment.JoinNode(join)).node
    await world.spoil(kinds.NODE, node)
    itself = world.stubs(Identity("node", node))
    await refused(itself.identity.RenewCertificate(RenewCertificateRequest(csr_pem=csr)))
    await refused(stranger.enrolment.JoinNode(join))
    assert isinstance(removed(world.cache.view, node), TryAgain)
    assert isinstance(removed(world.cache.view, "node-never"), NotFound)


async def join_token(world: World) -> str:
    await world.controller("c1", "10.0.0.1:7443")
    made = await world.api.nodes.CreateJoinToken(CreateJoinTokenRequest())
    return str(made.token)


async def test_what_a_node_says_and_a_controller_that_cannot_be_read_are_not_called_absent(world: World) -> None:
    node = await world.node("n7")
    await world.commit(Txn("sync").create(kinds.UNKNOWN, f"{node}/vm/i-1", Unknown(node=node, key="vm/i-1")))
    await world.commit(Txn("members").put(kinds.CONTROLLER_MEMBER, "c2", ControllerMember(name="c2")))
    await world.spoil(kinds.UNKNOWN, f"{node}/vm/i-1")
    await world.spoil(kinds.CONTROLLER_MEMBER, "c2")
    await refused(world.api.cluster.ForgetUnknown(ForgetUnknownRequest(node=node, key="vm/i-1")))
    await refused(world.api.cluster.RetireController(RetireControllerRequest(name="c2")))


async def test_that_nothing_is_large_enough_is_not_said_while_what_a_node_has_cannot_be_read(world: World) -> None:
    """It was refused as a mistake of the caller, who then does not try again."""
    small, large = await world.node("small"), await world.node("large")
    asked = CreateVolumeRequest(volume=Volume(name="data", spec=VolumeSpec(size_bytes=10_000 * GIB)))
    shared = CreateVolumeRequest(volume=Volume(name="there", spec=VolumeSpec(size_bytes=GIB, type="tank")))
    await world.spoil(kinds.NODE_FACTS, large)
    await refused(world.api.volumes.CreateVolume(asked))
    await refused(world.api.volumes.CreateVolume(shared))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await world.vm("huge", memory_bytes=512 * GIB)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    await world.vm("web", memory_bytes=GIB)
    wanted = Volume(name="held", spec=VolumeSpec(size_bytes=MIB))
    held = await world.api.volumes.CreateVolume(CreateVolumeRequest(volume=wanted))
    await world.commit(Txn("placement").create(kinds.VOLUME_PLACEMENT, held.id, VolumePlacement(volume=held.id, node=large)))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await world.vm("with-it", volumes=[held.id])
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert world.cache.view.get(kinds.NODE_FACTS, small) is not None
