"""What a store that cannot do something, or has no node of that name any more, means to who calls: its kinds by name.

A full store is RESOURCE_EXHAUSTED, so that no client tries again for half a minute; one that does not answer, or not to this
controller, may do so later, or to another controller.
"""

from __future__ import annotations

from typing import Final

from cairn.controller.store.base import Corrupt, Full, StoreError, Unavailable, View
from cairn.proto import kinds
from cairn.proto.errors import BadState, Exhausted, NotFound, Refused, TryAgain

# What is used up, in the details of the refusal.
STORE: Final = "store"


class StoreFull(Exhausted):
    """Nothing can be written for now: that says nothing of what was asked for."""

    lasting = False


class AuditFull(Exhausted):
    """Nothing is changed, as it could not be kept on record: that says nothing of what was asked for."""

    lasting = False


class StoreBroken(BadState):
    """The store's own state forbids everything."""

    lasting = False


def refusal(error: StoreError) -> Refused:
    """Return what to answer; raise it `from` the error."""
    if isinstance(error, Full):
        return StoreFull(STORE, f"{error}; nothing can be changed until there is room, all else goes on")
    if isinstance(error, Corrupt):
        return StoreBroken(STORE, "", str(error))
    if isinstance(error, Unavailable):
        return TryAgain(str(error))
    return TryAgain(f"the store has failed: {error}")


def removed(view: View, node: str) -> Refused:
    """Return what to answer a node that has no record, or none that can be read."""
    if node in view.unreadable(kinds.NODE):
        return TryAgain(f"the record of node {node} cannot be read; `cairn cluster fsck` lists what is damaged")
    return NotFound("node", node, f"node {node} is not part of this cluster: join it again")
