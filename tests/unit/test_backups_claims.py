"""Two at once on one volume, one that was taken for dead and goes on, a slow store and a dead one. On virtual time."""

from __future__ import annotations

import asyncio
import tracemalloc
from collections.abc import Awaitable
from dataclasses import dataclass, field, replace

import pytest
from cairn.proto.seams import SystemIds
from cairn.storage.backups.claims import BEAT_S, SILENCE_S, Busy, Lost, claimed
from cairn.storage.backups.fake import FakeStore
from cairn.storage.backups.layout import Extent
from cairn.storage.backups.manifest import MANIFEST_BYTES_MAX
from cairn.storage.backups.patience import TRIES
from cairn.storage.backups.removal import remove, sweep
from cairn.storage.backups.repository import Repository, create
from cairn.storage.backups.restoring import restore
from cairn.storage.backups.store import ANSWER_S, StoreError
from cairn.storage.backups.writing import Made, Wanted, back_up
from cairn.storage.base import StorageError

from tests.conformance.backup_kit import CLUSTER, KIB, MIB, PART, START, VOLUME, Disk, Series, Volume, facts, sound
from tests.sim.loop import run


@dataclass
class Node(FakeStore):
    """One node's way to a store that others use, too; stopped, none of its calls goes on."""

    goes: asyncio.Event = field(default_factory=asyncio.Event)
    stops_at: str = ""

    def __post_init__(self) -> None:
        self.goes.set()

    async def put(self, name: str, content: bytes) -> None:
        if self.stops_at and self.stops_at in name and name.startswith("volumes/"):
            self.goes.clear()
        await self.goes.wait()
        await super().put(name, content)


async def write(store: FakeStore, id: str, token: str, disk: Disk, parent: str = "") -> Made:
    repository = await create(store, SystemIds())
    return await back_up(repository, Wanted(id, facts(disk.size), START, parent=parent), disk, token, part_bytes=PART)


async def passes(seconds: float) -> None:
    """Let so much of the loop's own time pass, which here is virtual."""
    loop = asyncio.get_running_loop()
    end = loop.time() + seconds
    while loop.time() < end:
        await asyncio.sleep(end - loop.time())


def disk_of(byte: bytes, size: int = MIB) -> Disk:
    disk = Disk.of(size)
    disk.write(0, byte * size)
    return disk


async def outcome(work: Awaitable[object]) -> object:
    try:
        return await work
    except StorageError as error:
        return error


async def restored(repository: Repository, index: int = 0) -> bytes:
    catalogue = await repository.catalogue()
    backup = catalogue.backups[index]
    target = Volume.of(backup.manifest.volume.size_bytes)
    await restore(repository, catalogue, backup, target)
    return bytes(target.content)


@pytest.mark.parametrize("seed", range(30))
def test_of_two_that_begin_at_once_at_most_one_goes_on(seed: int) -> None:
    async def scenario() -> None:
        objects: dict[str, bytes] = {}
        stores = [FakeStore(objects=objects, bytes_s=MIB / 60) for _ in range(2)]
        await create(FakeStore(objects=objects), SystemIds())
        works = [write(store, f"bak-{n}", f"n{n}", disk_of(b"%d" % n)) for n, store in enumerate(stores)]
        said = await asyncio.gather(*(outcome(work) for work in works))
        assert sum(isinstance(each, Made) for each in said) <= 1
        for each in said:
            assert isinstance(each, Made) or (
                isinstance(each, Busy) and each.retryable and "another is backing up" in str(each)
            )
        for number, store in enumerate(stores):
            store.bytes_s = 0
            await write(store, f"bak-{number}", f"n{number}", disk_of(b"%d" % number))
        repository = await create(stores[0], SystemIds())
        assert (await sound(repository)).backups == 2
        assert not [name for name in objects if name.startswith("claims/")]

    run(seed, scenario)


def test_a_dead_ones_claim_is_waited_for_and_taken_by_the_watchers_own_clock() -> None:
    async def scenario() -> None:
        objects: dict[str, bytes] = {f"claims/{VOLUME}/dead": b'{"what": "backing up vol-00000001 as bak-9", "beat": 7}'}
        loop = asyncio.get_running_loop()
        began = loop.time()
        await write(FakeStore(objects=objects), "bak-1", "n1", disk_of(b"1"))
        assert SILENCE_S <= loop.time() - began <= SILENCE_S + 3 * BEAT_S
        assert not [name for name in objects if name.startswith("claims/")]

    run(1, scenario)


def test_the_same_one_started_again_takes_over_at_once() -> None:
    async def scenario() -> None:
        objects: dict[str, bytes] = {f"claims/{VOLUME}/n1": b"{}"}
        loop = asyncio.get_running_loop()
        began = loop.time()
        await write(FakeStore(objects=objects), "bak-1", "n1", disk_of(b"1"))
        assert loop.time() - began < 1

    run(1, scenario)


@pytest.mark.parametrize("stops_at", [".qcow2.000002", ".parts", ".json"])
@pytest.mark.parametrize("seed", range(5))
def test_one_that_was_taken_for_dead_and_goes_on_harms_nobody(stops_at: str, seed: int) -> None:
    """It stood still for longer than anybody waits; another made the same backup of other bytes; then it goes on."""

    async def scenario() -> None:
        objects: dict[str, bytes] = {}
        stopped, other = Node(objects=objects, stops_at=stops_at), FakeStore(objects=objects)
        first = asyncio.create_task(outcome(write(stopped, "bak-1", "n1", disk_of(b"1"))))
        await passes(1)
        assert not stopped.goes.is_set()
        await write(other, "bak-1", "n2", disk_of(b"2"))
        repository = await create(other, SystemIds())
        await sweep(repository, "n2")
        stopped.goes.set()
        stopped.stops_at = ""
        said = await first
        assert isinstance(said, Lost), said
        assert said.retryable
        await sound(repository)
        (left,) = (await repository.catalogue()).backups
        assert await restored(repository) == b"2" * MIB, left
        await sweep(repository, "n2")
        await sound(repository)
        assert await restored(repository) == b"2" * MIB

    run(seed, scenario)


def test_one_that_cannot_show_that_it_lives_stops_by_itself() -> None:
    async def scenario() -> None:
        node = Node()
        repository = await create(node, SystemIds())
        async with claimed(repository.store, VOLUME, "n1", "testing") as claim:
            claim.check()
            node.goes.clear()
            await passes(SILENCE_S / 2 + BEAT_S)
            with pytest.raises(Lost, match=r"stopped testing: .* took no sign of life for"):
                claim.check()
            node.goes.set()

    run(1, scenario)


def test_sweeping_leaves_alone_what_somebody_writes() -> None:
    async def scenario() -> None:
        objects: dict[str, bytes] = {}
        slow = FakeStore(objects=objects, bytes_s=MIB / 600)
        writing = asyncio.create_task(write(slow, "bak-1", "n1", disk_of(b"1")))
        await passes(200)
        assert any(".qcow2." in name for name in objects)
        repository = await create(FakeStore(objects=objects), SystemIds())
        for _ in range(3):
            assert (await sweep(repository, "n2")).busy == [VOLUME]
        await writing
        await sound(repository)
        assert await restored(repository) == b"1" * MIB

    run(1, scenario)


@dataclass
class Forgetful(FakeStore):
    """Keeps no parts, so that memory is what writing takes."""

    async def put(self, name: str, content: bytes) -> None:
        await super().put(name, content if len(content) <= MANIFEST_BYTES_MAX else b"")


@dataclass
class Pattern:
    """A source that holds nothing."""

    size: int

    async def extents(self) -> list[Extent]:
        return [Extent(0, self.size)]

    async def read(self, offset: int, length: int) -> bytes:
        return bytes([offset >> 20 & 0xFF]) * length


def test_a_slow_store_costs_neither_memory_nor_calls() -> None:
    part, size = 2 * MIB, 96 * MIB

    async def scenario() -> None:
        store = Forgetful(bytes_s=2 * MIB)
        repository = await create(store, SystemIds())
        source = Pattern(size)
        tracemalloc.start()
        made = await back_up(repository, Wanted("bak-1", facts(size), START), source, "n1", part_bytes=part)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert made.sent_parts == -(-made.backup.manifest.file_bytes // part)
        assert store.calls_max <= repository.store.at_once + 1, "its parts, and its claim"
        assert peak < (2 * repository.store.at_once + 1) * part, f"{peak / MIB:.1f} MiB for parts of {part // MIB} MiB"

    run(1, scenario)


@pytest.mark.parametrize("after", [0, 100_000, 700_000])
def test_a_store_that_dies_ends_everything_in_bounded_time(after: int) -> None:
    async def scenario() -> None:
        store = FakeStore()
        series = Series(await create(store, SystemIds()), disk_of(b"1"))
        await series.take()
        loop = asyncio.get_running_loop()
        dead = FakeStore(objects=store.objects, dies_after_bytes=after)
        works = (
            lambda: write(dead, "bak-2", "n1", disk_of(b"2", 2 * MIB)),
            lambda: replace_store(series, dead).check("bak-0001"),
            lambda: remove(replace_store(series, dead).repository, VOLUME, ["bak-0001"], "n1"),
            lambda: sweep(replace_store(series, dead).repository, "n1"),
        )
        for work in works:
            dead.put_bytes = dead.got_bytes = 0
            dead.is_dead = False
            began = loop.time()
            said = await outcome(work())
            if not dead.is_dead:
                continue
            assert isinstance(said, StorageError), said
            assert said.retryable
            assert loop.time() - began < 6 * TRIES * ANSWER_S

    run(1, scenario)


def replace_store(series: Series, store: FakeStore) -> Series:
    return replace(series, repository=Repository(replace(series.repository.store, inner=store), series.repository.id))


def test_puts_whose_answer_is_lost_and_that_come_late_change_nothing() -> None:
    async def scenario() -> None:
        store = FakeStore(late_s=300)
        series = Series(await create(store, SystemIds()), disk_of(b"1"))
        store.late_puts = 3
        await series.take()
        await passes(1000)
        await series.check("bak-0001")
        await sweep(series.repository, "n2")
        await sound(series.repository)
        await series.check("bak-0001")

    run(1, scenario)


def test_a_full_store_is_told_and_nothing_is_left_undeletable() -> None:
    async def scenario() -> None:
        store = FakeStore()
        series = Series(await create(store, SystemIds()), disk_of(b"1"))
        await series.take()
        store.capacity_bytes = sum(map(len, store.objects.values())) + 5 * CLUSTER + 4 * KIB
        series.disk.write(0, b"2" * MIB)
        said = await outcome(series.take())
        assert isinstance(said, StoreError)
        assert "is full" in str(said)
        assert any("/bak-0002/" in name for name in store.objects)
        await sweep(series.repository, "n1")
        assert not any("/bak-0002/" in name for name in store.objects)
        await series.check("bak-0001")

    run(1, scenario)
