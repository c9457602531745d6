"""Questions about one node: its name, whether it answers, what placements may use of it."""

from __future__ import annotations

from hashlib import blake2b
from typing import Final

from cairn.controller.store.base import View
from cairn.proto import kinds
from cairn.proto.ids import LOCAL_POOL
from cairn.proto.v1.node_pb2 import Node, NodeCapacity, NodeFacts

CPU_OVERCOMMIT: Final = 4.0
MEMORY_SHARE: Final = 0.9
DISK_SHARE: Final = 0.95


def node_name(view: View, node: str) -> str:
    """Return a node's name, or its id when its record is gone."""
    found = view.get(kinds.NODE, node)
    return found.name if found is not None else node


def connected(view: View, node: str) -> bool:
    """Tell whether a node's agent is connected to some controller."""
    return view.get(kinds.NODE_SESSION, node) is not None


def hypervisor_silent(view: View, node: str) -> str:
    """Return why a connected node's hypervisor does not answer; empty: it does, or nobody can tell."""
    facts = view.get(kinds.NODE_FACTS, node)
    return facts.hypervisor.silent if facts is not None and connected(view, node) else ""


def capacity(node: Node, facts: NodeFacts) -> NodeCapacity:
    """Return what placements may use of a node: threads times overcommit, a share of memory, and of the local pool."""
    overcommit = node.spec.cpu_overcommit if node.spec.HasField("cpu_overcommit") else CPU_OVERCOMMIT
    share = node.spec.memory_share if node.spec.HasField("memory_share") else MEMORY_SHARE
    pool_bytes = sum(pool.total_bytes for pool in facts.pools if pool.type == LOCAL_POOL)
    return NodeCapacity(
        cpus=int(facts.cpu.threads * overcommit),
        memory_bytes=int(facts.memory_bytes * share),
        disk_bytes=int(pool_bytes * DISK_SHARE),
    )


def hash_of(id: str) -> int:
    """Return 64 well-mixed bits of an id, the same everywhere and always."""
    return int.from_bytes(blake2b(id.encode(), digest_size=8).digest(), "big")
