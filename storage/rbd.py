"""Volumes in a pool of Ceph (RBD): what several nodes reach, and one at a time administers.

    pool = RbdPool(Place(conf="/etc/ceph/ceph.conf", user="cairn", pool="vms"))
    driver = RbdVolumes(pool, LocalImages(folder), SystemIds(), SystemClock(), node="n1")
    await driver.create(DesiredVolume(id="vol-00000001", size_bytes=1 << 30, generation=1))
    (await driver.attachment("vol-00000001")).path          # "vms/vol-00000001.1.5f0c21aa"
    await driver.delete("vol-00000001", generation=1)       # Superseded, once another node acted as 2

What a volume is says its record, an object beside the images: cairn.volume.<id>. It names the newest generation in whose name
anything was done, the image that is the volume, and those that are left to be removed. A record is replaced only if it is still
what was read, in one operation of the cluster. Three rules make it safe that two nodes, or a process and its killed
predecessor, act at once:

1. An image has a name of its own, <id>.<generation>.<token>, used by one attempt and never again.
2. The record names an image before it is made, and makes it the volume in a second step; no image is removed that a record
   calls the volume. So whoever is late has worked on an image nobody knows, and removes it, or others do (`sweep`).
3. Images only grow.

Records of volumes that are gone stay, some hundred bytes each: a node that was away makes none again.

An image that volumes start from is copied into the pool once (cairn.image.<digest>, the same rules); volumes are clones of it,
made in a moment whatever its size. A copy that nothing was cloned from for a day, and that has no clones left, goes.

Rejected: `rbd lock` and exclusive-lock as proof of who administers (both are given up when a client is slow, and say nothing of
what it still sends); librbd in this process (rbd_worker.py says why).
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import re
from collections.abc import Awaitable, Collection, Sequence
from contextlib import AbstractAsyncContextManager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Final, Protocol
from weakref import WeakValueDictionary

from cairn.proto.seams import Clock, Ids
from cairn.proto.v1.agent_pb2 import DesiredVolume
from cairn.proto.v1.node_pb2 import StoragePool
from cairn.storage.base import Attachment, PoolFull, StorageError, Superseded, Volume
from cairn.storage.pool import require_volume_id
from cairn.storage.qcow2 import whole_sectors
from cairn.storage.rbd_pool import Place, RbdError, Stat
from cairn.storage.rbd_record import BadRecord, Record, digits, object_of, source_object, with_name, without_name

TYPE: Final = "rbd"
# What a volume takes whose image is being removed.
LEFT_BYTES: Final = 4096
# How many images of attempts that failed wait for the volume's end; beyond that some go before the next attempt.
LEFT_MAX: Final = 3
# How often a record may be found changed by others before that is an error.
ROUNDS_MAX: Final = 8
# How long what a pool has free is believed before something is made there.
ROOM_S: Final = 5.0
# How long a copy of an image is kept that nothing was cloned from, and how exactly that is known.
KEPT_S: Final = 24 * 3600
USED_S: Final = 3600
_COPY: Final = re.compile(r"image\.([0-9a-f]{8})\.([0-9a-f]{32})\.[0-9a-f]{8}")
_VOLUME_IMAGE: Final = re.compile(r"(vol-[0-9a-z]{8})\.\d+\.[0-9a-f]{8}")


class Images(Protocol):
    """Where the content is that volumes start as copies of: LocalImages."""

    def lent(self, digest: str) -> AbstractAsyncContextManager[tuple[Path, str, int]]:
        """Give an image's file, its format as QEMU names it and its disk's size in bytes. Raises NoSuchImage."""
        ...


class BlockPool(Protocol):
    """What is needed of a pool: RbdPool, whose methods say what they do."""

    place: Place

    async def read(self, object: str) -> str | None: ...  # noqa: D102
    async def swap(self, object: str, old: str | None, new: str) -> bool: ...  # noqa: D102
    async def make(self, name: str, size_bytes: int) -> None: ...  # noqa: D102
    async def fill(self, name: str, path: Path, format: str, size_bytes: int) -> None: ...  # noqa: D102
    async def freeze(self, name: str) -> None: ...  # noqa: D102
    async def clone(self, parent: str, name: str) -> None: ...  # noqa: D102
    async def grow(self, name: str, size_bytes: int) -> None: ...  # noqa: D102
    async def stat(self, name: str) -> Stat | None: ...  # noqa: D102
    async def remove(self, name: str) -> None: ...  # noqa: D102
    async def names(self, prefix: str) -> list[str]: ...  # noqa: D102
    async def has_children(self, name: str) -> bool: ...  # noqa: D102
    async def room(self) -> tuple[int, int]: ...  # noqa: D102
    async def shut_out(self, name: str) -> None: ...  # noqa: D102


class RbdVolumes:
    """Implements VolumeDriver; see the module."""

    name = TYPE

    def __init__(self, pool: BlockPool, images: Images, ids: Ids, clock: Clock, *, node: str) -> None:
        """node: name of this one, which tells what it copied into the pool."""
        self._pool, self._images, self._ids, self._clock = pool, images, ids, clock
        self._copying: set[str] = set()
        # By digest: one copy at a time.
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        # Bytes used and free, and until when that is believed.
        self._room, self._room_until_s = (0, 0), -1.0
        self._mine = hashlib.sha256(node.encode()).hexdigest()[:8]

    async def facts(self) -> StoragePool:
        """Return total, used and free bytes, copies counted once."""
        used, free = await self._pool.room()
        name = self._pool.place.path("").rstrip("/")
        return StoragePool(type=TYPE, name=name, total_bytes=used + free, used_bytes=used, free_bytes=free)

    async def observe(self, ids: Collection[str]) -> Sequence[Volume]:
        """Return those of these volumes that are there; one that is damaged, or whose image is being removed, has no size."""
        for id in ids:
            require_volume_id(id)
        found = await asyncio.gather(*(self._volume(id) for id in sorted(ids)))
        return [volume for volume in found if volume is not None]

    async def create(self, volume: DesiredVolume) -> None:
        """Make it (see VolumeDriver)."""
        require_volume_id(volume.id)
        await self._require_total(volume.id, volume.size_bytes)
        # Most are new, and one that needs no image is made without asking first.
        if not volume.image_digest and await self._make(volume, None, Record()):
            return
        for _ in range(ROUNDS_MAX):
            text, held = await self._held(volume.id, volume.generation)
            if held.made:
                if held.origin != volume.image_digest:
                    say = f"volume {volume.id} is here already as a copy of {held.origin or 'no image'}"
                    raise StorageError(f"{say}, not of {volume.image_digest or 'none'}", retryable=False)
                if await self._admit(volume.id, text, held, volume.generation):
                    return
                continue
            if await self._make(volume, text, held):
                return
        raise _contended(volume.id)

    async def resize(self, id: str, size_bytes: int, *, generation: int = 0) -> None:
        """Grow it; shrinking is refused."""
        require_volume_id(id)
        for _ in range(ROUNDS_MAX):
            text, held = await self._held(id, generation)
            stat = await self._pool.stat(held.image) if held.made else None
            if stat is None:
                raise StorageError(f"volume {id} is not here, in pool {self._where}, so it cannot grow to {size_bytes} bytes")
            wanted = whole_sectors(size_bytes)
            if wanted < stat.size_bytes:
                raise StorageError(
                    f"volume {id} has {stat.size_bytes} bytes and cannot shrink to {size_bytes}", retryable=False
                )
            await self._require_total(id, wanted)
            if await self._admit(id, text, held, generation):
                await self._pool.grow(held.image, wanted)
                return
        raise _contended(id)

    async def delete(self, id: str, *, generation: int = 0) -> None:
        """Remove it; absent: no error. StorageError as long as a guest has it open."""
        require_volume_id(id)
        for _ in range(ROUNDS_MAX):
            text, held = await self._held(id, generation)
            gone = Record(
                generation, left=with_name(held.left, held.image), opened=held.opened, shut_out=held.shut_out, more=held.more
            )
            if text == gone.text() or await self._pool.swap(object_of(id), text, gone.text()):
                await self._sweep(id, gone)
                return
        raise _contended(id)

    async def attachment(self, id: str) -> Attachment:
        """Return how to open it."""
        require_volume_id(id)
        held = Record.read(await self._pool.read(object_of(id)), object_of(id))
        if not held.made:
            raise StorageError(f"volume {id} is not here, in pool {self._where}")
        return Attachment(self._pool.place.path(held.image), "raw", self._pool.place.network)

    async def open(self, id: str, claim: int) -> None:
        """Show a claim to open it (see Claiming)."""
        require_volume_id(id)
        for _ in range(ROUNDS_MAX):
            text = await self._pool.read(object_of(id))
            held = Record.read(text, object_of(id))
            if claim < held.opened or claim <= held.shut_out:
                newest = max(held.opened, held.shut_out)
                raise Superseded(f"volume {id} was given to another guest, or is to be: claim {claim}, newest {newest}")
            if not held.made:
                raise StorageError(f"volume {id} is not here, in pool {self._where}")
            if claim == held.opened or await self._pool.swap(object_of(id), text, replace(held, opened=claim).text()):
                return
        raise _contended(id)

    async def shut_out(self, id: str, claim: int, *, generation: int = 0) -> None:
        """Refuse who comes with a claim up to this one, and shut out who has it open (see Claiming)."""
        require_volume_id(id)
        for _ in range(ROUNDS_MAX):
            text, held = await self._held(id, generation)
            if held.opened > claim:
                # Those were shut out before it was given to whoever has it now.
                return
            after = replace(held, generation=generation, shut_out=max(held.shut_out, claim))
            if after == held or await self._pool.swap(object_of(id), text, after.text()):
                # Who is late is refused from here on, so whoever has an image open now is all there is.
                for name in with_name(held.left, held.image):
                    await self._pool.shut_out(name)
                return
        raise _contended(id)

    async def recover(self) -> None:
        """Do nothing: half-done work is invisible, `sweep` removes it, and an agent begins also while its cluster is away."""

    async def sweep(self) -> None:
        """Remove images that no record names, unfinished copies of this node, and copies nothing was made of for a day.

        A name that is in no record will never be in one again. One that cannot be removed now keeps none of the others; the
        first such error is raised in the end.
        """
        volumes, copies = await self._pool.names("vol-"), await self._pool.names("image.")
        # One after the other: others wait for the pool, too, and several copies may be in one record.
        errors = [await _outcome(self._drop_forgotten(name)) for name in volumes]
        errors += [await _outcome(self._drop_copy(name)) for name in copies]
        for error in errors:
            if error is not None:
                raise error

    @property
    def _where(self) -> str:
        return self._pool.place.pool

    def _now_s(self) -> int:
        return int(self._clock.now().timestamp())

    def _token(self) -> str:
        """Return what tells one attempt from all others: 8 hexadecimal digits."""
        return self._ids.uuid()[:8]

    async def _held(self, id: str, generation: int) -> tuple[str | None, Record]:
        """Return a record as it is kept and what it says. Superseded when a newer generation has acted."""
        text = await self._pool.read(object_of(id))
        held = Record.read(text, object_of(id))
        if generation < held.generation:
            raise Superseded(f"volume {id} is administered by another node: generation {held.generation}, this is {generation}")
        return text, held

    async def _admit(self, id: str, text: str | None, held: Record, generation: int) -> bool:
        """Put on record in whose name it is acted; return whether the record was still what was read."""
        if held.generation == generation:
            return True
        return await self._pool.swap(object_of(id), text, replace(held, generation=generation).text())

    async def _volume(self, id: str) -> Volume | None:
        text = await self._pool.read(object_of(id))
        try:
            held = Record.read(text, object_of(id))
        except BadRecord:
            # One that is damaged must not hide the others; it is refused where it is used.
            return Volume(id, 0, LEFT_BYTES)
        if not held.made:
            return Volume(id, 0, LEFT_BYTES) if held.left and not held.image else None
        stat = await self._pool.stat(held.image)
        return Volume(id, stat.size_bytes, stat.used_bytes) if stat is not None else None

    async def _make(self, volume: DesiredVolume, text: str | None, held: Record) -> bool:
        """Make it by an image of its own; return whether it is the volume now."""
        parent, parent_bytes = await self._parent(volume) if volume.image_digest else ("", 0)
        size_bytes = whole_sectors(volume.size_bytes)
        name = f"{volume.id}.{volume.generation}.{self._token()}"
        left = with_name(held.left, held.image)
        begun = replace(held, generation=volume.generation, image=name, made=False, origin=volume.image_digest, left=left)
        begun = replace(begun, size_bytes=size_bytes)
        if not await self._pool.swap(object_of(volume.id), text, begun.text()):
            return False
        if len(left) > LEFT_MAX:
            # Of earlier attempts: none of them can become the volume any more, and they must not pile up.
            tidy = replace(begun, left=(*await self._removed(left[:LEFT_MAX]), *left[LEFT_MAX:]))
            if not await self._pool.swap(object_of(volume.id), begun.text(), tidy.text()):
                return False
            begun = tidy
        if parent:
            await self._clone(volume.image_digest, parent, name)
            if size_bytes > parent_bytes:
                await self._pool.grow(name, size_bytes)
        else:
            await self._pool.make(name, size_bytes)
        if not await self._pool.swap(object_of(volume.id), begun.text(), replace(begun, made=True).text()):
            await self._pool.remove(name)
            return False
        return True

    async def _removed(self, left: tuple[str, ...]) -> tuple[str, ...]:
        """Remove images; return those that could not be."""
        stays = []
        for name in left:
            try:
                await self._pool.remove(name)
            except RbdError:
                # It goes with the volume.
                stays.append(name)
        return tuple(stays)

    async def _clone(self, digest: str, parent: str, name: str) -> None:
        try:
            await self._pool.clone(parent, name)
        except RbdError as error:
            if error.errno == errno.ENOENT and await self._pool.stat(parent) is None:
                # Somebody removed the copy by hand: the next attempt makes another.
                object = source_object(digits(digest))
                text = await self._pool.read(object)
                held = Record.read(text, object)
                if held.image == parent:
                    await self._pool.swap(object, text, replace(held, image="", made=False).text())
            raise

    async def _sweep(self, id: str, held: Record) -> None:
        """Remove the images that are left of a volume, and strike them from its record."""
        for name in held.left:
            await self._pool.remove(name)
        if held.left:
            # Whoever changed it meanwhile has what is left in his.
            await self._pool.swap(object_of(id), held.text(), replace(held, left=()).text())

    async def _parent(self, volume: DesiredVolume) -> tuple[str, int]:
        """Return the image of the pool that holds what a volume starts as, and its size; it is copied into it if need be."""
        digest = volume.image_digest
        for _ in range(ROUNDS_MAX):
            object = source_object(digits(digest))
            text = await self._pool.read(object)
            held = Record.read(text, object)
            if held.origin not in ("", digest):
                raise StorageError(f"object {object} is of {held.origin}, not of {digest}", retryable=False)
            if held.made:
                _require_fits(volume, held.size_bytes)
                if held.used_s + USED_S < self._now_s():
                    # Who is overtaken in this has been by somebody who uses it.
                    await self._pool.swap(object, text, replace(held, used_s=self._now_s()).text())
                return held.image, held.size_bytes
            async with self._locks.setdefault(digest, asyncio.Lock()):
                # Another volume of this node may have had it copied meanwhile.
                if text == await self._pool.read(object):
                    await self._copy_of(volume, object, text, held)
        raise _contended(digest)

    async def _copy_of(self, volume: DesiredVolume, object: str, text: str | None, held: Record) -> None:
        async with self._images.lent(volume.image_digest) as (path, format, size_bytes):
            _require_fits(volume, size_bytes)
            wanted = replace(held, origin=volume.image_digest, size_bytes=size_bytes)
            await self._copy(object, text, wanted, path, format)

    async def _copy(self, object: str, text: str | None, wanted: Record, path: Path, format: str) -> None:
        """Copy an image's file into the pool, unless others are quicker."""
        name = f"image.{self._mine}.{digits(wanted.origin)}.{self._token()}"
        self._copying.add(name)
        try:
            begun = replace(wanted, left=with_name(wanted.left, name))
            if await self._pool.swap(object, text, begun.text()):
                await self._copy_as(object, name, path, format, wanted.size_bytes)
                await self._publish(object, name, wanted)
        finally:
            self._copying.discard(name)

    async def _copy_as(self, object: str, name: str, path: Path, format: str, size_bytes: int) -> None:
        try:
            await self._pool.make(name, size_bytes)
            await self._pool.fill(name, path, format, size_bytes)
            await self._pool.freeze(name)
        except StorageError:
            # What stays of it is this node's to sweep; what is told is why there is no copy.
            with suppress(StorageError):
                await self._pool.remove(name)
                await self._strike(object, name)
            raise

    async def _publish(self, object: str, name: str, wanted: Record) -> None:
        """Make a copy the one that volumes are cloned from; when there is one by now, remove it."""
        for _ in range(ROUNDS_MAX):
            text = await self._pool.read(object)
            held = Record.read(text, object)
            if held.made:
                return await self._remove_copy(object, name)
            left = without_name(held.left, name)
            made = replace(wanted, image=name, made=True, left=left, old=held.old, used_s=self._now_s())
            if await self._pool.swap(object, text, made.text()):
                return None
        raise _contended(name)

    async def _drop_forgotten(self, name: str) -> None:
        match = _VOLUME_IMAGE.fullmatch(name)
        if match is None:
            return
        text = await self._pool.read(object_of(match[1]))
        if text is None:
            # A record is there before its image, and stays: without one it was lost, and the image may be all that is left.
            return
        held = Record.read(text, object_of(match[1]))
        if name != held.image and name not in held.left:
            await self._pool.remove(name)

    async def _drop_copy(self, name: str) -> None:
        """Remove a copy of an image that nobody needs; one that volumes were cloned from stays until they are gone."""
        match = _COPY.fullmatch(name)
        if match is None:
            return
        object = source_object(match[2])
        text = await self._pool.read(object)
        held = Record.read(text, object)
        if name == held.image:
            if held.used_s + KEPT_S > self._now_s() or await self._pool.has_children(name):
                return
            gone = replace(held, image="", made=False, old=with_name(held.old, name))
            if await self._pool.swap(object, text, gone.text()):
                await self._remove_copy(object, name)
        elif name in held.left:
            # It may be what another node copies at this moment; struck first, nobody can publish it late.
            struck = replace(held, left=without_name(held.left, name))
            mine = match[1] == self._mine and name not in self._copying
            if mine and await self._pool.swap(object, text, struck.text()):
                await self._pool.remove(name)
        else:
            await self._remove_copy(object, name)

    async def _remove_copy(self, object: str, name: str) -> None:
        if await self._pool.has_children(name):
            return
        await self._pool.remove(name)
        await self._strike(object, name)

    async def _strike(self, object: str, name: str) -> None:
        """Take a copy that is gone from a record."""
        for _ in range(ROUNDS_MAX):
            text = await self._pool.read(object)
            held = Record.read(text, object)
            struck = replace(held, left=without_name(held.left, name), old=without_name(held.old, name))
            if struck == held or await self._pool.swap(object, text, struck.text()):
                return

    async def _require_total(self, id: str, size_bytes: int) -> None:
        loop_s = asyncio.get_running_loop().time()
        if loop_s > self._room_until_s:
            self._room, self._room_until_s = await self._pool.room(), loop_s + ROOM_S
        used, free = self._room
        if size_bytes > used + free:
            raise PoolFull(f"volume {id} of {size_bytes} bytes is larger than all of pool {self._where}: {used + free} bytes")
        if not free:
            raise PoolFull(f"volume {id} cannot be made or grow: pool {self._where} is full")


async def _outcome(act: Awaitable[None]) -> StorageError | None:
    """Return why it failed; None: it did not."""
    try:
        await act
    except StorageError as error:
        return error
    return None


def _require_fits(volume: DesiredVolume, size_bytes: int) -> None:
    if volume.size_bytes < size_bytes:
        say = f"volume {volume.id} of {volume.size_bytes} bytes is smaller than its image's disk of {size_bytes}"
        raise StorageError(say, retryable=False)


def _contended(id: str) -> StorageError:
    return StorageError(f"the record of {id} changes faster than it can be read: others act on it too")
