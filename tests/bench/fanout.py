"""What a large cloud costs its controller: `python -m tests.bench.fanout [NODES [VPCS [VMS]]]`.

Many callers create VMs, each in a VPC of his own, on hundreds of connected nodes; then nodes join a VPC that is on a thousand.
Real streams (stub_agents.py), real mTLS, a real etcd; what is measured is the CPU of the controller's process. Before what all
nodes of a VPC are told was made once for all of them: 52 ms a VM, 5.8 s a node that joins.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from multiprocessing import get_context

import grpc.aio
from cairn.controller.api.nouns import DEFAULT_PROJECT_ID
from cairn.controller.store.base import Store, Txn
from cairn.proto import kinds
from cairn.proto.log import configure
from cairn.proto.pki import Identity
from cairn.proto.v1 import subnet_pb2_grpc, vm_pb2_grpc, vpc_pb2_grpc
from cairn.proto.v1.node_pb2 import Node, NodeSpec
from cairn.proto.v1.subnet_pb2 import CreateSubnetRequest, Subnet, SubnetSpec
from cairn.proto.v1.vm_pb2 import POWER_STATE_RUNNING, CreateVmRequest, Nic, Vm, VmSpec
from cairn.proto.v1.vpc_pb2 import CreateVpcRequest, Vpc, VpcSpec

from tests.bench import records, stub_agents
from tests.bench.placement import every
from tests.bench.report import line, skipped, title
from tests.bench.site import Site, cpu_s
from tests.bench.stub_agents import Counters
from tests.lab import etcd

NODES, VPCS, VMS = 500, 20, 250
# 1,000 are wanted; before they can be measured, the first image on all of them at once has to cost less than N x N x N.
JOINED_NODES, JOINS = 300, 10
CALL_S = 10.0
BEFORE_VM_MS, BEFORE_JOIN_MS = 52.0, 5800.0
CONNECT_S = 300.0
SETTLE_S = 300.0
IDLE_S = 10.0
# Longer than a stream waits with what is shared, at any of these sizes.
QUIET_S = 2.5


async def add_nodes(store: Store, count: int) -> None:
    """Nodes that have joined; their agents say what they are."""

    async def one(index: int) -> None:
        id = records.node_id(index)
        node = Node(id=id, name=f"n{index}", create_time=records.NOW, update_time=records.NOW, spec=NodeSpec(index=index + 1))
        await store.commit(Txn("api").create(kinds.NODE, id, node))

    await every(count, one)


@asynccontextmanager
async def agents(site: Site, count: int, counters: Counters) -> AsyncIterator[None]:
    """Stub agents in a process of their own, all connected."""
    nodes = [
        stub_agents.Node(id, f"198.18.{index >> 8}.{index & 255}", site.authority.issue(Identity("node", id)))
        for index, id in enumerate(map(records.node_id, range(count)))
    ]
    what = (f"unix:{site.socket}", site.authority.cert_pem, nodes, counters)
    process = get_context("spawn").Process(target=stub_agents.run, args=what, daemon=True)
    process.start()
    try:
        async with asyncio.timeout(CONNECT_S):
            while counters.connected.value < count:
                await asyncio.sleep(0.1)
        yield
    finally:
        process.terminate()
        process.join()


async def quiet(counters: Counters, running: int) -> float:
    """Wait until so many VMs run and nothing shared comes any more; return when that was."""
    deadline_s, seen, since_s = time.perf_counter() + SETTLE_S, -1, time.perf_counter()
    while time.perf_counter() < deadline_s:
        if counters.running.value < running or counters.shared.value != seen:
            seen, since_s = counters.shared.value, time.perf_counter()
        if time.perf_counter() - since_s > QUIET_S:
            return since_s
        await asyncio.sleep(0.1)
    raise TimeoutError(f"{counters.running.value} of {running} VMs run after {SETTLE_S:.0f} s")


async def at_rest(store: Store) -> None:
    """Wait until nothing is written any more: hundreds of nodes that come with their first image keep a controller busy."""
    async with asyncio.timeout(SETTLE_S):
        before, now = -1, await store.revision()
        while before != now:
            await asyncio.sleep(QUIET_S)
            before, now = now, await store.revision()


async def idle_share(pid: int) -> float:
    """Seconds of CPU the controller takes in a second in which nothing happens: heartbeats."""
    before_s = cpu_s(pid)
    await asyncio.sleep(IDLE_S)
    return (cpu_s(pid) - before_s) / IDLE_S


class Callers:
    """People who create VMs, each in a VPC of his own."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._vms, self._vpcs = vm_pb2_grpc.VmServiceStub(channel), vpc_pb2_grpc.VpcServiceStub(channel)
        self._subnets = subnet_pb2_grpc.SubnetServiceStub(channel)
        self.refused: list[str] = []

    async def create(self, number: int, vms: int) -> None:
        """Make a VPC and its VMs, one after the other."""
        vpc, subnet = f"vpc-{number}", f"subnet-{number}"
        await self._vpcs.CreateVpc(CreateVpcRequest(vpc=Vpc(name=vpc, spec=VpcSpec(cidr="10.1.0.0/16"))))
        spec = SubnetSpec(vpc=vpc, cidr="10.1.0.0/16")
        await self._subnets.CreateSubnet(CreateSubnetRequest(subnet=Subnet(name=subnet, spec=spec)))
        for index in range(vms):
            await self.vm(f"vm-{number}-{index}", subnet)

    async def vm(self, name: str, subnet: str, node: str = "") -> None:
        spec = VmSpec(cpus=1, memory_bytes=128 * records.MIB, image="demo", power_state=POWER_STATE_RUNNING, node=node)
        spec.nics.append(Nic(subnet=subnet))
        try:
            await self._vms.CreateVm(CreateVmRequest(vm=Vm(name=name, spec=spec, project=DEFAULT_PROJECT_ID)), timeout=CALL_S)
        except grpc.aio.AioRpcError as error:
            self.refused.append(f"{error.code().name}: {error.details()}")


async def created(site: Site, nodes: int, vpcs: int, vms: int) -> None:
    counters = Counters()
    async with site.store() as store:
        await records.add_network(store)
        await add_nodes(store, nodes)
    with site.controller() as process:
        async with site.channel() as channel, agents(site, nodes, counters):
            idle = await idle_share(process.pid)
            callers, started, before_s = Callers(channel), time.perf_counter(), cpu_s(process.pid)
            messages = counters.messages.value
            await asyncio.gather(*(callers.create(number, vms) for number in range(vpcs)))
            called_s = time.perf_counter() - started
            await quiet(counters, vpcs * vms - len(callers.refused))
            used_s, took_s = cpu_s(process.pid) - before_s, time.perf_counter() - started
    made = vpcs * vms
    line(f"{nodes} nodes, {vpcs} VPCs of {vms} VMs: CPU a VM", used_s / made * 1000, "ms", aim="5 ms")
    line("    before", BEFORE_VM_MS, "ms")
    line("    of that, with nothing to do", idle * took_s / made * 1000, "ms")
    line("    refused", len(callers.refused), f"of {made}", aim="0")
    for reason in sorted(set(callers.refused))[:3]:
        print(f"        {reason}")
    line("    created in", called_s, "s")
    line("    forwards and peers sent, a VM", counters.shared.value / made, "")
    line("    messages sent, a VM", (counters.messages.value - messages) / made, "")


async def joined(site: Site, nodes: int, joins: int) -> None:
    """Nodes join a VPC that is on all others, one after the other."""
    counters = Counters()
    async with site.store() as store:
        await records.add_network(store)
        await add_nodes(store, nodes + joins)
        txns = [txn for index in range(nodes) for txn in records.running_vm(index, index)]
        await every(len(txns), lambda number: store.commit(txns[number]))
    with site.controller() as process:
        async with site.store() as store, site.channel() as channel, agents(site, nodes + joins, counters):
            await quiet(counters, nodes)
            await at_rest(store)
            idle, callers = await idle_share(process.pid), Callers(channel)
            started, before_s, shared = time.perf_counter(), cpu_s(process.pid), counters.shared.value
            for number in range(joins):
                await callers.vm(f"joins-{number}", "blue", node=records.node_id(nodes + number))
                assert not callers.refused, callers.refused
                await quiet(counters, nodes + number + 1)
            used_s = cpu_s(process.pid) - before_s - idle * (time.perf_counter() - started)
    line(f"a node joins a VPC of {nodes}: CPU", used_s / joins * 1000, "ms", aim="50 ms")
    line("    before", BEFORE_JOIN_MS, "ms")
    line("    forwards and peers sent", (counters.shared.value - shared) / joins, "")


def main(sizes: list[int] | None = None) -> None:
    title("Fan-out")
    configure("warning")
    if not etcd.available():
        skipped("etcd is not installed")
        return
    nodes, vpcs, vms = [*(sizes or []), *(NODES, VPCS, VMS)[len(sizes or []) :]]
    with Site.made() as site:
        asyncio.run(created(site, nodes, vpcs, vms))
    with Site.made() as site:
        asyncio.run(joined(site, min(JOINED_NODES, 2 * nodes), JOINS))


if __name__ == "__main__":
    main([int(size) for size in sys.argv[1:]])
