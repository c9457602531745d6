"""The store's contract (controller/store/base.py), on memory, on the simulation's store, and on a real three-member etcd."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from cairn.controller.store.base import (
    STORE_OPERATIONS_MAX,
    TXN_BYTES_MAX,
    Batch,
    Change,
    Compacted,
    Conflict,
    LeaseLost,
    Unavailable,
)

from tests.conformance.store_kit import (
    Bench,
    etcd_bench,
    eventually,
    make_cluster,
    memory_bench,
    needs_etcd,
    raw,
    simulated_bench,
    watching,
)
from tests.lab.etcd import Cluster


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    yield from make_cluster(tmp_path_factory)


@pytest.fixture(params=["memory", "simulated", pytest.param("etcd", marks=[needs_etcd, pytest.mark.etcd])])
async def bench(request: pytest.FixtureRequest) -> AsyncIterator[Bench]:
    if request.param == "etcd":
        bench = etcd_bench(request.getfixturevalue("cluster"))
    else:
        bench = memory_bench() if request.param == "memory" else simulated_bench()
    yield bench
    await bench.close()


@pytest.fixture
async def store(bench: Bench) -> Any:
    return bench.client()


@pytest.fixture
def p(bench: Bench) -> str:
    return bench.prefix


# --- commit and read -----------------------------------------------------------------------------------------------------


async def test_a_commit_raises_the_revision_by_one_and_is_read_back(store: Any, p: str) -> None:
    before = await store.revision()
    first = await store.commit(raw({p + "a": b"1", p + "b": b""}))
    second = await store.commit(raw({p + "a": b"2"}))
    assert (first, second) == (before + 1, before + 2)
    items, revision = await store.read(p)
    assert revision == second == await store.revision()
    found = [(item.key, item.value, item.mod_revision, item.create_revision, item.lease) for item in items]
    assert found == [(p + "a", b"2", second, first, 0), (p + "b", b"", first, first, 0)]


async def test_every_client_reads_what_another_committed(bench: Bench, store: Any, p: str) -> None:
    other = bench.client()
    for number in range(20):
        revision = await store.commit(raw({p + "a": b"%d" % number}))
        items, seen = await other.read(p)
        assert (items[0].value, seen) == (b"%d" % number, revision)


async def test_delete_forgets_and_a_new_life_starts_over(store: Any, p: str) -> None:
    first = await store.commit(raw({p + "a": b"1"}))
    await store.commit(raw(deletes={p + "a"}))
    assert (await store.read(p))[0] == []
    again = await store.commit(raw({p + "a": b"2"}, checks={p + "a": 0}))
    (item,) = (await store.read(p))[0]
    assert item.create_revision == again > first


async def test_a_transaction_that_changes_nothing_leaves_the_revision(store: Any, p: str) -> None:
    revision = await store.commit(raw({p + "a": b"1"}))
    assert await store.commit(raw(deletes={p + "absent"})) == revision
    assert await store.commit(raw(checks={p + "a": revision})) == revision
    assert await store.revision() == revision


async def test_conflict_names_the_keys_that_moved_and_writes_nothing(store: Any, p: str) -> None:
    a = await store.commit(raw({p + "a": b"1"}))
    b = await store.commit(raw({p + "b": b"1"}))
    moved = await store.commit(raw({p + "b": b"2"}))
    with pytest.raises(Conflict) as caught:
        await store.commit(raw({p + "c": b"1"}, deletes={p + "a"}, checks={p + "a": a, p + "b": b, p + "d": 0, p + "e": 7}))
    assert sorted(caught.value.keys) == [p + "b", p + "e"]
    assert await store.revision() == moved
    assert [item.key for item in (await store.read(p))[0]] == [p + "a", p + "b"]


async def test_of_many_who_create_a_key_one_wins(bench: Bench, p: str) -> None:
    clients = [bench.client() for _ in range(3)]
    attempts = [clients[n % 3].commit(raw({p + "a": b"%d" % n}, checks={p + "a": 0})) for n in range(30)]
    results = await asyncio.gather(*attempts, return_exceptions=True)
    won = [n for n, result in enumerate(results) if isinstance(result, int)]
    assert len(won) == 1
    assert all(isinstance(result, Conflict) for n, result in enumerate(results) if n not in won)
    assert (await clients[0].read(p))[0][0].value == b"%d" % won[0]


async def test_limits(store: Any, p: str) -> None:
    most = {f"{p}{n:03}": b"x" for n in range(STORE_OPERATIONS_MAX)}
    await store.commit(raw(most, checks=dict.fromkeys(most, 0)))
    with pytest.raises(Conflict) as caught:
        await store.commit(raw({}, checks=dict.fromkeys(most, 0)))
    assert len(caught.value.keys) == STORE_OPERATIONS_MAX
    before = await store.revision()
    for refused in (
        raw({**most, p + "more": b"x"}),
        raw(checks=dict.fromkeys([*most, p + "more"], 0)),
        raw({p + "big": bytes(TXN_BYTES_MAX + 1)}),
        raw({p + "a": b"x"}, deletes={p + "a"}),
    ):
        with pytest.raises(ValueError, match=r"transaction|both"):
            await store.commit(refused)
    assert await store.revision() == before
    await store.commit(raw({p + "big": bytes(TXN_BYTES_MAX - 100)}))


async def test_read_cuts_by_prefix_start_end_and_limit(store: Any, p: str) -> None:
    for key in ("a/1", "a/2", "a/3", "a0", "b"):
        await store.commit(raw({p + key: key.encode()}))

    async def keys(prefix: str, **cut: Any) -> list[str]:
        items, _ = await store.read(p + prefix, **cut)
        return [item.key.removeprefix(p) for item in items]

    assert await keys("") == ["a/1", "a/2", "a/3", "a0", "b"]
    assert await keys("a/") == ["a/1", "a/2", "a/3"]
    assert await keys("a/", start=p + "a/2") == ["a/2", "a/3"]
    assert await keys("a/", start=p + "a/2", end=p + "a/3") == ["a/2"]
    assert await keys("a/", end=p + "z") == ["a/1", "a/2", "a/3"]
    assert await keys("a/", limit=2) == ["a/1", "a/2"]
    assert await keys("a/", start=p + "b") == []
    assert await keys("b", start=p + "a/2") == ["b"]
    assert await keys("zz") == []


async def test_read_of_many_is_complete_and_of_one_revision(bench: Bench, store: Any, p: str) -> None:
    total = 2500
    for first in range(0, total, 125):
        await store.commit(raw({f"{p}{n:05}": b"old" for n in range(first, first + 125)}))
    picture = await store.revision()
    stop = asyncio.Event()

    async def disturb() -> None:
        other = bench.client()
        while not stop.is_set():
            await other.commit(raw({f"{p}{total - 1:05}": b"new", f"{p}99999": b"new"}))

    task = asyncio.create_task(disturb())
    await eventually("the other writer to begin", lambda: _later(store, picture))
    pinned, revision = await store.read(p, revision=picture)
    newest, newer = await store.read(p)
    limited, _ = await store.read(p, limit=1500, revision=picture)
    stop.set()
    await task
    assert revision == picture
    assert [item.key for item in pinned] == [f"{p}{n:05}" for n in range(total)]
    assert {item.value for item in pinned} == {b"old"}
    assert len(newest) == total + 1
    assert newest[-1].mod_revision == newest[-2].mod_revision <= newer
    assert limited == pinned[:1500]


async def _later(store: Any, revision: int) -> bool:
    return bool(await store.revision() > revision)


# --- history -------------------------------------------------------------------------------------------------------------


async def test_old_revisions_can_be_read(store: Any, p: str) -> None:
    first = await store.commit(raw({p + "a": b"1"}))
    second = await store.commit(raw({p + "a": b"2", p + "b": b"2"}))
    third = await store.commit(raw(deletes={p + "a"}))
    pictures = {
        revision: {i.key: i.value for i in (await store.read(p, revision=revision))[0]} for revision in (first, second, third)
    }
    assert pictures[first] == {p + "a": b"1"}
    assert pictures[second] == {p + "a": b"2", p + "b": b"2"}
    assert pictures[third] == {p + "b": b"2"}
    assert (await store.read(p, revision=first - 1))[0] == []
    with pytest.raises(ValueError, match="future"):
        await store.read(p, revision=third + 1000)


async def test_compaction_forgets_what_was_before(store: Any, p: str) -> None:
    first = await store.commit(raw({p + "a": b"1", p + "gone": b"1"}))
    second = await store.commit(raw({p + "a": b"2"}, deletes={p + "gone"}))
    third = await store.commit(raw({p + "a": b"3"}))
    await store.compact(second)
    await store.compact(second)
    await store.compact(first)
    with pytest.raises(Compacted) as caught:
        await store.read(p, revision=first)
    assert caught.value.revision == second
    assert [item.value for item in (await store.read(p, revision=second))[0]] == [b"2"]
    with pytest.raises(Compacted) as caught:
        await anext(store.watch(p, first))
    assert caught.value.revision == second
    assert await anext(store.watch(p, second)) == Batch(third, (Change(p + "a", b"3", first),))
    with pytest.raises(ValueError, match="future"):
        await store.compact(third + 1000)
    assert [item.value for item in (await store.read(p))[0]] == [b"3"]


# --- watch ---------------------------------------------------------------------------------------------------------------


async def test_watch_yields_each_revision_once_whole_and_in_order(bench: Bench, store: Any, p: str) -> None:
    start = await store.revision()
    async with watching(bench.client(), p, start) as watcher:
        revisions: dict[int, set[str]] = {}

        async def write(writer: int) -> None:
            for number in range(25):
                keys = {f"{p}{writer}/{number}", f"{p}{writer}/last"}
                revisions[await store.commit(raw(dict.fromkeys(keys, b"x")))] = keys

        await asyncio.gather(*map(write, range(8)))
        batches = await watcher.until(max(revisions))
    assert [batch.revision for batch in batches] == sorted(revisions)
    assert all({change.key for change in batch.changes} == revisions[batch.revision] for batch in batches)
    assert all(len(batch.changes) == 2 for batch in batches)
    for cut in (start, batches[70].revision, batches[-2].revision):
        async with watching(bench.client(), p, cut) as watcher:
            again = await watcher.until(max(revisions))
        assert again == [batch for batch in batches if batch.revision > cut]


async def test_watch_tells_what_changed(store: Any, p: str) -> None:
    start = await store.revision()
    first = await store.commit(raw({p + "a": b"1", p + "b": b"1"}))
    await store.commit(raw({"/elsewhere" + p: b"1"}))
    third = await store.commit(raw({p + "a": b"2"}, deletes={p + "b"}))
    async with watching(store, p, start) as watcher:
        batches = await watcher.until(third)
    assert [batch.revision for batch in batches] == [first, third]
    assert set(batches[0].changes) == {Change(p + "a", b"1", first), Change(p + "b", b"1", first)}
    assert set(batches[1].changes) == {Change(p + "a", b"2", first), Change(p + "b", None)}
    everything = store.watch("", start)
    assert [(await anext(everything)).revision for _ in range(3)] == [first, first + 1, third]
    await everything.aclose()


async def test_large_revisions_arrive_whole(store: Any, p: str) -> None:
    start = await store.revision()
    keys = [f"{p}{n:03}" for n in range(STORE_OPERATIONS_MAX)]
    size = TXN_BYTES_MAX // STORE_OPERATIONS_MAX - 100
    last = 0
    for fill in b"abc":
        last = await store.commit(raw({key: bytes([fill]) * size for key in keys}))
    async with watching(store, p, start) as watcher:
        batches = await watcher.until(last)
    assert [batch.revision for batch in batches] == [start + 1, start + 2, start + 3]
    for batch, fill in zip(batches, b"abc", strict=True):
        assert sorted(change.key for change in batch.changes) == keys
        assert {change.value for change in batch.changes} == {bytes([fill]) * size}


# --- leases --------------------------------------------------------------------------------------------------------------


async def test_revoking_a_lease_removes_its_keys_in_one_revision(bench: Bench, store: Any, p: str) -> None:
    lease = await store.lease(60)
    await store.commit(raw({p + "a": b"1", p + "b": b"1"}, lease=lease.id))
    await store.commit(raw({p + "c": b"1"}))
    freed = await store.commit(raw({p + "b": b"2"}))
    assert [item.lease for item in (await store.read(p))[0]] == [lease.id, 0, 0]
    await store.commit(raw({p + "d": b"1"}, lease=lease.id))
    async with watching(bench.client(), p, freed) as watcher:
        await lease.close()
        batches = await watcher.until(freed + 2)
    assert {change.key: change.value for change in batches[-1].changes} == {p + "a": None, p + "d": None}
    assert [item.key for item in (await store.read(p))[0]] == [p + "b", p + "c"]


async def test_a_lease_is_kept_while_its_client_lives_and_runs_out_after(bench: Bench, store: Any, p: str) -> None:
    owner, ttl_s = bench.client(), 2
    kept, abandoned = await store.lease(ttl_s), await owner.lease(ttl_s)
    await store.commit(raw({p + "kept": b"1"}, lease=kept.id))
    await store.commit(raw({p + "left": b"1"}, lease=abandoned.id))
    await owner.close()
    await eventually("the abandoned key to vanish", lambda: _is(store, p, [p + "kept"]))
    assert not kept.lost
    released = await store.lease(ttl_s)
    await store.commit(raw({p + "released": b"1"}, lease=released.id))
    await released.close(revoke=False)
    assert len((await store.read(p))[0]) == 2
    await eventually("the released key to vanish", lambda: _is(store, p, [p + "kept"]))
    assert not kept.lost
    await kept.close()
    assert (await store.read(p))[0] == []


async def _is(store: Any, prefix: str, keys: list[str]) -> bool:
    return [item.key for item in (await store.read(prefix))[0]] == keys


async def test_a_lease_taken_away_is_noticed(bench: Bench, store: Any, p: str) -> None:
    lease = await store.lease(2)
    await store.commit(raw({p + "a": b"1"}, lease=lease.id))
    await bench.revoke(lease.id)
    async with asyncio.timeout(10):
        await lease.wait_lost()
    assert lease.lost
    before = await store.revision()
    with pytest.raises(LeaseLost):
        await store.commit(raw({p + "b": b"1", p + "c": b"1"}, lease=lease.id))
    assert await store.revision() == before
    await lease.close()


# --- the rest ------------------------------------------------------------------------------------------------------------


async def test_members_are_told(store: Any) -> None:
    members = await store.members()
    assert all(member.healthy and member.version for member in members)
    assert [member.leader for member in members].count(True) == 1


async def test_a_closed_client_refuses(bench: Bench, p: str) -> None:
    store = bench.client()
    revision = await store.commit(raw({p + "a": b"1"}))
    async with watching(store, p, revision) as watcher:
        await eventually("the watch to run", lambda: _yes())
        await store.close()
        with pytest.raises(Unavailable):
            await watcher.until(revision + 1)
    for call in (store.read(p), store.revision(), store.commit(raw({p + "b": b"1"})), store.lease(5)):
        with pytest.raises(Unavailable):
            await call


async def _yes() -> bool:
    await asyncio.sleep(0)
    return True


@needs_etcd
@pytest.mark.etcd
@pytest.mark.parametrize("seed", range(3))
async def test_memory_answers_as_etcd_does(cluster: Cluster, seed: int) -> None:
    """The same random transactions on both: the same outcomes, histories and watches."""
    benches = [memory_bench(), etcd_bench(cluster)]
    stores = [bench.client() for bench in benches]
    prefix = benches[1].prefix
    zero = [await store.revision() for store in stores]
    rng = random.Random(seed)
    keys = [f"{prefix}{n}" for n in range(6)]
    revisions = [0] * 6
    for step in range(120):
        chosen = rng.sample(keys, 4)
        # Revisions relative to the start; now and then a stale one.
        stale = rng.random() < 0.3
        checked = {key: max(0, revisions[keys.index(key)] - stale) for key in chosen[:2]}
        puts, deletes = {chosen[2]: b"%d" % step}, {chosen[3]} if rng.random() < 0.5 else set()
        outcomes = []
        for store, base in zip(stores, zero, strict=True):
            checks = {key: at + base if at else 0 for key, at in checked.items()}
            try:
                outcomes.append(await store.commit(raw(puts, checks=checks, deletes=deletes)) - base)
            except Conflict as error:
                outcomes.append(sorted(error.keys))
        assert outcomes[0] == outcomes[1]
        if isinstance(outcomes[0], int):
            revisions[keys.index(chosen[2])] = outcomes[0]
            for key in deletes:
                revisions[keys.index(key)] = 0
    last = max(revisions)
    middle = last // 2
    for at in (middle, last):
        pictures = [(await s.read(prefix, revision=z + at))[0] for s, z in zip(stores, zero, strict=True)]
        shown = [[(i.key, i.value, i.mod_revision - z) for i in pic] for pic, z in zip(pictures, zero, strict=True)]
        assert shown[0] == shown[1]
    histories = []
    for store, base in zip(stores, zero, strict=True):
        async with watching(store, prefix, base) as watcher:
            batches = await watcher.until(base + last)
        histories.append([(b.revision - base, {(c.key, c.value) for c in b.changes}) for b in batches])
    assert histories[0] == histories[1]
    for bench in benches:
        await bench.close()
