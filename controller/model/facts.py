"""What a node is made of (`node_facts`), and how full its pools are (`node_pools`): told as one, stored as two.

Many decide from the first, which changes when somebody touches the machine; few look at the second, which changes each minute.
"""

from __future__ import annotations

from collections.abc import Sequence

from cairn.controller.store.base import View
from cairn.proto import kinds
from cairn.proto.v1.node_pb2 import NodeFacts, NodePools, StoragePool


def pools_of(view: View, node: str) -> Sequence[StoragePool]:
    """Return the pools a node reaches with their newest figures: a new inventory tells them too, and older releases did."""
    facts, pools = view.record(kinds.NODE_FACTS, node), view.record(kinds.NODE_POOLS, node)
    if facts is None:
        return ()
    if pools is None or facts.mod_revision > pools.mod_revision:
        return facts.message.pools
    return pools.message.pools


def facts_of(view: View, node: str) -> NodeFacts | None:
    """Return a copy of all a node told of itself, or None."""
    stored = view.get(kinds.NODE_FACTS, node)
    if stored is None:
        return None
    facts = NodeFacts()
    facts.CopyFrom(stored)
    del facts.pools[:]
    facts.pools.extend(pools_of(view, node))
    return facts


def inventory_changed(before: NodeFacts | None, told: NodeFacts) -> bool:
    """Tell whether anything but figures of pools is new."""
    return before is None or _without_figures(before) != _without_figures(told)


def figures_changed(view: View, node: str, told: NodeFacts) -> bool:
    """Tell whether the pools are not as they are known to be."""
    return list(pools_of(view, node)) != list(told.pools)


def figures(told: NodeFacts) -> NodePools:
    """Return what is stored of how full pools are."""
    return NodePools(pools=told.pools)


def _without_figures(facts: NodeFacts) -> NodeFacts:
    bare = NodeFacts()
    bare.CopyFrom(facts)
    for pool in bare.pools:
        pool.ClearField("used_bytes")
        pool.ClearField("free_bytes")
    return bare
