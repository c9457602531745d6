"""AgentService: what each node must hold goes down its stream, what it reports comes up.

    hello       the certificate's node id must be the one it says; what it holds must not be newer than the store
    session     the record that says it is connected, under a lease (node_session.py)
    snapshot    all its objects, between SnapshotBegin and a bookmark
    deltas      what differs from what was sent, then a bookmark; a bookmark also answers each heartbeat
    reports     node_reports.py
    its end     the node was removed, the agent went, fell silent, or connected elsewhere

Down the stream there is no queue: a stream keeps the set of keys that may differ, and when the agent is ready to read, each is
computed from the newest view and sent if it is not what was sent before (outbox.py). So a slow agent gets fewer, newer
messages; memory is bounded by what its node holds; nothing is ever sent that is out of date. Rejected: a bounded queue of
messages with a fresh snapshot when it overflows (the slowest agents would be sent the most).

A change costs what changed: presence.py names the nodes and keys concerned, and only those streams compute anything. What a
whole VPC is told is told at once when little happens, and else so seldom that all streams together are sent SHARED_PER_S
messages a second by it: it goes along with whatever is sent anyway.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Sequence
from itertools import islice
from typing import Any, Final

from cairn.controller.events import Leases, tell
from cairn.controller.hearers import Hearers
from cairn.controller.metrics import SyncMetrics
from cairn.controller.model.happening import EventSpec
from cairn.controller.model.nodes import node_name
from cairn.controller.model.restored import SETTLING
from cairn.controller.node_reports import MESSAGE_BYTES_MAX, Reports, Told
from cairn.controller.node_session import Session
from cairn.controller.nodespec import unsure
from cairn.controller.outage import refusal, removed
from cairn.controller.outbox import Outbox, Parcel
from cairn.controller.parts import END_S, Over, unended
from cairn.controller.presence import Presence
from cairn.controller.standing import Standing
from cairn.controller.store.base import Changed, Conflict, Indeterminate, LeaseLost, Store, StoreError, Txn, Unavailable
from cairn.controller.store.cache import Cache, Changes, Subscription
from cairn.controller.unknowns import Unknowns
from cairn.controller.unsealing import opened
from cairn.controller.words import size
from cairn.proto import kinds
from cairn.proto.errors import BadState, Denied, Invalid, NotFound, Refused, TryAgain
from cairn.proto.log import logger
from cairn.proto.rpc import peer_identity
from cairn.proto.sealing import SealError, Seals
from cairn.proto.seams import Clock, Ids
from cairn.proto.v1.agent_pb2 import Bookmark, Desired, Hello, SnapshotBegin, SyncRequest, SyncResponse, Version
from cairn.proto.v1.agent_pb2_grpc import AgentServiceServicer

_log = logger("sync")
HELLO_S: Final = 10.0
CATCH_UP_S: Final = 5.0
# Three heartbeats of the agent.
SILENCE_S: Final = 10.0
# Changed records followed before others may run.
STEP: Final = 500
SHARED_PER_S: Final = 100.0


class SyncService(AgentServiceServicer):
    """AgentService of proto/v1/agent.proto. `run` must be running."""

    def __init__(
        self,
        cache: Cache,
        store: Store,
        clock: Clock,
        ids: Ids,
        leases: Leases,
        metrics: SyncMetrics,
        standing: Standing,
        *,
        controller: str,
        silence_s: float = SILENCE_S,
        seals: Seals | None = None,
    ) -> None:
        """controller: this controller's name; silence_s: after which an agent is cut off."""
        self.seals = seals or Seals()
        self.cache, self.store, self.clock, self.ids, self.leases = cache, store, clock, ids, leases
        self.metrics, self.standing, self.controller, self.silence_s = metrics, standing, controller, silence_s
        # From the moment a picture was there on.
        self._changes: Subscription | None = None
        self._presence, self.hearers = Presence(), Hearers()
        # Set once it is known who is where.
        self.loaded = asyncio.Event()
        self._unfollowed: dict[Changed, None] = {}
        self._unsure: frozenset[str] = frozenset()
        self._streams: dict[str, Stream] = {}

    @property
    def pace_s(self) -> float:
        """How long a stream waits before it is sent again what is shared, if that is all there is."""
        return len(self._streams) / SHARED_PER_S

    async def run(self) -> None:
        """Follow the view and wake the streams concerned, until cancelled."""
        await self.cache.ready.wait()
        with self.cache.subscribe() as self._changes:
            for _ in self._presence.load(self.cache.view):
                await asyncio.sleep(0)
            self.loaded.set()
            await self.presence()
            async for change in self._changes:
                self._absorb(change)
                await self.presence()

    async def presence(self) -> Presence:
        """Return who is where, exactly as of cache.view. After a great change others run until it is worked off."""
        await self.loaded.wait()
        self._absorb(self._changes.take() if self._changes is not None else None)
        while len(self._unfollowed) > STEP:
            self._follow()
            await asyncio.sleep(0)
            self._absorb(self._changes.take() if self._changes is not None else None)
        self._follow()
        return self._presence

    def _absorb(self, change: Changes | None) -> None:
        if change is not None:
            self._unfollowed.update(dict.fromkeys(change.records))

    def _follow(self) -> None:
        """Take in some of what changed."""
        records = list(islice(self._unfollowed, STEP))
        if not records:
            return
        for record in records:
            del self._unfollowed[record]
        touched = self._presence.follow(self.cache.view, records)
        for node, keys in touched.objects.items():
            if node in self._streams:
                self._streams[node].touch(keys)
        for node in self.hearers.of(touched.vpcs):
            if node in self._streams:
                self._streams[node].touch_shared(touched.vpcs)
        doubtful = self._unsure or self.cache.view.harmed or not SETTLING.isdisjoint(kind for kind, _ in records)
        if doubtful and (now := unsure(self.cache.view)) != self._unsure:
            self._unsure = now
            for stream in self._streams.values():
                stream.check_unsure()
        for kind, id in records:
            if kind is kinds.NODE_SESSION and id in self._streams:
                self._streams[id].check_session()
            elif kind is kinds.OBSERVED and (node := id.partition("/")[0]) in self._streams:
                self._streams[node].check_report(id)
            elif kind is kinds.NODE and id in self._streams:
                self._streams[id].check_node()
            elif kind is kinds.CLUSTER:
                self.disband("the cluster's record has changed: it is being restored, or was")

    def disband(self, why: str) -> None:
        """End all streams."""
        for stream in self._streams.values():
            stream.end(Over(why, revoke=False))

    async def Sync(self, request_iterator: AsyncIterator[SyncRequest], context: Any) -> AsyncGenerator[SyncResponse, None]:
        """Serve one agent until it goes, falls silent, or connects elsewhere."""
        requests = aiter(request_iterator)
        hello = await self._hello(requests, context)
        stream = Stream(self, hello, requests)
        before = self._streams.get(hello.node)
        if before is not None:
            before.end(Over("the agent has connected again", revoke=False))
        self._streams[hello.node] = stream
        self.metrics.connected.set(len(self._streams))
        try:
            await stream.open()
            async for response in stream.responses():
                yield response
        finally:
            if self._streams.get(hello.node) is stream:
                del self._streams[hello.node]
                self.hearers.forget(hello.node)
            self.metrics.connected.set(len(self._streams))
            await stream.close()

    async def _hello(self, requests: AsyncIterator[SyncRequest], context: Any) -> Hello:
        """Read and check the first message. Raises Refused."""
        identity = peer_identity(context)
        try:
            async with asyncio.timeout(HELLO_S):
                first = await anext(requests, None)
        except TimeoutError as error:
            raise Invalid("hello", f"nothing came within {HELLO_S:.0f} s") from error
        if first is None or first.WhichOneof("message") != "hello":
            raise Invalid("hello", "the first message must be a hello")
        hello = first.hello
        if hello.facts.ByteSize() > MESSAGE_BYTES_MAX:
            raise Invalid("hello.facts", f"{size(hello.facts.ByteSize())} long, at most {size(MESSAGE_BYTES_MAX)} are kept")
        if identity.kind != "node" or identity.id != hello.node:
            self.metrics.refused.labels("identity").inc()
            _log.warning("node_refused", says=hello.node, certificate=identity.uri)
            raise Denied(f"the certificate is for {identity.uri}: it cannot speak for node {hello.node}")
        await self._caught_up(hello)
        if self.cache.view.get(kinds.NODE, hello.node) is None:
            raise removed(self.cache.view, hello.node)
        return hello

    async def _caught_up(self, hello: Hello) -> None:
        """Wait until the view is as fresh as the store, and so as what the agent holds. Raises TryAgain, BadState."""
        held = hello.held
        try:
            async with asyncio.timeout(CATCH_UP_S):
                await self.cache.ready.wait()
                # Also what was made just now through another controller: the node itself, when it has just joined.
                revision = await self.store.revision()
                await self.cache.wait_for(revision)
        except TimeoutError as error:
            raise TryAgain("this controller has not caught up with the store yet") from error
        except Unavailable as error:
            raise refusal(error) from error
        epoch = self.standing.cluster().epoch
        # Nobody is told a revision before the store has it: one that the store does not have yet is of a store that went back.
        if held.epoch > epoch or (held.epoch == epoch and held.revision > revision):
            self.metrics.refused.labels("ahead").inc()
            raise await self._ahead(hello, epoch, revision)
        self.standing.ahead.pop(hello.node, None)

    async def _ahead(self, hello: Hello, epoch: int, revision: int) -> BadState:
        """Note, and tell once, that a node knows a later state than the store; return what to answer it."""
        name, held = node_name(self.cache.view, hello.node), hello.held
        say = (
            f"node {name} was told revision {held.revision} of epoch {held.epoch}, the store is at {revision} of {epoch}:"
            " it went back without a restore. The node keeps what it has; `cairn cluster restore FILE` with the newest backup"
            " makes it believe the store again"
        )
        known = self.standing.ahead.get(hello.node)
        self.standing.ahead[hello.node] = held
        if known != held and self.cache.view.get(kinds.NODE, hello.node) is not None:
            _log.error("store_went_back", node=hello.node, held=f"{held.epoch}/{held.revision}", store=f"{epoch}/{revision}")
            txn = Txn("sync")
            try:
                told = EventSpec(hello.node, name, "", "StoreWentBack", say, name, warning=True)
                tell(txn, [told], now=self.clock.now(), ids=self.ids, lease=await self.leases.lease())
                await self.store.commit(txn)
            except StoreError as error:
                _log.warning("event_lost", node=hello.node, error=str(error))
        return BadState("node", hello.node, say)


class Stream:
    """One connected agent."""

    def __init__(self, service: SyncService, hello: Hello, requests: AsyncIterator[SyncRequest]) -> None:
        self._service, self._hello, self._requests, self.node = service, hello, requests, hello.node
        # Of all it will be told: a stream ends with its epoch.
        self._epoch = service.standing.cluster().epoch
        self._session = Session(service.store, service.clock, hello, service.controller)
        self._outbox = Outbox(hello.node, hello.capabilities, self._opened)
        # The snapshot has been sent: what the outbox has not sent the node need not hold, but for what it keeps.
        self._told_all = False
        self._told = Told(self._outbox.sent, self._outbox.kept)
        self._touched_s: float | None = None
        # When what is shared may be sent by itself again, and what wakes the stream then.
        self._shared_at_s = 0.0
        self._shared_timer: asyncio.TimerHandle | None = None
        self._beat = False
        self._some = asyncio.Event()
        self._over: Over | Refused | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._heard_s = asyncio.get_running_loop().time()
        self._reports = Reports(
            service.cache, service.store, service.clock, service.ids, service.leases, self._session, self._told
        )
        self._unknowns = Unknowns(
            service.cache, service.store, service.clock, service.ids, service.leases, service.seals, self._session
        )

    def touch(self, keys: Iterable[str]) -> None:
        """These objects may be different now."""
        self._outbox.touch(keys)
        self._touched_s = self._touched_s or asyncio.get_running_loop().time()
        self._some.set()

    def touch_shared(self, vpcs: Iterable[str]) -> None:
        """What is shared in these VPCs is different now."""
        self._service.hearers.sent(self.node, self._outbox.touch_shared(vpcs))
        self._touched_s = self._touched_s or asyncio.get_running_loop().time()
        loop = asyncio.get_running_loop()
        if loop.time() >= self._shared_at_s:
            self._some.set()
        elif self._shared_timer is None:
            self._shared_timer = loop.call_at(self._shared_at_s, self._wake)

    def _wake(self) -> None:
        self._shared_timer = None
        self._some.set()

    def end(self, over: Over | Refused) -> None:
        """End the stream at the next opportunity."""
        self._over = self._over or over
        self._some.set()

    def check_session(self) -> None:
        """Its session's record has changed: end the stream when another one speaks for the node."""
        self._session.stir()
        if self._session.superseded(self._service.cache.view):
            self.end(Over("the agent has connected elsewhere", revoke=False))

    def check_unsure(self) -> None:
        """Have everything told once more when what could not be told can be now."""
        if self._outbox.is_sure_again(self._service.cache.view):
            self._some.set()

    def check_node(self) -> None:
        """End the stream of a node that was removed."""
        if self._service.cache.view.get(kinds.NODE, self.node) is None:
            self.end(removed(self._service.cache.view, self.node))

    def check_report(self, id: str) -> None:
        """Have a report removed that is about nothing the node must hold: its commit was in doubt, and came late."""
        key = id.partition("/")[2]
        if self._told_all and key not in self._told and self._service.cache.view.get(kinds.OBSERVED, id) is not None:
            self._reports.forget(key)

    async def open(self) -> None:
        """Register the node as connected. Raises TryAgain; NotFound when it was removed meanwhile."""
        view = self._service.cache.view
        facts = self._hello.facts if self._hello.HasField("facts") else None
        try:
            await self._service.cache.wait_for(await self._session.open(facts, view))
        except (Conflict, Unavailable, Indeterminate, LeaseLost) as error:
            raise TryAgain(f"the session of {self.node} could not be written: {error}") from error
        self.check_node()
        if isinstance(self._over, Refused):
            raise self._over
        _log.info("node_connected", node=self.node, endpoint=self._hello.endpoint, agent=self._hello.agent_version)
        writes = self._session.keep(self._service.cache), self._reports.run(), self._unknowns.run()
        for part in (*writes, self._read(), self._watch()):
            task = asyncio.create_task(part)
            task.add_done_callback(self._part_ended)
            self._tasks.append(task)

    def _part_ended(self, task: asyncio.Task[None]) -> None:
        if task.cancelled():
            return
        error = task.exception()
        if isinstance(error, Over | Refused):
            self.end(error)
        elif error is not None:
            _log.error("stream_failed", node=self.node, exc_info=error)
            self.end(TryAgain("a fault in the controller"))

    async def close(self) -> None:
        """Stop all parts and give the session up."""
        if self._shared_timer is not None:
            self._shared_timer.cancel()
        revoke = isinstance(self._over, NotFound) or (isinstance(self._over, Over) and self._over.revoke)
        _log.info("node_disconnected", node=self.node, why=str(self._over or "the stream broke"), revoke=revoke)
        await self._give_up(self._tasks, revoke=revoke)

    async def _give_up(self, parts: Sequence[asyncio.Task[None]], *, revoke: bool) -> None:
        """Stop parts and let go of the session: first, since whoever waits here may be cancelled, and a part not end."""
        for task in parts:
            task.cancel()
        await self._session.close(revoke=revoke)
        if stuck := await unended(parts, END_S):
            _log.error("parts_stuck", node=self.node, parts=stuck)

    # --- up --------------------------------------------------------------------------------------------------------------

    async def _read(self) -> None:
        """Take what the agent says."""
        async for request in self._requests:
            self._heard_s = asyncio.get_running_loop().time()
            self._take(request)
        raise Over("the agent said good-bye", revoke=True)

    def _take(self, request: SyncRequest) -> None:
        metrics, taken, what = self._service.metrics, True, request.WhichOneof("message")
        if what == "report":
            taken = self._reports.report(request.report)
            metrics.reports.inc()
        elif what == "facts":
            taken = self._reports.facts(request.facts)
        elif what == "event":
            taken = self._reports.event(request.event)
        elif what == "unknown":
            taken = self._unknowns.unknown(request.unknown)
        elif what == "unknown_keys":
            taken = self._unknowns.keys(list(request.unknown_keys.keys), request.unknown_keys.epoch)
        elif what == "heartbeat":
            self._beat = True
            self._some.set()
        else:
            raise Invalid("message", f"{what or 'an empty message'} is not expected here")
        if not taken:
            metrics.refused.labels(what).inc()
            about = request.report.key or request.event.object or request.unknown.key
            _log.warning("message_refused", node=self.node, what=what, about=about)

    async def _watch(self) -> None:
        """Cut off an agent that says nothing: it may hang while its connection stands."""
        loop, limit_s = asyncio.get_running_loop(), self._service.silence_s
        while True:
            if (left_s := self._heard_s + limit_s - loop.time()) <= 0:
                break
            await asyncio.sleep(left_s)
        self.end(Over(f"nothing heard for {limit_s:.0f} s", revoke=True))
        await asyncio.sleep(END_S)
        # It is stuck in what it writes to one who is not there any more, and would keep the node's session alive.
        _log.error("stream_stuck", node=self.node)
        await self._give_up([task for task in self._tasks if task is not asyncio.current_task()], revoke=True)

    # --- down ------------------------------------------------------------------------------------------------------------

    async def responses(self) -> AsyncGenerator[SyncResponse, None]:
        """Yield what to send until the stream is over."""
        async for response in self._snapshot():
            yield response
        while True:
            await self._some.wait()
            self._some.clear()
            if isinstance(self._over, Refused):
                raise self._over
            if self._over is not None:
                raise TryAgain(self._over.say)
            since_s, self._touched_s = self._touched_s, None
            if self._outbox.is_sure_again(self._service.cache.view):
                async for response in self._snapshot():
                    yield response
            beat, self._beat = self._beat, False
            async for response in self._deltas(beat=beat):
                yield response
            if since_s is not None:
                self._service.metrics.lag_s.observe(asyncio.get_running_loop().time() - since_s)

    def _version(self) -> Version:
        return Version(epoch=self._epoch, revision=self._service.cache.view.revision)

    async def _snapshot(self) -> AsyncGenerator[SyncResponse, None]:
        """Yield everything the node must hold; what changes meanwhile follows in it or as deltas."""
        service, count = self._service, 0
        self._told_all = False
        presence = await service.presence()
        self._outbox.begin(service.cache.view, presence)
        yield SyncResponse(snapshot_begin=SnapshotBegin(version=self._version()))
        while True:
            presence = await service.presence()
            if self._over is not None:
                return
            version, parcel = self._version(), self._outbox.take(service.cache.view, presence)
            if not self._outbox.pending:
                service.hearers.sent(self.node, presence.vpcs_on(self.node))
            count += len(parcel.upserts)
            self._forget(parcel)
            for response in self._outbox.messages(parcel, version, complete=False):
                yield response
            if not self._outbox.pending:
                break
            await asyncio.sleep(0)
        yield SyncResponse(bookmark=Bookmark(version=version, snapshot_end=True, kept=sorted(self._outbox.kept)))
        service.metrics.snapshots.inc()
        _log.info("snapshot_sent", node=self.node, objects=count, kept=len(self._outbox.kept), revision=version.revision)
        self._told_all = True
        for id in service.cache.view.by(kinds.OBSERVED, "node", self.node):
            self.check_report(id)

    def _opened(self, key: str, object: Desired) -> Desired | None:
        """Return an object with its secrets, None when they cannot be opened: the node is told nothing of it then."""
        try:
            return opened(object, self._service.seals)
        except SealError as error:
            _log.error("secret_unreadable", node=self.node, key=key, error=str(error))
            return None

    async def _deltas(self, *, beat: bool) -> AsyncGenerator[SyncResponse, None]:
        """Yield the differences of what was touched, and that this is all. beat: the agent waits for an answer in any case."""
        service, loop, some = self._service, asyncio.get_running_loop(), beat
        while True:
            # Each lot is computed from one view, after which nothing is awaited before it is complete.
            presence = await service.presence()
            if self._over is not None:
                return
            version, parcel = self._version(), self._outbox.take(service.cache.view, presence)
            complete = not self._outbox.pending
            if complete:
                service.hearers.sent(self.node, presence.vpcs_on(self.node))
            some = some or bool(parcel)
            self._forget(parcel)
            self._count(parcel, complete=some and complete)
            self._shared_at_s = loop.time() + service.pace_s
            for response in self._outbox.messages(parcel, version, complete=some and complete):
                yield response
            if complete:
                return
            await asyncio.sleep(0)

    def _forget(self, parcel: Parcel) -> None:
        for key in parcel.own:
            self._reports.forget(key)

    def _count(self, parcel: Parcel, *, complete: bool) -> None:
        for what, count in (("upsert", len(parcel.upserts)), ("remove", len(parcel.removes)), ("bookmark", int(complete))):
            self._service.metrics.sent[what].inc(count)
