"""Every VM that is to exist has a node with room for it, what it takes there is claimed, and nothing is claimed without a use.

Keys are ids of VMs, of volumes (to give back the room of one that is gone), and of nodes that were removed. A placement, the
claim it makes on its node, and the places of its disks are one transaction that checks the claims' revision: two controllers
that choose the same node at the same moment conflict, and the second decides again on what is left. The claims of a node
therefore never exceed its capacity. Where the VM goes and why is decided in fit.py, on the table of candidates.py.

    no placement, or one without a node     decide; none fits: remember why, and look again when a node gets room
    deleted, and its node says ABSENT       give CPU and memory back; its disks keep their room until they are erased
    brought back                            decide again; the disks hold it on their node
    gone                                    give back what is left, remove the placement
    asks for more or less than it has       change the claim if the node has room; else the decision says what is missing
    its node was removed                    it had nothing there any more (api/nodes.py): the node's claims go too
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from cairn.controller.model.absence import removed
from cairn.controller.model.happening import EventSpec
from cairn.controller.model.nodes import capacity, node_name
from cairn.controller.reconcilers.base import NOTHING, Outcome
from cairn.controller.reconcilers.candidates import ROW_KINDS, Candidates
from cairn.controller.reconcilers.fit import Wanted, decide
from cairn.controller.store.base import Changed, Record, Txn, View
from cairn.controller.words import several, size
from cairn.proto import kinds
from cairn.proto.kinds import AnyKind
from cairn.proto.seams import timestamp
from cairn.proto.v1.common_pb2 import Decision
from cairn.proto.v1.node_pb2 import NodeCapacity
from cairn.proto.v1.vm_pb2 import NodeClaims, Placement, Vm
from cairn.proto.v1.volume_pb2 import Volume, VolumePlacement

__all__ = ["Placements", "capacity"]

_VOLUME: Final = f"{kinds.VOLUME.id_prefix}-"
_NODE: Final = f"{kinds.NODE.id_prefix}-"
# Begins the sentence of a VM that cannot have what it asks for.
_STAYS: Final = "stays as it is"
_FREE: Final = re.compile(r", [^,;]+ free")


@dataclass(frozen=True, slots=True)
class _Taken:
    """What a node holds for VMs."""

    cpus: int
    memory_bytes: int
    disk_bytes: int


class Placements:
    """Every VM that is to exist has a node with room for it."""

    name = "placement"
    reads: tuple[AnyKind, ...] = (
        kinds.VM, kinds.VOLUME, kinds.PLACEMENT, kinds.VOLUME_PLACEMENT, kinds.NODE, kinds.NODE_FACTS, kinds.NODE_SESSION,
        kinds.NODE_CLAIMS, kinds.OBSERVED,
    )  # fmt: skip
    writes: tuple[AnyKind, ...] = (kinds.PLACEMENT, kinds.NODE_CLAIMS, kinds.VOLUME_PLACEMENT)

    def __init__(self) -> None:
        self._table = Candidates()
        # What was claimed of each node when last told: only a node that gave something back is worth trying again. A hint about
        # which keys to wake; what is decided never depends on it.
        self._claimed: dict[str, _Taken] = {}

    def follow(self, view: View, changed: Iterable[Changed]) -> None:
        """Keep the table in step."""
        self._table.follow(view, changed)

    def keys(self, view: View, kind: AnyKind, id: str) -> Iterable[str]:
        """VMs and volumes to look at."""
        if kind in (kinds.VM, kinds.PLACEMENT):
            return (id,)
        if kind in (kinds.VOLUME, kinds.VOLUME_PLACEMENT):
            volume = view.get(kinds.VOLUME, id)
            return (id,) if volume is None else (volume.spec.vm or id,)
        if kind is kinds.OBSERVED:
            vm = id.partition("/vm/")[2]
            known = view.get(kinds.VM, vm) if vm else None
            return (vm,) if known is not None and known.HasField("delete_time") else ()
        if _orphaned(view, id):
            return (id, *view.by(kinds.PLACEMENT, "node", ""))
        if kind is kinds.NODE_CLAIMS and not self._gave_back(view, id):
            return ()
        return view.by(kinds.PLACEMENT, "node", "") if kind in ROW_KINDS else ()

    def _gave_back(self, view: View, node: str) -> bool:
        claims = view.get(kinds.NODE_CLAIMS, node)
        now = _Taken(claims.cpus, claims.memory_bytes, claims.disk_bytes) if claims is not None else _Taken(0, 0, 0)
        before = self._claimed.get(node, _Taken(0, 0, 0))
        self._claimed[node] = now
        return now.cpus < before.cpus or now.memory_bytes < before.memory_bytes or now.disk_bytes < before.disk_bytes

    def all_keys(self, view: View) -> Iterable[str]:
        """All VMs, placements, places of volumes, and claims on nodes that are gone."""
        for claims in view.all(kinds.NODE_CLAIMS):
            self._claimed[claims.node] = _Taken(claims.cpus, claims.memory_bytes, claims.disk_bytes)
        yield from (id for id in view.ids(kinds.NODE_CLAIMS) if _orphaned(view, id))
        yield from dict.fromkeys((*view.ids(kinds.VM), *view.ids(kinds.PLACEMENT)))
        for id in view.ids(kinds.VOLUME_PLACEMENT):
            volume = view.get(kinds.VOLUME, id)
            if volume is None or not volume.spec.vm:
                yield id

    def shard(self, key: str) -> str:
        """By the key."""
        return key

    def reconcile(self, view: View, key: str, now: datetime) -> Outcome:
        """Look at one VM or volume."""
        if key.startswith(_VOLUME):
            return self._volume(view, key)
        if key.startswith(_NODE):
            return _left(view, key)
        record, placement = view.record(kinds.VM, key), view.get(kinds.PLACEMENT, key)
        if record is None:
            return _gone(view, key, placement)
        if record.message.HasField("delete_time"):
            return _deleted(view, record, placement)
        if placement is None or not placement.node or placement.released:
            return self._place(view, record, placement, now)
        return _adjust(view, record, placement, now)

    def _place(self, view: View, record: Record[Vm], before: Placement | None, now: datetime) -> Outcome:
        vm = record.message
        decision = decide(self._table.at(view), wanted_of(view, vm))
        decision.decide_time.CopyFrom(timestamp(now))
        if not decision.node:
            return _unplaced(view, record, before, decision)
        txn = Txn(self.name).check(kinds.VM, vm.id, record.mod_revision)
        disk_bytes = 0
        for id, disk in homeless(view, vm.id):
            place = VolumePlacement(volume=id, node=decision.node, disk_bytes=disk)
            txn.create(kinds.VOLUME_PLACEMENT, id, place)
            txn.check(kinds.VOLUME, id, view.revision_of(kinds.VOLUME, id))
            disk_bytes += disk
        cpus, memory = vm.spec.cpus, vm.spec.memory_bytes
        placement = Placement(vm=vm.id, node=decision.node, cpus=cpus, memory_bytes=memory, decision=decision)
        txn.check(kinds.PLACEMENT, vm.id, view.revision_of(kinds.PLACEMENT, vm.id)).put(kinds.PLACEMENT, vm.id, placement)
        txn.check(kinds.NODE, decision.node, view.revision_of(kinds.NODE, decision.node))
        claim(txn, view, decision.node, cpus=cpus, memory_bytes=memory, disk_bytes=disk_bytes, vms=1)
        return Outcome(txn, decision.say, events=(_event(vm, "Placed", decision.say, decision.node_name),))

    def _volume(self, view: View, id: str) -> Outcome:
        """Give back the room of a volume that is gone; follow one that grew while attached to no VM."""
        place = view.record(kinds.VOLUME_PLACEMENT, id)
        if place is None:
            return NOTHING
        volume = view.get(kinds.VOLUME, id)
        if volume is None:
            txn = Txn(self.name).check(kinds.VOLUME_PLACEMENT, id, place.mod_revision).delete(kinds.VOLUME_PLACEMENT, id)
            txn.check(kinds.VOLUME, id, 0)
            claim(txn, view, place.message.node, disk_bytes=-place.message.disk_bytes)
            return Outcome(txn, f"volume {id} is gone: {size(place.message.disk_bytes)} given back")
        return self._grown(view, volume, place)

    def _grown(self, view: View, volume: Volume, place: Record[VolumePlacement]) -> Outcome:
        more = volume.spec.size_bytes - place.message.disk_bytes
        if more <= 0:
            return NOTHING
        free_bytes, name = room(view, place.message.node).disk_bytes, node_name(view, place.message.node)
        if more > free_bytes:
            return Outcome(None, f"volume {volume.name} needs {size(more)} more on {name}, {size(free_bytes)} is free")
        grown = VolumePlacement(volume=volume.id, node=place.message.node, disk_bytes=volume.spec.size_bytes)
        txn = Txn(self.name).check(kinds.VOLUME, volume.id, view.revision_of(kinds.VOLUME, volume.id))
        txn.check(kinds.VOLUME_PLACEMENT, volume.id, place.mod_revision).put(kinds.VOLUME_PLACEMENT, volume.id, grown)
        claim(txn, view, place.message.node, disk_bytes=more)
        return Outcome(txn, f"volume {volume.name} has {size(more)} more on {name}")


def wanted_of(view: View, vm: Vm) -> Wanted:
    """Return what a VM asks of its node."""
    image = view.get(kinds.IMAGE, vm.spec.image)
    places = (view.get(kinds.VOLUME_PLACEMENT, id) for id in view.by(kinds.VOLUME, "vm", vm.id))
    pinned = view.get(kinds.NODE, vm.spec.node) if vm.spec.node else None
    image_arch = image.spec.arch if image is not None else ""
    return Wanted(
        vm=vm.id,
        cpus=vm.spec.cpus,
        memory_bytes=vm.spec.memory_bytes,
        disk_bytes=sum(disk for _, disk in homeless(view, vm.id)),
        arch=vm.spec.arch or image_arch,
        image_arch=image_arch,
        node=vm.spec.node,
        node_name=pinned.name if pinned is not None else "",
        selector=vm.spec.node_selector,
        homes=frozenset(place.node for place in places if place is not None),
    )


def homeless(view: View, vm: str) -> Iterator[tuple[str, int]]:
    """Yield (id, bytes) of the VM's volumes that are on no node yet."""
    for id in view.by(kinds.VOLUME, "vm", vm):
        volume = view.get(kinds.VOLUME, id)
        if volume is not None and view.get(kinds.VOLUME_PLACEMENT, id) is None:
            yield id, volume.spec.size_bytes


def room(view: View, node: str) -> NodeCapacity:
    """Return what is free on a node; nothing when it is not known."""
    record, facts, claims = view.get(kinds.NODE, node), view.get(kinds.NODE_FACTS, node), view.get(kinds.NODE_CLAIMS, node)
    if record is None or facts is None:
        return NodeCapacity()
    most = capacity(record, facts)
    if claims is not None:
        most.cpus = max(0, most.cpus - claims.cpus)
        most.memory_bytes = max(0, most.memory_bytes - claims.memory_bytes)
        most.disk_bytes = max(0, most.disk_bytes - claims.disk_bytes)
    return most


def claim(txn: Txn, view: View, node: str, *, cpus: int = 0, memory_bytes: int = 0, disk_bytes: int = 0, vms: int = 0) -> None:
    """Add to a transaction that a node's claims change by that much. Once per node and transaction."""
    before = view.get(kinds.NODE_CLAIMS, node)
    after = NodeClaims(node=node)
    if before is not None:
        after.CopyFrom(before)
    after.cpus = max(0, after.cpus + cpus)
    after.memory_bytes = max(0, after.memory_bytes + memory_bytes)
    after.disk_bytes = max(0, after.disk_bytes + disk_bytes)
    after.vms = max(0, after.vms + vms)
    txn.check(kinds.NODE_CLAIMS, node, view.revision_of(kinds.NODE_CLAIMS, node)).put(kinds.NODE_CLAIMS, node, after)


def _event(vm: Vm, reason: str, say: str, node: str = "", *, warning: bool = False) -> EventSpec:
    return EventSpec(vm.id, vm.name, vm.project, reason, f"{vm.name}: {say}", node, warning)


def _unplaced(view: View, record: Record[Vm], before: Placement | None, decision: Decision) -> Outcome:
    """No node fits: remember why, once."""
    vm = record.message
    if before is not None and not before.node and before.decision.say == decision.say:
        return Outcome(None, decision.say)
    placement = Placement(vm=vm.id, decision=decision)
    if before is not None and before.released:
        # It holds nothing but its disks; where those are is known from their own records.
        placement.released = True
    txn = Txn("placement").check(kinds.VM, vm.id, record.mod_revision)
    txn.check(kinds.PLACEMENT, vm.id, view.revision_of(kinds.PLACEMENT, vm.id)).put(kinds.PLACEMENT, vm.id, placement)
    return Outcome(txn, decision.say, events=(_event(vm, "CannotPlace", decision.say, warning=True),))


def _gone(view: View, id: str, placement: Placement | None) -> Outcome:
    if placement is None:
        return NOTHING
    txn = Txn("placement").check(kinds.VM, id, 0)
    txn.check(kinds.PLACEMENT, id, view.revision_of(kinds.PLACEMENT, id)).delete(kinds.PLACEMENT, id)
    if placement.node and not placement.released:
        claim(txn, view, placement.node, cpus=-placement.cpus, memory_bytes=-placement.memory_bytes, vms=-1)
    return Outcome(txn, f"VM {id} is gone: its placement is removed")


def _orphaned(view: View, node: str) -> bool:
    return view.get(kinds.NODE, node) is None and view.get(kinds.NODE_CLAIMS, node) is not None


def _left(view: View, node: str) -> Outcome:
    """The node was removed: so are its claims."""
    if not _orphaned(view, node):
        return NOTHING
    txn = Txn("placement").check(kinds.NODE, node, 0)
    txn.check(kinds.NODE_CLAIMS, node, view.revision_of(kinds.NODE_CLAIMS, node)).delete(kinds.NODE_CLAIMS, node)
    return Outcome(txn, f"node {node} has left: its claims are removed")


def _deleted(view: View, record: Record[Vm], placement: Placement | None) -> Outcome:
    vm = record.message
    if placement is None or not placement.node or placement.released:
        return Outcome(None, "deleted; holds no CPU or memory")
    if not removed(view, vm, placement.node):
        return Outcome(None, "deleted; its node has not removed it yet")
    released = Placement()
    released.CopyFrom(placement)
    released.released = True
    txn = Txn("placement").check(kinds.VM, vm.id, record.mod_revision)
    txn.check(kinds.PLACEMENT, vm.id, view.revision_of(kinds.PLACEMENT, vm.id)).put(kinds.PLACEMENT, vm.id, released)
    claim(txn, view, placement.node, cpus=-placement.cpus, memory_bytes=-placement.memory_bytes, vms=-1)
    say = f"{several(placement.cpus, 'CPU')} and {size(placement.memory_bytes)} of memory given back"
    return Outcome(txn, say, events=(_event(vm, "Released", say, node_name(view, placement.node)),))


def _adjust(view: View, record: Record[Vm], placement: Placement, now: datetime) -> Outcome:
    """Follow a changed spec: CPU, memory, new or larger volumes."""
    vm, node = record.message, placement.node
    if _as_asked(view, vm, placement):
        return Outcome(None, placement.decision.say)
    free = room(view, node)
    after = Placement()
    after.CopyFrom(placement)
    short: list[str] = []
    cpus, memory = vm.spec.cpus - placement.cpus, vm.spec.memory_bytes - placement.memory_bytes
    if cpus > max(0, free.cpus):
        short.append(f"{several(cpus, 'CPU')} more wanted, {free.cpus} free")
    elif memory > max(0, free.memory_bytes):
        short.append(f"{size(memory)} more memory wanted, {size(free.memory_bytes)} free")
    else:
        after.cpus, after.memory_bytes = vm.spec.cpus, vm.spec.memory_bytes
    txn = Txn("placement")
    short += _disks(
        txn, view, vm.id, node, free.disk_bytes, after.cpus - placement.cpus, after.memory_bytes - placement.memory_bytes
    )
    if short:
        stays = f"{_STAYS} on {node_name(view, node)}: {'; '.join(short)}; ask for less or free some there"
        # How much is free there changes with its neighbours: that alone is nothing new.
        if _FREE.sub("", stays) != _FREE.sub("", placement.decision.say):
            after.decision.say = stays
    elif cpus or memory:
        after.decision.say = (
            f"resized on {node_name(view, node)}: {several(after.cpus, 'CPU')}, {size(after.memory_bytes)} of memory"
        )
    elif placement.decision.say.startswith(_STAYS):
        after.decision.say = f"on {node_name(view, node)}"
    if after != placement:
        after.decision.decide_time.CopyFrom(timestamp(now))
        txn.check(kinds.PLACEMENT, vm.id, view.revision_of(kinds.PLACEMENT, vm.id)).put(kinds.PLACEMENT, vm.id, after)
    if not txn:
        return Outcome(None, placement.decision.say)
    txn.check(kinds.VM, vm.id, record.mod_revision)
    said = (
        (_event(vm, "CannotResize" if short else "Resized", after.decision.say, warning=bool(short)),)
        if after != placement
        else ()
    )
    return Outcome(txn, after.decision.say, events=said)


def _as_asked(view: View, vm: Vm, placement: Placement) -> bool:
    """Tell whether there is nothing to follow, and no old shortage to take back: by far the most frequent case."""
    if placement.cpus != vm.spec.cpus or placement.memory_bytes != vm.spec.memory_bytes:
        return False
    if placement.decision.say.startswith(_STAYS):
        return False
    for id in view.by(kinds.VOLUME, "vm", vm.id):
        volume, place = view.get(kinds.VOLUME, id), view.get(kinds.VOLUME_PLACEMENT, id)
        if volume is not None and (place is None or place.disk_bytes < volume.spec.size_bytes):
            return False
    return True


def _disks(txn: Txn, view: View, vm: str, node: str, free_bytes: int, cpus: int, memory_bytes: int) -> list[str]:
    """Claim room for volumes attached since, and for grown ones, with the change of CPU and memory; return what was short."""
    short: list[str] = []
    extra = 0
    for id in view.by(kinds.VOLUME, "vm", vm):
        volume, place = view.get(kinds.VOLUME, id), view.record(kinds.VOLUME_PLACEMENT, id)
        if volume is None or (place is not None and place.message.node != node):
            continue
        more = volume.spec.size_bytes - (place.message.disk_bytes if place is not None else 0)
        if place is not None and more <= 0:
            continue
        if extra + more > free_bytes:
            short.append(f"volume {volume.name} needs {size(more)} more, {size(max(0, free_bytes - extra))} free")
            continue
        extra += more
        grown = VolumePlacement(volume=id, node=node, disk_bytes=volume.spec.size_bytes)
        txn.check(kinds.VOLUME_PLACEMENT, id, place.mod_revision if place is not None else 0)
        txn.put(kinds.VOLUME_PLACEMENT, id, grown).check(kinds.VOLUME, id, view.revision_of(kinds.VOLUME, id))
    if extra or cpus or memory_bytes:
        claim(txn, view, node, cpus=cpus, memory_bytes=memory_bytes, disk_bytes=extra)
    return short
