"""The cache: keeps a View of every record, follows the store, and tells who asks what changed.

    cache = Cache(store)
    task = asyncio.create_task(cache.run())
    await cache.ready.wait()
    cache.view.get(kinds.VM, "i-0f3k9z2a")
    await cache.wait_for(await store.commit(txn))       # now cache.view contains our own write
    with cache.subscribe() as changes:                  # registered now, so nothing between here and the loop is missed
        async for change in changes: ...                # change.records: (kind, id) pairs; cache.view is at least that new

Invariant: the picture is exactly the store's records at `view.revision`, never a mix of two revisions. It follows the whole key
space, not only our records: a commit elsewhere also raises the revision, and `wait_for` must see it pass. When history was
compacted it lists again, writes the difference, and says so. Of a value it cannot decode it
keeps the last one it could, and says so (view.unreadable); kinds it does not know, a newer controller's, are left out.

A list comes in pages, all of one revision, and others run between them. The first picture grows as they come, since nobody
looks before it is `ready`; later ones are compared page by page and the difference is written in one step at the end. Rejected:
one watch per kind (revisions of different kinds would not line up, so there would be no consistent picture), one read of
everything (a million records are half a gigabyte twice, and seconds in which no lease is kept).
"""

from __future__ import annotations

import asyncio
import heapq
from collections import deque
from collections.abc import AsyncGenerator, Iterable, Iterator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Final, Self

from cairn.controller.store.base import Batch, Change, Changed, Compacted, Item, Store, Txn, Unavailable
from cairn.controller.store.view import LiveView
from cairn.proto import kinds
from cairn.proto.kinds import ROOT, Kind, split
from cairn.proto.log import logger
from google.protobuf.message import DecodeError, Message

_log = logger("cache")
RETRY_S: Final = 0.5
# Kinds of records that speak of others, which nobody finds any more once they do so no longer.
SHRINKING: Final = frozenset({kinds.OBSERVED, kinds.UNKNOWN})
# Changes queued for a slow subscriber before the newest are merged into one.
QUEUE_MAX: Final = 1024
# Records taken at a time from a list, before others may run.
PAGE: Final = 1000
# Asked for at a time, after the first: so many records, or as many as make about so many bytes.
PAGE_MAX: Final = 10_000
PAGE_BYTES: Final = 2 << 20


@dataclass(frozen=True, slots=True)
class Changes:
    """Records that changed up to a revision.

    relisted: the picture was read anew; `records` are those that differ, but revisions in between were not seen. gone: by key,
    how records looked that were removed; before: how those looked that were changed, of kinds where that is asked (SHRINKING).
    """

    revision: int
    records: tuple[Changed, ...]
    relisted: bool = False
    gone: Mapping[str, Message] = field(default_factory=dict)
    before: Mapping[str, Message] = field(default_factory=dict)

    def merge(self, newer: Changes) -> Changes:
        """Return both as one."""
        records = tuple(dict.fromkeys((*self.records, *newer.records)))
        gone, before = {**self.gone, **newer.gone}, {**newer.before, **self.before}
        return Changes(newer.revision, records, self.relisted or newer.relisted, gone, before)


class Subscription:
    """An async iterator of Changes; close it, or use it with `with`."""

    def __init__(self, cache: Cache, about: frozenset[Kind[Any]] | None) -> None:
        self._cache = cache
        # Kinds it wants to hear of; None: all.
        self.about = about
        self._queue: deque[Changes] = deque()
        self._wake = asyncio.Event()
        self._closed = False

    def push(self, changes: Changes, *, own: bool = False) -> None:
        """Queue changes for the subscriber; when it is slow, merged with the last queued.

        own: made here just now. Who made them goes first: the subscriber is woken a moment later, unless it looks by itself.
        """
        if len(self._queue) >= QUEUE_MAX:
            changes = self._queue.pop().merge(changes)
        self._queue.append(changes)
        if own:
            loop = asyncio.get_running_loop()
            # One turn until the caller goes on, one until its caller does.
            loop.call_soon(loop.call_soon, self._wake.set)
        else:
            self._wake.set()

    def take(self) -> Changes | None:
        """Return all that is queued as one, without waiting: afterwards cache.view shows exactly what was delivered."""
        taken: Changes | None = None
        while self._queue:
            newer = self._queue.popleft()
            taken = newer if taken is None else taken.merge(newer)
        return taken

    def close(self) -> None:
        """End the iteration after what is queued."""
        self._closed = True
        self._cache.unsubscribe(self)
        self._wake.set()

    def __aiter__(self) -> Self:
        return self

    async def stirred(self) -> None:
        """Return once something is queued, or somebody calls `stir`."""
        if not self._queue:
            self._wake.clear()
            await self._wake.wait()

    def stir(self) -> None:
        """Wake who waits, though nothing changed."""
        self._wake.set()

    async def __anext__(self) -> Changes:
        while not self._queue:
            if self._closed:
                raise StopAsyncIteration
            self._wake.clear()
            await self._wake.wait()
        return self._queue.popleft()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


class Cache:
    """See the module. `run` does the work; everything else is synchronous or waits for it."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._view = LiveView()
        self._keys = _Keys()
        self._subscriptions: dict[Subscription, None] = {}
        self._waiting: list[tuple[int, int, asyncio.Future[None]]] = []
        self._waits = 0
        # The picture is complete, and what changes is brought one revision after the other.
        self._following = False
        # Set once the first picture is complete.
        self.ready = asyncio.Event()

    @property
    def view(self) -> LiveView:
        """The newest picture. It moves on at every await."""
        return self._view

    async def wait_for(self, revision: int) -> None:
        """Return once view.revision is at least that."""
        if self._view.revision >= revision:
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waits += 1
        heapq.heappush(self._waiting, (revision, self._waits, future))
        await future

    def committed(self, txn: Txn, revision: int) -> None:
        """Show a commit of ours at once, if it is the next after what the view shows; the watch brings it again in vain."""
        # Without puts it may have changed nothing, and the revision be somebody else's.
        if not self._following or not txn.puts or revision != self._view.revision + 1:
            return
        changes = [Change(key, None) for key in sorted(txn.deletes)]
        for key, put in txn.puts.items():
            before = self._view.record(*where) if (where := self._keys.split(key)) is not None else None
            changes.append(Change(key, put.value, revision if before is None else before.create_revision, put.lease))
        self._apply(Batch(revision, tuple(changes)), own=True)

    def subscribe(self, about: Iterable[Kind[Any]] | None = None) -> Subscription:
        """Return an iterator of all changes from now on; of the first picture too when it is not complete yet.

        about: kinds; revisions that change none of them are left out. Those that do are told whole, and a new list always.
        """
        subscription = Subscription(self, None if about is None else frozenset(about))
        self._subscriptions[subscription] = None
        return subscription

    def unsubscribe(self, subscription: Subscription) -> None:
        """Forget a subscription; Subscription.close calls it."""
        self._subscriptions.pop(subscription, None)

    async def run(self) -> None:
        """Follow the store until cancelled."""
        stale = True
        while True:
            try:
                if stale:
                    await self._list()
                    stale = False
                async with aclosing(self._store.watch("", self._view.revision)) as batches:
                    self._following = True
                    async for batch in batches:
                        if batch.revision > self._view.revision:
                            self._apply(batch)
            except Compacted as error:
                _log.warning("history_compacted", revision=self._view.revision, compacted=error.revision)
                stale = True
                self._following = False
            except Unavailable as error:
                _log.warning("store_unavailable", error=str(error))
                await asyncio.sleep(RETRY_S)

    async def _list(self) -> None:
        """Read everything and make the picture equal to it. Raises Compacted when that takes longer than history is kept."""
        listing, records = _Listing(self._view, self._keys), 0
        async for items in self._pages(listing):
            records += len(items)
            for where, item in listing.differing(items):
                if not self.ready.is_set():
                    self._put(*where, item, {})
                else:
                    listing.found.append((where, item))
        gone = listing.gone()
        before: dict[str, Message] = {}
        for where, item in listing.found:
            self._put(*where, item, before)
        last = {kind.key(id): self._view.table(kind).delete(id) for kind, id in gone}
        changed = [*(where for where, _ in listing.found), *gone]
        if not self.ready.is_set() and self._subscriptions:
            changed = [(table.kind, id) for table in self._view.tables() for id in table.ids()]
        _log.info("records_listed", revision=listing.revision, records=records, changed=len(changed))
        self._publish(listing.revision, changed, last, before, relisted=True)
        self.ready.set()

    async def _pages(self, listing: _Listing) -> AsyncGenerator[list[Item], None]:
        """Yield all records, some at a time, kind by kind; the next page is on its way while one is looked at.

        etcd walks the whole range for every page of it: so ranges are kinds, and pages are as large as their bytes allow.
        """
        pages = [_Page(kind.prefix, "", PAGE) for kind in reversed(kinds.ALL) if kind.cached]
        reading = asyncio.ensure_future(self._read(pages[-1], listing))
        try:
            while pages:
                items, following = await reading, pages.pop()
                if (rest := following.after(items)) is not None:
                    pages.append(rest)
                if pages:
                    reading = asyncio.ensure_future(self._read(pages[-1], listing))
                for first in range(0, len(items), PAGE):
                    # The request goes out, and others run.
                    await asyncio.sleep(0)
                    yield items[first : first + PAGE]
        finally:
            reading.cancel()

    async def _read(self, page: _Page, listing: _Listing) -> list[Item]:
        items, revision = await self._store.read(page.prefix, start=page.start, limit=page.limit, revision=listing.revision)
        listing.revision = revision
        return items

    def _apply(self, batch: Batch, *, own: bool = False) -> None:
        changed: list[Changed] = []
        gone, before = dict[str, Message](), dict[str, Message]()
        for change in batch.changes:
            where = self._keys.split(change.key)
            if where is None:
                continue
            kind, id = where
            if change.value is None:
                last = self._view.table(kind).delete(id)
                if last is not None:
                    gone[change.key] = last
            else:
                self._put(kind, id, Item(change.key, change.value, batch.revision, change.create_revision), before)
            changed.append(where)
        self._publish(batch.revision, changed, gone, before, own=own)

    def _put(self, kind: Kind[Any], id: str, item: Item, before: dict[str, Message]) -> None:
        """Write a record into the picture, and into `before` how it looked, if that is asked."""
        table = self._view.table(kind)
        try:
            last = table.put(id, item.value, item.mod_revision, item.create_revision)
            if last is not None and kind in SHRINKING:
                before[item.key] = last
        except DecodeError as error:
            if id not in table.unreadable:
                _log.error("record_unreadable", key=item.key, revision=item.mod_revision, error=str(error), kept=id in table)
            table.keep(id, item.mod_revision, str(error))

    def _publish(
        self,
        revision: int,
        changed: Iterable[Changed],
        gone: Mapping[str, Message],
        before: Mapping[str, Message],
        *,
        relisted: bool = False,
        own: bool = False,
    ) -> None:
        self._view.advance(revision)
        records = tuple(changed)
        if records or relisted:
            changes = Changes(self._view.revision, records, relisted, gone, before)
            touched = {kind for kind, _ in records}
            for subscription in self._subscriptions:
                if relisted or subscription.about is None or not subscription.about.isdisjoint(touched):
                    subscription.push(changes, own=own)
        while self._waiting and self._waiting[0][0] <= self._view.revision:
            _, _, future = heapq.heappop(self._waiting)
            if not future.done():
                future.set_result(None)


@dataclass(frozen=True, slots=True)
class _Page:
    """Records of a kind to ask for."""

    prefix: str
    start: str
    limit: int

    def after(self, items: list[Item]) -> _Page | None:
        """Return the page that follows one; None: that was the last."""
        if len(items) < self.limit:
            return None
        size_bytes = sum(len(item.value) + len(item.key) for item in items)
        limit = min(PAGE_MAX, max(1, PAGE_BYTES * len(items) // max(1, size_bytes)))
        return _Page(self.prefix, items[-1].key + "\0", limit)


class _Listing:
    """A list under way: what is in it and not in the picture, or the other way round. Keys come sorted, so kind by kind."""

    def __init__(self, view: LiveView, keys: _Keys) -> None:
        self._view, self._keys = view, keys
        self.revision = 0
        self.found: list[tuple[Changed, Item]] = []
        # What is not there cannot go: nothing need be remembered of the first list.
        self._first = not any(len(table) or table.unreadable for table in view.tables())
        self._seen: set[str] = set()
        self._kind: Kind[Any] | None = None
        self._prefix = "/"
        self._looked: set[str] = set()
        self._gone: list[Changed] = []

    def differing(self, items: Iterable[Item]) -> Iterator[tuple[Changed, Item]]:
        """Yield those that the picture does not show as they are."""
        for item in items:
            if not item.key.startswith(self._prefix) or self._kind is None:
                where = self._keys.split(item.key)
                if where is None:
                    continue
                self._end_of_kind()
                self._kind, self._prefix = where[0], where[0].prefix
            kind, id = self._kind, item.key[len(self._prefix) :]
            if not self._first:
                self._seen.add(id)
            if self._first or self._view.table(kind).seen(id) != item.mod_revision:
                yield (kind, id), item

    def gone(self) -> list[Changed]:
        """Return what the picture shows and the list, which has ended, did not."""
        self._end_of_kind()
        for table in self._view.tables() if not self._first else ():
            if table.kind.name not in self._looked:
                self._gone += [(table.kind, id) for id in table.stored()]
        return self._gone

    def _end_of_kind(self) -> None:
        if self._kind is None or self._first:
            return
        self._looked.add(self._kind.name)
        table = self._view.table(self._kind)
        # Those of this kind that are yet to be written are not in the table: a smaller count alone does not tell.
        self._gone += [(self._kind, id) for id in table.stored() if id not in self._seen]
        self._seen = set()


class _Keys:
    """What kinds and ids keys stand for."""

    def __init__(self) -> None:
        self._strange: set[str] = set()

    def split(self, key: str) -> Changed | None:
        """Return (kind, id) of a key, None when it is not ours, in no view, or of a kind newer than this release."""
        if not key.startswith(ROOT):
            return None
        try:
            kind, id = split(key)
        except KeyError:
            name = key.removeprefix(ROOT).partition("/")[0]
            if name not in self._strange:
                self._strange.add(name)
                _log.warning("kind_unknown", kind=name, key=key)
            return None
        return (kind, id) if kind.cached else None
