"""Watch: the current objects, a bookmark, then every object that changed, again and again.

Level-triggered like all of Cairn: what is kept per watcher is the set of ids to look at, never a queue of states, so a slow
reader costs a set and misses nothing but intermediate states. Every controller keeps the last changes in memory, so a
watcher may resume at any controller from a revision of a moment ago; from an older one it is told OUT_OF_RANGE and lists
again. Who watches one object by its id looks at nothing else: a hundred waits for a VM each must not cost a hundred looks at
each VM.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Final, TypeVar

from cairn.controller.api import filter
from cairn.controller.api.decision import Views
from cairn.controller.api.dependents import affected
from cairn.controller.api.listing import Listings
from cairn.controller.api.nouns import Noun
from cairn.controller.model.permits import Caller
from cairn.controller.store.base import View
from cairn.proto.errors import OutOfRange
from cairn.proto.kinds import Kind
from cairn.proto.v1.common_pb2 import ChangeType
from google.protobuf.message import Message

R = TypeVar("R", bound=Message)
# Revisions a watcher may be behind when it resumes.
HISTORY_MAX: Final = 16_384
BOOKMARK_EVERY_S: Final = 20.0


class Subscription:
    """Ids one watcher has still to look at. only: the one id it may look at; empty: any."""

    def __init__(self, kind: str, revision: int, only: str = "") -> None:
        self.kind, self._only = kind, only
        self.revision = revision
        self._pending: dict[str, None] = {}
        self._wake = asyncio.Event()

    def add(self, ids: Collection[str], revision: int) -> None:
        """Note ids that changed up to a revision."""
        before = len(self._pending)
        if not self._only:
            self._pending.update(dict.fromkeys(ids))
        elif self._only in ids:
            self._pending[self._only] = None
        self.revision = revision
        if len(self._pending) > before:
            self._wake.set()

    async def take(self) -> tuple[list[str], int]:
        """Wait for ids; return them and the revision they are complete up to."""
        await self._wake.wait()
        self._wake.clear()
        ids = list(self._pending)
        self._pending.clear()
        return ids, self.revision


class Feed:
    """What changed lately, for all watchers of this controller."""

    def __init__(self, revision: int) -> None:
        self.revision = revision
        self._floor = revision
        self._history: deque[tuple[int, dict[str, dict[str, None]]]] = deque()
        self._subscriptions: dict[Subscription, None] = {}

    def push(self, view: View, revision: int, records: Iterable[tuple[Kind[Any], str]]) -> None:
        """Take the records changed up to a revision; view: a picture that contains it."""
        touched: dict[str, dict[str, None]] = {}
        for kind, id in records:
            for shown, object in affected(view, kind, id):
                touched.setdefault(shown, {})[object] = None
        self.revision = revision
        self._history.append((revision, touched))
        if len(self._history) > HISTORY_MAX:
            self._floor, _ = self._history.popleft()
        for subscription in self._subscriptions:
            subscription.add(touched.get(subscription.kind, ()), revision)

    @contextmanager
    def subscribe(self, kind: str, after: int, only: str = "") -> Iterator[Subscription]:
        """Follow a kind of object, or one object, from a revision on. Raises OutOfRange."""
        if after < self._floor:
            raise OutOfRange(f"changes after revision {after} are no longer kept: list again and watch from there")
        subscription = Subscription(kind, self.revision, only)
        for revision, touched in self._history:
            if revision > after:
                subscription.add(touched.get(kind, ()), self.revision)
        self._subscriptions[subscription] = None
        try:
            yield subscription
        finally:
            self._subscriptions.pop(subscription, None)


class Watches:
    """Answers Watch for every noun."""

    def __init__(self, cache: Views, feed: Callable[[], Feed], listings: Listings) -> None:
        self._cache, self._feed, self._listings = cache, feed, listings

    async def watch(self, caller: Caller, noun: Noun[Any], request: Any, response: Callable[..., R]) -> AsyncIterator[R]:
        """Yield changes until the caller goes away. Raises Invalid, OutOfRange."""
        field = noun.kind.name
        after = request.after_revision
        view = await self._listings.view(after)
        passes = self._listings.selection(view, caller, noun, request, watching=True)
        only = filter.pinned(request.filter)
        feed = self._feed()
        shown: dict[str, str] = {}
        with feed.subscribe(field, after or feed.revision, only) as subscription:
            if not after:
                # While these are sent the picture moves on; what changes after `start` is sent again below.
                start = feed.revision
                for projected in _current(self._cache.view, noun, [only] if only else None, passes):
                    shown[projected.id] = getattr(projected, "name", "")
                    yield response(type=ChangeType.CHANGE_TYPE_UPSERT, revision=start, **{field: projected})
                yield response(type=ChangeType.CHANGE_TYPE_BOOKMARK, revision=start)
            while True:
                try:
                    async with asyncio.timeout(BOOKMARK_EVERY_S):
                        ids, revision = await subscription.take()
                except TimeoutError:
                    yield response(type=ChangeType.CHANGE_TYPE_BOOKMARK, revision=subscription.revision)
                    continue
                for id in ids:
                    view = self._cache.view
                    projected = noun.of(view, id)
                    if projected is not None and passes(view, projected):
                        shown[id] = getattr(projected, "name", "")
                        yield response(type=ChangeType.CHANGE_TYPE_UPSERT, revision=revision, **{field: projected})
                    elif id in shown or (after and projected is None):
                        gone: Any = noun.kind.message(id=id)
                        if name := shown.pop(id, ""):
                            gone.name = name
                        yield response(type=ChangeType.CHANGE_TYPE_DELETE, revision=revision, **{field: gone})


def _current(view: View, noun: Noun[Any], ids: Iterable[str] | None, passes: Callable[[View, Any], bool]) -> Iterator[Any]:
    """Yield the objects a new watcher starts with. ids: which of them; None: all."""
    for id in sorted(view.ids(noun.kind)) if ids is None else ids:
        projected = noun.of(view, id)
        if projected is not None and passes(view, projected):
            yield projected
