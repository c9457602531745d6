"""The store: revisions, transactions, watches, leases. The nouns, and one example walked.

A *key* is a path, its *value* bytes. Every commit raises the store's *revision* by one; each key remembers the revision that
last changed it (*mod revision*, 0 when absent). A *Txn* names the mod revisions it was decided on and what it writes; the
store applies all of it or refuses with Conflict. A *watch* delivers committed batches in order, one per revision. A *lease*
is a set of keys that vanish unless it is kept alive.

    items, revision = await store.read("/cairn/v1/vm/")          # one consistent picture
    txn = Txn("placement").check(NODE_CLAIMS, node, 17).put(NODE_CLAIMS, node, claims).create(PLACEMENT, vm, placement)
    revision = await store.commit(txn)                             # Conflict when the claims moved since 17: decide again
    async for batch in store.watch("/cairn/v1/", after=revision):  # resumes by itself; Compacted: re-read, watch again
        ...

Drivers: etcd.py (the real one) and memory.py (the same semantics in one process; also used by the simulation). Both pass
tests/conformance/test_store.py. Rejected: read-modify-write under locks (a dead holder blocks everyone), master election
(correctness would depend on clocks).
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final, Generic, Protocol, Self, TypeAlias, TypeVar

from cairn.proto.kinds import AnyKind, Kind, split
from google.protobuf.message import Message

M = TypeVar("M", bound=Message)
T = TypeVar("T")
# What changed: a record, by kind and id. It may be gone.
Changed: TypeAlias = tuple[AnyKind, str]
# etcd's defaults for one transaction (--max-txn-ops, and a margin below --max-request-bytes, which counts framing too).
STORE_OPERATIONS_MAX: Final = 128
# What may be decided in one: a check of the cluster's record is added to each (controller/standing.py).
OPERATIONS_MAX: Final = STORE_OPERATIONS_MAX - 1
TXN_BYTES_MAX: Final = 1_400_000
# What a value, a key or a compared key takes besides its own bytes.
_FRAME_BYTES: Final = 24


class StoreError(Exception):
    """Base of what a store raises."""


class Conflict(StoreError):
    """A checked key moved; nothing was written. Permanent for this Txn: decide again on fresh data."""

    def __init__(self, keys: Sequence[str] = ()) -> None:
        super().__init__("moved: " + ", ".join(keys))
        self.keys = tuple(keys)


class Indeterminate(StoreError):
    """The outcome of a commit is unknown: it may have happened. Re-read before retrying."""


class Compacted(StoreError):
    """The revision asked for is gone. List again and watch from there. `revision` is the oldest still kept."""

    def __init__(self, revision: int) -> None:
        super().__init__(f"compacted at {revision}")
        self.revision = revision


class Unavailable(StoreError):
    """No member answered in time and nothing was written. Retryable.

    Its kinds tell of members that answer and refuse: the same to whoever tries again, another sentence to people.
    """

    what: ClassVar[str] = "the store does not answer"

    def __str__(self) -> str:
        """What is wrong, by name."""
        return ": ".join(filter(None, (self.what, super().__str__())))


class Full(Unavailable):
    """The members' files have reached their quota (etcd's alarm NOSPACE): nothing is written until somebody makes room."""

    what = "the store is full"


class Overloaded(Unavailable):
    """The members take no more requests for now."""

    what = "the store is asked for more than it can do"


class Forbidden(Unavailable):
    """The members do not accept who asks."""

    what = "the store does not accept this controller"


class Corrupt(Unavailable):
    """The members have found that they do not hold the same (etcd's alarm CORRUPT): they answer nothing."""

    what = "the store is corrupt"


class Halted(Unavailable):
    """Nobody may decide anything now, whatever the store does."""

    what = ""


class LeaseLost(StoreError):
    """The lease ran out or was revoked."""


class TooBig(ValueError):
    """A transaction has more operations or bytes than one commit takes; nothing was written."""


@dataclass(frozen=True, slots=True)
class Item:
    """One key as read."""

    key: str
    value: bytes
    mod_revision: int
    create_revision: int
    lease: int = 0


@dataclass(frozen=True, slots=True)
class Change:
    """One key's change in a watch batch; value None: deleted."""

    key: str
    value: bytes | None
    create_revision: int = 0
    lease: int = 0


@dataclass(frozen=True, slots=True)
class Batch:
    """All changes of one revision; empty changes: a progress mark (everything up to revision was delivered)."""

    revision: int
    changes: tuple[Change, ...] = ()


@dataclass(frozen=True, slots=True)
class Put:
    """A value to write; lease 0: kept until deleted."""

    value: bytes
    lease: int = 0


@dataclass(slots=True)
class Txn:
    """What to check, put and delete, atomically; built by the component `writer`, which must be allowed each kind it touches.

    Methods return self, so that a transaction reads as one expression. At most 127 operations go into one commit (etcd's
    default limit, less one): see `size`, `size_bytes`, and Gathering.
    """

    writer: str
    checks: dict[str, int] = field(default_factory=dict)
    puts: dict[str, Put] = field(default_factory=dict)
    deletes: set[str] = field(default_factory=set)
    # Key -> component that wrote it; merged transactions have several.
    writers: dict[str, str] = field(default_factory=dict)

    def check(self, kind: Kind[M], id: str, revision: int) -> Self:
        """Require the record's mod revision (0: absent)."""
        self.checks[kind.key(id)] = revision
        return self

    def put(self, kind: Kind[M], id: str, message: M, *, lease: int = 0) -> Self:
        """Write a record. PermissionError when `writer` is not its sole writer."""
        if kind.writer not in (self.writer, "*"):
            raise PermissionError(f"{self.writer} may not write {kind.name}, only {kind.writer} may")
        key = kind.key(id)
        self.puts[key] = Put(message.SerializeToString(deterministic=True), lease)
        self.deletes.discard(key)
        self.writers[key] = self.writer
        return self

    def create(self, kind: Kind[M], id: str, message: M, *, lease: int = 0) -> Self:
        """Write a record that must not exist."""
        return self.check(kind, id, 0).put(kind, id, message, lease=lease)

    def delete(self, kind: Kind[M], id: str) -> Self:
        """Remove a record; no error when it is absent (check it to be sure)."""
        if kind.writer not in (self.writer, "*") and self.writer not in kind.deleters:
            raise PermissionError(f"{self.writer} may not delete {kind.name}")
        key = kind.key(id)
        self.puts.pop(key, None)
        self.deletes.add(key)
        self.writers[key] = self.writer
        return self

    def merge(self, other: Txn) -> Self:
        """Add a transaction decided on the state this one leaves: its checks of keys written here are dropped."""
        for key, revision in other.checks.items():
            if key not in self.puts and key not in self.deletes:
                self.checks.setdefault(key, revision)
        for key, put in other.puts.items():
            self.puts[key] = put
            self.deletes.discard(key)
        for key in other.deletes:
            self.puts.pop(key, None)
            self.deletes.add(key)
        self.writers |= other.writers
        return self

    @property
    def size(self) -> int:
        """Operations in it, as etcd counts: the larger of checks and writes."""
        return max(len(self.checks), len(self.puts) + len(self.deletes))

    @property
    def size_bytes(self) -> int:
        """Bytes it takes in one commit: of each write its key and value, of each check its key twice (it is read back)."""
        written = sum(len(key) + len(put.value) + _FRAME_BYTES for key, put in self.puts.items())
        removed = sum(len(key) + _FRAME_BYTES for key in self.deletes)
        return written + removed + 2 * sum(len(key) + _FRAME_BYTES for key in self.checks)

    def check_limits(self, operations_max: int = STORE_OPERATIONS_MAX) -> None:
        """Raise TooBig when it is too big for one commit, ValueError when it puts and deletes the same key."""
        if self.size > operations_max:
            raise TooBig(f"{self.size} operations in one transaction; at most {operations_max} fit")
        if (size_bytes := self.size_bytes) > TXN_BYTES_MAX:
            raise TooBig(f"{size_bytes} bytes in one transaction; at most {TXN_BYTES_MAX} fit")
        if both := self.puts.keys() & self.deletes:
            raise ValueError(f"both put and deleted: {', '.join(sorted(both))}")

    def __bool__(self) -> bool:
        return bool(self.puts or self.deletes)


@dataclass(slots=True)
class Gathering:
    """A transaction put together from parts, as many as one commit takes. Each part is taken whole, or not at all.

        gathering = Gathering(Txn("placement"))
        for part in parts:
            if not gathering.add(part): break        # for the next commit
        await store.commit(gathering.txn)

    Bytes are counted as if no two parts wrote the same key: what was taken always fits (Txn.check_limits).
    """

    txn: Txn
    # Records that will be put, and checked, besides, and the bytes of all there is.
    puts: int = 0
    size_bytes: int = 0
    checks: int = 0

    def __post_init__(self) -> None:
        self.size_bytes += self.txn.size_bytes

    def add(self, part: Txn, *, puts: int = 0, put_bytes: int = 0, checks: int = 0) -> bool:
        """Merge a part, with room for so many records to be put later, of so many bytes with keys (also those of `checks`).

        False: there is no room.
        """
        size_bytes = self.size_bytes + part.size_bytes + put_bytes + (puts + checks) * _FRAME_BYTES
        if not self._fits(part, puts, checks, size_bytes):
            return False
        self.txn.merge(part)
        self.puts += puts
        self.checks += checks
        self.size_bytes = size_bytes
        return True

    def _fits(self, part: Txn, puts: int, more_checks: int, size_bytes: int) -> bool:
        # Sets are not united: this is asked for each part, of a whole that is large.
        had, puts_had, deletes_had = self.txn.checks, self.txn.puts, self.txn.deletes
        checks = [key for key in part.checks if key not in had and key not in puts_had and key not in deletes_had]
        writes = [key for key in (*part.puts, *part.deletes) if key not in puts_had and key not in deletes_had]
        if len(had) + len(checks) + self.checks + more_checks > OPERATIONS_MAX or size_bytes > TXN_BYTES_MAX:
            return False
        return len(puts_had) + len(deletes_had) + len(writes) + self.puts + puts <= OPERATIONS_MAX


class Lease(Protocol):
    """Keys put with its id vanish when it ends. Kept alive in the background until closed."""

    @property
    def id(self) -> int:
        """Lease id for Put."""
        ...

    @property
    def lost(self) -> bool:
        """True once it is known to have run out."""
        ...

    async def wait_lost(self) -> None:
        """Return when it is lost; for the holder to start over."""
        ...

    async def close(self, *, revoke: bool = True) -> None:
        """Stop keeping it alive; revoke: its keys vanish now."""
        ...


class Store(Protocol):
    """A revisioned key-value store."""

    async def read(
        self, prefix: str, *, start: str = "", end: str = "", limit: int = 0, revision: int = 0
    ) -> tuple[list[Item], int]:
        """Return (items sorted by key, revision of the picture).

        prefix: all keys beginning so; start: from this key on (inclusive) within the prefix; end: up to this key
        (exclusive); limit 0: all; revision 0: the newest, linearizable. Raises Compacted, Unavailable; ValueError for a
        revision in the future.
        """
        ...

    async def revision(self) -> int:
        """Return the newest revision, linearizable. Raises Unavailable."""
        ...

    def watch(self, prefix: str, after: int) -> AsyncGenerator[Batch, None]:
        """Yield every batch after that revision, in order, exactly once, surviving lost members. Raises Compacted.

        A batch holds all changes of its revision below the prefix. Ends only with an exception; close the iterator to stop.
        """
        ...

    async def commit(self, txn: Txn) -> int:
        """Apply and return the new revision; the current one when it changes nothing.

        Raises Conflict, Indeterminate, Unavailable; LeaseLost when it puts under a lease that is no more; TooBig (a ValueError)
        for a transaction that is too big (Txn.check_limits). After all but Indeterminate nothing was written.
        """
        ...

    async def lease(self, ttl_s: float) -> Lease:
        """Return a lease that is kept alive. Raises Unavailable."""
        ...

    async def compact(self, revision: int) -> None:
        """Forget history before that revision; nothing when it is forgotten already. ValueError for one in the future."""
        ...

    async def close(self) -> None:
        """Stop everything; leases are left to run out."""
        ...


@dataclass(frozen=True, slots=True)
class MemberStatus:
    """One member of the store's cluster; what an unhealthy one could not tell is empty."""

    endpoint: str
    # It answers, knows a leader and has raised no alarm.
    healthy: bool
    leader: bool = False
    # Of its file; how much of that is in use (the rest comes back by defragmenting); what it may grow to, 0: it does not tell.
    size_bytes: int = 0
    used_bytes: int = 0
    quota_bytes: int = 0
    version: str = ""
    # It only follows: it has no vote and serves no requests.
    learner: bool = False
    # Alarms it has raised: NOSPACE, CORRUPT.
    alarms: tuple[str, ...] = ()
    # What is wrong with it, as a phrase; empty: nothing.
    say: str = ""


class Membership(Protocol):
    """What a store made of members can tell besides."""

    async def members(self) -> list[MemberStatus]:
        """Ask every member for its status, each within a short deadline; never raises for a member that is down."""
        ...


@dataclass(frozen=True, slots=True)
class Record(Generic[M]):
    """A decoded record with its revisions."""

    message: M
    mod_revision: int
    create_revision: int


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A record whose bytes the store has and nobody can decode."""

    # Mod revision of those bytes.
    revision: int
    error: str
    # An older value is shown; else none, as if there were no record.
    kept: bool


class View(Protocol):
    """An immutable, consistent picture of all records at `revision`, with indexes. What every decision is a function of.

    Messages returned are shared: never change one, copy it first. Index names are in controller/store/indexes.py.

    Of a record that cannot be decoded the last value that could is shown, with its revision: a transaction that checks it is
    refused by the store. One that was never readable looks absent; `unreadable` tells the two apart.
    """

    @property
    def revision(self) -> int:
        """Store revision of the picture."""
        ...

    def get(self, kind: Kind[M], id: str) -> M | None:
        """Return the record or None."""
        ...

    def record(self, kind: Kind[M], id: str) -> Record[M] | None:
        """Return the record with its revisions, or None."""
        ...

    def revision_of(self, kind: Kind[M], id: str) -> int:
        """Return its mod revision, 0 when absent: what Txn.check wants."""
        ...

    def ids(self, kind: Kind[M]) -> Iterable[str]:
        """Return all ids of a kind, in no order."""
        ...

    def all(self, kind: Kind[M]) -> Iterable[M]:
        """Return all records of a kind, in no order."""
        ...

    def by(self, kind: Kind[M], index: str, value: str) -> list[str]:
        """Return the ids whose index has that value, sorted."""
        ...

    def count(self, kind: Kind[M]) -> int:
        """Return how many records of a kind there are."""
        ...

    def count_by(self, kind: Kind[M], index: str, value: str) -> int:
        """Return how many ids have that value in an index, without naming them."""
        ...

    def values(self, kind: Kind[M], index: str) -> Iterable[str]:
        """Return the values there are in an index, in no order; maybe some that no record has any more. O(values)."""
        ...

    def amounts(self, project: str) -> dict[str, int]:
        """Return what a project has, by the names of quotas (sums.py)."""
        ...

    def pinned(self, kind: Kind[M], ids: Iterable[str]) -> Iterator[Record[M]]:
        """Yield those of these records that are there, as they all are at the call, also when the picture moves on."""
        ...

    def unreadable(self, kind: Kind[M]) -> Mapping[str, Unreadable]:
        """Return the records of a kind that cannot be decoded, by id."""
        ...

    @property
    def harmed(self) -> bool:
        """Whether there is any record that cannot be decoded."""
        ...

    def recall(self, name: str, about: Sequence[Kind[Any]], make: Callable[[], T]) -> T:
        """Return make(), a pure function of records of those kinds: remembered by its name until one of them changes."""
        ...

    def fork(self, txn: Txn) -> View:
        """Return a picture as if txn had been committed (revision + 1); this one stays as it is. O(size of txn)."""
        ...


def kind_of(key: str) -> Kind[Message]:
    """Return the kind of a key."""
    return split(key)[0]
