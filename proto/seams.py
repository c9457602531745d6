"""The seams of nondeterminism: time, identity, durable local files, and transport.

Product code takes these as arguments and uses nothing else for what they cover, so the simulation can run it on virtual
time, from one seed, with a network and a disk that fail on purpose. Waiting is plain asyncio (asyncio.sleep, asyncio.timeout,
loop.call_later): the event loop is itself the seam there. tests/test_tidy.py bans wall clocks, random and uuid elsewhere.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Protocol

import grpc.aio
from cairn.proto.files import replace_file, sync_folder
from google.protobuf.timestamp_pb2 import Timestamp

ID_ALPHABET = "0123456789abcdefghijklmnopqrstuvwxyz"
ID_LENGTH = 8
_EVEN: Final = 256 // len(ID_ALPHABET) * len(ID_ALPHABET)


class Clock(Protocol):
    """Wall-clock time. For durations use the running loop's time()."""

    def now(self) -> datetime:
        """Return the current time, UTC, timezone-aware."""
        ...


class Ids(Protocol):
    """Fresh identifiers and the only source of randomness."""

    def new(self, prefix: str) -> str:
        """Return prefix + "-" + 8 characters of [0-9a-z], for example "i-0f3k9z2a"."""
        ...

    def uuid(self) -> str:
        """Return a random UUID (RFC 9562 version 4), for request ids."""
        ...

    def secret(self, nbytes: int) -> bytes:
        """Return unpredictable bytes, for tokens."""
        ...

    def jitter(self) -> float:
        """Return a number in [0, 1), for spreading retries."""
        ...


class Disk(Protocol):
    """A small durable file area: whole files and one append-only log each.

    Paths are relative names without "..". Writes are durable when they return, which may take seconds; the loop goes on
    meanwhile. One write at a time for each name; one that is cancelled has happened, or not, or in part. Errors are OSError.
    """

    def read(self, name: str) -> bytes | None:
        """Return the content, or None when there is no such file."""
        ...

    async def replace(self, name: str, content: bytes) -> None:
        """Write a whole file, mode 0600, in one step: temporary file, fsync, rename, fsync of the folder."""
        ...

    async def append(self, name: str, content: bytes) -> None:
        """Add bytes (or none) at the end of a file, creating it; all that is in it is durable then."""
        ...


class Transport(Protocol):
    """How processes reach each other. The real one is proto/rpc.py (gRPC over mutual TLS)."""

    def channel(self, endpoints: Sequence[str], *, server_name: str) -> grpc.aio.Channel:
        """Return a channel to whichever of the endpoints answers; server_name is checked against its certificate."""
        ...

    def server(self, *, interceptors: Sequence[Any] = ()) -> grpc.aio.Server:
        """Return a server without ports."""
        ...

    async def listen(self, server: grpc.aio.Server, address: str, *, mutual: bool = True) -> str:
        """Bind "host:port" (port 0: any) or "unix:/path", start nothing, return the bound address.

        mutual=False asks no client certificate: only the enrolment port does that.
        """
        ...


class SystemClock:
    """The machine's clock."""

    def now(self) -> datetime:
        """Return the current time, UTC."""
        return datetime.fromtimestamp(time.time(), UTC)


class SystemIds:
    """Identifiers from the operating system's generator."""

    def __init__(self) -> None:
        self._random = random.SystemRandom()

    def new(self, prefix: str) -> str:
        """Return prefix, "-", 8 random characters."""
        digits = ""
        while len(digits) < ID_LENGTH:
            # Bytes at the end that would make the first letters likelier are left out.
            digits += "".join(ID_ALPHABET[byte % len(ID_ALPHABET)] for byte in os.urandom(2 * ID_LENGTH) if byte < _EVEN)
        return f"{prefix}-{digits[:ID_LENGTH]}"

    def uuid(self) -> str:
        """Return a random UUID."""
        return str(uuid.uuid4())

    def secret(self, nbytes: int) -> bytes:
        """Return bytes of os.urandom."""
        return os.urandom(nbytes)

    def jitter(self) -> float:
        """Return a number in [0, 1)."""
        return self._random.random()


@dataclass
class SystemDisk:
    """Disk on a folder of the file system (made with mode 0700). It writes in a thread of its own, behind nobody's work."""

    root: Path
    _open: dict[str, int] = field(default_factory=dict)
    _thread: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, thread_name_prefix="disk"))

    def __post_init__(self) -> None:
        self.root.mkdir(parents=True, exist_ok=True, mode=0o700)

    def read(self, name: str) -> bytes | None:
        """Return the file's content or None."""
        try:
            return (self.root / name).read_bytes()
        except FileNotFoundError:
            return None

    async def replace(self, name: str, content: bytes) -> None:
        """Write atomically and durably."""
        await self._in_thread(self._replace, name, content)

    async def append(self, name: str, content: bytes) -> None:
        """Add at the end, durably."""
        await self._in_thread(self._append, name, content)

    async def _in_thread(self, call: Callable[[str, bytes], None], name: str, content: bytes) -> None:
        """Wait for its end even when cancelled: nobody writes to a file while another does."""
        work = asyncio.get_running_loop().run_in_executor(self._thread, call, name, content)
        try:
            await asyncio.shield(work)
        except asyncio.CancelledError:
            await asyncio.wait({work})
            raise

    def _replace(self, name: str, content: bytes) -> None:
        self._close(name)
        path = self.root / name
        replace_file(path, content, 0o600, path.with_name(path.name + ".new"))

    def _append(self, name: str, content: bytes) -> None:
        handle = self._handle(name)
        view = memoryview(content)
        while view:
            view = view[os.write(handle, view) :]
        self._sync(handle)

    def _sync(self, handle: int) -> None:
        os.fdatasync(handle)

    def _handle(self, name: str) -> int:
        if name not in self._open:
            path = self.root / name
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            fresh = not path.exists()
            self._open[name] = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
            if fresh:
                sync_folder(path.parent)
        return self._open[name]

    def _close(self, name: str) -> None:
        handle = self._open.pop(name, None)
        if handle is not None:
            os.close(handle)


_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


def timestamp(moment: datetime) -> Timestamp:
    """Return the protobuf form of an aware datetime."""
    since = moment - _EPOCH
    return Timestamp(seconds=since.days * 86_400 + since.seconds, nanos=since.microseconds * 1000)


def moment(stamp: Timestamp) -> datetime:
    """Return the aware datetime of a protobuf timestamp."""
    return stamp.ToDatetime(UTC)
