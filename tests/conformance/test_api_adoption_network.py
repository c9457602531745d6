"""Adopting VMs in networks made since the backup: the VPC and its subnets come with them, unless somebody has their place."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from cairn.controller.api.vnis import vni_key
from cairn.controller.store.base import Txn
from cairn.controller.store.memory import MemoryStore
from cairn.proto import kinds
from cairn.proto.addresses import addresses_of
from cairn.proto.v1.agent_pb2 import (
    Desired,
    DesiredNetwork,
    DesiredSubnet,
    DesiredVm,
    DesiredVolume,
    Unknown,
    VmDisk,
    VmNic,
)
from cairn.proto.v1.cluster_pb2 import AdoptVmRequest
from cairn.proto.v1.subnet_pb2 import CreateSubnetRequest, DeleteSubnetRequest, Subnet, SubnetSpec
from cairn.proto.v1.vpc_pb2 import CreateVpcRequest, DeleteVpcRequest, Vpc, VpcSpec

from tests.conformance.api_world import GIB, World, world_on

VPC, FIRST, SECOND = "rtr-since000", "vxnet-since001", "vxnet-since002"


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with world_on(MemoryStore(), tmp_path) as world:
        await world.furnish()
        yield world


def network(*subnets: DesiredSubnet, vpc: str = VPC, **more: Any) -> DesiredNetwork:
    given = {"transit_vni": 5000, "cidr": "10.7.0.0/16", "domain": "shop.cairn.internal", **more}
    return DesiredNetwork(vpc=vpc, subnets=subnets, **given)


def subnet(id: str = FIRST, vni: int = 5001, cidr: str = "10.7.1.0/24") -> DesiredSubnet:
    return DesiredSubnet(id=id, vni=vni, cidr=cidr)


async def tell(world: World, number: int, *networks: DesiredNetwork, cards: dict[str, str]) -> str:
    """Have n1 say that it holds a VM. cards: subnet -> address."""
    node = next(each.id for each in world.cache.view.all(kinds.NODE) if each.name == "n1")
    vm, root = f"i-since00{number}", f"vol-since00{number}"
    nics = [VmNic(port=f"nic-{number}{at:07}", subnet=id, addresses=[ip]) for at, (id, ip) in enumerate(cards.items())]
    given = DesiredVm(id=vm, name=f"vm{number}", cpus=1, memory_bytes=GIB, arch="x86_64", nics=nics)
    given.disks.append(VmDisk(volume=root, boot=True))
    told = Unknown(key=f"vm/{vm}", node=node, desired=Desired(vm=given), networks=networks)
    disk = Unknown(key=f"volume/{root}", node=node, desired=Desired(volume=DesiredVolume(id=root, size_bytes=GIB)))
    txn = Txn("sync").put(kinds.UNKNOWN, f"{node}/vm/{vm}", told)
    await world.commit(txn.put(kinds.UNKNOWN, f"{node}/volume/{root}", disk))
    return vm


async def adopt(world: World, vm: str) -> Any:
    return await world.api.cluster.AdoptVm(AdoptVmRequest(node="n1", id=vm))


async def refused(call: Any) -> str:
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await call
    assert error.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    return str(error.value.details())


async def test_its_networks_come_with_a_vm_and_the_next_one_joins_them(world: World) -> None:
    whole = network(subnet(), subnet(SECOND, 5002, "10.7.2.0/24"))
    one = await tell(world, 1, whole, cards={FIRST: "10.7.1.2", SECOND: "10.7.2.9"})
    two = await tell(world, 2, network(subnet()), cards={FIRST: "10.7.1.3"})
    await adopt(world, one)
    await adopt(world, two)
    view = world.cache.view
    vpc = view.get(kinds.VPC, VPC)
    assert vpc is not None
    assert (vpc.name, vpc.spec.cidr, vpc.spec.vni) == ("shop", "10.7.0.0/16", 5000)
    for id, vni, cidr in ((FIRST, 5001, "10.7.1.0/24"), (SECOND, 5002, "10.7.2.0/24")):
        made = view.get(kinds.SUBNET, id)
        assert made is not None
        assert (made.name, made.spec.vpc, made.spec.vni, made.spec.cidr) == (id, VPC, vni, cidr)
        claim = view.get(kinds.VNI, vni_key(vni))
        assert claim is not None
        assert claim.holder == id
    held = {claim.port: claim.address for claim in view.all(kinds.ADDRESS)}
    assert sorted(held.values()) == ["10.7.1.2", "10.7.1.3", "10.7.2.9"]
    for port, address in held.items():
        binding = view.get(kinds.PORT_BINDING, port)
        assert binding is not None
        assert (binding.vpc, addresses_of(binding)) == (VPC, (address,))
    assert (await world.api.vpcs.GetVpc(vpc_request("shop"))).id == VPC, "its name is claimed"


def vpc_request(name: str) -> Any:
    from cairn.proto.v1.vpc_pb2 import GetVpcRequest

    return GetVpcRequest(id=name)


async def test_a_subnet_made_since_in_a_vpc_of_the_backup(world: World) -> None:
    known = next(iter(world.cache.view.all(kinds.VPC)))
    told = network(subnet(cidr="10.1.9.0/24"), vpc=known.id, transit_vni=known.spec.vni, cidr=known.spec.cidr, domain="x")
    await adopt(world, await tell(world, 1, told, cards={FIRST: "10.1.9.2"}))
    view = world.cache.view
    made, after = view.get(kinds.SUBNET, FIRST), view.get(kinds.VPC, known.id)
    assert made is not None
    assert made.spec.vpc == known.id
    assert after == known, "the VPC is as it was"


async def test_a_name_somebody_has_by_now_gets_the_end_of_its_id(world: World) -> None:
    await world.api.vpcs.CreateVpc(CreateVpcRequest(vpc=Vpc(name="shop", spec=VpcSpec(cidr="10.9.0.0/16"))))
    await adopt(world, await tell(world, 1, network(subnet()), cards={FIRST: "10.7.1.2"}))
    made = world.cache.view.get(kinds.VPC, VPC)
    assert made is not None
    assert made.name == "shop-since000"


async def test_addresses_that_another_subnet_has_by_now_are_refused_by_its_name(world: World) -> None:
    known = next(iter(world.cache.view.all(kinds.VPC)))
    told = network(subnet(cidr="10.1.9.0/24"), vpc=known.id, transit_vni=known.spec.vni, cidr=known.spec.cidr)
    vm = await tell(world, 1, told, cards={FIRST: "10.1.9.2"})
    spec = SubnetSpec(vpc="home", cidr="10.1.8.0/23")
    await world.api.subnets.CreateSubnet(CreateSubnetRequest(subnet=Subnet(name="green", spec=spec)))
    say = await refused(adopt(world, vm))
    assert "10.1.9.0/24 overlaps subnet 'green' (10.1.8.0/23)" in say
    assert "delete" in say
    await world.api.subnets.DeleteSubnet(DeleteSubnetRequest(id="green"))
    await adopt(world, vm)


async def test_an_identifier_that_another_network_has_by_now_is_refused_by_its_name(world: World) -> None:
    """It was given between the restore and what the node told."""
    other = await world.api.vpcs.CreateVpc(CreateVpcRequest(vpc=Vpc(name="other", spec=VpcSpec(cidr="10.9.0.0/16"))))
    vm = await tell(world, 1, network(subnet(), transit_vni=other.spec.vni), cards={FIRST: "10.7.1.2"})
    assert f"had VNI {other.spec.vni}, which is that of VPC 'other' by now" in await refused(adopt(world, vm))
    await world.api.vpcs.DeleteVpc(DeleteVpcRequest(id="other"))
    await adopt(world, vm)


async def test_an_identifier_that_a_guest_uses_is_given_to_nobody(world: World) -> None:
    taken = {claim.vni for claim in world.cache.view.all(kinds.VNI)}
    lowest = max(taken) + 1
    vm = await tell(world, 1, network(subnet(vni=lowest + 1), transit_vni=lowest), cards={FIRST: "10.7.1.2"})
    made = await world.api.vpcs.CreateVpc(CreateVpcRequest(vpc=Vpc(name="other", spec=VpcSpec(cidr="10.9.0.0/16"))))
    assert made.spec.vni == lowest + 2
    await adopt(world, vm)


async def test_an_address_that_a_guest_has_is_given_to_nobody(world: World) -> None:
    """In a subnet of the backup, to a VM made after the restore."""
    blue = next(iter(world.cache.view.all(kinds.SUBNET)))
    vm = await tell(world, 1, cards={blue.id: "10.1.1.2"})
    young = await world.vm("young")
    await world.reconcile()
    (nic,) = young.spec.nics
    binding = world.cache.view.get(kinds.PORT_BINDING, nic.port)
    assert binding is not None
    assert addresses_of(binding) == ("10.1.1.3",)
    await adopt(world, vm)


async def test_who_does_not_know_its_network_is_told_so(world: World) -> None:
    vm = await tell(world, 1, cards={FIRST: "10.7.1.2"})
    say = await refused(adopt(world, vm))
    assert FIRST in say
    assert "cairn node forget" in say
