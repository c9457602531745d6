"""Runs reconcilers: wakes them by key, commits what they decide, many keys to a commit.

One loop per reconciler:

    absorb    changes of the view become keys; a key waits at most once
    gather    decide, key after key, each on a fork that contains the commit in flight and the decisions before it; merged into
              one transaction, until that is full or may be sent
    send      one transaction at a time flies; what is gathered meanwhile is sent when it has landed (gathered.py)
    land      committed: what was gathered on top of it gets its revision
              Conflict: something moved; the same keys at once, on a view as fresh as the store, in smaller groups
              Indeterminate: it may have happened; the same, as the view will tell
              Unavailable: the keys wait, longer each time
              Refused: the audit cannot be kept; the same for what it would have a record of (acts.py)
              after all but the first, what was gathered on top is thrown away, and its keys are looked at again: also those
              for which there was nothing to do
    scan      all keys, at the start, now and then, and when the set of controllers changes: the same code path,
              in slices behind what changed

Gathering never awaits, so the view stands still within a slice of it; between two slices it moves, and what a group stands on
may be gone: the store refuses it. Decisions of one controller do not conflict with each other; groups are what makes that
fast. A key whose deciding fails (a bug) is logged, counted and tried again later; it stops nobody else. Rejected: a task per
key (same-moment decisions on one node's claims would conflict with each other), locks.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime
from typing import Any, Final, Protocol

from cairn.controller.acts import Records
from cairn.controller.events import RECORDS, Leases, tell
from cairn.controller.gathered import GROUP_MAX, Flight, Group
from cairn.controller.metrics import RuntimeMetrics
from cairn.controller.model.restored import CLUSTER_ID, is_under_way
from cairn.controller.model.unreadable import touched
from cairn.controller.queue import BACKOFF_S_MAX, Queue, backoff_s
from cairn.controller.reconcilers.base import Follower, Outcome, Reconciler
from cairn.controller.store.base import (
    Changed,
    Conflict,
    Indeterminate,
    LeaseLost,
    Store,
    TooBig,
    Txn,
    Unavailable,
    View,
)
from cairn.controller.store.cache import Cache, Changes, Subscription
from cairn.controller.store.view import Fork
from cairn.proto import kinds
from cairn.proto.errors import Refused
from cairn.proto.log import logger
from cairn.proto.seams import Clock, Ids

_log = logger("runtime")
SLICE_S: Final = 0.01
# The same when there is nothing but a scan: those of all reconcilers come in one turn of the loop, and callers wait for that.
SCAN_SLICE_S: Final = 0.002
SCAN_S: Final = 60.0
# When a key is looked at again that waits for a record to be readable: its change wakes it at once.
UNREADABLE_AGAIN_S: Final = 30.0
CONFLICT_S: Final = 0.002
# A loop that has just committed lets so much time pass for others' changes to gather, unless a transaction is full already.
PACE_S: Final = 0.001
# The longest that a reconciler waits before it sees whether the store takes anything again.
REST_S_MAX: Final = 5.0
CONFLICT_S_MAX: Final = 0.1


class Peers(Protocol):
    """Which keys are this controller's to look at."""

    def mine(self, shard: str) -> bool:
        """Tell whether this controller looks at that shard."""
        ...


class Unlawful(Exception):
    """A reconciler wrote what it has no right to."""


def check_writers(reconciler: Reconciler, txn: Txn) -> None:
    """Raise Unlawful unless everything a transaction writes is the reconciler's own."""
    for key in (*txn.puts, *txn.deletes):
        kind, _ = kinds.split(key)
        allowed = kind.writer in (reconciler.name, "*") or (key in txn.deletes and reconciler.name in kind.deleters)
        if txn.writers.get(key) != reconciler.name or not allowed:
            raise Unlawful(f"{reconciler.name} may not write {key}")
        if kind not in reconciler.writes:
            raise Unlawful(f"{reconciler.name} wrote {key} but does not list {kind.name} in `writes`")


class Runtime:
    """Runs a set of reconcilers against one store and cache."""

    def __init__(
        self,
        cache: Cache,
        store: Store,
        peers: Peers,
        clock: Clock,
        ids: Ids,
        reconcilers: Sequence[Reconciler],
        metrics: RuntimeMetrics,
        leases: Leases,
        records: Records,
        *,
        scan_s: float = SCAN_S,
    ) -> None:
        parts = (metrics, leases, records, scan_s)
        self.loops = [Loop(cache, store, peers, clock, ids, reconciler, *parts) for reconciler in reconcilers]

    async def run(self) -> None:
        """Run until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            for loop in self.loops:
                tasks.create_task(loop.run(), name=f"reconciler {loop.name}")

    @property
    def idle(self) -> bool:
        """True when no key waits and nothing is in flight."""
        return all(loop.idle for loop in self.loops)


class Loop:
    """Runs one reconciler."""

    def __init__(
        self,
        cache: Cache,
        store: Store,
        peers: Peers,
        clock: Clock,
        ids: Ids,
        reconciler: Reconciler,
        metrics: RuntimeMetrics,
        leases: Leases,
        records: Records,
        scan_s: float,
    ) -> None:
        self._cache, self._store, self._peers, self._clock, self._ids = cache, store, peers, clock, ids
        self._reconciler, self._leases, self._records, self._scan_s = reconciler, leases, records, scan_s
        self._follower = reconciler if isinstance(reconciler, Follower) else None
        self.name = reconciler.name
        self._queue = Queue(ids)
        self._limit = GROUP_MAX
        self._conflicts = 0
        # How often in a row the store could not take anything, and until when nothing is sent for that.
        self._troubles, self._rests_until_s = 0, float("-inf")
        # Sent, and not known to be committed; gathered to be sent next; both laid over the view, None: there is neither.
        self._flight: Flight | None = None
        self._group: Group | None = None
        self._fork: Fork | None = None
        # What differs between the view as it is and the one that the reconciler was last led to.
        self._unfollowed: dict[Changed, None] = {}
        # Keys that wait for a record to be readable, by the record ("vm/i-...").
        self._held_up: dict[str, dict[str, None]] = {}
        self._scan_at_s = 0.0
        self._committed_s = float("-inf")
        # A scan under way is not enough: what it has passed over may be ours by now.
        self._rescan = False
        self.idle = False
        self._depth = metrics.queue_depth.labels(self.name)
        self._seconds = metrics.reconcile_s.labels(self.name)
        self._commit_seconds = metrics.commit_s.labels(self.name)
        self._count_commits = metrics.commits.labels(self.name)
        self._count_decisions = metrics.decisions.labels(self.name)
        self._count_conflicts = metrics.conflicts.labels(self.name)
        self._count_errors = metrics.errors.labels(self.name)

    async def run(self) -> None:
        """Run until cancelled."""
        reconciler = self._reconciler
        # A key may wait for a record to be readable that it only writes.
        about = dict.fromkeys((*reconciler.reads, *reconciler.writes, kinds.CONTROLLER, kinds.CLUSTER))
        with self._cache.subscribe(about) as changes:
            await self._cache.ready.wait()
            try:
                while True:
                    self._prepare(changes)
                    await self._step(changes)
            finally:
                if self._flight is not None:
                    self._flight.landing.cancel()
                    await asyncio.wait([self._flight.landing])

    async def _step(self, changes: Subscription) -> None:
        """Do one thing: see what became of the flight, send what is gathered, gather more, or wait."""
        if self._flight is not None and self._flight.landing.done():
            await self._land(self._flight)
        elif self._flight is None and self._group is not None and self._ready_s() <= asyncio.get_running_loop().time():
            self._send(self._group, changes)
        elif self._queue and not is_under_way(self._cache.view) and not self._full() and not self._rests():
            self.idle = False
            self._gather()
            await asyncio.sleep(0)
        else:
            self.idle = self._flight is None and self._group is None
            await self._wait(changes)

    def _prepare(self, changes: Subscription) -> None:
        """Turn what happened into keys; afterwards the view is exactly what we were told about."""
        self._absorb(changes.take())
        now_s = asyncio.get_running_loop().time()
        if now_s >= self._scan_due_s():
            self._rescan = False
            self._scan_at_s = now_s + self._scan_s
            self._queue.scan(self._all_keys())
        self._queue.promote(now_s)
        self._depth.set(len(self._queue))

    def _absorb(self, changes: Changes | None) -> None:
        if changes is None:
            return
        if changes.relisted or any(kind in (kinds.CONTROLLER, kinds.CLUSTER) for kind, _ in changes.records):
            self._scan_at_s, self._rescan = 0.0, True
        for kind, id in changes.records:
            if kind in self._reconciler.reads:
                self._unfollowed[kind, id] = None
                self._wake(self._reconciler.keys, self._cache.view, kind, id)
            if self._held_up:
                for key in self._held_up.pop(f"{kind.name}/{id}", ()):
                    self._queue.add(key)

    def _all_keys(self) -> Iterator[str]:
        """Name all keys, as they are asked for; if that fails, scan again before long."""
        try:
            try:
                yield from self._reconciler.all_keys(self._cache.view)
            except RuntimeError:
                # It goes through the records themselves, and those have changed meanwhile: then all at once.
                yield from list(self._reconciler.all_keys(self._cache.view))
        except Exception as error:  # noqa: BLE001 - the boundary: a fault in one reconciler must not stop the others
            self._unnamed(error, [])

    def _wake(self, keys_of: Callable[..., Iterable[str]], *about: Any) -> None:
        """Queue the keys a reconciler names; if naming them fails, scan all before long."""
        try:
            for key in keys_of(*about):
                self._queue.add(key)
        except Exception as error:  # noqa: BLE001 - the boundary: a fault in one reconciler must not stop the others
            self._unnamed(error, [str(each) for each in about[1:]])

    def _unnamed(self, error: Exception, about: list[str]) -> None:
        """Naming keys failed: look at all of them before long."""
        _log.error("keys_failed", reconciler=self.name, about=about, error=str(error), exc_info=error)
        self._count_errors.inc()
        self._scan_at_s = min(self._scan_at_s, asyncio.get_running_loop().time() + BACKOFF_S_MAX)

    def _full(self) -> bool:
        return self._group is not None and self._group.full(self._limit)

    def _scan_due_s(self) -> float:
        """Return when the next scan begins: none is due while one goes on, unless it passed over what may be ours."""
        return self._scan_at_s if self._rescan or not self._queue.scanning else float("inf")

    def _rests(self) -> bool:
        return asyncio.get_running_loop().time() < self._rests_until_s

    def _ready_s(self) -> float:
        """Return when what is gathered may be sent: each transaction costs as much as the decisions in it."""
        return 0.0 if self._full() else self._committed_s + PACE_S

    async def _wait(self, changes: Subscription) -> None:
        """Return when something changed, landed or is due; nothing is due during a restore."""
        due_s = None
        if not is_under_way(self._cache.view):
            sent_s = self._ready_s() if self._group is not None and self._flight is None else float("inf")
            rested_s = self._rests_until_s if self._rests() else float("inf")
            due_s = min(self._scan_due_s(), self._queue.next_s(), sent_s, rested_s)
        try:
            async with asyncio.timeout_at(due_s):
                await changes.stirred()
        except TimeoutError:
            return

    def _gather(self) -> None:
        """Decide about keys until the transaction is full, on what the flight before leaves. Never awaits."""
        loop, now = asyncio.get_running_loop(), self._clock.now()
        until_s = loop.time() + (SLICE_S if len(self._queue) else SCAN_SLICE_S)
        live = self._cache.view
        group = self._group or Group(self.name, live.revision_of(kinds.CLUSTER, CLUSTER_ID))
        view: View = self._follow(self._fork or live)
        for looked, key in enumerate(self._queue.take(), 1):
            decided = self._look(group, view, key, now)
            if decided is None:
                self._queue.put_back([key])
                break
            if decided:
                view = self._after(decided)
            elif self._fork is not None:
                group.trusting.append(key)
            if group.full(self._limit) or looked >= GROUP_MAX or loop.time() > until_s:
                break
        if group.keys:
            self._group = group
        elif self._flight is not None:
            # They need nothing if that lands.
            self._flight.group.trusting += group.trusting

    def _look(self, group: Group, view: View, key: str, now: datetime) -> Txn | None:
        """Decide about one key; return what the group has taken in, an empty one for nothing, None when there is no room."""
        loop, nothing = asyncio.get_running_loop(), Txn(self.name)
        if not self._peers.mine(self._reconciler.shard(key)):
            self._queue.forget(key)
            return nothing
        started_s = loop.time()
        outcome = self._outcome(view, key, now)
        self._seconds.observe(loop.time() - started_s)
        if outcome is None:
            return nothing
        for record in outcome.held_up_by:
            self._held_up.setdefault(record, {})[key] = None
        if outcome.txn is None or not (outcome.txn or outcome.events):
            self._queue.succeeded(key)
            if outcome.again_after_s is not None:
                self._queue.at(loop.time() + outcome.again_after_s, key)
            return nothing
        if outcome.acts and (why := self._records.closed()) is not None:
            self._unrecorded([key], why)
            return nothing
        try:
            # On the view as it was decided on, which moves on with this.
            audits = self._records.of(outcome.acts, view, outcome.txn) if outcome.acts else []
            room = self._records.bytes_of(audits) if audits else 0
            return outcome.txn if group.add(key, outcome.txn, outcome, audits, room) else None
        except TooBig as error:
            self._failed(key, error)
            return nothing

    def _after(self, txn: Txn) -> View:
        """Return the view with a decision laid over it, and lead the reconciler there."""
        if self._fork is None:
            self._fork = Fork(self._cache.view, txn)
        else:
            self._fork.extend(txn)
        if self._follower is not None:
            self._follower.follow(self._fork, [kinds.split(key) for key in (*txn.puts, *txn.deletes)])
        return self._fork

    def _follow(self, view: View) -> View:
        """Lead the reconciler to the newest view, also back from what was laid over it."""
        if self._follower is not None:
            self._follower.follow(view, list(self._unfollowed))
        self._unfollowed.clear()
        return view

    def _outcome(self, view: View, key: str, now: datetime) -> Outcome | None:
        """Ask the reconciler; None when it failed."""
        try:
            outcome = self._reconciler.reconcile(view, key, now)
            if outcome.txn is not None:
                check_writers(self._reconciler, outcome.txn)
                if harmed := touched(view, outcome.txn):
                    # The store would refuse it, and with it what others of its group decided.
                    say = f"{', '.join(harmed)} cannot be read"
                    return Outcome(None, say, again_after_s=UNREADABLE_AGAIN_S, held_up_by=harmed)
        except Exception as error:  # noqa: BLE001 - the boundary: a fault with one key must not stop the others
            self._failed(key, error)
            return None
        return outcome

    def _failed(self, key: str, error: Exception) -> None:
        """A fault with one key: told, counted, and tried again later."""
        _log.error("reconcile_failed", reconciler=self.name, key=key, error=str(error), exc_info=error)
        self._count_errors.inc()
        self._queue.back_off(asyncio.get_running_loop().time(), key)

    def _unrecorded(self, keys: Sequence[str], why: Refused) -> None:
        """What cannot be put on record is not done: it waits, longer each time."""
        _log.warning("not_on_record", reconciler=self.name, keys=keys[:5], error=str(why))
        for key in keys:
            self._queue.back_off(asyncio.get_running_loop().time(), key)

    def _send(self, group: Group, changes: Subscription) -> None:
        """Let the group fly; those decided from now on stand on it."""
        self._group = None
        self._flight = Flight(group, asyncio.create_task(self._commit(group), name=f"commit of {self.name}"))
        self._flight.landing.add_done_callback(lambda _: changes.stir())

    async def _commit(self, group: Group) -> int:
        """Commit a group; return its revision once the view shows it."""
        loop = asyncio.get_running_loop()
        if group.events:
            lease = await self._leases.lease(RECORDS * len(group.events))
            tell(group.txn, group.events, now=self._clock.now(), ids=self._ids, lease=lease)
        if self._cache.view.revision_of(kinds.CLUSTER, CLUSTER_ID) != group.fence:
            # A restore may have come and gone since it was decided: the store would not know (standing.py).
            raise Conflict([kinds.CLUSTER.key(CLUSTER_ID)])
        started_s = loop.time()
        if group.audits:
            # It may wait its turn: a restore may come and go meanwhile, too.
            group.txn.check(kinds.CLUSTER, CLUSTER_ID, group.fence)
            revision = await self._records.commit(group.txn, group.audits)
        else:
            revision = await self._store.commit(group.txn)
            self._cache.committed(group.txn, revision)
        self._commit_seconds.observe(loop.time() - started_s)
        await self._cache.wait_for(revision)
        return revision

    async def _land(self, flight: Flight) -> None:
        """See what became of a flight. When it failed, what was decided on top of it is thrown away first."""
        group, above = flight.group, self._group
        self._flight, self._fork = None, None
        self._unfollowed.update(dict.fromkeys(group.written()))
        if flight.landing.exception() is None:
            self._landed(group, flight.landing.result())
            if above is not None:
                above.stands_on(group.txn, flight.landing.result())
                self._fork = Fork(self._cache.view, above.txn)
            return
        if above is not None:
            self._group = None
            self._unfollowed.update(dict.fromkeys(above.written()))
            self._queue.put_back(above.looked())
        await self._failed_flight(group, flight.landing)

    def _landed(self, group: Group, revision: int) -> None:
        self._count_commits.inc()
        self._count_decisions.inc(len(group.keys))
        self._limit, self._conflicts, self._troubles = min(self._limit * 2, GROUP_MAX), 0, 0
        for key in group.keys:
            self._queue.succeeded(key)
        say = group.say if len(group.keys) == 1 else f"{group.say}; and {len(group.keys) - 1} more"
        _log.info("committed", reconciler=self.name, keys=group.keys[:5], say=say, revision=revision)
        now_s = self._committed_s = asyncio.get_running_loop().time()
        for key, after_s in group.again.items():
            self._queue.at(now_s + after_s, key)

    async def _failed_flight(self, group: Group, landing: asyncio.Task[int]) -> None:
        """Look at the keys of a group that was not committed again: at once, or after a while."""
        try:
            landing.result()
        except (Conflict, LeaseLost) as error:
            if isinstance(error, LeaseLost):
                self._leases.forget()
            else:
                self._count_conflicts.inc()
            await self._again(group)
        except Indeterminate as error:
            _log.warning("commit_in_doubt", reconciler=self.name, keys=group.keys, error=str(error))
            await self._again(group)
        except Unavailable as error:
            self._rest(group, error)
        except Refused as error:
            self._queue.put_back(group.trusting)
            self._unrecorded(group.keys, error)
        except ValueError as error:
            _log.exception("commit_refused", reconciler=self.name, keys=group.keys, error=str(error))
            self._count_errors.inc(len(group.keys))
            self._back_off(group)

    async def _again(self, group: Group) -> None:
        """Look at the same keys on a view as fresh as the store, in smaller groups."""
        self._limit = max(1, len(group.keys) // 2)
        self._conflicts += 1
        # Two controllers that conflict in step would go on doing so.
        await asyncio.sleep(min(CONFLICT_S * 2**self._conflicts, CONFLICT_S_MAX) * self._ids.jitter())
        try:
            await self._cache.wait_for(await self._store.revision())
        except Unavailable as error:
            self._rest(group, error)
            return
        self._queue.put_back(group.looked())

    def _rest(self, group: Group, error: Unavailable) -> None:
        """Send nothing for a while, longer each time in a row: these keys are not at fault, and others would fare alike."""
        self._troubles += 1
        self._rests_until_s = asyncio.get_running_loop().time() + backoff_s(self._troubles, self._ids, REST_S_MAX)
        _log.warning("store_unavailable", reconciler=self.name, keys=len(group.keys), error=str(error))
        for key in group.looked():
            self._queue.at(self._rests_until_s, key)

    def _back_off(self, group: Group) -> None:
        now_s = asyncio.get_running_loop().time()
        self._queue.put_back(group.trusting)
        for key in group.keys:
            self._queue.back_off(now_s, key)
