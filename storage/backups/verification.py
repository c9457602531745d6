"""Verifying: every byte of a repository is read and compared with its checksum. What is wrong is named, and whom it concerns.

It goes on after what it finds, an object that cannot be read included. It stops when the store answers nothing any more: that
says nothing of what is in it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from cairn.storage.backups.flow import Silence, at_once
from cairn.storage.backups.manifest import Part
from cairn.storage.backups.repository import Backup, BadRepository, Catalogue, Repository
from cairn.storage.backups.restoring import read_part
from cairn.storage.backups.store import StoreError
from cairn.storage.base import StorageError


@dataclass(frozen=True, slots=True)
class Finding:
    """Something is wrong. backups: which cannot be restored for it, as "<volume>/<backup>"; none: it cannot be told."""

    object: str
    say: str
    backups: tuple[str, ...] = ()


@dataclass
class Verification:
    """One look at all of it, or at a volume's; what it found so far is there at any time."""

    repository: Repository
    volume: str = ""
    findings: list[Finding] = field(default_factory=list)
    backups: int = 0
    parts: int = 0
    # The last object that was begun.
    at: str = ""
    _silence: Silence = field(default_factory=Silence)

    async def run(self) -> None:
        """Read everything. Raises StoreError when the store does not answer; what was found before stays."""
        catalogue = await self.repository.catalogue(self.volume)
        self.findings += [Finding(each.name, each.say) for each in catalogue.unreadable]
        for backup in catalogue.backups:
            await self._look(catalogue, backup)
            self.backups += 1
        self.findings.sort(key=lambda each: (each.object, each.say))

    async def _look(self, catalogue: Catalogue, backup: Backup) -> None:
        try:
            catalogue.chain(backup)
        except BadRepository as error:
            self._found(catalogue, backup, backup.manifest_name, str(error))
        try:
            parts = await self.repository.parts(backup)
        except StorageError as error:
            self._failed(error)
            self._found(catalogue, backup, backup.manifest.list_name, str(error))
            return

        async def check(part: Part) -> None:
            self.at = backup.folder + part.name
            try:
                _, say = await read_part(self.repository, backup, part, keep=False)
                self._silence.answered()
            except StoreError as error:
                self._failed(error)
                say = str(error)
            if say:
                self._found(catalogue, backup, backup.folder + part.name, say)
            self.parts += 1

        await at_once(self.repository.store.at_once, parts, check)

    def _failed(self, error: StorageError) -> None:
        if isinstance(error, StoreError):
            self._silence.broken(error)

    def _found(self, catalogue: Catalogue, backup: Backup, object: str, say: str) -> None:
        self.findings.append(Finding(object, say, named(catalogue.dependents([backup]))))


def named(backups: Iterable[Backup]) -> tuple[str, ...]:
    """Return "<volume>/<backup>" of each."""
    return tuple(f"{each.manifest.volume.id}/{each.id}" for each in backups)
