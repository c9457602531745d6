"""Disks we write without QEMU's help are what QEMU would have written: it reads them alike, and finds no fault in them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from cairn.storage.base import StorageError
from cairn.storage.local import _write_blank
from cairn.storage.qcow2 import HEAD_BYTES, VIRTUAL_BYTES_MAX, blank, read_head

from tests.conformance.storage_kit import MIB, RAW, local_world, needs_qemu, put, run, volume

pytestmark = needs_qemu
L1_ENTRY_BYTES = 512 * MIB
SIZES = (
    512, MIB, L1_ENTRY_BYTES - 512, L1_ENTRY_BYTES, L1_ENTRY_BYTES + 512, 8192 * L1_ENTRY_BYTES,
    8192 * L1_ENTRY_BYTES + 512, VIRTUAL_BYTES_MAX,
)  # fmt: skip


def told(path: Path) -> dict[str, Any]:
    """What QEMU says of a file, without what it takes on the disk and what it is called."""
    info: dict[str, Any] = json.loads(run("qemu-img", "info", "-f", "qcow2", "--output=json", path))
    kept = ("virtual-size", "format", "cluster-size", "format-specific", "backing-filename", "backing-filename-format")
    return {key: info[key] for key in kept if key in info} | {"dirty": info["dirty-flag"]}


@pytest.mark.parametrize("size_bytes", SIZES)
@pytest.mark.parametrize("format", ["", "raw", "qcow2"])
def test_qemu_reads_it_as_its_own(tmp_path: Path, size_bytes: int, format: str) -> None:
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    if format:
        run("qemu-img", "create", "-q", "-f", format, tmp_path / "base", "512")
    base = {"backing": "base", "backing_format": format} if format else {}
    asked = ("-b", "base", "-F", format) if format else ()
    _write_blank(ours, size_bytes, **base)
    run("qemu-img", "create", "-q", "-f", "qcow2", *asked, "-o", "lazy_refcounts=off", theirs, str(size_bytes))
    assert told(ours) == told(theirs)
    run("qemu-img", "check", "-q", "-f", "qcow2", ours)
    head = read_head(ours.read_bytes()[:HEAD_BYTES])
    assert (head.virtual_size_bytes, head.backing) == (size_bytes, "base" if format else "")


@pytest.mark.parametrize("size_bytes", [size for size in SIZES if size > MIB])
def test_what_is_written_to_it_is_there(tmp_path: Path, size_bytes: int) -> None:
    """At both ends; tables grow behind ours, so a wrong count or place of them would show."""
    path = tmp_path / "disk"
    _write_blank(path, size_bytes)
    last = size_bytes - 512
    run("qemu-io", "-f", "qcow2", "-c", "write -P 7 0 4096", "-c", f"write -P 9 {last} 512", path)
    run("qemu-img", "check", "-q", "-f", "qcow2", path)
    said = run(
        "qemu-io", "-f", "qcow2", "-c", "read -P 7 0 4096", "-c", f"read -P 9 {last} 512", "-c", "read -P 0 4096 512", path
    )
    assert "Pattern verification failed" not in said


async def test_a_child_shows_its_image_and_zeros_behind_it(tmp_path: Path) -> None:
    world = local_world(tmp_path / "pool")
    digest = await put(world.images, bytes([5]) * MIB, RAW)
    await world.volumes.create(volume(1, 4 * MIB, digest))
    path = (await world.volumes.attachment("vol-00000001")).path
    said = run("qemu-io", "-f", "qcow2", "-c", f"read -P 5 0 {MIB}", "-c", f"read -P 0 {MIB} {3 * MIB}", path)
    assert "Pattern verification failed" not in said


def test_what_a_killed_writer_left_is_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    path.write_bytes(b"x" * 3 * MIB)
    _write_blank(path, MIB)
    run("qemu-img", "check", "-q", "-f", "qcow2", path)


def test_what_qemu_would_not_open_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="cannot have"):
        _write_blank(tmp_path / "disk", (32 << 20) // 8 * L1_ENTRY_BYTES + 512)
    with pytest.raises(ValueError, match="cannot have"):
        blank(511)
    assert not (tmp_path / "disk").exists()
