"""One group of mutations: decided one after the other, each on what those before it leave, for one transaction.

    group = Group(view, link)
    for call in calls:
        group.add(call)                 # True: taken. False: it cannot share this transaction, or what it said is not final
    revision = await store.commit(group.sealed())
    group.taken                         # (call, its decision, its request record)
    group.link                          # the end of the audit's chain, once that is committed

Two calls share a transaction unless one writes the object of the other (each answer shows its object as this transaction left
it), or both have one request id. A refusal counts when it is true without the neighbours, whose commit may fail, and on a view
as fresh as the store.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from cairn.controller.api.chain import HEAD_BYTES, Link, record_id
from cairn.controller.api.decision import Decided
from cairn.controller.model.permits import Caller
from cairn.controller.store.base import TXN_BYTES_MAX, Gathering, Txn, View
from cairn.controller.store.view import Fork
from cairn.controller.words import size
from cairn.proto import kinds
from cairn.proto.errors import Exhausted, Refused
from cairn.proto.v1.audit_pb2 import Audit
from cairn.proto.v1.cluster_pb2 import RequestRecord

# Records named by one who asked for too much; those that go with what was asked for are not.
_NAMED_MAX: Final = 3
_BESIDES: Final = (kinds.REQUEST, kinds.EVENT, kinds.EVENT_OF, kinds.AUDIT)


@dataclass(eq=False, slots=True)
class Call:
    """One mutation on its way. decide: pure, raises Refused; complete: adds the request record and events."""

    decide: Callable[[View], Decided[Any]]
    complete: Callable[[Decided[Any]], RequestRecord]
    # What the audit keeps of it, on the view it was decided on.
    audit: Callable[[View, Decided[Any]], Audit]
    # The record of its refusal; None: it is not remembered.
    refuse: Callable[[Refused], RequestRecord | None]
    # Id of its request record.
    request: str
    digest: bytes
    caller: Caller
    # Somebody may have asked the same before: the id is not one that was made for this call.
    repeatable: bool
    answer: asyncio.Future[Any]
    # What the audit keeps of it, as it was decided last.
    kept: Audit | None = None
    attempts: int = 0
    # It was decided on a view that turned out too old, so the next must be as fresh as the store.
    stale: bool = False
    # Its commit is in doubt, or somebody has used its request id: the store is asked for its record first.
    doubtful: bool = False


@dataclass(eq=False, slots=True)
class Taken:
    """A call that is part of the group."""

    call: Call
    decided: Decided[Any]
    record: RequestRecord
    checks: frozenset[str]


@dataclass(eq=False, slots=True)
class Group:
    """See the module. fresh: the view is as fresh as the store was after all its calls had come."""

    view: View
    link: Link
    gathering: Gathering = field(init=False)
    taken: list[Taken] = field(default_factory=list)
    # (call, why): refused for good.
    refused: list[tuple[Call, Exception]] = field(default_factory=list)
    # The view after those taken; None: none is.
    _after: View | None = None
    _full: bool = False
    _objects: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        start = Txn("api").check(kinds.AUDIT_HEAD, self.link.chain, self.link.revision)
        self.gathering = Gathering(start, puts=1, size_bytes=HEAD_BYTES)

    @property
    def txn(self) -> Txn:
        """What those taken write."""
        return self.gathering.txn

    def sealed(self) -> Txn:
        """Return what to commit: that, and where the audit's chain ends then."""
        return self.txn.put(kinds.AUDIT_HEAD, self.link.chain, self.link.head)

    def add(self, call: Call, *, fresh: bool) -> bool:
        """Decide about a call. False: it is for the next group, on a view as fresh as the store if `call.stale`."""
        if self._full or kinds.REQUEST.key(call.request) in self.txn.puts:
            return False
        call.kept = None
        try:
            view = self._after or self.view
            decided = call.decide(view)
            call.kept = call.audit(view, decided)
            record = call.complete(decided)
            return self._take(call, decided, record, call.kept)
        except Refused as refusal:
            return self._refuse(call, refusal, fresh=fresh)
        except Exception as fault:  # noqa: BLE001 - the boundary: a bug met by one call must not stop the others
            self.refused.append((call, fault))
            return True

    def _refuse(self, call: Call, refusal: Refused, *, fresh: bool) -> bool:
        if self._after is not None and not isinstance(refusal, _Large):
            try:
                call.decide(self.view)
            except Refused as alone:
                refusal = alone
            else:
                call.stale = True
                return False
        if not fresh:
            call.stale = True
            return False
        self.refused.append((call, refusal))
        return True

    def _take(self, call: Call, decided: Decided[Any], record: RequestRecord, audit: Audit) -> bool:
        txn, object = decided.txn, decided.noun.kind.key(decided.id)
        written = txn.puts.keys() | txn.deletes
        if written & self._objects or object in self.txn.puts or object in self.txn.deletes:
            return False
        checks = frozenset(txn.checks)
        recorded, link = self.link.added(audit)
        txn.put(kinds.AUDIT, record_id(recorded.chain, recorded.number), recorded)
        if not self.gathering.add(txn):
            if not self.taken:
                raise too_large(txn)
            # Others are likely as large: deciding them now would be in vain.
            self._full = True
            return False
        self.link = link
        self._objects.add(object)
        self.taken.append(Taken(call, decided, record, checks))
        if isinstance(self._after, Fork):
            self._after.extend(txn)
        else:
            self._after = self.view.fork(txn)
        return True


class _Large(Exhausted):
    """No view makes it smaller."""


def too_large(txn: Txn) -> Refused:
    """Return why a change cannot be one transaction, naming what is large in it."""
    if txn.size_bytes <= TXN_BYTES_MAX:
        say = f"this changes {txn.size} records at once, more than can be changed together: change fewer at a time"
        return _Large("transaction", say)
    asked = [item for item in txn.puts.items() if kinds.split(item[0])[0] not in _BESIDES]
    largest = sorted(asked, key=lambda item: len(item[1].value), reverse=True)[:_NAMED_MAX]
    named = ", ".join(f"{key.removeprefix(kinds.ROOT)} with {size(len(put.value))}" for key, put in largest)
    say = f"this would write {size(txn.size_bytes)} at once, at most {size(TXN_BYTES_MAX)} can be: the largest are {named}"
    return _Large("transaction", f"{say}; give less (keys, user data, labels)")
