"""Objects for command line tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from cairn.proto.addresses import set_addresses
from cairn.proto.v1.common_pb2 import Decision, FilterCount, NodeScore
from cairn.proto.v1.node_pb2 import Node
from cairn.proto.v1.vm_pb2 import NicStatus, Vm, VmSpec, VmStatus

from tests.unit.cli_cloud import BORN, Cloud


@pytest.fixture
def cloud(tmp_path: Path) -> Iterator[Cloud]:
    """One controller's stand-in."""
    cloud = Cloud(tmp_path)
    cloud.start()
    try:
        yield cloud
    finally:
        cloud.close()


@pytest.fixture
def peers(tmp_path: Path) -> Iterator[Cloud]:
    """Two controllers with one store."""
    cloud = Cloud(tmp_path, servers=2)
    cloud.start()
    try:
        yield cloud
    finally:
        cloud.close()


def vm(name: str = "web", state: str = "RUNNING", id: str = "i-0000web1", node: str = "n2", say: str = "") -> Vm:
    spec = VmSpec(cpus=2, memory_bytes=128 << 20, image="img-demo0001", arch="x86_64", root_volume="vol-root0001")
    status = VmStatus(
        state=VmStatus.State.Value(f"STATE_{state}"), node=node, say=say or f"running on {node}", accelerator="tcg",
        image_name="demo",
    )  # fmt: skip
    nic = NicStatus(port="nic-00000001", subnet="vxnet-blue", subnet_name="blue", mac="2a:00:00:00:00:01")
    set_addresses(nic, ["10.1.1.2"])
    status.nics.append(nic)
    made = Vm(id=id, name=name, project="prj-default", spec=spec, status=status, labels={"env": "test"})
    made.create_time.FromDatetime(BORN)
    made.status.start_time.FromDatetime(BORN)
    return made


def decision(node: str = "n2") -> Decision:
    made = Decision(considered=3, node="node-0000000" + node[1:] if node else "", node_name=node)
    made.say = f"{node} has the most room left" if node else "no node has 2 GiB of memory free; the most is 1.2 GiB on n3"
    made.filters.append(FilterCount(name="state", refused=0))
    made.filters.append(FilterCount(name="capacity", refused=1, example="n1: 64 MiB free, 128 MiB wanted"))
    if node:
        made.top.append(NodeScore(node="node-00000002", node_name="n2", total=1.75, parts={"spread": 1.0, "room": 0.75}))
        made.top.append(NodeScore(node="node-00000003", node_name="n3", total=1.25, parts={"spread": 0.5, "room": 0.75}))
    return made


def node() -> Node:
    made = Node(id="node-00000001", name="n1", labels={"rack": "a"})
    made.create_time.FromDatetime(BORN)
    status = made.status
    status.state, status.say, status.endpoint = status.STATE_READY, "ready, 1 VM", "172.31.0.11:7446"
    status.connect_time.FromDatetime(BORN)
    status.capacity.cpus, status.capacity.memory_bytes, status.capacity.disk_bytes = 8, 2 << 30, 50 << 30
    status.claims.cpus, status.claims.memory_bytes, status.claims.disk_bytes, status.claims.vms = 2, 128 << 20, 1 << 30, 1
    facts = status.facts
    facts.arch, facts.memory_bytes, facts.kernel, facts.os = "x86_64", 3 << 30, "6.1.0-18", "Debian 12"
    facts.vtep, facts.underlay_mtu, facts.agent_version = "172.31.0.11", 1500, "0.1.0"
    cpu = facts.cpu
    cpu.model, cpu.sockets, cpu.cores, cpu.threads, cpu.virtualization = "Intel Xeon Gold 6230", 1, 1, 2, "vmx"
    facts.numa.add(id=0, memory_bytes=3 << 30, cpus="0-1")
    facts.disks.add(name="nvme0n1", model="PM9A3", serial="S5", size_bytes=960_197_124_096, transport="nvme")
    facts.nics.add(name="eth0", mac="52:54:00:00:00:01", driver="mlx5_core", speed_mbps=25000, mtu=1500, link_up=True)
    facts.firmware.system_vendor, facts.firmware.system_product, facts.firmware.uefi = "Dell Inc.", "PowerEdge R640", True
    hypervisor = facts.hypervisor
    hypervisor.accelerator, hypervisor.cpu_mode, hypervisor.qemu_version = "kvm", "host-passthrough", "7.2"
    hypervisor.archs.append("x86_64")
    facts.pools.add(type="local", total_bytes=60 << 30, free_bytes=40 << 30, used_bytes=20 << 30, path="/var/lib/cairn/volumes")
    return made
