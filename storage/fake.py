"""Storage in memory: a shipped driver, with knobs for faults. What a disk would keep over a crash is in FakePool.

pool = FakePool(capacity_bytes=10 << 30)
images, volumes = FakeImages(pool), FakeVolumes(pool)    # made again after a "crash" of the agent, the pool stays
pool.faults["create"].append(StorageError("the disk is slow today"))     # the next create raises it, and does nothing
pool.faults_after["delete"].append(StorageError("nobody knows"))         # the next delete raises it, and is done
pool.hang["observe"] = 1                                                 # the next observe hangs, until pool.let_go()
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Collection, Sequence
from dataclasses import dataclass, field
from typing import Final
from weakref import WeakValueDictionary

from cairn.proto.v1.agent_pb2 import DesiredVolume
from cairn.proto.v1.image_pb2 import ImageFormat
from cairn.proto.v1.node_pb2 import StoragePool
from cairn.storage.base import Attachment, BadImage, Image, NoSuchImage, PoolFull, StorageError, Volume, starts_over
from cairn.storage.pool import DIGEST, require_volume_id
from cairn.storage.qcow2 import HEAD_BYTES, check_image, whole_sectors

CHUNK_BYTES: Final = 1 << 20
RESERVE_SHARE: Final = 0.05
VOLUME_FREE_BYTES_MIN: Final = 64 << 20
VOLUME_PATH: Final = "/fake/volumes/"
VOLUME_SUFFIX: Final = ".qcow2"
# What an empty qcow2 file takes.
EMPTY_VOLUME_BYTES: Final = 196_608


@dataclass
class FakePool:
    """The truth: what a node's disk holds. Outlives the drivers.

    `faults` and `faults_after`: method name -> errors its next calls raise, before or after what they do; `hang`: how many more
    of its calls hang.
    """

    capacity_bytes: int = 100 << 30
    # Bytes taken by others; raise it to fill the disk.
    foreign_bytes: int = 0
    # Every method waits this long.
    latency_s: float = 0.0
    faults: defaultdict[str, deque[Exception]] = field(default_factory=lambda: defaultdict(deque))
    faults_after: defaultdict[str, deque[Exception]] = field(default_factory=lambda: defaultdict(deque))
    hang: dict[str, int] = field(default_factory=dict)
    hanging: list[asyncio.Event] = field(default_factory=list, repr=False)
    images: dict[str, tuple[Image, bytes]] = field(default_factory=dict)
    partials: dict[str, bytearray] = field(default_factory=dict)
    volumes: dict[str, Volume] = field(default_factory=dict)
    # Volumes being made: what recover sweeps.
    unfinished: set[str] = field(default_factory=set)
    # Pools of other nodes in this process: bytes of an image that one of them holds too are kept once.
    neighbours: Sequence[FakePool] = field(default=(), repr=False, compare=False)

    def used_bytes(self) -> int:
        """Return the bytes taken by anyone."""
        images = sum(len(content) for _, content in self.images.values())
        partials = sum(len(content) for content in self.partials.values())
        return self.foreign_bytes + images + partials + sum(volume.used_bytes for volume in self.volumes.values())

    def hold(self, image: Image, content: bytes) -> None:
        """Keep an image whose bytes were verified."""
        same = (pool.images[image.digest][1] for pool in self.neighbours if image.digest in pool.images)
        self.images[image.digest] = (image, next(same, content))

    def size_at(self, path: str) -> int:
        """Return what a process finds that opens a volume at its path (an Attachment's); 0: it is none of this pool."""
        held = self.volumes.get(_id_at(path))
        return held.size_bytes if held is not None else 0

    def grow(self, path: str, size_bytes: int) -> None:
        """A running guest's process grew the volume it has open at that path."""
        id = _id_at(path)
        held = self.volumes.get(id)
        if held is not None and size_bytes > held.size_bytes:
            self.volumes[id] = Volume(id, whole_sectors(size_bytes), held.used_bytes, held.image_digest)

    def free_bytes(self) -> int:
        """Return the bytes not taken."""
        return max(0, self.capacity_bytes - self.used_bytes())

    async def enter(self, method: str) -> None:
        """Hang if it is to, wait the latency, then raise the next fault of a method, if any."""
        if self.hang.get(method, 0) > 0:
            self.hang[method] -= 1
            self.hanging.append(asyncio.Event())
            await self.hanging[-1].wait()
        await asyncio.sleep(self.latency_s)
        if self.faults[method]:
            raise self.faults[method].popleft()

    def leave(self, method: str) -> None:
        """Raise the next fault of a method that has done its work, if any."""
        if self.faults_after[method]:
            raise self.faults_after[method].popleft()

    def let_go(self) -> None:
        """Nothing hangs any more; what hung goes on."""
        self.hang.clear()
        while self.hanging:
            self.hanging.pop().set()


def _id_at(path: str) -> str:
    return path.removeprefix(VOLUME_PATH).removesuffix(VOLUME_SUFFIX)


class FakeImages:
    """Images in memory; implements ImageStore."""

    def __init__(self, pool: FakePool) -> None:
        self._pool = pool
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def list(self) -> list[Image]:
        """Return what is held."""
        await self._pool.enter("list_images")
        return [image for _, (image, _) in sorted(self._pool.images.items())]

    async def put(
        self,
        digest: str,
        size_bytes: int,
        format: ImageFormat.ValueType,
        chunks: AsyncIterator[bytes],
        *,
        offset: int = 0,
    ) -> Image:
        """Store the bytes (see ImageStore)."""
        _require_digest(digest)
        await self._pool.enter("put")
        async with self._locks.setdefault(digest, asyncio.Lock()):
            held = self._pool.images.get(digest)
            if held:
                return _same(held[0], size_bytes, format)
            try:
                await self._receive(digest, size_bytes, chunks, offset)
                content = bytes(self._pool.partials[digest])
                image = _verify(digest, content, size_bytes, format)
            except (BadImage, PoolFull) as error:
                self._pool.partials.pop(digest, None)
                if offset and isinstance(error, BadImage):
                    raise starts_over(error, offset) from error
                raise
            self._pool.hold(image, content)
            del self._pool.partials[digest]
            self._pool.leave("put")
            return image

    async def get(self, digest: str, offset: int = 0) -> AsyncIterator[bytes]:
        """Yield the bytes as uploaded, from offset."""
        _require_digest(digest)
        await self._pool.enter("get")
        held = self._pool.images.get(digest)
        if held is None:
            raise NoSuchImage(f"image {digest} is not held here")
        for start in range(offset, len(held[1]), CHUNK_BYTES):
            yield held[1][start : start + CHUNK_BYTES]
            await self._pool.enter("get_chunk")

    async def partial_bytes(self, digest: str) -> int:
        """Return how many bytes of an unfinished put are kept."""
        _require_digest(digest)
        return len(self._pool.partials.get(digest, b""))

    async def sweep(self, keep: Collection[str]) -> None:
        """Drop what is kept of unfinished puts, but for these digests and what is being put now."""
        await self._pool.enter("sweep")
        for digest in [each for each in self._pool.partials if each not in keep]:
            lock = self._locks.get(digest)
            if lock is None or not lock.locked():
                del self._pool.partials[digest]

    async def delete(self, digest: str) -> None:
        """Remove it; refused while a volume is its child."""
        _require_digest(digest)
        await self._pool.enter("delete_image")
        children = [volume.id for volume in self._pool.volumes.values() if volume.image_digest == digest]
        if children:
            raise StorageError(f"image {digest} is kept: {len(children)} volumes are its children, such as {children[0]}")
        self._pool.images.pop(digest, None)
        self._pool.partials.pop(digest, None)
        self._pool.leave("delete_image")

    async def _receive(self, digest: str, size_bytes: int, chunks: AsyncIterator[bytes], offset: int) -> None:
        kept = self._pool.partials.setdefault(digest, bytearray())
        if not 0 <= offset <= len(kept):
            raise StorageError(f"image {digest} cannot go on at byte {offset}: {len(kept)} are kept")
        del kept[offset:]
        wanted = size_bytes - offset + int(self._pool.capacity_bytes * RESERVE_SHARE)
        if wanted > self._pool.free_bytes():
            raise PoolFull(f"image {digest} needs {wanted} bytes, {self._pool.free_bytes()} are free")
        async for chunk in chunks:
            if len(chunk) > self._pool.free_bytes():
                raise PoolFull(f"image {digest}: the disk filled up after {len(kept)} of {size_bytes} bytes")
            kept += chunk
            if len(kept) > size_bytes:
                raise BadImage(f"image {digest} was announced with {size_bytes} bytes, more arrived")
            await self._pool.enter("put_chunk")
        if len(kept) < size_bytes:
            raise StorageError(f"image {digest} ended after {len(kept)} of {size_bytes} bytes; they are kept to go on from")


class FakeVolumes:
    """Volumes in memory; implements VolumeDriver."""

    name = "local"

    def __init__(self, pool: FakePool) -> None:
        self._pool = pool

    async def facts(self) -> StoragePool:
        """Return total, used and free bytes of the pool."""
        await self._pool.enter("facts")
        used, free = self._pool.used_bytes(), self._pool.free_bytes()
        return StoragePool(type="local", total_bytes=self._pool.capacity_bytes, used_bytes=used, free_bytes=free, path="/fake")

    async def list(self) -> Sequence[Volume]:
        """Return the volumes."""
        await self._pool.enter("list")
        return [volume for _, volume in sorted(self._pool.volumes.items())]

    async def observe(self, ids: Collection[str]) -> Sequence[Volume]:
        """Return those of these volumes that are there."""
        for id in ids:
            require_volume_id(id)
        await self._pool.enter("observe")
        return [self._pool.volumes[id] for id in sorted(ids) if id in self._pool.volumes]

    async def create(self, volume: DesiredVolume) -> None:
        """Make it (see VolumeDriver)."""
        require_volume_id(volume.id)
        held = self._pool.volumes.get(volume.id)
        if held:
            if held.image_digest != volume.image_digest:
                raise StorageError(f"volume {held.id} is here already as a copy of something else", retryable=False)
            return
        self._require_room(volume)
        self._require_image(volume)
        self._pool.unfinished.add(volume.id)
        await self._pool.enter("create")
        # Others ran meanwhile.
        self._require_image(volume)
        size = whole_sectors(volume.size_bytes)
        self._pool.volumes[volume.id] = Volume(volume.id, size, EMPTY_VOLUME_BYTES, volume.image_digest)
        self._pool.unfinished.discard(volume.id)
        self._pool.leave("create")

    async def resize(self, id: str, size_bytes: int, *, generation: int = 0) -> None:  # noqa: ARG002 - nobody else's pool
        """Grow it; shrinking is refused."""
        require_volume_id(id)
        await self._pool.enter("resize")
        held = self._pool.volumes.get(id)
        if held is None:
            raise StorageError(f"volume {id} is not here, so it cannot grow to {size_bytes} bytes")
        wanted = whole_sectors(size_bytes)
        if wanted < held.size_bytes:
            raise StorageError(f"volume {id} has {held.size_bytes} bytes and cannot shrink to {size_bytes}", retryable=False)
        if wanted > self._pool.capacity_bytes:
            raise PoolFull(f"volume {id} of {wanted} bytes is larger than the pool of {self._pool.capacity_bytes} bytes")
        self._pool.volumes[id] = Volume(id, wanted, held.used_bytes, held.image_digest)
        self._pool.leave("resize")

    async def delete(self, id: str, *, generation: int = 0) -> None:  # noqa: ARG002 - nobody else's pool
        """Remove it; absent: no error."""
        require_volume_id(id)
        await self._pool.enter("delete")
        self._pool.volumes.pop(id, None)
        self._pool.leave("delete")

    async def attachment(self, id: str) -> Attachment:
        """Return how to open it."""
        require_volume_id(id)
        if id not in self._pool.volumes:
            raise StorageError(f"volume {id} is not here")
        return Attachment(f"{VOLUME_PATH}{id}{VOLUME_SUFFIX}", "qcow2")

    async def recover(self) -> None:
        """Forget what a killed predecessor was making."""
        await self._pool.enter("recover")
        self._pool.unfinished.clear()

    def _require_room(self, volume: DesiredVolume) -> None:
        if volume.size_bytes > self._pool.capacity_bytes:
            say = (
                f"volume {volume.id} of {volume.size_bytes} bytes is larger than the pool of {self._pool.capacity_bytes} bytes"
            )
            raise PoolFull(say)
        if self._pool.free_bytes() < VOLUME_FREE_BYTES_MIN:
            say = f"volume {volume.id} wants {VOLUME_FREE_BYTES_MIN} bytes free, {self._pool.free_bytes()} are"
            raise PoolFull(say)

    def _require_image(self, volume: DesiredVolume) -> None:
        if not volume.image_digest:
            return
        held = self._pool.images.get(volume.image_digest)
        if held is None:
            raise NoSuchImage(f"volume {volume.id} starts from image {volume.image_digest}, which is not held here (yet)")
        if volume.size_bytes < held[0].virtual_size_bytes:
            say = f"volume {volume.id} is smaller than its image's disk of {held[0].virtual_size_bytes} bytes"
            raise StorageError(say, retryable=False)


def _verify(digest: str, content: bytes, size_bytes: int, format: ImageFormat.ValueType) -> Image:
    found = "sha256:" + hashlib.sha256(content).hexdigest()
    if found != digest:
        raise BadImage(f"the bytes have digest {found}, promised was {digest}")
    format, virtual = check_image(content[:HEAD_BYTES], size_bytes, format)
    return Image(digest, size_bytes, virtual, format)


def _same(held: Image, size_bytes: int, format: ImageFormat.ValueType) -> Image:
    if held.size_bytes != size_bytes or format not in (held.format, ImageFormat.IMAGE_FORMAT_UNSPECIFIED):
        raise BadImage(f"image {held.digest} is held with {held.size_bytes} bytes, not as announced")
    return held


def _require_digest(digest: str) -> None:
    if not DIGEST.fullmatch(digest):
        raise StorageError(f"{digest!r} is not a digest (sha256: and 64 hex digits)", retryable=False)
