"""Puts on record what a controller does by itself: what it erases, and how jobs end (controller/acts.py).

A record has for its cause the request that led to it, whose id was stored with what it asked for: `stamp` does that for every
mutation, whatever decided it, also a plan that was kept. Whoever erases needs no memory: a restart between changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

from cairn.controller.api.chain import LINK_BYTES
from cairn.controller.api.changes import object_of, tell
from cairn.controller.api.commits import Commits
from cairn.controller.model.happening import ActSpec
from cairn.controller.model.permits import Caller
from cairn.controller.store.base import Put, Txn, View
from cairn.proto import kinds
from cairn.proto.errors import Refused
from cairn.proto.seams import Clock, timestamp
from cairn.proto.v1.audit_pb2 import Audit

_DELETED: Final = (kinds.VM, kinds.VOLUME)


class Acts:
    """See Records of controller/acts.py."""

    def __init__(self, commits: Commits, clock: Clock, closed: Callable[[], Refused | None]) -> None:
        self._commits, self._clock, self._closed = commits, clock, closed

    def closed(self) -> Refused | None:
        """Return why nothing can be put on record now."""
        return self._closed()

    def of(self, acts: Sequence[ActSpec], view: View, txn: Txn) -> list[Audit]:
        """Return a record of each: of its object, what the transaction changes of it."""
        now, caller = timestamp(self._clock.now()), Caller.system(txn.writer)
        audits: list[Audit] = []
        for act in acts:
            audit = Audit(
                time=now,
                caller=caller.kind,
                who=caller.id,
                cause=act.cause,
                method=act.method,
                object=act.object,
                object_name=act.name,
                project=act.project,
            )
            tell(audit, view, _of_object(txn, act.object))
            for object, field, value in act.found:
                audit.changes.add(object=object, field=field, after=value)
            audits.append(audit)
        return audits

    def bytes_of(self, audits: Sequence[Audit]) -> int:
        """Return at most how many bytes records take."""
        return sum(audit.ByteSize() + LINK_BYTES for audit in audits)

    async def commit(self, txn: Txn, audits: Sequence[Audit]) -> int:
        """Commit by the one writer of the chain."""
        return await self._commits.note(txn, audits)


def _of_object(txn: Txn, object: str) -> Txn:
    """Return the part of a transaction that is about one object."""

    def about(key: str) -> bool:
        kind, id = kinds.split(key)
        return object in (object_of(kind, id), id if kind is kinds.SECRET else "")

    part = Txn(txn.writer)
    part.puts = {key: put for key, put in txn.puts.items() if about(key)}
    part.deletes = {key for key in txn.deletes if about(key)}
    return part


def stamp(view: View, txn: Txn, request_id: str) -> None:
    """Have what a mutation asks for say which request that was: what is deleted, or made a job, or cancelled by it."""
    for key, put in list(txn.puts.items()):
        kind, id = kinds.split(key)
        old: Any = view.get(kind, id) if kind in _DELETED or kind is kinds.JOB else None
        if kind is kinds.JOB or old is not None:
            new: Any = kind.message.FromString(put.value)
            if _stamped(old, new, request_id):
                txn.puts[key] = Put(new.SerializeToString(deterministic=True), put.lease)


def _stamped(old: Any, new: Any, request_id: str) -> bool:
    """Fill in the fields of one record; False: there was nothing to fill in."""
    if new.DESCRIPTOR is kinds.JOB.message.DESCRIPTOR:
        if old is None:
            new.create_request = request_id
        elif new.spec.cancel_requested and not old.spec.cancel_requested:
            new.cancel_request = request_id
        else:
            return False
        return True
    if not new.HasField("delete_time"):
        had = bool(new.delete_request)
        new.delete_request = ""
        return had
    if old.HasField("delete_time") and old.purge_time == new.purge_time:
        # Written in passing, or asked to be erased at once again.
        return False
    new.delete_request = request_id
    return True
