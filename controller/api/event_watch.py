"""Watching events: those there are, a bookmark, then each that is written, from the store's own watch.

No view has events (decision 0024), so a watcher follows the store itself: it costs what happens, and a controller whom nobody
asks nothing. It may resume from whatever the store remembers, at any controller. Who may see an event is asked of a picture at
least as new as the event.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any, Final

from cairn.controller.api import nouns
from cairn.controller.api.decision import Views
from cairn.controller.api.listing import Listings
from cairn.controller.api.stored import parsed, selected
from cairn.controller.api.watch import BOOKMARK_EVERY_S, Told
from cairn.controller.model.permits import Caller
from cairn.controller.outage import refusal
from cairn.controller.store.base import Batch, Compacted, Record, Store, Unavailable
from cairn.proto import kinds
from cairn.proto.errors import OutOfRange
from cairn.proto.v1.common_pb2 import ChangeType
from cairn.proto.v1.event_pb2 import Event, WatchEventsRequest, WatchEventsResponse

_PREFIX: Final = kinds.EVENT.prefix


class EventWatches:
    """See the module."""

    def __init__(self, store: Store, cache: Views, listings: Listings) -> None:
        self._store, self._cache, self._listings = store, cache, listings

    async def watch(self, caller: Caller, request: WatchEventsRequest) -> AsyncIterator[WatchEventsResponse]:
        """Yield changes until the caller goes away. Raises Invalid, OutOfRange, TryAgain."""
        after = request.after_revision
        view = await self._listings.view(after) if after else await self._listings.now()
        view, selection = await self._listings.selection(view, caller, nouns.EVENT, request, watching=True)
        told, complete = Told(selection, resumed=bool(after)), after or view.revision
        if not after:
            async with aclosing(selected(self._store, selection, complete)) as records:
                async for record in records:
                    if (shown := selection.shown(self._cache.view, record)) is not None:
                        yield WatchEventsResponse(type=ChangeType.CHANGE_TYPE_UPSERT, event=told.show(shown))
            yield WatchEventsResponse(type=ChangeType.CHANGE_TYPE_BOOKMARK, revision=complete)
        async with _following(self._store, complete) as batches:
            while True:
                batch = await batches.next(BOOKMARK_EVERY_S)
                changes = await self._changes(told, batch) if batch is not None else []
                for number, (type, event) in enumerate(changes, 1):
                    revision = complete if batch is None or number < len(changes) else batch.revision
                    yield WatchEventsResponse(type=type, event=event, revision=revision)
                if batch is None:
                    yield WatchEventsResponse(type=ChangeType.CHANGE_TYPE_BOOKMARK, revision=complete)
                else:
                    complete = batch.revision

    async def _changes(self, told: Told, batch: Batch) -> list[tuple[ChangeType.ValueType, Any]]:
        """Return what to say of a revision."""
        await self._cache.wait_for(batch.revision)
        before = await self._before(told, batch)
        found = []
        for change in batch.changes:
            id = change.key.removeprefix(_PREFIX)
            record = None
            if change.value is not None and (event := parsed(kinds.EVENT, change.key, change.value)) is not None:
                record = Record(event, batch.revision, change.create_revision)
            if (said := told.judge(self._cache.view, id, record, before.get(id))) is not None:
                found.append(said)
        return found

    async def _before(self, told: Told, batch: Batch) -> dict[str, Event]:
        """Return how events were that are gone now, and that only who resumed may know of. Raises TryAgain."""
        gone = sorted(change.key for change in batch.changes if change.value is None)
        if not gone or all(told.knows(key.removeprefix(_PREFIX)) for key in gone):
            return {}
        try:
            items, _ = await self._store.read(_PREFIX, start=gone[0], end=gone[-1] + "\0", revision=batch.revision - 1)
        except Compacted as error:
            raise OutOfRange("these changes are no longer kept: list again and watch from there") from error
        except Unavailable as error:
            raise refusal(error) from error
        read = ((item.key.removeprefix(_PREFIX), parsed(kinds.EVENT, item.key, item.value)) for item in items)
        return {id: event for id, event in read if event is not None}


class _Batches:
    """The store's batches, each waited for as long as one likes."""

    def __init__(self, batches: AsyncGenerator[Batch, None]) -> None:
        self._batches = batches
        self._coming: asyncio.Task[Batch] | None = None

    async def next(self, timeout_s: float) -> Batch | None:
        """Return the next one; None: none came in time. Raises OutOfRange, TryAgain."""
        if self._coming is None:
            self._coming = asyncio.create_task(anext(self._batches), name="events")
        done, _ = await asyncio.wait({self._coming}, timeout=timeout_s)
        if not done:
            return None
        coming, self._coming = self._coming, None
        try:
            return coming.result()
        except Compacted as error:
            raise OutOfRange("these changes are no longer kept: list again and watch from there") from error
        except Unavailable as error:
            raise refusal(error) from error

    async def close(self) -> None:
        """Follow no longer."""
        if self._coming is not None:
            self._coming.cancel()
            await asyncio.wait({self._coming})
        await self._batches.aclose()


@asynccontextmanager
async def _following(store: Store, after: int) -> AsyncGenerator[_Batches, None]:
    batches = _Batches(store.watch(_PREFIX, after))
    try:
        yield batches
    finally:
        await batches.close()
