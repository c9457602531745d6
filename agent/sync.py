"""The node's end of AgentService.Sync: takes desired state in, sends reports out, to whichever controller answers.

One stream at a time. A controller is believed as far as the ledger allows: what is older than held ends the stream. A snapshot
counts only once its end has arrived. What came in together is made durable together, before anything is done about it.
A stream on which nothing arrived for a while, not even answers to heartbeats, is dead: the next controller is tried, after a
pause that grows and is never the same on two nodes. Heartbeats go on while the ledger's disk takes its time; what the stream
brought before it ended counts all the same.

A node that was removed from its cluster is told so. It destroys nothing by itself: what it may still hold (copies of images,
networks without guests) stays for whoever takes the machine over. It asks again now and then, since a restored store may know
it again.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from functools import partial
from itertools import chain
from typing import Any, Final

import grpc
import grpc.aio
from cairn.agent.ledger import Ledger, StaleVersion, order
from cairn.agent.reports import Reports
from cairn.proto.log import logger
from cairn.proto.pki import CONTROLLER_SERVER_NAME, PkiError
from cairn.proto.seams import Ids, Transport
from cairn.proto.v1.agent_pb2 import Bookmark, Heartbeat, Hello, Remove, SyncRequest, SyncResponse, Upsert, Version
from cairn.proto.v1.agent_pb2_grpc import AgentServiceStub

HEARTBEAT_S: Final = 3.0
SILENCE_S: Final = 9.0
BACKOFF_S: Final = 0.25
BACKOFF_S_MAX: Final = 5.0
# Between two tries of a node that was removed.
REMOVED_S: Final = 60.0
_REMOVED: Final = f"; nothing on this machine is touched, and it is asked again about every {REMOVED_S:.0f} s"


class Disconnected(Exception):
    """The stream is over; the text says why."""


class SyncClient:
    """Keeps a stream open until cancelled. `accepted` is called with the keys that changed, in the step in which they did."""

    def __init__(
        self,
        transport: Transport,
        ids: Ids,
        ledger: Ledger,
        reports: Reports,
        *,
        controllers: Sequence[str],
        hello: Callable[[], Hello],
        accepted: Callable[[set[str]], None],
    ) -> None:
        self._transport, self._ids, self._ledger, self._reports = transport, ids, ledger, reports
        self._controllers, self._hello, self._accepted = tuple(controllers), hello, accepted
        self._inbox: list[SyncResponse] = []
        self._some = asyncio.Event()
        # Set while the snapshot of the current stream has been accepted.
        self.synced = asyncio.Event()
        # Counts streams.
        self._stream = 0
        self._said: dict[str, str] = {}
        self._snapshot: tuple[Version, dict[str, Upsert]] | None = None
        # Loop time at which a controller was last heard.
        self.heard_s = 0.0

    def silence_s(self) -> float:
        """Return for how long no controller has been heard."""
        return asyncio.get_running_loop().time() - self.heard_s

    async def run(self) -> None:
        """Connect, sync, reconnect, for ever."""
        failures, turn = 0, int(self._ids.jitter() * len(self._controllers))
        while True:
            endpoint = self._controllers[turn % len(self._controllers)]
            removed = False
            try:
                await self._connect(endpoint)
            except (Disconnected, StaleVersion, grpc.aio.AioRpcError, OSError, PkiError) as error:
                removed = isinstance(error, grpc.aio.AioRpcError) and error.code() is grpc.StatusCode.NOT_FOUND
                self._say_disconnected(endpoint, _reason(error) + (_REMOVED if removed else ""))
            failures = 0 if self.synced.is_set() else failures + 1
            self.synced.clear()
            turn += 1
            pause_s = REMOVED_S if removed else min(BACKOFF_S * 2.0 ** min(failures, 8), BACKOFF_S_MAX)
            await asyncio.sleep(pause_s * (0.5 + self._ids.jitter()))

    def _say_disconnected(self, endpoint: str, reason: str) -> None:
        """Log it, but not the same again and again while nobody answers."""
        repeated = self._said.get(endpoint) == reason and not self.synced.is_set()
        self._said[endpoint] = reason
        log = logger("sync").debug if repeated else logger("sync").warning
        log("disconnected", controller=endpoint, reason=reason)

    async def _connect(self, endpoint: str) -> None:
        """Run one stream to its end, which is always an error."""
        self._inbox, self._snapshot = [], None
        self._some.clear()
        self.synced.clear()
        self.heard_s = asyncio.get_running_loop().time()
        channel = self._transport.channel([endpoint], server_name=CONTROLLER_SERVER_NAME)
        try:
            self._stream += 1
            call: Any = AgentServiceStub(channel).Sync(self._requests(self._stream))
            try:
                await _first_end(self._read(call), self._accept(), self._watch())
            finally:
                self._stream += 1
                call.cancel()
        finally:
            await channel.close(None)

    async def _requests(self, stream: int) -> AsyncIterator[SyncRequest]:
        """Hello, then reports once the snapshot is there, and heartbeats all the time.

        gRPC may keep asking after the stream ended: then nothing may be taken that the next stream should send.
        """
        loop = asyncio.get_running_loop()
        hello = self._hello()
        hello.held.CopyFrom(self._held())
        self._reports.begin()
        yield SyncRequest(hello=hello)
        beat_s = loop.time() + HEARTBEAT_S
        while True:
            waits_for = self._reports.some if self.synced.is_set() else self.synced
            try:
                async with asyncio.timeout_at(beat_s):
                    await waits_for.wait()
            except TimeoutError:
                beat_s = loop.time() + HEARTBEAT_S
                yield SyncRequest(heartbeat=Heartbeat(held=self._held()))
            if self._stream != stream:
                return
            if self.synced.is_set():
                for message in self._reports.take():
                    yield message

    async def _read(self, call: Any) -> None:
        try:
            async for response in call:
                self.heard_s = asyncio.get_running_loop().time()
                self._inbox.append(response)
                self._some.set()
        except asyncio.CancelledError as error:
            # Also what gRPC raises of a call that it gave up on this side, as when what is to be sent cannot be made.
            if is_cancelled():
                raise
            raise Disconnected("the stream was given up on this side") from error
        raise Disconnected("the controller ended the stream")

    async def _accept(self) -> None:
        while True:
            await self._some.wait()
            self._some.clear()
            batch, self._inbox = self._inbox, []
            await self._take(batch)

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(SILENCE_S / 9)
            if self.silence_s() > SILENCE_S:
                raise Disconnected(f"nothing heard for {SILENCE_S:.0f} s")

    async def _take(self, batch: Sequence[SyncResponse]) -> None:
        """Accept what came in together; what belongs to a snapshot waits for its end."""
        changes: list[SyncResponse] = []
        for message in chain.from_iterable(map(unpacked, batch)):
            kind = message.WhichOneof("message")
            if kind == "snapshot_begin":
                await self._accept_changes(changes)
                changes = []
                self._snapshot = (message.snapshot_begin.version, {})
            elif self._snapshot is not None:
                await self._take_snapshot(kind, message)
            elif not self.synced.is_set() and kind in ("upsert", "remove"):
                raise Disconnected(f"a change of {message.upsert.key or message.remove.key} came before the snapshot")
            elif self.synced.is_set():
                changes.append(message)
        await self._accept_changes(changes)

    async def _take_snapshot(self, kind: str | None, message: SyncResponse) -> None:
        assert self._snapshot is not None
        begin, objects = self._snapshot
        if kind == "upsert":
            objects[message.upsert.key] = message.upsert
        elif kind == "remove":
            objects.pop(message.remove.key, None)
        elif kind == "bookmark" and message.bookmark.snapshot_end:
            version = max(begin, message.bookmark.version, key=order)
            self._snapshot = None
            then = partial(self._begin, self._stream)
            changed = await self._ledger.accept_snapshot(version, objects.values(), message.bookmark.kept, then)
            logger("sync").info("snapshot", objects=len(objects), changed=len(changed), revision=version.revision)

    def _begin(self, stream: int, changed: set[str]) -> None:
        """A snapshot counts from now on, and if its stream still runs, so do reports."""
        if self._stream == stream:
            self._reports.resend_all()
            self.synced.set()
        self._accepted(changed)

    async def _accept_changes(self, changes: Sequence[SyncResponse]) -> None:
        if changes:
            await self._ledger.accept(changes, self._go_on)

    def _go_on(self, changed: set[str]) -> None:
        if changed:
            self._accepted(changed)

    def _held(self) -> Version:
        epoch, revision = self._ledger.held
        return Version(epoch=epoch, revision=revision)


def unpacked(message: SyncResponse) -> Iterator[SyncResponse]:
    """Yield what a message of many changes says one by one; any other as it is."""
    if message.WhichOneof("message") != "changes":
        yield message
        return
    changes = message.changes
    for key in changes.removes:
        yield SyncResponse(remove=Remove(key=key, version=changes.version))
    for content in changes.upserts:
        upsert = Upsert.FromString(content)
        upsert.version.CopyFrom(changes.version)
        yield SyncResponse(upsert=upsert)
    if changes.complete:
        yield SyncResponse(bookmark=Bookmark(version=changes.version))


def is_cancelled() -> bool:
    """Tell whether somebody has cancelled the task that runs."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


async def _first_end(*parts: Any) -> None:
    """Run the parts until one of them raises; end the others; raise what it raised."""
    tasks = [asyncio.ensure_future(part) for part in parts]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _reason(error: Exception) -> str:
    if isinstance(error, grpc.aio.AioRpcError):
        return error.details() or error.code().name
    return str(error)
