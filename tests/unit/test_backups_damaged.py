"""What is damaged, missing or made by a stranger is found, named, and refused by a sentence; all else can still be restored."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from cairn.proto.seams import SystemIds
from cairn.storage.backups.encryption import BadKey, Identities, Recipients
from cairn.storage.backups.fake import FakeStore
from cairn.storage.backups.layout import BadLayout, Extent, Layout, Reader, Run, runs_of
from cairn.storage.backups.manifest import (
    BadManifest,
    Manifest,
    Parent,
    Part,
    check_id,
    list_of,
    manifest_name,
    parsed,
    part_name,
    parts_of,
    written,
)
from cairn.storage.backups.removal import discard, remove, sweep
from cairn.storage.backups.repository import MARK, Backup, BadRepository, Catalogue, NoRepository, opened
from cairn.storage.backups.store import StoreError
from cairn.storage.backups.verification import Verification
from pyrage import x25519

from tests.conformance.backup_kit import CLUSTER, MIB, PART, START, VOLUME, Disk, Series, facts, fake_repository, sound


async def chain(store: FakeStore, count: int = 4, recipients: tuple[str, ...] = ()) -> Series:
    """A chain, each with several parts of its own."""
    series = Series(await fake_repository(store), Disk.of(2 * MIB), recipients=recipients)
    for number in range(count):
        series.disk.write(number * 100_000, os.urandom(900_000))
        await series.take()
    return series


async def findings(series: Series) -> Verification:
    verification = Verification(series.repository)
    await verification.run()
    return verification


def one(store: FakeStore, text: str) -> str:
    """The first object whose name has that in it."""
    return next(name for name in sorted(store.objects) if text in name)


DAMAGES: dict[str, Callable[[bytes], bytes | None]] = {
    "does not have the checksum": lambda content: content[:-1] + bytes([content[-1] ^ 1]),
    r"does not have the checksum .* \(17 bytes\)": lambda content: content[:17],
    "is missing": lambda content: None,
    "has more than the": lambda content: content + bytes(1 << 20),
}


@pytest.mark.parametrize("say", DAMAGES)
async def test_a_damaged_part_is_named_with_all_that_depend_on_it(say: str) -> None:
    store = FakeStore()
    series = await chain(store)
    name = one(store, "/bak-0002/bak-0002.qcow2.000001.")
    damaged = DAMAGES[say](store.objects[name])
    if damaged is None:
        del store.objects[name]
    else:
        store.objects[name] = damaged
    verification = await findings(series)
    assert [(each.object, each.backups) for each in verification.findings] == [
        (name, tuple(f"{VOLUME}/bak-{number:04d}" for number in (2, 3, 4)))
    ]
    assert re.search(say, verification.findings[0].say)
    assert verification.backups == 4
    parts = sum(".qcow2." in each for each in store.objects)
    assert verification.parts == parts + (damaged is None), "it goes on after what it found"
    await series.check("bak-0001")
    with pytest.raises(BadRepository, match=f"backup bak-0002 is damaged: {re.escape(name)} ") as failed:
        await series.check("bak-0002")
    assert not failed.value.retryable


async def test_every_single_flipped_byte_is_found() -> None:
    store = FakeStore()
    series = await chain(store, 2)
    for name in [each for each in store.objects if each != MARK]:
        content = store.objects[name]
        for at in {0, len(content) // 2, len(content) - 1}:
            store.objects[name] = content[:at] + bytes([content[at] ^ 0x40]) + content[at + 1 :]
            verification = await findings(series)
            assert name in [each.object for each in verification.findings], name
        store.objects[name] = content
    await sound(series.repository)


async def test_a_list_or_a_manifest_that_is_damaged_or_gone_is_named() -> None:
    store = FakeStore()
    series = await chain(store)
    whole = dict(store.objects)
    parts = next(name for name in whole if "/bak-0003/" in name and name.endswith(".parts"))
    manifest = next(name for name in whole if "/bak-0002/" in name and name.endswith(".json"))
    store.objects[parts] = b"garbage"
    (found,) = (await findings(series)).findings
    assert (found.object, found.backups) == (parts, (f"{VOLUME}/bak-0003", f"{VOLUME}/bak-0004"))
    assert "the list of its parts is damaged" in found.say
    del store.objects[parts]
    (found,) = (await findings(series)).findings
    assert (found.object, found.backups) == (parts, (f"{VOLUME}/bak-0003", f"{VOLUME}/bak-0004"))
    assert "is missing" in found.say
    assert [each.trouble for each in await series.backups() if each.trouble] == ["the list of its parts is missing"]
    store.objects.update(whole)
    store.objects[manifest] = whole[manifest].replace(b"shop", b"shoq")
    said = {each.object: each.say for each in (await findings(series)).findings}
    assert "it is damaged, or of another backup" in said[manifest]
    with pytest.raises(BadRepository, match=r"there is no backup bak-0002 .* cannot be used: it is damaged"):
        await series.check("bak-0002")
    with pytest.raises(BadRepository, match="backup bak-0003 is built on bak-0002, which is not here"):
        await series.check("bak-0003")
    await series.check("bak-0001")


async def test_nothing_is_removed_while_a_manifest_cannot_be_read_until_it_is_given_up() -> None:
    store = FakeStore()
    series = await chain(store)
    whole = dict(store.objects)
    manifest = next(name for name in whole if "/bak-0004/" in name and name.endswith(".json"))
    store.objects[manifest] = b"{}"
    with pytest.raises(BadRepository, match="no backup of vol-00000001 is removed, as others may be built on it"):
        await remove(series.repository, VOLUME, ["bak-0003"], "n1")
    with pytest.raises(BadRepository, match="it can be discarded by that name"):
        await remove(series.repository, VOLUME, ["bak-0004"], "n1")
    assert (await sweep(series.repository, "n1")).doubtful == [f"volumes/{VOLUME}/bak-0004/"]
    assert store.objects == {**whole, manifest: b"{}"}
    with pytest.raises(BadRepository, match="is no manifest of volume vol-00000001 that cannot be read"):
        await discard(series.repository, VOLUME, one(store, ".json"), "n1")
    await discard(series.repository, VOLUME, manifest, "n1")
    await remove(series.repository, VOLUME, ["bak-0003"], "n1")
    await sweep(series.repository, "n1")
    assert not [name for name in store.objects if "/bak-0003/" in name or "/bak-0004/" in name]
    await series.check("bak-0002")
    await sound(series.repository)


async def test_one_object_that_cannot_be_read_does_not_end_verifying_and_a_dead_store_does() -> None:
    store = FakeStore()
    series = await chain(store)
    series.repository.store.pause_s = 0.0
    bad = one(store, "/bak-0001/bak-0001.qcow2.000001.")

    def broken(method: str, name: str) -> None:
        if name == bad:
            raise StoreError("input/output error")

    store.before = broken
    (found,) = (await findings(series)).findings
    assert (found.object, found.say) == (bad, "input/output error")

    def dead(method: str, name: str) -> None:
        if ".qcow2." in name:
            raise StoreError("no answer")

    store.before = dead
    with pytest.raises(StoreError, match="no answer"):
        await findings(series)


# --- Strangers --------------------------------------------------------------------------------------------------------


def sample(**changed: Any) -> Manifest:
    listed = list_of([Part("0" * 64, part_name("bak-1", 0, "0" * 64, is_sealed=False))])
    return Manifest(
        **{
            "backup": "bak-1", "volume": facts(MIB), "time": START, "point": "", "parent": None, "full_because": "",
            "file_bytes": 5 * CLUSTER, "part_bytes": 32 * MIB, "parts_sha256": hashlib.sha256(listed).hexdigest(),
            "stored_bytes": 5 * CLUSTER, **changed,
        }
    )  # fmt: skip


def test_what_is_written_is_read() -> None:
    for manifest in (
        sample(),
        sample(parent=Parent("bak-0", "a" * 64), point="snap@7"),
        sample(recipients=("age1x",), stored_bytes=9),
        sample(full_because="Sicherung: Ä lost"),
    ):
        assert parsed(written(manifest)) == manifest


@pytest.mark.parametrize(
    ("path", "value", "say"),
    [
        ("format", 2, "it is of format 2; this release reads format 1"),
        ("format", "1", "format is '1', not a whole number"),
        ("format", True, "format is 'True'"),
        ("backup", "../../etc", "backup is '../../etc', not an id"),
        ("backup", "", "backup is '', not an id"),
        ("volume.id", "vol/../x", "volume.id is 'vol/../x', not an id"),
        ("volume.id", "VOL-1", "not an id"),
        ("volume.size_bytes", 1 << 70, "volume.size_bytes is '1180591620717411303424'"),
        ("volume.size_bytes", -1, "volume.size_bytes is '-1'"),
        ("volume.size_bytes", 0, "a disk of 0 bytes cannot be"),
        ("volume.size_bytes", 513, "a disk of 513 bytes cannot be"),
        ("volume.size_bytes", 1e9, "volume.size_bytes is '1000000000.0'"),
        ("volume.name", "x" * 2000, "volume.name is 'x"),
        ("volume.name", "a\x1b[2J", "not a short text"),
        ("volume.labels", {str(n): "" for n in range(100)}, "not at most 64 texts"),
        ("volume.labels", [1], "labels is no object of JSON"),
        ("volume", 3, "volume is no object of JSON"),
        ("time", "yesterday", "time is 'yesterday', not a moment"),
        ("time", "0001-01-01T00:00:00+14:00", "not a moment"),
        ("file.name", "/etc/passwd", "file.name is '/etc/passwd'; of this backup it must be 'bak-1.qcow2'"),
        ("file.backing", "/etc/shadow", "file.backing is '/etc/shadow'"),
        ("file.size_bytes", 0, "file.size_bytes is 0"),
        ("file.size_bytes", 1 << 47, "more than 4000000 parts"),
        ("file.size_bytes", CLUSTER + 1, "not whole clusters"),
        ("parts.list", "../../../x.parts", "parts.list is '../../../x.parts'"),
        ("parts.count", 7, "parts.count is 7"),
        ("parts.part_bytes", 1 << 40, "parts.part_bytes is '1099511627776'"),
        ("parts.part_bytes", 0, "parts.part_bytes is 0"),
        ("parts.part_bytes", CLUSTER + 512, "it is a multiple of 65536"),
        ("parts.stored_bytes", 5, "parts.stored_bytes is 5"),
        ("parts.sha256", "zz", "parts.sha256 is 'zz', not a SHA-256"),
        ("parent", {"backup": "bak-0", "manifest": "x"}, "parent.manifest is 'x', not a SHA-256"),
        ("parent", {"backup": "../x", "manifest": "0" * 64}, "parent.backup is '../x'"),
        ("encryption", {"kind": "rot13", "recipients": ["a"]}, "it is encrypted by 'rot13'"),
        ("encryption", {"kind": "age", "recipients": []}, "does not say for whom"),
        ("encryption", {"kind": "age", "recipients": [7]}, "for what are no recipients"),
    ],
)
def test_a_strangers_manifest_is_refused_by_a_sentence(path: str, value: object, say: str) -> None:
    said = json.loads(written(sample()))
    *folders, last = path.split(".")
    inner = said
    for each in folders:
        inner = inner[each]
    inner[last] = value
    with pytest.raises(BadManifest, match=re.escape(say)):
        parsed(json.dumps(said).encode())


@pytest.mark.parametrize(
    ("content", "say"),
    [
        (b"", "it is not JSON"),
        (b"[" * 60_000, "it is not JSON"),
        (b"\xff\xfe", "it is not JSON"),
        (b"[]", "it is no object of JSON"),
        (b"null", "it is no object of JSON"),
        (b" " * 70_000, "more than the 65536 of any manifest"),
    ],
)
def test_what_is_no_manifest_is_told(content: bytes, say: str) -> None:
    with pytest.raises(BadManifest, match=say):
        parsed(content)


@pytest.mark.parametrize(
    "line",
    ["0" * 64 + "  ../../etc/passwd", "0" * 64 + "  /etc/passwd", "x", "0" * 63 + "  bak-1.qcow2.000000." + "0" * 63, "\n"],
)
def test_a_strangers_list_of_parts_is_refused(line: str) -> None:
    content = line.encode() + b"\n"
    manifest = sample(parts_sha256=hashlib.sha256(content).hexdigest())
    with pytest.raises(BadManifest, match="line 1 of the list of its parts is no part of it"):
        parts_of(manifest, content)


def test_a_list_that_is_too_short_is_refused() -> None:
    manifest = sample(parts_sha256=hashlib.sha256(b"").hexdigest())
    with pytest.raises(BadManifest, match="has 0; the manifest says 1"):
        parts_of(manifest, b"")


async def test_a_manifest_in_anothers_place_is_no_backup() -> None:
    store = FakeStore()
    series = await chain(store, 1)
    name = one(store, ".json")
    content = store.objects[name]
    for stolen in (
        f"volumes/vol-00000002/bak-0001/{name.rpartition('/')[2]}",
        f"volumes/{VOLUME}/bak-0002/{name.rpartition('/')[2]}",
        f"volumes/{VOLUME}/x.json",
    ):
        store.objects[stolen] = content
        catalogue = await series.repository.catalogue()
        assert [each.name for each in catalogue.unreadable] == [stolen]
        assert len(catalogue.backups) == 1
        del store.objects[stolen]


def test_a_chain_that_runs_in_a_loop_is_refused() -> None:
    """No checksums make one; whoever reads does not rely on that."""
    first = Backup(sample(parent=Parent("bak-2", "b" * 64)), "a" * 64)
    second = Backup(replace(sample(parent=Parent("bak-1", "a" * 64)), backup="bak-2"), "b" * 64)
    catalogue = Catalogue((first, second))
    with pytest.raises(BadRepository, match="backup bak-2 is built on bak-1, which is built on it"):
        catalogue.chain(first)
    assert len(catalogue.dependents([first])) == 2


def test_a_parent_of_another_name_or_a_larger_disk_is_refused() -> None:
    parent = Backup(sample(volume=facts(2 * MIB)), "a" * 64)
    other = Backup(replace(sample(parent=Parent("bak-7", "a" * 64)), backup="bak-2"), "b" * 64)
    with pytest.raises(BadRepository, match="bak-2 is built on bak-7, which is not here"):
        Catalogue((parent, other)).chain(other)
    smaller = Backup(replace(sample(parent=Parent("bak-1", "a" * 64)), backup="bak-2"), "b" * 64)
    with pytest.raises(BadRepository, match="bak-2 is of a smaller disk than bak-1"):
        Catalogue((parent, smaller)).chain(smaller)


def content_of(layout: Layout) -> bytes:
    return b"".join(
        piece if isinstance(piece, bytes) else b"\1" * piece.length for piece in layout.pieces(0, layout.file_bytes)
    )


@pytest.mark.parametrize(
    ("at", "value", "say"),
    [
        (0, b"QFI\xfc", "does not begin as a qcow2 file"),
        (4, b"\0\0\0\2", "does not begin as a qcow2 file"),
        (8, (104).to_bytes(8, "big"), "not as Cairn writes them"),
        (24, (1 << 40).to_bytes(8, "big"), "its header tells of a disk of 1099511627776 bytes"),
        (36, (1 << 30).to_bytes(4, "big"), "its header tells of a disk"),
        (40, (1 << 60).to_bytes(8, "big"), "first-level table is said to be at byte"),
        (72, (4).to_bytes(8, "big"), "not as Cairn writes them"),
        (3 * CLUSTER, (1 << 63 | 9 * CLUSTER).to_bytes(8, "big"), "not as Cairn writes them"),
        (4 * CLUSTER, (1 << 63 | 1 << 50).to_bytes(8, "big"), "not as Cairn writes them"),
        (4 * CLUSTER, (1 << 62 | 5 * CLUSTER).to_bytes(8, "big"), "not as Cairn writes them"),
        (4 * CLUSTER + 8 * 100, (1 << 63 | 5 * CLUSTER).to_bytes(8, "big"), "clusters behind the end of its disk"),
        (4 * CLUSTER, bytes(8 * 16), "second-level tables is empty"),
    ],
)
def test_a_strangers_file_is_refused(at: int, value: bytes, say: str) -> None:
    layout = Layout(MIB, runs_of([Extent(0, MIB)], MIB, is_full=True))
    content = bytearray(content_of(layout))
    content[at : at + len(value)] = value
    reader = Reader(MIB, layout.file_bytes, "")
    with pytest.raises(BadLayout, match=say):
        reader.feed(bytes(content))


def test_a_backing_file_that_is_not_the_parents_is_refused() -> None:
    layout = Layout(MIB, [Run(0, 1, True)], "/etc/shadow")
    reader = Reader(MIB, layout.file_bytes, "bak-1.qcow2")
    with pytest.raises(BadLayout, match="not as Cairn writes them"):
        reader.feed(content_of(layout))


async def test_a_strangers_file_in_a_repository_whose_checksums_are_right_is_refused() -> None:
    store = FakeStore()
    series = Series(await fake_repository(store), Disk.of(MIB))
    layout = Layout(MIB, [Run(0, 1, True)], "/etc/shadow")
    content = content_of(layout)
    sha256 = hashlib.sha256(content).hexdigest()
    part = Part(sha256, part_name("bak-1", 0, sha256, is_sealed=False))
    listed = list_of([part])
    manifest = sample(parts_sha256=hashlib.sha256(listed).hexdigest(), file_bytes=len(content), stored_bytes=len(content))
    store.objects[manifest.folder + part.name] = content
    store.objects[manifest.list_name] = listed
    store.objects[manifest_name(written(manifest), VOLUME, "bak-1")] = written(manifest)
    with pytest.raises(BadRepository, match=r"backup bak-1 is no file of Cairn's: its tables are not as Cairn writes them"):
        await series.check("bak-1")


async def test_a_place_that_is_no_repository_is_told() -> None:
    with pytest.raises(NoRepository, match=r"there is no repository of backups in the fake store: .* is it the right place"):
        await opened(FakeStore(), SystemIds())
    with pytest.raises(BadRepository, match="is of format 9; this release reads format 1"):
        await opened(FakeStore(objects={MARK: b'{"format": 9, "id": "x"}'}), SystemIds())
    with pytest.raises(BadRepository, match="cannot be read"):
        await opened(FakeStore(objects={MARK: b"<html>"}), SystemIds())


@pytest.mark.parametrize("id", ["", "../x", "A", "a/b", "-a", "a" * 80])
def test_ids_that_would_be_paths_are_refused(id: str) -> None:
    with pytest.raises(ValueError, match="no id of a backup"):
        check_id(id, "backup")


# --- Keys -------------------------------------------------------------------------------------------------------------


async def test_without_the_right_key_it_is_said_whose_is_needed() -> None:
    key, other = x25519.Identity.generate(), x25519.Identity.generate()
    store = FakeStore()
    series = await chain(store, 2, (str(key.to_public()),))
    with pytest.raises(BadRepository, match=f"is encrypted for {key.to_public()}: a secret key of that is needed"):
        await series.check("bak-0002")
    with pytest.raises(BadRepository, match="cannot be decrypted"):
        await series.check("bak-0002", Identities((other,)))
    assert (await series.check("bak-0002", Identities((other, key)))).chain == ("bak-0001", "bak-0002")
    await sound(series.repository)
    secret = str(key)
    assert secret not in repr(Identities((key,)))
    assert not any(secret.encode() in content for content in store.objects.values())
    plain = bytes(series.disk.content[:64])
    assert not any(plain in content for content in store.objects.values())


def test_keys_are_read_from_age_keygens_file_and_wrong_ones_show_no_secret() -> None:
    key = x25519.Identity.generate()
    text = f"# created: 2026-01-01T00:00:00Z\n# public key: {key.to_public()}\n{key}\n\n"
    assert len(Identities.of_file(text).keys) == 1
    with pytest.raises(BadKey, match="line 2 is no secret key of age") as failed:
        Identities.of_file(f"{key}\n{str(key)[:-3]}\n")
    assert str(key)[20:40] not in str(failed.value)
    with pytest.raises(BadKey, match="is no public key of age"):
        Recipients.of(["age1nonsense"])


async def test_a_part_is_no_larger_than_a_manifest_of_an_encrypted_one_allows() -> None:
    key = x25519.Identity.generate()
    store = FakeStore()
    series = await chain(store, 1, (str(key.to_public()),))
    (backup,) = await series.backups()
    sizes = [len(content) for name, content in store.objects.items() if name.endswith(".age")]
    assert PART < max(sizes) <= backup.manifest.part_bytes_max
    assert sum(sizes) == backup.manifest.stored_bytes
