"""Reconcilers: what each is, what it returns, and one example walked.

A *reconciler* makes one sentence true. It is told *keys*, never data: a key is whatever it works on ("i-1234abcd", a subnet
id). For a record that changed, `keys` says which keys to look at; `all_keys` names them all, for the periodic full scan.
`reconcile` looks at a View and returns an *outcome*: a transaction or none, and one sentence. It is a pure function of
(view, key, now); the same code runs for a change, for the full scan, and for a plan on a forked view.

    for key in reconciler.keys(view, kinds.PORT, "nic-1234abcd"):          # -> "vxnet-1234abcd"
        outcome = reconciler.reconcile(view, key, now)                        # Outcome(txn, "gave 10.1.1.2 to nic-1234abcd")
        if outcome.txn: await store.commit(outcome.txn)                        # Conflict: something moved; decide again

The runtime (controller/runtime.py) does that, many keys to a commit. A reconciler is named like the `writer` of the kinds
it writes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol, runtime_checkable

from cairn.controller.model.happening import ActSpec, EventSpec
from cairn.controller.store.base import Changed, Txn, View
from cairn.proto.kinds import AnyKind


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a reconciler found for a key.

    txn None: nothing to write, nor to tell; one that only checks still carries events. again_after_s: look again then even if
    nothing changes. held_up_by: records ("vm/i-...") that cannot be read; a change of one has it looked at again, too. acts:
    what of the transaction the audit has a record of: it is committed with those, or not at all.
    """

    txn: Txn | None = None
    say: str = ""
    again_after_s: float | None = None
    events: Sequence[EventSpec] = field(default_factory=tuple)
    held_up_by: Sequence[str] = ()
    acts: Sequence[ActSpec] = ()


NOTHING = Outcome()


class Reconciler(Protocol):
    """Makes one sentence true."""

    @property
    def name(self) -> str:
        """Name, and `writer` of the kinds it writes."""
        ...

    @property
    def reads(self) -> Sequence[AnyKind]:
        """Kinds whose changes it wants to know of."""
        ...

    @property
    def writes(self) -> Sequence[AnyKind]:
        """Kinds it writes or deletes. The runtime refuses anything else."""
        ...

    def keys(self, view: View, kind: AnyKind, id: str) -> Iterable[str]:
        """Return the keys to look at since that record changed; `view` is as after the change, so the record may be gone."""
        ...

    def all_keys(self, view: View) -> Iterable[str]:
        """Return every key there is something to decide about.

        May be asked for key by key, while the view moves on: who iterates over a copy of a view's ids is not asked twice.
        """
        ...

    def shard(self, key: str) -> str:
        """Return what decides which controller looks at a key."""
        ...

    def reconcile(self, view: View, key: str, now: datetime) -> Outcome:
        """Decide. Pure; never blocks."""
        ...


@runtime_checkable
class Follower(Protocol):
    """A reconciler that keeps something derived from the view, instead of deriving all of it each time.

    The runtime calls `follow` before `reconcile` whenever it moves to another view: a newer one, a fork, or back from a fork. A
    reconciler asked about a view it was not led to (a plan's fork) must derive from scratch: the answer may not differ.
    """

    def follow(self, view: View, changed: Iterable[Changed]) -> None:
        """Move to that view; `changed` is at least everything in which it differs from the one before."""
        ...
