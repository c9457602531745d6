"""What is promised of nodes and pools: claims are changed in the transaction that needs them, and checked by revision.

Two deciders that take room at the same moment conflict, and the second decides again on what is left; so the claims never
exceed what there is. A sum that would go below zero means that something was given back twice: a fault that is raised, never
rounded away.
"""

from __future__ import annotations

from collections.abc import Mapping

from cairn.controller.model.beyond import beyond
from cairn.controller.model.nodes import capacity
from cairn.controller.model.pools import claimed_before, pool_claimed
from cairn.controller.store.base import Txn, View
from cairn.proto import kinds
from cairn.proto.v1.node_pb2 import NodeCapacity
from cairn.proto.v1.vm_pb2 import NodeClaims
from cairn.proto.v1.volume_pb2 import PoolClaims


def room(view: View, node: str) -> NodeCapacity:
    """Return the CPUs and memory that are free on a node, whoever holds them; nothing when it is not known."""
    left, more = unclaimed(view, node), beyond(view, node)
    left.cpus, left.memory_bytes = max(0, left.cpus - more.cpus), max(0, left.memory_bytes - more.memory_bytes)
    return left


def unclaimed(view: View, node: str) -> NodeCapacity:
    """Return the CPUs and memory that are claimed by nobody on a node; nothing when it is not known."""
    record, facts, claims = view.get(kinds.NODE, node), view.get(kinds.NODE_FACTS, node), view.get(kinds.NODE_CLAIMS, node)
    if record is None or facts is None:
        return NodeCapacity()
    most = capacity(record, facts)
    if claims is not None:
        most.cpus = max(0, most.cpus - claims.cpus)
        most.memory_bytes = max(0, most.memory_bytes - claims.memory_bytes)
    most.ClearField("disk_bytes")
    return most


def claim(
    txn: Txn,
    view: View,
    node: str = "",
    *,
    cpus: int = 0,
    memory_bytes: int = 0,
    vms: int = 0,
    pools: Mapping[str, int] | None = None,
) -> None:
    """Add to a transaction that the claims on a node and on pools (id -> bytes) change by that much. Once per transaction.

    Raises ValueError when more would be given back than was taken. Of claims that cannot be read nobody knows: the transaction
    stands on them, and is not committed before they can be (runtime.py, mutation.py).
    """
    changed = {pool: disk_bytes for pool, disk_bytes in (pools or {}).items() if disk_bytes}
    nodes = {pool.partition("/")[2] for pool in changed if claimed_before(view, pool)}
    for pool, disk_bytes in changed.items():
        _claim_pool(txn, view, pool, disk_bytes)
    for each in sorted(nodes | ({node} if cpus or memory_bytes or vms else set())):
        before = view.get(kinds.NODE_CLAIMS, each)
        after, known = NodeClaims(node=each), each not in view.unreadable(kinds.NODE_CLAIMS)
        if before is not None:
            after.CopyFrom(before)
        if each == node:
            after.cpus = _sum(each, "CPUs", after.cpus, cpus, known=known)
            after.memory_bytes = _sum(each, "bytes of memory", after.memory_bytes, memory_bytes, known=known)
            after.vms = _sum(each, "VMs", after.vms, vms, known=known)
        if each in nodes:
            # It is in the pool's claims from now on.
            after.ClearField("disk_bytes")
        txn.check(kinds.NODE_CLAIMS, each, view.revision_of(kinds.NODE_CLAIMS, each)).put(kinds.NODE_CLAIMS, each, after)


def _claim_pool(txn: Txn, view: View, pool: str, disk_bytes: int) -> None:
    known = pool not in view.unreadable(kinds.POOL_CLAIMS)
    left = _sum(pool, "bytes", pool_claimed(view, pool), disk_bytes, known=known)
    txn.check(kinds.POOL_CLAIMS, pool, view.revision_of(kinds.POOL_CLAIMS, pool))
    if left:
        txn.put(kinds.POOL_CLAIMS, pool, PoolClaims(pool=pool, disk_bytes=left))
    else:
        txn.delete(kinds.POOL_CLAIMS, pool)


def _sum(of: str, what: str, before: int, change: int, *, known: bool) -> int:
    if not known:
        return max(0, before + change)
    if before + change < 0:
        raise ValueError(f"of {of} {before} {what} are claimed, {-change} cannot be given back")
    return before + change
