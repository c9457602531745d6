"""The store in one process: the semantics of etcd without etcd. For tests and the simulation.

    backend = MemoryBackend()                     # what the members of a cluster hold together
    a, b = MemoryStore(backend), MemoryStore(backend)   # one client per controller

All history is kept until compacted, so old revisions can be read and watched from. Leases run on the event loop's time, which
may be virtual; a client keeps its leases alive until it is closed, then they run out. Each operation lets others run once
before it acts, as a network would. Where etcd has a choice (order within a batch, how soon an expired key vanishes) this is
one instance of it.
"""

from __future__ import annotations

import asyncio
import contextvars
import math
from bisect import bisect_left, bisect_right, insort
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import Final

from cairn.controller.store.base import Batch, Change, Compacted, Conflict, Item, LeaseLost, MemberStatus, Put, Txn, Unavailable

# etcd rounds up to whole seconds too.
TTL_MIN_S: Final = 1


@dataclass(slots=True)
class _Grant:
    """A lease as the backend knows it."""

    ttl_s: int
    timer: asyncio.TimerHandle
    keys: set[str] = field(default_factory=set)


class MemoryBackend:
    """The data: every version of every key. `revision` is the newest, `compacted` the oldest still readable."""

    def __init__(self) -> None:
        self.revision = 1
        self.compacted = 0
        self._keys: list[str] = []
        # Key -> its versions, oldest first, as (revision, item or None where deleted).
        self._versions: dict[str, list[tuple[int, Item | None]]] = {}
        self._batches: list[Batch] = []
        self._grants: dict[int, _Grant] = {}
        self._last_lease = 0
        # In the order they came, so that they are woken in an order that can be repeated.
        self._watchers: dict[asyncio.Event, None] = {}
        # Timers are the backend's own: they outlive the client that asked for a lease.
        self._context = contextvars.copy_context()

    # --- keys ----------------------------------------------------------------------------------------------------------

    def find(self, key: str, revision: int = 0) -> Item | None:
        """Return a key as of a revision (0: now)."""
        versions = self._versions.get(key)
        if not versions:
            return None
        if not revision:
            return versions[-1][1]
        at = bisect_right(versions, revision, key=lambda version: version[0])
        return versions[at - 1][1] if at else None

    def scan(self, first: str, last: str, limit: int, revision: int) -> list[Item]:
        """Return items with first <= key < last (empty: to the end), sorted. Raises Compacted, ValueError."""
        if revision and revision < self.compacted:
            raise Compacted(self.compacted)
        if revision > self.revision:
            raise ValueError(f"revision {revision} is in the future: the newest is {self.revision}")
        until = bisect_left(self._keys, last) if last else len(self._keys)
        found = []
        for index in range(bisect_left(self._keys, first), until):
            item = self.find(self._keys[index], revision)
            if item is not None:
                found.append(item)
                if len(found) == limit:
                    break
        return found

    def apply(self, txn: Txn) -> int:
        """Do all of a transaction or nothing. Raises Conflict, LeaseLost."""
        moved = [key for key, revision in txn.checks.items() if self._mod_revision(key) != revision]
        if moved:
            raise Conflict(moved)
        for key, put in txn.puts.items():
            if put.lease and put.lease not in self._grants:
                raise LeaseLost(f"{key} is put under lease {put.lease:x}, which is no more")
        return self._write(txn.puts, txn.deletes)

    def _mod_revision(self, key: str) -> int:
        item = self.find(key)
        return 0 if item is None else item.mod_revision

    def _write(self, puts: dict[str, Put], deletes: set[str]) -> int:
        gone = sorted(key for key in deletes if self.find(key) is not None)
        if not puts and not gone:
            return self.revision
        self.revision += 1
        changes = [self._store(key, None) for key in gone]
        changes += [self._store(key, put) for key, put in puts.items()]
        self._batches.append(Batch(self.revision, tuple(changes)))
        for watcher in self._watchers:
            watcher.set()
        return self.revision

    def _store(self, key: str, put: Put | None) -> Change:
        before = self.find(key)
        if before is not None and before.lease in self._grants:
            self._grants[before.lease].keys.discard(key)
        item = None
        if put is not None:
            created = self.revision if before is None else before.create_revision
            item = Item(key, put.value, self.revision, created, put.lease)
            if put.lease:
                self._grants[put.lease].keys.add(key)
        if key not in self._versions:
            insort(self._keys, key)
            self._versions[key] = []
        self._versions[key].append((self.revision, item))
        return Change(key, None) if item is None else Change(key, item.value, item.create_revision, item.lease)

    def compact(self, revision: int) -> None:
        """Forget what a reader at `revision` or later does not need. Raises ValueError."""
        if revision > self.revision:
            raise ValueError(f"revision {revision} is in the future: the newest is {self.revision}")
        if revision <= self.compacted:
            return
        self.compacted = revision
        self._batches = self._batches[bisect_right(self._batches, revision, key=lambda batch: batch.revision) :]
        for key, versions in list(self._versions.items()):
            at = bisect_right(versions, revision, key=lambda version: version[0])
            keep = at - 1 if at and versions[at - 1][1] is not None else at
            if keep:
                del versions[:keep]
            if not versions:
                del self._versions[key]
                del self._keys[bisect_left(self._keys, key)]

    # --- watches -------------------------------------------------------------------------------------------------------

    def since(self, revision: int, limit: int) -> list[Batch]:
        """Return the first batches after a revision. Raises Compacted."""
        if revision < self.compacted:
            raise Compacted(self.compacted)
        first = bisect_right(self._batches, revision, key=lambda batch: batch.revision)
        return self._batches[first : first + limit]

    def add_watcher(self, wake: asyncio.Event) -> None:
        """Set an event whenever something was written."""
        self._watchers[wake] = None

    def remove_watcher(self, wake: asyncio.Event) -> None:
        """Stop setting it."""
        self._watchers.pop(wake, None)

    # --- leases --------------------------------------------------------------------------------------------------------

    def grant(self, ttl_s: float) -> tuple[int, int]:
        """Make a lease; return its id and its time to live in seconds."""
        whole_s = max(TTL_MIN_S, math.ceil(ttl_s))
        self._last_lease += 1
        self._grants[self._last_lease] = _Grant(whole_s, self._timer(self._last_lease, whole_s))
        return self._last_lease, whole_s

    def renew(self, lease: int) -> bool:
        """Start its time anew; False when it is no more."""
        grant = self._grants.get(lease)
        if grant is None:
            return False
        grant.timer.cancel()
        grant.timer = self._timer(lease, grant.ttl_s)
        return True

    def revoke(self, lease: int) -> None:
        """End a lease: its keys vanish, in one revision."""
        grant = self._grants.get(lease)
        if grant is None:
            return
        grant.timer.cancel()
        self._write({}, set(grant.keys))
        del self._grants[lease]

    def _timer(self, lease: int, ttl_s: int) -> asyncio.TimerHandle:
        return asyncio.get_running_loop().call_later(ttl_s, self.revoke, lease, context=self._context)


class MemoryLease:
    """A lease of one client, kept alive in the background."""

    def __init__(self, backend: MemoryBackend, ttl_s: float) -> None:
        self._backend = backend
        self._id, self._ttl_s = backend.grant(ttl_s)
        self._lost = asyncio.Event()
        self._task = asyncio.get_running_loop().create_task(self._keep())

    @property
    def id(self) -> int:
        """Lease id for Put."""
        return self._id

    @property
    def lost(self) -> bool:
        """True once it is known to have run out."""
        return self._lost.is_set()

    @property
    def kept(self) -> bool:
        """Whether it is still being kept alive."""
        return not self._task.done()

    async def wait_lost(self) -> None:
        """Return when it is lost."""
        await self._lost.wait()

    async def close(self, *, revoke: bool = True) -> None:
        """Stop keeping it alive; revoke: its keys vanish now."""
        self._task.cancel()
        await asyncio.wait([self._task])
        if revoke:
            self._backend.revoke(self._id)

    async def _keep(self) -> None:
        while True:
            await asyncio.sleep(self._ttl_s / 3)
            if not self._backend.renew(self._id):
                self._lost.set()
                return


class MemoryStore:
    """One client of a MemoryBackend. Implements Store and Membership."""

    def __init__(self, backend: MemoryBackend | None = None) -> None:
        self.backend = backend or MemoryBackend()
        self._leases: list[MemoryLease] = []
        self._watches: dict[asyncio.Event, None] = {}
        self._closed = False

    async def read(
        self, prefix: str, *, start: str = "", end: str = "", limit: int = 0, revision: int = 0
    ) -> tuple[list[Item], int]:
        """Return (items sorted by key, revision of the picture)."""
        await self._reach()
        limits = [bound for bound in (end, prefix_end(prefix)) if bound]
        items = self.backend.scan(max(prefix, start), min(limits, default=""), limit, revision)
        return items, revision or self.backend.revision

    async def revision(self) -> int:
        """Return the newest revision."""
        await self._reach()
        return self.backend.revision

    async def watch(self, prefix: str, after: int) -> AsyncGenerator[Batch, None]:
        """Yield every batch after that revision."""
        await self._reach()
        wake = asyncio.Event()
        self._watches[wake] = None
        self.backend.add_watcher(wake)
        try:
            while True:
                wake.clear()
                for batch in self.backend.since(after, limit=100):
                    after = batch.revision
                    wake.set()
                    changes = tuple(change for change in batch.changes if change.key.startswith(prefix))
                    if changes:
                        yield Batch(batch.revision, changes)
                await wake.wait()
                if self._closed:
                    raise Unavailable("this client is closed")
        finally:
            self._watches.pop(wake, None)
            self.backend.remove_watcher(wake)

    async def commit(self, txn: Txn) -> int:
        """Apply and return the new revision."""
        txn.check_limits()
        await self._reach()
        return self.backend.apply(txn)

    async def lease(self, ttl_s: float) -> MemoryLease:
        """Return a lease that is kept alive."""
        await self._reach()
        lease = MemoryLease(self.backend, ttl_s)
        self._leases = [each for each in self._leases if each.kept] + [lease]
        return lease

    async def compact(self, revision: int) -> None:
        """Forget history before that revision."""
        await self._reach()
        self.backend.compact(revision)

    async def members(self) -> list[MemberStatus]:
        """Return the one member there is."""
        return [MemberStatus("memory", healthy=True, leader=True, version="memory")]

    async def close(self) -> None:
        """Stop everything; leases are left to run out."""
        self._closed = True
        for wake in self._watches:
            wake.set()
        for lease in self._leases:
            await lease.close(revoke=False)

    async def _reach(self) -> None:
        """Let others run, as a request over a network would. Raises Unavailable."""
        await asyncio.sleep(0)
        if self._closed:
            raise Unavailable("this client is closed")


def prefix_end(prefix: str) -> str:
    """Return the first key after all keys beginning with prefix; empty: there is none."""
    head = prefix.rstrip("\U0010ffff")
    return head[:-1] + chr(ord(head[-1]) + 1) if head else ""
