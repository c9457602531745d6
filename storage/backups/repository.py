"""A repository: what a store holds of backups, told by the store alone.

    cairn-backups.json                                                  that it is a repository, and which
    volumes/<volume>/<backup>/<backup>.qcow2.000000.<sha256>            the parts of the file; ".age" behind: encrypted
                             /<backup>.<sha256>.parts                   their list, as sha256sum writes it
                             /<backup>.<sha256>.json                    the manifest, written last
                             /<backup>.<sha256>.begun                   that an encrypted one is tried, and of which moment
                             /<backup>.<sha256>.hidden                  it was removed, but others are built on it
    claims/<volume>/<token>                                             who works on a volume now (claims.py)

Invariant: but for claims, an object's name holds the checksum of its bytes. So whoever writes it, and however late the call
takes effect, writes what is there already, and a part that is there need not be sent again. A backup exists when its manifest
does. A parent is named by the checksum of its manifest, so a chain cannot be mended by another backup of the same name, nor run
in a loop.

Rejected: numbered names that are overwritten (a writer that was given up could damage what another has finished since).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Final

from cairn.proto.seams import Ids
from cairn.storage.backups.flow import Silence
from cairn.storage.backups.manifest import (
    FORMAT,
    LIST_BYTES_MAX,
    MANIFEST_BYTES_MAX,
    BadManifest,
    Manifest,
    Part,
    parsed,
    parts_of,
)
from cairn.storage.backups.patience import PatientStore
from cairn.storage.backups.store import Gone, ObjectStore, StoreError, fetch
from cairn.storage.base import StorageError

MARK: Final = "cairn-backups.json"
_MARK_BYTES_MAX: Final = 4096


class BadRepository(StorageError):
    """What the repository holds cannot be used as wanted. Permanent: waiting does not mend it. Names what and why."""

    def __init__(self, say: str) -> None:
        super().__init__(say, retryable=False)


@dataclass(frozen=True, slots=True)
class Backup:
    """One that the repository holds. sha256: of its manifest, by which its children name it."""

    manifest: Manifest
    sha256: str
    # It was removed, and stays for its children.
    is_hidden: bool = False
    # Why it cannot be restored, as far as names tell; empty: nothing is wrong.
    trouble: str = ""

    @property
    def id(self) -> str:
        """The backup's id."""
        return self.manifest.backup

    @property
    def folder(self) -> str:
        """What the names of its objects start with."""
        return self.manifest.folder

    @property
    def manifest_name(self) -> str:
        """The object of its manifest."""
        return f"{self.folder}{self.id}.{self.sha256}.json"

    @property
    def mark(self) -> str:
        """The object that says that it is hidden."""
        return f"{self.folder}{self.id}.{self.sha256}.hidden"


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A manifest that cannot be used, and so perhaps a backup."""

    name: str
    volume: str
    say: str
    # The store did not give it: perhaps it does later.
    is_retryable: bool = False


@dataclass(frozen=True, slots=True)
class Catalogue:
    """All that a repository holds of some volumes, or of all, the oldest first."""

    backups: tuple[Backup, ...] = ()
    unreadable: tuple[Unreadable, ...] = ()
    # The sizes of the objects that are there, by folder and name.
    objects: dict[str, dict[str, int]] = field(default_factory=dict)

    def of(self, volume: str) -> list[Backup]:
        """Return a volume's backups, the oldest first."""
        return [each for each in self.backups if each.manifest.volume.id == volume]

    def find(self, volume: str, id: str) -> Backup:
        """Return a backup, the oldest of that name. Raises BadRepository: none; StoreError: it cannot be told now."""
        for each in self.of(volume):
            if each.id == id:
                return each
        self.require_answers(volume)
        broken = [each.say for each in self.unreadable if f"/{id}/" in each.name and each.volume == volume]
        raise BadRepository(f"there is no backup {id} of volume {volume} here" + "".join(f"; {say}" for say in broken))

    def chain(self, backup: Backup) -> list[Backup]:
        """Return what it takes to restore a backup, the full one first. Raises as `find`."""
        known = {each.sha256: each for each in self.of(backup.manifest.volume.id)}
        chain, seen = [backup], {backup.sha256}
        while parent := chain[-1].manifest.parent:
            child, found = chain[-1], known.get(parent.manifest)
            if found is None:
                self.require_answers(backup.manifest.volume.id)
            if found is None or found.id != parent.backup:
                raise BadRepository(f"backup {child.id} is built on {parent.backup}, which is not here")
            if found.sha256 in seen:
                raise BadRepository(f"backup {child.id} is built on {parent.backup}, which is built on it")
            if found.manifest.volume.size_bytes > child.manifest.volume.size_bytes:
                raise BadRepository(f"backup {child.id} is of a smaller disk than {found.id}, on which it is built")
            seen.add(found.sha256)
            chain.append(found)
        return chain[::-1]

    def require_answers(self, volume: str) -> None:
        """Raise StoreError when a manifest of a volume could not be had: it may be the one that is looked for."""
        for each in self.unreadable:
            if each.volume == volume and each.is_retryable:
                raise StoreError(f"what there is of volume {volume} cannot be told: {each.say}")

    def dependents(self, backups: Iterable[Backup]) -> list[Backup]:
        """Return those that are built on any of these, directly or not, and these themselves."""
        found = {each.sha256 for each in backups}
        more = True
        while more:
            more = False
            for each in self.backups:
                parent = each.manifest.parent
                if parent and parent.manifest in found and each.sha256 not in found:
                    found.add(each.sha256)
                    more = True
        return [each for each in self.backups if each.sha256 in found]


@dataclass
class Repository:
    """A store that holds backups. id: made with it, so that nobody takes another for it."""

    store: PatientStore
    id: str

    async def catalogue(self, volume: str = "") -> Catalogue:
        """Return what it holds of a volume, or of all. Raises StoreError: it could not be listed."""
        folders: dict[str, dict[str, int]] = {}
        async for each in self.store.list(f"volumes/{volume}/" if volume else "volumes/"):
            folder, _, name = each.name.rpartition("/")
            folders.setdefault(folder + "/", {})[name] = each.size_bytes
        backups: list[Backup] = []
        unreadable: list[Unreadable] = []
        silence = Silence()
        for folder, names in folders.items():
            for name in (each for each in names if each.endswith(".json")):
                found = await self._read(folder, name, names, silence)
                if isinstance(found, Backup):
                    backups.append(found)
                elif found:
                    unreadable.append(found)
        backups.sort(key=lambda each: (each.manifest.time, each.id, each.sha256))
        return Catalogue(tuple(backups), tuple(unreadable), folders)

    async def _read(self, folder: str, name: str, names: Collection[str], silence: Silence) -> Backup | Unreadable | None:
        """Return a backup by its manifest; None: it was removed meanwhile."""
        volume = folder.split("/")[1]
        try:
            content = await fetch(self.store, folder + name, MANIFEST_BYTES_MAX)
        except Gone:
            return None
        except StoreError as error:
            if error.retryable:
                silence.broken(error)
            return Unreadable(folder + name, volume, str(error), error.retryable)
        silence.answered()
        sha256 = hashlib.sha256(content).hexdigest()
        try:
            manifest = parsed(content)
        except BadManifest as error:
            return Unreadable(folder + name, volume, f"{folder}{name} cannot be used: {error}")
        backup = Backup(manifest, sha256)
        if backup.manifest_name != folder + name:
            wrong = "it is damaged, or of another backup: it does not have the checksum, or the place, that its name says"
            return Unreadable(folder + name, volume, f"{folder}{name} cannot be used: {wrong}")
        hidden = backup.mark.rpartition("/")[2] in names
        return Backup(manifest, sha256, hidden, _trouble(manifest, names))

    async def parts(self, backup: Backup) -> list[Part]:
        """Return the list of a backup's parts. Raises BadRepository: it is missing or damaged."""
        manifest = backup.manifest
        try:
            return parts_of(manifest, await fetch(self.store, manifest.list_name, LIST_BYTES_MAX))
        except Gone as error:
            raise BadRepository(f"backup {backup.id}: the list of its parts, {manifest.list_name}, is missing") from error
        except BadManifest as error:
            raise BadRepository(f"backup {backup.id}: {error} ({manifest.list_name})") from error


def _trouble(manifest: Manifest, names: Collection[str]) -> str:
    if manifest.list_name.rpartition("/")[2] not in names:
        return "the list of its parts is missing"
    here = sum(name.startswith(f"{manifest.file}.") for name in names)
    missing = manifest.parts_count - here
    return f"{missing} of its {manifest.parts_count} parts are missing" if missing > 0 else ""


async def create(store: ObjectStore, ids: Ids) -> Repository:
    """Make a repository of a store in which there is none, or open the one that there is."""
    patient = PatientStore(store, ids)
    try:
        return await opened(store, ids)
    except NoRepository:
        said = {"format": FORMAT, "id": ids.uuid(), "what": "backups of volumes; see docs/operations/storage.md of Cairn"}
        await patient.put(MARK, json.dumps(said).encode() + b"\n")
    return await opened(store, ids)


class NoRepository(BadRepository):
    """The store answers, and has no repository."""


async def opened(store: ObjectStore, ids: Ids) -> Repository:
    """Open a repository. Raises NoRepository; BadRepository: of a format that this release does not know."""
    patient = PatientStore(store, ids)
    try:
        content = await fetch(patient, MARK, _MARK_BYTES_MAX)
    except Gone as error:
        raise NoRepository(
            f"there is no repository of backups in {store.title}: it has no {MARK}; is it the right place?"
        ) from error
    try:
        said = json.loads(content)
        format, id = said["format"], str(said["id"])
    except (ValueError, KeyError, TypeError) as error:
        raise BadRepository(f"{MARK} in {store.title} cannot be read: {error!r}") from error
    if format != FORMAT:
        raise BadRepository(f"the repository in {store.title} is of format {format}; this release reads format {FORMAT}")
    return Repository(patient, id)
