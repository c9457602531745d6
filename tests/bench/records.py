"""Records of a whole cloud as the controllers would have left them: nodes, an image, a network, VMs that run."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from cairn.controller.api.nouns import DEFAULT_PROJECT_ID
from cairn.controller.model.where import in_short
from cairn.controller.store.base import Store, Txn
from cairn.proto import kinds
from cairn.proto.ids import mac_of
from cairn.proto.seams import timestamp
from cairn.proto.v1.agent_pb2 import Observed, PortReport, Report, VmReport, VolumeReport
from cairn.proto.v1.cluster_pb2 import NameClaim
from cairn.proto.v1.common_pb2 import Decision, Owner
from cairn.proto.v1.image_pb2 import IMAGE_FORMAT_QCOW2, Image, ImageContent, ImageSpec
from cairn.proto.v1.node_pb2 import Node, NodeFacts, NodeSession, NodeSpec
from cairn.proto.v1.port_pb2 import AddressClaim, Port, PortBinding, PortSpec
from cairn.proto.v1.subnet_pb2 import Subnet, SubnetSpec
from cairn.proto.v1.vm_pb2 import POWER_STATE_RUNNING, Nic, NodeClaims, Placement, Vm, VmSpec
from cairn.proto.v1.volume_pb2 import Volume, VolumePlacement, VolumeSpec
from cairn.proto.v1.vpc_pb2 import Vpc, VpcSpec

MIB, GIB = 1 << 20, 1 << 30
NOW = timestamp(datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC))
IMAGE, VPC, SUBNET = "img-00000000", "rtr-00000000", "vxnet-00000000"
CIDR = "10.1.0.0/16"
DISK_BYTES = 4 * GIB
MEMORY_BYTES = 2 * GIB


def node_id(index: int) -> str:
    return f"node-{index:08d}"


def _named(txn: Txn, kind: str, name: str, id: str, project: str = DEFAULT_PROJECT_ID) -> None:
    txn.create(kinds.NAME, f"{project}/{kind}/{name}", NameClaim(kind=kind, project=project, name=name, id=id))


def _object(message: Any, kind: str, index: int, name: str, **spec: Any) -> Any:
    """One object of the default project, id by number."""
    prefix = kinds.BY_NAME[kind].id_prefix
    made = message(id=f"{prefix}-{index:08d}", name=name, project=DEFAULT_PROJECT_ID, **spec)
    made.create_time.CopyFrom(NOW)
    made.update_time.CopyFrom(NOW)
    return made


async def add_networks(store: Store, count: int) -> None:
    """VPCs of one subnet each, besides the first."""
    for number in range(1, count):
        vpc, subnet = network_ids(number)
        txn = Txn("api")
        txn.create(kinds.VPC, vpc, _object(Vpc, "vpc", number, f"vpc-{number}", spec=VpcSpec(cidr=CIDR, vni=5000 + number)))
        spec = SubnetSpec(vpc=vpc, cidr=CIDR, vni=50_000 + number)
        txn.create(kinds.SUBNET, subnet, _object(Subnet, "subnet", number, f"subnet-{number}", spec=spec))
        await store.commit(txn)


def network_ids(number: int) -> tuple[str, str]:
    """Ids of a VPC and its subnet."""
    return f"rtr-{number:08d}", f"vxnet-{number:08d}"


async def add_network(store: Store) -> None:
    """An image nobody holds, a VPC, a subnet."""
    txn = Txn("api")
    size = {"size_bytes": 100 * MIB, "format": IMAGE_FORMAT_QCOW2, "arch": "x86_64"}
    txn.create(kinds.IMAGE, IMAGE, _object(Image, "image", 0, "demo", spec=ImageSpec(digest="sha256:" + "ab" * 32, **size)))
    txn.create(kinds.VPC, VPC, _object(Vpc, "vpc", 0, "demo", spec=VpcSpec(cidr=CIDR, vni=4096)))
    txn.create(kinds.SUBNET, SUBNET, _object(Subnet, "subnet", 0, "blue", spec=SubnetSpec(vpc=VPC, cidr=CIDR, vni=4097)))
    for kind, name, id in (("image", "demo", IMAGE), ("vpc", "demo", VPC), ("subnet", "blue", SUBNET)):
        _named(txn, kind, name, id)
    await store.commit(txn)
    content = ImageContent(image=IMAGE, virtual_size_bytes=GIB, format=IMAGE_FORMAT_QCOW2)
    await store.commit(Txn("jobs").create(kinds.IMAGE_CONTENT, IMAGE, content))


async def add_node(store: Store, index: int) -> None:
    """A large server that is connected."""
    facts = NodeFacts(arch="x86_64", memory_bytes=1024 * GIB, hostname=f"n{index}", kernel="6.1.0-44-amd64")
    facts.cpu.threads = 256
    facts.hypervisor.accelerator = "kvm"
    facts.hypervisor.archs.append("x86_64")
    facts.pools.add(type="local", total_bytes=16 << 40, free_bytes=15 << 40)
    id = node_id(index)
    node = Node(id=id, name=f"n{index}", create_time=NOW, update_time=NOW, spec=NodeSpec(index=index + 1))
    txn = Txn("api").create(kinds.NODE, id, node)
    _named(txn, "node", node.name, id, "-")
    await store.commit(txn)
    session = NodeSession(node=id, controller="c1", endpoint="127.0.0.1:1", connect_time=NOW)
    await store.commit(Txn("sync").create(kinds.NODE_FACTS, id, facts).create(kinds.NODE_SESSION, id, session))


def claims(index: int, vms: int) -> Txn:
    """What its VMs hold of a node."""
    held = NodeClaims(node=node_id(index), vms=vms, cpus=2 * vms, memory_bytes=vms * MEMORY_BYTES, disk_bytes=vms * DISK_BYTES)
    return Txn("placement").create(kinds.NODE_CLAIMS, held.node, held)


def running_vm(index: int, node: int, cards: int = 1, network_vms: int = 1 << 16) -> Iterator[Txn]:
    """Every record of one VM that runs, by writer. network_vms: how many VMs share a VPC."""
    network, place = divmod(index, network_vms)
    vpc, subnet = network_ids(network)
    ports = [f"nic-{index * cards + card:08d}" for card in range(cards)]
    vm, volume = _vm(index, subnet, ports), f"vol-{index:08d}"
    txn = Txn("api").create(kinds.VM, vm.id, vm)
    _named(txn, "vm", vm.name, vm.id)
    root = VolumeSpec(size_bytes=DISK_BYTES, type="local", image=IMAGE, vm=vm.id, boot=True, delete_with_vm=True)
    txn.create(kinds.VOLUME, volume, _object(Volume, "volume", index, f"{vm.name}-root", spec=root))
    _named(txn, "volume", f"{vm.name}-root", volume)
    bound = Txn("ports")
    for card, port in enumerate(ports):
        spec = PortSpec(vpc=vpc, subnet=subnet, vm=vm.id, owner=Owner(kind="vm", id=vm.id), mac=mac_of(port))
        txn.create(kinds.PORT, port, _object(Port, "port", index * cards + card, port, spec=spec))
        address = str(ipaddress.ip_network(CIDR)[place * cards + card + 2])
        binding = PortBinding(port=port, subnet=subnet, vpc=vpc, address=address, mac=mac_of(port))
        bound.create(kinds.PORT_BINDING, port, binding)
        bound.create(kinds.ADDRESS, f"{subnet}/{address}", AddressClaim(subnet=subnet, address=address, port=port))
    yield txn
    yield bound
    placement = Placement(vm=vm.id, node=node_id(node), cpus=2, memory_bytes=MEMORY_BYTES, decision=in_short(_decision(node)))
    held = VolumePlacement(volume=volume, node=node_id(node), disk_bytes=DISK_BYTES)
    placed = Txn("placement").create(kinds.PLACEMENT, vm.id, placement).create(kinds.DECISION, vm.id, _decision(node))
    yield placed.create(kinds.VOLUME_PLACEMENT, volume, held)
    yield _observed(vm, node, volume, ports)


def _vm(index: int, subnet: str, ports: list[str]) -> Vm:
    spec = VmSpec(
        cpus=2, memory_bytes=MEMORY_BYTES, image=IMAGE, arch="x86_64", root_disk_bytes=DISK_BYTES, volume_type="local",
        root_volume=f"vol-{index:08d}", nics=[Nic(subnet=subnet, port=port) for port in ports],
        power_state=POWER_STATE_RUNNING, power_generation=1,
        ssh_keys=["ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAI" + "B" * 43 + " someone@example"],
    )  # fmt: skip
    made: Vm = _object(Vm, "vm", index, f"vm-{index}", spec=spec, labels={"app": "web", "tier": "front"})
    return made


def _decision(node: int) -> Decision:
    name = f"n{node}"
    decision = Decision(considered=100, node=node_id(node), node_name=name, decide_time=NOW)
    decision.say = f"{name} is the emptiest of the 100 nodes that fit"
    for each, refused in (("state", 0), ("architecture", 0), ("labels", 0), ("cpus", 2), ("memory", 3), ("disk", 0)):
        decision.filters.add(name=each, refused=refused, example="n7: 512 MiB free, 2 GiB wanted" if refused else "")
    for place in range(5):
        score = decision.top.add(node=node_id(node + place), node_name=f"n{node + place}", total=0.9 - place / 100)
        score.parts.update({"spread": 0.5, "image here": 0.4})
    return decision


def _observed(vm: Vm, node: int, volume: str, ports: list[str]) -> Txn:
    ran = VmReport(state=VmReport.STATE_RUNNING, say="runs", start_time=NOW, power_generation=1, accelerator="kvm")
    ready = VolumeReport(state=VolumeReport.STATE_READY, say="ready", size_bytes=DISK_BYTES, used_bytes=300 * MIB)
    reports = (
        Report(key=f"vm/{vm.id}", vm=ran),
        Report(key=f"volume/{volume}", volume=ready),
        *(Report(key=f"port/{port}", port=PortReport(state=PortReport.STATE_ACTIVE)) for port in ports),
    )
    txn = Txn("sync")
    for report in reports:
        report.version.epoch, report.version.revision = 1, 123_456
        observed = Observed(key=report.key, node=node_id(node), report=report, observe_time=NOW)
        txn.create(kinds.OBSERVED, f"{node_id(node)}/{report.key}", observed)
    return txn
