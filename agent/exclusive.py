"""Who opens a volume, and who grows or removes it while no guest has it: one after the other.

    async with exclusive.hold(volumes):
        ...     # look at the guests, and act: no other who holds one of these volumes does meanwhile

What a guest has open shows only once its call has ended; so to look first is not enough.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from weakref import WeakValueDictionary


class Exclusive:
    """A lock for each volume that somebody holds or waits for."""

    def __init__(self) -> None:
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    @asynccontextmanager
    async def hold(self, volumes: Iterable[str]) -> AsyncGenerator[None]:
        """Wait until nobody else holds one of them, and hold them all."""
        async with AsyncExitStack() as held:
            for volume in sorted(set(volumes)):
                await held.enter_async_context(self._locks.setdefault(volume, asyncio.Lock()))
            yield
