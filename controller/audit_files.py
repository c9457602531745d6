"""Where one controller keeps files of the audit: a folder of its own host, or memory.

A file is there whole, and durable when `write` returns; what is written once is the same each time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Protocol, TypeVar

from cairn.proto.files import replace_file

T = TypeVar("T")
_SUFFIXES = (".audit", ".gap")


class FilesError(Exception):
    """The files cannot be read or written; the sentence says where and why."""


class AuditFiles(Protocol):
    """A place for files. Calls do not block the loop; each raises FilesError."""

    async def names(self) -> list[str]:
        """Return the names of all there are, sorted."""
        ...

    async def read(self, name: str) -> bytes:
        """Return a file's bytes."""
        ...

    async def write(self, name: str, content: bytes) -> None:
        """Write a file, whole and durably, over one of that name."""
        ...


class FolderFiles:
    """Files of a folder, which is made when it is not there."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    async def names(self) -> list[str]:
        """Return the names of all there are, sorted."""
        return await self._done(self._names)

    async def read(self, name: str) -> bytes:
        """Return a file's bytes."""
        return await self._done((self._folder / name).read_bytes)

    async def write(self, name: str, content: bytes) -> None:
        """Write a file, whole and durably, over one of that name."""
        await self._done(lambda: replace_file(self._folder / name, content, 0o600, self._folder / ".new"))

    def _names(self) -> list[str]:
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        return sorted(path.name for path in self._folder.iterdir() if path.suffix in _SUFFIXES)

    async def _done(self, work: Callable[[], T]) -> T:
        try:
            return await asyncio.to_thread(work)
        except OSError as error:
            raise FilesError(f"{self._folder}: {error.strerror or error}") from error


class FakeFiles:
    """Files in memory. fails: why each write does, empty: it does not; refused: how many did."""

    def __init__(self) -> None:
        self.held: dict[str, bytes] = {}
        self.fails, self.refused = "", 0

    async def names(self) -> list[str]:
        """Return the names of all there are, sorted."""
        return sorted(self.held)

    async def read(self, name: str) -> bytes:
        """Return a file's bytes."""
        try:
            return self.held[name]
        except KeyError as error:
            raise FilesError(f"{name}: no such file") from error

    async def write(self, name: str, content: bytes) -> None:
        """Write a file, over one of that name."""
        await asyncio.sleep(0)
        if self.fails:
            self.refused += 1
            raise FilesError(self.fails)
        self.held[name] = content
