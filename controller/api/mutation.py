"""How every mutation runs: decide on a View, commit one Txn, answer with the object.

    first = answer of an earlier call with this request_id? -> that, never a second object
    txn   = decide(view)               pure; raises Refused
    commit                             Conflict: something moved, decide again on a fresh view
                                       Indeterminate: it may have happened; the RequestRecord written with it will tell
    answer                             from a view that contains the commit

Invariant: each committed mutation has a RequestRecord, created in the same transaction. So whatever happens to the
controller between commit and answer, the repeated call (to any controller) finds it. A refusal is believed only on a view
as fresh as the store: what the caller made a moment ago through another controller counts. Rejected: remembering answers in
memory (lost with the process), locks per name (held by the dead).
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from typing import Any, Final, TypeVar

from cairn.controller.api import nouns, validation
from cairn.controller.api.decision import Decide, Decided, Views
from cairn.controller.api.plan import Planner, Touched
from cairn.controller.events import event_id
from cairn.controller.model.permits import Caller, Verb, permits
from cairn.controller.retention import Retention
from cairn.controller.store.base import (
    Conflict,
    Indeterminate,
    LeaseLost,
    Store,
    StoreError,
    Txn,
    Unavailable,
    View,
)
from cairn.proto import kinds, log
from cairn.proto.errors import Denied, Exhausted, Invalid, Moved, NotFound, Refused, TryAgain
from cairn.proto.seams import Clock, Ids, timestamp
from cairn.proto.v1.cluster_pb2 import RequestRecord
from cairn.proto.v1.event_pb2 import Event
from google.protobuf.message import Message

_log = log.logger("api")
M = TypeVar("M", bound=Message)
ATTEMPTS_MAX: Final = 64
BACKOFF_S: Final = 0.005
# How long the watch may take to bring what the store has committed.
CATCH_UP_S: Final = 10.0
REQUEST_KEEP_S: Final = 24 * 3600.0
EVENT_KEEP_S: Final = 24 * 3600.0
LEASE_USE_S: Final = 3600.0
# Of the hash of who calls, in the key of a request record.
CALLER_DIGITS: Final = 16
# Not part of what is asked for.
_ENVELOPE: Final = ("request_id", "validate_only", "plan_id")


class _Again(Exception):
    """Nothing is known to be written: look again. moved: something this was decided on has changed."""

    def __init__(self, *, moved: bool) -> None:
        super().__init__()
        self.moved = moved


def fingerprint(request: Message) -> bytes:
    """Return a digest of what a request asks for, whatever its request_id, plan_id or validate_only."""
    bare: Any = type(request)()
    bare.CopyFrom(request)
    for name in _ENVELOPE:
        if name in bare.DESCRIPTOR.fields_by_name:
            bare.ClearField(name)
    text: bytes = bare.SerializeToString(deterministic=True)
    return hashlib.sha256(bare.DESCRIPTOR.full_name.encode() + b"\0" + text).digest()


def request_key(caller: Caller, request_id: str) -> str:
    """Return the id of a request's record: an id is its caller's own, and means nothing to anybody else."""
    return f"{hashlib.sha256(caller.uri.encode()).hexdigest()[:CALLER_DIGITS]}/{request_id.lower()}"


def verb_of(request: Message) -> Verb:
    """Return what a mutation does, from the name of its method: CreateVmRequest creates."""
    first = re.match("[A-Z][a-z]+", request.DESCRIPTOR.name)
    assert first is not None, "requests are named after their method"
    return Verb(first[0].lower())


class Mutations:
    """Runs mutations against one store and cache."""

    def __init__(self, store: Store, cache: Views, clock: Clock, ids: Ids) -> None:
        self._store, self._cache, self._clock, self._ids = store, cache, clock, ids
        self._requests = Retention(store, REQUEST_KEEP_S, LEASE_USE_S)
        self._events = Retention(store, EVENT_KEEP_S, LEASE_USE_S)
        self._planner = Planner(store, cache, clock, ids)

    async def freshen(self) -> View:
        """Return a view as fresh as the store was when called. Raises TryAgain."""
        try:
            revision = await self._store.revision()
        except Unavailable as error:
            raise TryAgain(f"the store does not answer: {error}") from error
        await self.caught_up(revision)
        return self._cache.view

    async def caught_up(self, revision: int) -> None:
        """Return once the view contains a revision. Raises TryAgain when that takes too long."""
        try:
            async with asyncio.timeout(CATCH_UP_S):
                await self._cache.wait_for(revision)
        except TimeoutError as error:
            behind = f"at revision {self._cache.view.revision}, the store at {revision}"
            raise TryAgain(f"this controller has fallen behind the store ({behind}); try again") from error

    async def run(self, request: Any, caller: Caller, decide: Decide[M], touched: Touched | None = None) -> M:
        """Run one mutation and return the object's message. Raises Refused.

        touched: keys this very call has written before, which a plan knows by their old revision.
        """
        if request.request_id:
            validation.request_id(request.request_id)
        request_id = request.request_id.lower() or self._ids.uuid()
        digest = fingerprint(request)
        if getattr(request, "validate_only", False):
            return await self._plan(request, caller, digest, decide)
        plan_id = getattr(request, "plan_id", "")
        settled = False
        view = self._cache.view
        for attempt in range(ATTEMPTS_MAX):
            first = self.first(view, caller, request_id)
            if first is not None:
                again: M = self._answer_again(view, caller, first, digest)
                return again
            try:
                if plan_id:
                    decided = self._planner.recall(view, caller, plan_id, digest, touched or {})
                else:
                    decided = decide(view, caller)
                _admit(view, caller, request, decided)
            except Refused:
                if settled:
                    raise
                view, settled = await self.freshen(), True
                continue
            try:
                return await self._commit(request, request_id, digest, caller, decided)
            except _Again as again:
                view, settled = await self._after_conflict(attempt), True
                stale = plan_id and again.moved and self.first(view, caller, request_id) is None
            if stale:
                raise Moved(f"plan {plan_id} no longer applies: something it was decided on has changed; plan again")
        raise TryAgain("too many others change the same objects; try again")

    async def again(self, request: Any, caller: Caller) -> Any:
        """Return the answer of an earlier call with this request's id, None when this is the first. Raises Refused.

        For what must be done before the mutation is run: names may mean something else by now.
        """
        if not request.request_id:
            return None
        validation.request_id(request.request_id)
        view = await self.freshen()
        first = self.first(view, caller, request.request_id)
        return None if first is None else self._answer_again(view, caller, first, fingerprint(request))

    @staticmethod
    def planned(view: View, caller: Caller, request: Any) -> str:
        """Return the id of the object a request's plan was made for; "" without a plan of the caller's."""
        plan = view.get(kinds.PLAN, request.plan_id) if request.plan_id else None
        return plan.object.partition("/")[2] if plan is not None and plan.caller == caller.uri else ""

    @staticmethod
    def first(view: View, caller: Caller, request_id: str) -> RequestRecord | None:
        """Return the record of a caller's earlier request with that id."""
        return view.get(kinds.REQUEST, request_key(caller, request_id))

    async def _after_conflict(self, attempt: int) -> View:
        """Give the others a moment, longer each time, then look again."""
        await asyncio.sleep(BACKOFF_S * min(attempt, 10) * self._ids.jitter())
        return await self.freshen()

    async def _commit(self, request: Any, request_id: str, digest: bytes, caller: Caller, decided: Decided[M]) -> M:
        """Commit and return the answer. Raises _Again, Refused."""
        try:
            txn = await self._complete(request, request_id, digest, caller, decided)
            revision = await self._store.commit(txn)
        except Conflict as error:
            raise _Again(moved=True) from error
        except LeaseLost as error:
            self._requests.forget()
            self._events.forget()
            raise _Again(moved=False) from error
        except Indeterminate as error:
            _log.warning("commit in doubt", request_id=request_id, error=str(error))
            raise _Again(moved=False) from error
        except Unavailable as error:
            raise TryAgain(f"the store does not answer: {error}") from error
        except ValueError as error:
            raise Exhausted("transaction", f"this changes too much at once ({decided.txn.size} records): {error}") from error
        await self.caught_up(revision)
        _log.info("committed", method=type(request).__name__, object=decided.id, actor=caller.id, revision=revision)
        if decided.erased is not None:
            return decided.erased
        # A watch that was slow may show at once that what this call deleted has been erased since.
        view = self._cache.view
        first = self.first(view, caller, request_id)
        if first is not None:
            again: M = self._answer_again(view, caller, first, digest)
            return again
        return self._object(view, caller, decided.noun, decided.id)

    async def _complete(self, request: Any, request_id: str, digest: bytes, caller: Caller, decided: Decided[Any]) -> Txn:
        """Add the request record and the events."""
        now = self._clock.now()
        record = RequestRecord(
            request_id=request_id,
            method=type(request).__name__.removesuffix("Request"),
            fingerprint=digest,
            object=f"{decided.noun.kind.name}/{decided.id}",
            create_time=timestamp(now),
            caller=caller.uri,
        )
        if decided.erased is not None:
            record.answer = decided.erased.SerializeToString(deterministic=True)
        elif record.method.startswith("Delete"):
            # It may be erased before a lost answer is asked for again; then its last record is the answer.
            put = decided.txn.puts.get(decided.noun.kind.key(decided.id))
            if put is not None:
                record.answer = put.value
        decided.txn.create(kinds.REQUEST, request_key(caller, request_id), record, lease=await self._requests.lease())
        for reason, sentence in decided.events:
            event = Event(
                id=event_id(now, self._ids),
                project=decided.project,
                event_time=timestamp(now),
                object=decided.id,
                object_name=decided.name,
                reason=reason,
                message=sentence,
                actor=caller.id,
            )
            decided.txn.create(kinds.EVENT, event.id, event, lease=await self._events.lease())
        return decided.txn

    def _answer_again(self, view: View, caller: Caller, first: RequestRecord, digest: bytes) -> Any:
        """Answer a repeated call. Raises Invalid, NotFound."""
        if first.fingerprint != digest:
            raise Invalid("request_id", f"{first.request_id} was used for another request; take a new one")
        kind, _, id = first.object.partition("/")
        noun = nouns.BY_KIND[kind]
        if first.HasField("answer") and noun.of(view, id) is None:
            return noun.kind.message.FromString(first.answer)
        return self._object(view, caller, noun, id)

    @staticmethod
    def _object(view: View, caller: Caller, noun: nouns.Noun[M], id: str) -> M:
        found = noun.of(view, id)
        if found is None or not permits(view, caller, Verb.SEE, found):
            raise NotFound(noun.kind.name, id, f"{noun.title} {id} was made by this request and has been erased since")
        return found

    async def _plan(self, request: Any, caller: Caller, digest: bytes, decide: Decide[M]) -> M:
        """Answer validate_only: the object as it would be, with the plan."""
        view = self._cache.view
        try:
            decided = decide(view, caller)
        except Refused:
            view = await self.freshen()
            decided = decide(view, caller)
        _admit(view, caller, request, decided)
        method = type(request).__name__.removesuffix("Request")
        answer: M
        answer, plan = self._planner.plan(view, caller, method, digest, decided)
        try:
            await self._planner.keep(plan)
        except StoreError as error:
            raise TryAgain(f"the plan could not be stored: {error}") from error
        return answer


def _admit(view: View, caller: Caller, request: Message, decided: Decided[Any]) -> None:
    """Refuse a decision about an object its caller may not do that to, whatever its looking up has asked. Raises Denied."""
    noun = decided.noun
    put = decided.txn.puts.get(noun.kind.key(decided.id))
    record: Any = view.get(noun.kind, decided.id)
    if record is None and put is not None:
        record = noun.kind.message.FromString(put.value)
    verb = verb_of(request)
    if record is not None and not permits(view, caller, verb, record):
        raise Denied(f"{caller.kind} {caller.id!r} may not {verb} {noun.title} {decided.name or decided.id!r}")
