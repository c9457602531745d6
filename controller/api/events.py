"""Events: what happened lately."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from cairn.controller.api import nouns
from cairn.controller.api.authorise import caller_of
from cairn.controller.api.core import Core
from cairn.controller.api.event_watch import EventWatches
from cairn.proto.v1 import event_pb2, event_pb2_grpc


class EventService(event_pb2_grpc.EventServiceServicer):
    """EventService of proto/v1/event.proto."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._watches = EventWatches(core.store, core.cache, core.listings)

    async def ListEvents(self, request: event_pb2.ListEventsRequest, context: Any) -> event_pb2.ListEventsResponse:
        """Return a page, oldest first."""
        return await self._core.listings.list(caller_of(context), nouns.EVENT, request, event_pb2.ListEventsResponse)

    async def WatchEvents(
        self, request: event_pb2.WatchEventsRequest, context: Any
    ) -> AsyncIterator[event_pb2.WatchEventsResponse]:
        """Follow them."""
        async for response in self._watches.watch(caller_of(context), request):
            yield response
