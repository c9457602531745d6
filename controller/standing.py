"""Whether this controller may decide and serve, and the fence that keeps every commit within one epoch of the store.

    store = FencedStore(etcd, cache, standing)       # what everything that decides commits through
    standing.why_not()                               # Refused while nobody may decide; None: go on

Each commit that changes what is counted as usage puts one record more, with the time: the store's history then has a time for
each change, whoever reads it how late (controller/metering.py). Nobody checks that record, so nobody waits for another by it,
and it is always the same one, so there is one of it.

Two things stop a controller. A *restore under way* is written in the cluster's own record: whoever restores changes that record
first and last, every other commit checks it, so what was decided on records of before can never reach those of after. And a
store that *went back*: its newest revision is older than one this controller has seen, so somebody put old data in its place
without `cairn cluster restore`. Nothing here is true any more then; the controller says so, decides nothing, and ends once the
store has a higher epoch, to be started anew without a memory.

Nodes notice the same by themselves (sync.py): what they were told last is newer than anything the store has. One node's word
stops nobody else, since it could lie; it is told here, for `cairn cluster status`.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from dataclasses import replace
from typing import Final, Protocol, runtime_checkable

from cairn.controller.model.restored import CLUSTER_ID, is_under_way
from cairn.controller.store.base import (
    OPERATIONS_MAX,
    Batch,
    Halted,
    Item,
    Lease,
    Membership,
    MemberStatus,
    Put,
    Store,
    Txn,
    Unavailable,
    View,
)
from cairn.controller.store.usage import is_counted
from cairn.proto import kinds
from cairn.proto.errors import BadState, Refused, TryAgain
from cairn.proto.log import logger
from cairn.proto.seams import Clock, timestamp
from cairn.proto.v1.agent_pb2 import Version
from cairn.proto.v1.cluster_pb2 import Cluster
from cairn.proto.v1.usage_pb2 import UsageClock

_log = logger("standing")
CLUSTER_KEY: Final = kinds.CLUSTER.key(CLUSTER_ID)
USAGE_CLOCK_KEY: Final = kinds.USAGE_CLOCK.key("self")
UNDER_WAY: Final = "the cluster is being restored from a backup; nothing is served until `cairn cluster restore` is done"
_REMEDY: Final = "`cairn cluster restore FILE` with the newest backup makes them believe the store again"


class StoreReplaced(Exception):
    """The store went back and has a new epoch since: this process's picture of it is worthless, and it must end."""


@runtime_checkable
class Membered(Membership, Protocol):
    """A store that can tell about its members, asked for at run time."""


class Pictures(Protocol):
    """Where the newest picture is: a Cache."""

    @property
    def view(self) -> View:
        """The newest picture."""
        ...


class Standing:
    """See the module."""

    def __init__(self, cache: Pictures) -> None:
        self._cache = cache
        # (revision seen, revision found) of a store that went back.
        self.went_back: tuple[int, int] | None = None
        # Node id -> what it holds that the store does not know.
        self.ahead: dict[str, Version] = {}
        # Told of each write the store refuses, by the kind of refusal: for metrics.
        self.refused: Callable[[str], object] = lambda _why: None

    def cluster(self) -> Cluster:
        """Return the cluster's record; an empty one before the first controller has written it."""
        return self._cache.view.get(kinds.CLUSTER, CLUSTER_ID) or Cluster()

    def why_not(self) -> Refused | None:
        """Return why nobody may decide or serve now, None when all is well."""
        if self.went_back is not None:
            return BadState("cluster", "", back_say(*self.went_back))
        if is_under_way(self._cache.view):
            return TryAgain(UNDER_WAY)
        return None

    def found(self, seen: int, revision: int) -> None:
        """Take note of the store's newest revision; seen: one it had before."""
        if revision < seen and self.went_back is None:
            self.went_back = (seen, revision)
            _log.error("store_went_back", seen=seen, revision=revision, remedy=_REMEDY)


def back_say(seen: int, revision: int) -> str:
    """Return what is wrong with a store that went back, and what to do."""
    return (
        f"the store went back from revision {seen} to {revision} without a restore: nothing is decided on it; "
        f"nodes and controllers know a later state, and {_REMEDY}"
    )


class FencedStore:
    """The store as everybody sees it who decides something. Implements Store and Membership."""

    def __init__(self, store: Store, cache: Pictures, standing: Standing, clock: Clock) -> None:
        self._store, self._cache, self._standing, self._clock = store, cache, standing, clock

    async def read(
        self, prefix: str, *, start: str = "", end: str = "", limit: int = 0, revision: int = 0
    ) -> tuple[list[Item], int]:
        """Return (items sorted by key, revision of the picture)."""
        return await self._store.read(prefix, start=start, end=end, limit=limit, revision=revision)

    async def revision(self) -> int:
        """Return the newest revision, and notice when it is older than what was seen before."""
        seen = self._cache.view.revision
        revision = await self._store.revision()
        self._standing.found(seen, revision)
        return revision

    def watch(self, prefix: str, after: int) -> AsyncGenerator[Batch, None]:
        """Yield every batch after that revision."""
        return self._store.watch(prefix, after)

    async def commit(self, txn: Txn) -> int:
        """Apply, provided that the cluster's record is as the view shows it: Conflict when a restore came between.

        Halted while nobody may decide; ValueError beyond OPERATIONS_MAX.
        """
        why = self._standing.why_not()
        if why is not None:
            raise Halted(why.say)
        txn.check_limits(OPERATIONS_MAX)
        revision = self._cache.view.revision_of(kinds.CLUSTER, CLUSTER_ID)
        # Who waited since he decided checks it himself, as it was then.
        fenced = replace(txn, checks={CLUSTER_KEY: revision, **txn.checks})
        if any(is_counted(key) for key in txn.writers):
            self._stamp(fenced)
        try:
            return await self._store.commit(fenced)
        except Unavailable as error:
            self._standing.refused(type(error).__name__.lower())
            raise

    def _stamp(self, txn: Txn) -> None:
        """Have a transaction of our own say when it was."""
        clock = UsageClock(time=timestamp(self._clock.now()))
        txn.puts = {**txn.puts, USAGE_CLOCK_KEY: Put(clock.SerializeToString(deterministic=True))}
        txn.writers = {**txn.writers, USAGE_CLOCK_KEY: kinds.USAGE_CLOCK.writer}

    async def lease(self, ttl_s: float) -> Lease:
        """Return a lease that is kept alive."""
        try:
            return await self._store.lease(ttl_s)
        except Unavailable as error:
            self._standing.refused(type(error).__name__.lower())
            raise

    async def compact(self, revision: int) -> None:
        """Forget history before that revision."""
        await self._store.compact(revision)

    async def members(self) -> list[MemberStatus]:
        """Ask every member for its status; none when the store is not made of members."""
        return await self._store.members() if isinstance(self._store, Membered) else []

    async def close(self) -> None:
        """Stop everything; leases are left to run out."""
        await self._store.close()
