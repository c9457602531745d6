"""The simulation's store under its faults: what a client may rely on holds all the same, and each fault is seen to strike."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine
from contextlib import aclosing
from functools import wraps
from itertools import pairwise
from typing import Any

import pytest
from cairn.controller.store.base import Batch, Compacted, Conflict, Indeterminate, LeaseLost, Put, StoreError, Txn, Unavailable

from tests.sim.loop import run
from tests.sim.store import SimBackend, SimStore, StoreFaults

Playing = Callable[..., Coroutine[Any, Any, None]]
FAULTS = {
    "delay_s": (0.0, 0.002),
    "slow_read_s": (0.0, 0.002),
    "slow_quorum_s": (0.0, 0.002),
    "watch_delay_s": (0.0, 0.002),
    "lost_answer": 0.1,
    "lost_request": 0.1,
    "late_commit": 0.1,
    "late_s": (0.0, 0.01),
    "unavailable": 0.1,
    "silent_watch": 0.1,
    "silent_s": (0.0, 0.02),
    "compacted_watch": 0.05,
    "progress_mark": 0.2,
    "member_loss": 0.02,
    "member_loss_s": (0.005, 0.02),
    "timeout_s": 0.001,
}
WRITERS, COMMITS = 3, 20


def virtual(test: Playing) -> Callable[..., None]:
    """Play a test on virtual time: how busy the machine is decides nothing."""

    @wraps(test)
    def played(*args: Any, **named: Any) -> None:
        run(0, lambda: test(*args, **named))

    return played


class World:
    """Writers that add to a counter of their own and to a shared one, as components do: on revisions, never blindly."""

    def __init__(self, seed: int) -> None:
        self.backend = SimBackend()
        self.batches: list[Batch] = []
        self.backend.observers.append(lambda batch, _txn: self.batches.append(batch))
        self.faults = StoreFaults(**FAULTS)  # type: ignore[arg-type]
        self.rng = random.Random(seed)
        # (key, value) of what each writer knows was written: acknowledged, or found when it looked again.
        self.known: list[tuple[str, bytes]] = []

    def store(self, name: str = "c") -> SimStore:
        return SimStore(self.backend, random.Random(self.rng.random()), self.faults, name=name)

    async def write(self, writer: int) -> None:
        """Write /w/<writer>/<n> for each n, once, and the shared /total with it."""
        store = self.store(f"c{writer}")
        for number in range(COMMITS):
            key, value = f"/w/{writer}/{number}", b"%d" % self.rng.randrange(1 << 40)
            while not await self._done(store, key):
                try:
                    items, _ = await store.read("/total")
                    total = int(items[0].value) if items else 0
                    checks = {"/total": items[0].mod_revision if items else 0, key: 0}
                    await store.commit(Txn("test", checks, {"/total": Put(b"%d" % (total + 1)), key: Put(value)}))
                    break
                except (Conflict, Indeterminate, Unavailable):
                    # Look again: what was not acknowledged may be there.
                    await asyncio.sleep(0.001)
            self.known.append((key, value))
        await store.close()

    async def _done(self, store: SimStore, key: str) -> bool:
        while True:
            try:
                return bool((await store.read(key, end=key + "\0"))[0])
            except Unavailable:
                await asyncio.sleep(0.001)

    async def watch(self, log: list[tuple[str, int]], seen: list[Batch]) -> None:
        """Follow as the cache does: list, watch, list again when compacted."""
        store = self.store("watcher")
        after = -1
        while True:
            try:
                if after < 0:
                    after = (await store.read("/"))[1]
                    log.append(("picture", after))
                async with aclosing(store.watch("/", after)) as batches:
                    async for batch in batches:
                        after = batch.revision
                        log.append(("batch", after))
                        seen.append(batch)
            except Compacted:
                after = -1
            except Unavailable:
                await asyncio.sleep(0.001)


def skipped(log: list[tuple[str, int]], committed: list[Batch]) -> list[str]:
    """What a watcher was not told: each batch must be the one after what it knew."""
    revisions = [batch.revision for batch in committed]
    wrong = []
    for (_, before), (what, now) in pairwise(log):
        following = next((revision for revision in revisions if revision > before), 0)
        if what == "batch" and now != following:
            wrong.append(f"after {before} came {now}, not {following}")
        if what == "picture" and now < before:
            wrong.append(f"after {before} a picture of {now}")
    return wrong


def test_skipped_can_tell() -> None:
    committed = [Batch(revision) for revision in (2, 3, 4)]
    assert not skipped([("picture", 1), ("batch", 2), ("picture", 3), ("batch", 4)], committed)
    assert skipped([("picture", 1), ("batch", 3)], committed)
    assert skipped([("batch", 2), ("batch", 2)], committed)


@pytest.mark.parametrize("seed", range(4))
@virtual
async def test_acknowledged_once_and_watched_in_order(seed: int) -> None:
    world = World(seed)
    seen: list[Batch] = []
    log: list[tuple[str, int]] = []
    watcher = asyncio.create_task(world.watch(log, seen))
    async with asyncio.timeout(30):
        await asyncio.gather(*map(world.write, range(WRITERS)))
        while not watcher.done() and (not log or log[-1][1] < world.batches[-1].revision):
            await asyncio.sleep(0.002)
    watcher.cancel()
    with pytest.raises(asyncio.CancelledError):
        await watcher
    items = {item.key: item for item in world.backend.scan("/", "", 0, 0)}
    written = [change.key for batch in world.batches for change in batch.changes]
    assert len(world.known) == WRITERS * COMMITS
    for key, value in world.known:
        assert written.count(key) == 1, "exactly once, however often its outcome was unknown"
        assert items[key].value == value, "what was acknowledged is what is there"
    assert int(items["/total"].value) == WRITERS * COMMITS
    committed = {batch.revision: batch for batch in world.batches}
    assert all(batch == committed[batch.revision] for batch in seen), "each batch whole"
    assert skipped(log, world.batches) == []
    assert world.faults.struck.keys() >= {"lost_answer", "lost_request", "late_commit", "unavailable"}, world.faults.struck


async def _one(faults: StoreFaults) -> tuple[SimBackend, SimStore]:
    backend = SimBackend()
    return backend, SimStore(backend, random.Random(1), faults)


PUT = Txn("test", puts={"/a": Put(b"1")})


@virtual
async def test_unacknowledged_commit_is_there() -> None:
    backend, store = await _one(StoreFaults(lost_answer=1, timeout_s=0))
    with pytest.raises(Indeterminate):
        await store.commit(PUT)
    assert backend.find("/a") is not None


@virtual
async def test_commit_that_never_arrived_looks_the_same() -> None:
    backend, store = await _one(StoreFaults(lost_request=1, timeout_s=0))
    with pytest.raises(Indeterminate):
        await store.commit(PUT)
    assert backend.find("/a") is None


@virtual
async def test_commit_arrives_after_nobody_knew() -> None:
    backend, store = await _one(StoreFaults(late_commit=1, late_s=(0.01, 0.01), timeout_s=0))
    with pytest.raises(Indeterminate):
        await store.commit(PUT)
    assert backend.find("/a") is None
    await asyncio.sleep(0.03)
    assert backend.find("/a") is not None


@virtual
async def test_late_commit_loses_against_one_that_checked_the_same() -> None:
    faults = StoreFaults(late_commit=1, late_s=(0.01, 0.01), timeout_s=0)
    backend, store = await _one(faults)
    with pytest.raises(Indeterminate):
        await store.commit(Txn("test", {"/a": 0}, {"/a": Put(b"late")}))
    faults.calm()
    await store.commit(Txn("test", {"/a": 0}, {"/a": Put(b"again")}))
    await asyncio.sleep(0.03)
    found = backend.find("/a")
    assert found is not None
    assert found.value == b"again"
    assert faults.struck == {"late_commit": 1}


@virtual
async def test_unavailable_means_nothing_was_written() -> None:
    backend, store = await _one(StoreFaults(unavailable=1))
    for call in (store.commit(PUT), store.read("/"), store.revision(), store.lease(5), store.compact(1)):
        with pytest.raises(Unavailable):
            await call
    assert backend.revision == 1


@virtual
async def test_a_lost_member_fails_every_call_until_mended() -> None:
    backend, store = await _one(StoreFaults(timeout_s=0))
    seen: list[Batch] = []

    async def follow() -> None:
        async with aclosing(store.watch("/", 1)) as batches:
            async for batch in batches:
                seen.append(batch)

    watcher = asyncio.create_task(follow())
    await asyncio.sleep(0.005)
    store.cut()
    for call in (store.commit(PUT), store.read("/"), store.revision()):
        with pytest.raises(Unavailable):
            await call
    backend.apply(PUT)
    await asyncio.sleep(0.005)
    assert not seen, "silent while lost"
    store.mend()
    await store.revision()
    await asyncio.sleep(0.005)
    assert [batch.revision for batch in seen] == [2]
    watcher.cancel()


@virtual
async def test_a_commit_under_way_when_the_member_goes_is_indeterminate() -> None:
    backend, store = await _one(StoreFaults(delay_s=(0.01, 0.01)))
    task = asyncio.create_task(store.commit(PUT))
    while backend.find("/a") is None:
        await asyncio.sleep(0.001)
    store.cut()
    with pytest.raises(Indeterminate):
        await task


@virtual
async def test_a_silent_watch_goes_on_where_it_was() -> None:
    backend, store = await _one(StoreFaults(silent_watch=1, silent_s=(0.02, 0.02)))
    async with aclosing(store.watch("/", 1)) as batches:
        first = asyncio.ensure_future(anext(batches))
        await asyncio.sleep(0.005)
        backend.apply(PUT)
        backend.apply(Txn("test", puts={"/b": Put(b"1")}))
        await asyncio.sleep(0.005)
        assert not first.done()
        assert [(await first).revision, (await anext(batches)).revision] == [2, 3]


@virtual
async def test_a_watch_behind_compaction_is_told() -> None:
    backend, store = await _one(StoreFaults(compacted_watch=1, silent_s=(0, 0)))
    backend.apply(PUT)
    with pytest.raises(Compacted) as caught:
        await anext(store.watch("/", 1))
    assert caught.value.revision == 2


@virtual
async def test_a_lease_can_end_while_its_holder_lives() -> None:
    backend, store = await _one(StoreFaults())
    lease = await store.lease(1)
    await store.commit(Txn("test", puts={"/a": Put(b"1", lease.id)}))
    store.expire_leases()
    assert backend.find("/a") is None, "gone for everyone"
    assert not lease.lost, "before its holder knows"
    with pytest.raises(LeaseLost):
        await store.commit(Txn("test", puts={"/b": Put(b"1", lease.id)}))
    async with asyncio.timeout(5):
        await lease.wait_lost()
    await lease.close()


@virtual
async def test_a_lease_ends_when_the_store_cannot_be_reached() -> None:
    backend, store = await _one(StoreFaults(timeout_s=0))
    lease = await store.lease(1)
    await store.commit(Txn("test", puts={"/a": Put(b"1", lease.id)}))
    store.cut()
    async with asyncio.timeout(5):
        await lease.wait_lost()
        while backend.find("/a") is not None:
            await asyncio.sleep(0.02)
    await lease.close()


@virtual
async def test_the_same_seed_strikes_the_same() -> None:
    told: list[list[str]] = []
    for _ in range(2):
        lines: list[str] = []
        faults = StoreFaults(lost_answer=0.2, lost_request=0.2, unavailable=0.2, timeout_s=0)
        store = SimStore(SimBackend(), random.Random(7), faults, name="c1", trace=lines.append)
        for _ in range(40):
            await asyncio.gather(store.commit(PUT), return_exceptions=True)
        told.append(lines)
    assert told[0] == told[1]
    assert {line.partition(": ")[2] for line in told[0]} == {"lost_answer", "lost_request", "unavailable"}


@virtual
async def test_errors_are_the_stores_own() -> None:
    store = World(0).store()
    for _ in range(100):
        for result in await asyncio.gather(store.commit(PUT), store.read("/"), return_exceptions=True):
            assert not isinstance(result, BaseException) or isinstance(result, StoreError), repr(result)
