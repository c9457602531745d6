"""A log of frames on a disk that may take seconds for a sync, written by one task: nobody else of the loop waits for it.

Frame: length and CRC-32 of the payload (two big-endian 32-bit numbers), then the payload. Whoever has something to write hands
in an `Entry` and waits. What comes while the disk is busy goes together with the next write: one sync for all (a group commit).

Invariants: an entry counts (`end`) once it is durable, in the order of the file, and within one step of the loop; what its
`begin` saw has not changed by then, but by entries of its group. What was handed in is written, also when its caller is
cancelled meanwhile; `close` gives up what is not written yet. After a write that failed the file may end in half a frame: the
next write makes it anew.
"""

from __future__ import annotations

import asyncio
import struct
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar

from cairn.proto.log import logger
from cairn.proto.seams import Disk

# Rewritten when the log is this much, and this many times the size of what it says.
COMPACT_BYTES_MIN: Final = 1 << 20
COMPACT_FACTOR: Final = 4
# No frame is larger: a length beyond it is garbage.
FRAME_BYTES_MAX: Final = 8 << 20
# A write that takes longer is told of.
SLOW_S: Final = 3.0
_HEAD: Final = struct.Struct(">II")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Entry(Generic[T]):
    """Something to be written.

    begin: returns its payloads, just before they are written; what it raises refuses the entry. end: called once they are
    durable; what it returns is the answer. anew: its payloads are the whole log. first: no other entry may be before it in its
    group, so its `begin` sees all that was handed in before.
    """

    begin: Callable[[], list[bytes]]
    end: Callable[[], T]
    anew: bool = False
    first: bool = False


_Waiting = tuple[Entry[Any], asyncio.Future[Any]]


class Journal:
    """The file and who writes it. whole: returns the payloads that say all, for a file made anew. live_bytes: their size."""

    def __init__(self, disk: Disk, name: str, whole: Callable[[], list[bytes]], live_bytes: Callable[[], int]) -> None:
        self._disk, self._name = disk, name
        self._whole, self._live_bytes = whole, live_bytes
        self._waiting: deque[_Waiting] = deque()
        self._writer: asyncio.Task[None] | None = None
        self._size_bytes = 0
        # To measure what it says costs as much as that is: asked again when the log has grown by a share of it.
        self._ask_bytes = COMPACT_BYTES_MIN
        self._sound = True
        # Loop time at which the write began that runs now; None: none does.
        self._since_s: float | None = None
        # Called once for each write that takes long, while it does.
        self.slow: Callable[[], None] = _ignore

    def waits_s(self, now_s: float) -> float:
        """Return for how long the disk has been busy with the write that runs at that loop time; 0: none does."""
        since_s = self._since_s
        return now_s - since_s if since_s is not None else 0.0

    async def load(self, replay: Callable[[bytes], None], cut: bytes) -> bool:
        """Replay every whole frame, and make them durable: who wrote them may have been killed before they were.

        False: the disk refused that, which is logged; what was replayed may not survive a power cut. A torn tail is cut, with
        `cut` as the frame in its place, in one step, or stays as it is while the disk fails.
        """
        content = self._disk.read(self._name) or b""
        for payload, end in _frames(content):
            replay(payload)
            self._size_bytes = end
        durable = await self._is_durable() if content else True
        if self._size_bytes < len(content):
            cut_bytes = len(content) - self._size_bytes
            logger("ledger").warning("tail_cut", kept_bytes=self._size_bytes, cut_bytes=cut_bytes)
            replay(cut)
            await self._cut(content[: self._size_bytes] + _frame(cut))
        return durable

    async def _is_durable(self) -> bool:
        try:
            await self._disk.append(self._name, b"")
        except OSError as error:
            logger("ledger").warning("not_durable", error=str(error))
            return False
        return True

    async def _cut(self, content: bytes) -> None:
        try:
            await self._disk.replace(self._name, content)
        except OSError as error:
            # The next write makes the file anew; a restart before that finds the torn tail again.
            logger("ledger").warning("cut_failed", error=str(error))
            self._sound = False
        else:
            self._size_bytes = len(content)

    async def write(self, entry: Entry[T]) -> T:
        """Write an entry; return what its `end` returns. What its `begin` raises, and OSError, say that it does not count."""
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._waiting.append((entry, future))
        if self._writer is None:
            self._writer = asyncio.create_task(self._write_all(), name="journal")
        return await future

    async def close(self) -> None:
        """Write nothing more; who waits is cancelled."""
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.cancel()
            await asyncio.gather(writer, return_exceptions=True)
        while self._waiting:
            self._waiting.popleft()[1].cancel()

    async def _write_all(self) -> None:
        while self._waiting:
            group = self._group()
            try:
                await self._write_group(group)
            except asyncio.CancelledError:
                for _, future in group:
                    future.cancel()
                raise
            await self._compact_if_large()
        self._writer = None

    def _group(self) -> list[_Waiting]:
        """Take what goes together: a file made anew alone, else all up to the next that must be first."""
        group = [self._waiting.popleft()]
        while not group[0][0].anew and self._waiting and not (self._waiting[0][0].anew or self._waiting[0][0].first):
            group.append(self._waiting.popleft())
        return group

    async def _write_group(self, group: list[_Waiting]) -> None:
        payloads, taken = list[bytes](), []
        for entry, future in group:
            try:
                payloads += entry.begin()
            except Exception as error:  # noqa: BLE001 - refused, or a fault of the entry's: its caller hears of it
                _fail(future, error)
            else:
                taken.append((entry, future))
        try:
            if payloads or any(entry.anew for entry, _ in taken):
                await self._put(payloads, anew=any(entry.anew for entry, _ in taken))
        except Exception as error:  # noqa: BLE001 - the disk's: whoever waits hears of it
            for _, future in taken:
                _fail(future, error)
            return
        for entry, future in taken:
            _end(entry, future)

    async def _put(self, payloads: list[bytes], *, anew: bool) -> None:
        """Make payloads durable, behind what there is or in its place."""
        before = [] if anew or self._sound else self._whole()
        content = b"".join(map(_frame, before + payloads))
        if anew or not self._sound:
            with self._watched():
                await self._disk.replace(self._name, content)
            self._size_bytes, self._sound, self._ask_bytes = len(content), True, COMPACT_BYTES_MIN
            return
        self._sound = False
        with self._watched():
            await self._disk.append(self._name, content)
        self._sound = True
        self._size_bytes += len(content)

    @contextmanager
    def _watched(self) -> Iterator[None]:
        """Tell when a write takes long."""
        loop = asyncio.get_running_loop()
        self._since_s, timer = loop.time(), loop.call_later(SLOW_S, self.slow)
        try:
            yield
        finally:
            timer.cancel()
            self._since_s = None

    async def _compact_if_large(self) -> None:
        if self._size_bytes < self._ask_bytes:
            return
        live_bytes = self._live_bytes()
        self._ask_bytes = max(COMPACT_BYTES_MIN, self._size_bytes + live_bytes // 4)
        if self._size_bytes <= COMPACT_FACTOR * live_bytes:
            return
        try:
            await self._put(self._whole(), anew=True)
        except OSError as error:
            logger("ledger").warning("compaction_failed", error=str(error), size_bytes=self._size_bytes)


def _ignore() -> None:
    return None


def _end(entry: Entry[Any], future: asyncio.Future[Any]) -> None:
    try:
        result = entry.end()
    except Exception as error:  # noqa: BLE001 - a fault of the entry's: its caller hears of it, the others go on
        _fail(future, error)
    else:
        if not future.done():
            future.set_result(result)


def _fail(future: asyncio.Future[Any], error: Exception) -> None:
    if future.done():
        logger("ledger").warning("not_written", error=str(error), why="and nobody waits for it any more")
    else:
        future.set_exception(error)


def _frame(payload: bytes) -> bytes:
    return _HEAD.pack(len(payload), zlib.crc32(payload)) + payload


def _frames(content: bytes) -> Iterator[tuple[bytes, int]]:
    """Yield the payloads that are whole, each with the offset of its end; stop at the first that is not."""
    at = 0
    while at + _HEAD.size <= len(content):
        length, checksum = _HEAD.unpack_from(content, at)
        payload = content[at + _HEAD.size : at + _HEAD.size + length]
        if not 0 < length <= FRAME_BYTES_MAX or len(payload) < length or zlib.crc32(payload) != checksum:
            return
        at += _HEAD.size + length
        yield payload, at
