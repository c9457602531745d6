"""Many things done, some at once: no more than that are begun, so memory is bounded by it. And when to give a store up."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Final, TypeVar

from cairn.storage.backups.store import StoreError

IN_A_ROW: Final = 3

T = TypeVar("T")


@dataclass
class Silence:
    """Tells one object that cannot be read, which is that object's trouble, from a store that answers nothing any more."""

    failures: int = 0

    def broken(self, error: StoreError) -> None:
        """Note that an object could not be read. Raises the error when it is the third in a row."""
        self.failures += 1
        if self.failures >= IN_A_ROW:
            raise error

    def answered(self) -> None:
        """Note that the store has answered."""
        self.failures = 0


async def at_once(number: int, items: Iterable[T], work: Callable[[T], Awaitable[None]]) -> None:
    """Do the work on each item, `number` of them at a time. Raises the first error; what else goes on is cancelled then."""
    left = iter(items)

    async def worker() -> None:
        for item in left:
            await work(item)

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(number):
                group.create_task(worker())
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from errors
