"""Every VM that is to exist has a node with room for it, what it takes there is claimed, and nothing is claimed without a use.

Keys are ids of VMs, of volumes (to give back the room of one that is gone), and of nodes that were removed. A placement, the
claim it makes on its node, and the places of its disks are one transaction that checks the claims' revision: two controllers
that choose the same node at the same moment conflict, and the second decides again on what is left. The claims of a node and
of a pool therefore never exceed its capacity. Where the VM goes and why is decided in fit.py, on the table of candidates.py.
The placement keeps the reason in a sentence; filters and scores are beside it, in a record for those who ask (decision 0024).

    no placement, or one without a node     decide; none fits: remember why, and look again when a node gets room
    deleted, and its node says ABSENT       give CPU and memory back; its disks keep their room until they are erased
    brought back                            decide again; the disks hold it on their node
    gone                                    give back what is left, remove the placement
    a volume of no VM                       in the roomiest shared pool of its type; what lives in a node's own waits for a VM
    asks for more or less than it has       change the claim if the node has room; else the decision says what is missing
    its node was removed                    it had nothing there any more (api/nodes.py): the node's claims go too
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import Final, TypeAlias

from cairn.controller.model.absence import removed
from cairn.controller.model.beyond import pool_left
from cairn.controller.model.capabilities import vm_needs
from cairn.controller.model.happening import EventSpec
from cairn.controller.model.nodes import node_name
from cairn.controller.model.pools import pool_for, pool_of, pools_on, shared_pools
from cairn.controller.model.readable import CannotTell, Readable
from cairn.controller.model.restored import holders, is_restored, unheard
from cairn.controller.model.where import in_short
from cairn.controller.reconcilers.base import NOTHING, Outcome
from cairn.controller.reconcilers.candidates import ROW_KINDS, Candidates
from cairn.controller.reconcilers.claims import claim, room
from cairn.controller.reconcilers.fit import Wanted, decide
from cairn.controller.store.base import Changed, Record, Txn, View
from cairn.controller.words import several, size
from cairn.proto import kinds
from cairn.proto.capabilities import BEFORE_CAPABILITIES
from cairn.proto.ids import LOCAL_POOL
from cairn.proto.kinds import AnyKind
from cairn.proto.seams import timestamp
from cairn.proto.v1.common_pb2 import Decision
from cairn.proto.v1.vm_pb2 import Placement, Vm
from cairn.proto.v1.volume_pb2 import Volume, VolumePlacement

_VOLUME: Final = f"{kinds.VOLUME.id_prefix}-"
_NODE: Final = f"{kinds.NODE.id_prefix}-"
LEFT_AGAIN_S: Final = 1.0
# Begins the sentence of a VM that cannot have what it asks for.
_STAYS: Final = "stays as it is"
_FREE: Final = re.compile(r", [^,;]+ free")


# CPUs and bytes of memory claimed of a node, or bytes of a pool.
_Taken: TypeAlias = tuple[int, ...]


class Placements:
    """Every VM that is to exist has a node with room for it."""

    name = "placement"
    reads: tuple[AnyKind, ...] = (
        kinds.VM, kinds.VOLUME, kinds.PLACEMENT, kinds.VOLUME_PLACEMENT, kinds.NODE, kinds.NODE_FACTS, kinds.NODE_SESSION,
        kinds.NODE_HEARD, kinds.UNKNOWN,
        kinds.NODE_CLAIMS, kinds.POOL_CLAIMS, kinds.OBSERVED,
    )  # fmt: skip
    writes: tuple[AnyKind, ...] = (
        kinds.PLACEMENT, kinds.DECISION, kinds.NODE_CLAIMS, kinds.POOL_CLAIMS, kinds.VOLUME_PLACEMENT,
    )  # fmt: skip

    def __init__(self) -> None:
        self._table = Candidates()
        # What was claimed of each node and pool when last told: only one that gave something back is worth trying again. A hint
        # about which keys to wake; what is decided never depends on it.
        self._claimed: dict[str, _Taken] = {}
        # Volumes of no VM for which there is no room. A hint, too.
        self._waiting: dict[str, None] = {}

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
            return (id, *view.by(kinds.PLACEMENT, "node", ""), *self._waiting)
        if kind in (kinds.NODE_CLAIMS, kinds.POOL_CLAIMS) and not self._gave_back(view, kind, id):
            return ()
        return (*view.by(kinds.PLACEMENT, "node", ""), *self._waiting) if kind in ROW_KINDS else ()

    def _gave_back(self, view: View, kind: AnyKind, id: str) -> bool:
        before, now = self._claimed.get(id, (0, 0)), _taken(view, kind, id)
        self._claimed[id] = now
        return any(less < more for less, more in zip(now, before, strict=False))

    def all_keys(self, view: View) -> Iterable[str]:
        """All VMs, volumes of no VM, placements, places of volumes that are gone, and claims on nodes that are gone."""
        for kind in (kinds.NODE_CLAIMS, kinds.POOL_CLAIMS):
            self._claimed |= {id: _taken(view, kind, id) for id in view.ids(kind)}
        yield from [id for id in view.ids(kinds.NODE_CLAIMS) if _orphaned(view, id)]
        yield from dict.fromkeys((*view.ids(kinds.VM), *view.ids(kinds.PLACEMENT)))
        yield from list(view.by(kinds.VOLUME, "vm", ""))
        yield from [id for id in view.ids(kinds.VOLUME_PLACEMENT) if not view.revision_of(kinds.VOLUME, id)]

    def shard(self, key: str) -> str:  # noqa: ARG002 - one for all
        """One controller places: others would only conflict with it, over the claims of the nodes they all choose from."""
        return self.name

    def reconcile(self, view: View, key: str, now: datetime) -> Outcome:
        """Look at one VM or volume."""
        if key.startswith(_VOLUME):
            self._waiting.pop(key, None)
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
        why = in_doubt(view, vm)
        decision = Decision(say=why) if why else decide(self._table.at(view), wanted_of(view, vm))
        decision.decide_time.CopyFrom(timestamp(now))
        if not decision.node:
            return _unplaced(view, record, before, decision)
        txn = Txn(self.name).check(kinds.VM, vm.id, record.mod_revision)
        taken: Counter[str] = Counter()
        for volume in homeless(view, vm.id):
            place = home(view, decision.node, volume)
            txn.create(kinds.VOLUME_PLACEMENT, volume.id, place)
            txn.check(kinds.VOLUME, volume.id, view.revision_of(kinds.VOLUME, volume.id))
            taken[place.pool] += place.disk_bytes
        cpus, memory = vm.spec.cpus, vm.spec.memory_bytes
        placement = Placement(vm=vm.id, node=decision.node, cpus=cpus, memory_bytes=memory, decision=in_short(decision))
        _decided(txn, view, placement, decision)
        txn.check(kinds.NODE, decision.node, view.revision_of(kinds.NODE, decision.node))
        claim(txn, view, decision.node, cpus=cpus, memory_bytes=memory, vms=1, pools=taken)
        return Outcome(txn, decision.say, events=(_event(vm, "Placed", decision.say, decision.node_name),))

    def _volume(self, view: View, id: str) -> Outcome:
        """Give back the room of a volume that is gone; follow one that no VM has."""
        try:
            place = Readable(view).record(kinds.VOLUME_PLACEMENT, id)
        except CannotTell as error:
            return Outcome(None, f"volume {id}: {error}", held_up_by=(error.record,))
        volume = view.record(kinds.VOLUME, id)
        if place is None:
            return self._new(view, volume) if volume is not None else NOTHING
        if volume is None:
            txn = Txn(self.name).check(kinds.VOLUME_PLACEMENT, id, place.mod_revision).delete(kinds.VOLUME_PLACEMENT, id)
            txn.check(kinds.VOLUME, id, 0)
            claim(txn, view, pools={pool_of(place.message): -place.message.disk_bytes})
            return Outcome(txn, f"volume {id} is gone: {size(place.message.disk_bytes)} given back")
        return self._grown(view, volume.message, place)

    def _new(self, view: View, record: Record[Volume]) -> Outcome:
        """Give a volume that no VM has a place in a pool that several nodes reach; which node's it would be a VM decides."""
        volume = record.message
        type, wanted = volume.spec.type or LOCAL_POOL, volume.spec.size_bytes
        if volume.spec.vm or volume.HasField("delete_time") or type == LOCAL_POOL:
            return NOTHING
        pool = max(shared_pools(view, type), key=lambda pool: pool_left(view, pool), default="")
        why = may_be_somewhere(view, volume) or ("" if pool else f"no connected node reaches a shared pool of type {type}")
        if not why and wanted > (left := pool_left(view, pool)):
            why = f"it needs {size(wanted)}, and {size(left)} is free in pool {pool}"
        if why:
            self._waiting[volume.id] = None
            return Outcome(None, f"volume {volume.name} has no place yet: {why}")
        place = VolumePlacement(volume=volume.id, pool=pool, disk_bytes=wanted)
        txn = Txn(self.name).create(kinds.VOLUME_PLACEMENT, volume.id, place)
        txn.check(kinds.VOLUME, volume.id, record.mod_revision)
        claim(txn, view, pools={pool: wanted})
        return Outcome(txn, f"volume {volume.name} is in pool {pool}")

    def _grown(self, view: View, volume: Volume, place: Record[VolumePlacement]) -> Outcome:
        more = volume.spec.size_bytes - place.message.disk_bytes
        if more <= 0:
            return NOTHING
        pool = pool_of(place.message)
        free_bytes, where = pool_left(view, pool), _where(view, place.message)
        if more > free_bytes:
            return Outcome(None, f"volume {volume.name} needs {size(more)} more {where}, {size(free_bytes)} is free")
        grown = _of_size(place.message, volume.spec.size_bytes)
        txn = Txn(self.name).check(kinds.VOLUME, volume.id, view.revision_of(kinds.VOLUME, volume.id))
        txn.check(kinds.VOLUME_PLACEMENT, volume.id, place.mod_revision).put(kinds.VOLUME_PLACEMENT, volume.id, grown)
        claim(txn, view, pools={pool: more})
        return Outcome(txn, f"volume {volume.name} has {size(more)} more {where}")


def in_doubt(view: View, vm: Vm) -> str:
    """Return why a VM may run somewhere already, or be unwanted by now; empty: it may be placed.

    One that had no node at the backup may have been placed, run and deleted since, on nodes that are not asked about it now.
    """
    if nodes := holders(view, f"vm/{vm.id}"):
        return f"{node_name(view, nodes[0])} holds it already, without being told to; see `cairn cluster adopt`"
    if is_restored(view, kinds.VM, vm.id):
        return f"no node yet: it had none at the backup, and may be unwanted by now; `cairn vm start {vm.name}` if it is not"
    doubts = (may_be_somewhere(view, volume) for volume in homeless(view, vm.id))
    return next((f"no node yet: {why}" for why in doubts if why), "")


def wanted_of(view: View, vm: Vm) -> Wanted:
    """Return what a VM asks of its node."""
    image = view.get(kinds.IMAGE, vm.spec.image)
    places = (view.get(kinds.VOLUME_PLACEMENT, id) for id in view.by(kinds.VOLUME, "vm", vm.id))
    pinned = view.get(kinds.NODE, vm.spec.node) if vm.spec.node else None
    disks: Counter[str] = Counter()
    for volume in homeless(view, vm.id):
        disks[volume.spec.type or LOCAL_POOL] += volume.spec.size_bytes
    image_arch = image.spec.arch if image is not None else ""
    return Wanted(
        vm=vm.id,
        cpus=vm.spec.cpus,
        memory_bytes=vm.spec.memory_bytes,
        disks=disks,
        # What every agent has always known need not be looked up: this is asked for each VM, of all nodes.
        needs=vm_needs(view, vm.id) - BEFORE_CAPABILITIES,
        arch=vm.spec.arch or image_arch,
        image_arch=image_arch,
        node=vm.spec.node,
        node_name=pinned.name if pinned is not None else "",
        selector=vm.spec.node_selector,
        pools=frozenset(pool_of(place) for place in places if place is not None),
    )


def homeless(view: View, vm: str) -> Iterator[Volume]:
    """Yield the VM's volumes that are in no pool yet."""
    for id in view.by(kinds.VOLUME, "vm", vm):
        volume = view.get(kinds.VOLUME, id)
        if volume is not None and view.get(kinds.VOLUME_PLACEMENT, id) is None:
            yield volume


def may_be_somewhere(view: View, volume: Volume) -> str:
    """Return why a volume without a place may be on a node already; empty: it can be made anew.

    One that had no place at the backup may have been given one since, and hold data.
    """
    if nodes := holders(view, f"volume/{volume.id}"):
        return f"{node_name(view, nodes[0])} holds volume {volume.name} without being told to; see `cairn cluster adopt`"
    silent = [node_name(view, node) for node in unheard(view)] if is_restored(view, kinds.VOLUME, volume.id) else []
    if not silent:
        return ""
    more = f" and {len(silent) - 1} more" if len(silent) > 1 else ""
    return f"since the restore {silent[0]}{more} has not said what it holds, and may hold volume {volume.name}"


def home(view: View, node: str, volume: Volume) -> VolumePlacement:
    """Return the place of a volume first used on a node: in the roomiest pool of its type there. LookupError: there is none."""
    type = volume.spec.type or LOCAL_POOL
    pool = pool_for(view, node, type)
    if not pool:
        raise LookupError(f"node {node} reaches no {type} pool, volume {volume.id} cannot be there")
    owner = "" if pools_on(view, node, type)[pool] else node
    return VolumePlacement(volume=volume.id, node=owner, pool=pool, disk_bytes=volume.spec.size_bytes)


def _of_size(place: VolumePlacement, disk_bytes: int) -> VolumePlacement:
    return VolumePlacement(volume=place.volume, node=place.node, pool=pool_of(place), disk_bytes=disk_bytes)


def _where(view: View, place: VolumePlacement) -> str:
    return f"on {node_name(view, place.node)}" if place.node else f"in pool {place.pool}"


def _taken(view: View, kind: AnyKind, id: str) -> _Taken:
    if kind is kinds.POOL_CLAIMS:
        pool = view.get(kinds.POOL_CLAIMS, id)
        return (pool.disk_bytes if pool is not None else 0,)
    claims = view.get(kinds.NODE_CLAIMS, id)
    return (claims.cpus, claims.memory_bytes) if claims is not None else (0, 0)


def _event(vm: Vm, reason: str, say: str, node: str = "", *, warning: bool = False) -> EventSpec:
    return EventSpec(vm.id, vm.name, vm.project, reason, f"{vm.name}: {say}", node, warning)


def _unplaced(view: View, record: Record[Vm], before: Placement | None, decision: Decision) -> Outcome:
    """No node fits: remember why, once."""
    vm = record.message
    if before is not None and not before.node and before.decision.say == decision.say:
        return Outcome(None, decision.say)
    placement = Placement(vm=vm.id, decision=in_short(decision))
    if before is not None and before.released:
        # It holds nothing but its disks; where those are is known from their own records.
        placement.released = True
    txn = Txn("placement").check(kinds.VM, vm.id, record.mod_revision)
    _decided(txn, view, placement, decision)
    return Outcome(txn, decision.say, events=(_event(vm, "CannotPlace", decision.say, warning=True),))


def _decided(txn: Txn, view: View, placement: Placement, decision: Decision) -> None:
    """Write a placement, and the whole decision beside it: no view has that, so the placement is what is checked."""
    vm = placement.vm
    txn.check(kinds.PLACEMENT, vm, view.revision_of(kinds.PLACEMENT, vm)).put(kinds.PLACEMENT, vm, placement)
    txn.put(kinds.DECISION, vm, decision)


def _gone(view: View, id: str, placement: Placement | None) -> Outcome:
    if placement is None:
        return NOTHING
    txn = Txn("placement").check(kinds.VM, id, 0)
    txn.check(kinds.PLACEMENT, id, view.revision_of(kinds.PLACEMENT, id)).delete(kinds.PLACEMENT, id)
    txn.delete(kinds.DECISION, id)
    if placement.node and not placement.released:
        claim(txn, view, placement.node, cpus=-placement.cpus, memory_bytes=-placement.memory_bytes, vms=-1)
    return Outcome(txn, f"VM {id} is gone: its placement is removed")


def _orphaned(view: View, node: str) -> bool:
    return view.get(kinds.NODE, node) is None and view.get(kinds.NODE_CLAIMS, node) is not None


def _left(view: View, node: str) -> Outcome:
    """The node was removed: so are its claims."""
    if not _orphaned(view, node):
        return NOTHING
    if view.by(kinds.PLACEMENT, "node", node) or view.by(kinds.VOLUME_PLACEMENT, "node", node):
        # Of what is erased: each gives back what it had, first.
        return Outcome(None, f"node {node} has left; what was placed there is being given back", again_after_s=LEFT_AGAIN_S)
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
    taken, lacking = _disks(txn, view, vm.id, node)
    short += lacking
    cpus_more, memory_more = after.cpus - placement.cpus, after.memory_bytes - placement.memory_bytes
    if taken or cpus_more or memory_more:
        claim(txn, view, node, cpus=cpus_more, memory_bytes=memory_more, pools=taken)
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


def _disks(txn: Txn, view: View, vm: str, node: str) -> tuple[Counter[str], list[str]]:
    """Give volumes attached since their places, and grown ones room; return bytes taken by pool, and what was short."""
    short: list[str] = []
    taken: Counter[str] = Counter()
    for id in view.by(kinds.VOLUME, "vm", vm):
        volume, place = view.get(kinds.VOLUME, id), view.record(kinds.VOLUME_PLACEMENT, id)
        if volume is None or (place is not None and place.message.node not in ("", node)):
            continue
        if place is None and (why := may_be_somewhere(view, volume)):
            short.append(why)
            continue
        held_bytes = place.message.disk_bytes if place is not None else 0
        more = volume.spec.size_bytes - held_bytes
        if place is not None and more <= 0:
            continue
        type = volume.spec.type or LOCAL_POOL
        pool = pool_of(place.message) if place is not None else pool_for(view, node, type)
        if not pool:
            short.append(f"volume {volume.name} needs a {type} pool, which the node does not reach")
            continue
        free_bytes = pool_left(view, pool) - taken[pool]
        if more > free_bytes:
            short.append(f"volume {volume.name} needs {size(more)} more, {size(max(0, free_bytes))} free")
            continue
        taken[pool] += more
        grown = _of_size(place.message, volume.spec.size_bytes) if place is not None else home(view, node, volume)
        txn.check(kinds.VOLUME_PLACEMENT, id, place.mod_revision if place is not None else 0)
        txn.put(kinds.VOLUME_PLACEMENT, id, grown).check(kinds.VOLUME, id, view.revision_of(kinds.VOLUME, id))
    return taken, short
