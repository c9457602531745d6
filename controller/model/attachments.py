"""Whether a guest has a volume: what nodes say they have open, not what was asked for.

    attachment(view, volume)      Attachment(ATTACHING, "waits for VM web to take it up")
    holders(view, "vol-...")      VMs whose guest has it open, by any node's word

A volume is attached once the guest that runs has it open (of one that does not run: once its node knows of it), and free once
no guest anywhere has it open *and* the node of the VM it was taken from has answered to that. VmSpec.volumes_generation counts
attach and detach; reports say it back, so that what a node said before it heard of the change proves nothing. What a node that
is silent said last still counts: its guests run on.

Agents of older releases list nothing. Of them the wish to attach is believed; that a volume was let go of is so once they say
that the guest is as the VM's record asks, which releases before could say too. (Of one that is not connected: a guest that runs
has its root disk at least.)
"""

from __future__ import annotations

import enum
from typing import NamedTuple

from cairn.controller.model.absence import is_absent
from cairn.controller.model.capabilities import knows
from cairn.controller.model.nodes import connected, node_name
from cairn.controller.model.reports import report
from cairn.controller.model.where import where
from cairn.controller.store.base import View
from cairn.proto import kinds
from cairn.proto.addresses import addresses_of
from cairn.proto.capabilities import OPEN_VOLUMES
from cairn.proto.v1.agent_pb2 import VmReport
from cairn.proto.v1.vm_pb2 import Vm
from cairn.proto.v1.volume_pb2 import Volume

_ON = frozenset({VmReport.STATE_RUNNING, VmReport.STATE_STOPPING})


class Hold(enum.Enum):
    """How far a guest has, or has let go of, a volume."""

    FREE = "no guest has it"
    ATTACHING = "it is wished, and not so yet"
    ATTACHED = "the guest has it, or will have it when it starts"
    DETACHING = "it is not wished, and may still be so"


class Attachment(NamedTuple):
    """A state, and one sentence about what is waited for; empty when nothing is."""

    hold: Hold
    say: str = ""


def holders(view: View, volume: str) -> list[tuple[str, str]]:
    """Return (VM, node) of every guest that has a volume open, as its node said last: also of those no record speaks of."""
    found = (view.get(kinds.OBSERVED, id) for id in view.by(kinds.OBSERVED, "open", volume))
    seen = [(observed.key.partition("/")[2], observed.node) for observed in found if observed is not None]
    told = (view.get(kinds.UNKNOWN, id) for id in view.by(kinds.UNKNOWN, "disk", volume))
    return seen + [(unknown.desired.vm.id, unknown.node) for unknown in told if unknown is not None]


def attachment(view: View, volume: Volume) -> Attachment:
    """Return how far a volume is what its spec asks for."""
    wanted = volume.spec.vm
    others = [(vm, node) for vm, node in holders(view, volume.id) if vm != wanted]
    if others:
        vm, node = others[0]
        say = _clings(view, volume.id, vm, node)
        return Attachment(Hold.ATTACHING if wanted else Hold.DETACHING, say)
    return _attached(view, volume, wanted) if wanted else _freed(view, volume)


def is_let_go(view: View, volume: Volume) -> bool:
    """Tell whether no guest but its VM's has a volume, or may be opening it: every node concerned has said so.

    A volume that several nodes can open must not be given to a second one before.
    """
    if any(vm != volume.spec.vm for vm, _ in holders(view, volume.id)):
        return False
    former = view.get(kinds.VM, volume.spec.former_vm) if volume.spec.former_vm != volume.spec.vm else None
    if former is None:
        return True
    node = where(view, former.id).runs_on
    seen = _seen(view, node, former.id)
    if not node or is_absent(former, seen):
        return True
    return seen is not None and _has_answered(view, node, former, seen, volume.spec.former_generation)


def _attached(view: View, volume: Volume, id: str) -> Attachment:
    vm, node = view.get(kinds.VM, id), where(view, id).runs_on
    seen = _seen(view, node, id)
    if vm is None or seen is None or _says_nothing(view, node, seen) or volume.id in seen.open_volumes:
        return Attachment(Hold.ATTACHED)
    trouble = _trouble(seen, volume.id) if seen.state in _ON else ""
    if trouble:
        return Attachment(
            Hold.ATTACHING, f"{node_name(view, node)} could not attach it to VM {vm.name}: {trouble}; trying again"
        )
    if seen.state in _ON or seen.volumes_generation < vm.spec.volumes_generation:
        return Attachment(Hold.ATTACHING, f"waits for {_of(view, node)} to attach it to VM {vm.name}")
    return Attachment(Hold.ATTACHED)


def _freed(view: View, volume: Volume) -> Attachment:
    """One that is attached to nothing: has the guest it was taken from let go?"""
    id = volume.spec.former_vm
    vm = view.get(kinds.VM, id) if id else None
    if vm is None:
        return Attachment(Hold.FREE)
    for node in where(view, id).nodes:
        seen = _seen(view, node, id)
        if seen is None and _is_told(view, vm):
            return Attachment(Hold.DETACHING, f"waits for {_of(view, node)} to say whether VM {vm.name} has it")
        if seen is not None and not _has_answered(view, node, vm, seen, volume.spec.former_generation):
            return Attachment(Hold.DETACHING, f"waits for {_of(view, node)} to say that VM {vm.name} let go of it")
    return Attachment(Hold.FREE)


def _has_answered(view: View, node: str, vm: Vm, seen: VmReport, generation: int) -> bool:
    """Tell whether a node said what it did after it had heard of a detachment.

    That it removed an earlier life of the VM is no answer: the guest of this one may have been started with the volume since.
    """
    if is_absent(vm, seen) or seen.volumes_generation >= generation:
        return True
    # An older agent does not count attachments; that the guest is as asked since the VM's record last changed it says.
    return _says_nothing(view, node, seen) and seen.spec_revision >= view.revision_of(kinds.VM, vm.id)


def _is_told(view: View, vm: Vm) -> bool:
    """Tell whether the node of a VM was told of it, as far as anybody knows: a guest without an address is started nowhere."""
    bindings = [view.get(kinds.PORT_BINDING, nic.port) for nic in vm.spec.nics]
    return all(binding is not None and addresses_of(binding) for binding in bindings)


def _seen(view: View, node: str, vm: str) -> VmReport | None:
    found = report(view, node, f"vm/{vm}") if node else None
    return found.vm if found is not None else None


def _says_nothing(view: View, node: str, seen: VmReport) -> bool:
    """Tell whether it is the word of an agent that lists no volumes."""
    if connected(view, node):
        return not knows(view, node, OPEN_VOLUMES)
    return seen.state in _ON and not seen.open_volumes


def _trouble(seen: VmReport, volume: str) -> str:
    return next((each.error for each in seen.volume_troubles if each.volume == volume), "")


def _clings(view: View, volume: str, vm: str, node: str) -> str:
    seen, record = _seen(view, node, vm), view.get(kinds.VM, vm)
    why = _trouble(seen, volume) if seen is not None else ""
    name = record.name if isinstance(record, Vm) else vm
    silent = "" if connected(view, node) else f"; {node_name(view, node)} does not answer"
    return f"the guest of VM {name} on {node_name(view, node)} has it open still{f' ({why})' if why else ''}{silent}"


def _of(view: View, node: str) -> str:
    return node_name(view, node) + ("" if connected(view, node) else ", which does not answer,")
