"""A watch in etcd that outlives the member it runs on.

Invariants: the position is the revision last handed out, and moves by nothing else (not by `created` answers, nor by answers to
our own progress requests: etcd before 3.4.25 sends those ahead of events still queued). A batch is handed out only when
etcd has sent all of its revision: revisions are never spread over answers, except as marked fragments of one answer. Events
at or before the position are dropped, so a member that is behind, or repeats itself, does no harm.

A stream that stays silent is asked for a sign of life, then replaced: TCP alone would notice a vanished member after minutes.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from itertools import groupby
from typing import Any, Final

import grpc.aio
from cairn.controller.store.base import Batch, Change, Compacted, Unavailable
from cairn.controller.store.etcd_connection import Connection
from cairn.controller.store.etcd_refusals import told
from cairn.proto.etcd import kv_pb2, rpc_pb2
from cairn.proto.log import logger

_log = logger("store")
SILENCE_S: Final = 10.0
ANSWER_S: Final = 5.0
REOPEN_S: Final = 0.1
REOPEN_MAX_S: Final = 1.0


class Broken(Exception):
    """The stream cannot be used any more; the text says why."""


class Watch:
    """One watch; `key` and `end` as etcd ranges have them, `after` the position."""

    def __init__(self, connection: Connection, key: bytes, end: bytes, after: int) -> None:
        self._connection, self._key, self._end = connection, key, end
        self.after = after
        self._heard = False

    async def batches(self) -> AsyncGenerator[Batch, None]:
        """Yield every batch after the position. Raises Compacted; Unavailable once the client is closed."""
        pause_s = REOPEN_S
        while True:
            self._heard = False
            try:
                await self._connection.ready()
                async with aclosing(self._follow()) as batches:
                    async for batch in batches:
                        yield batch
            except (grpc.aio.AioRpcError, Broken, Unavailable) as error:
                if self._connection.closed:
                    raise Unavailable("this client is closed") from error
                text = told(error) if isinstance(error, grpc.aio.AioRpcError) else str(error)
                _log.info("watch_reopened", after=self.after, error=text)
            pause_s = REOPEN_S if self._heard else min(2 * pause_s, REOPEN_MAX_S)
            await asyncio.sleep(pause_s)

    async def _follow(self) -> AsyncGenerator[Batch, None]:
        """Yield what one stream brings."""
        stream = self._connection.open(self._connection.watch.Watch)
        try:
            # From the position itself, not the one after: history compacted exactly there may lack deletions.
            create = rpc_pb2.WatchCreateRequest(
                key=self._key, range_end=self._end, start_revision=max(1, self.after), progress_notify=True, fragment=True
            )
            await self._written(stream, rpc_pb2.WatchRequest(create_request=create))
            events: list[kv_pb2.Event] = []
            while True:
                response = await self._next(stream)
                self._heard = True
                if response.compact_revision:
                    raise Compacted(response.compact_revision)
                if response.canceled:
                    raise Broken(response.cancel_reason or "cancelled by etcd")
                if response.created or response.watch_id < 0:
                    continue
                events.extend(response.events)
                if response.fragment:
                    continue
                for batch in self._complete(events, response.header.revision):
                    self.after = batch.revision
                    yield batch
                events.clear()
        finally:
            stream.cancel()

    def _complete(self, events: list[kv_pb2.Event], newest: int) -> Iterator[Batch]:
        """Cut the events of one answer into batches; an answer without events is a progress mark."""
        for revision, of_revision in groupby(events, key=lambda event: event.kv.mod_revision):
            if revision > self.after:
                yield Batch(revision, tuple(map(_change, of_revision)))
        if not events and newest > self.after:
            yield Batch(newest)

    async def _next(self, stream: Any) -> rpc_pb2.WatchResponse:
        """Return the next answer. Raises Broken, AioRpcError."""
        read = asyncio.ensure_future(stream.read())
        try:
            if not await self._within(read, SILENCE_S):
                await self._written(stream, rpc_pb2.WatchRequest(progress_request=rpc_pb2.WatchProgressRequest()))
                if not await self._within(read, ANSWER_S):
                    raise Broken("no sign of life")
            response = read.result()
        finally:
            read.cancel()
        if not isinstance(response, rpc_pb2.WatchResponse):
            raise Broken("etcd ended the stream")
        return response

    async def _written(self, stream: Any, request: rpc_pb2.WatchRequest) -> None:
        write = asyncio.ensure_future(stream.write(request))
        try:
            if not await self._within(write, ANSWER_S):
                raise Broken("the request cannot be sent")
            write.result()
        except asyncio.InvalidStateError as error:
            # gRPC's word for writing to a stream that has ended since.
            raise Broken("etcd ended the stream") from error
        finally:
            write.cancel()

    async def _within(self, future: asyncio.Future[Any], timeout_s: float) -> bool:
        """Wait for a future without cancelling it, which would end its stream. Raises Broken when the stream was closed."""
        closing = self._connection.closing
        await asyncio.wait([future, closing], timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        if closing.done() or future.cancelled():
            raise Broken("the stream was closed")
        return future.done()


def _change(event: kv_pb2.Event) -> Change:
    record = event.kv
    key = record.key.decode("utf-8", "replace")
    if event.type == kv_pb2.Event.DELETE:
        return Change(key, None)
    return Change(key, record.value, record.create_revision, record.lease)
