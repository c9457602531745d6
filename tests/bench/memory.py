"""Resident memory: a controller of a cloud of 10,000 VMs, an agent with one guest: `python -m tests.bench.memory`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator

import grpc.aio
from cairn.controller.store.base import OPERATIONS_MAX, Store, Txn
from cairn.proto.log import configure
from cairn.proto.v1 import vm_pb2_grpc
from cairn.proto.v1.vm_pb2 import ListVmsRequest

from tests.bench import records
from tests.bench.cloud import cloud, create, missing
from tests.bench.placement import every
from tests.bench.report import line, skipped, title
from tests.bench.site import Site, rss_mib
from tests.lab import etcd
from tests.lab.lab import Lab

VMS = 10_000
NODES = 100
PAGE = 1000
CONCURRENCY = 16


def packed(txns: Iterator[Txn]) -> Iterator[Txn]:
    """The same writes in few transactions."""
    gathered = Txn("bench")
    for txn in txns:
        if gathered.size + txn.size > OPERATIONS_MAX:
            yield gathered
            gathered = Txn("bench")
        gathered.merge(txn)
    yield gathered


async def fill(store: Store) -> int:
    """Write the cloud; return how many records one VM has."""
    await records.add_network(store)
    for index in range(NODES):
        await records.add_node(store, index)
        await store.commit(records.claims(index, VMS // NODES))
    txns = [txn for index in range(VMS) for txn in records.running_vm(index, index % NODES)]
    batches = list(packed(iter(txns)))
    await every(len(batches), lambda number: store.commit(batches[number]), CONCURRENCY)
    return sum(len(txn.puts) for txn in txns) // VMS


async def listed(channel: grpc.aio.Channel) -> int:
    """List all VMs; return how many came."""
    stub = vm_pb2_grpc.VmServiceStub(channel)
    token, count = "", 0
    while True:
        page = await stub.ListVms(ListVmsRequest(page_size=PAGE, page_token=token))
        count, token = count + len(page.vms), page.next_page_token
        if not token:
            return count


async def measure_controller(site: Site) -> None:
    async with site.store() as store:
        each = await fill(store)
    started = time.perf_counter()
    with site.controller() as process:
        async with site.channel() as channel:
            ready_s = time.perf_counter() - started
            line(f"controller, {VMS:,} VMs of {each} records: ready", rss_mib(process.pid), "MiB", aim="300 MiB")
            started = time.perf_counter()
            count = await listed(channel)
            listed_s = time.perf_counter() - started
            assert count == VMS, f"{count} VMs listed"
            line("    after all of them were listed", rss_mib(process.pid), "MiB", aim="300 MiB")
            line("    from its start to its first answer", ready_s, "s")
            line("    to list them", listed_s, "s")


def measure_agent(lab: Lab) -> None:
    """An agent that carries a guest."""
    asyncio.run(create(lab, "one"))
    line("agent with one guest", rss_mib(lab.host("n1").pid_of("agent")), "MiB", aim="100 MiB")


def main() -> None:
    title("Memory")
    configure("warning")
    if not etcd.available():
        skipped("etcd is not installed")
        return
    with Site.made() as site:
        asyncio.run(measure_controller(site))
    if reason := missing():
        skipped(f"the agent: {reason}")
        return
    with cloud() as lab:
        measure_agent(lab)


if __name__ == "__main__":
    main()
