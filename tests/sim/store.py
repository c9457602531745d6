"""The store of one simulated controller: a client of a shared MemoryBackend, with the faults of a real cluster.

    backend = SimBackend()                                   # what the members hold together
    backend.observers.append(checkers.observe)               # told of every batch as it is committed
    store = SimStore(backend, random.Random(seed), StoreFaults(lost_answer=0.05, delay_s=(0, 0.02)), name="c1")
    store.cut(); store.mend()                                # faults can also be switched by hand
    store.expire_leases()

Probabilities are per call (per renewal for leases, per wake-up for watches) and drawn from the `Random` given, delays from
uniform ranges. With all knobs at their defaults it draws nothing and behaves as MemoryStore does; the store's conformance suite
runs on it. Time is the event loop's, which may be virtual. What a client may never see stays impossible whatever the knobs say:
an acknowledged commit that is lost or applied twice, a batch skipped, repeated or out of order without Compacted.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, field

from cairn.controller.store.base import (
    Batch,
    Conflict,
    Full,
    Indeterminate,
    Item,
    LeaseLost,
    MemberStatus,
    Put,
    Txn,
    Unavailable,
)
from cairn.controller.store.memory import MemoryBackend, prefix_end

from tests.sim.checkers.base import Violation
from tests.sim.cost import BYTE_NS, METER
from tests.sim.loop import SimLoop

Range = tuple[float, float]
RENEW_SHARE = 1 / 3
RENEW_RETRY_S = 0.5
# etcd's --max-txn-ops and --max-request-bytes.
OPERATIONS_MAX = 128
REQUEST_BYTES_MAX = 3 << 19


class SimBackend(MemoryBackend):
    """The data, telling of every batch and of the transaction that made it (None: a lease ran out)."""

    def __init__(self) -> None:
        super().__init__()
        self.observers: list[Callable[[Batch, Txn | None], None]] = []
        # Told when all leases begin anew.
        self.elected: Callable[[], None] = lambda: None
        self._applying: Txn | None = None
        self._leader_s = 0.0
        # The members' files have reached their quota: no writes, no new leases; all else goes on.
        self.full = False

    def apply(self, txn: Txn) -> int:
        """Do all of a transaction or nothing, then tell. What etcd would refuse for its size is a violation."""
        _refuse_too_large(txn)
        self._applying = txn
        try:
            return super().apply(txn)
        finally:
            self._applying = None

    @property
    def leaderless_s(self) -> float:
        """For how long nothing that needs a quorum is answered."""
        return max(0.0, self._leader_s - asyncio.get_running_loop().time())

    def elect(self, for_s: float) -> None:
        """The leader is lost, and another one found so much later: it gives every lease its whole time again."""
        loop = asyncio.get_running_loop()
        self._leader_s = loop.time() + for_s
        loop.call_at(self._leader_s, self._extend, context=self._context)

    def _extend(self) -> None:
        for lease in list(self._grants):
            self.renew(lease)
        self.elected()

    def load(self, puts: dict[str, Put]) -> None:
        """Fill it from a dump, untold."""
        super()._write(puts, set())

    def of(self, prefix: str) -> list[Item]:
        """Return all keys that begin so."""
        return self.scan(prefix, prefix_end(prefix), 0, 0)

    def spoil(self, key: str, put: Put | None) -> None:
        """Write or remove a key behind the back of whoever is told of commits; watches see it."""
        observers, self.observers = self.observers, []
        super()._write({key: put} if put is not None else {}, set() if put is not None else {key})
        self.observers = observers

    def _write(self, puts: dict[str, Put], deletes: set[str]) -> int:
        before = self.revision
        revision = super()._write(puts, deletes)
        if revision != before:
            for observe in self.observers:
                observe(self._batches[-1], self._applying)
        return revision


@dataclass
class StoreFaults:
    """Knobs. Change them while it runs; `StoreFaults()` is a store without faults."""

    # Before a call reaches the store, and before its answer is back.
    delay_s: Range = (0.0, 0.0)
    # Besides, for reads; and for everything that needs a quorum (commits and linearizable reads): a slow disk or leader.
    slow_read_s: Range = (0.0, 0.0)
    slow_quorum_s: Range = (0.0, 0.0)
    # Between a commit and its delivery to a watch.
    watch_delay_s: Range = (0.0, 0.0)
    # The commit happened, the answer was lost.
    lost_answer: float = 0.0
    # The commit never arrived; the caller cannot know.
    lost_request: float = 0.0
    # The caller was told that nobody knows, and the commit arrives afterwards, if its checks still hold by then.
    late_commit: float = 0.0
    late_s: Range = (0.0, 2.0)
    # Any call: nothing happened, and the caller knows.
    unavailable: float = 0.0
    # A watch says nothing for a while, then goes on where it was.
    silent_watch: float = 0.0
    silent_s: Range = (1.0, 20.0)
    # A watch says nothing for a while, and history is compacted meanwhile.
    compacted_watch: float = 0.0
    # A watch tells how far it is though nothing changed.
    progress_mark: float = 0.0
    # A lease ends while its holder keeps it alive.
    lost_lease: float = 0.0
    # All calls of this client fail for a while.
    member_loss: float = 0.0
    member_loss_s: Range = (0.5, 8.0)
    # How long a call to a member that is lost takes to fail.
    timeout_s: float = 1.0
    # How often each fault struck: for tests, and for the swarm to report.
    struck: dict[str, int] = field(default_factory=dict)

    def calm(self) -> None:
        """Switch everything off: what is struck stays told."""
        quiet = StoreFaults()
        for name in vars(quiet):
            if name != "struck":
                setattr(self, name, getattr(quiet, name))


def _refuse_too_large(txn: Txn) -> None:
    """Refuse what etcd refuses, whatever the product's own bounds say; the story has failed then. Raises Violation."""
    operations = max(len(txn.checks), len(txn.puts) + len(txn.deletes))
    keys = sum(len(key) for table in (txn.checks, txn.puts, txn.deletes) for key in table)
    size_bytes = keys + sum(len(put.value) for put in txn.puts.values())
    if operations <= OPERATIONS_MAX and size_bytes <= REQUEST_BYTES_MAX:
        return
    error = Violation("store", f"{operations} operations and {size_bytes} bytes in one transaction")
    loop = asyncio.get_running_loop()
    if isinstance(loop, SimLoop):
        loop.fail(error)
    raise error


class SimLease:
    """A lease, kept alive as far as the store can be reached."""

    def __init__(self, store: SimStore, ttl_s: float) -> None:
        self._store = store
        self._id, self._ttl_s = store.backend.grant(ttl_s)
        self.ttl_s = ttl_s
        self._loop = asyncio.get_running_loop()
        self._renewed_s = self._loop.time()
        self._gone = asyncio.Event()
        self._task = self._loop.create_task(self._keep())

    @property
    def id(self) -> int:
        """Lease id for Put."""
        return self._id

    @property
    def lost(self) -> bool:
        """True once it is known to have run out, or may have."""
        return self._gone.is_set() or self._left_s() <= 0

    @property
    def kept(self) -> bool:
        """Whether it is still being kept alive."""
        return not self._task.done()

    async def wait_lost(self) -> None:
        """Return when it is lost."""
        await self._gone.wait()

    async def close(self, *, revoke: bool = True) -> None:
        """Stop keeping it alive; revoke: its keys vanish now, or when it runs out if the store cannot be reached."""
        self._task.cancel()
        await asyncio.wait([self._task])
        if revoke and not self._store.lost:
            self._store.backend.revoke(self._id)

    def _left_s(self) -> float:
        return self._renewed_s + self._ttl_s - self._loop.time()

    async def _keep(self) -> None:
        pause_s = self._ttl_s * RENEW_SHARE
        while self._left_s() > 0:
            await asyncio.sleep(min(pause_s, self._left_s()))
            if self._store.strikes("lost_lease"):
                self._store.backend.revoke(self._id)
            if self._store.lost or self._store.backend.leaderless_s > 0:
                pause_s = RENEW_RETRY_S
                continue
            pause_s = self._ttl_s * RENEW_SHARE
            if not self._store.backend.renew(self._id):
                break
            self._renewed_s = self._loop.time()
        self._gone.set()


class SimStore:
    """One client. Implements Store and Membership."""

    def __init__(
        self,
        backend: SimBackend,
        rng: random.Random,
        faults: StoreFaults | None = None,
        *,
        name: str = "store",
        trace: Callable[[str], None] | None = None,
    ) -> None:
        self.backend, self.faults, self.name = backend, faults or StoreFaults(), name
        self._rng, self._trace = rng, trace
        self._leases: list[SimLease] = []
        # In their order: a set of objects has another in each run.
        self._watches: dict[asyncio.Event, None] = {}
        # What this client's process really commits, being of another release.
        self.really: Callable[[Txn], Txn] = lambda txn: txn
        self._closed = self._cut = False
        self._back_s = 0.0

    # --- faults by hand ------------------------------------------------------------------------------------------------

    def cut(self) -> None:
        """Lose the store until mended: calls fail, watches are silent, leases are not renewed."""
        self._cut = True

    def mend(self) -> None:
        """Reach the store again."""
        self._cut = False
        self._come_back()

    def expire_leases(self, ttl_s_max: float = float("inf")) -> None:
        """End leases of this client, those with no longer a life, though it lives and keeps them."""
        for lease in self._leases:
            if lease.ttl_s <= ttl_s_max:
                self.backend.revoke(lease.id)

    @property
    def lost(self) -> bool:
        """Whether no member can be reached now."""
        return self._cut or self._back_s > asyncio.get_running_loop().time()

    def strikes(self, fault: str) -> bool:
        """Draw whether a fault happens now; it is noted when it does."""
        probability: float = getattr(self.faults, fault)
        if probability <= 0 or self._rng.random() >= probability:
            return False
        self.faults.struck[fault] = self.faults.struck.get(fault, 0) + 1
        if self._trace is not None:
            self._trace(f"{self.name}: {fault}")
        return True

    # --- the store -----------------------------------------------------------------------------------------------------

    async def read(
        self, prefix: str, *, start: str = "", end: str = "", limit: int = 0, revision: int = 0
    ) -> tuple[list[Item], int]:
        """Return (items sorted by key, revision of the picture)."""
        await self._reach(self.faults.slow_read_s, quorum=not revision)
        limits = [bound for bound in (end, prefix_end(prefix)) if bound]
        items = self.backend.scan(max(prefix, start), min(limits, default=""), limit, revision)
        METER.records(len(items))
        seen = revision or self.backend.revision
        await self._pass(self.faults.delay_s)
        return items, seen

    async def revision(self) -> int:
        """Return the newest revision."""
        await self._reach(quorum=True)
        seen = self.backend.revision
        await self._pass(self.faults.delay_s)
        return seen

    async def commit(self, txn: Txn) -> int:
        """Apply and return the new revision."""
        txn.check_limits()
        txn = self.really(txn)
        METER.ns += sum(map(len, (put.value for put in txn.puts.values()))) * BYTE_NS
        await self._reach(quorum=True)
        self._refuse_full(txn.writer)
        if self.strikes("late_commit"):
            self._commit_later(txn)
            await asyncio.sleep(self.faults.timeout_s)
            raise Indeterminate(f"{self.name}: the answer did not come in time")
        if self.strikes("lost_request"):
            await asyncio.sleep(self.faults.timeout_s)
            raise Indeterminate(f"{self.name}: the answer did not come in time")
        revision = self.backend.apply(txn)
        if self.strikes("lost_answer"):
            await asyncio.sleep(self.faults.timeout_s)
            raise Indeterminate(f"{self.name}: the answer did not come in time")
        await self._pass(self.faults.delay_s)
        if self.lost:
            raise Indeterminate(f"{self.name}: its member was lost before it answered")
        return revision

    async def watch(self, prefix: str, after: int) -> AsyncGenerator[Batch, None]:
        """Yield every batch after that revision."""
        await self._reach()
        wake = asyncio.Event()
        self._watches[wake] = None
        self.backend.add_watcher(wake)
        try:
            while True:
                wake.clear()
                await self._disturb_watch()
                for batch in self.backend.since(after, limit=100):
                    after = batch.revision
                    wake.set()
                    changes = tuple(change for change in batch.changes if change.key.startswith(prefix))
                    if changes or self.strikes("progress_mark"):
                        yield Batch(batch.revision, changes)
                await wake.wait()
                if self._closed:
                    raise Unavailable("this client is closed")
        finally:
            self._watches.pop(wake, None)
            self.backend.remove_watcher(wake)

    async def lease(self, ttl_s: float) -> SimLease:
        """Return a lease that is kept alive."""
        await self._reach(quorum=True)
        self._refuse_full()
        lease = SimLease(self, ttl_s)
        self._leases = [each for each in self._leases if each.kept] + [lease]
        return lease

    async def compact(self, revision: int) -> None:
        """Forget history before that revision."""
        await self._reach(quorum=True)
        self.backend.compact(revision)

    async def members(self) -> list[MemberStatus]:
        """Return the one member there is."""
        return [MemberStatus("simulated", healthy=not self.lost, leader=not self.lost, version="simulated")]

    async def close(self) -> None:
        """Stop everything; leases are left to run out. What is on its way to the store still arrives."""
        self._closed = True
        self._wake_watches()
        for lease in self._leases:
            await lease.close(revoke=False)

    # --- how ---------------------------------------------------------------------------------------------------------

    async def _reach(self, *slow: Range, quorum: bool = False) -> None:
        """Go to the store. Raises Unavailable."""
        await asyncio.sleep(0)
        self._refuse_closed()
        if not self.lost and self.strikes("member_loss"):
            loop = asyncio.get_running_loop()
            self._back_s = loop.time() + self._rng.uniform(*self.faults.member_loss_s)
            loop.call_at(self._back_s, self._come_back)
        if not self.lost:
            await self._pass(self.faults.delay_s, *slow, *((self.faults.slow_quorum_s,) if quorum else ()))
            if quorum:
                await self._await_leader()
            self._refuse_closed()
        if self.lost:
            await asyncio.sleep(self.faults.timeout_s)
            raise Unavailable(f"{self.name}: no member answered")
        if self.strikes("unavailable"):
            raise Unavailable(f"{self.name}: no leader")

    async def _await_leader(self) -> None:
        """Wait for one, not for ever. Raises Unavailable."""
        left_s = self.backend.leaderless_s
        if left_s > 0:
            await asyncio.sleep(min(left_s, self.faults.timeout_s))
            if self.backend.leaderless_s > 0:
                raise Unavailable(f"{self.name}: no leader")

    async def _pass(self, *delays: Range) -> None:
        total_s = sum(self._rng.uniform(*delay) for delay in delays if delay[1] > 0)
        if total_s > 0:
            await asyncio.sleep(total_s)

    def _refuse_full(self, writer: str = "") -> None:
        if self.backend.full:
            fault = "full_for_api" if writer == "api" else "full"
            self.faults.struck[fault] = self.faults.struck.get(fault, 0) + 1
            raise Full("NOSPACE on the only member")

    def _refuse_closed(self) -> None:
        if self._closed:
            raise Unavailable("this client is closed")

    async def _disturb_watch(self) -> None:
        await self._pass(self.faults.watch_delay_s)
        if self.strikes("silent_watch"):
            await self._pass(self.faults.silent_s)
        if self.strikes("compacted_watch"):
            await self._pass(self.faults.silent_s)
            self.backend.compact(self.backend.revision)
        while self.lost and not self._closed:
            waking = asyncio.Event()
            self._watches[waking] = None
            try:
                await waking.wait()
            finally:
                self._watches.pop(waking, None)

    def _commit_later(self, txn: Txn) -> None:
        def arrive() -> None:
            try:
                self.backend.apply(txn)
            except (Conflict, LeaseLost) as error:
                if self._trace is not None:
                    self._trace(f"{self.name}: late commit refused: {error}")

        asyncio.get_running_loop().call_later(self._rng.uniform(*self.faults.late_s), arrive)

    def _come_back(self) -> None:
        self._back_s = 0.0
        self._wake_watches()

    def _wake_watches(self) -> None:
        for wake in list(self._watches):
            wake.set()
