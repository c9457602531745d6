"""The folder a local pool lives in: its paths, its truth about space, its durable renames, and the lock both drivers share.

    <pool>/images/<hex>              complete and verified, bytes as uploaded
    <pool>/images/.<hex>.partial     an unfinished put, to go on from; dropped when nobody wants it or space is needed
    <pool>/volumes/vol-….qcow2       a guest's disk
    <pool>/volumes/.vol-….qcow2.new  being made; swept by recover
    <pool>/.lock                     shared: a volume is being made of an image; exclusive: an image is being deleted

Everything is blocking and short; drivers call it in threads. Ids become paths only after a full match of their pattern, and
only regular files are opened (O_NOFOLLOW), so nothing leads out of the pool.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import re
import stat
from collections.abc import AsyncIterator, Callable, Collection, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import ParamSpec, TypeVar

from cairn.proto.v1.node_pb2 import StoragePool
from cairn.storage.base import PoolFull, StorageError
from cairn.storage.owner import Owner
from cairn.storage.qcow2 import HEAD_BYTES

DIGEST = re.compile(r"sha256:([0-9a-f]{64})")
VOLUME_ID = re.compile(r"vol-[0-9a-z]{8}")
VOLUME_FILE = re.compile(r"(vol-[0-9a-z]{8})\.qcow2")
IMAGE_FILE = re.compile(r"[0-9a-f]{64}")
PARTIAL_FILE = re.compile(r"\.([0-9a-f]{64})\.partial")
BACKING = re.compile(r"\.\./images/([0-9a-f]{64})")
FULL_ERRNOS = (errno.ENOSPC, errno.EDQUOT)
_LOCK_WAIT_S = 30.0
P = ParamSpec("P")
T = TypeVar("T")


class Pool:
    """One folder, on one file system."""

    def __init__(self, folder: Path, owner: Owner | None = None) -> None:
        self.owner = owner or Owner()
        self.folder = folder
        self.images = folder / "images"
        self.volumes = folder / "volumes"
        for path in (folder, self.images, self.volumes):
            path.mkdir(parents=True, exist_ok=True, mode=0o700)
        for path in (self.images, self.volumes):
            if path.is_symlink():
                raise StorageError(f"{path} is a symbolic link; a pool keeps its files in itself", retryable=False)
        self._hand_over()

    def _hand_over(self) -> None:
        """Give guests' processes what is theirs, also of a pool from before they had a user of their own."""
        for folder in (self.folder, self.images, self.volumes):
            self.owner.enter(folder)
        for path in self.images.iterdir():
            if IMAGE_FILE.fullmatch(path.name):
                self.owner.lend(path)
        for path in self.volumes.iterdir():
            if VOLUME_FILE.fullmatch(path.name):
                self.owner.give(path)

    def image(self, digest: str) -> Path:
        """Return where an image's bytes are. Raises StorageError when the digest is not one."""
        return self.images / _hex(digest)

    def partial(self, digest: str) -> Path:
        """Return where an image's bytes are while they arrive."""
        return self.images / f".{_hex(digest)}.partial"

    def volume(self, id: str) -> Path:
        """Return where a volume is. Raises StorageError when the id is not one."""
        require_volume_id(id)
        return self.volumes / f"{id}.qcow2"

    def unfinished(self, id: str) -> Path:
        """Return where a volume is while it is made."""
        return self.volumes / f".{id}.qcow2.new"

    def facts(self) -> StoragePool:
        """Return the file system's own figures."""
        found = os.statvfs(self.folder)
        return StoragePool(
            type="local",
            total_bytes=found.f_blocks * found.f_frsize,
            used_bytes=(found.f_blocks - found.f_bfree) * found.f_frsize,
            free_bytes=found.f_bavail * found.f_frsize,
            path=str(self.folder),
        )

    def drop_partials(self, keep: Collection[str] = ()) -> bool:
        """Delete unfinished puts that nobody writes now, but for these digests; return whether any was."""
        dropped = False
        for path in self.images.iterdir():
            found = PARTIAL_FILE.fullmatch(path.name)
            if found and f"sha256:{found[1]}" not in keep:
                dropped = _drop_idle(path) or dropped
        return dropped

    @asynccontextmanager
    async def locked(self, *, exclusive: bool) -> AsyncIterator[None]:
        """Hold the pool's lock. Never blocks a thread; StorageError when it is not free within 30 s."""
        handle = os.open(self.folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        kind = fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH
        deadline = asyncio.get_running_loop().time() + _LOCK_WAIT_S
        try:
            while True:
                try:
                    fcntl.flock(handle, kind | fcntl.LOCK_NB)
                    break
                except BlockingIOError as error:
                    if asyncio.get_running_loop().time() > deadline:
                        raise StorageError(f"pool {self.folder} is busy: its lock is held") from error
                    await asyncio.sleep(0.01)
            yield
        finally:
            os.close(handle)


def require_volume_id(id: str) -> None:
    """StorageError, permanent, when an id is none of a volume."""
    if not VOLUME_ID.fullmatch(id):
        raise StorageError(f"{id!r} is not a volume id", retryable=False)


def open_partial(path: Path) -> int:
    """Open an unfinished put for writing and hold its lock, so that it is not dropped. StorageError: somebody writes it."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(handle)
        raise StorageError(f"{path.name} is being written by somebody else") from error
    return handle


def _drop_idle(path: Path) -> bool:
    try:
        handle = open_partial(path)
    except StorageError:
        return False
    try:
        path.unlink(missing_ok=True)
    finally:
        os.close(handle)
    return True


def sync_file(path: Path) -> None:
    """Make a file's content durable."""
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_folder(folder: Path) -> None:
    """Make names in a folder durable."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def publish(temporary: Path, path: Path, own: Callable[[Path], None]) -> None:
    """Give finished bytes their owner and mode (Owner.give, Owner.lend) and their name: fsync, rename, fsync of the folder."""
    own(temporary)
    sync_file(temporary)
    temporary.replace(path)
    sync_folder(path.parent)


def remove(path: Path) -> bool:
    """Unlink durably; return whether it was there."""
    try:
        path.unlink()
    except FileNotFoundError:
        return False
    sync_folder(path.parent)
    return True


def head_of(path: Path) -> tuple[bytes, os.stat_result] | None:
    """Return the first bytes and the stat of a regular file; None when there is none (a link is none).

    No bytes: its disk cannot read them. The file is there, and damaged; of all others that says nothing.
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ELOOP, errno.ENXIO):
            return None
        raise
    try:
        found = os.fstat(handle)
        if not stat.S_ISREG(found.st_mode):
            return None
        return _read_head(handle), found
    finally:
        os.close(handle)


def _read_head(handle: int) -> bytes:
    try:
        return os.pread(handle, HEAD_BYTES, 0)
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        return b""


async def in_thread(call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run blocking file work in a thread, and wait for its end even when cancelled: nobody closes files under it."""
    work = asyncio.ensure_future(asyncio.to_thread(call, *args, **kwargs))
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        await asyncio.wait({work})
        raise


@contextmanager
def attempt(say: str) -> Iterator[None]:
    """Turn an OSError of the block into a StorageError that says what was attempted; no space: PoolFull."""
    try:
        yield
    except OSError as error:
        kind = PoolFull if error.errno in FULL_ERRNOS else StorageError
        raise kind(f"{say} failed: {error.strerror}") from error


def _hex(digest: str) -> str:
    match = DIGEST.fullmatch(digest)
    if not match:
        raise StorageError(f"{digest!r} is not a digest (sha256: and 64 hex digits)", retryable=False)
    return match[1]
