"""What a guest sees of a volume that was made larger: what its node says, not what was asked for.

A volume of a node grows through its guest's process, which sees it at once. One in a shared pool is grown by its administrator;
then the node of its guest is told (VmDisk.size_bytes), and says what the guest sees (VmReport.seen). An agent of an older
release is not told and says nothing: its guests see it when they start next.
"""

from __future__ import annotations

from typing import NamedTuple

from cairn.controller.model.capabilities import unknown_there
from cairn.controller.model.nodes import connected, node_name
from cairn.controller.model.reports import report
from cairn.controller.model.where import in_shared_pool, where
from cairn.controller.store.base import View
from cairn.controller.words import size
from cairn.proto import kinds
from cairn.proto.capabilities import DISK_SIZES
from cairn.proto.v1.agent_pb2 import VM_PAUSE_UNSPECIFIED, VmReport
from cairn.proto.v1.vm_pb2 import Vm
from cairn.proto.v1.volume_pb2 import Volume


class Unseen(NamedTuple):
    """One sentence about what a guest does not see of its volume, and whether that is about to change by itself."""

    say: str
    moves: bool


def unseen(view: View, volume: Volume, size_bytes: int) -> Unseen | None:
    """Return what the guest of a volume's VM does not see of the bytes it has in its pool; None: it sees all, or is off."""
    vm, node = view.get(kinds.VM, volume.spec.vm), where(view, volume.spec.vm).runs_on
    found = report(view, node, f"vm/{volume.spec.vm}") if node and in_shared_pool(view, volume.id) else None
    if vm is None or found is None or volume.id not in found.vm.open_volumes:
        return None
    seen_bytes = next((each.size_bytes for each in found.vm.seen if each.volume == volume.id), 0)
    if seen_bytes >= size_bytes:
        return None
    if not seen_bytes and (older := unknown_there(view, node, {DISK_SIZES})):
        return Unseen(f"VM {vm.name} sees a new size when it starts next, as {older}", moves=False)
    return _waits(view, volume.id, vm, node, found.vm, size_bytes, seen_bytes)


def _waits(view: View, volume: str, vm: Vm, node: str, seen: VmReport, size_bytes: int, seen_bytes: int) -> Unseen:
    if not connected(view, node):
        of_it = f"only {size(seen_bytes)} of its {size(size_bytes)}" if seen_bytes else "how much of it is not known"
        return Unseen(f"VM {vm.name} sees {of_it}: {node_name(view, node)} does not answer", moves=bool(seen_bytes))
    if seen.pause != VM_PAUSE_UNSPECIFIED:
        return Unseen(f"VM {vm.name}, which is paused, sees its {size(size_bytes)} when it runs again", moves=False)
    if why := next((each.error for each in seen.volume_troubles if each.volume == volume), ""):
        say = f"{node_name(view, node)} could not have VM {vm.name} see its {size(size_bytes)}: {why}; trying again"
        return Unseen(say, moves=True)
    return Unseen(f"waits for {node_name(view, node)} to have VM {vm.name} see its {size(size_bytes)}", moves=True)
