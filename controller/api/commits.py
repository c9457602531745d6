"""Commits mutations: those that arrive together are decided one after the other and committed in one transaction.

    wait      a call waits while a group is in flight; those that gathered meanwhile are the next (decision 0018)
    decide    on forks, group.py; a refusal is believed only on a view as fresh as the store
    audit     what each changed is a record of the audit in the same transaction, one after the other in a chain (chain.py)
    commit    done: each is answered from a view that contains the commit
              Conflict: something moved; the same calls on a view as fresh as the store, in smaller groups
              Indeterminate: it may have happened; each call's own request record will tell
              Unavailable: refused, by its kind (outage.py)
    refuse    a refusal that may be repeated is recorded under its request's id before it is told, as an answer is
    note      a change that was decided elsewhere (a node joins, a token gets a secret, a VM is erased) is committed alone,
              between groups, as the chain has one writer at a time; whoever brought it decides again when it is refused
    repeats   whoever asked the same before has a request record. It is not in the view: the transaction that creates it again
              conflicts, and then (or when a call would be refused) the store is asked for it. Those written here lately are
              remembered, which answers most repeats at once.

One group is in flight at a time, so what one call claims (a name, a VNI) the next sees, and calls of one controller never
conflict with each other.

Nobody waits for anybody who is slow: deciding is synchronous. Only where several were answered together a moment ago are they
waited for, GATHER_S at most: who asks in a loop asks again, and a commit costs the same for one as for all. Rejected: gathering
before each commit (a lone caller would wait for nobody).
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Final

from cairn.controller.api.chain import Link, append, found
from cairn.controller.api.decision import Views
from cairn.controller.api.freshness import Freshness
from cairn.controller.api.group import Call, Group, Taken
from cairn.controller.outage import refusal
from cairn.controller.retention import Retention
from cairn.controller.store.base import (
    Conflict,
    Indeterminate,
    LeaseLost,
    Store,
    TooBig,
    Txn,
    Unavailable,
    View,
)
from cairn.proto import kinds, log
from cairn.proto.errors import Exhausted, Refused, TryAgain
from cairn.proto.seams import Ids
from cairn.proto.v1.audit_pb2 import Audit
from cairn.proto.v1.cluster_pb2 import RequestRecord

_log = log.logger("api")
ATTEMPTS_MAX: Final = 64
BACKOFF_S: Final = 0.005
# Calls decided before others may run.
GROUP_MAX: Final = 64
# How long those are waited for who were answered together a moment ago, and likely ask again.
GATHER_S: Final = 0.01
SERIES_DIGITS: Final = 8
# Request records remembered, and the largest of them, with its answer.
REMEMBERED_MAX: Final = 4096
REMEMBERED_BYTES_MAX: Final = 16 << 10


@dataclass(eq=False, slots=True)
class Note:
    """A change decided elsewhere, and what the audit keeps. committed: the revision, or what the store said."""

    txn: Txn
    audits: Sequence[Audit]
    committed: asyncio.Future[int]


# (view, call, record of its request): the answer. Raises Refused.
Answer = Callable[[View, Call, RequestRecord], Any]


class Commits:
    """See the module.

    leases: first that of request records; answer: shows the object of a request's record; chain: of the audit's records;
    closed: why nothing may be changed now, as it could not be kept on record.
    """

    def __init__(
        self,
        store: Store,
        cache: Views,
        freshness: Freshness,
        ids: Ids,
        leases: Sequence[Retention],
        answer: Answer,
        chain: str,
        closed: Callable[[], Refused | None],
    ) -> None:
        self._store, self._cache, self._freshness, self._ids = store, cache, freshness, ids
        self._leases, self._answer = leases, answer
        self._chain, self._closed = chain, closed
        # Where it ends; None: the store is to be asked.
        self._link: Link | None = None
        self._waiting: list[Call] = []
        self._notes: list[Note] = []
        self._working: asyncio.Task[None] | None = None
        self._limit = GROUP_MAX
        self._conflicts = 0
        # How many asked at once of late, answered now or waiting; the event is set when as many wait.
        self._crowd = 1
        self._gathered = asyncio.Event()
        self._remembered: OrderedDict[str, RequestRecord] = OrderedDict()
        # Called with each record the audit has got; when a commit is in doubt, also with one it may not have.
        self.kept: Callable[[Audit], object] = bool

    async def run(self, call: Call) -> Any:
        """Commit a call together with others, and return its answer. Raises Refused."""
        self._waiting.append(call)
        if len(self._waiting) >= self._crowd:
            self._gathered.set()
        self._start()
        return await call.answer

    async def note(self, txn: Txn, audits: Sequence[Audit]) -> int:
        """Commit a change that was decided elsewhere, with its records; return the revision.

        Raises what the store does; Refused when nothing may be changed. Cancelled before its turn it is not committed.
        """
        note = Note(txn, audits, asyncio.get_running_loop().create_future())
        self._notes.append(note)
        self._start()
        return await note.committed

    def _start(self) -> None:
        if self._working is None or self._working.done():
            self._working = asyncio.create_task(self._work(), name="commits")

    def remembered(self, request: str) -> RequestRecord | None:
        """Return the record of a request that was answered here lately."""
        return self._remembered.get(request)

    async def recorded(self, request: str) -> RequestRecord | None:
        """Return the record of a request, wherever it was answered, once the view contains what it did. Raises TryAgain."""
        try:
            items, _ = await self._store.read(kinds.REQUEST.key(request), limit=1)
        except Unavailable as error:
            raise refusal(error) from error
        if not items:
            return None
        await self._freshness.caught_up(items[0].mod_revision)
        return RequestRecord.FromString(items[0].value)

    async def _work(self) -> None:
        """Run groups for as long as anybody waits."""
        try:
            while self._waiting or self._notes:
                while self._notes:
                    await self._noted(self._notes.pop(0))
                if not self._waiting:
                    continue
                await self._gather()
                calls = [call for call in self._waiting[: self._limit] if not call.answer.done()]
                self._waiting = self._waiting[self._limit :]
                await self._round(calls)
        finally:
            # Only when this task was cancelled, or has a bug.
            for call in self._waiting:
                call.answer.cancel()
            for note in self._notes:
                note.committed.cancel()

    async def _noted(self, note: Note) -> None:
        """Commit a note; whoever brought it is told how that ended."""
        if note.committed.done():
            return
        try:
            if note.txn and (why := self._closed()) is not None:
                raise why
            link, self._link = self._link or await self._found(), None
            txn = Txn("api").merge(note.txn)
            after = append(txn, link, note.audits)
            revision = await self._store.commit(txn)
        except Exception as error:  # noqa: BLE001 - the boundary: whoever brought it is told
            if not note.committed.done():
                note.committed.set_exception(error)
            return
        self._link = replace(after, revision=revision)
        self._cache.committed(txn, revision)
        for audit in note.audits:
            self.kept(audit)
        if not note.committed.done():
            note.committed.set_result(revision)

    async def _gather(self) -> None:
        """Let those who are on their way come along."""
        await asyncio.sleep(0)
        if len(self._waiting) < self._crowd:
            self._gathered.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(GATHER_S):
                    await self._gathered.wait()

    async def _round(self, calls: list[Call]) -> None:
        """Decide about these calls, commit what can be committed together, put the others back."""
        try:
            fresh = any(call.stale or call.doubtful for call in calls)
            if fresh:
                await self._freshness.freshen()
                calls = [call for call in calls if not call.doubtful or not await self._repeated(call)]
            if (why := self._closed()) is not None:
                raise why
            for lease in self._leases:
                await lease.lease(len(calls))
            self._link = link = self._link or await self._found()
        except Refused as error:
            _fail(calls, error)
            return
        except Unavailable as error:
            _fail(calls, refusal(error))
            return
        group = Group(self._cache.view, link)
        others = [call for call in calls if not group.add(call, fresh=fresh)]
        self._waiting = others + self._waiting
        if group.taken:
            await self._commit(group)
        await self._refuse(group.refused)

    async def _commit(self, group: Group) -> None:
        calls = [taken.call for taken in group.taken]
        # Whatever becomes of it, the store is asked where the chain ends, unless it is known.
        self._link = None
        revision = await self._stored(group.sealed(), calls)
        if not revision:
            return
        self._keep(calls)
        self._link = replace(group.link, revision=revision)
        try:
            await self._freshness.caught_up(revision)
        except Refused as error:
            _fail(calls, error)
            return
        self._limit, self._conflicts = min(2 * self._limit, GROUP_MAX), 0
        self._crowd = min(len(group.taken) + len(self._waiting), GROUP_MAX)
        for taken in group.taken:
            self._committed(taken, revision)

    async def _stored(self, txn: Txn, calls: list[Call]) -> int:
        """Commit what some calls ask for; return the revision, 0 when it was not: they were refused, or wait again."""
        try:
            revision = await self._store.commit(txn)
        except Conflict as error:
            await self._moved(calls, set(error.keys))
        except LeaseLost:
            for lease in self._leases:
                lease.forget()
            self._again(calls)
        except Indeterminate as error:
            _log.warning("commit in doubt", requests=[call.request for call in calls], error=str(error))
            for call in calls:
                call.doubtful = True
            self._again(calls)
            self._keep(calls)
        except Unavailable as error:
            _fail(calls, refusal(error))
        except Refused as error:
            _fail(calls, error)
        except TooBig as error:
            _fail(calls, Exhausted("transaction", f"this changes too much at once: {error}"))
        else:
            self._cache.committed(txn, revision)
            return revision
        return 0

    def _keep(self, calls: Sequence[Call]) -> None:
        for call in calls:
            if call.kept is not None:
                self.kept(call.kept)

    def _committed(self, taken: Taken, revision: int) -> None:
        call, decided, record = taken.call, taken.decided, taken.record
        _log.info("committed", method=f"{record.method}Request", object=decided.id, actor=call.caller.id, revision=revision)
        self._remember(call.request, record)
        if call.answer.done():
            return
        if decided.erased is not None:
            call.answer.set_result(decided.erased)
        else:
            self._tell(call, record)

    def _tell(self, call: Call, record: RequestRecord) -> None:
        """Answer from the view."""
        try:
            answer = self._answer(self._cache.view, call, record)
        except Exception as error:  # noqa: BLE001 - the boundary: what one call meets is its own
            _fail([call], error)
        else:
            if not call.answer.done():
                call.answer.set_result(answer)

    async def _moved(self, calls: list[Call], keys: set[str]) -> None:
        """Look again, on a fresh view, in smaller groups; whose request's record was there is a repeat."""
        for call in calls:
            call.doubtful |= kinds.REQUEST.key(call.request) in keys
        self._limit = max(1, len(calls) // 2)
        self._conflicts += 1
        # Two controllers that conflict in step would go on doing so.
        await asyncio.sleep(BACKOFF_S * min(self._conflicts, 10) * self._ids.jitter())
        self._again(calls)

    def _again(self, calls: list[Call]) -> None:
        """Put calls back, to be decided on a view as fresh as the store; not for ever."""
        for call in calls:
            call.attempts += 1
            call.stale = True
        worn = [call for call in calls if call.attempts >= ATTEMPTS_MAX]
        _fail(worn, TryAgain("too many others change the same objects; try again"))
        self._waiting = [call for call in calls if call not in worn] + self._waiting

    async def _refuse(self, refused: Sequence[tuple[Call, Exception]]) -> None:
        """Refuse calls, except those that were answered before: then the first answer is the answer."""
        txn, recorded = Txn("api"), list[tuple[Call, Exception, RequestRecord]]()
        for call, why in refused:
            record = call.refuse(why) if isinstance(why, Refused) and not call.answer.done() else None
            if record is None:
                await self._refuse_unrecorded(call, why)
            elif kinds.REQUEST.key(call.request) in txn.puts:
                # One request that came twice: the second is answered as the first.
                call.doubtful = True
                self._again([call])
            else:
                txn.create(kinds.REQUEST, call.request, record, lease=self._leases[0].current)
                recorded.append((call, why, record))
        if recorded and await self._stored(txn, [call for call, _, _ in recorded]):
            for call, why, record in recorded:
                self._remember(call.request, record)
                _fail([call], why)

    async def _refuse_unrecorded(self, call: Call, why: Exception) -> None:
        try:
            if not isinstance(why, Refused) or not call.repeatable or not await self._repeated(call):
                _fail([call], why)
        except Refused as error:
            _fail([call], error)

    async def _repeated(self, call: Call) -> bool:
        """Answer a call that was answered before; False when it was not. Raises TryAgain."""
        record = await self.recorded(call.request)
        call.doubtful = False
        if record is None:
            return False
        self._remember(call.request, record)
        self._tell(call, record)
        return True

    async def _found(self) -> Link:
        return await found(self._store, self._chain, self._ids.uuid()[:SERIES_DIGITS])

    def _remember(self, request: str, record: RequestRecord) -> None:
        if len(record.answer) > REMEMBERED_BYTES_MAX:
            return
        self._remembered[request] = record
        if len(self._remembered) > REMEMBERED_MAX:
            self._remembered.popitem(last=False)


def _fail(calls: Sequence[Call], error: Exception) -> None:
    for call in calls:
        if not call.answer.done():
            call.answer.set_exception(error)
