"""A controller's start at full size, and whether anything stops its loop afterwards: `python -m tests.bench.start [VMS...]`.

A cloud of VMs with four cards each (24 records a VM) is written to one etcd member; then a controller starts as a process. The
loop's steps are the controller's own metric (cairn_loop_step_cpu_seconds): the CPU it used while it let nobody else run.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time

import grpc.aio
from cairn.controller.store.base import Store, Txn
from cairn.controller.store.etcd import EtcdStore
from cairn.proto import kinds
from cairn.proto.log import configure
from cairn.proto.v1 import vm_pb2_grpc
from cairn.proto.v1.node_pb2 import NodeSession
from cairn.proto.v1.vm_pb2 import ListVmsRequest

from tests.bench import records
from tests.bench.memory import packed
from tests.bench.placement import every
from tests.bench.report import line, skipped, title
from tests.bench.site import Site, cpu_s, rss_mib
from tests.lab import etcd

# VMs -> (nodes, seconds to the first answer, MiB): what is aimed at.
SIZES = {10_000: (100, 3, 250), 50_000: (1000, 20, 1536)}
CARDS = 4
NETWORK_VMS = 250
PAGE = 100
CONCURRENCY = 16
VMS_AT_ONCE = 500
# After the start: two full scans of every reconciler.
WATCHED_S = 70.0
STEP_S = "0.05"


async def fill(store: Store, vms: int, nodes: int) -> None:
    """Write the cloud."""
    await records.add_network(store)
    await records.add_networks(store, vms // NETWORK_VMS)
    for index in range(nodes):
        await records.add_node(store, index)
        await store.commit(records.claims(index, vms // nodes))
    for first in range(0, vms, VMS_AT_ONCE):
        txns = (
            txn
            for index in range(first, min(first + VMS_AT_ONCE, vms))
            for txn in records.running_vm(index, index % nodes, CARDS, NETWORK_VMS)
        )
        await write(store, list(packed(txns)))


async def write(store: Store, txns: list[Txn]) -> None:
    await every(len(txns), lambda number: store.commit(txns[number]), CONCURRENCY)


def late_steps(site: Site) -> tuple[float, float]:
    """How many steps of the loop took too long so far, and how many ticks there were."""
    found = site.metrics()
    count = found["cairn_loop_step_cpu_seconds_count"]
    return count - found[f'cairn_loop_step_cpu_seconds_bucket{{le="{STEP_S}"}}'], count


async def first_page(channel: grpc.aio.Channel) -> int:
    page = await vm_pb2_grpc.VmServiceStub(channel).ListVms(ListVmsRequest(page_size=PAGE))
    return len(page.vms)


async def relist(store: EtcdStore, process: subprocess.Popen[bytes]) -> None:
    """Make the controller lag behind what is kept of history: it has to list again."""
    session = NodeSession(node=records.node_id(0), controller="c1", endpoint="127.0.0.1:2")
    process.send_signal(19)
    try:
        for _ in range(10):
            await store.commit(Txn("sync").put(kinds.NODE_SESSION, records.node_id(0), session))
        await store.compact(await store.revision())
    finally:
        process.send_signal(18)


async def measure(site: Site, vms: int) -> None:
    nodes, aim_s, aim_mib = SIZES.get(vms, (max(10, vms // 50), 0, 0))
    async with site.store() as store:
        await fill(store, vms, nodes)
        started = time.perf_counter()
        with site.controller() as process:
            async with site.channel() as channel:
                count = await first_page(channel)
                took_s = time.perf_counter() - started
                assert count == PAGE, f"{count} VMs on the first page"
                line(f"{vms:,} VMs of {CARDS} cards: start to the first page", took_s, "s", aim=f"{aim_s} s")
                line("    CPU until then", cpu_s(process.pid), "s")
                line("    resident", rss_mib(process.pid), "MiB", aim=f"{aim_mib} MiB")
                await watched(site, channel, process, aim_mib)


async def watched(site: Site, channel: grpc.aio.Channel, process: subprocess.Popen[bytes], aim_mib: int) -> None:
    """Leave it to itself, then list all: how long the longest steps were."""
    phases = (("two scans of everything", scans), ("all VMs listed", all_pages))
    for what, act in phases:
        (late, ticks), used_s = late_steps(site), cpu_s(process.pid)
        await act(channel)
        now, ticks_now = late_steps(site)
        line(f"    {what}: steps over {float(STEP_S) * 1000:.0f} ms", now - late, f"of {ticks_now - ticks:.0f}", aim="0")
        line("        CPU", cpu_s(process.pid) - used_s, "s")
        line("        resident", rss_mib(process.pid), "MiB", aim=f"{aim_mib} MiB")


async def scans(_channel: grpc.aio.Channel) -> None:
    await asyncio.sleep(WATCHED_S)


async def all_pages(channel: grpc.aio.Channel) -> None:
    stub, token = vm_pb2_grpc.VmServiceStub(channel), ""
    for _ in range(20):
        page = await stub.ListVms(ListVmsRequest(page_size=PAGE, page_token=token))
        token = page.next_page_token


def main(sizes: list[int] | None = None) -> None:
    title("Start of a controller")
    configure("warning")
    if not etcd.available():
        skipped("etcd is not installed")
        return
    for vms in sizes or SIZES:
        with Site.made() as site:
            asyncio.run(measure(site, vms))


if __name__ == "__main__":
    main([int(size) for size in sys.argv[1:]])
