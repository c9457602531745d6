"""Volumes and images as files of one local file system: qcow2 copy-on-write children over immutable images.

Invariant: a name in the pool is complete, verified and durable; what is not, has a temporary name. So a kill at any point
leaves nothing visible, and the same call again succeeds. Free space is what the file system says at that moment, never a sum
of our own. Rejected: LVM thin (needs a volume group, no copy between nodes without a reader), reflink copies (ext4 has none).
"""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final
from weakref import WeakValueDictionary

from cairn.proto.v1.agent_pb2 import DesiredVolume
from cairn.proto.v1.image_pb2 import ImageFormat
from cairn.proto.v1.node_pb2 import StoragePool
from cairn.storage import qemu_img
from cairn.storage.base import Attachment, BadImage, Image, NoSuchImage, PoolFull, StorageError, Volume, starts_over
from cairn.storage.owner import PRIVATE, Owner
from cairn.storage.pool import (
    BACKING,
    IMAGE_FILE,
    VOLUME_FILE,
    Pool,
    attempt,
    head_of,
    in_thread,
    open_partial,
    publish,
    remove,
)
from cairn.storage.qcow2 import HEAD_BYTES, SECTOR_BYTES, blank, check_image, read_head, whole_sectors

CHUNK_BYTES: Final = 1 << 20
# Share of the file system that images leave free for volumes to grow into.
RESERVE_SHARE: Final = 0.05
# Volumes are thin, but none is made on a pool emptier than this.
VOLUME_FREE_BYTES_MIN: Final = 64 << 20
_FORMAT_NAMES: Final = {ImageFormat.IMAGE_FORMAT_QCOW2: "qcow2", ImageFormat.IMAGE_FORMAT_RAW: "raw"}


class _Locks:
    """One asyncio lock per name, forgotten when nobody uses it."""

    def __init__(self) -> None:
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    def of(self, name: str) -> asyncio.Lock:
        return self._locks.setdefault(name, asyncio.Lock())


class LocalImages:
    """Images of a pool; implements ImageStore."""

    def __init__(self, pool_dir: Path, owner: Owner | None = None) -> None:
        self._pool = Pool(pool_dir, owner)
        self._locks = _Locks()

    async def list(self) -> list[Image]:
        """Return what is held, complete and verified."""

        def scan() -> list[Image]:
            names = sorted(path.name for path in self._pool.images.iterdir() if IMAGE_FILE.fullmatch(path.name))
            return [image for name in names if (image := _image(self._pool, "sha256:" + name))]

        with attempt("listing the images"):
            return await in_thread(scan)

    async def put(
        self, digest: str, size_bytes: int, format: ImageFormat.ValueType, chunks: AsyncIterator[bytes], *, offset: int = 0
    ) -> Image:
        """Store the bytes (see ImageStore)."""
        path, partial = self._pool.image(digest), self._pool.partial(digest)
        async with self._locks.of(digest):
            held = await in_thread(_image, self._pool, digest)
            if held and held.is_sound:
                return _same(held, size_bytes, format)
            storing = f"storing image {digest}"
            with attempt(storing):
                await self._make_room(digest, size_bytes, offset)
                handle = open_partial(partial)
            try:
                await _receive(handle, digest, size_bytes, chunks, offset)
                with attempt(storing):
                    head = await in_thread(os.pread, handle, HEAD_BYTES, 0)
                    found, virtual = check_image(head, size_bytes, format)
                    if found == ImageFormat.IMAGE_FORMAT_QCOW2:
                        await qemu_img.check(str(partial), virtual)
                    await in_thread(publish, partial, path, self._pool.owner.lend)
            except (BadImage, PoolFull) as error:
                await in_thread(remove, partial)
                if offset and isinstance(error, BadImage):
                    raise starts_over(error, offset) from error
                raise
            finally:
                os.close(handle)
        return Image(digest, size_bytes, virtual, found)

    async def get(self, digest: str, offset: int = 0) -> AsyncIterator[bytes]:
        """Yield the bytes as uploaded, from offset, at most 1 MiB at a time."""
        path = self._pool.image(digest)
        with attempt(f"opening image {digest}"):
            try:
                handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            except FileNotFoundError as error:
                raise NoSuchImage(f"image {digest} is not held here") from error
        try:
            with attempt(f"reading image {digest}"):
                while chunk := await in_thread(os.pread, handle, CHUNK_BYTES, offset):
                    yield chunk
                    offset += len(chunk)
        finally:
            os.close(handle)

    @asynccontextmanager
    async def lent(self, digest: str) -> AsyncIterator[tuple[Path, str, int]]:
        """Give an image's file, its format as QEMU names it and its disk's size in bytes, to be copied.

        It is not deleted meanwhile. NoSuchImage; StorageError when it is damaged.
        """
        path = self._pool.image(digest)
        async with self._pool.locked(exclusive=False):
            with attempt(f"opening image {digest}"):
                held = await in_thread(_image, self._pool, digest)
            if held is None:
                raise NoSuchImage(f"image {digest} is not held here (yet)")
            if not held.is_sound:
                raise StorageError(f"image {digest} is damaged here")
            yield path, _FORMAT_NAMES[held.format], held.virtual_size_bytes

    async def partial_bytes(self, digest: str) -> int:
        """Return how many bytes of an unfinished put are kept for resuming."""
        found = await in_thread(head_of, self._pool.partial(digest))
        return found[1].st_size if found else 0

    async def sweep(self, keep: Collection[str]) -> None:
        """Drop what is kept of unfinished puts, but for these digests and what is being put now."""
        with attempt("removing unfinished images"):
            await in_thread(self._pool.drop_partials, keep)

    async def delete(self, digest: str) -> None:
        """Remove it and what is kept of an unfinished put; refused while a volume is its child."""
        path, partial = self._pool.image(digest), self._pool.partial(digest)
        async with self._locks.of(digest), self._pool.locked(exclusive=True):
            with attempt(f"deleting image {digest}"):
                children = await in_thread(_children, self._pool, digest)
                if children:
                    raise StorageError(
                        f"image {digest} is kept: {len(children)} volumes are its children, such as {children[0]}"
                    )
                await in_thread(remove, partial)
                await in_thread(remove, path)

    async def _make_room(self, digest: str, size_bytes: int, offset: int) -> None:
        # What is kept of this image is taken already; started over, it is given back first.
        if not offset:
            await in_thread(remove, self._pool.partial(digest))
        facts = await in_thread(self._pool.facts)
        wanted = max(0, size_bytes - offset) + int(facts.total_bytes * RESERVE_SHARE)
        if wanted > facts.free_bytes and not offset and await in_thread(self._pool.drop_partials):
            facts = await in_thread(self._pool.facts)
        if wanted > facts.free_bytes:
            raise PoolFull(
                f"image {digest} needs {wanted} bytes in {facts.path} ({RESERVE_SHARE:.0%} of the pool are kept free), "
                f"{facts.free_bytes} are free"
            )


class LocalVolumes:
    """Volumes of a pool; implements VolumeDriver."""

    name = "local"

    def __init__(self, pool_dir: Path, owner: Owner | None = None) -> None:
        self._pool = Pool(pool_dir, owner)
        self._locks = _Locks()

    async def facts(self) -> StoragePool:
        """Return total, used and free bytes, as the file system says."""
        with attempt(f"measuring {self._pool.folder}"):
            return await in_thread(self._pool.facts)

    async def list(self) -> Sequence[Volume]:
        """Return all our volumes in the pool."""

        def scan() -> list[Volume]:
            names = sorted(match[1] for path in self._pool.volumes.iterdir() if (match := VOLUME_FILE.fullmatch(path.name)))
            return [volume for name in names if (volume := _volume(self._pool, name))]

        with attempt("listing the volumes"):
            return await in_thread(scan)

    async def observe(self, ids: Collection[str]) -> Sequence[Volume]:
        """Return those of these volumes that are there."""

        def look() -> list[Volume]:
            return [volume for id in sorted(ids) if (volume := _volume(self._pool, id))]

        with attempt(f"looking at {len(ids)} volumes"):
            return await in_thread(look)

    async def create(self, volume: DesiredVolume) -> None:
        """Make it (see VolumeDriver)."""
        path, new = self._pool.volume(volume.id), self._pool.unfinished(volume.id)
        async with self._locks.of(volume.id), self._pool.locked(exclusive=False):
            with attempt(f"creating volume {volume.id}"):
                held = await in_thread(_volume, self._pool, volume.id)
                if held:
                    _require_origin(held, volume)
                    return
                await self._require_room(volume)
                backing = await in_thread(_backing, self._pool, volume)
                await in_thread(self._make, new, path, whole_sectors(volume.size_bytes), backing)

    def _make(self, new: Path, path: Path, size_bytes: int, backing: Mapping[str, str]) -> None:
        """Make a blank volume, durably and whole or not at all."""
        try:
            _write_blank(new, size_bytes, **backing)
            publish(new, path, self._pool.owner.give)
        except BaseException:
            remove(new)
            raise

    async def resize(self, id: str, size_bytes: int, *, generation: int = 0) -> None:  # noqa: ARG002 - nobody else's pool
        """Grow it; shrinking is refused."""
        path, wanted = self._pool.volume(id), whole_sectors(size_bytes)
        async with self._locks.of(id):
            with attempt(f"growing volume {id}"):
                held = await in_thread(_volume, self._pool, id)
                if held is None:
                    raise StorageError(f"volume {id} is not here, so it cannot grow to {size_bytes} bytes")
                if not held.size_bytes:
                    raise StorageError(f"volume {id} is damaged: {path} has no qcow2 header", retryable=False)
                if wanted < held.size_bytes:
                    say = f"volume {id} has {held.size_bytes} bytes and cannot shrink to {size_bytes}"
                    raise StorageError(say, retryable=False)
                if wanted > held.size_bytes:
                    _require_total(await in_thread(self._pool.facts), id, wanted)
                    await qemu_img.resize(str(path), wanted)

    async def delete(self, id: str, *, generation: int = 0) -> None:  # noqa: ARG002 - nobody else's pool
        """Remove it; absent: no error."""
        path = self._pool.volume(id)
        async with self._locks.of(id):
            with attempt(f"deleting volume {id}"):
                await in_thread(remove, path)

    async def attachment(self, id: str) -> Attachment:
        """Return how to open it."""
        path = self._pool.volume(id)
        with attempt(f"opening volume {id}"):
            held = await in_thread(_volume, self._pool, id)
        if held is None:
            raise StorageError(f"volume {id} is not here")
        if not held.size_bytes:
            raise StorageError(f"volume {id} is damaged: {path} has no qcow2 header", retryable=False)
        return Attachment(str(path), "qcow2")

    async def recover(self) -> None:
        """Sweep the unfinished volumes of a killed predecessor. Unfinished puts stay, to be resumed or dropped for space."""

        def sweep() -> None:
            for path in self._pool.volumes.iterdir():
                if path.name.startswith(".") and path.name.endswith(".new"):
                    remove(path)

        with attempt(f"sweeping {self._pool.volumes}"):
            await in_thread(sweep)

    async def _require_room(self, volume: DesiredVolume) -> None:
        facts = await in_thread(self._pool.facts)
        _require_total(facts, volume.id, volume.size_bytes)
        if facts.free_bytes < VOLUME_FREE_BYTES_MIN and await in_thread(self._pool.drop_partials):
            facts = await in_thread(self._pool.facts)
        if facts.free_bytes < VOLUME_FREE_BYTES_MIN:
            say = f"volume {volume.id} wants {VOLUME_FREE_BYTES_MIN} bytes free in {facts.path}, {facts.free_bytes} are"
            raise PoolFull(say)


def _image(pool: Pool, digest: str) -> Image | None:
    found = head_of(pool.image(digest))
    if found is None:
        return None
    head, status = found
    try:
        if not head:
            raise BadImage("its first bytes cannot be read")
        format, virtual = check_image(head, status.st_size, ImageFormat.IMAGE_FORMAT_UNSPECIFIED)
    except BadImage:
        # One damaged file must not hide the others.
        return Image(digest, status.st_size, 0, ImageFormat.IMAGE_FORMAT_UNSPECIFIED)
    return Image(digest, status.st_size, virtual, format)


async def _receive(handle: int, digest: str, size_bytes: int, chunks: AsyncIterator[bytes], offset: int) -> None:
    """Write an unfinished put from offset on, and hash all of it."""
    hasher = hashlib.sha256()

    def write(chunk: bytes) -> None:
        hasher.update(chunk)
        view = memoryview(chunk)
        while view:
            view = view[os.write(handle, view) :]

    # Errors of the chunks are the caller's own and pass as they are.
    with attempt(f"resuming image {digest}"):
        await in_thread(_resume, handle, digest, offset, hasher)
    received = offset
    async for chunk in chunks:
        received += len(chunk)
        if received > size_bytes:
            raise BadImage(f"image {digest} was announced with {size_bytes} bytes, more arrived")
        with attempt(f"writing image {digest}"):
            await in_thread(write, chunk)
    if received < size_bytes:
        raise StorageError(f"image {digest} ended after {received} of {size_bytes} bytes; they are kept to go on from")
    found = "sha256:" + hasher.hexdigest()
    if found != digest:
        raise BadImage(f"the bytes have digest {found}, promised was {digest}")


def _same(held: Image, size_bytes: int, format: ImageFormat.ValueType) -> Image:
    if held.size_bytes != size_bytes or format not in (held.format, ImageFormat.IMAGE_FORMAT_UNSPECIFIED):
        held_as = f"{_FORMAT_NAMES[held.format]} of {held.size_bytes} bytes"
        raise BadImage(f"image {held.digest} is held as {held_as}, not as announced")
    return held


def _resume(handle: int, digest: str, offset: int, hasher: hashlib._Hash) -> None:
    """Cut the file to offset, hash what stays, and stand at its end."""
    kept = os.fstat(handle).st_size
    if not 0 <= offset <= kept:
        raise StorageError(f"image {digest} cannot go on at byte {offset}: {kept} are kept")
    os.ftruncate(handle, offset)
    done = 0
    while done < offset:
        chunk = os.pread(handle, CHUNK_BYTES, done)
        hasher.update(chunk)
        done += len(chunk)
    os.lseek(handle, offset, os.SEEK_SET)


def _volume(pool: Pool, id: str) -> Volume | None:
    found = head_of(pool.volume(id))
    if found is None:
        return None
    head, status = found
    used = status.st_blocks * SECTOR_BYTES
    try:
        qcow2 = read_head(head)
    except BadImage:
        # One damaged file must not hide the others: it is listed with no size, and refused where it is used.
        return Volume(id, 0, used)
    child = BACKING.fullmatch(qcow2.backing)
    return Volume(id, qcow2.virtual_size_bytes, used, f"sha256:{child[1]}" if child else "")


def _children(pool: Pool, digest: str) -> list[str]:
    """Return the files among the volumes, unfinished ones too, that have (or, being damaged, may have) the image as backing."""
    wanted = f"../images/{pool.image(digest).name}"
    heads = ((path.name, head_of(path)) for path in sorted(pool.volumes.iterdir()))
    return [name for name, found in heads if found and _may_be_child(found[0], wanted)]


def _may_be_child(head: bytes, backing: str) -> bool:
    try:
        return read_head(head).backing == backing
    except BadImage:
        return True


def _backing(pool: Pool, volume: DesiredVolume) -> dict[str, str]:
    """Return what `blank` is to be told of the image a volume starts from."""
    if not volume.image_digest:
        return {}
    image = _image(pool, volume.image_digest)
    if image is None:
        raise NoSuchImage(f"volume {volume.id} starts from image {volume.image_digest}, which is not held here (yet)")
    if not image.is_sound:
        raise StorageError(f"volume {volume.id} starts from image {volume.image_digest}, which is damaged here")
    if volume.size_bytes < image.virtual_size_bytes:
        say = f"volume {volume.id} of {volume.size_bytes} bytes is smaller than its image's disk of {image.virtual_size_bytes}"
        raise StorageError(say, retryable=False)
    # Relative, so that the pool may be mounted elsewhere.
    return {"backing": f"../images/{pool.image(image.digest).name}", "backing_format": _FORMAT_NAMES[image.format]}


def _write_blank(path: Path, size_bytes: int, *, backing: str = "", backing_format: str = "") -> None:
    """Write the file of a disk that is empty, or as its image is; what stood there is overwritten. StorageError: too large."""
    try:
        pieces, file_bytes = blank(size_bytes, backing=backing, backing_format=backing_format)
    except ValueError as error:
        raise StorageError(f"making {path.name}: {error}", retryable=False) from error
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, PRIVATE)
    try:
        os.ftruncate(handle, file_bytes)
        for offset, content in pieces.items():
            _write_at(handle, content, offset)
    finally:
        os.close(handle)


def _write_at(handle: int, content: bytes, offset: int) -> None:
    done = 0
    while done < len(content):
        done += os.pwrite(handle, content[done:], offset + done)


def _require_origin(held: Volume, wanted: DesiredVolume) -> None:
    if held.image_digest != wanted.image_digest:
        origins = f"{held.image_digest or 'no image'}, not of {wanted.image_digest or 'none'}"
        say = f"volume {held.id} is here already as a copy of {origins}"
        raise StorageError(say, retryable=False)


def _require_total(facts: StoragePool, id: str, size_bytes: int) -> None:
    if size_bytes > facts.total_bytes:
        raise PoolFull(f"volume {id} of {size_bytes} bytes is larger than all of {facts.path}: {facts.total_bytes} bytes")
