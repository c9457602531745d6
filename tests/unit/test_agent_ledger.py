"""The ledger: durable before acted on, torn tails, versions never go back."""

from __future__ import annotations

import asyncio
import errno
import os
from pathlib import Path

import pytest
from cairn.agent.journal import Entry, Journal
from cairn.agent.ledger import NAME, Ledger, StaleVersion
from cairn.proto.seams import SystemDisk
from cairn.proto.v1.agent_pb2 import Bookmark, Desired, DesiredVm, Remove, SyncResponse, Upsert, Version
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.agent_kit import MemoryDisk


def at(revision: int, epoch: int = 1) -> Version:
    return Version(epoch=epoch, revision=revision)


def put(key: str, revision: int, cpus: int = 1, epoch: int = 1) -> SyncResponse:
    return SyncResponse(upsert=Upsert(key=key, version=at(revision, epoch), object=Desired(vm=DesiredVm(id=key, cpus=cpus))))


def drop(key: str, revision: int) -> SyncResponse:
    return SyncResponse(remove=Remove(key=key, version=at(revision)))


def bookmark(revision: int) -> SyncResponse:
    return SyncResponse(bookmark=Bookmark(version=at(revision)))


async def loaded(disk: MemoryDisk | SystemDisk) -> Ledger:
    ledger = Ledger(disk)
    await ledger.load()
    return ledger


def content(ledger: Ledger) -> dict[str, tuple[int, int]]:
    return {key: (each.version.revision, each.object.vm.cpus) for key, each in ledger.desired.items()}


async def test_what_was_accepted_survives_a_power_cut() -> None:
    disk = MemoryDisk()
    ledger = await loaded(disk)
    assert not ledger.synced
    assert await ledger.accept_snapshot(at(5), [put("vm/a", 5).upsert, put("vm/b", 5).upsert]) == {"vm/a", "vm/b"}
    syncs = disk.syncs
    news = [put("vm/c", 6), put("vm/a", 7, cpus=2), drop("vm/b", 7), bookmark(8)]
    assert await ledger.accept(news) == {"vm/a", "vm/b", "vm/c"}
    assert disk.syncs == syncs + 1, "one sync for what came together"
    await ledger.write_note("vm/a", {"exit": "guest"})
    disk.lose_power()
    again = await loaded(disk)
    assert content(again) == {"vm/a": (7, 2), "vm/c": (6, 1)}
    assert (again.held, again.synced, again.trusted) == ((1, 7), True, True)
    assert again.note("vm/a") == {"exit": "guest"}


async def test_a_bookmark_alone_writes_nothing() -> None:
    disk = MemoryDisk()
    ledger = await loaded(disk)
    await ledger.accept_snapshot(at(5), [])
    size = len(disk.files[NAME])
    assert await ledger.accept([bookmark(9)]) == set()
    assert ledger.held == (1, 9)
    assert len(disk.files[NAME]) == size


@pytest.mark.parametrize(
    "message",
    [put("vm/a", 5), drop("vm/a", 5), put("vm/new", 9), bookmark(9), put("vm/a", 99, epoch=0)],
    ids=["upsert", "remove", "position", "bookmark", "epoch"],
)
async def test_older_than_held_is_refused_whole(message: SyncResponse) -> None:
    ledger = await loaded(MemoryDisk())
    await ledger.accept_snapshot(at(10), [put("vm/a", 10).upsert])
    with pytest.raises(StaleVersion):
        await ledger.accept([put("vm/b", 11), message])
    assert content(ledger) == {"vm/a": (10, 1)}
    assert ledger.held == (1, 10)


async def test_a_snapshot_from_the_past_is_refused_but_a_new_epoch_wins() -> None:
    ledger = await loaded(MemoryDisk())
    await ledger.accept_snapshot(at(10), [put("vm/a", 10).upsert])
    with pytest.raises(StaleVersion):
        await ledger.accept_snapshot(at(9), [])
    with pytest.raises(StaleVersion):
        await ledger.accept_snapshot(at(11), [put("vm/a", 9).upsert])
    assert await ledger.accept_snapshot(at(3, epoch=2), [put("vm/a", 3, epoch=2).upsert]) == {"vm/a"}
    assert ledger.held == (2, 3)


async def test_a_snapshot_replaces_everything_and_forgets_notes_of_what_went() -> None:
    disk = MemoryDisk()
    ledger = await loaded(disk)
    gone = Upsert(key="vm/a", version=at(5), object=Desired(vm=DesiredVm(id="a", absent=True)))
    await ledger.accept_snapshot(at(5), [gone, put("vm/b", 5).upsert])
    await ledger.write_note("vm/a", {"crashes": 1})
    await ledger.write_note("vm/b", {"crashes": 2})
    assert await ledger.accept_snapshot(at(6), [put("vm/b", 5).upsert]) == {"vm/a"}
    again = await loaded(disk)
    assert content(again) == {"vm/b": (5, 1)}
    assert again.note("vm/a") == {}
    assert again.note("vm/b") == {"crashes": 2}


async def test_a_full_disk_accepts_nothing_and_heals() -> None:
    disk = MemoryDisk()
    ledger = await loaded(disk)
    await ledger.accept_snapshot(at(5), [put("vm/a", 5).upsert])
    disk.full = True
    with pytest.raises(OSError, match="space"):
        await ledger.accept([put("vm/b", 6)])
    with pytest.raises(OSError, match="space"):
        await ledger.accept([put("vm/b", 6)])
    assert content(ledger) == {"vm/a": (5, 1)}
    disk.full = False
    await ledger.accept([put("vm/b", 7)])
    again = await loaded(disk)
    assert content(again) == content(ledger) == {"vm/a": (5, 1), "vm/b": (7, 1)}
    assert again.trusted


async def test_a_torn_tail_on_a_full_disk_is_no_end_and_is_not_forgotten() -> None:
    disk = MemoryDisk()
    await (await loaded(disk)).accept_snapshot(at(5), [put("vm/a", 5).upsert])
    disk.files[NAME] += b"\x00\x00\x01"
    disk.full = True
    for _ in range(2):
        again = await loaded(disk)
        assert content(again) == {"vm/a": (5, 1)}
        assert not again.trusted, "also after a restart, though the file could not be told to"
    disk.full = False
    await again.accept([put("vm/b", 6)])
    last = await loaded(disk)
    assert content(last) == {"vm/a": (5, 1), "vm/b": (6, 1)}
    assert not last.trusted


async def test_the_log_is_compacted_and_says_the_same() -> None:
    disk = MemoryDisk()
    ledger = await loaded(disk)
    await ledger.accept_snapshot(at(1), [])
    for revision in range(2, 600):
        message = put("vm/a", revision)
        message.upsert.object.vm.user_data = bytes(4096)
        await ledger.accept([message])
    assert len(disk.files[NAME]) < 2 << 20
    assert content(await loaded(disk)) == content(ledger) == {"vm/a": (599, 1)}


async def test_a_long_log_is_not_measured_at_every_write() -> None:
    disk, asked = MemoryDisk(), []

    def live_bytes() -> int:
        asked.append(len(disk.files[NAME]))
        return 1 << 20

    journal = Journal(disk, NAME, lambda: [bytes(1 << 20)], live_bytes)
    await journal.load(lambda _payload: None, b"")
    await journal.write(Entry(lambda: [bytes(1 << 20)], lambda: None))
    for _ in range(320):
        await journal.write(Entry(lambda: [bytes(16 << 10)], lambda: None))
    assert len(asked) < 40
    assert max(asked) > 4 << 20, "and it was made anew in time"
    assert len(disk.files[NAME]) < 4 << 20


async def test_on_a_real_disk(tmp_path: Path) -> None:
    ledger = await loaded(SystemDisk(tmp_path / "ledger"))
    await ledger.accept_snapshot(at(5), [put("vm/a", 5).upsert])
    await ledger.accept([put("vm/b", 6)])
    path = tmp_path / "ledger" / NAME
    assert path.stat().st_mode & 0o777 == 0o600
    path.write_bytes(path.read_bytes() + b"\x00\x00\x01")
    again = await loaded(SystemDisk(tmp_path / "ledger"))
    assert content(again) == {"vm/a": (5, 1), "vm/b": (6, 1)}
    assert not again.trusted
    assert not (await loaded(SystemDisk(tmp_path / "ledger"))).trusted, "also after the next restart"
    await again.accept_snapshot(at(7), [])
    assert (await loaded(SystemDisk(tmp_path / "ledger"))).trusted


async def test_a_full_disk_is_left_no_fuller_by_a_file_that_could_not_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half a file beside the ledger would take the last bytes that its appends need."""
    disk = SystemDisk(tmp_path)
    await disk.replace(NAME, b"whole")

    def full(_handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        await disk.replace(NAME, b"larger" * 1000)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {NAME: b"whole"}


changes = st.lists(
    st.tuples(st.sampled_from(["put", "drop", "note"]), st.sampled_from(["vm/a", "vm/b", "vm/c"]), st.integers(1, 64)),
    max_size=12,
)


async def played(ledger: Ledger, steps: list[tuple[str, str, int]]) -> list[dict[str, tuple[int, int]]]:
    """Apply the steps; return what the ledger said after each."""
    said = [content(ledger)]
    for revision, (verb, key, cpus) in enumerate(steps, 10):
        if verb == "put":
            await ledger.accept([put(key, revision, cpus)])
        elif verb == "drop":
            await ledger.accept([drop(key, revision)])
        else:
            await ledger.write_note(key, {"crashes": cpus})
        said.append(content(ledger))
    return said


@given(steps=changes, cut=st.integers(0, 10_000))
@settings(max_examples=150, deadline=None)
async def test_a_torn_tail_leaves_a_state_that_was_once_true(steps: list[tuple[str, str, int]], cut: int) -> None:
    disk = MemoryDisk()
    ledger = await loaded(disk)
    await ledger.accept_snapshot(at(5), [put("vm/a", 5).upsert])
    base = len(disk.files[NAME])
    said = await played(ledger, steps)
    disk.files[NAME] = disk.files[NAME][: max(base, len(disk.files[NAME]) - cut)]
    again = await loaded(disk)
    assert content(again) in said
    await again.accept([put("vm/z", 1000)])
    assert (await loaded(disk)).desired.keys() == again.desired.keys()


@given(steps=changes, offset=st.integers(0, 10_000), flip=st.integers(1, 255))
@settings(max_examples=150, deadline=None)
async def test_a_damaged_byte_is_never_believed(steps: list[tuple[str, str, int]], offset: int, flip: int) -> None:
    disk = MemoryDisk()
    ledger = await loaded(disk)
    await ledger.accept_snapshot(at(5), [put("vm/a", 5).upsert])
    said = [{}, *await played(ledger, steps)]
    damaged = bytearray(disk.files[NAME])
    damaged[offset % len(damaged)] ^= flip
    disk.files[NAME] = bytes(damaged)
    again = await loaded(disk)
    assert content(again) in said
    assert not again.trusted


# --- a disk that takes its time ----------------------------------------------------------------------------------------------


async def turns(count: int = 20) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


class HeldDisk(MemoryDisk):
    """Its syncs end when the test says so."""

    def __init__(self) -> None:
        super().__init__()
        self.go = asyncio.Semaphore(0)

    async def append(self, name: str, content: bytes) -> None:
        self.files[name] = self.files.get(name, b"") + content
        await self.go.acquire()
        self.syncs += 1
        self.durable[name] = self.files[name]


async def test_nothing_shows_before_it_is_durable_and_what_came_meanwhile_shares_a_sync() -> None:
    disk = HeldDisk()
    ledger = await loaded(disk)
    await ledger.accept_snapshot(at(5), [put("vm/a", 5).upsert, put("vm/b", 5).upsert])
    told: list[set[str]] = []
    first = asyncio.create_task(ledger.accept([put("vm/a", 6, cpus=2)], told.append))
    await turns()
    notes = [asyncio.create_task(ledger.write_note(key, {"crashes": 1})) for key in ("vm/a", "vm/b")]
    forgets = asyncio.create_task(ledger.forget(["vm/a"]))
    await turns()
    assert content(ledger) == {"vm/a": (5, 1), "vm/b": (5, 1)}
    assert (told, ledger.held, ledger.note("vm/a")) == ([], (1, 5), {})
    disk.go.release()
    await first
    assert (told, content(ledger)["vm/a"], ledger.note("vm/a")) == ([{"vm/a"}], (6, 2), {})
    assert await forgets == set(), "nothing of it is unknown: nothing to write"
    disk.go.release()
    await asyncio.gather(*notes)
    assert disk.syncs == 2, "the notes went together"
    assert (await loaded(MemoryDisk(dict(disk.durable)))).note("vm/b") == {"crashes": 1}


async def test_what_is_older_than_what_waits_to_be_written_is_refused() -> None:
    disk = HeldDisk()
    ledger = await loaded(disk)
    await ledger.accept_snapshot(at(5), [])
    disk.go = asyncio.Semaphore(9)
    tasks = [asyncio.create_task(ledger.accept([put("vm/a", revision)])) for revision in (8, 7)]
    late = asyncio.create_task(ledger.accept_snapshot(at(6), []))
    assert await tasks[0] == {"vm/a"}
    with pytest.raises(StaleVersion):
        await tasks[1]
    with pytest.raises(StaleVersion):
        await late


async def test_whose_stream_ended_while_it_was_written_it_counts_and_is_told() -> None:
    disk = HeldDisk()
    ledger = await loaded(disk)
    await ledger.accept_snapshot(at(5), [])
    told: list[set[str]] = []
    task = asyncio.create_task(ledger.accept([put("vm/a", 6)], told.append))
    await turns()
    task.cancel()
    await turns()
    assert told == []
    disk.go.release()
    await turns()
    assert (told, content(ledger)) == ([{"vm/a"}], {"vm/a": (6, 1)})


async def test_a_note_does_not_outlive_its_key() -> None:
    disk = HeldDisk()
    ledger = await loaded(disk)
    gone = Upsert(key="vm/a", version=at(5), object=Desired(vm=DesiredVm(id="a", absent=True)))
    await ledger.accept_snapshot(at(5), [gone])
    writes = [
        asyncio.create_task(ledger.accept([drop("vm/a", 6)])),
        asyncio.create_task(ledger.write_note("vm/a", {"here": 1})),
    ]
    disk.go.release()
    await asyncio.gather(*writes)
    again = await loaded(MemoryDisk(dict(disk.files)))
    for each in (ledger, again):
        assert each.desired == {}
        assert each.note("vm/a") == {}


async def test_what_a_killed_agent_wrote_without_its_sync_is_made_durable_first() -> None:
    disk = HeldDisk()
    ledger = await loaded(disk)
    await ledger.accept_snapshot(at(5), [])
    task = asyncio.create_task(ledger.accept([put("vm/a", 6)]))
    await turns()
    await ledger.close()
    with pytest.raises(asyncio.CancelledError):
        await task
    disk.go.release()
    again = await loaded(disk)
    assert content(again) == {"vm/a": (6, 1)}
    disk.lose_power()
    assert content(await loaded(MemoryDisk(dict(disk.files)))) == {"vm/a": (6, 1)}, "it was acted on"


class FailingDisk(MemoryDisk):
    async def append(self, name: str, content: bytes) -> None:
        raise OSError(5, "Input/output error")


async def test_what_cannot_be_made_durable_is_not_acted_on_until_a_snapshot_came() -> None:
    good = MemoryDisk()
    await (await loaded(good)).accept_snapshot(at(5), [put("vm/a", 5).upsert])
    ledger = await loaded(FailingDisk(dict(good.files), dict(good.durable)))
    assert (content(ledger), ledger.synced) == ({"vm/a": (5, 1)}, False)
    await ledger.accept_snapshot(at(6), [put("vm/a", 5).upsert])
    assert ledger.synced


@given(steps=changes, kills=st.integers(0, 60), torn=st.integers(0, 200), slow=st.booleans())
@settings(max_examples=150, deadline=None)
async def test_killed_at_any_step_the_successor_knows_what_was_told(
    steps: list[tuple[str, str, int]], kills: int, torn: int, slow: bool
) -> None:
    """All is handed in at once; what was told as changed is in the log of whoever comes after, and nothing that never was."""
    disk = MemoryDisk(sync_s=0.001 if slow else 0.0)
    ledger = await loaded(disk)
    await ledger.accept_snapshot(at(5), [put("vm/a", 5).upsert])
    said, told = [content(ledger)], list[dict[str, tuple[int, int]]]()
    tasks = list[asyncio.Task[object]]()
    for revision, (verb, key, cpus) in enumerate(steps, 10):
        expected = dict(said[-1])
        if verb == "note":
            tasks.append(asyncio.create_task(ledger.write_note(key, {"crashes": cpus})))
            continue
        message = put(key, revision, cpus) if verb == "put" else drop(key, revision)
        expected.pop(key, None)
        said.append(expected | ({key: (revision, cpus)} if verb == "put" else {}))
        tasks.append(asyncio.create_task(ledger.accept([message], lambda _: told.append(content(ledger)))))
    await turns(kills)
    await ledger.close()
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert told == said[1 : len(told) + 1], "in the order they came in"
    disk.lose_power(torn)
    after = content(await loaded(disk))
    assert after in said[len(told) :], "at least what was told"
