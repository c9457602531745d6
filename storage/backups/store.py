"""Where backups are kept: objects under names, in a directory or in S3. The seam, its errors, and what callers share.

    await store.put("volumes/vol-1/bak-1/bak-1.qcow2.00000.5f0c…", part)     # whole, or not at all
    async for chunk in store.get(name, offset=4096): …                       # at most CHUNK_BYTES at a time
    [each.name async for each in store.list("volumes/vol-1/")]               # sorted by name
    await store.delete(name)                                                 # absent: no error

Every method is idempotent, and none waits longer than its time limit, whatever the other side does. A call that was given up
may still take effect later: that is why the names of backups' objects hold the checksum of their bytes (repository.py), so that
whoever writes one, and whenever it arrives, writes the same. No half object is ever seen under its name.

Drivers: directory.py, s3.py, fake.py; tests/conformance/test_backup_stores.py runs on all. Callers go through patience.py,
which tries again. Rejected: conditional writes, as many servers of S3 have none (Ceph 16 among them).
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Final, Protocol

from cairn.storage.base import StorageError

CHUNK_BYTES: Final = 1 << 20
# What a call may take that moves no data, and the slowest rate at which one that does is waited for.
ANSWER_S: Final = 30.0
BYTES_S_MIN: Final = 256 << 10
NAME_CHARACTERS_MAX: Final = 512
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}(/[A-Za-z0-9][A-Za-z0-9._-]{0,199})*")


class StoreError(StorageError):
    """What was asked of which store, and why it failed. Retryable or not: it says which."""


class StoreFull(StoreError):
    """The store takes no more bytes. Retryable, once somebody made room."""


class Gone(StoreError):
    """The object is not there: the store has answered. Permanent."""

    def __init__(self, say: str) -> None:
        super().__init__(say, retryable=False)


@dataclass(frozen=True, slots=True)
class Object:
    """One object as listed."""

    name: str
    size_bytes: int


class ObjectStore(Protocol):
    """One place for objects. Names: see check_name. All raise StoreError; a wrong name is a ValueError."""

    @property
    def title(self) -> str:
        """What messages call it: "directory /mnt/backups". Never a secret."""
        ...

    async def put(self, name: str, content: bytes) -> None:
        """Write an object in one step; one that is there is replaced. Durable when it returns. Raises StoreFull."""
        ...

    def get(self, name: str, *, offset: int = 0, length: int | None = None) -> AsyncIterator[bytes]:
        """Yield its bytes from offset on, at most length of them and CHUNK_BYTES at a time. Raises Gone."""
        ...

    def list(self, prefix: str) -> AsyncIterator[Object]:
        """Yield all objects whose name starts with prefix ("": all), sorted by name."""
        ...

    async def delete(self, name: str) -> None:
        """Remove an object; absent: no error."""
        ...

    async def close(self) -> None:
        """Let go of connections."""
        ...


def check_name(name: str) -> str:
    """Return a name that no store can misread as a path out of it; ValueError for any other."""
    if len(name) > NAME_CHARACTERS_MAX or not _NAME.fullmatch(name):
        raise ValueError(f"no name of an object: {name[:100]!r}")
    return name


def limit_s(size_bytes: int) -> float:
    """Return how long a call that moves so many bytes is waited for."""
    return ANSWER_S + size_bytes / BYTES_S_MIN


async def fetch(store: ObjectStore, name: str, bytes_max: int) -> bytes:
    """Return a whole object; one of more than bytes_max is a StoreError, found without reading more than that."""
    content = bytearray()
    async for chunk in store.get(name, length=bytes_max + 1):
        content += chunk
    if len(content) > bytes_max:
        raise StoreError(f"{name} in {store.title} has more than the {bytes_max} bytes it may have", retryable=False)
    return bytes(content)
