"""The nodes a VM could go to, as columns: one row per node, one numpy array per property.

A decision looks at every node, so with 1,000 nodes and 1,000 decisions a second it cannot walk the View's records each
time. The table is derived from a View: all of it once, then only the rows of nodes that changed, as the runtime leads it
from view to view (`follow`). Asked about a view it was not led to, it derives all of it, so its answers never depend on how
it got there. Rows are sorted by name, for the same reason. Rejected: sampling some nodes (the decision could not say how
many nodes each filter refused), plain Python rows (2,400 decisions a second at 1,000 nodes and nothing else; numpy does
90,000).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from typing import Final, TypeAlias

import numpy as np
from cairn.controller.model.beyond import beyond, pool_left
from cairn.controller.model.capabilities import capabilities
from cairn.controller.model.nodes import capacity, hash_of
from cairn.controller.model.pools import pool_claimed
from cairn.controller.model.restored import heard
from cairn.controller.store.base import View
from cairn.proto import kinds
from cairn.proto.ids import LOCAL_POOL, pool_id
from cairn.proto.kinds import AnyKind
from cairn.proto.v1.node_pb2 import NodeCapacity, NodeFacts
from cairn.proto.v1.vm_pb2 import NodeClaims
from numpy.typing import NDArray

Mask: TypeAlias = NDArray[np.bool_]
Amounts: TypeAlias = NDArray[np.int64]

# A change of one of these changes a row.
ROW_KINDS: Final = (
    kinds.NODE, kinds.NODE_FACTS, kinds.NODE_SESSION, kinds.NODE_CLAIMS, kinds.POOL_CLAIMS, kinds.NODE_HEARD, kinds.UNKNOWN,
)  # fmt: skip
_NOTHING: Final = NodeCapacity()
_LOCAL: Final = f"{LOCAL_POOL}/"


class Reach:
    """A pool that is not some node's local one: its type, which rows reach it, and how many bytes it has left."""

    def __init__(self, type: str, count: int) -> None:
        self.type, self.free_bytes = type, 0
        self.mask: Mask = np.zeros(count, np.bool_)


class Candidates:
    """The table. Columns are parallel to `ids`; amounts are in CPUs and bytes. `disk` is that of nodes' local pools."""

    def __init__(self) -> None:
        # The picture the rows show: which View, and at which revision, as a live one moves in place.
        self._view: View | None = None
        self._revision = 0
        self._stale: set[str] = set()
        # Rows of which only the claims changed: by far the most.
        self._claimed: set[str] = set()
        # Other pools whose room may have changed.
        self._pools: set[str] = set()
        self._columns(0)

    def _columns(self, count: int) -> None:
        self.ids: list[str] = []
        self.names: list[str] = []
        self.labels: list[Mapping[str, str]] = [{}] * count
        self.row: dict[str, int] = {}
        self.ready: Mask = np.zeros(count, np.bool_)
        # What is claimed of it can be read.
        self.counted: Mask = np.zeros(count, np.bool_)
        self.cordoned: Mask = np.zeros(count, np.bool_)
        # It runs guests of some architecture at all, and its hypervisor answers.
        self.hypervisor: Mask = np.zeros(count, np.bool_)
        self.archs: dict[str, Mask] = {}
        # Which agents know what (proto/capabilities.py).
        self.known: dict[str, Mask] = {}
        self.rows: NDArray[np.intp] = np.arange(count)
        self.cpus: Amounts = np.zeros(count, np.int64)
        self.cpus_free: Amounts = np.zeros(count, np.int64)
        self.memory_bytes: Amounts = np.zeros(count, np.int64)
        self.memory_free_bytes: Amounts = np.zeros(count, np.int64)
        # Of all there is, the share that is free, and that one CPU or one byte is (of nothing: one is all).
        self.cpus_share, self.cpu_share = np.zeros(count), np.ones(count)
        self.memory_share, self.byte_share = np.zeros(count), np.ones(count)
        self.disk_bytes: Amounts = np.zeros(count, np.int64)
        self.disk_free_bytes: Amounts = np.zeros(count, np.int64)
        self.hashes: NDArray[np.uint64] = np.zeros(count, np.uint64)
        # By pool id, without the local ones.
        self.reach: dict[str, Reach] = {}

    def __len__(self) -> int:
        return len(self.ids)

    def follow(self, view: View, changed: Iterable[tuple[AnyKind, str]]) -> None:
        """Move to a view that differs from the last one at most in what changed."""
        if self._view is None:
            return
        for kind, id in changed:
            if kind is kinds.NODE_CLAIMS:
                self._claimed.add(id)
            elif kind is kinds.POOL_CLAIMS:
                (self._claimed if id.startswith(_LOCAL) else self._pools).add(id.removeprefix(_LOCAL))
            elif kind in ROW_KINDS:
                # Of what is unknown on a node, the id begins with the node's; it may be in a pool of several.
                self._stale.add(id.partition("/")[0])
                if kind is kinds.UNKNOWN:
                    self._pools.update(self.reach)
        self._view, self._revision = view, view.revision

    def at(self, view: View) -> Candidates:
        """Return the table as of that view."""
        if view is not self._view or view.revision != self._revision or any(self._reorders(view, id) for id in self._stale):
            self._derive(view)
        else:
            for id in self._stale:
                if id in self.row:
                    self._fill(view, self.row[id])
            for id in self._claimed - self._stale:
                if id in self.row:
                    self._fill_claims(view, self.row[id])
        for pool in self._pools & self.reach.keys():
            self.reach[pool].free_bytes = pool_left(view, pool)
        self._stale.clear()
        self._claimed.clear()
        self._pools.clear()
        return self

    def reaches(self, pool: str) -> Mask:
        """Return which rows reach a pool."""
        if pool in self.reach:
            return self.reach[pool].mask
        mask = np.zeros(len(self), np.bool_)
        owner = pool.removeprefix(_LOCAL)
        if pool.startswith(_LOCAL) and owner in self.row:
            mask[self.row[owner]] = True
        return mask

    def free_in(self, type: str) -> Amounts:
        """Return the room in the roomiest pool of a type that each row reaches; -1: it reaches none."""
        if type == LOCAL_POOL:
            return self.disk_free_bytes
        found: Amounts = np.full(len(self), -1, np.int64)
        for each in self.reach.values():
            if each.type == type:
                found = np.where(each.mask, np.maximum(found, each.free_bytes), found)
        return found

    def _reorders(self, view: View, id: str) -> bool:
        """Tell whether a node came, went, or changed its name."""
        node, row = view.get(kinds.NODE, id), self.row.get(id)
        if node is None or row is None:
            return (node is None) != (row is None)
        return self.names[row] != node.name

    def _derive(self, view: View) -> None:
        nodes = sorted((node for node in view.all(kinds.NODE)), key=lambda node: (node.name, node.id))
        self._columns(len(nodes))
        self.ids = [node.id for node in nodes]
        self.names = [node.name for node in nodes]
        self.row = {id: row for row, id in enumerate(self.ids)}
        self.hashes = np.array([hash_of(id) for id in self.ids], np.uint64)
        for row in range(len(nodes)):
            self._fill(view, row)
        self._view, self._revision = view, view.revision

    def _fill(self, view: View, row: int) -> None:
        id = self.ids[row]
        node, facts = view.get(kinds.NODE, id), view.get(kinds.NODE_FACTS, id)
        if node is None:
            raise LookupError(f"node {id} vanished without a change being told")
        connected = view.get(kinds.NODE_SESSION, id) is not None and heard(view, id)
        self.ready[row] = facts is not None and connected
        self.cordoned[row] = node.spec.cordoned or node.HasField("delete_time")
        self.labels[row] = node.labels
        runs = set(facts.hypervisor.archs) if facts is not None else set()
        self.hypervisor[row] = facts is not None and bool(runs) and not facts.hypervisor.silent
        _mark(self.archs, row, runs, len(self))
        _mark(self.known, row, capabilities(view, id), len(self))
        most = capacity(node, facts) if facts is not None else NodeCapacity()
        self.cpus[row], self.memory_bytes[row], self.disk_bytes[row] = most.cpus, most.memory_bytes, most.disk_bytes
        self.cpu_share[row], self.byte_share[row] = 1 / max(1, most.cpus), 1 / max(1, most.memory_bytes)
        self._fill_reach(row, facts)
        self._fill_claims(view, row)

    def _fill_reach(self, row: int, facts: NodeFacts | None) -> None:
        """Which pools besides its local one a node reaches; what it says of their size counts for all that reach them."""
        pools = {pool_id(pool.type, self.ids[row], pool.name): pool.type for pool in (facts.pools if facts is not None else ())}
        for id in [id for id in pools if not id.startswith(_LOCAL) and id not in self.reach]:
            self.reach[id] = Reach(pools[id], len(self))
        for id, each in self.reach.items():
            if each.mask[row] or id in pools:
                each.mask[row] = id in pools
                self._pools.add(id)

    def _fill_claims(self, view: View, row: int) -> None:
        id = self.ids[row]
        self.counted[row] = id not in view.unreadable(kinds.NODE_CLAIMS) and _LOCAL + id not in view.unreadable(
            kinds.POOL_CLAIMS
        )
        claims = view.get(kinds.NODE_CLAIMS, id) or NodeClaims()
        more = beyond(view, id) if view.count(kinds.UNKNOWN) else _NOTHING
        self.cpus_free[row] = self.cpus[row] - claims.cpus - more.cpus
        self.memory_free_bytes[row] = self.memory_bytes[row] - claims.memory_bytes - more.memory_bytes
        self.cpus_share[row] = self.cpus_free[row] * self.cpu_share[row]
        self.memory_share[row] = self.memory_free_bytes[row] * self.byte_share[row]
        self.disk_free_bytes[row] = self.disk_bytes[row] - pool_claimed(view, _LOCAL + id) - more.disk_bytes


def _mark(columns: dict[str, Mask], row: int, names: Set[str], count: int) -> None:
    """Say in the columns which of all names a row has."""
    for name in names - columns.keys():
        columns[name] = np.zeros(count, np.bool_)
    for name, mask in columns.items():
        mask[row] = name in names
