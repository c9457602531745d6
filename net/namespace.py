"""Network namespaces: enter, make, remove, and the bounded threads that work in them.

Invariant: every job enters the namespace it works in explicitly, so a thread's own namespace never matters, and jobs of one
namespace never run at the same time. Python 3.11 has neither os.setns nor os.unshare, hence ctypes; pyroute2's own
`IPRoute(netns=...)` forks a child per call and creates a namespace that is missing, so it is not used.
"""

from __future__ import annotations

import asyncio
import ctypes
import errno
import os
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Final, TypeVar

T = TypeVar("T")
CLONE_NEWNET: Final = 0x40000000
MS_BIND, MS_REC, MS_SHARED = 4096, 16384, 1 << 20
MNT_DETACH: Final = 2
FOLDER: Final = Path("/run/netns")
NSFS_MAGIC: Final = 0x6E736673
THREADS: Final = 4

_libc = ctypes.CDLL(None, use_errno=True)


def _check(what: str, returned: int) -> None:
    if returned != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


@contextmanager
def entered(handle: int) -> Iterator[None]:
    """Put the calling thread into the namespace of an open file descriptor, and back."""
    before = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        _check("enter network namespace", _libc.setns(handle, CLONE_NEWNET))
        try:
            yield
        finally:
            _check("return to network namespace", _libc.setns(before, CLONE_NEWNET))
    finally:
        os.close(before)


@contextmanager
def opened(path: Path) -> Iterator[int]:
    """Open a namespace file."""
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield handle
    finally:
        os.close(handle)


def exists(name: str) -> bool:
    """Whether a namespace of that name is there; a plain file left by a crash is not one."""
    path = FOLDER / name
    try:
        return path.stat().st_dev != FOLDER.stat().st_dev and path.is_file()
    except FileNotFoundError:
        return False


def names(prefix: str) -> list[str]:
    """Return the names of namespaces (also half-made ones) that begin so."""
    try:
        return sorted(entry.name for entry in FOLDER.iterdir() if entry.name.startswith(prefix))
    except FileNotFoundError:
        return []


def create(name: str) -> None:
    """Make a namespace; one that is there already stays."""
    if exists(name):
        return
    _share_folder()
    path = FOLDER / name
    os.close(os.open(path, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o444))
    before = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        _check("make network namespace", _libc.unshare(CLONE_NEWNET))
        try:
            source, target = b"/proc/thread-self/ns/net", str(path).encode()
            _check(f"name network namespace {name}", _libc.mount(source, target, b"none", MS_BIND, None))
        finally:
            _check("return to network namespace", _libc.setns(before, CLONE_NEWNET))
    finally:
        os.close(before)


def are_lasting() -> bool:
    """Whether names we give outlive this process: not when it runs in a mount namespace of its own (systemd sandboxing)."""
    try:
        return Path("/proc/self/ns/mnt").stat().st_ino == Path("/proc/1/ns/mnt").stat().st_ino
    except PermissionError:
        return True


def remove(name: str) -> None:
    """Take its name away; the kernel removes what is in it once no process or socket holds it. Absent: no error."""
    path = FOLDER / name
    while _libc.umount2(str(path).encode(), MNT_DETACH) == 0:
        continue
    if ctypes.get_errno() not in (errno.EINVAL, errno.ENOENT):
        raise OSError(ctypes.get_errno(), f"remove network namespace {name}: {os.strerror(ctypes.get_errno())}")
    path.unlink(missing_ok=True)


def _share_folder() -> None:
    """Make mounts under the folder visible in other mount namespaces, as ip-netns(8) does."""
    FOLDER.mkdir(parents=True, exist_ok=True, mode=0o755)
    folder = str(FOLDER).encode()
    if _libc.mount(b"", folder, b"none", MS_SHARED | MS_REC, None) != 0:
        _check(f"bind {FOLDER}", _libc.mount(folder, folder, b"none", MS_BIND | MS_REC, None))
        _check(f"share {FOLDER}", _libc.mount(b"", folder, b"none", MS_SHARED | MS_REC, None))


class Threads:
    """Runs blocking jobs off the event loop: a few at once, those of one namespace one after the other."""

    def __init__(self, threads_max: int = THREADS) -> None:
        self._executor = ThreadPoolExecutor(threads_max, thread_name_prefix="netns")
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def run(self, namespace: str, job: Callable[[], T]) -> T:
        """Return what the job returns. A cancelled caller still waits for a job that runs: the kernel is half-way."""
        async with self._locks[namespace]:
            future = asyncio.get_running_loop().run_in_executor(self._executor, job)
            try:
                return await asyncio.shield(future)
            except asyncio.CancelledError:
                await asyncio.wait([future])
                raise

    async def close(self) -> None:
        """Wait for running jobs, start none."""
        await asyncio.to_thread(self._executor.shutdown, wait=True, cancel_futures=True)
