"""Placements a second with 1,000 simulated nodes, committed to a real etcd: `python -m tests.bench.placement`.

The baseline is the raw claim transaction (compare two keys, put two) at the concurrency that suits etcd best. The bulk run has
all VMs there at the start; the paced run feeds them at a given rate and times each from its record to its placement.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from multiprocessing import get_context
from pathlib import Path

from cairn.controller.api.mutation import Mutations
from cairn.controller.metrics import RuntimeMetrics
from cairn.controller.peers import winner
from cairn.controller.reconcilers.placement import Placements
from cairn.controller.runtime import Runtime
from cairn.controller.store.base import Put, Store, Txn
from cairn.controller.store.cache import Cache
from cairn.controller.store.etcd import EtcdStore
from cairn.proto import kinds
from cairn.proto.log import configure
from cairn.proto.rpc import FileCredentials
from cairn.proto.seams import SystemClock, SystemIds
from cairn.proto.v1.node_pb2 import Node, NodeFacts, NodeSession, NodeSpec
from cairn.proto.v1.vm_pb2 import Vm, VmSpec
from prometheus_client import CollectorRegistry

from tests.bench.report import line, percentile, skipped, title
from tests.lab import etcd
from tests.lab.hosts import ROOT

NODES = 1000
VMS = 5000
CLAIMS = 5000
CONCURRENCY = 64
PACED_S = 5.0
PACED_RATE = 200.0


class Share:
    """One of so many controllers, as peers.py shares work."""

    def __init__(self, name: str, names: Sequence[str]) -> None:
        self._name, self._names = name, names

    def mine(self, shard: str) -> bool:
        return winner(self._names, shard) == self._name


class OneLease:
    """Events of the benchmark live on one lease."""

    def __init__(self, id: int) -> None:
        self.id = id

    async def lease(self, records: int = 1) -> int:
        return self.id

    def forget(self) -> None:
        raise SystemExit("the benchmark's lease was lost")


async def every(count: int, act: Callable[[int], Awaitable[object]], concurrency: int = CONCURRENCY) -> float:
    """Do act(0..count-1) with that many at a time; return seconds."""
    numbers = iter(range(count))

    async def worker() -> None:
        for number in numbers:
            await act(number)

    started = time.perf_counter()
    await asyncio.gather(*(worker() for _ in range(concurrency)))
    return time.perf_counter() - started


async def seed_nodes(store: Store) -> None:
    facts = NodeFacts(arch="x86_64", memory_bytes=256 << 30)
    facts.cpu.threads = 64
    facts.hypervisor.archs.append("x86_64")
    facts.pools.add(type="local", total_bytes=4 << 40, free_bytes=4 << 40)

    async def one(index: int) -> None:
        id = f"node-{index:08d}"
        node = Node(id=id, name=f"n{index}", spec=NodeSpec(index=index + 1))
        await store.commit(Txn("api").create(kinds.NODE, id, node))
        await store.commit(Txn("sync").create(kinds.NODE_FACTS, id, facts).create(kinds.NODE_SESSION, id, NodeSession(node=id)))

    await every(NODES, one)


def vm(index: int) -> Vm:
    return Vm(
        id=f"i-{index:08d}",
        name=f"vm-{index}",
        project="prj-00000000",
        spec=VmSpec(cpus=2, memory_bytes=4 << 30, arch="x86_64"),
    )


async def raw_claims(store: Store) -> float:
    """Baseline: the claim transaction alone, its nodes taken in turn so that none conflicts."""
    revisions = [0] * NODES

    async def claim(index: int) -> None:
        node = index % NODES
        txn = Txn("raw")
        txn.checks = {f"/raw/node/{node}": revisions[node], f"/raw/vm/{index}": 0}

        txn.puts = {f"/raw/node/{node}": Put(b"x" * 256), f"/raw/vm/{index}": Put(b"x" * 512)}
        revisions[node] = await store.commit(txn)

    return CLAIMS / await every(CLAIMS, claim)


async def placed(cache: Cache, count: int) -> None:
    with cache.subscribe() as changes:
        while cache.view.count(kinds.PLACEMENT) < count:
            await anext(changes)


def feed(endpoints: Sequence[str], credentials: FileCredentials) -> None:
    """Create VMs at PACED_RATE. Runs in a process of its own, as the API's callers are not what is measured."""

    async def run() -> None:
        store = EtcdStore(endpoints, credentials)
        await store.revision()
        started, tasks = time.perf_counter(), set()
        for index in range(int(PACED_RATE * PACED_S)):
            await asyncio.sleep(max(0.0, started + index / PACED_RATE - time.perf_counter()))
            machine = vm(VMS + index)
            tasks.add(asyncio.create_task(store.commit(Txn("api").create(kinds.VM, machine.id, machine))))
        await asyncio.gather(*tasks)
        await store.close()

    asyncio.run(run())


async def paced(cluster: etcd.Cluster, cache: Cache) -> list[float]:
    """Have VMs fed at a rate; seconds from a VM's record being seen to its placement being seen, both on this view."""
    seen: dict[str, float] = {}
    took: list[float] = []
    feeder = get_context("spawn").Process(target=feed, args=(cluster.endpoints, cluster.credentials()), daemon=True)
    feeder.start()
    with cache.subscribe() as subscription:
        async for changes in subscription:
            now = time.perf_counter()
            for kind, id in changes.records:
                if kind is kinds.VM:
                    seen.setdefault(id, now)
                elif kind is kinds.PLACEMENT and id in seen:
                    took.append(now - seen.pop(id))
            if len(took) == int(PACED_RATE * PACED_S):
                break
    await asyncio.to_thread(feeder.join)
    return took


@asynccontextmanager
async def controllers(cluster: etcd.Cluster, count: int) -> AsyncIterator[Cache]:
    """Run so many, each with a store, a view and a runtime of its own, in this process; yields the view of one."""
    names = [f"c{number}" for number in range(count)]
    tasks: list[asyncio.Task[None]] = []
    stores = [EtcdStore(cluster.endpoints, cluster.credentials()) for _ in names]
    caches = [Cache(store) for store in stores]
    lease = await stores[0].lease(600)
    try:
        for name, store, cache in zip(names, stores, caches, strict=True):
            tasks.append(asyncio.create_task(cache.run()))
            await cache.wait_for(await store.revision())
            metrics = RuntimeMetrics(CollectorRegistry())
            acts = Mutations(store, cache, SystemClock(), SystemIds(), name).acts
            parts = (SystemClock(), SystemIds(), [Placements()], metrics, OneLease(lease.id), acts)
            tasks.append(asyncio.create_task(Runtime(cache, store, Share(name, names), *parts).run()))
        yield caches[0]
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for store in stores:
            await store.close()


async def measure(cluster: etcd.Cluster, count: int) -> None:
    store = EtcdStore(cluster.endpoints, cluster.credentials())
    raw = await raw_claims(store)
    await seed_nodes(store)
    await every(VMS, lambda index: store.commit(Txn("api").create(kinds.VM, vm(index).id, vm(index))))
    who = "one controller" if count == 1 else f"{count} controllers"
    before = await store.revision()
    started = time.perf_counter()
    async with controllers(cluster, count) as cache:
        await placed(cache, VMS)
        rate, baseline = VMS / (time.perf_counter() - started), ("raw claim transactions", raw)
        line(f"placements, {NODES:,} nodes, {VMS:,} VMs at once, {who}", rate, "/s", baseline=baseline, aim="1.0 x")
        line("    commits", await store.revision() - before, "")
        took = await paced(cluster, cache)
        line(f"VM seen to placement seen, at {PACED_RATE:,.0f}/s: p50", percentile(took, 0.5) * 1000, "ms")
        line("                                          p99", percentile(took, 0.99) * 1000, "ms", aim="10 ms")
    await store.close()


def main() -> None:
    title("Placement")
    configure("warning")
    if not etcd.available():
        skipped("etcd is not installed")
        return
    ROOT.mkdir(mode=0o700, exist_ok=True)
    for count in (1, 3):
        with (
            tempfile.TemporaryDirectory(prefix=f"cb{os.getpid()}", dir=ROOT) as folder,
            etcd.Cluster(Path(folder) / "etcd", 1) as cluster,
        ):
            asyncio.run(measure(cluster, count))


if __name__ == "__main__":
    main()
