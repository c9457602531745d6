"""Metering: follows the history of the store and keeps what each object counted with, from when until when.

    store.watch(after the cursor) -> Meter (what changed, pure) -> one transaction: open records, days, and the cursor moved

Whatever decides writes with each change of what is counted when it was (controller/standing.py). So how late this runs, on
which controller, and how often it was killed does not matter: the history says it all, and what is written here is written
together with how far it was read, checked against where the one before was. Two at once: one conflicts, and reads again.

One controller does it, by the same rule as all other work is shared out (peers.py). It writes at most once a second unless much
changed, costs what changed, and passes over what it wrote itself.

What no history tells is told as a gap (UsageGap, and an event): the store was compacted further than this had read, or made
anew from a backup. Then what is open is compared with what is there; what differs counts as before up to the gap where it
ended, from the end of the gap where it began, and is marked. A restore in place is no gap: it happened at the moment it began.
What nodes said is taken back by it; a guest that they say again, of the same start, ran all the time.

Changes without a time, of a controller of an older release, count from when they are read, and are marked, too.

Rejected: marks in each transaction (unbounded until folded, by whom?), sums kept by whoever decides (every transaction of a
project would conflict with every other), asking nodes now and then (what is between two questions is lost). Decision 0044.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable
from contextlib import aclosing
from typing import Final

from cairn.controller.events import RECORDS, Leases, tell
from cairn.controller.metrics import MeteringMetrics
from cairn.controller.model.happening import EventSpec
from cairn.controller.model.history import Stretch, concerns, is_usage
from cairn.controller.model.meter import At
from cairn.controller.model.restored import is_under_way
from cairn.controller.model.usage_days import us_of
from cairn.controller.queue import backoff_s
from cairn.controller.runtime import Peers
from cairn.controller.store.base import (
    Batch,
    Compacted,
    Conflict,
    Indeterminate,
    LeaseLost,
    Store,
    StoreError,
    Txn,
    Unavailable,
)
from cairn.controller.store.cache import Cache
from cairn.controller.usage_books import Books, Damaged, found_at
from cairn.controller.usage_fold import fold
from cairn.proto import kinds
from cairn.proto.log import logger
from cairn.proto.seams import Clock, Ids, timestamp
from cairn.proto.v1.usage_pb2 import UsageGap
from google.protobuf.timestamp_pb2 import Timestamp

_log = logger("metering")
# What is shared out among controllers.
SHARD: Final = "metering"
# How often it is seen whether it is still this controller's to do.
LOOK_S: Final = 2.0
# Two commits are so far apart, unless there is as much as fits one.
PACE_S: Final = 1.0
# How far it was read is written so soon when what was looked at counts as before: a report waits for it (api/usage.py).
UNCHANGED_S: Final = 2.0
# The same when there was nothing to look at.
PROGRESS_S: Final = 300.0
FOLD_S: Final = 3600.0
RETRY_S_MAX: Final = 30.0
# Records of one commit, with what one change more may add (it checks one, and puts the cursor).
COST_MAX: Final = 100
# Others run so often meanwhile: after so long, and after so many objects where all are looked at.
SLICE_S: Final = 0.01
LOOKED_MAX: Final = 100
# Revisions that wait to be counted.
WAITING_MAX: Final = 256


class Metering:
    """See the module. `run` does it, while it is this controller's to do."""

    def __init__(
        self,
        cache: Cache,
        store: Store,
        peers: Peers,
        clock: Clock,
        ids: Ids,
        leases: Leases,
        metrics: MeteringMetrics,
    ) -> None:
        self._cache, self._store, self._peers, self._clock, self._ids = cache, store, peers, clock, ids
        self._leases, self._metrics = leases, metrics
        self._committed_s, self._folded_s = float("-inf"), float("-inf")
        # Something was looked at since the last commit.
        self._looked = False

    async def run(self) -> None:
        """Run until cancelled."""
        failures = 0
        while True:
            try:
                if self._is_mine():
                    await self._follow()
                    failures = 0
                await asyncio.sleep(LOOK_S)
            except (StoreError, Damaged) as error:
                if isinstance(error, LeaseLost):
                    self._leases.forget()
                failures = 1 if isinstance(error, Conflict | Compacted | Indeterminate) else failures + 1
                _log.warning("metering_again", error=str(error), failures=failures)
            except Exception as error:  # noqa: BLE001 - the boundary: what counts must not stop what it counts
                failures += 1
                _log.error("metering_failed", error=str(error), exc_info=error)
                self._metrics.errors.inc()
            else:
                continue
            await asyncio.sleep(backoff_s(failures, self._ids, RETRY_S_MAX))

    def _is_mine(self) -> bool:
        return self._peers.mine(SHARD) and not is_under_way(self._cache.view)

    async def _follow(self) -> None:
        """Count what happens for as long as it is this controller's to do. Raises StoreError, Damaged."""
        books = await Books.read(self._store)
        if not books.cluster_revision or books.cluster.HasField("restore"):
            return
        if not books.stored and not books.history.meter.opens:
            await self._begin(books)
        elif not await books.follow_on(self._store):
            await self._bridge(books)
        tail = Tail(self._store, books.history.cursor.revision)
        task = asyncio.create_task(tail.run(), name="history")
        try:
            while self._is_mine():
                await tail.some(self._due_s(books))
                await self._step(books, tail)
                if task.done():
                    task.result()
        finally:
            task.cancel()
            await asyncio.wait([task])

    def _due_s(self, books: Books) -> float:
        """Return how long to wait at most for something more to count."""
        if not books.differ and not self._looked:
            return LOOK_S
        due_s = self._committed_s + (PACE_S if books.differ else UNCHANGED_S)
        return min(LOOK_S, max(0.0, due_s - asyncio.get_running_loop().time()))

    async def _step(self, books: Books, tail: Tail) -> None:
        """Count what has come, and store it when it is time."""
        now_s, full = asyncio.get_running_loop().time(), self._count(books, tail)
        if books.differ:
            if full or now_s >= self._committed_s + PACE_S:
                await self._commit(books)
        elif (self._looked and now_s >= self._committed_s + UNCHANGED_S) or (
            tail.foreign and now_s >= self._committed_s + PROGRESS_S
        ):
            tail.foreign = False
            await self._commit(books)
        elif now_s >= self._folded_s + FOLD_S:
            await fold(books, self._store, self._clock.now())
            self._folded_s = now_s

    def _count(self, books: Books, tail: Tail) -> bool:
        """Count what has come, for a while; tell whether it is as much as fits one commit. Raises what ended the history."""
        loop, now_us = asyncio.get_running_loop(), us_of(self._clock.now())
        until_s = loop.time() + SLICE_S
        while tail.batches:
            if loop.time() > until_s:
                return False
            if not books.history.take(tail.batches[0], now_us, COST_MAX):
                return True
            self._looked = True
            self._metrics.revisions.inc()
            tail.pop()
        cursor = books.history.cursor
        if tail.passed > cursor.revision:
            cursor.revision, cursor.changes = tail.passed, 0
        tail.check()
        return books.history.meter.cost >= COST_MAX

    async def _commit(self, books: Books, tell: Txn | None = None) -> None:
        await books.commit(self._store, lambda txn: txn.merge(tell) if tell is not None else None)
        self._committed_s, self._looked = asyncio.get_running_loop().time(), False
        self._metrics.commits.inc()

    # --- where there is no history -----------------------------------------------------------------------------------------

    async def _begin(self, books: Books) -> None:
        """Begin to count; what is there counts from now on."""
        now, cursor = self._clock.now(), books.history.cursor
        found = await found_at(self._store, books.revision)
        cursor.begin_time.CopyFrom(timestamp(now))
        cursor.time_us = us_of(now)
        await self._in_parts(books, books.history.begin(found, At(us_of(now), books.revision)))
        await self._arrive(books, us_of(now))
        _log.info("metering_begins", revision=books.revision, objects=len(books.history.meter.opens))

    async def _bridge(self, books: Books) -> None:
        """Go on behind a gap: count what is there now, and tell of it."""
        cursor, now = books.history.cursor, self._clock.now()
        same = bool(books.stored) and books.cluster.epoch == cursor.epoch
        if not books.stored:
            # How far it had come is gone; what is open was so then at the latest.
            cursor.time_us = max(each.since_us for each in books.history.meter.opens.values())
        if not cursor.HasField("begin_time"):
            cursor.begin_time.CopyFrom(timestamp(now))
        end_us = max(us_of(now), cursor.time_us)
        stretch = Stretch(cursor.time_us, end_us, books.revision, same)
        found = await found_at(self._store, books.revision)
        touched = set[str]()
        await self._in_parts(books, self._differing(books, books.history.compare(found, stretch), touched))
        why = "the store has forgotten its history" if same else "the store was restored, and its history is another's"
        gap = UsageGap(begin_time=_time(stretch.begin_us), end_time=_time(end_us), objects=len(touched))
        if same:
            gap.after_revision, gap.until_revision = cursor.revision, books.revision
        gap.say = (
            f"{why}: when what changed from {_text(gap.begin_time)} to {_text(gap.end_time)} did is not known to the second"
        )
        besides = Txn("metering").put(kinds.USAGE_GAP, f"{end_us:016d}-{books.revision:016d}", gap)
        event = EventSpec("cluster", "", "", "UsageInexact", gap.say, warning=True)
        tell(besides, [event], now=now, ids=self._ids, lease=await self._leases.lease(RECORDS))
        await self._arrive(books, end_us, besides)
        self._metrics.gaps.inc()
        _log.warning("metering_gap", say=gap.say, objects=gap.objects)

    @staticmethod
    def _differing(books: Books, looked: Iterable[str], touched: set[str]) -> Iterable[str]:
        """Yield what was looked at, and note what differed."""
        for object in looked:
            if object in books.history.meter.touched:
                touched.add(object)
            yield object

    async def _in_parts(self, books: Books, looked: Iterable[str]) -> None:
        """Store what is found otherwise, as much at a time as fits; the cursor stays until all of it is."""
        for number, _ in enumerate(looked):
            if books.history.meter.cost >= COST_MAX:
                await self._commit(books)
            elif number % LOOKED_MAX == 0:
                await asyncio.sleep(0)

    async def _arrive(self, books: Books, us: int, besides: Txn | None = None) -> None:
        """Have the cursor where the records were read."""
        cursor = books.history.cursor
        cursor.revision, cursor.changes, cursor.time_us = books.revision, 0, us
        books.history.belongs(books.cluster, books.cluster_revision)
        await self._commit(books, besides)


class Tail:
    """What comes after a revision and is to be looked at; passed: up to where all that was is in `batches`, or was taken."""

    def __init__(self, store: Store, after: int) -> None:
        self._store = store
        self.passed = after
        # Something changed that metering has not written itself.
        self.foreign = False
        self.batches: deque[Batch] = deque()
        self._more, self._room = asyncio.Event(), asyncio.Event()
        self._error: StoreError | None = None

    async def run(self) -> None:
        """Read until cancelled, or the history ends."""
        try:
            async with aclosing(self._store.watch(kinds.ROOT, self.passed)) as batches:
                async for batch in batches:
                    await self._take(batch)
        except (Compacted, Unavailable) as error:
            self._error = error
            self._more.set()

    async def _take(self, batch: Batch) -> None:
        while len(self.batches) >= WAITING_MAX:
            self._room.clear()
            await self._room.wait()
        changes = tuple(change for change in batch.changes if concerns(change.key))
        self.foreign = self.foreign or any(not is_usage(change.key) for change in batch.changes)
        if changes:
            self.batches.append(Batch(batch.revision, changes))
            self._more.set()
        self.passed = batch.revision

    async def some(self, within_s: float) -> None:
        """Return when something is there, or so much later."""
        if self.batches or self._error is not None:
            # Others have their turn.
            await asyncio.sleep(0)
            return
        self._more.clear()
        try:
            async with asyncio.timeout(within_s):
                await self._more.wait()
        except TimeoutError:
            return

    def pop(self) -> None:
        """The first was counted."""
        self.batches.popleft()
        self._room.set()

    def check(self) -> None:
        """Raise what ended the history, once all before is taken."""
        if self._error is not None and not self.batches:
            raise self._error


def _time(us: int) -> Timestamp:
    made = Timestamp()
    made.FromMicroseconds(us)
    return made


def _text(time: Timestamp) -> str:
    return f"{time.ToDatetime():%Y-%m-%d %H:%M:%S} UTC"
