"""The runtime: wakes by key, commits in groups, and comes to the same end whatever the store does meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import pytest
from cairn.controller.api.mutation import Mutations
from cairn.controller.events import event_id
from cairn.controller.metrics import RuntimeMetrics
from cairn.controller.model.happening import EventSpec
from cairn.controller.model.owners import ports_of
from cairn.controller.queue import SCAN_SLICE, Queue
from cairn.controller.reconcilers.base import Outcome, Reconciler
from cairn.controller.reconcilers.placement import Placements
from cairn.controller.reconcilers.ports import Ports
from cairn.controller.runtime import Runtime, Unlawful, check_writers
from cairn.controller.store.base import OPERATIONS_MAX, Conflict, Indeterminate, LeaseLost, Put, Store, Txn, Unavailable, View
from cairn.controller.store.cache import Cache
from cairn.controller.store.memory import MemoryBackend, MemoryStore
from cairn.proto import kinds
from cairn.proto.kinds import AnyKind
from cairn.proto.seams import SystemClock, SystemIds
from cairn.proto.v1.cluster_pb2 import Cluster, ControllerSession
from cairn.proto.v1.volume_pb2 import Purge, Volume
from prometheus_client import CollectorRegistry

from tests.unit.cloud_kit import GIB, MIB, Cloud, events_of


class Faulty(MemoryStore):
    """A store that fails commits as scripted: each fault is used once."""

    def __init__(self, backend: MemoryBackend) -> None:
        super().__init__(backend)
        self.faults: list[str] = []
        self.commits: list[Txn] = []
        # Commits wait for it before they happen, and are counted as they come.
        self.gate = asyncio.Event()
        self.gate.set()
        self.sent = 0
        # Done once, between a commit and its answer.
        self.between: Callable[[], Awaitable[object]] | None = None

    async def commit(self, txn: Txn) -> int:
        self.sent += 1
        await self.gate.wait()
        fault = self.faults.pop(0) if self.faults else ""
        if fault == "conflict":
            raise Conflict(["/somebody/else"])
        if fault == "unavailable":
            raise Unavailable("no member answers")
        if fault == "lease":
            raise LeaseLost("gone")
        if fault == "lost request":
            raise Indeterminate("no answer")
        revision = await super().commit(txn)
        self.commits.append(txn)
        if self.between is not None:
            between, self.between = self.between, None
            await between()
        if fault == "lost answer":
            raise Indeterminate("no answer")
        return revision


@dataclass
class Marker:
    """Makes one thing true: every volume has a purge. A toy that shows what the runtime does."""

    name: str = "garbage"
    reads: Sequence[AnyKind] = (kinds.VOLUME,)
    writes: Sequence[AnyKind] = (kinds.PURGE,)
    crashes: set[str] = field(default_factory=set)
    looked: list[str] = field(default_factory=list)
    tells: bool = False
    again_after_s: float | None = None

    def keys(self, view: View, kind: AnyKind, id: str) -> Iterable[str]:
        return (id,)

    def all_keys(self, view: View) -> Iterable[str]:
        return view.ids(kinds.VOLUME)

    def shard(self, key: str) -> str:
        return key

    def reconcile(self, view: View, key: str, now: datetime) -> Outcome:
        self.looked.append(key)
        if key in self.crashes:
            raise ZeroDivisionError("a bug")
        if view.get(kinds.PURGE, key) is not None or view.get(kinds.VOLUME, key) is None:
            return Outcome(None, "nothing to do", again_after_s=self.again_after_s)
        txn = Txn(self.name).create(kinds.PURGE, key, Purge(id=key))
        said = (EventSpec(key, "", "", "Marked", f"{key} is marked"),) if self.tells else ()
        return Outcome(txn, f"{key} is marked", self.again_after_s, said)


class Shards:
    """Which shards are ours."""

    def __init__(self) -> None:
        self.ours: Callable[[str], bool] = lambda _: True

    def mine(self, shard: str) -> bool:
        return self.ours(shard)


class Leases:
    """One lease for all events."""

    def __init__(self, store: Store) -> None:
        self._store, self._id, self.forgotten = store, 0, 0

    async def lease(self, records: int = 1) -> int:
        if not self._id:
            self._id = (await self._store.lease(3600)).id
        return self._id

    def forget(self) -> None:
        self._id, self.forgotten = 0, self.forgotten + 1


@dataclass
class Running:
    """A runtime at work."""

    store: Faulty
    cache: Cache
    runtime: Runtime
    registry: CollectorRegistry
    shards: Shards
    leases: Leases
    mutations: Mutations

    async def volume(self, *ids: str) -> None:
        """Another writer makes volumes."""
        other = MemoryStore(self.store.backend)
        for id in ids:
            await other.commit(Txn("api").create(kinds.VOLUME, id, Volume(id=id)))

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(20):
            while not condition():
                await asyncio.sleep(0.005)

    async def marked(self, *ids: str) -> None:
        await self.until(lambda: set(ids) <= set(self.cache.view.ids(kinds.PURGE)))

    def metric(self, name: str, reconciler: str = "garbage") -> float:
        return self.registry.get_sample_value(name, {"reconciler": reconciler}) or 0.0


@asynccontextmanager
async def running(*reconcilers: Reconciler, scan_s: float = 3600) -> AsyncIterator[Running]:
    backend = MemoryBackend()
    store, watcher = Faulty(backend), MemoryStore(backend)
    cache, registry, shards, leases = Cache(watcher), CollectorRegistry(), Shards(), Leases(store)
    metrics = RuntimeMetrics(registry)
    mutations = Mutations(store, cache, SystemClock(), SystemIds(), "c1")
    parts = (metrics, leases, mutations.acts)
    runtime = Runtime(cache, store, shards, SystemClock(), SystemIds(), reconcilers, *parts, scan_s=scan_s)
    tasks = [asyncio.create_task(cache.run()), asyncio.create_task(runtime.run())]
    try:
        await cache.ready.wait()
        yield Running(store, cache, runtime, registry, shards, leases, mutations)
        assert all(not task.done() for task in tasks), "nothing may have ended"
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await store.close()
        await watcher.close()


async def test_a_change_wakes_its_key_and_is_committed() -> None:
    marker = Marker()
    async with running(marker) as at:
        await at.volume("vol-00000001", "vol-00000002")
        await at.marked("vol-00000001", "vol-00000002")
        await at.until(lambda: at.runtime.idle)
        assert at.metric("cairn_decisions_total") == 2
        assert at.metric("cairn_queue_depth") == 0
        assert at.metric("cairn_reconcile_seconds_count") >= 2


async def test_what_was_there_before_is_found_by_the_scan() -> None:
    backend = MemoryBackend()
    await MemoryStore(backend).commit(Txn("api").create(kinds.VOLUME, "vol-00000001", Volume(id="vol-00000001")))
    async with running(Marker(), scan_s=0.05) as at:
        at.shards.ours = lambda _: False
        await at.volume("vol-00000002")
        await at.until(lambda: at.cache.view.count(kinds.VOLUME) == 1)
        at.shards.ours = lambda _: True
        await at.marked("vol-00000002")


async def test_only_shards_that_are_ours_and_a_scan_when_controllers_change() -> None:
    async with running(Marker()) as at:
        at.shards.ours = lambda shard: shard.endswith("1")
        await at.volume("vol-00000001", "vol-00000002")
        await at.marked("vol-00000001")
        await at.until(lambda: at.runtime.idle)
        assert at.cache.view.get(kinds.PURGE, "vol-00000002") is None
        at.shards.ours = lambda _: True
        await at.store.commit(Txn("peers").put(kinds.CONTROLLER, "c2", ControllerSession(name="c2")))
        await at.marked("vol-00000002")


@pytest.mark.parametrize("fault", ["conflict", "unavailable", "lost request", "lost answer", "lease"])
async def test_every_fault_of_a_commit_is_survived_and_nothing_happens_twice(fault: str) -> None:
    marker = Marker(tells=True)
    async with running(marker) as at:
        at.store.faults = [fault] * 3
        ids = [f"vol-{i:08}" for i in range(5)]
        await at.volume(*ids)
        await at.marked(*ids)
        await at.until(lambda: at.runtime.idle and not at.store.faults)
        events = [event.object for event in events_of(at.store.backend)]
        assert sorted(events) == ids, "an event is told once, with what it is about"
        written = [key for txn in at.store.commits for key in txn.puts if "/purge/" in key]
        assert len(written) == len(set(written)) == len(ids)
        assert at.metric("cairn_conflicts_total") == (3 if fault == "conflict" else 0)
        assert at.leases.forgotten == (3 if fault == "lease" else 0)


async def test_a_bug_with_one_key_stops_nobody_and_is_tried_again() -> None:
    marker = Marker(crashes={"vol-00000001"})
    async with running(marker) as at:
        await at.volume("vol-00000001", "vol-00000002")
        await at.marked("vol-00000002")
        await at.until(lambda: at.metric("cairn_reconcile_errors_total") >= 2)
        marker.crashes.clear()
        await at.marked("vol-00000001")


class Deaf(Marker):
    """One that does not look at what it writes."""

    def keys(self, view: View, kind: AnyKind, id: str) -> Iterable[str]:
        return (id,) if kind == kinds.VOLUME else ()


@pytest.mark.parametrize("reads", [(kinds.VOLUME, kinds.PURGE), (kinds.VOLUME,)], ids=["read", "written-only"])
async def test_a_key_that_waits_for_a_record_to_be_readable_is_looked_at_as_soon_as_it_is(reads: tuple[AnyKind, ...]) -> None:
    async with running(Deaf(reads=reads)) as at:
        await MemoryStore(at.store.backend).commit(Txn("test", puts={kinds.PURGE.key("vol-00000001"): Put(b"\xff\xff")}))
        await at.volume("vol-00000001", "vol-00000002")
        await at.marked("vol-00000002")
        await at.until(lambda: at.runtime.idle)
        assert at.cache.view.harmed
        await MemoryStore(at.store.backend).commit(Txn("garbage").delete(kinds.PURGE, "vol-00000001"))
        await at.marked("vol-00000001")


async def test_many_keys_share_a_commit_within_the_limit() -> None:
    async with running(Marker(tells=True)) as at:
        at.shards.ours = lambda _: False
        ids = [f"vol-{i:08}" for i in range(200)]
        await at.volume(*ids)
        await at.until(lambda: at.cache.view.count(kinds.VOLUME) == 200 and at.runtime.idle)
        at.shards.ours = lambda _: True
        await at.store.commit(Txn("peers").put(kinds.CONTROLLER, "c1", ControllerSession(name="c1")))
        await at.marked(*ids)
        groups = [txn for txn in at.store.commits if any("/purge/" in key for key in txn.puts)]
        assert len(groups) < 50
        assert max(txn.size for txn in groups) <= OPERATIONS_MAX


async def test_changes_that_come_one_after_the_other_gather() -> None:
    async with running(Marker()) as at:
        for number in range(200):
            await at.volume(f"vol-{number:08}")
            for _ in range(12):
                # Turns enough for a commit.
                await asyncio.sleep(0)
        await at.marked(*(f"vol-{number:08}" for number in range(200)))
        assert len(at.store.commits) < 150, f"{len(at.store.commits)}: a commit each would be 200"


async def test_nothing_is_decided_on_records_that_are_being_put_in_place() -> None:
    """What there is in the midst of a restore was never true together."""
    marker, under_way = Marker(), Cluster(name="blue", epoch=2)
    under_way.restore.SetInParent()
    async with running(marker) as at:
        await at.store.commit(Txn("peers").put(kinds.CLUSTER, "self", under_way))
        await at.until(lambda: at.cache.view.get(kinds.CLUSTER, "self") is not None)
        await at.volume("vol-00000001")
        await at.until(lambda: at.cache.view.count(kinds.VOLUME) == 1 and at.runtime.idle)
        assert not marker.looked
        await at.store.commit(Txn("peers").put(kinds.CLUSTER, "self", Cluster(name="blue", epoch=2)))
        await at.marked("vol-00000001")


async def test_again_after() -> None:
    marker = Marker(again_after_s=0.02)
    async with running(marker) as at:
        await at.volume("vol-00000001")
        await at.until(lambda: marker.looked.count("vol-00000001") >= 5)


async def test_a_keys_fault_does_not_end_the_runtime() -> None:
    class Confused(Marker):
        def keys(self, view: View, kind: AnyKind, id: str) -> Iterable[str]:
            if id == "vol-00000001":
                raise KeyError(id)
            return (id,)

    async with running(Confused()) as at:
        await at.volume("vol-00000001", "vol-00000002")
        await at.marked("vol-00000002")
        assert at.metric("cairn_reconcile_errors_total") == 1


async def test_two_runtimes_on_one_store_place_every_vm_within_capacity() -> None:
    """No sharding at all: both decide about everything, and conflict all the time."""
    cloud = Cloud()
    subnet = cloud.subnet("blue", cloud.vpc("v"))
    nodes = [cloud.node(f"n{i}", memory=4 * GIB) for i in range(3)]
    backend = MemoryBackend()
    store = MemoryStore(backend)
    for kind in (kinds.VPC, kinds.SUBNET, kinds.NODE, kinds.NODE_FACTS, kinds.NODE_SESSION):
        for id in list(cloud.view.ids(kind)):
            record: Any = cloud.view.get(kind, id)
            await store.commit(Txn(kind.writer).put(kind, id, record))
    tasks, caches = [], []
    for _ in range(2):
        client = MemoryStore(backend)
        cache = Cache(client)
        metrics = RuntimeMetrics(CollectorRegistry())
        reconcilers = [Ports(), Placements()]
        acts = Mutations(client, cache, SystemClock(), SystemIds(), "c1").acts
        runtime = Runtime(cache, client, Shards(), SystemClock(), SystemIds(), reconcilers, metrics, Leases(client), acts)
        tasks += [asyncio.create_task(cache.run()), asyncio.create_task(runtime.run())]
        caches.append(cache)
        await cache.ready.wait()
    for i in range(60):
        id = cloud.vm(f"vm{i}", memory=256 * MIB, subnet=subnet)
        txn = Txn("api").create(kinds.VM, id, cloud.edit(kinds.VM, id))
        for volume in cloud.view.by(kinds.VOLUME, "vm", id):
            txn.create(kinds.VOLUME, volume, cloud.edit(kinds.VOLUME, volume))
        for port in ports_of(cloud.view, kinds.VM, id):
            txn.create(kinds.PORT, port, cloud.edit(kinds.PORT, port))
        await store.commit(txn)
    view = caches[0].view
    async with asyncio.timeout(30):
        while view.count(kinds.PLACEMENT) < 60 or view.count(kinds.PORT_BINDING) < 60:
            await asyncio.sleep(0.01)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    placed = [placement for placement in view.all(kinds.PLACEMENT) if placement.node]
    # 8 CPUs of each node bind before its memory does.
    assert len(placed) == 24
    assert {node: len([each for each in placed if each.node == node]) for node in nodes} == dict.fromkeys(nodes, 8)
    assert all(claims.cpus == 8 for claims in view.all(kinds.NODE_CLAIMS))
    addresses = [binding.address for binding in view.all(kinds.PORT_BINDING)]
    assert len(set(addresses)) == 60


def test_writers_are_checked() -> None:
    marker = Marker()
    check_writers(marker, Txn("garbage").delete(kinds.PURGE, "x"))
    with pytest.raises(Unlawful, match="does not list volume"):
        check_writers(marker, Txn("garbage").delete(kinds.VOLUME, "x"))
    with pytest.raises(Unlawful, match="may not write"):
        check_writers(marker, Txn("placement").delete(kinds.PLACEMENT, "x"))
    smuggled = Txn("garbage").merge(Txn("ports").delete(kinds.ADDRESS, "x"))
    with pytest.raises(Unlawful, match="may not write"):
        check_writers(marker, smuggled)


def test_queue_keeps_a_key_once_and_backs_off() -> None:
    queue = Queue(SystemIds())
    for key in ("a", "b", "a"):
        queue.add(key)
    assert len(queue) == 2
    assert next(queue.take()) == "a"
    queue.put_back(["c", "d"])
    assert list(queue.take()) == ["c", "d", "b"]
    delays = []
    for _ in range(8):
        queue.back_off(100.0, "a")
        delays.append(queue.next_s() - 100.0)
        queue.promote(1e9)
        assert list(queue.take()) == ["a"]
    assert delays[0] <= 0.1
    assert 3 < delays[-1] <= 30
    queue.at(200.0, "a")
    queue.at(150.0, "a")
    queue.promote(160.0)
    assert list(queue.take()) == ["a"]
    queue.promote(300.0)
    assert not queue, "the earlier time counts, once"


def test_a_key_that_moved_to_another_controller_leaves_nothing_behind() -> None:
    queue = Queue(SystemIds())
    for _ in range(5):
        queue.back_off(100.0, "a")
    queue.forget("a")
    queue.promote(1e9)
    assert not queue
    queue.back_off(100.0, "a")
    assert queue.next_s() - 100.0 <= 0.1, "it begins anew"


def test_times_brought_forward_again_and_again_take_bounded_room() -> None:
    queue = Queue(SystemIds())
    for step in range(5000):
        queue.at(1e6 - step, f"k{step % 10}")
    assert len(queue._later) < 200
    queue.promote(1e6)
    assert sorted(queue.take()) == sorted(f"k{n}" for n in range(10))


def test_what_changed_never_waits_behind_a_scan_which_ends_all_the_same() -> None:
    queue = Queue(SystemIds())
    keys = [f"s{n}" for n in range(1000)]
    queue.scan(iter(keys))
    seen, waited = list[str](), list[int]()
    for step in range(1000):
        queue.add(f"c{step}")
        slices = 0
        taken = list[str]()
        while f"c{step}" not in taken:
            taken = list(queue.take())
            seen += taken
            slices += 1
            assert len(taken) <= SCAN_SLICE + 1
        waited.append(slices)
    assert max(waited) <= 2
    assert {key for key in seen if key.startswith("s")} == set(keys)
    assert not queue.scanning


class Hailing(Marker):
    """Tells when it is asked about anything."""

    asked: Callable[[], object] | None = None

    def reconcile(self, view: View, key: str, now: datetime) -> Outcome:
        if self.asked is not None:
            self.asked()
        return super().reconcile(view, key, now)


async def test_a_change_is_decided_though_a_scan_is_under_way() -> None:
    marker, count = Hailing(), 3000
    async with running(marker) as at:
        for first in range(0, count, 50):
            txn = Txn("garbage")
            for number in range(first, first + 50):
                txn.put(kinds.PURGE, f"vol-{number:08}", Purge())
                txn.merge(Txn("api").put(kinds.VOLUME, f"vol-{number:08}", Volume()))
            await at.cache.wait_for(await at.store.commit(txn))
        await at.until(lambda: at.runtime.idle)
        marker.looked.clear()
        made = list[asyncio.Task[None]]()

        def hail() -> None:
            if not made:
                made.append(asyncio.create_task(at.volume("vol-fresh")))

        marker.asked = hail
        # Whoever comes or goes: everything is looked at again.
        await at.store.commit(Txn("peers").put(kinds.CONTROLLER, "c2", ControllerSession(name="c2")))
        await at.marked("vol-fresh")
        await at.until(lambda: at.runtime.idle and len(set(marker.looked)) == count + 1)
        assert marker.looked.index("vol-fresh") < count, "it did not wait for the end of the scan"


def test_event_ids_sort_by_time() -> None:
    ids = SystemIds()
    first = event_id(datetime(2026, 1, 1, tzinfo=UTC), ids)
    second = event_id(datetime(2026, 1, 1, 0, 0, 0, 1000, tzinfo=UTC), ids)
    assert first < second
    assert len(first) == len("ev-") + 12
