"""The stores the API is tested on: memory always, a real etcd member where there is one."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from cairn.controller.store.base import Store, Txn
from cairn.controller.store.etcd import EtcdStore
from cairn.controller.store.memory import MemoryStore
from cairn.proto.kinds import ROOT

from tests.lab.etcd import Cluster, available

STORES = [
    "memory",
    pytest.param("etcd", marks=[pytest.mark.etcd, pytest.mark.skipif(not available(), reason="no etcd on this machine")]),
]
DELETES_MAX = 100


@asynccontextmanager
async def made_store(request: pytest.FixtureRequest) -> AsyncIterator[Store]:
    """Yield an empty store of the requested kind; the fixture `etcd` is the member."""
    if getattr(request, "param", "memory") == "memory":
        yield MemoryStore()
        return
    cluster: Cluster = request.getfixturevalue("etcd")
    store = EtcdStore(cluster.endpoints, cluster.credentials())
    items, _ = await store.read(ROOT)
    keys = [item.key for item in items]
    for first in range(0, len(keys), DELETES_MAX):
        await store.commit(Txn("test", deletes=set(keys[first : first + DELETES_MAX])))
    yield store
