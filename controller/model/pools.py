"""Questions about storage pools: what volumes live in, apart from nodes.

A *pool* is known by what nodes report of it (NodeFacts.pools): "local/<node>" is a node's own, "<type>/<name>" is shared by the
nodes that report that name. Those *reach* it: a guest there can open its volumes. Its room is claimed once, whichever node a
volume is used on; claims are promises, and at most a share of what the pool has is promised.
"""

from __future__ import annotations

from cairn.controller.model.nodes import DISK_SHARE, connected
from cairn.controller.store.base import View
from cairn.proto import kinds
from cairn.proto.ids import LOCAL_POOL, pool_id
from cairn.proto.v1.volume_pb2 import VolumePlacement


def pool_of(place: VolumePlacement) -> str:
    """Return the id of the pool a volume is in. Older releases named only the node, and meant its local pool."""
    return place.pool or pool_id(LOCAL_POOL, place.node)


def is_shared(place: VolumePlacement) -> bool:
    """Tell whether several nodes can reach a volume's pool, so that no one node holds it."""
    return not place.node


def pools_on(view: View, node: str, type: str) -> dict[str, bool]:
    """Return the pools of a type that a node reaches: id -> whether it is shared."""
    facts = view.get(kinds.NODE_FACTS, node)
    if facts is None:
        return {}
    found = ((pool_id(pool.type, node, pool.name), pool.type) for pool in facts.pools)
    return {id: id != pool_id(type, node) for id, its_type in found if its_type == type}


def reaching(view: View, pool: str) -> list[str]:
    """Return the nodes that report a pool, connected or not."""
    return view.by(kinds.NODE_FACTS, "pool", pool)


def shared_pools(view: View, type: str) -> list[str]:
    """Return the pools of a type that several nodes can reach and a connected one does, sorted."""
    found = {(pool.type, pool.name) for facts in view.all(kinds.NODE_FACTS) for pool in facts.pools if pool.name}
    ids = sorted(pool_id(its_type, "", name) for its_type, name in found if its_type == type)
    return [id for id in ids if any(connected(view, node) for node in reaching(view, id))]


def pool_types(view: View) -> set[str]:
    """Return the types of the pools there are."""
    return {LOCAL_POOL} | {pool.type for facts in view.all(kinds.NODE_FACTS) for pool in facts.pools}


def pool_capacity(view: View, pool: str) -> int:
    """Return how many bytes of a pool may be promised.

    Nodes may see a shared pool differently for a while: the least that a connected one reports counts; when none is connected,
    the least that was last reported.
    """
    nodes = reaching(view, pool)
    told = [node for node in nodes if connected(view, node)] or nodes
    return min((int(_total_bytes(view, node, pool) * DISK_SHARE) for node in told), default=0)


def _total_bytes(view: View, node: str, pool: str) -> int:
    facts = view.get(kinds.NODE_FACTS, node)
    if facts is None:
        return 0
    return sum(each.total_bytes for each in facts.pools if pool_id(each.type, node, each.name) == pool)


def pool_claimed(view: View, pool: str) -> int:
    """Return how many bytes of a pool are promised; of a local pool also what an older release wrote into its node's claims."""
    claims = view.get(kinds.POOL_CLAIMS, pool)
    return (claims.disk_bytes if claims is not None else 0) + claimed_before(view, pool)


def claimed_before(view: View, pool: str) -> int:
    """Return what an older release had claimed of a local pool, in the claims of its node."""
    type, _, node = pool.partition("/")
    claims = view.get(kinds.NODE_CLAIMS, node) if type == LOCAL_POOL else None
    return claims.disk_bytes if claims is not None else 0


def pool_room(view: View, pool: str) -> int:
    """Return how many bytes of a pool can still be promised; 0 when it is not known."""
    return max(0, pool_capacity(view, pool) - pool_claimed(view, pool))


def pool_for(view: View, node: str, type: str) -> str:
    """Return the pool of a type in which a node's next volume goes, the one with the most room; empty: it reaches none."""
    pools = pools_on(view, node, type)
    if len(pools) <= 1:
        return next(iter(pools), "")
    return max(sorted(pools), key=lambda pool: pool_room(view, pool), default="")
