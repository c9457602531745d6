"""In which order a guest finds its disks: the root disk in slot 0, data volumes in the order they were given.

A volume keeps its slot while it is attached, over restarts and whatever happens to its neighbours; one attached later takes the
lowest that is free, which is also where the guest's kernel puts it while it runs. Volumes that were attached by a release that
knew no slots take those that are left, in the order of the VM's list.
"""

from __future__ import annotations

from cairn.controller.store.base import View
from cairn.proto import kinds


def slots(view: View, vm: str) -> dict[str, int]:
    """Return the slot of each volume of a VM."""
    record = view.get(kinds.VM, vm)
    order = {id: place for place, id in enumerate(record.spec.volumes)} if record is not None else {}
    volumes = [volume for id in view.by(kinds.VOLUME, "vm", vm) if (volume := view.get(kinds.VOLUME, id)) is not None]
    result = {volume.id: 0 for volume in volumes if volume.spec.boot}
    result |= {volume.id: volume.spec.slot for volume in volumes if volume.spec.slot}
    left = [volume.id for volume in volumes if volume.id not in result]
    for id in sorted(left, key=lambda id: (order.get(id, len(order)), id)):
        result[id] = _lowest(set(result.values()))
    return result


def free_slot(view: View, vm: str) -> int:
    """Return the slot for one more data volume of a VM."""
    return _lowest(set(slots(view, vm).values()))


def _lowest(taken: set[int]) -> int:
    slot = 1
    while slot in taken:
        slot += 1
    return slot
