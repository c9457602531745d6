"""How every mutation runs: decide on a View, commit one Txn, answer with the object.

    first = answer of an earlier call with this request_id? -> that, never a second object
    txn   = decide(view)               pure; raises Refused
    commit                             with what other calls decided at this moment (commits.py)
    answer                             from a view that contains the commit

Invariant: each committed mutation has a RequestRecord and an Audit, created in the same transaction. So whatever happens to the
controller between commit and answer, the repeated call (to any controller) finds it. A refusal is believed only on a view
as fresh as the store: what the caller made a moment ago through another controller counts. One that hangs on the state of
other objects has a RequestRecord, too, so that a late repetition of what was refused is refused (decision 0029). Rejected:
remembering answers in memory only (lost with the process), locks per name (held by the dead).
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from cairn.controller.api import nouns, resolution, validation
from cairn.controller.api.acts import Acts, stamp
from cairn.controller.api.bearer import SAY, stands
from cairn.controller.api.changes import tell
from cairn.controller.api.commits import Commits
from cairn.controller.api.decision import Decide, Decided, Views
from cairn.controller.api.freshness import Freshness
from cairn.controller.api.group import Call
from cairn.controller.api.plan import Planner, Touched
from cairn.controller.events import add, event_id
from cairn.controller.model.permits import Caller, Verb, is_root, may_act, permits, witnesses
from cairn.controller.model.quotas import charge
from cairn.controller.model.restored import CLUSTER_ID, is_undecided
from cairn.controller.model.unreadable import touched
from cairn.controller.outage import refusal
from cairn.controller.retention import EVENT_KEEP_S, REQUEST_KEEP_S, Retention
from cairn.controller.store.base import Conflict, Indeterminate, Store, StoreError, Txn, View
from cairn.proto import kinds, log
from cairn.proto.errors import BadState, Denied, Invalid, NotFound, Refused, Repeated, TryAgain, Unauthenticated
from cairn.proto.seams import Clock, Ids, timestamp
from cairn.proto.v1.audit_pb2 import Audit
from cairn.proto.v1.cluster_pb2 import PlanRecord, RequestRecord
from cairn.proto.v1.event_pb2 import Event
from google.protobuf.message import Message
from google.rpc.status_pb2 import Status

M = TypeVar("M", bound=Message)
_log = log.logger("api")
# Of the hash of who calls, in the key of a request record.
CALLER_DIGITS: Final = 16
NOTE_TRIES: Final = 8
# Of a refusal that is remembered: whole, or only this much of its sentence.
REFUSAL_BYTES_MAX: Final = 4 << 10
REFUSAL_CHARACTERS_MAX: Final = 1000
# What says of a VM whether it is to be and to run, whatever a restore has left open.
_DECIDE_VMS: Final = frozenset({"AdoptVm", "StartVm", "StopVm", "RebootVm", "DeleteVm", "UndeleteVm"})
# Not part of what is asked for.
_ENVELOPE: Final = ("request_id", "validate_only", "plan_id", "count")


@dataclass(frozen=True, slots=True)
class Act:
    """What the audit calls a change. object: "<kind>/<id>"; project: its id."""

    method: str
    object: str
    name: str = ""
    project: str = ""
    request_id: str = ""
    # Whose doing it is, where that is more than who called.
    who: str = ""


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
    """Runs mutations against one store and cache. chain: of the audit, the controller's name."""

    def __init__(self, store: Store, cache: Views, clock: Clock, ids: Ids, chain: str) -> None:
        self._cache, self._clock, self._ids = cache, clock, ids
        # Called with each record of what the first administrator's certificate did, or was refused.
        self.root_used: Callable[[], object] = bool
        self._requests, self._events = Retention(store, REQUEST_KEEP_S), Retention(store, EVENT_KEEP_S)
        self._planner = Planner(store, cache, clock, ids)
        self._freshness = Freshness(store, cache)
        leases = (self._requests, self._events)
        # Says why nothing may be changed now: the audit cannot be kept.
        self.closed: Callable[[], Refused | None] = _open
        self._commits = Commits(store, cache, self._freshness, ids, leases, _answer, chain, lambda: self.closed())
        self._commits.kept = self._kept
        # Of what the controller does by itself.
        self.acts = Acts(self._commits, clock, lambda: self.closed())

    async def freshen(self) -> View:
        """Return a view as fresh as the store was when called. Raises TryAgain."""
        return await self._freshness.freshen()

    async def run(self, request: Any, caller: Caller, decide: Decide[M], touched: Touched | None = None) -> M:
        """Run one mutation and return the object's message. Raises Refused.

        touched: keys this very call has written before, which a plan knows by their old revision.
        """
        if request.request_id:
            validation.request_id(request.request_id)
        digest = fingerprint(request)
        if getattr(request, "validate_only", False):
            return await self._plan(request, caller, digest, decide)
        plan_id = getattr(request, "plan_id", "")

        def decided(view: View) -> Decided[Any]:
            recalled = self._planner.recall(view, caller, plan_id, digest, touched or {}) if plan_id else None
            made: Decided[Any] = recalled or decide(view, caller)
            if not stands(view, caller, self._clock.now()):
                # It has ended since the call was let in.
                raise Unauthenticated(SAY)
            _admit(view, caller, request, made)
            return made

        answer: M = await self._call(request, caller, digest, decided)
        return answer

    async def refuse(self, request: Any, caller: Caller, why: Refused) -> Any:
        """Refuse a mutation for good; return its answer when it was answered before. Raises Refused."""

        def decided(_view: View) -> Decided[Any]:
            raise why

        return await self._call(request, caller, fingerprint(request), decided)

    async def _call(self, request: Any, caller: Caller, digest: bytes, decided: Callable[[View], Decided[Any]]) -> Any:
        request_id = request.request_id.lower() or self._ids.uuid()

        def stamped(view: View) -> Decided[Any]:
            made = decided(view)
            stamp(view, made.txn, request_id)
            return made

        call = Call(
            decide=stamped,
            complete=lambda made: self._complete(request, request_id, digest, caller, made),
            audit=lambda view, made: self._audit(view, caller, made.txn, _act(request, request_id, made)),
            refuse=lambda why: self._refusal(request, digest, caller, why),
            request=request_key(caller, request_id),
            digest=digest,
            caller=caller,
            repeatable=bool(request.request_id),
            answer=asyncio.get_running_loop().create_future(),
        )
        first = self._commits.remembered(call.request)
        return _answer(self._cache.view, call, first) if first is not None else await self._commits.run(call)

    async def again(self, request: Any, caller: Caller) -> Any:
        """Return the answer of an earlier call with this request's id, None when this is the first. Raises Refused.

        For what must be done before the mutation is run: names may mean something else by now.
        """
        if not request.request_id:
            return None
        validation.request_id(request.request_id)
        key = request_key(caller, request.request_id)
        first = self._commits.remembered(key) or await self._commits.recorded(key)
        return None if first is None else _answer_again(self._cache.view, caller, first, fingerprint(request))

    @staticmethod
    def planned(view: View, caller: Caller, request: Any) -> str:
        """Return the id of the object a request's plan was made for; "" without a plan of the caller's."""
        plan = view.get(kinds.PLAN, request.plan_id) if request.plan_id else None
        his = plan is not None and (plan.caller, plan.token) == (caller.uri, caller.token)
        return plan.object.partition("/")[2] if plan is not None and his else ""

    async def write(self, view: View, caller: Caller, txn: Txn, act: Act) -> int:
        """Commit what was decided on a view outside of `run`, with its record in the audit; return the revision.

        For what is no mutation of one object with an answer to be repeated. Raises what the store does: decide again.
        """
        audits = [self._audit(view, caller, txn, act)]
        # It may wait its turn, and a restore may come and go meanwhile.
        txn.check(kinds.CLUSTER, CLUSTER_ID, view.revision_of(kinds.CLUSTER, CLUSTER_ID))
        return await self._commits.note(txn, audits)

    async def note(self, caller: Caller, act: Act) -> None:
        """Put on record what changes nothing. Raises Refused when that cannot be done."""
        for _ in range(NOTE_TRIES):
            try:
                await self.write(self._cache.view, caller, Txn("api"), act)
            except (Conflict, Indeterminate):
                # It may be there twice then: better than not at all.
                continue
            except StoreError as error:
                raise refusal(error) from error
            return
        raise TryAgain("what was asked for could not be put on record; try again")

    async def record(self, audits: Sequence[Audit]) -> None:
        """Put records of what changes nothing into the audit. Raises what the store does."""
        await self._commits.note(Txn("api"), audits)

    def _audit(self, view: View, caller: Caller, txn: Txn, act: Act) -> Audit:
        """Return what the audit keeps of a decision."""
        audit = Audit(
            time=timestamp(self._clock.now()),
            caller=caller.kind,
            who=act.who or caller.id,
            token=caller.token,
            address=caller.address,
            cause=caller.cause,
            method=act.method,
            request_id=act.request_id,
            object=act.object,
            object_name=act.name,
            project=act.project,
        )
        audit.first_administrator = is_root(caller)
        tell(audit, view, txn)
        return audit

    def _kept(self, audit: Audit) -> None:
        if audit.first_administrator:
            self.root_used()
            _log.warning("first_administrator", method=audit.method, object=audit.object, address=audit.address)

    def _complete(self, request: Any, request_id: str, digest: bytes, caller: Caller, decided: Decided[Any]) -> RequestRecord:
        """Add the request record and the events; return the record."""
        now = self._clock.now()
        record = RequestRecord(
            request_id=request_id,
            method=type(request).__name__.removesuffix("Request"),
            fingerprint=digest,
            object=f"{decided.noun.kind.name}/{decided.id}",
            create_time=timestamp(now),
            caller=caller.uri,
            token=caller.token,
        )
        if decided.erased is not None:
            record.answer = decided.erased.SerializeToString(deterministic=True)
        elif record.method.startswith("Delete"):
            # It may be erased before a lost answer is asked for again; then its last record is the answer.
            put = decided.txn.puts.get(decided.noun.kind.key(decided.id))
            if put is not None:
                record.answer = put.value
        decided.txn.create(kinds.REQUEST, request_key(caller, request_id), record, lease=self._requests.current)
        for reason, sentence in decided.events:
            event = Event(
                id=event_id(now, self._ids),
                project=decided.project,
                event_time=timestamp(now),
                object=decided.id,
                object_name=decided.name,
                reason=reason,
                message=sentence,
                actor=decided.who or caller.id,
                actor_token=caller.token,
            )
            add(decided.txn, event, lease=self._events.current)
        return record

    def _refusal(self, request: Any, digest: bytes, caller: Caller, why: Refused) -> RequestRecord | None:
        """Return what is remembered of a refusal; None: nothing."""
        if not request.request_id or not why.lasting or not may_act(self._cache.view, caller):
            return None
        status = why.status()
        if status.ByteSize() > REFUSAL_BYTES_MAX:
            status = type(status)(code=status.code, message=status.message[:REFUSAL_CHARACTERS_MAX])
        return RequestRecord(
            request_id=request.request_id.lower(),
            method=type(request).__name__.removesuffix("Request"),
            fingerprint=digest,
            # Of nothing: to a controller of the release before it is a request whose object is gone.
            object=f"{kinds.VM.name}/",
            create_time=timestamp(self._clock.now()),
            caller=caller.uri,
            token=caller.token,
            refusal=status.SerializeToString(deterministic=True),
        )

    async def plan_several(self, caller: Caller, parts: Sequence[tuple[Any, Decide[M]]]) -> M:
        """Answer validate_only for several: the first object as it would be, with the plan. parts: (request, decide).

        Deciding does not let others run, so that all are of one picture. Raises Refused.
        """

        def checked(request: Any, decide: Decide[M]) -> Decide[M]:
            def decided(view: View, caller: Caller) -> Decided[M]:
                made = decide(view, caller)
                _admit(view, caller, request, made)
                return made

            return decided

        method = type(parts[0][0]).__name__.removesuffix("Request")
        deciding = [(fingerprint(request), checked(request, decide)) for request, decide in parts]
        try:
            answer, records = self._planner.several(self._cache.view, caller, method, deciding)
        except Refused:
            answer, records = self._planner.several(await self.freshen(), caller, method, deciding)
        await self._keep(records)
        first: M = answer
        return first

    async def _keep(self, records: Sequence[PlanRecord]) -> None:
        try:
            await self._planner.keep(*records)
        except StoreError as error:
            raise refusal(error) from error

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
        await self._keep([plan])
        return answer


def _open() -> Refused | None:
    return None


def _act(request: Message, request_id: str, decided: Decided[Any]) -> Act:
    object = f"{decided.noun.kind.name}/{decided.id}"
    method = type(request).__name__.removesuffix("Request")
    return Act(method, object, decided.name, decided.project, request_id, decided.who)


def _answer(view: View, call: Call, first: RequestRecord) -> Any:
    """Answer a call, the first of its request or another. Raises Invalid, NotFound."""
    return _answer_again(view, call.caller, first, call.digest)


def _answer_again(view: View, caller: Caller, first: RequestRecord, digest: bytes) -> Any:
    """Answer a repeated call. Raises Invalid, NotFound, Repeated; TryAgain when its object cannot be read."""
    if first.fingerprint != digest:
        raise Invalid("request_id", f"{first.request_id} was used for another request; take a new one")
    if first.HasField("refusal"):
        raise Repeated(Status.FromString(first.refusal))
    kind, _, id = first.object.partition("/")
    noun = nouns.BY_KIND[kind]
    found = noun.of(view, id)
    if found is None and first.HasField("answer"):
        answer = noun.kind.message.FromString(first.answer)
        # The same user may ask by less than he had asked by.
        if not caller.token or caller.token == first.token or permits(view, caller, Verb.SEE, answer):
            return answer
    resolution.refuse_unreadable(view, noun, id)
    if found is None or not permits(view, caller, Verb.SEE, found):
        raise NotFound(noun.kind.name, id, f"{noun.title} {id} was made by this request and has been erased since")
    return found


def _refuse_undecided(view: View, request: Message, decided: Decided[Any]) -> None:
    """Refuse to write the record of a VM in passing while a restore has left open whether it is true. Raises BadState.

    Written, it counts as a word of today, and all of it: a disk detached, a label set, would have started a guest that was
    stopped since the backup.
    """
    if request.DESCRIPTOR.name.removesuffix("Request") in _DECIDE_VMS:
        return
    for kind, id in map(kinds.split, decided.txn.puts):
        vm = view.get(kinds.VM, id) if kind is kinds.VM else None
        if vm is not None and is_undecided(view, id):
            say = (
                f"VM {vm.name!r} is as the backup has it, and its node was told otherwise since, or has not spoken yet: "
                "adopt it (`cairn cluster adopt`), or start, stop or delete it, first"
            )
            raise BadState("vm", vm.name, say)


def _admit(view: View, caller: Caller, request: Message, decided: Decided[Any]) -> None:
    """Refuse a decision about an object its caller may not do that to, whatever its looking up has asked. Raises Denied.

    TryAgain when it stands on a record that cannot be read: the store would refuse it.
    """
    if harmed := touched(view, decided.txn):
        say = f"{', '.join(harmed)} cannot be read; `cairn cluster fsck` lists what is damaged"
        raise TryAgain(say)
    _refuse_undecided(view, request, decided)
    noun = decided.noun
    put = decided.txn.puts.get(noun.kind.key(decided.id))
    record: Any = view.get(noun.kind, decided.id)
    if record is None and put is not None:
        record = noun.kind.message.FromString(put.value)
    verb = verb_of(request)
    for kind, id in witnesses(view, caller, verb, record) if record is not None else ():
        # Taken back at this moment through another controller, it is not his any more.
        decided.txn.check(kind, id, view.revision_of(kind, id))
    if record is not None and not permits(view, caller, verb, record):
        raise Denied(f"{caller.kind} {caller.id!r} may not {verb} {noun.title} {decided.name or decided.id!r}")
    if verb is not Verb.ADOPT:
        # What nodes have already is there, whatever its project may have.
        charge(view, decided.txn)
