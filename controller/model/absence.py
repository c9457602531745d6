"""Whether a node has removed a deleted VM: what it said must be about the VM's present life.

A VM that was deleted, brought back and deleted again may still be known as ABSENT from the first time, though its guest runs.
Each life has a power generation of its own: bringing a VM back makes it grow, the node is told it with `absent`, and says it
back. Rejected: the revision of the VM's record (it grows also when a deleted VM is to be erased, and a node that had removed it
long ago would have to be asked again), times (clocks differ).
"""

from __future__ import annotations

from cairn.controller.store.base import View
from cairn.proto import kinds
from cairn.proto.v1.agent_pb2 import VmReport
from cairn.proto.v1.vm_pb2 import Vm


def is_absent(vm: Vm, seen: VmReport | None) -> bool:
    """Tell whether a report says that nothing of this life of a VM is left."""
    return seen is not None and seen.state == VmReport.STATE_ABSENT and seen.power_generation >= vm.spec.power_generation


def removed(view: View, vm: Vm, node: str) -> bool:
    """Tell whether a node has said so."""
    observed = view.get(kinds.OBSERVED, f"{node}/vm/{vm.id}")
    return is_absent(vm, observed.report.vm if observed is not None else None)
