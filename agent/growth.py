"""Volumes that another node has made larger, and what a running guest sees of that. Pure.

A volume of this node grows through the process of the guest that has it open, which sees it at once. One in a shared pool is
grown there by whoever administers it, and the process goes on with the size it found when it opened it. So the guest's node is
told the size (VmDisk.size_bytes) once a node has said that the volume has it, asks the process what the guest sees, and has it
look again.

What that costs in safety: QEMU looks again by cutting or growing the image to the size it is told. It is told what the pool
has, read just before, and only if it sees less. Should the volume grow once more in between, what is cut is what no guest has
seen yet, and its administrator makes it anew.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from cairn.agent.actions import GrowDisk
from cairn.agent.hypervisor.base import Domain, DomainState
from cairn.agent.verdict import Wanted
from cairn.proto.v1.agent_pb2 import DesiredVm, VmReport
from cairn.proto.v1.vm_pb2 import POWER_STATE_STOPPED
from cairn.storage.base import Volume

# When to look at the pool again for what somebody has seen in it and this node has not.
LOOK_AGAIN_S = 10.0


def unseen(vm: DesiredVm, open_volumes: Collection[str], seen: Mapping[str, int]) -> list[str]:
    """Return the volumes its guest has open and is to see larger than it is known to see them."""
    return [disk.volume for disk in vm.disks if disk.volume in open_volumes and seen.get(disk.volume, 0) < disk.size_bytes]


def to_ask(vm: DesiredVm, domain: Domain | None, seen: Mapping[str, int]) -> list[str]:
    """Return the volumes of which its process must be asked; seen: what is known.

    None of a guest that executes nothing or is to stop: its process may hang, and need not answer.
    """
    if vm.absent or vm.power_state == POWER_STATE_STOPPED or domain is None:
        return []
    executes = domain.state in (DomainState.RUNNING, DomainState.STOPPING)
    return unseen(vm, domain.open_volumes, seen) if executes else []


def is_said_larger(vm: DesiredVm, volumes: Mapping[str, Volume]) -> bool:
    """Tell whether a volume is said to be larger than it was when this node looked at it last."""
    return any(disk.volume in volumes and volumes[disk.volume].size_bytes < disk.size_bytes for disk in vm.disks)


def plan_growth(wanted: Wanted, domain: Domain) -> tuple[tuple[GrowDisk, ...], float]:
    """Return what makes a running guest see what it is to see, and in how many seconds to look again; 0: no need."""
    vm, seen, actions, wait_s = wanted.vm, dict(domain.seen), list[GrowDisk](), 0.0
    told = {disk.volume: disk.size_bytes for disk in vm.disks}
    for volume in unseen(vm, domain.open_volumes, seen):
        size_bytes = wanted.sizes.get(volume, 0)
        if volume in seen and size_bytes >= told[volume]:
            actions.append(GrowDisk(vm.id, volume, size_bytes))
        else:
            wait_s = LOOK_AGAIN_S
    return tuple(actions), wait_s


def seen_in(report: VmReport) -> dict[str, int]:
    """Return what a report says that its guest sees."""
    return {each.volume: each.size_bytes for each in report.seen}
