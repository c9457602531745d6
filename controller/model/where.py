"""Where is it? The one answer to which nodes a VM or a volume concerns. Everybody but the writer of placements asks here.

    where(view, "i-0000001a")          Where(owner="node-a", incoming="", released=False)
    where(view, vm).role("node-a")     VM_ROLE_OWNER; VM_ROLE_OUTGOING while another node prepares to take it over
    volume_node(view, "vol-...")       the node whose word counts about its bytes
    volume_nodes(view, "vol-...")      every node that must be able to open it

A VM has one owner, the only node that may run its guest, and at most one incoming node, which makes all ready for it and never
starts it by itself. A placement that was released names the node that still holds the disks; nothing runs there. Only
reconcilers/placement.py reads and writes the fields themselves (tests/test_tidy.py); rejected: readers of `placement.node`
everywhere, each of which assumes one node for ever.
"""

from __future__ import annotations

from typing import NamedTuple

from cairn.controller.model.assigned import VOLUME_WORK, assignment
from cairn.controller.model.nodes import node_name
from cairn.controller.model.pools import is_shared, pool_of
from cairn.controller.store.base import View
from cairn.proto import kinds
from cairn.proto.v1.agent_pb2 import VM_ROLE_INCOMING, VM_ROLE_OUTGOING, VM_ROLE_OWNER, VM_ROLE_UNSPECIFIED, VmRole
from cairn.proto.v1.common_pb2 import Decision
from cairn.proto.v1.vm_pb2 import Vm


class Where(NamedTuple):
    """The nodes of a VM, by id; empty: none."""

    # Has it: may run its guest, holds its claims.
    owner: str = ""
    # Is to have it next, and makes ready for it.
    incoming: str = ""
    # The owner gave up all but its disks.
    released: bool = False

    @property
    def runs_on(self) -> str:
        """The node that may run its guest."""
        return "" if self.released else self.owner

    @property
    def nodes(self) -> tuple[str, ...]:
        """All nodes that are to hold something of it, the owner first."""
        return tuple(node for node in dict.fromkeys((self.owner, self.incoming)) if node)

    def role(self, node: str) -> VmRole.ValueType:
        """Return what a node is to this VM; VM_ROLE_UNSPECIFIED: nothing."""
        if node and node == self.owner:
            return VM_ROLE_OUTGOING if self.incoming and self.incoming != node else VM_ROLE_OWNER
        return VM_ROLE_INCOMING if node and node == self.incoming else VM_ROLE_UNSPECIFIED


class Claimed(NamedTuple):
    """What a placement holds of its node."""

    cpus: int
    memory_bytes: int


def where(view: View, vm: str) -> Where:
    """Return where a VM is; all empty when it is on no node."""
    placement = view.get(kinds.PLACEMENT, vm)
    return Where() if placement is None else Where(placement.node, placement.incoming, placement.released)


def reason(view: View, vm: str) -> str:
    """Return in a sentence why a VM is where it is, or nowhere; empty: that has not been decided yet."""
    placement = view.get(kinds.PLACEMENT, vm)
    return placement.decision.say if placement is not None else ""


def explained(view: View, vm: str, scores: Decision | None) -> Decision | None:
    """Return the whole decision about where a VM goes, or None when there is none yet.

    scores: its record of kind `decision`, which is in no view but in forks that made it. What the placement says is newer: a
    VM that was resized is where it was put for these scores.
    """
    placement = view.get(kinds.PLACEMENT, vm)
    if placement is None or not placement.HasField("decision"):
        return None
    whole = Decision(node=placement.node, node_name=node_name(view, placement.node) if placement.node else "")
    # A placement of an older release has all of it, whatever was recorded before.
    if scores is not None and scores.node == placement.node and not placement.decision.considered:
        whole.MergeFrom(scores)
    whole.MergeFrom(placement.decision)
    return whole


def in_short(decision: Decision) -> Decision:
    """Return what a placement keeps of its decision: every controller holds it of every VM."""
    return Decision(say=decision.say, decide_time=decision.decide_time)


def claimed(view: View, vm: str) -> Claimed:
    """Return what is claimed for a VM on its node, which may be less than it asks for by now."""
    placement = view.get(kinds.PLACEMENT, vm)
    return Claimed(placement.cpus, placement.memory_bytes) if placement is not None else Claimed(0, 0)


def needs_permit(view: View, vm: Vm) -> bool:
    """Tell whether its node may start it only while a controller says so: another node may be running it."""
    if vm.spec.high_availability or where(view, vm.id).incoming:
        return True
    places = (view.get(kinds.VOLUME_PLACEMENT, id) for id in view.by(kinds.VOLUME, "vm", vm.id))
    return any(place is not None and is_shared(place) for place in places)


def volume_node(view: View, volume: str) -> str:
    """Return the node whose word counts about a volume's bytes: makes, grows and erases it; empty: none yet."""
    place = view.get(kinds.VOLUME_PLACEMENT, volume)
    if place is None or not is_shared(place):
        return place.node if place is not None else ""
    work = assignment(view, VOLUME_WORK, volume)
    return work.node if work is not None else ""


def volume_nodes(view: View, volume: str) -> tuple[str, ...]:
    """Return every node that must be able to open a volume: of a local one, its own; of a shared one, those of its VM."""
    place, record = view.get(kinds.VOLUME_PLACEMENT, volume), view.get(kinds.VOLUME, volume)
    if place is None:
        return ()
    if not is_shared(place):
        return (place.node,)
    return where(view, record.spec.vm).nodes if record is not None and record.spec.vm else ()


def volume_pool(view: View, volume: str) -> str:
    """Return the id of the pool a volume is in; empty: none yet."""
    place = view.get(kinds.VOLUME_PLACEMENT, volume)
    return pool_of(place) if place is not None else ""


def volume_claimed_bytes(view: View, volume: str) -> int:
    """Return the room claimed for a volume, which may be less than it asks for by now."""
    place = view.get(kinds.VOLUME_PLACEMENT, volume)
    return place.disk_bytes if place is not None else 0


def vms_on(view: View, node: str) -> list[str]:
    """Return the ids of the VMs that concern a node as owner or incoming, sorted."""
    return view.by(kinds.PLACEMENT, "node", node)


def shared_volumes(view: View) -> list[str]:
    """Return the ids of the volumes in shared pools, which no node holds, sorted."""
    return view.by(kinds.VOLUME_PLACEMENT, "node", "")


def in_shared_pool(view: View, volume: str) -> bool:
    """Tell whether a volume is in a pool that several nodes can reach."""
    place = view.get(kinds.VOLUME_PLACEMENT, volume)
    return place is not None and is_shared(place)


def volumes_on(view: View, node: str) -> list[str]:
    """Return the ids of the volumes in a node's own pools, sorted."""
    return view.by(kinds.VOLUME_PLACEMENT, "node", node)
