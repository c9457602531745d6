"""What only real files can show: data written by a guest, full disks, kill -9, links, and QEMU's own opinion of an image."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from cairn.storage import qemu_img
from cairn.storage.base import BadImage, PoolFull, StorageError
from cairn.storage.local import LocalImages, LocalVolumes

from tests.conformance.storage_kit import (
    MIB,
    QCOW2,
    RAW,
    World,
    chunked,
    collect,
    digest_of,
    local_world,
    make_qcow2,
    needs_qemu,
    put,
    run,
    volume,
)

pytestmark = needs_qemu


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    return tmp_path / "pool"


@pytest.fixture
def world(pool: Path) -> World:
    return local_world(pool)


@pytest.fixture
def small_pool(tmp_path: Path) -> Iterator[Path]:
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    folder = tmp_path / "small"
    folder.mkdir()
    run("mount", "-t", "tmpfs", "-o", "size=96m", "cairn-test", folder)
    yield folder
    run("umount", folder)


def names(pool: Path) -> set[str]:
    """Every file of a pool but its lock."""
    return {str(path.relative_to(pool)) for path in pool.rglob("*") if path.is_file() and path.name != ".lock"}


async def test_a_child_reads_its_image_and_never_changes_it(world: World, tmp_path: Path) -> None:
    content = make_qcow2(tmp_path, pattern=0x5A)
    digest = await put(world.images, content)
    await world.volumes.create(volume(1, 16 * MIB, digest))
    path = (await world.volumes.attachment("vol-00000001")).path
    run("qemu-io", "-f", "qcow2", "-c", "read -P 0x5a 0 1M", "-c", "write -P 0x77 512k 9M", path)
    run("qemu-io", "-f", "qcow2", "-c", "read -P 0x5a 0 512k", "-c", "read -P 0x77 512k 9M", path)
    assert await collect(world.images.get(digest)) == content
    run("qemu-img", "check", "-f", "qcow2", path)
    (held,) = await world.volumes.list()
    assert held.used_bytes >= 9 * MIB


async def test_growing_keeps_the_data(world: World) -> None:
    await world.volumes.create(volume(1, 16 * MIB))
    path = (await world.volumes.attachment("vol-00000001")).path
    run("qemu-io", "-f", "qcow2", "-c", "write -P 0x33 1M 1M", path)
    await world.volumes.resize("vol-00000001", 32 * MIB)
    run("qemu-io", "-f", "qcow2", "-c", "read -P 0x33 1M 1M", "-c", "read -P 0 31M 1M", path)


async def test_files_are_for_their_owner_only(world: World, pool: Path, tmp_path: Path) -> None:
    digest = await put(world.images, make_qcow2(tmp_path))
    await world.volumes.create(volume(1, 16 * MIB, digest))
    modes = {name: (pool / name).stat().st_mode & 0o777 for name in names(pool)}
    assert set(modes.values()) == {0o600}, modes
    assert pool.stat().st_mode & 0o777 == 0o700


async def test_a_file_cut_in_its_data_is_found_by_qemu(world: World, pool: Path, tmp_path: Path) -> None:
    content = make_qcow2(tmp_path)
    with pytest.raises(BadImage, match="damaged"):
        await put(world.images, content[: len(content) - 512 * 1024])
    assert names(pool) == set()


async def test_a_raw_image_is_never_probed(world: World, tmp_path: Path) -> None:
    """A guest writes a qcow2 head with a backing file into its raw disk: the child must see bytes, not the named file."""
    digest = await put(world.images, bytes(2 * MIB), RAW)
    await world.volumes.create(volume(1, 4 * MIB, digest))
    path = (await world.volumes.attachment("vol-00000001")).path
    assert '"backing-filename-format": "raw"' in run("qemu-img", "info", "-f", "qcow2", "--output=json", path)


async def test_qemu_img_is_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(qemu_img, "TIMEOUT_S", 0.0)
    with pytest.raises(StorageError, match="longer than"):
        await qemu_img.resize(str(tmp_path / "x.qcow2"), MIB)


async def test_links_are_not_followed(world: World, pool: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside.qcow2"
    outside.write_bytes(make_qcow2(tmp_path))
    (pool / "volumes/vol-00000001.qcow2").symlink_to(outside)
    (pool / "images" / ("0" * 64)).symlink_to(outside)
    assert await world.volumes.list() == []
    assert await world.images.list() == []
    with pytest.raises(StorageError, match="not here"):
        await world.volumes.attachment("vol-00000001")
    with pytest.raises(StorageError):
        await collect(world.images.get("sha256:" + "0" * 64))
    other = tmp_path / "other"
    other.mkdir()
    (other / "images").symlink_to(pool / "images")
    with pytest.raises(StorageError, match="symbolic link"):
        LocalImages(other)


async def test_an_image_that_does_not_fit_is_refused_before_writing(small_pool: Path) -> None:
    images = LocalImages(small_pool)
    content = bytes(92 * MIB)

    async def never() -> AsyncIterator[bytes]:
        pytest.fail("a chunk was read")
        yield b""

    with pytest.raises(PoolFull, match="are free"):
        await images.put(digest_of(content), len(content), RAW, never())
    assert names(small_pool) == set()


async def test_a_disk_that_fills_up_midway_keeps_nothing(small_pool: Path) -> None:
    images, ballast = LocalImages(small_pool), small_pool / "ballast"
    content = os.urandom(32 * MIB)

    async def filling() -> AsyncIterator[bytes]:
        yield content[:MIB]
        with pytest.raises(OSError, match="No space left"):
            ballast.write_bytes(bytes(96 * MIB))
        async for chunk in chunked(content[MIB:], MIB):
            yield chunk

    with pytest.raises(PoolFull, match="No space left"):
        await images.put(digest_of(content), len(content), RAW, filling())
    assert names(small_pool) == {"ballast"}
    volumes = LocalVolumes(small_pool)
    with pytest.raises(PoolFull, match="bytes free"):
        await volumes.create(volume(1))
    facts = await volumes.facts()
    assert facts.used_bytes > 90 * MIB > 8 * MIB > facts.free_bytes
    ballast.unlink()
    await put(images, content, RAW)


async def test_an_unfinished_put_gives_way_when_space_is_needed(small_pool: Path) -> None:
    images = LocalImages(small_pool)
    first, second = os.urandom(60 * MIB), os.urandom(64 * MIB)
    with pytest.raises(StorageError, match="ended after"):
        await images.put(digest_of(first), len(first), RAW, chunked(first[: 50 * MIB], MIB))
    await images.put(digest_of(second), len(second), RAW, chunked(second, MIB))
    assert await images.partial_bytes(digest_of(first)) == 0


async def test_a_damaged_volume_is_seen_and_hides_no_other(world: World, pool: Path, tmp_path: Path) -> None:
    digest = await put(world.images, make_qcow2(tmp_path))
    await world.volumes.create(volume(1, 16 * MIB, digest))
    await world.volumes.create(volume(2))
    (pool / "volumes/vol-00000001.qcow2").write_bytes(bytes(4096))
    assert [held.size_bytes for held in await world.volumes.list()] == [0, 16 * MIB]
    for call in (world.volumes.attachment("vol-00000001"), world.volumes.resize("vol-00000001", 32 * MIB)):
        with pytest.raises(StorageError, match="damaged") as damaged:
            await call
        assert not damaged.value.retryable
    with pytest.raises(StorageError, match="is kept"):
        await world.images.delete(digest)
    await world.volumes.delete("vol-00000001")
    await world.images.delete(digest)


async def test_a_disk_that_cannot_read_one_head_hides_no_other(
    world: World, pool: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = await put(world.images, bytes(MIB), RAW)
    for number in (1, 2):
        await world.volumes.create(volume(number))
    bad = {path.stat().st_ino for path in (pool / "volumes/vol-00000001.qcow2", pool / "images" / digest[7:])}
    read = os.pread

    def unreadable(handle: int, size: int, offset: int) -> bytes:
        if os.fstat(handle).st_ino in bad:
            raise OSError(errno.EIO, "Input/output error")
        return read(handle, size, offset)

    monkeypatch.setattr(os, "pread", unreadable)
    assert [held.size_bytes for held in await world.volumes.list()] == [0, 16 * MIB]
    assert [held.size_bytes for held in await world.volumes.observe(["vol-00000001", "vol-00000002"])] == [0, 16 * MIB]
    assert [held.is_sound for held in await world.images.list()] == [False]


async def test_a_damaged_image_is_seen_hides_no_other_and_is_put_anew(world: World, pool: Path) -> None:
    first, second = bytes(MIB), b"\1" * MIB
    broken, sound = await put(world.images, first, RAW), await put(world.images, second, RAW)
    (pool / "images" / broken.removeprefix("sha256:")).write_bytes(b"")
    held = {each.digest: each.is_sound for each in await world.images.list()}
    assert held == {broken: False, sound: True}
    await world.volumes.create(volume(1, 16 * MIB, sound))
    with pytest.raises(StorageError, match="damaged") as refused:
        await world.volumes.create(volume(2, 16 * MIB, broken))
    assert refused.value.retryable
    assert await put(world.images, first, RAW) == broken
    assert all(each.is_sound for each in await world.images.list())
    (pool / "images" / broken.removeprefix("sha256:")).write_bytes(b"")
    await world.images.delete(broken)
    assert [each.digest for each in await world.images.list()] == [sound]


PUT_FOR_EVER = """
import asyncio, sys
from pathlib import Path
from cairn.proto.v1.image_pb2 import ImageFormat
from cairn.storage.local import LocalImages

async def chunks():
    yield bytes(1 << 20)
    print("half way", flush=True)
    await asyncio.Event().wait()

asyncio.run(LocalImages(Path(sys.argv[1])).put(sys.argv[2], 2 << 20, ImageFormat.IMAGE_FORMAT_RAW, chunks()))
"""
CREATE_FOR_EVER = """
import asyncio, sys
from pathlib import Path
from cairn.proto.v1.agent_pb2 import DesiredVolume
from cairn.storage import local

def stuck(*arguments):
    print("half way", flush=True)
    while True:
        sys.stdin.read()

local.publish = stuck
asyncio.run(local.LocalVolumes(Path(sys.argv[1])).create(DesiredVolume(id=sys.argv[2], size_bytes=1 << 20)))
"""


def kill_half_way(program: str, *arguments: str) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", program, *arguments], stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "half way\n"
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()


async def test_kill_in_the_middle_of_a_put(world: World, pool: Path) -> None:
    content = bytes(2 * MIB)
    digest = digest_of(content)
    await asyncio.to_thread(kill_half_way, PUT_FOR_EVER, str(pool), digest)
    assert await world.images.list() == []
    assert await world.images.partial_bytes(digest) == MIB
    await world.images.put(digest, len(content), RAW, chunked(content[MIB:]), offset=MIB)
    assert await collect(world.images.get(digest)) == content


async def test_kill_in_the_middle_of_a_create(world: World, pool: Path) -> None:
    await asyncio.to_thread(kill_half_way, CREATE_FOR_EVER, str(pool), "vol-00000001")
    assert names(pool) == {"volumes/.vol-00000001.qcow2.new"}
    assert await world.volumes.list() == []
    await world.volumes.recover()
    assert names(pool) == set()
    await world.volumes.create(volume(1))
    assert names(pool) == {"volumes/vol-00000001.qcow2"}


async def test_a_cancelled_put_keeps_what_came(world: World) -> None:
    content = bytes(2 * MIB)
    half = asyncio.Event()

    async def stuck() -> AsyncIterator[bytes]:
        yield content[:MIB]
        half.set()
        await asyncio.Event().wait()

    task = asyncio.ensure_future(world.images.put(digest_of(content), len(content), RAW, stuck()))
    await half.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await world.images.partial_bytes(digest_of(content)) == MIB


async def test_a_truncated_copy_of_a_held_image_is_refused(world: World, tmp_path: Path) -> None:
    content = make_qcow2(tmp_path)
    digest = await put(world.images, content)
    with pytest.raises(BadImage, match="not as announced"):
        await world.images.put(digest, len(content) - 1, QCOW2, chunked(content))
