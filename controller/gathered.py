"""Decisions of one reconciler on their way: those gathered for the next transaction, and the transaction in flight before them.

    group = Group("placement", fence)
    group.add(key, txn, outcome)      # decided on what the commit in flight will leave, and the decisions before it
    ...
    group.stands_on(landed, 4711)     # that commit has its revision now: so have the checks of what it wrote

What a group decides about records that the flight before it writes it knows without their revisions, which the store gives
when it commits. A check of such a record can only mean "as that flight leaves it", since the group sees nothing else; so it
gets that flight's revision when it has landed, before it is sent. Nothing is sent that stands on what has not landed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from cairn.controller.acts import HEAD_CHECKS, HEAD_RECORDS
from cairn.controller.api.chain import ENDS_BYTES
from cairn.controller.events import RECORDS, bytes_of
from cairn.controller.model.happening import EventSpec
from cairn.controller.reconcilers.base import Outcome
from cairn.controller.store.base import OPERATIONS_MAX, Changed, Gathering, TooBig, Txn
from cairn.proto import kinds
from cairn.proto.v1.audit_pb2 import Audit

# Keys decided for one transaction.
GROUP_MAX: Final = 64


class Group:
    """Decisions to commit together. fence: the revision of the cluster's record when the first was made (0: there is none)."""

    def __init__(self, writer: str, fence: int) -> None:
        self._gathering = Gathering(Txn(writer))
        # Operations of the largest decision; one more did not fit.
        self._largest, self._closed = 0, False
        self.fence = fence
        self.txn = self._gathering.txn
        self.keys: list[str] = []
        self.events: list[EventSpec] = []
        self.audits: list[Audit] = []
        self.again: dict[str, float] = {}
        self.say = ""
        # Keys that need nothing if this group, and the flight before it, land: else they are looked at again.
        self.trusting: list[str] = []

    def add(self, key: str, txn: Txn, outcome: Outcome, audits: Sequence[Audit] = (), audits_bytes: int = 0) -> bool:
        """Take a decision in, with its events, and its records in the audit, which take so many bytes; False: there is no room.

        Raises TooBig: there never will be.
        """
        puts, put_bytes, checks = RECORDS * len(outcome.events) + len(audits), bytes_of(outcome.events) + audits_bytes, 0
        largest = txn.size + puts
        if audits and not self.audits:
            # The end of their chain comes with the first.
            puts, put_bytes, checks = puts + HEAD_RECORDS, put_bytes + ENDS_BYTES, HEAD_CHECKS
        if not self._gathering.add(txn, puts=puts, put_bytes=put_bytes, checks=checks):
            if not self.keys:
                besides = f"{len(outcome.events)} events and {len(audits)} records of the audit"
                raise TooBig(f"{txn.size} operations, {txn.size_bytes} bytes, {besides} do not fit one transaction")
            self._closed = True
            return False
        self._largest = max(self._largest, largest)
        self.keys.append(key)
        self.events += outcome.events
        self.audits += audits
        self.say = outcome.say
        if outcome.again_after_s is not None:
            self.again[key] = outcome.again_after_s
        return True

    def full(self, keys_max: int) -> bool:
        """Tell whether it has so many keys, or likely no room for one more decision: what does not fit was decided in vain."""
        if self._closed or len(self.keys) >= keys_max:
            return True
        checks = len(self.txn.checks) + self._gathering.checks
        operations = max(checks, len(self.txn.puts) + len(self.txn.deletes) + self._gathering.puts)
        return bool(self.keys) and operations + self._largest > OPERATIONS_MAX

    def looked(self) -> list[str]:
        """Return the keys that must be looked at again if this is thrown away."""
        return [*self.keys, *self.trusting]

    def written(self) -> Iterable[Changed]:
        """Return the records it changes that are in views."""
        found = (kinds.split(key) for key in (*self.txn.puts, *self.txn.deletes))
        return [(kind, id) for kind, id in found if kind.cached]

    def stands_on(self, landed: Txn, revision: int) -> None:
        """Say at which revision the flight before this one has landed. Before anything is decided on a view that shows it."""
        checks = self.txn.checks
        for key in landed.puts.keys() & checks.keys():
            # 0: that it is absent, which the store may judge.
            if checks[key]:
                checks[key] = revision


@dataclass(eq=False, slots=True)
class Flight:
    """A group being committed, and what becomes of it: its revision, once the view shows it."""

    group: Group
    landing: asyncio.Task[int]
