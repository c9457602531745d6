"""Leases of records that vanish by themselves are given for a minute, and for a bounded number of records."""

from __future__ import annotations

from collections import Counter

import pytest
from cairn.controller import retention
from cairn.controller.retention import LEASE_RECORDS_MAX, Retention
from cairn.controller.store.memory import MemoryStore


async def test_a_burst_ends_in_parts() -> None:
    store = MemoryStore()
    leases = Retention(store, 3600)
    given = Counter[int]()
    for _ in range(100):
        given[await leases.lease(60)] += 60
    assert sum(given.values()) == 6000
    assert max(given.values()) <= LEASE_RECORDS_MAX
    assert len(given) < 10, "one lease serves many"
    await store.close()


async def test_a_quiet_minute_has_one(monkeypatch: pytest.MonkeyPatch) -> None:
    store = MemoryStore()
    leases = Retention(store, 3600)
    first = await leases.lease()
    assert await leases.lease() == first == leases.current
    monkeypatch.setattr(retention, "LEASE_USE_S", 0.0)
    leases.forget()
    assert await leases.lease() != first
    assert await leases.lease() != leases.current - 1
    await store.close()
