"""Usage as it is stored: what is open, the days, the cursor; read by who takes it over, and written in one transaction.

    books = await Books.read(store)
    books.history.take(batch, ...)
    await books.commit(store)         # all that differs, and the cursor; Conflict when another one has written meanwhile

Whatever fails, the one who holds them throws them away and reads again: nothing here is ahead of the store for long.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from typing import Any, Final

from cairn.controller.model.history import CLOCK_KEY, CLUSTER_KEY, Found, History
from cairn.controller.model.meter import Meter
from cairn.controller.model.usage_days import PART_BYTES_MAX, Day, day_of, part_id
from cairn.controller.store.base import Compacted, Item, Store, Txn
from cairn.controller.store.usage import COUNTED
from cairn.proto import kinds
from cairn.proto.kinds import AnyKind
from cairn.proto.v1.cluster_pb2 import Cluster
from cairn.proto.v1.usage_pb2 import UsageCursor, UsageDay, UsageOpen
from google.protobuf.message import DecodeError

WRITER: Final = "metering"
SELF: Final = "self"
# Records read at a time.
READ_MAX: Final = 500
# Days of projects kept at hand.
_DAYS_MAX: Final = 64


class Damaged(Exception):
    """A record that counting stands on cannot be read."""


async def pages(store: Store, prefix: str, revision: int = 0, start: str = "") -> AsyncGenerator[list[Item]]:
    """Yield what begins so, a page at a time, all of one revision. start: the first key. Raises Compacted, Unavailable."""
    while True:
        items, revision = await store.read(prefix, start=start, limit=READ_MAX, revision=revision)
        yield items
        if len(items) < READ_MAX:
            return
        start = items[-1].key + "\0"


def parsed(kind: AnyKind, item: Item) -> Any:
    """Return the record of an item. Raises Damaged."""
    try:
        return kind.message.FromString(item.value)
    except DecodeError as error:
        raise Damaged(f"{item.key} cannot be read: {error}") from error


async def one(store: Store, key: str, revision: int = 0) -> tuple[Item | None, int]:
    """Return (the record of a key, the revision of the picture). Raises Compacted, Unavailable."""
    items, revision = await store.read(key, end=key + "\0", limit=1, revision=revision)
    return (items[0] if items else None), revision


async def found_at(store: Store, revision: int) -> Found:
    """Return all that is counted as it is at a revision. Raises Compacted, Unavailable."""
    found = Found()
    for name in (*COUNTED, kinds.OBSERVED.name):
        async for items in pages(store, kinds.BY_NAME[name].prefix, revision):
            for item in items:
                found.take(item.key, item.value)
    return found


class Books:
    """See the module. stored: the revision at which the cursor was written; 0: never. cluster: its record then."""

    def __init__(self, history: History, stored: int, revision: int, cluster: Cluster, cluster_revision: int) -> None:
        self.history, self.stored = history, stored
        self.revision, self.cluster, self.cluster_revision = revision, cluster, cluster_revision
        self._days: dict[tuple[int, str], Day] = {}

    @classmethod
    async def read(cls, store: Store) -> Books:
        """Return them as they are now. Raises Damaged, Compacted, Unavailable."""
        item, revision = await one(store, kinds.USAGE_CURSOR.key(SELF))
        cluster, _ = await one(store, CLUSTER_KEY, revision)
        opens = list[UsageOpen]()
        async for items in pages(store, kinds.USAGE_OPEN.prefix, revision):
            opens += [parsed(kinds.USAGE_OPEN, each) for each in items]
        history = History(parsed(kinds.USAGE_CURSOR, item) if item is not None else UsageCursor(), Meter(opens))
        record = parsed(kinds.CLUSTER, cluster) if cluster is not None else Cluster()
        stored, written = item.mod_revision if item is not None else 0, cluster.mod_revision if cluster is not None else 0
        return cls(history, stored, revision, record, written)

    async def follow_on(self, store: Store) -> bool:
        """Tell whether the store has all that came after the cursor, in the history that was counted. Raises Unavailable."""
        cursor = self.history.cursor
        if not 0 < cursor.revision <= self.revision:
            return False
        try:
            item, _ = await one(store, CLUSTER_KEY, cursor.revision)
        except Compacted:
            return await self._is_quiet(store)
        return item is not None and self._is_ours(parsed(kinds.CLUSTER, item), item.mod_revision)

    def _is_ours(self, cluster: Cluster, mod_revision: int) -> bool:
        """Tell whether the cluster's record is the one that there was in the history that was counted."""
        cursor = self.history.cursor
        known = cursor.epoch, cursor.cluster_revision, cursor.cluster_create_time
        return (cluster.epoch, mod_revision, cluster.create_time) == known

    async def _is_quiet(self, store: Store) -> bool:
        """Tell whether nothing that counts was changed in what the store has forgotten; then go on behind it."""
        cursor = self.history.cursor
        clock, _ = await one(store, CLOCK_KEY, self.revision)
        changed = clock is None or clock.mod_revision > cursor.revision or bool(cursor.changes)
        if changed or not self._is_ours(self.cluster, self.cluster_revision):
            return False
        cursor.revision = self.revision
        return True

    @property
    def differ(self) -> bool:
        """Tell whether anything that was counted is not stored yet."""
        return bool(self.history.meter.cost)

    async def commit(self, store: Store, besides: Callable[[Txn], object] = lambda _txn: None) -> None:
        """Store what differs, and the cursor. besides: adds to the transaction. Raises StoreError."""
        history, meter = self.history, self.history.meter
        txn = Txn(WRITER).check(kinds.USAGE_CURSOR, SELF, self.stored).put(kinds.USAGE_CURSOR, SELF, history.cursor)
        for piece in meter.take():
            (await self._day(store, day_of(piece.end_us - 1), piece.project)).add(piece)
        for object in meter.touched:
            open = meter.opens.get(object)
            if open is not None:
                txn.put(kinds.USAGE_OPEN, object, open)
            else:
                txn.delete(kinds.USAGE_OPEN, object)
        for (number, project), day in self._days.items():
            for at in day.changed:
                txn.put(kinds.USAGE_DAY, part_id(number, project, at), day.parts[at])
        besides(txn)
        self.stored = await store.commit(txn)
        meter.touched.clear()
        for day in self._days.values():
            day.changed.clear()
        if len(self._days) > _DAYS_MAX:
            self._days.clear()

    def forget(self, day: int, project: str) -> None:
        """A day was folded."""
        self._days.pop((day, project), None)

    async def _day(self, store: Store, number: int, project: str) -> Day:
        """Return a day of a project. Raises Unavailable."""
        day = self._days.get((number, project))
        if day is None:
            parts = dict[int, UsageDay]()
            prefix = kinds.USAGE_DAY.key(f"{number:08d}/{project}/")
            async for items in pages(store, prefix):
                for item in items:
                    parts[int(item.key.removeprefix(prefix))] = _readable(item)
            whole = [parts.get(at) or _full() for at in range(max(parts, default=-1) + 1)]
            day = self._days[number, project] = Day(project, number, whole)
        return day


def _readable(item: Item) -> UsageDay:
    """Return a part of a day; of one that cannot be read one that is full: it stays as it is."""
    try:
        day: UsageDay = parsed(kinds.USAGE_DAY, item)
    except Damaged:
        return _full()
    return day


def _full() -> UsageDay:
    return UsageDay(project="-" * PART_BYTES_MAX)
