"""What metering costs: `python -m tests.bench metering`. Each commit, following the history, and a month's report.

a commit      the same transactions, in turn without the time that goes with what is counted and with it
following     guests that start and stop, on the store in memory: CPU of counting them, against reading the same history alone
a report      a month of 1,000 VMs that start and stop once a day, by object: CPU, against reading the records it is made of
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from cairn.controller.api.authorise import Admitted
from cairn.controller.api.core import Core
from cairn.controller.api.feed import Feed
from cairn.controller.api.nouns import DEFAULT_PROJECT, DEFAULT_PROJECT_ID
from cairn.controller.api.usage import UsageService
from cairn.controller.metering import Metering
from cairn.controller.metrics import MeteringMetrics
from cairn.controller.model.permits import Caller
from cairn.controller.retention import Retention
from cairn.controller.standing import FencedStore, Standing
from cairn.controller.store.base import Store, Txn
from cairn.controller.store.cache import Cache
from cairn.controller.store.memory import MemoryStore
from cairn.controller.usage_books import pages
from cairn.proto import kinds
from cairn.proto.log import configure
from cairn.proto.seams import SystemIds, timestamp
from cairn.proto.v1.agent_pb2 import Observed, Report, VmReport
from cairn.proto.v1.cluster_pb2 import Cluster
from cairn.proto.v1.project_pb2 import Project
from cairn.proto.v1.usage_pb2 import ReportUsageRequest, UsageGroup
from cairn.proto.v1.vm_pb2 import Vm, VmSpec
from prometheus_client import CollectorRegistry

from tests.bench.placement import every
from tests.bench.report import line, percentile, skipped, title
from tests.bench.site import Site
from tests.lab import etcd

BEGIN: Final = datetime(2030, 1, 1, tzinfo=UTC)
VMS, DAYS = 1_000, 31
# Changes that are followed, and how many come in one transaction, as nodes report several guests at once.
CHANGES, TOGETHER = 10_000, 10
COMMITS, WARM_UP, ROUNDS, CONCURRENCY = 4_000, 400, 4, 16
PAGE = 1_000
GIB: Final = 1 << 30


class Clock:
    """Shows what it is set to."""

    def __init__(self) -> None:
        self.time = BEGIN

    def now(self) -> datetime:
        return self.time


class Always:
    """All work is this controller's."""

    def mine(self, _shard: str) -> bool:
        return True


class Unstamped(FencedStore):
    """A store of before there was metering."""

    def _stamp(self, txn: Txn) -> None:
        return


class Cloud:
    """A store with a cluster, a project and VMs, and a controller's way to it."""

    def __init__(self, store: Store) -> None:
        self.raw, self.clock, self.cache = store, Clock(), Cache(store)
        standing = Standing(self.cache)
        self.store = FencedStore(store, self.cache, standing, self.clock)
        self.unstamped = Unstamped(store, self.cache, standing, self.clock)
        self.revisions = 0

    @classmethod
    @asynccontextmanager
    async def made(cls, store: Store, vms: int = 0) -> AsyncIterator[Cloud]:
        """Furnish a store, and follow it while the block lasts."""
        cloud = cls(store)
        txn = Txn("peers").create(kinds.CLUSTER, "self", Cluster(name="bench", epoch=1, create_time=timestamp(BEGIN)))
        await store.commit(txn)
        project = Project(id=DEFAULT_PROJECT_ID, name=DEFAULT_PROJECT)
        await store.commit(Txn("api").create(kinds.PROJECT, project.id, project))
        following = asyncio.create_task(cloud.cache.run())
        try:
            await cloud.cache.ready.wait()
            await cloud.cache.wait_for(await store.revision())
            for number in range(vms):
                vm = Vm(id=vm_id(number), name=f"vm-{number}", project=DEFAULT_PROJECT_ID, create_time=timestamp(BEGIN))
                vm.spec.CopyFrom(VmSpec(cpus=2, memory_bytes=4 * GIB))
                await cloud.store.commit(Txn("api").create(kinds.VM, vm.id, vm))
            yield cloud
        finally:
            following.cancel()
            await asyncio.wait([following])

    async def report(self, numbers: range, *, runs: bool, seconds: float) -> None:
        """Nodes say of these VMs whether they run; so much time has passed."""
        self.clock.time += timedelta(seconds=seconds)
        txn = Txn("sync")
        for number in numbers:
            said = VmReport(state=VmReport.STATE_RUNNING if runs else VmReport.STATE_STOPPED)
            said.start_time.FromDatetime(self.clock.time)
            key = f"vm/{vm_id(number)}"
            txn.put(kinds.OBSERVED, f"n1/{key}", Observed(key=key, node="n1", report=Report(key=key, vm=said)))
        await self.store.commit(txn)

    async def counted(self) -> tuple[float, int]:
        """Count all there is; return the seconds of CPU, and in how many commits it was stored."""
        registry = CollectorRegistry()
        leases, metrics = Retention(self.raw, 60.0), MeteringMetrics(registry)
        metering = Metering(self.cache, self.store, Always(), self.clock, SystemIds(), leases, metrics)
        began_s, task = time.process_time(), asyncio.create_task(metering.run())
        newest = (await self.raw.read(kinds.USAGE_CLOCK.prefix))[0]
        while True:
            cursors, _ = await self.raw.read(kinds.USAGE_CURSOR.prefix)
            if cursors and kinds.USAGE_CURSOR.message.FromString(cursors[0].value).revision >= newest[0].mod_revision:
                break
            await asyncio.sleep(0.02)
        took_s = time.process_time() - began_s
        task.cancel()
        await asyncio.wait([task])
        return took_s, int(registry.get_sample_value("cairn_metering_commits_total") or 0)


def vm_id(number: int) -> str:
    return f"i-{number:08d}"


async def stamping(store: Store, where: str, concurrency: int) -> None:
    """Print how long a commit takes with the time and without, in turn, so that what the machine does besides harms both."""
    async with Cloud.made(store) as cloud:
        targets = (cloud.unstamped, cloud.store)
        took_s: tuple[list[float], list[float]] = ([], [])

        async def one(number: int) -> None:
            vm = Vm(id=vm_id(number), name="web", project=DEFAULT_PROJECT_ID, spec=VmSpec(cpus=2, memory_bytes=GIB))
            txn, began_s = Txn("api").create(kinds.VM, vm.id, vm), time.perf_counter()
            await targets[number % 2].commit(txn)
            if number >= WARM_UP:
                took_s[number % 2].append(time.perf_counter() - began_s)

        await every(COMMITS, one, concurrency)
        without, stamped = (percentile(each, 0.5) * 1e6 for each in took_s)
        what = f"a commit that is counted, {where}, {concurrency} at a time: p50"
        line(what, stamped, "us", baseline=("without a time", without))


async def following() -> None:
    """Print what counting costs, and what reading that history does."""
    async with Cloud.made(MemoryStore(), VMS) as cloud:
        # Begun, so that what follows is followed.
        await cloud.counted()
        after, runs = await cloud.raw.revision(), True
        for first in range(0, CHANGES, TOGETHER):
            at = first % VMS
            await cloud.report(range(at, at + TOGETHER), runs=runs, seconds=1.0)
            runs = not runs if at + TOGETHER == VMS else runs
        began_s, until = time.process_time(), await cloud.raw.revision()
        async with aclosing(cloud.raw.watch(kinds.ROOT, after)) as batches:
            async for batch in batches:
                for change in batch.changes:
                    kinds.split(change.key)[0].message.FromString(change.value or b"")
                if batch.revision >= until:
                    break
        read_s = time.process_time() - began_s
        took_s, commits = await cloud.counted()
        baseline = ("decoding it", read_s * 1000)
        line(f"following {CHANGES:,} changes of {VMS:,} VMs: CPU", took_s * 1000, "ms", baseline=baseline)
        line("    a change", took_s / CHANGES * 1e6, "us")
        line("    transactions that store it", commits, "")


async def reporting() -> None:
    """Print what a month's report costs, and what reading its records does."""
    async with Cloud.made(MemoryStore(), VMS) as cloud:
        await cloud.counted()
        for day in range(DAYS):
            for hour, runs in ((8, True), (20, False)):
                cloud.clock.time = BEGIN + timedelta(days=day, hours=hour)
                for first in range(0, VMS, 50):
                    await cloud.report(range(first, first + 50), runs=runs, seconds=1.0)
        cloud.clock.time = BEGIN + timedelta(days=DAYS)
        await cloud.counted()
        began_s, size_bytes, records = time.process_time(), 0, 0
        for kind in (kinds.USAGE_OPEN, kinds.USAGE_DAY, kinds.USAGE_MONTH):
            async for items in pages(cloud.raw, kind.prefix):
                for item in items:
                    kind.message.FromString(item.value)
                    size_bytes, records = size_bytes + len(item.value), records + 1
        read_s = time.process_time() - began_s
        print(f"  a month of {VMS:,} VMs is {records:,} records, {size_bytes / 1024:,.0f} KiB")
        feed = Feed(cloud.cache.view.revision)
        core = Core.build(cloud.store, cloud.cache, lambda: feed, cloud.clock, SystemIds(), None)
        for name, group, rows in (
            ("object", UsageGroup.USAGE_GROUP_OBJECT, VMS),
            ("project", UsageGroup.USAGE_GROUP_PROJECT, 1),
        ):
            took_s = min([await reported(UsageService(core), group, rows) for _ in range(ROUNDS)])
            baseline = ("reading its records", read_s * 1000)
            line(f"a report of that month by {name}: CPU", took_s * 1000, "ms", baseline=baseline)


async def reported(service: UsageService, group: Any, rows: int) -> float:
    """Return the CPU seconds of a report, all pages."""
    request = ReportUsageRequest(group_by=group, page_size=PAGE)
    request.from_time.FromDatetime(BEGIN)
    context, found, began_s = Admitted(None, Caller("user", "admin")), list[Any](), time.process_time()
    while True:
        answer = await service.ReportUsage(request, context)
        found += answer.usages
        answer.SerializeToString()
        request.page_token = answer.next_page_token
        if not request.page_token:
            break
    took_s, ran_s = time.process_time() - began_s, sum(each.running_seconds for each in found)
    # Each ran for twelve hours a day.
    if len(found) != rows or not round(ran_s) == VMS * DAYS * 43_200:
        raise AssertionError(f"{len(found)} rows of {rows}, which ran for {ran_s:.0f} s of {VMS * DAYS * 43_200}")
    return took_s


async def measure() -> None:
    """Print all figures."""
    if etcd.available():
        for concurrency in (1, CONCURRENCY):
            with Site.made() as site:
                async with site.store() as store:
                    await stamping(store, "etcd", concurrency)
    else:
        skipped("what a commit to etcd costs: it is not installed")
    await stamping(MemoryStore(), "memory", 1)
    await following()
    await reporting()


def main() -> None:
    """Measure and print."""
    title("metering")
    configure("warning")
    asyncio.run(measure())


if __name__ == "__main__":
    main()
