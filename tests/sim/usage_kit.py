"""One controller, as far as usage is concerned, alone with a store on virtual time; see test_metering.py."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

from cairn.controller import restore
from cairn.controller.backup import backup
from cairn.controller.metering import Metering
from cairn.controller.metrics import MeteringMetrics
from cairn.controller.model.usage_days import number_of
from cairn.controller.restore import Backup
from cairn.controller.retention import Retention
from cairn.controller.standing import FencedStore, Standing
from cairn.controller.store.base import Txn
from cairn.controller.store.cache import Cache
from cairn.proto import kinds
from cairn.proto.seams import timestamp
from cairn.proto.v1.agent_pb2 import Observed, Report, VmReport
from cairn.proto.v1.cluster_pb2 import Cluster
from cairn.proto.v1.usage_pb2 import UsageOpen
from cairn.proto.v1.vm_pb2 import Vm, VmSpec
from cairn.proto.v1.volume_pb2 import Volume, VolumeSpec
from prometheus_client import CollectorRegistry

from tests.sim.loop import run
from tests.sim.store import SimBackend, SimStore, StoreFaults
from tests.sim.world import SimIds

START = datetime(2030, 1, 1, tzinfo=UTC)
S = 1_000_000
GIB = 1 << 30


class Clock:
    """The loop's time, and an error."""

    def __init__(self) -> None:
        self.wrong_s = 0.0

    def now(self) -> datetime:
        return START + timedelta(seconds=asyncio.get_running_loop().time() + self.wrong_s)


class Peers:
    """Whether it is this controller's to do."""

    def __init__(self) -> None:
        self.is_mine = True

    def mine(self, shard: str) -> bool:
        return self.is_mine


class One:
    """One controller, as far as usage is concerned."""

    def __init__(self, backend: SimBackend, name: str = "c1", faults: StoreFaults | None = None) -> None:
        self.backend, self.clock, self.peers = backend, Clock(), Peers()
        self.raw = SimStore(backend, random.Random(name), faults, name=name)
        self.cache = Cache(self.raw)
        self.store = FencedStore(self.raw, self.cache, Standing(self.cache), self.clock)
        self.registry = CollectorRegistry()
        leases = Retention(self.raw, 60.0)
        ids = SimIds(name)
        metrics = MeteringMetrics(self.registry)
        self.metering = Metering(self.cache, self.store, self.peers, self.clock, ids, leases, metrics)
        self.tasks: list[asyncio.Task[None]] = []

    async def begin(self) -> One:
        """Follow the store, and count."""
        self.tasks.append(asyncio.create_task(self.cache.run()))
        await self.cache.ready.wait()
        await self.cache.wait_for(await self.raw.revision())
        self.count()
        async with asyncio.timeout(120):
            while not self.all(kinds.USAGE_CURSOR):
                await asyncio.sleep(0.05)
        return self

    def count(self) -> None:
        """Count, from now on."""
        self.tasks.append(asyncio.create_task(self.metering.run()))

    def kill(self) -> None:
        """Count no more."""
        self.tasks.pop().cancel()

    async def commit(self, txn: Txn) -> int:
        revision = await self.store.commit(txn)
        await self.cache.wait_for(revision)
        return revision

    async def volume(self, id: str, gib: int = 1, *, gone: bool = False) -> None:
        """Make a volume, grow it, or have it go."""
        spec = VolumeSpec(size_bytes=gib * GIB)
        made = Volume(id=id, name=id, project="p", spec=spec, create_time=timestamp(self.clock.now()))
        txn = Txn("garbage").delete(kinds.VOLUME, id) if gone else Txn("api").put(kinds.VOLUME, id, made)
        await self.commit(txn)

    async def vm(self, id: str, cpus: int = 1, *, gone: bool = False) -> None:
        """The same of a VM."""
        spec = VmSpec(cpus=cpus, memory_bytes=GIB)
        made = Vm(id=id, name=id, project="p", spec=spec, create_time=timestamp(self.clock.now()))
        txn = Txn("garbage").delete(kinds.VM, id) if gone else Txn("api").put(kinds.VM, id, made)
        await self.commit(txn)

    async def report(self, id: str, *, runs: bool, start_us: int = 1) -> None:
        """Have a node say whether a VM runs."""
        said = VmReport(state=VmReport.STATE_RUNNING if runs else VmReport.STATE_STOPPED)
        said.start_time.FromMicroseconds(start_us)
        observed = Observed(key=f"vm/{id}", node="n1", report=Report(key=f"vm/{id}", vm=said))
        await self.commit(Txn("sync").put(kinds.OBSERVED, f"n1/vm/{id}", observed))

    def all(self, kind: Any) -> list[Any]:
        return [kind.message.FromString(item.value) for item in self.backend.of(kind.prefix)]

    @property
    def open(self) -> dict[str, UsageOpen]:
        return {each.object: each for each in self.all(kinds.USAGE_OPEN)}

    @property
    def counted(self) -> dict[str, Counter[str]]:
        """What was closed, by object."""
        found: dict[str, Counter[str]] = {}
        for day in self.all(kinds.USAGE_DAY):
            for object in day.objects:
                sums = found.setdefault(object.object, Counter())
                for piece in object.pieces:
                    sums["us"] += piece.us
                    sums["running"] += piece.us if piece.running else 0
                    sums["cpus"] += piece.cpu_us
                    sums["gib"] += number_of(piece.byte_us) // GIB
                    sums["inexact"] += piece.us if piece.inexact else 0
        return found

    def commits(self) -> float:
        """How often usage was stored."""
        return self.registry.get_sample_value("cairn_metering_commits_total") or 0.0

    async def caught_up(self) -> None:
        """Return once the newest change is counted."""
        async with asyncio.timeout(120):
            while True:
                clock, cursors = self.backend.find(kinds.USAGE_CLOCK.key("self")), self.all(kinds.USAGE_CURSOR)
                if cursors and (clock is None or cursors[0].revision >= clock.mod_revision):
                    return
                await asyncio.sleep(0.05)


async def found() -> SimBackend:
    """Return a store with a cluster."""
    backend = SimBackend()
    store = SimStore(backend, random.Random(0))
    await store.commit(Txn("peers").create(kinds.CLUSTER, "self", Cluster(name="c", epoch=1, create_time=timestamp(START))))
    return backend


def played(scenario: Callable[[], Awaitable[None]], seed: int = 1) -> None:
    """Play it on virtual time."""

    async def whole() -> dict[str, Any]:
        await scenario()
        return {}

    outcome = run(seed, whole)
    assert not outcome.faults, outcome.faults


async def backed_up(one: One) -> Backup:
    """Return a backup of what there is."""
    content = b"".join([chunk async for chunk in backup(one.raw, one.clock, "1")])

    async def chunks() -> Any:
        yield content

    return await restore.read(chunks())
