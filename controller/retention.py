"""Leases for records that vanish by themselves: request records, plans, events.

One lease serves what is written in a minute, so that a mutation costs no lease of its own, and a bounded number of records, as
all of a lease end in one revision: a busy hour ends as it came, little by little. It is granted for the time a record must live
plus the time it is in use, and never kept alive: a record lives at least `keep_s` after it was written.
"""

from __future__ import annotations

import asyncio
from typing import Final

from cairn.controller.store.base import Store

REQUEST_KEEP_S: Final = 24 * 3600.0
EVENT_KEEP_S: Final = 24 * 3600.0
PLAN_KEEP_S: Final = 600.0
# How long a lease is given to new records, and to how many.
LEASE_USE_S: Final = 60.0
LEASE_RECORDS_MAX: Final = 1000


class Retention:
    """Hands out lease ids."""

    def __init__(self, store: Store, keep_s: float) -> None:
        self._store, self._keep_s = store, keep_s
        self._id = 0
        self._records = 0
        self._until_s = 0.0
        self._lock = asyncio.Lock()

    async def lease(self, records: int = 1) -> int:
        """Return the id of a lease that lasts at least keep_s, for that many records, at most those of one commit.

        Raises Unavailable.
        """
        async with self._lock:
            now_s = asyncio.get_running_loop().time()
            if not self._id or now_s >= self._until_s or self._records + records > LEASE_RECORDS_MAX:
                lease = await self._store.lease(self._keep_s + LEASE_USE_S)
                await lease.close(revoke=False)
                self._id, self._records, self._until_s = lease.id, 0, now_s + LEASE_USE_S
            self._records += records
            return self._id

    @property
    def current(self) -> int:
        """The lease that was given last."""
        return self._id

    def forget(self) -> None:
        """The store does not know this lease any more (a restored backup, say): take another next time."""
        self._id = 0
