"""The claim to open a volume that several nodes reach: which guest may have it open, decided by reconcilers/openings.py.

    claim = opening(view, "vol-...")                    Opening(vm="i-...", node="node-...", generation=7) or None
    is_given(view, volume, "i-...", "node-...")         whether that node is told of the disk, to open it by that claim

A guest is told of a disk only while the claim names it and its node; and a claim is given up only once that node has said that
the guest let go, or the pool has shut it out. So no two guests have one volume open, whatever is lost on the way. The pool
itself remembers the newest claim in whose name it was opened (storage/base.py, Claiming), so that who is late is refused.

A volume without a record is one that an older release, or a backup from before there were claims, left behind: what is open by
its node's word stays open, and what a restored record says is believed as it was before.
"""

from __future__ import annotations

from cairn.controller.model.absence import is_absent
from cairn.controller.model.capabilities import knows
from cairn.controller.model.nodes import connected
from cairn.controller.model.reports import report
from cairn.controller.model.restored import is_restored
from cairn.controller.model.where import where
from cairn.controller.store.base import View
from cairn.proto import kinds
from cairn.proto.addresses import addresses_of
from cairn.proto.capabilities import OPEN_VOLUMES
from cairn.proto.v1.agent_pb2 import VmReport
from cairn.proto.v1.vm_pb2 import Vm
from cairn.proto.v1.volume_pb2 import Opening, Volume

ON = frozenset({VmReport.STATE_RUNNING, VmReport.STATE_STOPPING})
_NOBODY = Opening()


def opening(view: View, volume: str) -> Opening | None:
    """Return the claim to open a volume; None: it is in a pool of one node, or nothing was decided yet."""
    return view.get(kinds.OPENING, volume)


def claim_of(view: View, volume: str, node: str) -> int:
    """Return the generation of the claim by which a guest of a node opens a volume; 0: it has none."""
    claim = opening(view, volume) or _NOBODY
    return claim.generation if claim.node == node else 0


def shut_out_of(view: View, volume: str) -> int:
    """Return the generation up to which whoever has a volume open is to be shut out; 0: nobody is."""
    claim = opening(view, volume) or _NOBODY
    return claim.generation if claim.shutting_out else 0


def is_outcast(view: View, volume: str, vm: str, node: str) -> bool:
    """Tell whether a guest was shut out of a volume: that its node lists it as open is no more than a word."""
    claim = opening(view, volume) or _NOBODY
    return any((each.vm, each.node) == (vm, node) for each in claim.outcasts)


def holders(view: View, volume: str) -> list[tuple[str, str]]:
    """Return (VM, node) of every guest that has a volume open, as its node said last: also of those no record speaks of.

    Who was shut out has it no more.
    """
    found = (view.get(kinds.OBSERVED, id) for id in view.by(kinds.OBSERVED, "open", volume))
    seen = [(observed.key.partition("/")[2], observed.node) for observed in found if observed is not None]
    told = (view.get(kinds.UNKNOWN, id) for id in view.by(kinds.UNKNOWN, "disk", volume))
    seen += [(unknown.desired.vm.id, unknown.node) for unknown in told if unknown is not None]
    return [(vm, node) for vm, node in seen if not is_outcast(view, volume, vm, node)]


def seen_on(view: View, node: str, vm: str) -> VmReport | None:
    """Return what a node said last of a guest."""
    found = report(view, node, f"{kinds.VM.name}/{vm}") if node else None
    return found.vm if found is not None else None


def says_nothing(view: View, node: str, seen: VmReport) -> bool:
    """Tell whether it is the word of an agent that lists no volumes."""
    if connected(view, node):
        return not knows(view, node, OPEN_VOLUMES)
    return seen.state in ON and not seen.open_volumes


def has_answered(view: View, node: str, vm: Vm, seen: VmReport, generation: int) -> bool:
    """Tell whether a node said what it did after it had heard of a detachment.

    That it removed an earlier life of the VM is no answer: the guest of this one may have been started with the volume since.
    """
    if is_absent(vm, seen) or seen.volumes_generation >= generation:
        return True
    # An older agent does not count attachments; that the guest is as asked since the VM's record last changed it says.
    return says_nothing(view, node, seen) and seen.spec_revision >= view.revision_of(kinds.VM, vm.id)


def has_let_go(view: View, volume: str, vm: str, node: str, *, given: bool) -> bool:
    """Tell whether a guest has a volume open no more, and will not open it by what its node was told, as that node has said.

    given: it has the claim, so its node is told of the disk as long as it is attached to its VM.
    """
    if view.get(kinds.NODE, node) is None:
        # Only what holds nothing is removed from the cluster.
        return True
    record, seen = view.get(kinds.VM, vm), seen_on(view, node, vm)
    if record is None:
        # Erased by its node's own word; or of before a restore: then its node tells of it as unknown.
        unknown = view.get(kinds.UNKNOWN, f"{node}/{kinds.VM.name}/{vm}")
        return unknown is None or all(disk.volume != volume for disk in unknown.desired.vm.disks)
    if seen is None:
        return False
    if is_absent(record, seen):
        return True
    attached = view.get(kinds.VOLUME, volume)
    if given and attached is not None and attached.spec.vm == vm:
        return False
    return volume not in seen.open_volumes and has_answered(view, node, record, seen, record.spec.volumes_generation)


def is_free_of_former(view: View, volume: Volume) -> bool:
    """Tell whether the VM a volume was taken from has let go of it: what there is to go by where no claim was ever made."""
    former = view.get(kinds.VM, volume.spec.former_vm) if volume.spec.former_vm != volume.spec.vm else None
    if former is None:
        return True
    node = where(view, former.id).runs_on
    seen = seen_on(view, node, former.id)
    if not node or is_absent(former, seen):
        return True
    return seen is not None and has_answered(view, node, former, seen, volume.spec.former_generation)


def is_given(view: View, volume: Volume, vm: str, node: str) -> bool:
    """Tell whether the guest of a VM on a node is to have a shared volume as its disk, so that it may be opened there."""
    seen, claim = holders(view, volume.id), opening(view, volume.id)
    if any(other != vm for other, _ in seen):
        return False
    if claim is None:
        known = (vm, node) in seen or is_restored(view, kinds.VOLUME, volume.id)
        return known and is_free_of_former(view, volume)
    return (claim.vm, claim.node) == (vm, node) and not claim.shutting_out


def is_told(view: View, vm: Vm) -> bool:
    """Tell whether the node of a VM was told of it, as far as anybody knows: a guest without an address is started nowhere."""
    bindings = [view.get(kinds.PORT_BINDING, nic.port) for nic in vm.spec.nics]
    return all(binding is not None and addresses_of(binding) for binding in bindings)
