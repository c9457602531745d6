"""Bad input: each is refused with the right code, and the sentence names the field, the bound, or what would make it fit."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from cairn.controller.store.base import Txn
from cairn.proto import kinds
from cairn.proto.rpc import status_details
from cairn.proto.v1.common_pb2 import Owner
from cairn.proto.v1.image_pb2 import CreateImageRequest, DeleteImageRequest
from cairn.proto.v1.node_pb2 import Node, UpdateNodeRequest
from cairn.proto.v1.port_pb2 import CreatePortRequest, DeletePortRequest, ListPortsRequest, Port, PortSpec, UpdatePortRequest
from cairn.proto.v1.subnet_pb2 import CreateSubnetRequest, DeleteSubnetRequest, Subnet, SubnetSpec
from cairn.proto.v1.vm_pb2 import CreateVmRequest, Nic, UpdateVmRequest, Vm
from cairn.proto.v1.volume_pb2 import CreateVolumeRequest, UpdateVolumeRequest, Volume
from cairn.proto.v1.vpc_pb2 import CreateVpcRequest, Vpc, VpcSpec
from google.protobuf.field_mask_pb2 import FieldMask
from google.rpc import error_details_pb2

from tests.conformance.api_stores import made_store
from tests.conformance.api_world import GIB, MIB, World, image, vm, world_on

INVALID = grpc.StatusCode.INVALID_ARGUMENT
NOT_FOUND = grpc.StatusCode.NOT_FOUND
EXISTS = grpc.StatusCode.ALREADY_EXISTS
STATE = grpc.StatusCode.FAILED_PRECONDITION
EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGqH3rSvVTGKJzJ0c1jLhpXHDdAoQFkPQFvZ1V5bq8sB me@here"


@pytest.fixture
async def world(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[World]:
    async with made_store(request) as store, world_on(store, tmp_path) as world:
        await world.furnish()
        yield world


async def refused(call: Any, code: grpc.StatusCode, *words: str, field: str = "") -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    say = str(caught.value.details())
    assert caught.value.code() is code, say
    for word in words:
        assert word in say
    if field:
        (bad,) = status_details(caught.value, error_details_pb2.BadRequest)
        assert isinstance(bad, error_details_pb2.BadRequest)
        assert bad.field_violations[0].field == field


VMS: list[tuple[dict[str, Any], grpc.StatusCode, str, str]] = [
    ({"image": "nope"}, NOT_FOUND, "", "image 'nope' does not exist"),
    ({"image": ""}, INVALID, "vm.spec.image", "required"),
    ({"nics": [Nic(subnet="nope")]}, NOT_FOUND, "", "vm.spec.nics[0].subnet"),
    ({"node": "nope"}, NOT_FOUND, "", "node 'nope' does not exist"),
    ({"volumes": ["nope"]}, NOT_FOUND, "", "vm.spec.volumes[0]"),
    ({"cpus": 0}, INVALID, "vm.spec.cpus", "between 1 and 64"),
    ({"cpus": 65}, INVALID, "vm.spec.cpus", "between 1 and 64"),
    ({"memory_bytes": 31 * MIB}, INVALID, "vm.spec.memory_bytes", "32 MiB"),
    ({"memory_bytes": 2 * 1024 * GIB}, INVALID, "vm.spec.memory_bytes", "1 TiB"),
    ({"memory_bytes": 128 * MIB + 1}, INVALID, "vm.spec.memory_bytes", "whole number of MiB"),
    ({"memory_bytes": 9 * GIB}, EXHAUSTED, "", "can give 7.1 GiB"),
    ({"cpus": 17}, EXHAUSTED, "", "can give 16"),
    ({"high_availability": True}, INVALID, "vm.spec.high_availability", "no release restarts a VM on another node"),
    ({"arch": "riscv64"}, INVALID, "vm.spec.arch", "x86_64, aarch64"),
    ({"arch": "aarch64"}, INVALID, "vm.spec.arch", "is for x86_64"),
    ({"root_disk_bytes": 32 * MIB}, INVALID, "vm.spec.root_disk_bytes", "needs 64 MiB"),
    ({"root_disk_bytes": 0}, INVALID, "vm.spec.root_disk_bytes", "1 MiB"),
    ({"nics": [Nic(subnet="blue")] * 9}, INVALID, "vm.spec.nics", "at most 8"),
    ({"nics": [Nic(subnet="blue", address="10.9.0.1")]}, INVALID, "vm.spec.nics[0].address", "not inside"),
    ({"nics": [Nic(subnet="blue", address="10.1.1.1")]}, INVALID, "vm.spec.nics[0].address", "the gateway"),
    ({"nics": [Nic(subnet="blue", address="10.1.1.255")]}, INVALID, "vm.spec.nics[0].address", "broadcast"),
    ({"nics": [Nic(subnet="blue", address="ten")]}, INVALID, "vm.spec.nics[0].address", "not an IPv4 address"),
    ({"nics": [Nic(subnet="blue", address="10.1.1.9")] * 2}, INVALID, "vm.spec.nics[1].address", "twice"),
    ({"volumes": ["x"] * 17}, INVALID, "vm.spec.volumes", "at most 16"),
    ({"ssh_keys": [KEY] * 33}, INVALID, "vm.spec.ssh_keys", "at most 32"),
    ({"ssh_keys": [KEY, "hello"]}, INVALID, "vm.spec.ssh_keys[1]", "not an OpenSSH public key"),
    ({"user_data": b"x" * (64 * 1024 + 1)}, INVALID, "vm.spec.user_data", "at most 64 KiB"),
    ({"volume_type": "tape"}, INVALID, "vm.spec.volume_type", "local"),
]


@pytest.mark.parametrize(("spec", "code", "field", "words"), VMS, ids=[f"{n}-{w[3][:24]}" for n, w in enumerate(VMS)])
async def test_a_vm_that_cannot_be(world: World, spec: dict[str, Any], code: Any, field: str, words: str) -> None:
    await refused(world.api.vms.CreateVm(CreateVmRequest(vm=vm(**spec))), code, words, field=field)
    assert await world.count(kinds.VM) == 0
    assert await world.count(kinds.PORT) == 0


@pytest.mark.parametrize(
    ("name", "words"),
    [("", "required"), ("a" * 64, "at most 63"), ("Web", "must be of a-z"), ("i-0123abcd", "looks like an id")],
)
async def test_names_that_cannot_be(world: World, name: str, words: str) -> None:
    await refused(world.api.vms.CreateVm(CreateVmRequest(vm=vm(name))), INVALID, words, field="vm.name")


async def test_a_name_is_taken(world: World) -> None:
    made = await world.vm("web")
    await refused(world.api.vms.CreateVm(CreateVmRequest(vm=vm("web"))), EXISTS, "'web' exists already", made.id)


async def test_required_numbers(world: World) -> None:
    given = vm()
    given.spec.ClearField("cpus")
    await refused(world.api.vms.CreateVm(CreateVmRequest(vm=given)), INVALID, "is required", field="vm.spec.cpus")


async def test_a_taken_address_names_its_holder(world: World) -> None:
    await world.vm("web", nics=[Nic(subnet="blue", address="10.1.1.9")])
    other = CreateVmRequest(vm=vm("db", nics=[Nic(subnet="blue", address="10.1.1.9")]))
    await refused(world.api.vms.CreateVm(other), STATE, "taken by VM 'web'")
    await world.reconcile()
    await refused(world.api.vms.CreateVm(other), STATE, "taken by VM 'web'")


async def test_a_full_subnet(world: World) -> None:
    spec = SubnetSpec(vpc="home", cidr="10.1.2.0/29")
    await world.api.subnets.CreateSubnet(CreateSubnetRequest(subnet=Subnet(name="tiny", spec=spec)))
    await world.vm("full", nics=[Nic(subnet="tiny")] * 5)
    request = CreateVmRequest(vm=vm("late", nics=[Nic(subnet="tiny")]))
    await refused(world.api.vms.CreateVm(request), EXHAUSTED, "0 free of 5 addresses")


async def test_an_image_nobody_has_looked_into(world: World) -> None:
    await world.api.images.CreateImage(CreateImageRequest(image=image("fresh")))
    request = CreateVmRequest(vm=vm(image="fresh"))
    await refused(world.api.vms.CreateVm(request), STATE, "image 'fresh' is not ready")


@pytest.mark.parametrize(
    ("cidr", "words"),
    [
        ("10.1.0.1/16", "did you mean 10.1.0.0/16?"),
        ("8.8.0.0/16", "RFC 1918"),
        ("10.1.0.0/29", "between /8 and /28"),
        ("0.0.0.0/0", "RFC 1918"),
        ("10.1.0.0", "prefix length"),
        ("ten/8", "not an IPv4 CIDR"),
        ("", "required"),
    ],
)
async def test_vpc_networks(world: World, cidr: str, words: str) -> None:
    request = CreateVpcRequest(vpc=Vpc(name="v", spec=VpcSpec(cidr=cidr)))
    await refused(world.api.vpcs.CreateVpc(request), INVALID, words, field="vpc.spec.cidr")


@pytest.mark.parametrize(
    ("cidr", "words"),
    [
        ("10.1.1.128/25", "overlaps subnet 'blue' (10.1.1.0/24)"),
        ("10.1.0.0/16", "overlaps"),
        ("10.2.1.0/24", "not inside the VPC's 10.1.0.0/16"),
        ("10.1.2.0/30", "at most /29"),
        ("10.1.2.1/24", "did you mean 10.1.2.0/24?"),
    ],
)
async def test_subnet_networks(world: World, cidr: str, words: str) -> None:
    subnet = Subnet(name="s", spec=SubnetSpec(vpc="home", cidr=cidr))
    await refused(world.api.subnets.CreateSubnet(CreateSubnetRequest(subnet=subnet)), INVALID, words, field="subnet.spec.cidr")


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        ({"digest": "sha256:12"}, "image.spec.digest"),
        ({"size_bytes": 0}, "image.spec.size_bytes"),
        ({"format": 0}, "image.spec.format"),
        ({"arch": "vax"}, "image.spec.arch"),
        ({"replicas": 99}, "image.spec.replicas"),
    ],
)
async def test_images_that_cannot_be(world: World, spec: dict[str, Any], field: str) -> None:
    await refused(world.api.images.CreateImage(CreateImageRequest(image=image("i", **spec))), INVALID, field=field)


async def test_immutable_fields_are_named(world: World) -> None:
    made = await world.vm()
    new = Vm(id=made.id, etag=made.etag)
    new.spec.image = "other"
    request = UpdateVmRequest(vm=new, update_mask=FieldMask(paths=["spec.image"]))
    await refused(world.api.vms.UpdateVm(request), INVALID, "cannot be changed", field="vm.spec.image")
    request = UpdateVmRequest(vm=new, update_mask=FieldMask(paths=["spec.colour"]))
    await refused(world.api.vms.UpdateVm(request), INVALID, "spec.colour", field="update_mask")
    request = UpdateVmRequest(vm=new, update_mask=FieldMask(paths=["status.say"]))
    await refused(world.api.vms.UpdateVm(request), INVALID, "status.say", field="update_mask")


async def test_volumes_only_grow(world: World) -> None:
    volume = Volume(name="data")
    await refused(world.api.volumes.CreateVolume(CreateVolumeRequest(volume=volume)), INVALID, field="volume.spec.size_bytes")
    volume.spec.size_bytes = 64 * MIB
    made = await world.api.volumes.CreateVolume(CreateVolumeRequest(volume=volume))
    made.spec.size_bytes = 32 * MIB
    request = UpdateVolumeRequest(volume=made, update_mask=FieldMask(paths=["spec.size_bytes"]))
    await refused(world.api.volumes.UpdateVolume(request), INVALID, "only grow", field="volume.spec.size_bytes")


async def test_what_is_in_use_stays(world: World) -> None:
    await world.vm()
    await refused(world.api.subnets.DeleteSubnet(DeleteSubnetRequest(id="blue")), STATE, "VM 'web'")
    await refused(world.api.images.DeleteImage(DeleteImageRequest(id="demo")), STATE, "'web-root'")
    port = next(iter(world.cache.view.ids(kinds.PORT)))
    await refused(world.api.ports.DeletePort(DeletePortRequest(id=port)), STATE, "VM 'web'")


async def test_ports_reserve_addresses(world: World) -> None:
    port = Port(name="vip")
    port.spec.subnet, port.spec.address = "blue", "10.1.1.50"
    await world.api.ports.CreatePort(CreatePortRequest(port=port))
    request = CreateVmRequest(vm=vm(nics=[Nic(subnet="blue", address="10.1.1.50")]))
    await refused(world.api.vms.CreateVm(request), STATE, "taken by port")
    await world.api.ports.DeletePort(DeletePortRequest(id="vip"))
    await world.api.vms.CreateVm(request)


async def test_one_address_of_ipv4_today(world: World) -> None:
    def port(**spec: Any) -> CreatePortRequest:
        return CreatePortRequest(port=Port(name="spare", spec=PortSpec(subnet="blue", **spec)))

    two = ["10.1.1.50", "10.1.1.51"]
    create = world.api.ports.CreatePort
    await refused(create(port(addresses=two)), INVALID, "2 addresses, at most 1", field="port.spec.addresses")
    await refused(create(port(addresses=["fd00::5"])), INVALID, "IPv6 is not carried yet", field="port.spec.addresses[0]")
    await refused(create(port(address="fd00::5")), INVALID, "IPv6 is not carried yet", field="port.spec.address")
    await refused(create(port(address=two[0], addresses=two[1:])), INVALID, "10.1.1.51", field="port.spec.address")
    for nic, field in ((Nic(subnet="blue", addresses=two), ""), (Nic(subnet="blue", addresses=["::1"]), "[0]")):
        asked = CreateVmRequest(vm=vm(nics=[nic]))
        await refused(world.api.vms.CreateVm(asked), INVALID, field=f"vm.spec.nics[0].addresses{field}")
    vpc = Vpc(name="six", spec=VpcSpec(cidr="10.9.0.0/16", cidr_v6="fd00::/48"))
    await refused(world.api.vpcs.CreateVpc(CreateVpcRequest(vpc=vpc)), INVALID, "not carried yet", field="vpc.spec.cidr_v6")
    vpc.spec.cidr, vpc.spec.cidr_v6 = "fd00::/48", ""
    await refused(world.api.vpcs.CreateVpc(CreateVpcRequest(vpc=vpc)), INVALID, "not carried yet", field="vpc.spec.cidr")
    subnet = Subnet(name="six", spec=SubnetSpec(vpc="home", cidr="10.1.2.0/24", cidr_v6="fd00::/64"))
    request = CreateSubnetRequest(subnet=subnet)
    await refused(world.api.subnets.CreateSubnet(request), INVALID, "not carried yet", field="subnet.spec.cidr_v6")
    made = await create(port(address=two[0], addresses=two[:1]))
    assert (made.spec.address, list(made.spec.addresses)) == (two[0], two[:1])
    listed = await world.api.ports.ListPorts(ListPortsRequest(filter='spec.addresses:"10.1.1.50"'))
    assert [each.id for each in listed.ports] == [made.id]


async def test_nodes_are_cordoned_and_bounded(world: World) -> None:
    node = Node(id="n1")
    node.spec.cordoned = True
    request = UpdateNodeRequest(node=node, update_mask=FieldMask(paths=["spec.cordoned"]), allow_stale=True)
    assert "cordoned" in (await world.api.nodes.UpdateNode(request)).status.say
    node.spec.cpu_overcommit = 1000
    request = UpdateNodeRequest(node=node, update_mask=FieldMask(paths=["spec.cpu_overcommit"]), allow_stale=True)
    await refused(world.api.nodes.UpdateNode(request), INVALID, field="node.spec.cpu_overcommit")


async def test_a_message_over_the_limit(world: World) -> None:
    request = CreateVmRequest(vm=vm(user_data=b"x" * (5 * MIB)))
    await refused(world.api.vms.CreateVm(request), EXHAUSTED, "larger than max")


async def test_a_dead_store_is_a_passing_fault(world: World) -> None:
    await world.store.close()
    await refused(world.api.vms.CreateVm(CreateVmRequest(vm=vm())), grpc.StatusCode.UNAVAILABLE, "the store does not answer")


async def test_a_port_belongs_to_whom_it_is_made_with(world: World) -> None:
    await world.vm()
    given: list[tuple[str, dict[str, Any]]] = [
        ("owner", {"owner": Owner(kind="vm", id="web")}), ("owner", {"owner": Owner(kind="lb")}), ("vm", {"vm": "web"}),
    ]  # fmt: skip
    for field, whose in given:
        port = Port(name="mine", spec=PortSpec(subnet="blue", **whose))
        await refused(world.api.ports.CreatePort(CreatePortRequest(port=port)), INVALID, field=f"port.spec.{field}")
    # What a release to come may leave behind.
    port = Port(name="vip")
    port.spec.subnet = "blue"
    made = await world.api.ports.CreatePort(CreatePortRequest(port=port))
    made.spec.owner.kind, made.spec.owner.id = "vip", "vip-00000001"
    await world.commit(Txn("api").put(kinds.PORT, made.id, made))
    await refused(world.api.ports.DeletePort(DeletePortRequest(id="vip")), STATE, "belongs to vip 'vip-00000001'")
    made.etag, made.spec.owner.id = "", "vip-00000002"
    update = UpdatePortRequest(port=made, update_mask=FieldMask(paths=["spec.owner"]), allow_stale=True)
    await refused(world.api.ports.UpdatePort(update), INVALID, "spec.owner")
