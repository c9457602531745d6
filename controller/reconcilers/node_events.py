"""Whether a node's agent answers is told once per change: NodeUp and NodeDown.

Keys are node ids. The last such event is itself the memory of what was told, so there is nothing else to keep; when it has
expired, a node that is still down is told of again.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Final

from cairn.controller.model.happening import EventSpec
from cairn.controller.reconcilers.base import NOTHING, Outcome
from cairn.controller.store.base import Txn, View
from cairn.proto import kinds
from cairn.proto.kinds import AnyKind
from cairn.proto.seams import moment

UP: Final = "NodeUp"
DOWN: Final = "NodeDown"
YOUNG: Final = timedelta(hours=1)


class NodeEvents:
    """Whether a node's agent answers is told once per change."""

    name = "node_events"
    reads: tuple[AnyKind, ...] = (kinds.NODE_SESSION, kinds.NODE_FACTS)
    writes: tuple[AnyKind, ...] = (kinds.EVENT,)

    def keys(self, view: View, kind: AnyKind, id: str) -> Iterable[str]:  # noqa: ARG002 - both kinds' ids are node ids
        """The node."""
        return (id,)

    def all_keys(self, view: View) -> Iterable[str]:
        """All nodes that ever connected."""
        return list(view.ids(kinds.NODE_FACTS))

    def shard(self, key: str) -> str:
        """By the node."""
        return key

    def reconcile(self, view: View, key: str, now: datetime) -> Outcome:
        """Tell if the last thing told is not true any more."""
        node, session = view.get(kinds.NODE, key), view.get(kinds.NODE_SESSION, key)
        if node is None or view.get(kinds.NODE_FACTS, key) is None:
            return NOTHING
        told, truth = _told(view, key), UP if session is not None else DOWN
        # That it came up was told, and the telling has expired.
        old = session is not None and now - moment(session.connect_time) > YOUNG
        if told == truth or (not told and old):
            return NOTHING
        say = f"node {node.name} is connected"
        if session is None:
            say = f"node {node.name} does not answer; its guests may be running"
        event = EventSpec(key, node.name, node.project, truth, say, node.name, warning=session is None)
        txn = Txn(self.name).check(kinds.NODE_SESSION, key, view.revision_of(kinds.NODE_SESSION, key))
        return Outcome(txn, say, events=(event,))


def _told(view: View, node: str) -> str:
    """Return the reason of the newest event about the node's connection, or ""."""
    events = (view.get(kinds.EVENT, id) for id in view.by(kinds.EVENT, "object", node))
    about = [event for event in events if event is not None and event.reason in (UP, DOWN)]
    return max(about, key=lambda event: event.event_time.ToNanoseconds()).reason if about else ""
