"""Backing a volume up: its file cut into parts, each sent once, then their list, then the manifest, which makes the backup
exist.

Killed anywhere, what was sent is no backup, and serves the next try of the same backup: a part that is there by its name is not
sent again. Encryption makes other bytes each time, so an encrypted part is known to be the same only if the source says that
its bytes are (`point`); an object tells which point a try was of. One writer for a volume at a time (claims.py).
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol

from cairn.storage.backups.claims import Claim, Lost, claimed
from cairn.storage.backups.encryption import Recipients
from cairn.storage.backups.flow import at_once
from cairn.storage.backups.layout import READ_BYTES, Extent, Layout, runs_of
from cairn.storage.backups.manifest import (
    PART_BYTES,
    BadManifest,
    Manifest,
    Parent,
    Part,
    VolumeFacts,
    check_id,
    file_name,
    folder_of,
    list_of,
    manifest_name,
    parsed,
    part_name,
    written,
)
from cairn.storage.backups.repository import Backup, BadRepository, Catalogue, Repository
from cairn.storage.base import StorageError


class NeedsFull(StorageError):
    """An incremental backup cannot be built on the parent that was named. Permanent: take a full one, and say why it is."""

    def __init__(self, say: str) -> None:
        super().__init__(say, retryable=False)


class Source(Protocol):
    """The bytes of one moment of a volume: they do not change while they are read."""

    async def extents(self) -> Sequence[Extent]:
        """Return what may have changed since the parent's moment; for a full backup, all that may be other than zeros."""
        ...

    async def read(self, offset: int, length: int) -> bytes:
        """Return these bytes of the disk: all of them, wherever they are from."""
        ...


@dataclass(frozen=True, slots=True)
class Wanted:
    """A backup that is to be made. backup, volume.id: [a-z0-9-]; a backup's id is not used again for other bytes."""

    backup: str
    volume: VolumeFacts
    time: datetime
    # The source's name for these very bytes, such as a snapshot's: another try of the same point reads the same. Empty: none.
    point: str = ""
    # The backup since which the source tells changes; empty: a full one.
    parent: str = ""
    # Why it is a full one though others would do; shown to people.
    full_because: str = ""
    # Public keys of age; none: not encrypted.
    recipients: tuple[str, ...] = ()


@dataclass
class Made:
    """What came of it. kept_parts: that were there from an earlier try."""

    backup: Backup
    sent_parts: int = 0
    kept_parts: int = 0


async def back_up(repository: Repository, wanted: Wanted, source: Source, token: str, *, part_bytes: int = PART_BYTES) -> Made:
    """Make a backup; one that is there already is returned. token: see claims.claimed.

    Raises NeedsFull, Busy, Lost, StoreError, BadRepository, BadKey, ValueError (an extent or a size that cannot be), and what
    the source raises.
    """
    check_id(wanted.backup, "backup")
    volume = check_id(wanted.volume.id, "volume")
    async with claimed(repository.store, volume, token, f"backing up {volume} as {wanted.backup}") as claim:
        catalogue = await repository.catalogue(volume)
        if there := _there(catalogue, wanted):
            return Made(there)
        parent = await _parent(repository, catalogue, wanted)
        runs = runs_of(await source.extents(), wanted.volume.size_bytes, is_full=parent is None)
        layout = Layout(wanted.volume.size_bytes, runs, file_name(parent.backup) if parent else "")
        work = _Writing(repository, claim, wanted, parent, layout, source, part_bytes)
        return await work.run(catalogue.objects.get(folder_of(volume, wanted.backup), {}))


def _there(catalogue: Catalogue, wanted: Wanted) -> Backup | None:
    for each in catalogue.of(wanted.volume.id):
        if each.id == wanted.backup:
            if each.trouble or each.is_hidden:
                why = each.trouble or "it was removed, and is kept for those that are built on it"
                raise BadRepository(f"backup {each.id} of {wanted.volume.id} is there already, but {why}; take another id")
            return each
    return None


async def _parent(repository: Repository, catalogue: Catalogue, wanted: Wanted) -> Parent | None:
    if not wanted.parent:
        return None
    try:
        found = catalogue.find(wanted.volume.id, wanted.parent)
        chain = catalogue.chain(found)
        for each in chain:
            if missing := await lacks(repository, catalogue, each):
                raise BadRepository(f"backup {each.id} is damaged: {missing}")
    except BadRepository as error:
        raise NeedsFull(f"a full backup of {wanted.volume.id} is needed: {error}") from error
    if found.is_hidden:
        raise NeedsFull(f"a full backup of {wanted.volume.id} is needed: backup {found.id} was removed")
    if found.manifest.volume.size_bytes > wanted.volume.size_bytes:
        raise NeedsFull(f"a full backup of {wanted.volume.id} is needed: it is smaller than backup {found.id} is")
    return Parent(found.id, found.sha256)


async def lacks(repository: Repository, catalogue: Catalogue, backup: Backup) -> str:
    """Say what a backup lacks, by names and sizes of objects alone; empty: nothing. Raises BadRepository: no usable list."""
    manifest = backup.manifest
    here = catalogue.objects.get(backup.folder, {})
    for index, part in enumerate(await repository.parts(backup)):
        if part.name not in here:
            return f"{backup.folder}{part.name} is missing"
        if not manifest.recipients and here[part.name] != (wanted := manifest.part_bytes_of(index)):
            return f"{backup.folder}{part.name} has {here[part.name]} bytes, not {wanted}"
    return ""


@dataclass
class _Writing:
    """One try."""

    repository: Repository
    claim: Claim
    wanted: Wanted
    parent: Parent | None
    layout: Layout
    source: Source
    part_bytes: int
    _parts: dict[int, tuple[Part, int]] = field(default_factory=dict)
    _sent: int = 0

    async def run(self, here: dict[str, int]) -> Made:
        """Send what is not here yet."""
        recipients = Recipients.of(self.wanted.recipients) if self.wanted.recipients else None
        known = here
        if recipients:
            known = await self._of_this_point(here)
        count = -(-self.layout.file_bytes // self.part_bytes)

        async def send(index: int) -> None:
            if recipients and (part := _kept(known, file_name(self.wanted.backup), index)):
                self._parts[index] = part, known[part.name]
            else:
                await self._send(index, recipients, known)

        await at_once(self.repository.store.at_once, range(count), send)
        return await self._finish(count)

    async def _send(self, index: int, recipients: Recipients | None, known: dict[str, int]) -> None:
        content = await self._content(index)
        if recipients:
            content = await recipients.sealed(content)
        sha256 = await _sha256(content)
        part = Part(sha256, part_name(self.wanted.backup, index, sha256, is_sealed=recipients is not None))
        if known.get(part.name) != len(content):
            self.claim.check()
            await self.repository.store.put(self._folder + part.name, content)
            self._sent += 1
        self._parts[index] = part, len(content)

    async def _content(self, index: int) -> bytes:
        content = bytearray()
        start = index * self.part_bytes
        for piece in self.layout.pieces(start, start + self.part_bytes):
            if isinstance(piece, bytes):
                content += piece
                continue
            got = await self.source.read(piece.offset, piece.length)
            if len(got) != piece.length:
                what = f"{len(got)} bytes instead of {piece.length} at byte {piece.offset} of {self.wanted.volume.id}"
                raise StorageError(f"the source of backup {self.wanted.backup} gave {what}")
            content += got
            # A source may have it all at once.
            await asyncio.sleep(0)
        return bytes(content)

    async def _of_this_point(self, here: dict[str, int]) -> dict[str, int]:
        """Return what is here if it is of earlier tries of the same bytes and of nothing else, and tell of ours."""
        told = f"{self.wanted.backup}.{self._of_what()}.begun"
        tries = [name for name in here if name.endswith(".begun")]
        if told not in tries:
            self.claim.check()
            await self.repository.store.put(self._folder + told, b"")
        return here if self.wanted.point and tries == [told] else {}

    def _of_what(self) -> str:
        """Return a checksum of all that makes the bytes of the parts what they are, but for the disk's content."""
        said = hashlib.sha256(json.dumps([self.wanted.point, self.wanted.recipients, self.part_bytes]).encode())
        said.update(f"{self.layout.size_bytes} {self.layout.backing}".encode())
        for run in self.layout.runs:
            said.update(f" {run.first} {run.count} {run.is_data}".encode())
        return said.hexdigest()

    async def _finish(self, count: int) -> Made:
        parts = [self._parts[index][0] for index in range(count)]
        listed = list_of(parts)
        manifest = Manifest(
            backup=self.wanted.backup,
            volume=self.wanted.volume,
            time=self.wanted.time,
            point=self.wanted.point,
            parent=self.parent,
            full_because="" if self.parent else self.wanted.full_because,
            file_bytes=self.layout.file_bytes,
            part_bytes=self.part_bytes,
            parts_sha256=hashlib.sha256(listed).hexdigest(),
            stored_bytes=sum(size for _, size in self._parts.values()),
            recipients=self.wanted.recipients,
        )
        content = written(manifest)
        try:
            manifest = parsed(content)
        except BadManifest as error:
            raise ValueError(f"backup {self.wanted.backup} cannot be told of: {error}") from error
        store = self.repository.store
        await self.claim.confirm()
        await store.put(manifest.list_name, listed)
        await store.put(name := manifest_name(content, manifest.volume.id, manifest.backup), content)
        there = {each.name.rpartition("/")[2] async for each in store.list(self._folder)}
        if missing := next((part.name for part in parts if part.name not in there), ""):
            # Whoever took us for dead removed it meanwhile.
            await store.delete(name)
            raise Lost(f"backup {manifest.backup} was swept while it was written: {missing} is gone; it is to be made anew")
        backup = Backup(manifest, hashlib.sha256(content).hexdigest())
        return Made(backup, self._sent, count - self._sent)

    @property
    def _folder(self) -> str:
        return folder_of(self.wanted.volume.id, self.wanted.backup)


def _kept(known: dict[str, int], file: str, index: int) -> Part | None:
    """Return the part of an earlier try that has this number."""
    start = f"{file}.{index:06d}."
    for name in sorted(known):
        if name.startswith(start):
            return Part(name.removeprefix(start).removesuffix(".age"), name)
    return None


async def _sha256(content: bytes) -> str:
    """Return the checksum in hexadecimal, letting others run between."""
    seen = hashlib.sha256()
    view = memoryview(content)
    for at in range(0, len(view), READ_BYTES):
        seen.update(view[at : at + READ_BYTES])
        await asyncio.sleep(0)
    return seen.hexdigest()
