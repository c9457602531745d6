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

from cairn.controller.model.nodes import connected, node_name
from cairn.controller.model.openings import (
    ON,
    has_answered,
    holders,
    is_free_of_former,
    is_told,
    opening,
    says_nothing,
    seen_on,
)
from cairn.controller.model.where import where
from cairn.controller.store.base import View
from cairn.proto import kinds
from cairn.proto.v1.agent_pb2 import VmReport
from cairn.proto.v1.vm_pb2 import Vm
from cairn.proto.v1.volume_pb2 import Opening, Volume


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


def attachment(view: View, volume: Volume) -> Attachment:
    """Return how far a volume is what its spec asks for."""
    wanted = volume.spec.vm
    claim = opening(view, volume.id)
    others = [(vm, node) for vm, node in holders(view, volume.id) if vm != wanted]
    if others and not (claim is not None and claim.shutting_out):
        vm, node = others[0]
        say = _clings(view, volume.id, vm, node)
        return Attachment(Hold.ATTACHING if wanted else Hold.DETACHING, say)
    if claim is not None and claim.vm != wanted and (claim.vm or where(view, wanted).runs_on):
        return Attachment(Hold.ATTACHING if wanted else Hold.DETACHING, _waits(view, claim))
    if claim is not None and not wanted:
        return Attachment(Hold.FREE)
    return _attached(view, volume, wanted) if wanted else _freed(view, volume)


def is_let_go(view: View, volume: Volume) -> bool:
    """Tell whether no guest but its VM's has a volume, or may be opening it: every node concerned has said so.

    A volume that several nodes can open must not be given to a second one before.
    """
    if any(vm != volume.spec.vm for vm, _ in holders(view, volume.id)):
        return False
    claim = opening(view, volume.id)
    return is_free_of_former(view, volume) if claim is None else claim.vm in ("", volume.spec.vm)


def _attached(view: View, volume: Volume, id: str) -> Attachment:
    vm, node = view.get(kinds.VM, id), where(view, id).runs_on
    seen = seen_on(view, node, id)
    if vm is None or seen is None or says_nothing(view, node, seen) or volume.id in seen.open_volumes:
        return Attachment(Hold.ATTACHED)
    trouble = _trouble(seen, volume.id) if seen.state in ON else ""
    if trouble:
        return Attachment(
            Hold.ATTACHING, f"{node_name(view, node)} could not attach it to VM {vm.name}: {trouble}; trying again"
        )
    if seen.state in ON or seen.volumes_generation < vm.spec.volumes_generation:
        return Attachment(Hold.ATTACHING, f"waits for {_of(view, node)} to attach it to VM {vm.name}")
    return Attachment(Hold.ATTACHED)


def _freed(view: View, volume: Volume) -> Attachment:
    """One that is attached to nothing: has the guest it was taken from let go?"""
    id = volume.spec.former_vm
    vm = view.get(kinds.VM, id) if id else None
    if vm is None:
        return Attachment(Hold.FREE)
    for node in where(view, id).nodes:
        seen = seen_on(view, node, id)
        if seen is None and is_told(view, vm):
            return Attachment(Hold.DETACHING, f"waits for {_of(view, node)} to say whether VM {vm.name} has it")
        if seen is not None and not has_answered(view, node, vm, seen, volume.spec.former_generation):
            return Attachment(Hold.DETACHING, f"waits for {_of(view, node)} to say that VM {vm.name} let go of it")
    return Attachment(Hold.FREE)


def _trouble(seen: VmReport, volume: str) -> str:
    return next((each.error for each in seen.volume_troubles if each.volume == volume), "")


def _clings(view: View, volume: str, vm: str, node: str) -> str:
    seen, record = seen_on(view, node, vm), view.get(kinds.VM, vm)
    why = _trouble(seen, volume) if seen is not None else ""
    name = record.name if isinstance(record, Vm) else vm
    silent = "" if connected(view, node) else f"; {node_name(view, node)} does not answer"
    return f"the guest of VM {name} on {node_name(view, node)} has it open still{f' ({why})' if why else ''}{silent}"


def _waits(view: View, claim: Opening) -> str:
    """Say what the claim to open a volume waits for."""
    if not claim.vm:
        return "waits for its turn to be opened"
    vm, node = view.get(kinds.VM, claim.vm), _of(view, claim.node)
    name = vm.name if vm is not None else claim.vm
    if claim.shutting_out:
        return f"the guest of VM {name} on {node} is being shut out of it"
    return f"waits for {node} to say that VM {name} let go of it"


def _of(view: View, node: str) -> str:
    return node_name(view, node) + ("" if connected(view, node) else ", which does not answer,")
