"""What changed lately, for all watchers of this controller.

Level-triggered like all of Cairn: what is kept per watcher is the set of ids to look at, never a queue of states, so a slow
reader costs a set and misses nothing but intermediate states. Of what was removed its last record is kept as well: only that
tells who may be told, and of which project it was.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

from cairn.controller.api.dependents import affected, held
from cairn.controller.store.base import View
from cairn.proto.errors import OutOfRange
from cairn.proto.kinds import Kind
from google.protobuf.message import Message

# Revisions a watcher may be behind when it resumes.
HISTORY_MAX: Final = 16_384
# Ids of objects to look at -> the last record of those that were removed.
Touched = dict[str, Message | None]


class Subscription:
    """Ids one watcher has still to look at. only: the one id it may look at; empty: any."""

    def __init__(self, kind: str, revision: int, only: str = "") -> None:
        self.kind, self._only = kind, only
        self.revision = revision
        self._pending: Touched = {}
        self._wake = asyncio.Event()

    def add(self, touched: Touched, revision: int) -> None:
        """Note objects that changed up to a revision."""
        before = len(self._pending)
        ids = touched if not self._only else [self._only] if self._only in touched else []
        for id in ids:
            # What else is removed with an object touches it again: how it looked is kept.
            self._pending[id] = touched[id] or self._pending.get(id)
        self.revision = revision
        if len(self._pending) > before:
            self._wake.set()

    async def take(self) -> tuple[Touched, int]:
        """Wait for objects; return them and the revision they are complete up to."""
        await self._wake.wait()
        self._wake.clear()
        touched, self._pending = self._pending, {}
        return touched, self.revision


class Feed:
    """See the module."""

    def __init__(self, revision: int) -> None:
        self.revision = revision
        self._floor = revision
        self._history: deque[tuple[int, dict[str, Touched]]] = deque()
        self._subscriptions: dict[Subscription, None] = {}

    def push(
        self,
        view: View,
        revision: int,
        records: Iterable[tuple[Kind[Any], str]],
        gone: Mapping[str, Message] | None = None,
        before: Mapping[str, Message] | None = None,
    ) -> None:
        """Take the records changed up to a revision. gone, before: by key, how removed and changed ones looked, where known."""
        touched: dict[str, Touched] = {}
        for kind, id in records:
            last = gone.get(kind.key(id)) if gone else None
            for shown, object in affected(view, kind, id, last):
                touched.setdefault(shown, {}).setdefault(object, None)
            for looked in (gone, before):
                for shown, object in held(looked.get(kind.key(id)) if looked else None):
                    touched.setdefault(shown, {}).setdefault(object, None)
            if last is not None and id in touched.get(kind.name, {}):
                touched[kind.name][id] = last
        self.revision = revision
        self._history.append((revision, touched))
        if len(self._history) > HISTORY_MAX:
            self._floor, _ = self._history.popleft()
        for subscription in self._subscriptions:
            subscription.add(touched.get(subscription.kind, {}), revision)

    @contextmanager
    def subscribe(self, kind: str, after: int, only: str = "") -> Iterator[Subscription]:
        """Follow a kind of object, or one object, from a revision on. Raises OutOfRange."""
        if after < self._floor:
            raise OutOfRange(f"changes after revision {after} are no longer kept: list again and watch from there")
        subscription = Subscription(kind, self.revision, only)
        for revision, touched in self._history:
            if revision > after:
                subscription.add(touched.get(kind, {}), self.revision)
        self._subscriptions[subscription] = None
        try:
            yield subscription
        finally:
            self._subscriptions.pop(subscription, None)
