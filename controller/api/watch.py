"""Watch: the current objects, a bookmark, then every object that changed, again and again.

Every controller keeps the last changes in memory (feed.py), so a watcher may resume at any controller from a revision of a
moment ago; from an older one it is told OUT_OF_RANGE and lists again. It may resume from the revision of whatever message it
got last: a message carries a revision only when nothing up to it is still to come. Who watches one object by its id looks at
nothing else: a hundred waits for a VM each must not cost a hundred looks at each VM.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from typing import Any, Final, TypeVar

from cairn.controller.api.decision import Views
from cairn.controller.api.feed import Feed, Subscription, Touched
from cairn.controller.api.listing import Listings
from cairn.controller.api.nouns import Noun
from cairn.controller.api.selection import Selection, Turns, pictured
from cairn.controller.model.permits import Caller
from cairn.controller.store.base import Record, View
from cairn.proto.v1.common_pb2 import ChangeType
from google.protobuf.message import Message

R = TypeVar("R", bound=Message)
BOOKMARK_EVERY_S: Final = 20.0


class Told:
    """What one watcher knows of, and so what it has to be told.

    resumed: it knows of objects that were told before this watch, and nobody remembers which. So each object of its sight
    that changed and is not asked for, or was removed, is told as gone once: it may be among them.
    """

    def __init__(self, selection: Selection, *, resumed: bool) -> None:
        self._selection, self._resumed = selection, resumed
        # Names by id.
        self._shown: dict[str, str] = {}
        self._gone: set[str] = set()

    def show(self, projected: Any) -> Any:
        """It is told of this object."""
        self._shown[projected.id] = getattr(projected, "name", "")
        self._gone.discard(projected.id)
        return projected

    def look(self, view: View, id: str, last: Message | None) -> tuple[ChangeType.ValueType, Any] | None:
        """Return what to say of an object that changed, None: nothing. last: its record before it was removed, if it was."""
        return self.judge(view, id, view.record(self._selection.noun.kind, id), last)

    def knows(self, id: str) -> bool:
        """Tell whether what it is to be told of an object's end is known without the object's last record."""
        return id in self._shown or not self._resumed

    def judge(
        self, view: View, id: str, record: Record[Any] | None, last: Message | None
    ) -> tuple[ChangeType.ValueType, Any] | None:
        """The same of an object whose record is not in the view."""
        projected = self._selection.shown(view, record)
        if projected is not None:
            return ChangeType.CHANGE_TYPE_UPSERT, self.show(projected)
        held: Any = record.message if record is not None else last
        if id not in self._shown and not self._may_know(view, id, held):
            return None
        name = self._shown.pop(id, "") or getattr(held, "name", "")
        if self._resumed:
            self._gone.add(id)
        gone: Any = self._selection.noun.kind.message(id=id)
        if name:
            gone.name = name
        return ChangeType.CHANGE_TYPE_DELETE, gone

    def _may_know(self, view: View, id: str, held: Any) -> bool:
        return self._resumed and id not in self._gone and held is not None and self._selection.in_sight(view, held)


class Watches:
    """Answers Watch for every noun."""

    def __init__(self, cache: Views, feed: Callable[[], Feed], listings: Listings) -> None:
        self._cache, self._feed, self._listings = cache, feed, listings

    async def watch(self, caller: Caller, noun: Noun[Any], request: Any, response: Callable[..., R]) -> AsyncIterator[R]:
        """Yield changes until the caller goes away. Raises Invalid, OutOfRange."""
        field = noun.kind.name
        after = request.after_revision
        view = await self._listings.view(after)
        view, selection = await self._listings.selection(view, caller, noun, request, watching=True)
        feed, told = self._feed(), Told(selection, resumed=bool(after))
        with feed.subscribe(field, after or feed.revision, selection.only) as subscription:
            complete = after
            if not after:
                # While these are sent the picture moves on; what changes after `complete` is sent again below.
                complete = feed.revision
                async with aclosing(pictured(view, selection)) as records:
                    async for record in records:
                        projected = selection.shown(self._cache.view, record)
                        if projected is not None:
                            yield response(type=ChangeType.CHANGE_TYPE_UPSERT, **{field: told.show(projected)})
                yield response(type=ChangeType.CHANGE_TYPE_BOOKMARK, revision=complete)
            while True:
                touched, revision = await _taken(subscription)
                if not touched:
                    yield response(type=ChangeType.CHANGE_TYPE_BOOKMARK, revision=revision)
                async for type, object, last in _looks(self._cache.view, told, touched):
                    yield response(type=type, revision=revision if last else complete, **{field: object})
                complete = revision


async def _taken(subscription: Subscription) -> tuple[Touched, int]:
    """Wait for objects to look at; none after a while. Return them and the revision they are complete up to."""
    try:
        async with asyncio.timeout(BOOKMARK_EVERY_S):
            return await subscription.take()
    except TimeoutError:
        return {}, subscription.revision


async def _looks(view: View, told: Told, touched: Touched) -> AsyncGenerator[tuple[ChangeType.ValueType, Any, bool], None]:
    """Yield what to say of objects: how it changed, how it looks, whether it is the last of them."""
    turns, before = Turns(), None
    for id, last in touched.items():
        change = told.look(view, id, last)
        if change is not None:
            if before is not None:
                yield *before, False
            before = change
        if turns.over:
            await turns.next()
    if before is not None:
        yield *before, True
