"""The cache follows the store: its picture is the store's at one revision, and whoever asks is told what changed."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any

import pytest
from cairn.controller.store import cache as cache_module
from cairn.controller.store.base import Batch, Item, Put, Store, Txn, Unavailable
from cairn.controller.store.cache import Cache, Changes
from cairn.controller.store.memory import MemoryBackend, MemoryStore
from cairn.proto import kinds
from cairn.proto.v1.agent_pb2 import Observed
from cairn.proto.v1.vm_pb2 import Placement, Vm


@asynccontextmanager
async def running(store: Store) -> AsyncIterator[Cache]:
    cache = Cache(store)
    task = asyncio.create_task(cache.run())
    try:
        async with asyncio.timeout(10):
            await cache.ready.wait()
        yield cache
    finally:
        task.cancel()
        await asyncio.wait([task])


def place(vm: str, node: str) -> Txn:
    return Txn("placement").put(kinds.PLACEMENT, vm, Placement(vm=vm, node=node))


async def test_it_shows_what_is_there_and_what_comes() -> None:
    store = MemoryStore()
    first = await store.commit(place("i-1", "n1"))
    async with running(store) as cache:
        assert cache.view.revision == first
        assert cache.view.by(kinds.PLACEMENT, "node", "n1") == ["i-1"]
        moved = await store.commit(place("i-1", "n2"))
        await cache.wait_for(moved)
        record = cache.view.record(kinds.PLACEMENT, "i-1")
        assert record is not None
        assert (record.message.node, record.mod_revision, record.create_revision) == ("n2", moved, first)
        await cache.wait_for(await store.commit(Txn("placement").delete(kinds.PLACEMENT, "i-1")))
        assert cache.view.count(kinds.PLACEMENT) == 0


async def test_keys_that_are_not_ours_raise_the_revision_only() -> None:
    store = MemoryStore()
    foreign = Txn("test", puts={"/other": Put(b"x"), "/cairn/v1/nonsense/a": Put(b"x"), "/cairn/v1": Put(b"x")})
    await store.commit(foreign)
    async with running(store) as cache:
        revision = await store.commit(foreign)
        await cache.wait_for(revision)
        unreadable = Txn("test", puts={kinds.PLACEMENT.key("i-9"): Put(b"\xff\xff\xff")})
        await cache.wait_for(await store.commit(unreadable))
        assert cache.view.get(kinds.PLACEMENT, "i-9") is None
        await cache.wait_for(await store.commit(place("i-1", "n1")))
        assert list(cache.view.ids(kinds.PLACEMENT)) == ["i-1"]
    async with running(store) as fresh:
        assert list(fresh.view.ids(kinds.PLACEMENT)) == ["i-1"]


async def test_subscribers_are_told_once_and_find_it_in_the_view() -> None:
    store = MemoryStore()
    await store.commit(place("i-0", "n1"))
    async with running(store) as cache:
        with cache.subscribe() as changes:
            revisions = [await store.commit(place(f"i-{n}", "n1")) for n in range(1, 20)]
            seen = []
            async for change in changes:
                assert cache.view.revision >= change.revision
                seen.append(change)
                if change.revision == revisions[-1]:
                    break
        assert [change.revision for change in seen] == revisions
        assert [change.records for change in seen] == [((kinds.PLACEMENT, f"i-{n}"),) for n in range(1, 20)]


async def test_how_a_report_looked_before_is_told_once_however_often_it_changed() -> None:
    """What a guest had open that it has no more, nobody finds from the record there is."""
    store = MemoryStore()

    async def report(*volumes: str) -> int:
        observed = Observed(key="vm/i-1", node="n")
        observed.report.vm.open_volumes.extend(volumes)
        return await store.commit(Txn("sync").put(kinds.OBSERVED, "n/vm/i-1", observed))

    await report("vol-1")
    async with running(store) as cache:
        with cache.subscribe() as changes:
            await report("vol-2")
            await cache.wait_for(await report())
            first, last = await anext(changes), await anext(changes)
            told = first.merge(last).before[kinds.OBSERVED.key("n/vm/i-1")]
    assert isinstance(told, Observed)
    assert list(told.report.vm.open_volumes) == ["vol-1"]


async def test_a_subscriber_from_the_start_gets_the_first_picture() -> None:
    store = MemoryStore()
    await store.commit(place("i-1", "n1"))
    cache = Cache(store)
    with cache.subscribe() as changes:
        task = asyncio.create_task(cache.run())
        first = await anext(changes)
        task.cancel()
    assert first.relisted
    assert first.records == ((kinds.PLACEMENT, "i-1"),)


async def test_a_slow_subscriber_costs_a_bounded_queue_and_misses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_module, "QUEUE_MAX", 3)
    store = MemoryStore()
    async with running(store) as cache:
        with cache.subscribe() as changes:
            for number in range(50):
                await cache.wait_for(await store.commit(place(f"i-{number % 7}", f"n{number}")))
            changes.close()
            got: list[Changes] = [change async for change in changes]
    assert len(got) <= 3
    assert {id for change in got for _, id in change.records} == {f"i-{n}" for n in range(7)}
    assert got[-1].revision == cache.view.revision


class Faulty(MemoryStore):
    """Ends watches now and then; when told, only after history was compacted away."""

    def __init__(self, backend: MemoryBackend, rng: random.Random) -> None:
        super().__init__(backend)
        self._rng = rng
        self.relists = 0

    async def watch(self, prefix: str, after: int) -> AsyncGenerator[Batch, None]:
        async with aclosing(super().watch(prefix, after)) as batches:
            async for batch in batches:
                yield batch
                if self._rng.random() < 0.1:
                    for number in range(3):
                        self.backend.apply(place(f"i-{number}", f"behind {batch.revision}"))
                        self.backend.apply(Txn("placement").delete(kinds.PLACEMENT, f"i-{number + 3}"))
                    self.backend.compact(self.backend.revision)
                    self.relists += 1
                    raise Unavailable("on purpose")


@pytest.mark.parametrize("seed", range(5))
async def test_after_compaction_it_lists_again(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_module, "RETRY_S", 0.001)
    rng = random.Random(seed)
    backend = MemoryBackend()
    store, faulty = MemoryStore(backend), Faulty(backend, rng)
    async with running(faulty) as cache:
        told: dict[str, None] = {}
        with cache.subscribe() as changes:
            for number in range(100):
                txn = place(f"i-{rng.randint(0, 9)}", f"n{number}")
                if rng.random() < 0.3:
                    txn = Txn("placement").delete(kinds.PLACEMENT, f"i-{rng.randint(0, 9)}")
                await store.commit(txn)
            # What is behind a broken watch may come after the last of these.
            while cache.view.revision < (newest := await store.revision()):
                await cache.wait_for(newest)
            changes.close()
            async for change in changes:
                told.update(dict.fromkeys(id for _, id in change.records))
        items, revision = await store.read(kinds.ROOT)
        assert faulty.relists > 0
        assert cache.view.revision == revision
        shown = {id: _revisions(cache.view.record(kinds.PLACEMENT, id)) for id in cache.view.ids(kinds.PLACEMENT)}
        assert shown == {item.key.rpartition("/")[2]: (item.mod_revision, item.create_revision) for item in items}
        assert set(shown) <= set(told)


class Paged(MemoryStore):
    """Changes what is stored while it is being listed, page by page."""

    def __init__(self) -> None:
        super().__init__()
        self.tasks = 0

    async def read(self, prefix: str, **options: Any) -> tuple[list[Item], int]:
        items, revision = await super().read(prefix, **options)
        if items and self.tasks < 5:
            self.tasks += 1
            self.backend.apply(place(f"i-{self.tasks}", "moved while listing"))
            self.backend.apply(Txn("placement").delete(kinds.PLACEMENT, f"i-{self.tasks + 20}"))
        return items, revision


@pytest.mark.parametrize("compacted", [False, True])
async def test_a_list_in_pages_is_one_picture(monkeypatch: pytest.MonkeyPatch, *, compacted: bool) -> None:
    monkeypatch.setattr(cache_module, "PAGE", 7)
    monkeypatch.setattr(cache_module, "PAGE_MAX", 7)
    store = Paged()
    for number in range(60):
        await store.commit(place(f"i-{number}", "n1"))
    async with running(store) as cache:
        await cache.wait_for(await store.revision())
        assert store.tasks == 5
        if compacted:
            store.tasks = 0
            for number in range(60):
                store.backend.apply(place(f"i-{number}", "n2"))
            store.backend.compact(store.backend.revision)
            await cache.wait_for(await store.revision())
        items, _ = await store.read(kinds.ROOT)
        shown = {id: _revisions(cache.view.record(kinds.PLACEMENT, id)) for id in cache.view.ids(kinds.PLACEMENT)}
        assert shown == {item.key.rpartition("/")[2]: (item.mod_revision, item.create_revision) for item in items}


class Asked(MemoryStore):
    """Notes what is asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.pages: list[tuple[str, int, int]] = []

    async def read(self, prefix: str, **options: Any) -> tuple[list[Item], int]:
        items, revision = await super().read(prefix, **options)
        self.pages.append((prefix, options["limit"], sum(len(item.value) for item in items)))
        return items, revision


async def test_a_list_asks_for_ranges_etcd_can_walk_and_pages_bounded_in_bytes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """etcd walks the whole range for each page of it: over all kinds, a million records cannot be listed in time."""
    monkeypatch.setattr(cache_module, "PAGE", 10)
    monkeypatch.setattr(cache_module, "PAGE_BYTES", 50_000)
    store = Asked()
    for number in range(200):
        await store.commit(place(f"i-{number:03}", "n1"))
        await store.commit(Txn("api").put(kinds.VM, f"i-{number:03}", Vm(name="x" * 5000)))
    async with running(store) as cache:
        assert (cache.view.count(kinds.VM), cache.view.count(kinds.PLACEMENT)) == (200, 200)
    assert {prefix for prefix, _, _ in store.pages} == {kind.prefix for kind in kinds.ALL if kind.cached}
    small = [limit for prefix, limit, _ in store.pages if prefix == kinds.PLACEMENT.prefix]
    large = [size for prefix, _, size in store.pages if prefix == kinds.VM.prefix]
    assert len(small) == 2, "few pages of small records"
    assert max(large) <= 55_000


async def test_a_later_list_shows_nothing_before_it_is_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """No decision may be made on a picture of two revisions."""
    monkeypatch.setattr(cache_module, "PAGE", 5)
    monkeypatch.setattr(cache_module, "PAGE_MAX", 5)
    store = MemoryStore()
    for number in range(40):
        await store.commit(place(f"i-{number}", "n1"))
    async with running(store) as cache:
        await cache.wait_for(await store.revision())
        for number in range(40):
            store.backend.apply(place(f"i-{number}", "n2"))
        store.backend.compact(store.backend.revision)
        seen: set[int] = set()
        while cache.view.revision < store.backend.revision:
            seen.add(len(cache.view.by(kinds.PLACEMENT, "node", "n1")))
            await asyncio.sleep(0)
        assert seen == {40}
        assert cache.view.by(kinds.PLACEMENT, "node", "n1") == []


def _revisions(record: Any) -> tuple[int, int]:
    return record.mod_revision, record.create_revision


async def test_waiting_for_revisions_in_any_order() -> None:
    store = MemoryStore()
    async with running(store) as cache:
        start = cache.view.revision
        waits = {n: asyncio.create_task(cache.wait_for(start + n)) for n in (3, 1, 2, 4)}
        for number in range(3):
            await store.commit(Txn("api").put(kinds.VM, f"i-{number}", Vm()))
        await asyncio.gather(waits[1], waits[2], waits[3])
        assert cache.view.revision == start + 3
        assert not waits[4].done()
        waits[4].cancel()
        await asyncio.wait([waits[4]])
        await cache.wait_for(await store.commit(Txn("api").put(kinds.VM, "i-9", Vm())))


class Silent(MemoryStore):
    """A store whose watch brings nothing while told so."""

    def __init__(self, backend: MemoryBackend) -> None:
        super().__init__(backend)
        self.speaks = asyncio.Event()
        self.speaks.set()

    async def watch(self, prefix: str, after: int) -> AsyncGenerator[Batch, None]:
        async with aclosing(super().watch(prefix, after)) as batches:
            async for batch in batches:
                await self.speaks.wait()
                yield batch


async def test_a_commit_of_ours_is_shown_before_the_watch_brings_it() -> None:
    backend = MemoryBackend()
    store, other = Silent(backend), MemoryStore(backend)
    first = await store.commit(place("i-1", "n1"))
    async with running(store) as cache:
        await cache.wait_for(await store.commit(place("i-2", "n1")))
        with cache.subscribe() as changes:
            store.speaks.clear()
            txn = place("i-1", "n2").put(kinds.PLACEMENT, "i-3", Placement(node="n3")).delete(kinds.PLACEMENT, "i-2")
            ours = await store.commit(txn)
            cache.committed(txn, ours)
            record = cache.view.record(kinds.PLACEMENT, "i-1")
            assert record is not None
            assert (record.message.node, record.mod_revision, record.create_revision) == ("n2", ours, first)
            assert (await anext(changes)).revision == ours
            # Somebody's commit comes between: ours is not the next, and nothing is shown before it.
            theirs = await other.commit(place("i-4", "n4"))
            later = place("i-5", "n5")
            revision = await store.commit(later)
            cache.committed(later, revision)
            assert cache.view.revision == ours
            # One that changed nothing has somebody else's revision.
            nothing = Txn("placement").delete(kinds.PLACEMENT, "i-9")
            assert await store.commit(nothing) == revision
            cache.committed(nothing, theirs)
            assert cache.view.revision == ours
            store.speaks.set()
            await cache.wait_for(revision)
            told = [await anext(changes), await anext(changes)]
            assert [each.revision for each in told] == [theirs, revision], "ours is not told twice"
            assert sorted(cache.view.ids(kinds.PLACEMENT)) == ["i-1", "i-3", "i-4", "i-5"]


async def test_who_asks_about_some_kinds_is_told_of_those() -> None:
    store = MemoryStore()
    async with running(store) as cache:
        with cache.subscribe((kinds.PLACEMENT,)) as changes:
            await store.commit(Txn("api").put(kinds.VM, "i-1", Vm(id="i-1")))
            both = Txn("api").put(kinds.VM, "i-2", Vm(id="i-2")).merge(place("i-2", "n1"))
            revision = await store.commit(both)
            await cache.wait_for(revision)
            told = await anext(changes)
            assert (told.revision, set(told.records)) == (revision, {(kinds.VM, "i-2"), (kinds.PLACEMENT, "i-2")})
            assert changes.take() is None
