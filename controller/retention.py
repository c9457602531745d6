"""Leases for records that vanish by themselves: request records, plans, events.

One lease serves everything written in a while, so that a mutation costs no lease of its own. It is granted for the time a
record must live plus the time it is in use, and never kept alive: a record lives at least `keep_s` after it was written.
"""

from __future__ import annotations

import asyncio

from cairn.controller.store.base import Store


class Retention:
    """Hands out lease ids."""

    def __init__(self, store: Store, keep_s: float, use_s: float) -> None:
        self._store, self._keep_s, self._use_s = store, keep_s, use_s
        self._id = 0
        self._until_s = 0.0
        self._lock = asyncio.Lock()

    async def lease(self) -> int:
        """Return the id of a lease that lasts at least keep_s. Raises Unavailable."""
        async with self._lock:
            now_s = asyncio.get_running_loop().time()
            if not self._id or now_s >= self._until_s:
                lease = await self._store.lease(self._keep_s + self._use_s)
                await lease.close(revoke=False)
                self._id, self._until_s = lease.id, now_s + self._use_s
            return self._id

    def forget(self) -> None:
        """The store does not know this lease any more (a restored backup, say): take another next time."""
        self._id = 0
