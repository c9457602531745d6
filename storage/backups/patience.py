"""A store as operations use it: tried again while that may help, so many calls at once, and counted.

A call that fails retryably is made anew up to TRIES times, after pauses that double; a stream goes on at the byte it had
reached. So an operation ends within a bounded time whatever the store does: no more than TRIES times the limit of a call, for
each call.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Final, TypeVar

from cairn.proto.seams import Ids
from cairn.storage.backups.store import Object, ObjectStore, StoreError, StoreFull

TRIES: Final = 4
PAUSE_S: Final = 0.5
# Parts that are held in memory at once.
AT_ONCE: Final = 2

T = TypeVar("T")


@dataclass
class PatientStore:
    """See the module. Itself an ObjectStore."""

    inner: ObjectStore
    ids: Ids
    pause_s: float = PAUSE_S
    at_once: int = AT_ONCE
    # Bytes of objects that were moved, those of tries that failed not counted.
    sent_bytes: int = 0
    received_bytes: int = 0
    _puts: asyncio.Semaphore = field(init=False)

    def __post_init__(self) -> None:
        self._puts = asyncio.Semaphore(self.at_once)

    @property
    def title(self) -> str:
        """As the store calls itself."""
        return self.inner.title

    async def put(self, name: str, content: bytes) -> None:
        """Write an object."""
        async with self._puts:
            await self._patiently(lambda: self.inner.put(name, content))
        self.sent_bytes += len(content)

    async def put_now(self, name: str, content: bytes) -> None:
        """Write a small object past those that wait for their turn."""
        await self._patiently(lambda: self.inner.put(name, content))

    async def get(self, name: str, *, offset: int = 0, length: int | None = None) -> AsyncIterator[bytes]:
        """Yield an object's bytes."""
        got, failures = 0, 0
        while True:
            rest = None if length is None else length - got
            try:
                async for chunk in self.inner.get(name, offset=offset + got, length=rest):
                    got += len(chunk)
                    failures = 0
                    self.received_bytes += len(chunk)
                    yield chunk
            except StoreError as error:
                failures += 1
                await self._pause(error, failures)
            else:
                return

    async def list(self, prefix: str) -> AsyncIterator[Object]:
        """Yield objects; one that was yielded is not again."""
        last, failures = "", 0
        while True:
            try:
                async for each in self.inner.list(prefix):
                    if each.name > last:
                        last, failures = each.name, 0
                        yield each
            except StoreError as error:
                failures += 1
                await self._pause(error, failures)
            else:
                return

    async def delete(self, name: str) -> None:
        """Remove an object."""
        await self._patiently(lambda: self.inner.delete(name))

    async def close(self) -> None:
        """Close the store."""
        await self.inner.close()

    async def _patiently(self, call: Callable[[], Awaitable[T]]) -> T:
        failures = 0
        while True:
            try:
                return await call()
            except StoreError as error:
                failures += 1
                await self._pause(error, failures)

    async def _pause(self, error: StoreError, failures: int) -> None:
        """Wait before the next try, or raise: it would not help, or was tried enough. What is full stays so for a while."""
        if not error.retryable or isinstance(error, StoreFull) or failures >= TRIES:
            raise error
        await asyncio.sleep(self.pause_s * 2 ** (failures - 1) * (0.5 + self.ids.jitter()))
