"""Whether a node's agent answers is told once per change: NodeUp and NodeDown.

Keys are node ids. What was told last is a record of its own, written with the event: events are in no view. A node that is
still down when its event has expired is told of again.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Final

from cairn.controller.model.happening import EventSpec
from cairn.controller.reconcilers.base import NOTHING, Outcome
from cairn.controller.retention import EVENT_KEEP_S
from cairn.controller.store.base import Txn, View
from cairn.proto import kinds
from cairn.proto.kinds import AnyKind
from cairn.proto.seams import moment, timestamp
from cairn.proto.v1.node_pb2 import NodeTold

UP: Final = "NodeUp"
DOWN: Final = "NodeDown"
YOUNG: Final = timedelta(hours=1)
# How long an event is kept.
KEPT: Final = timedelta(seconds=EVENT_KEEP_S)


class NodeEvents:
    """Whether a node's agent answers is told once per change."""

    name = "node_events"
    reads: tuple[AnyKind, ...] = (kinds.NODE_SESSION, kinds.NODE_FACTS, kinds.NODE_TOLD)
    writes: tuple[AnyKind, ...] = (kinds.NODE_TOLD,)

    def keys(self, view: View, kind: AnyKind, id: str) -> Iterable[str]:  # noqa: ARG002 - all ids are node ids
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
        before, truth = view.get(kinds.NODE_TOLD, key), UP if session is not None else DOWN
        told = before.reason if before is not None and (before.reason == UP or now - moment(before.tell_time) < KEPT) else ""
        # That it came up was told, and the telling has expired.
        old = session is not None and now - moment(session.connect_time) > YOUNG
        if told == truth or (not told and old):
            return NOTHING
        say = f"node {node.name} is connected"
        if session is None:
            say = f"node {node.name} does not answer; its guests may be running"
        event = EventSpec(key, node.name, node.project, truth, say, node.name, warning=session is None)
        txn = Txn(self.name).check(kinds.NODE_SESSION, key, view.revision_of(kinds.NODE_SESSION, key))
        # A node that is removed at this moment is told of no more.
        txn.check(kinds.NODE, key, view.revision_of(kinds.NODE, key))
        txn.check(kinds.NODE_TOLD, key, view.revision_of(kinds.NODE_TOLD, key))
        txn.put(kinds.NODE_TOLD, key, NodeTold(node=key, reason=truth, tell_time=timestamp(now)))
        return Outcome(txn, say, events=(event,))
