"""What the storage suites share: small disk images made by qemu-img, and one world per driver."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from cairn.proto.seams import Clock, SystemClock, SystemIds
from cairn.proto.v1.agent_pb2 import DesiredVolume
from cairn.proto.v1.image_pb2 import ImageFormat
from cairn.storage.base import ImageStore, VolumeDriver
from cairn.storage.fake import FakeImages, FakePool, FakeVolumes
from cairn.storage.fake_shared import FakeSharedVolumes, SharedPool
from cairn.storage.local import LocalImages, LocalVolumes
from cairn.storage.rbd import RbdVolumes
from cairn.storage.rbd_pool import Place, RbdPool

MIB = 1 << 20
QCOW2 = ImageFormat.IMAGE_FORMAT_QCOW2
RAW = ImageFormat.IMAGE_FORMAT_RAW
needs_qemu = pytest.mark.skipif(not (shutil.which("qemu-img") and shutil.which("qemu-io")), reason="no qemu-img and qemu-io")


def digest_of(content: bytes) -> str:
    return "sha256:" + hashlib.sha256(content).hexdigest()


async def chunked(content: bytes, size: int = 64 << 10) -> AsyncIterator[bytes]:
    for start in range(0, len(content), size):
        yield content[start : start + size]


async def collect(chunks: AsyncIterator[bytes]) -> bytes:
    return b"".join([chunk async for chunk in chunks])


async def put(images: ImageStore, content: bytes, format: ImageFormat.ValueType = QCOW2, *, offset: int = 0) -> str:
    digest = digest_of(content)
    await images.put(digest, len(content), format, chunked(content[offset:]), offset=offset)
    return digest


def run(*command: str | Path) -> str:
    return subprocess.run([str(part) for part in command], check=True, capture_output=True, text=True).stdout


def make_qcow2(folder: Path, *, size: int = 8 * MIB, pattern: int = 0x5A, more: tuple[str, ...] = ()) -> bytes:
    """A qcow2 image whose first MiB is `pattern`."""
    path = folder / "image.qcow2"
    run("qemu-img", "create", "-q", "-f", "qcow2", *more, path, str(size))
    run("qemu-io", "-f", "qcow2", "-c", f"write -P {pattern} 0 1M", path)
    return path.read_bytes()


def volume(number: int, size: int = 16 * MIB, digest: str = "") -> DesiredVolume:
    id = f"vol-{number:08d}"
    return DesiredVolume(id=id, size_bytes=size, type="local", image_digest=digest, image="img-00000001" if digest else "")


@dataclass
class World:
    """One driver pair; `again` makes new drivers on the same truth, as an agent does after a crash."""

    images: ImageStore
    volumes: VolumeDriver
    again: Callable[[], World]


def fake_world(pool: FakePool) -> World:
    return World(FakeImages(pool), FakeVolumes(pool), lambda: fake_world(pool))


def shared_world(pool: SharedPool, node: FakePool) -> World:
    return World(FakeImages(node), FakeSharedVolumes(pool, node), lambda: shared_world(pool, node))


def local_world(folder: Path) -> World:
    return World(LocalImages(folder), LocalVolumes(folder), lambda: local_world(folder))


@dataclass
class CephPlace:
    """A namespace of a pool of a real cluster; `pools` are the ways to it that a test opened, to be closed by it."""

    place: Place
    folder: Path
    pools: list[RbdPool]

    def world(self, node: str = "n1", clock: Clock | None = None) -> World:
        """The driver of one node; each has a worker of its own."""
        self.pools.append(RbdPool(self.place))
        images = LocalImages(self.folder / node)
        volumes = RbdVolumes(self.pools[-1], images, SystemIds(), clock or SystemClock(), node=node)
        return World(images, volumes, lambda: self.world(node, clock))

    async def close(self) -> None:
        for pool in self.pools:
            await pool.close()
