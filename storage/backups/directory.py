"""A store that is a folder: a file for each object, written under a temporary name, synced, and renamed.

Its calls run in threads that nobody waits for at the process's end: a folder on NFS whose server is gone holds a thread for
ever, and nothing can end that. Callers are told after the time limit; while all THREADS_MAX threads hang, calls fail at once.
Temporary names start with a dot, which no object's does. Those of a killed process are removed by `sweep` after a day by the
folder's own clock: no put takes that long.
"""

from __future__ import annotations

import asyncio
import errno
import os
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

from cairn.proto.files import replace_file, sync_folder
from cairn.proto.seams import Ids
from cairn.storage.backups.store import (
    ANSWER_S,
    CHUNK_BYTES,
    Gone,
    Object,
    StoreError,
    StoreFull,
    check_name,
    limit_s,
)

THREADS_MAX: Final = 16
_FULL: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# What no later try would find otherwise, unless somebody changes the folder.
_PERMANENT: Final = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG)
LEFT_S: Final = 86_400.0
_TEMPORARY: Final = ".writing"
_PAGE: Final = 1000

T = TypeVar("T")


@dataclass
class _Work:
    """A call in a thread. is_given_up: nobody waits for it any more."""

    done: asyncio.Future[Any]
    is_given_up: bool = False


class DirectoryStore:
    """Objects in a folder that is there already: one that is not, or is not mounted, is never made."""

    def __init__(self, folder: Path, ids: Ids, *, answer_s: float = ANSWER_S) -> None:
        self._folder = folder
        self._ids = ids
        self._answer_s = answer_s
        self._slots = asyncio.Semaphore(THREADS_MAX)
        self._hung = 0

    @property
    def title(self) -> str:
        """Its path."""
        return f"directory {self._folder}"

    async def put(self, name: str, content: bytes) -> None:
        """Write a file in one step."""
        path = self._path(name)
        temporary = path.with_name(self._ids.new(_TEMPORARY))
        await self._call(f"write {name}", lambda: self._write(path, content, temporary), len(content))

    async def get(self, name: str, *, offset: int = 0, length: int | None = None) -> AsyncIterator[bytes]:
        """Yield a file's bytes."""
        path = self._path(name)
        end = None if length is None else offset + length
        while end is None or offset < end:
            wanted = CHUNK_BYTES if end is None else min(CHUNK_BYTES, end - offset)
            chunk = await self._call(f"read {name}", partial(_read, path, offset, wanted), wanted)
            if chunk:
                yield chunk
            offset += len(chunk)
            if len(chunk) < wanted:
                return

    async def list(self, prefix: str) -> AsyncIterator[Object]:
        """Yield the files under a prefix, each folder as it is when its turn comes."""
        folder = self._folder / prefix.rpartition("/")[0]
        names = _walk(folder)
        while True:
            page = await self._call(f"list {prefix or 'all'}", lambda: self._page(names, prefix), 0)
            for each in page:
                yield each
            if len(page) < _PAGE:
                return

    async def delete(self, name: str) -> None:
        """Remove a file, and folders that it leaves empty."""
        path = self._path(name)
        await self._call(f"remove {name}", lambda: self._remove(path), 0)

    async def sweep(self) -> None:
        """Remove what killed processes left half-written more than a day ago. Safe at any time."""
        await self._call("sweep", self._sweep, 0)

    async def close(self) -> None:
        """Nothing is held."""

    def _path(self, name: str) -> Path:
        return self._folder / check_name(name)

    def _write(self, path: Path, content: bytes, temporary: Path) -> None:
        self._make_folder(path.parent)
        replace_file(path, content, 0o600, temporary)

    def _make_folder(self, folder: Path) -> None:
        """Make a folder within ours, durably. Ours must be there: an unmounted file system must not be written beneath."""
        if folder == self._folder:
            self._check_there()
            return
        if not folder.is_dir():
            self._make_folder(folder.parent)
            folder.mkdir(mode=0o700, exist_ok=True)
            sync_folder(folder.parent)

    def _check_there(self) -> None:
        if not self._folder.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, "there is no such folder; is it mounted?")

    def _page(self, names: Iterator[Path], prefix: str) -> Sequence[Object]:
        self._check_there()
        found = []
        for path in names:
            name = str(path.relative_to(self._folder))
            if name.startswith(prefix) and (size := _size(path)) is not None:
                found.append(Object(name, size))
            if len(found) == _PAGE:
                break
        return found

    def _remove(self, path: Path) -> None:
        path.unlink(missing_ok=True)
        folder = path.parent
        if folder.is_dir():
            sync_folder(folder)
        while folder != self._folder:
            try:
                folder.rmdir()
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.ENOENT, errno.EEXIST):
                    raise
                return
            folder = folder.parent

    def _sweep(self) -> None:
        now = self._folder / self._ids.new(_TEMPORARY)
        now.touch(mode=0o600, exist_ok=False)
        try:
            new_s = now.stat().st_mtime
        finally:
            now.unlink()
        for path in self._folder.rglob(f"{_TEMPORARY}-*"):
            with suppress(FileNotFoundError):
                if new_s - path.stat().st_mtime > LEFT_S:
                    path.unlink()

    async def _call(self, act: str, call: Callable[[], T], size_bytes: int) -> T:
        """Do it in a thread of its own, whose end is not waited for longer than it may take."""
        if self._hung >= THREADS_MAX:
            raise StoreError(f"could not {act} in {self.title}: {self._hung} calls before it have not been answered yet")
        limit = self._answer_s + limit_s(size_bytes) - limit_s(0)
        work: _Work | None = None
        try:
            async with asyncio.timeout(limit):
                await self._slots.acquire()
                work = _Work(asyncio.get_running_loop().create_future())
                threading.Thread(target=self._run, args=(work, call), name="backups", daemon=True).start()
                result: T = await work.done
                return result
        except TimeoutError as error:
            if work is not None:
                work.is_given_up = True
                self._hung += 1
            raise StoreError(f"could not {act} in {self.title}: no answer for {limit:.0f} s") from error
        except OSError as error:
            raise self._explained(act, error) from error

    def _run(self, work: _Work, call: Callable[[], Any]) -> None:
        result: Any = None
        failed: Exception | None = None
        try:
            result = call()
        except Exception as error:  # noqa: BLE001  it is raised where the call was made
            failed = error
        loop = work.done.get_loop()
        if not loop.is_closed():
            loop.call_soon_threadsafe(self._finish, work, result, failed)

    def _finish(self, work: _Work, result: Any, failed: Exception | None) -> None:
        self._slots.release()
        self._hung -= work.is_given_up
        if work.done.done():
            return
        if failed is not None:
            work.done.set_exception(failed)
        else:
            work.done.set_result(result)

    def _explained(self, act: str, error: OSError) -> StoreError:
        say = f"could not {act} in {self.title}: {error.strerror or error}"
        if error.errno == errno.ENOENT and act.startswith("read "):
            return Gone(say)
        if error.errno in _FULL:
            return StoreFull(say)
        return StoreError(say, retryable=error.errno not in _PERMANENT)


def _read(path: Path, offset: int, length: int) -> bytes:
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        return os.pread(handle, length, offset)
    finally:
        os.close(handle)


def _walk(folder: Path) -> Iterator[Path]:
    """Yield the files beneath, sorted as the names of objects are. A folder that vanishes meanwhile has none."""
    try:
        entries = list(os.scandir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return
    # "a-b" comes before "a/b": a folder counts as its name with the slash.
    entries.sort(key=lambda each: each.name + "/" * each.is_dir(follow_symlinks=False))
    for each in entries:
        path = folder / each.name
        if each.name.startswith("."):
            continue
        if each.is_dir(follow_symlinks=False):
            yield from _walk(path)
        elif each.is_file(follow_symlinks=False):
            yield path


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return None
