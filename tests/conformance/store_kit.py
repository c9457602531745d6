"""What the store's suites share: stores to test, raw transactions, and ways to wait."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from cairn.controller.store.base import Batch, Put, Txn
from cairn.controller.store.etcd import EtcdStore
from cairn.controller.store.memory import MemoryBackend, MemoryStore
from cairn.proto.etcd import rpc_pb2, rpc_pb2_grpc

from tests.lab.etcd import Cluster, available
from tests.sim.store import SimBackend, SimStore

needs_etcd = pytest.mark.skipif(not available(), reason="no etcd on this machine")
DEADLINE_S = 30.0
_numbers = itertools.count(1)


@dataclass
class Bench:
    """A store under test: several clients of the same data, and a prefix of the test's own."""

    connect: Callable[[], Any]
    revoke: Callable[[int], Awaitable[None]]
    prefix: str = field(default_factory=lambda: f"/t{next(_numbers)}/")
    clients: list[Any] = field(default_factory=list)

    def client(self) -> Any:
        """A further client; closed after the test."""
        self.clients.append(self.connect())
        return self.clients[-1]

    async def close(self) -> None:
        for client in self.clients:
            await client.close()


def memory_bench() -> Bench:
    backend = MemoryBackend()

    async def revoke(lease: int) -> None:
        backend.revoke(lease)

    return Bench(lambda: MemoryStore(backend), revoke)


def simulated_bench() -> Bench:
    """The simulation's store with its faults off."""
    backend = SimBackend()

    async def revoke(lease: int) -> None:
        backend.revoke(lease)

    return Bench(lambda: SimStore(backend, random.Random(0)), revoke)


def etcd_bench(cluster: Cluster) -> Bench:
    def connect() -> EtcdStore:
        return EtcdStore(cluster.endpoints, cluster.credentials())

    async def revoke(lease: int) -> None:
        store = connect()
        async with store._connection.dial(cluster.endpoints) as channel:
            await rpc_pb2_grpc.LeaseStub(channel).LeaseRevoke(rpc_pb2.LeaseRevokeRequest(id=lease), timeout=5)
        await store.close()

    return Bench(connect, revoke)


def make_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    folder: Path = tmp_path_factory.mktemp("etcd")
    with Cluster(folder) as cluster:
        yield cluster


def raw(
    puts: dict[str, bytes] | None = None,
    *,
    checks: dict[str, int] | None = None,
    deletes: set[str] | None = None,
    lease: int = 0,
) -> Txn:
    """A transaction on bare keys."""
    written = {key: Put(value, lease) for key, value in (puts or {}).items()}
    return Txn("test", checks=dict(checks or {}), puts=written, deletes=set(deletes or ()))


class Watcher:
    """Collects what a watch yields."""

    def __init__(self, store: Any, prefix: str, after: int) -> None:
        self.batches: list[Batch] = []
        self._wake = asyncio.Event()
        self.task = asyncio.ensure_future(self._run(store, prefix, after))

    async def _run(self, store: Any, prefix: str, after: int) -> None:
        async with aclosing(store.watch(prefix, after)) as batches:
            async for batch in batches:
                if batch.changes:
                    self.batches.append(batch)
                    self._wake.set()

    async def until(self, revision: int) -> list[Batch]:
        """All batches, once that revision has come."""
        async with asyncio.timeout(DEADLINE_S):
            while not self.batches or self.batches[-1].revision < revision:
                self._wake.clear()
                waiting = asyncio.ensure_future(self._wake.wait())
                await asyncio.wait([waiting, self.task], return_when=asyncio.FIRST_COMPLETED)
                waiting.cancel()
                if self.task.done():
                    self.task.result()
        return self.batches

    async def stop(self) -> None:
        self.task.cancel()
        await asyncio.wait([self.task])


@asynccontextmanager
async def watching(store: Any, prefix: str, after: int) -> AsyncIterator[Watcher]:
    watcher = Watcher(store, prefix, after)
    try:
        yield watcher
    finally:
        await watcher.stop()


async def eventually(what: str, probe: Callable[[], Awaitable[Any]], timeout_s: float = DEADLINE_S) -> Any:
    """Return the probe's first true value."""
    loop = asyncio.get_running_loop()
    until = loop.time() + timeout_s
    while not (value := await probe()):
        assert loop.time() < until, f"waited {timeout_s} s for {what}"
        await asyncio.sleep(0.05)
    return value
