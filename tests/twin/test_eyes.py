"""How pictures are made of looks: what was between two of them, who lives on two servers, what a ledger held meanwhile."""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from cairn.proto.v1.agent_pb2 import SyncResponse

from tests.lab import hosts as lab
from tests.sim.cloud import Guest, Host
from tests.twin import eyes
from tests.twin.eyes import Eyes, Ledger
from tests.twin.kernel import Process, born

VM = "i-00000001"
NODES = {"n1": "node-1", "n2": "node-2"}
Looks = Callable[..., list[tuple[Host, bool]]]


def process(pid: int, began: int) -> Process:
    return Process(VM, pid, inner=1, born=began, cpus=1, memory_bytes=1 << 27)


@pytest.fixture
def look(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Looks:
    """look({server: process of the guest there}): one more look at two servers that hold nothing else."""
    there: dict[str, Process] = {}
    seen = Eyes([lab.Host(name, "", tmp_path / name, name) for name in NODES], NODES)
    monkeypatch.setattr(eyes, "_processes", lambda host: {VM: there[host.name]} if host.name in there else {})
    monkeypatch.setattr(eyes, "_networks", lambda _host: [])

    def again(**now: Process) -> list[tuple[Host, bool]]:
        there.clear()
        there.update(now)
        return seen.look()

    return again


def alive() -> Process:
    return process(os.getpid(), born(os.getpid()))


def test_between_two_processes_of_a_guest_there_was_none(look: Looks) -> None:
    look(n1=process(1, 5))
    shown = look(n1=process(1, 6))
    assert [(host.node, sorted(host.guests), between) for host, between in shown] == [
        ("node-1", [], True),
        ("node-1", [VM], False),
        ("node-2", [], False),
    ]
    assert shown[1][0].boots == 2


def test_the_same_process_is_seen_without_anything_between(look: Looks) -> None:
    look(n1=alive())
    shown = look(n1=alive())
    assert [(sorted(host.guests), between) for host, between in shown] == [([VM], False), ([], False)]
    assert shown[0][0].effects == 0
    assert look()[0][0].effects == 1


def test_a_guest_is_on_two_servers_only_if_both_processes_live(look: Looks) -> None:
    assert [sorted(host.guests) for host, _ in look(n1=alive(), n2=alive())] == [[VM], [VM]]
    later = look(n1=process(os.getpid(), 1), n2=alive())
    assert [sorted(host.guests) for host, between in later if not between] == [[], [VM]]


def frame(kind: bytes, message: SyncResponse) -> bytes:
    payload = kind + message.SerializeToString()
    return struct.pack(">II", len(payload), zlib.crc32(payload)) + payload


def test_a_ledger_is_all_it_held_since_it_was_asked_last() -> None:
    upsert, remove = SyncResponse(), SyncResponse()
    upsert.upsert.key = remove.remove.key = "vm/i-00000001"
    upsert.upsert.version.revision, remove.remove.version.revision = 3, 4
    ledger, content = Ledger(), frame(b"M", upsert)
    ledger.read(content)
    assert ledger.passed() == {"vm/i-00000001": (0, 3)}
    ledger.read(content + frame(b"M", remove))
    assert ledger.passed() == {"vm/i-00000001": (0, 3)}
    assert ledger.passed() == {}
    both = content + frame(b"M", remove)
    ledger.read(both + frame(b"M", upsert) + frame(b"M", remove))
    assert ledger.passed() == {"vm/i-00000001": (0, 3)}
    assert ledger.held == (0, 4)


def test_what_is_on_a_disk_is_read_off_its_files(look: Looks, tmp_path: Path) -> None:
    library, definitions = tmp_path / "n1" / "data" / "lib", tmp_path / "n1" / "libvirt" / "etc" / "qemu"
    for folder in ("volumes", "images", "seeds", "console"):
        (library / folder).mkdir(parents=True)
    definitions.mkdir(parents=True)
    (library / "volumes" / "vol-00000001.qcow2").write_bytes(struct.pack(">24xQ", 64 << 20) + bytes(100))
    (library / "volumes" / ".vol-00000002.qcow2.new").touch()
    (library / "images" / ("a" * 64)).touch()
    (library / "images" / f".{'b' * 64}.partial").touch()
    (library / "console" / f"{VM}.log").touch()
    source = "<source file='/var/lib/cairn/volumes/vol-00000001.qcow2'/>"
    (definitions / f"{VM}.xml").write_text(
        f"<domain><memory unit='KiB'>98304</memory><vcpu>2</vcpu><devices><disk type='file' device='disk'>{source}</disk>"
        "<disk type='file' device='cdrom'><source file='/var/lib/cairn/seeds/i.iso'/></disk></devices></domain>"
    )
    seen = look()[0][0]
    assert seen.volumes == {"vol-00000001": 64 << 20}
    assert seen.images == {"sha256:" + "a" * 64}
    assert seen.files == {VM}
    there = seen.definitions[VM]
    assert (there.cpus, there.memory_bytes, there.volumes) == (2, 96 << 20, {"vol-00000001"})


def test_a_guest_executes_when_libvirt_noted_so_of_this_process(look: Looks, tmp_path: Path) -> None:
    states = tmp_path / "n1" / "libvirt" / "run" / "qemu"
    states.mkdir(parents=True)
    for state, inner, executes in (("running", 1, True), ("paused", 1, False), ("running", 2, False)):
        (states / f"{VM}.xml").write_text(f"<domstatus state='{state}' pid='{inner}'/>")
        guest: Guest = look(n1=replace(alive(), taps={"tap-00000001": "2a:00:00:00:00:01"}))[0][0].guests[VM]
        assert guest.executing is executes
        assert [card.port for card in guest.cards] == (["nic-00000001"] if executes else [])
