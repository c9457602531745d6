"""The ledger: durable before acted on, torn tails, versions never go back."""

from __future__ import annotations

from pathlib import Path

import pytest
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


def loaded(disk: MemoryDisk | SystemDisk) -> Ledger:
    ledger = Ledger(disk)
    ledger.load()
    return ledger


def content(ledger: Ledger) -> dict[str, tuple[int, int]]:
    return {key: (each.version.revision, each.object.vm.cpus) for key, each in ledger.desired.items()}


def test_what_was_accepted_survives_a_power_cut() -> None:
    disk = MemoryDisk()
    ledger = loaded(disk)
    assert not ledger.synced
    assert ledger.accept_snapshot(at(5), [put("vm/a", 5).upsert, put("vm/b", 5).upsert]) == {"vm/a", "vm/b"}
    syncs = disk.syncs
    assert ledger.accept([put("vm/c", 6), put("vm/a", 7, cpus=2), drop("vm/b", 7), bookmark(8)]) == {"vm/a", "vm/b", "vm/c"}
    assert disk.syncs == syncs + 1, "one sync for what came together"
    ledger.write_note("vm/a", {"exit": "guest"})
    disk.lose_power()
    again = loaded(disk)
    assert content(again) == {"vm/a": (7, 2), "vm/c": (6, 1)}
    assert (again.held, again.synced, again.trusted) == ((1, 7), True, True)
    assert again.note("vm/a") == {"exit": "guest"}


def test_a_bookmark_alone_writes_nothing() -> None:
    disk = MemoryDisk()
    ledger = loaded(disk)
    ledger.accept_snapshot(at(5), [])
    size = len(disk.files[NAME])
    assert ledger.accept([bookmark(9)]) == set()
    assert ledger.held == (1, 9)
    assert len(disk.files[NAME]) == size


@pytest.mark.parametrize(
    "message",
    [put("vm/a", 5), drop("vm/a", 5), put("vm/new", 9), bookmark(9), put("vm/a", 99, epoch=0)],
    ids=["upsert", "remove", "position", "bookmark", "epoch"],
)
def test_older_than_held_is_refused_whole(message: SyncResponse) -> None:
    ledger = loaded(MemoryDisk())
    ledger.accept_snapshot(at(10), [put("vm/a", 10).upsert])
    with pytest.raises(StaleVersion):
        ledger.accept([put("vm/b", 11), message])
    assert content(ledger) == {"vm/a": (10, 1)}
    assert ledger.held == (1, 10)


def test_a_snapshot_from_the_past_is_refused_but_a_new_epoch_wins() -> None:
    ledger = loaded(MemoryDisk())
    ledger.accept_snapshot(at(10), [put("vm/a", 10).upsert])
    with pytest.raises(StaleVersion):
        ledger.accept_snapshot(at(9), [])
    with pytest.raises(StaleVersion):
        ledger.accept_snapshot(at(11), [put("vm/a", 9).upsert])
    assert ledger.accept_snapshot(at(3, epoch=2), [put("vm/a", 3, epoch=2).upsert]) == {"vm/a"}
    assert ledger.held == (2, 3)


def test_a_snapshot_replaces_everything_and_forgets_notes_of_what_went() -> None:
    disk = MemoryDisk()
    ledger = loaded(disk)
    gone = Upsert(key="vm/a", version=at(5), object=Desired(vm=DesiredVm(id="a", absent=True)))
    ledger.accept_snapshot(at(5), [gone, put("vm/b", 5).upsert])
    ledger.write_note("vm/a", {"crashes": 1})
    ledger.write_note("vm/b", {"crashes": 2})
    assert ledger.accept_snapshot(at(6), [put("vm/b", 5).upsert]) == {"vm/a"}
    again = loaded(disk)
    assert content(again) == {"vm/b": (5, 1)}
    assert again.note("vm/a") == {}
    assert again.note("vm/b") == {"crashes": 2}


def test_a_full_disk_accepts_nothing_and_heals() -> None:
    disk = MemoryDisk()
    ledger = loaded(disk)
    ledger.accept_snapshot(at(5), [put("vm/a", 5).upsert])
    disk.full = True
    with pytest.raises(OSError, match="space"):
        ledger.accept([put("vm/b", 6)])
    with pytest.raises(OSError, match="space"):
        ledger.accept([put("vm/b", 6)])
    assert content(ledger) == {"vm/a": (5, 1)}
    disk.full = False
    ledger.accept([put("vm/b", 7)])
    again = loaded(disk)
    assert content(again) == content(ledger) == {"vm/a": (5, 1), "vm/b": (7, 1)}
    assert again.trusted


def test_a_torn_tail_on_a_full_disk_is_no_end_and_is_not_forgotten() -> None:
    disk = MemoryDisk()
    loaded(disk).accept_snapshot(at(5), [put("vm/a", 5).upsert])
    disk.files[NAME] += b"\x00\x00\x01"
    disk.full = True
    for _ in range(2):
        again = loaded(disk)
        assert content(again) == {"vm/a": (5, 1)}
        assert not again.trusted, "also after a restart, though the file could not be told to"
    disk.full = False
    again.accept([put("vm/b", 6)])
    last = loaded(disk)
    assert content(last) == {"vm/a": (5, 1), "vm/b": (6, 1)}
    assert not last.trusted


def test_the_log_is_compacted_and_says_the_same() -> None:
    disk = MemoryDisk()
    ledger = loaded(disk)
    ledger.accept_snapshot(at(1), [])
    for revision in range(2, 600):
        message = put("vm/a", revision)
        message.upsert.object.vm.user_data = bytes(4096)
        ledger.accept([message])
    assert len(disk.files[NAME]) < 2 << 20
    assert content(loaded(disk)) == content(ledger) == {"vm/a": (599, 1)}


def test_on_a_real_disk(tmp_path: Path) -> None:
    ledger = loaded(SystemDisk(tmp_path / "ledger"))
    ledger.accept_snapshot(at(5), [put("vm/a", 5).upsert])
    ledger.accept([put("vm/b", 6)])
    path = tmp_path / "ledger" / NAME
    assert path.stat().st_mode & 0o777 == 0o600
    path.write_bytes(path.read_bytes() + b"\x00\x00\x01")
    again = loaded(SystemDisk(tmp_path / "ledger"))
    assert content(again) == {"vm/a": (5, 1), "vm/b": (6, 1)}
    assert not again.trusted
    assert not loaded(SystemDisk(tmp_path / "ledger")).trusted, "also after the next restart"
    again.accept_snapshot(at(7), [])
    assert loaded(SystemDisk(tmp_path / "ledger")).trusted


changes = st.lists(
    st.tuples(st.sampled_from(["put", "drop", "note"]), st.sampled_from(["vm/a", "vm/b", "vm/c"]), st.integers(1, 64)),
    max_size=12,
)


def played(ledger: Ledger, steps: list[tuple[str, str, int]]) -> list[dict[str, tuple[int, int]]]:
    """Apply the steps; return what the ledger said after each."""
    said = [content(ledger)]
    for revision, (verb, key, cpus) in enumerate(steps, 10):
        if verb == "put":
            ledger.accept([put(key, revision, cpus)])
        elif verb == "drop":
            ledger.accept([drop(key, revision)])
        else:
            ledger.write_note(key, {"crashes": cpus})
        said.append(content(ledger))
    return said


@given(steps=changes, cut=st.integers(0, 10_000))
@settings(max_examples=150, deadline=None)
def test_a_torn_tail_leaves_a_state_that_was_once_true(steps: list[tuple[str, str, int]], cut: int) -> None:
    disk = MemoryDisk()
    ledger = loaded(disk)
    ledger.accept_snapshot(at(5), [put("vm/a", 5).upsert])
    base = len(disk.files[NAME])
    said = played(ledger, steps)
    disk.files[NAME] = disk.files[NAME][: max(base, len(disk.files[NAME]) - cut)]
    again = loaded(disk)
    assert content(again) in said
    again.accept([put("vm/z", 1000)])
    assert loaded(disk).desired.keys() == again.desired.keys()


@given(steps=changes, offset=st.integers(0, 10_000), flip=st.integers(1, 255))
@settings(max_examples=150, deadline=None)
def test_a_damaged_byte_is_never_believed(steps: list[tuple[str, str, int]], offset: int, flip: int) -> None:
    disk = MemoryDisk()
    ledger = loaded(disk)
    ledger.accept_snapshot(at(5), [put("vm/a", 5).upsert])
    said = [{}, *played(ledger, steps)]
    damaged = bytearray(disk.files[NAME])
    damaged[offset % len(damaged)] ^= flip
    disk.files[NAME] = bytes(damaged)
    again = loaded(disk)
    assert content(again) in said
    assert not again.trusted
