"""CreateVm acknowledged a second, and how long each took: `python -m tests.bench.api`.

One etcd member, one controller as a process, the client here; 100 connected nodes, so the reconcilers work beside it. The
baseline, in the same run, is etcd alone: a transaction that creates as many keys with as many bytes, from plain stubs.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import grpc.aio
from cairn.controller.store.etcd import EtcdStore
from cairn.proto.etcd import rpc_pb2, rpc_pb2_grpc
from cairn.proto.kinds import ROOT
from cairn.proto.log import configure
from cairn.proto.pki import ETCD_SERVER_NAME
from cairn.proto.rpc import GrpcTransport
from cairn.proto.v1 import vm_pb2_grpc, vpc_pb2_grpc
from cairn.proto.v1.vm_pb2 import POWER_STATE_STOPPED, CreateVmRequest, Nic, Vm, VmSpec
from cairn.proto.v1.vpc_pb2 import CreateVpcRequest, Vpc, VpcSpec

from tests.bench import records
from tests.bench.placement import every
from tests.bench.report import line, percentile, skipped, title
from tests.bench.site import Site
from tests.lab import etcd

NODES = 100
# Calls at a time -> calls.
LOADS = {1: 200, 16: 800, 64: 1600}
WARM_UP = 50
VPCS = 256
# Calls at a time -> rate and p50 as ratios to raw etcd, when each call had a commit of its own.
BEFORE = {1: ("0.17 x", "5.8 x"), 16: ("0.20 x", "5.4 x"), 64: ("0.18 x", "6.1 x")}


@dataclass(frozen=True)
class Result:
    """One load's outcome."""

    rate: float
    took_s: Sequence[float]


async def load(act: Callable[[int], Awaitable[object]], first: int, count: int, concurrency: int) -> Result:
    """Do act(first..) count times, that many at a time."""
    took: list[float] = []

    async def one(number: int) -> None:
        started = time.perf_counter()
        await act(first + number)
        took.append(time.perf_counter() - started)

    return Result(count / await every(count, one, concurrency), took)


def request(index: int) -> CreateVmRequest:
    spec = VmSpec(
        cpus=1, memory_bytes=128 * records.MIB, image="demo", power_state=POWER_STATE_STOPPED, nics=[Nic(subnet="blue")]
    )
    return CreateVmRequest(vm=Vm(name=f"vm-{index}", spec=spec))


async def written_by(store: EtcdStore, revision: int) -> list[tuple[bytes, bytes]]:
    """The keys and values one commit left."""
    items, _ = await store.read(ROOT)
    return [(item.key.encode(), item.value) for item in items if item.create_revision == revision]


def raw(shape: list[tuple[bytes, bytes]], index: int) -> rpc_pb2.TxnRequest:
    """A transaction as large, on keys of its own."""
    keys = [b"/raw/%08d" % index + key[10:] for key, _ in shape]
    absent = [
        rpc_pb2.Compare(key=key, result=rpc_pb2.Compare.EQUAL, target=rpc_pb2.Compare.MOD, mod_revision=0) for key in keys
    ]
    puts = [
        rpc_pb2.RequestOp(request_put=rpc_pb2.PutRequest(key=key, value=value))
        for key, (_, value) in zip(keys, shape, strict=True)
    ]
    return rpc_pb2.TxnRequest(compare=absent, success=puts)


async def measure(site: Site) -> None:
    async with site.store() as store:
        await records.add_network(store)
        for index in range(NODES):
            await records.add_node(store, index)
        plain = GrpcTransport(site.etcd.credentials()).channel(site.etcd.endpoints, server_name=ETCD_SERVER_NAME)
        async with site.channel() as channel, plain:
            await compare(store, channel, rpc_pb2_grpc.KVStub(plain))


async def compare(store: EtcdStore, channel: grpc.aio.Channel, kv: rpc_pb2_grpc.KVStub) -> None:
    """Each load on the API, then on etcd."""
    vms = vm_pb2_grpc.VmServiceStub(channel)

    async def create(index: int) -> Vm:
        made: Vm = await vms.CreateVm(request(index))
        return made

    async def put(index: int) -> None:
        answer = await kv.Txn(raw(shape, index))
        assert answer.succeeded

    shape = await written_by(store, (await create(0)).revision)
    print(f"  one CreateVm writes {len(shape)} keys, {sum(len(key) + len(value) for key, value in shape):,} bytes")
    await load(create, 1, WARM_UP, 8)
    await load(put, 0, WARM_UP, 8)
    first = WARM_UP + 1
    for concurrency, count in LOADS.items():
        ours = await load(create, first, count, concurrency)
        bare = await load(put, first, count, concurrency)
        first += count
        rate, p50 = BEFORE[concurrency]
        raw_rate = ("raw etcd transactions", bare.rate)
        line(f"CreateVm acknowledged, {concurrency} at a time", ours.rate, "/s", baseline=raw_rate, before=rate)
        for name, share in (("p50", 0.5), ("p99", 0.99)):
            mine, other = (percentile(result.took_s, share) * 1000 for result in (ours, bare))
            line(f"    {name}", mine, "ms", baseline=("raw etcd", other), before=p50 if name == "p50" else "")
    await networks(store, channel)


async def networks(store: EtcdStore, channel: grpc.aio.Channel) -> None:
    """Each wants the lowest free VNI: how many commits they take together."""
    vpcs = vpc_pb2_grpc.VpcServiceStub(channel)

    async def create(index: int) -> None:
        await vpcs.CreateVpc(CreateVpcRequest(vpc=Vpc(name=f"net-{index}", spec=VpcSpec(cidr="10.9.0.0/16"))))

    before = await store.revision()
    result = await load(create, 0, VPCS, VPCS)
    commits = await store.revision() - before
    line(f"{VPCS} CreateVpc at once: commits", commits, "", aim="at most 300", before="5,799")
    line("    CreateVpc acknowledged", result.rate, "/s")


def main() -> None:
    title("API")
    configure("warning")
    if not etcd.available():
        skipped("etcd is not installed")
        return
    with Site.made() as site, site.controller():
        asyncio.run(measure(site))


if __name__ == "__main__":
    main()
