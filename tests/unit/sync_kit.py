"""An agent's end of a stream, and a store with nodes and what is decided about them: for tests of the sync service."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, cast

from cairn.agent.sync import unpacked
from cairn.controller.metrics import SyncMetrics
from cairn.controller.model.restored import CLUSTER_ID
from cairn.controller.nodespec import node_objects
from cairn.controller.presence import Presence
from cairn.controller.reconcilers.placement import Placements
from cairn.controller.reconcilers.ports import Ports
from cairn.controller.standing import Standing
from cairn.controller.store.base import Txn
from cairn.controller.store.cache import Cache
from cairn.controller.store.memory import MemoryBackend, MemoryStore
from cairn.controller.sync import SyncService
from cairn.proto import kinds
from cairn.proto.capabilities import of_agent
from cairn.proto.errors import Refused
from cairn.proto.seams import SystemClock, SystemIds
from cairn.proto.v1.agent_pb2 import (
    Desired,
    Hello,
    Report,
    SyncRequest,
    SyncResponse,
    Version,
)
from cairn.proto.v1.cluster_pb2 import Cluster
from cairn.proto.v1.node_pb2 import NodeFacts
from prometheus_client import CollectorRegistry

from tests.unit.cloud_kit import Cloud, events_of
from tests.unit.test_runtime import Leases


class Context:
    """What a gRPC context tells of the caller's certificate."""

    def __init__(self, *names: str) -> None:
        self._names = names

    def auth_context(self) -> dict[str, list[bytes]]:
        return {"x509_subject_alternative_name": [name.encode() for name in self._names]}


KNOWN = of_agent(["local"])
TIMEOUT_S = 20.0


class Agent:
    """The other end: sends requests, keeps what it was told."""

    def __init__(self, service: SyncService, node: str, *, certificate: str = "") -> None:
        self.node, self._service = node, service
        self._context = Context(certificate or f"cairn://node/{node}")
        self._requests: asyncio.Queue[SyncRequest | None] = asyncio.Queue()
        self.objects: dict[str, Desired] = {}
        self.versions: list[int] = []
        # As they came, and with what is in messages of many changes one by one.
        self.whole: list[SyncResponse] = []
        self.received: list[SyncResponse] = []
        self.bookmarks = 0
        self.epochs: set[int] = set()
        self.error: BaseException | None = None
        self._task: asyncio.Task[None] | None = None

    def hello(self, *, held: int = 0, epoch: int = 1, facts: NodeFacts | None = None, knows: Sequence[str] = KNOWN) -> None:
        """knows: empty, as of an agent of the release before capabilities."""
        hello = Hello(node=self.node, boot_id="b", endpoint=f"{self.node}:7446", held=Version(epoch=epoch, revision=held))
        hello.capabilities.extend(knows)
        if facts is not None:
            hello.facts.CopyFrom(facts)
        self.send(SyncRequest(hello=hello))

    def send(self, request: SyncRequest) -> None:
        self._requests.put_nowait(request)

    def report(self, key: str, **said: Any) -> None:
        self.send(SyncRequest(report=Report(key=key, **said)))

    def bye(self) -> None:
        self._requests.put_nowait(None)

    async def _stream(self) -> AsyncIterator[SyncRequest]:
        while (request := await self._requests.get()) is not None:
            yield request

    async def _run(self) -> None:
        stream = self._service.Sync(self._stream(), cast("Any", self._context))
        try:
            async for response in stream:
                self._take(response)
        except Refused as error:
            self.error = error
        finally:
            await stream.aclose()

    def _take(self, response: SyncResponse) -> None:
        self.whole.append(response)
        for message in unpacked(response):
            self._take_one(message)

    def _take_one(self, response: SyncResponse) -> None:
        self.received.append(response)
        kind = response.WhichOneof("message")
        version = getattr(response, kind or "").version
        self.versions.append(version.revision)
        self.epochs.add(version.epoch)
        if kind == "upsert":
            self.objects[response.upsert.key] = response.upsert.object
        elif kind == "remove":
            self.objects.pop(response.remove.key)
        elif kind == "bookmark":
            self.bookmarks += 1

    def connect(self) -> Agent:
        self._task = asyncio.create_task(self._run())
        return self

    async def break_off(self, times: int = 1) -> None:
        """The connection is cut; seen more than once while the stream ends."""
        assert self._task is not None
        for _ in range(times):
            self._task.cancel()
            await asyncio.wait([self._task], timeout=0.05)
        await asyncio.gather(self._task, return_exceptions=True)

    async def ended(self) -> BaseException | None:
        assert self._task is not None
        await asyncio.wait([self._task], timeout=20)
        assert self._task.done()
        return self.error


class World:
    """A store with two nodes and what is decided about them."""

    def __init__(self, store: MemoryStore, cache: Cache, cloud: Cloud) -> None:
        self.store, self.cache, self.cloud = store, cache, cloud
        self.services: list[SyncService] = []
        self.registry = CollectorRegistry()

    async def copy(self) -> None:
        """Bring what changed in the cloud to the store."""
        for kind, id in self.cloud.take():
            record: Any = self.cloud.view.get(kind, id)
            txn = Txn(kind.writer)
            revision = await self.store.commit(txn.put(kind, id, record) if record is not None else txn.delete(kind, id))
            await self.cache.wait_for(revision)

    async def decided(self) -> None:
        self.cloud.settle([Ports(), Placements()])
        await self.copy()

    async def until(self, condition: Callable[[], Any]) -> None:
        async with asyncio.timeout(TIMEOUT_S):
            while not condition():
                await asyncio.sleep(0.005)

    def expected(self, node: str) -> dict[str, Desired]:
        return node_objects(self.cache.view, Presence(self.cache.view), node)

    def observed(self, node: str, key: str) -> Report | None:
        record = self.cache.view.get(kinds.OBSERVED, f"{node}/{key}")
        return record.report if record is not None else None

    def events(self) -> list[tuple[str, str]]:
        return [(event.object, event.reason) for event in events_of(self.store.backend)]


@asynccontextmanager
async def world(*, silence_s: float = 60, services: int = 1) -> AsyncIterator[World]:
    backend = MemoryBackend()
    store = MemoryStore(backend)
    cache = Cache(MemoryStore(backend))
    at = World(store, cache, Cloud())
    tasks = [asyncio.create_task(cache.run())]
    await cache.ready.wait()
    for i in range(services):
        service = SyncService(
            cache,
            store,
            SystemClock(),
            SystemIds(),
            Leases(store),
            SyncMetrics(at.registry if i == 0 else CollectorRegistry()),
            Standing(cache),
            controller=f"c{i}",
            silence_s=silence_s,
        )
        at.services.append(service)
        tasks.append(asyncio.create_task(service.run()))
    await store.commit(Txn("peers").put(kinds.CLUSTER, CLUSTER_ID, Cluster(name="test", epoch=1)))
    for name in ("n1", "n2"):
        at.cloud.node(name)
    await at.copy()
    for name in ("n1", "n2"):
        await store.commit(Txn("sync").delete(kinds.NODE_SESSION, f"node-{name:0>8}"))
    try:
        yield at
        assert not any(task.done() for task in tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await store.close()


N1, N2 = "node-000000n1", "node-000000n2"


def agent(at: World, node: str = N1, service: int = 0) -> Agent:
    found = Agent(at.services[service], node)
    found.hello()
    return found.connect()
