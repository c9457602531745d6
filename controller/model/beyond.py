"""What nodes hold without being told to takes room all the same: nothing may be placed there by the claims alone.

And guests that a node does not believe to be dropped, as so many were at once (docs/decisions/0025).
"""

from __future__ import annotations

from cairn.controller.model.pools import pool_room
from cairn.controller.model.where import Claimed, claimed, volume_claimed_bytes, volume_node, where
from cairn.controller.store.base import View
from cairn.controller.words import several
from cairn.proto import kinds
from cairn.proto.ids import LOCAL_POOL
from cairn.proto.v1.node_pb2 import NodeCapacity


def beyond(view: View, node: str) -> NodeCapacity:
    """Return what a node says it holds beyond what is claimed there: it counts as taken until it is adopted or removed."""
    found = NodeCapacity()
    for id in view.by(kinds.UNKNOWN, "node", node):
        unknown = view.get(kinds.UNKNOWN, id)
        if unknown is None:
            continue
        vm, volume = unknown.desired.vm, unknown.desired.volume
        if vm.id and not vm.absent:
            known = claimed(view, vm.id) if where(view, vm.id).runs_on == node else Claimed(0, 0)
            found.cpus += max(0, vm.cpus - known.cpus)
            found.memory_bytes += max(0, vm.memory_bytes - known.memory_bytes)
        elif volume.id and not volume.absent and (volume.type or LOCAL_POOL) == LOCAL_POOL:
            held = volume_claimed_bytes(view, volume.id) if volume_node(view, volume.id) == node else 0
            found.disk_bytes += max(0, volume.size_bytes - held)
    return found


def doubts(view: View, node: str) -> int:
    """Return how many guests a node goes on managing though no record speaks of them: too many at once for it to believe."""
    told = (view.get(kinds.UNKNOWN, id) for id in view.by(kinds.UNKNOWN, "node", node))
    return sum(each is not None and each.doubted for each in told)


def doubt_say(count: int) -> str:
    """Say what that many doubted guests mean, and what to do."""
    return (
        f"no record speaks any more of {several(count, 'guest')} that it holds: it goes on managing them until they are made"
        " known (`cairn cluster adopt`) or removed (`cairn node forget`)"
    )


def pool_left(view: View, pool: str) -> int:
    """Return how many bytes of a pool can still be promised, whoever holds the others."""
    type, _, node = pool.partition("/")
    return max(0, pool_room(view, pool) - (beyond(view, node).disk_bytes if type == LOCAL_POOL else _beyond_shared(view, pool)))


def _beyond_shared(view: View, pool: str) -> int:
    """Return what volumes take of a shared pool beyond what is claimed for them, however many nodes tell of each."""
    largest: dict[str, int] = {}
    for id in view.by(kinds.UNKNOWN, "pool", pool):
        unknown = view.get(kinds.UNKNOWN, id)
        if unknown is not None and not unknown.desired.volume.absent:
            volume = unknown.desired.volume
            largest[volume.id] = max(largest.get(volume.id, 0), volume.size_bytes)
    return sum(max(0, size_bytes - volume_claimed_bytes(view, id)) for id, size_bytes in largest.items())
