"""Restoring: the tables of each file of the chain say where each cluster is; then each part that holds some is read once.

Every part is read whole and its checksum compared before a byte of it is believed or written. The chain is resolved once,
newest first, so it costs no more when it is long. Nothing is written to the repository: a key that may only read is enough.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Final, Protocol

from cairn.storage.backups.encryption import Identities, Sealed
from cairn.storage.backups.flow import at_once
from cairn.storage.backups.layout import READ_BYTES, BadLayout, Layout, Piece, Reader, resolve
from cairn.storage.backups.manifest import Part
from cairn.storage.backups.repository import Backup, BadRepository, Catalogue, Repository
from cairn.storage.backups.store import Gone, StoreError
from cairn.storage.qcow2 import CLUSTER_BYTES

_ZEROS: Final = bytes(CLUSTER_BYTES)


class Target(Protocol):
    """A volume that is written over. It has the size that the backup's volume had, or more."""

    async def write(self, offset: int, content: bytes) -> None:
        """Write bytes; several calls go on at once, never for the same bytes."""
        ...

    async def zero(self, offset: int, length: int) -> None:
        """Have these bytes read as zeros; of a new volume, which has no other, nothing is to be done."""
        ...


@dataclass(frozen=True, slots=True)
class Restored:
    """What was done. read_bytes: of parts, as they are stored."""

    backup: Backup
    chain: tuple[str, ...]
    written_bytes: int
    read_bytes: int


async def restore(
    repository: Repository, catalogue: Catalogue, backup: Backup, target: Target, identities: Identities | None = None
) -> Restored:
    """Write the bytes of a backup to a target.

    Raises BadRepository (permanent; names what is missing or damaged), StoreError, and what the target raises. A target that
    was not written to its end is to be thrown away, or restored to again.
    """
    files = [_File(repository, each, identities or Identities()) for each in catalogue.chain(backup)]
    for file in files:
        await file.learn()
    layouts = [file.layout for file in files if file.layout]
    work = _Restoring(target, backup.manifest.volume.size_bytes)
    pieces = resolve(layouts)
    for start, end in _gaps(pieces, -(-work.size_bytes // CLUSTER_BYTES)):
        await work.zero(start, end)
    for member, file in enumerate(files):
        wanted = _by_part([each for each in pieces if each.member == member], file.part_clusters)

        async def fill(part: tuple[int, list[Piece]], file: _File = file) -> None:
            index, pieces = part
            await work.write(await file.content(index), index * file.part_clusters, pieces)

        await at_once(repository.store.at_once, wanted, fill)
    read_bytes = sum(file.read_bytes for file in files)
    return Restored(backup, tuple(file.backup.id for file in files), work.written_bytes, read_bytes)


def _gaps(pieces: Sequence[Piece], clusters: int) -> Iterator[tuple[int, int]]:
    """Yield what of a disk has no data."""
    at = 0
    for piece in pieces:
        if piece.member < 0:
            continue
        if piece.first > at:
            yield at, piece.first
        at = piece.end
    if at < clusters:
        yield at, clusters


def _by_part(pieces: Sequence[Piece], part_clusters: int) -> Iterator[tuple[int, list[Piece]]]:
    """Yield the parts of a file that are needed, each with what is to be taken from it. A file's data is in a disk's order."""

    def cut() -> Iterator[tuple[int, Piece]]:
        for piece in pieces:
            start = piece.first
            while start < piece.end:
                place = piece.place + start - piece.first
                end = min(piece.end, start + part_clusters - place % part_clusters)
                yield place // part_clusters, piece.part(start, end)
                start = end

    for index, some in groupby(cut(), key=lambda each: each[0]):
        yield index, [piece for _, piece in some]


@dataclass
class _Restoring:
    target: Target
    size_bytes: int
    written_bytes: int = 0

    async def zero(self, start: int, end: int) -> None:
        """Clear clusters."""
        offset = start * CLUSTER_BYTES
        await self.target.zero(offset, min(end * CLUSTER_BYTES, self.size_bytes) - offset)

    async def write(self, content: bytes, place: int, pieces: Iterable[Piece]) -> None:
        """Write pieces out of a part whose first cluster is at that place of its file. What is zeros is not written as data."""
        for piece in pieces:
            at = (piece.place - place) * CLUSTER_BYTES
            some = memoryview(content)[at : at + piece.count * CLUSTER_BYTES]
            for start, end, is_zero in _kinds(some):
                await asyncio.sleep(0)
                if is_zero:
                    await self.zero(piece.first + start, piece.first + end)
                    continue
                offset = (piece.first + start) * CLUSTER_BYTES
                data = bytes(some[start * CLUSTER_BYTES : end * CLUSTER_BYTES][: self.size_bytes - offset])
                await self.target.write(offset, data)
                self.written_bytes += len(data)


def _kinds(content: memoryview) -> Iterator[tuple[int, int, bool]]:
    """Yield runs of clusters, no more than READ_BYTES each: from, to, whether they are zeros."""

    def kind(number: int) -> tuple[int, bool]:
        start = number * CLUSTER_BYTES
        return start // READ_BYTES, content[start : start + CLUSTER_BYTES] == _ZEROS

    for (_, is_zero), some in groupby(range(len(content) // CLUSTER_BYTES), key=kind):
        run = list(some)
        yield run[0], run[-1] + 1, is_zero


@dataclass
class _File:
    """The file of one member of the chain."""

    repository: Repository
    backup: Backup
    identities: Identities
    layout: Layout | None = None
    read_bytes: int = 0
    _parts: list[Part] = field(default_factory=list)

    @property
    def part_clusters(self) -> int:
        """How many clusters a part of it has."""
        return self.backup.manifest.part_bytes // CLUSTER_BYTES

    async def learn(self) -> None:
        """Read its tables."""
        manifest = self.backup.manifest
        self._parts = await self.repository.parts(self.backup)
        reader = Reader(manifest.volume.size_bytes, manifest.file_bytes, manifest.backing)
        try:
            for index in range(manifest.parts_count):
                reader.feed(await self.content(index))
                if reader.layout:
                    break
        except BadLayout as error:
            raise BadRepository(f"backup {self.backup.id} is no file of Cairn's: {error}") from error
        if reader.layout is None:
            raise BadRepository(f"backup {self.backup.id} is no file of Cairn's: it ends within its tables")
        self.layout = reader.layout

    async def content(self, index: int) -> bytes:
        """Return a part, checked and decrypted. Raises BadRepository, which names it."""
        manifest = self.backup.manifest
        part = self._parts[index]
        name = manifest.folder + part.name
        content, say = await read_part(self.repository, self.backup, part)
        if say:
            raise BadRepository(f"backup {self.backup.id} is damaged: {say}")
        self.read_bytes += len(content)
        if manifest.recipients:
            if not self.identities.keys:
                whom = ", ".join(manifest.recipients)
                raise BadRepository(f"backup {self.backup.id} is encrypted for {whom}: a secret key of that is needed")
            try:
                content = await self.identities.opened(content)
            except Sealed as error:
                raise BadRepository(f"backup {self.backup.id} cannot be decrypted ({name}): {error}") from error
        if len(content) != manifest.part_bytes_of(index):
            raise BadRepository(f"backup {self.backup.id} is damaged: {name} has {len(content)} bytes of its file")
        return content


async def read_part(repository: Repository, backup: Backup, part: Part, *, keep: bool = True) -> tuple[bytes, str]:
    """Return an object of a backup, and what is wrong with it ("": nothing). keep=False: it is only checked, not held."""
    most, name = backup.manifest.part_bytes_max, backup.folder + part.name
    seen, content, size = hashlib.sha256(), bytearray(), 0
    try:
        async for chunk in repository.store.get(name, length=most + 1):
            seen.update(chunk)
            size += len(chunk)
            if keep:
                content += chunk
            # The store may have it all at once.
            await asyncio.sleep(0)
    except Gone:
        return b"", f"{name} is missing"
    except StoreError as error:
        if error.retryable:
            raise
        return b"", f"{name} cannot be read: {error}"
    if size > most:
        return b"", f"{name} has more than the {most} bytes of any part"
    if seen.hexdigest() != part.sha256:
        return b"", f"{name} does not have the checksum that it had when it was written ({size} bytes)"
    return bytes(content), ""
