"""Whose word counts after a restore: a restored record's, or what this node was told later, before it (docs/decisions/0014).

A restored object (Desired.restored) says what was true at the backup. Where the node was told otherwise in an older epoch, its
last word stays in force until the record is written again: the guest is not stopped, changed or removed, nor is one started
that was removed by explicit word since. What a guest's network is made of is not a matter of life and death, and follows the
records as ever. Pure.
"""

from __future__ import annotations

from cairn.proto.v1.agent_pb2 import Desired, DesiredVm, Upsert


def overrules(later: Upsert | None, restored: Upsert) -> bool:
    """Tell whether what was told in an older epoch stays in force against a restored object of the same key."""
    if later is None or not restored.object.restored or later.version.epoch >= restored.version.epoch:
        return False
    return _life(later.object) != _life(restored.object)


def is_absent(object: Desired) -> bool:
    """Tell whether an object is the word that it be removed."""
    return object.vm.absent or object.volume.absent


def _life(object: Desired) -> object:
    """Return what must not be changed by an old word: being there, power, size and disks of a guest; the size of a volume."""
    kind = object.WhichOneof("object")
    if kind == "vm":
        return "absent" if object.vm.absent else _guest(object.vm)
    if kind == "volume":
        return "absent" if object.volume.absent else object.volume.size_bytes
    return None


def _guest(vm: DesiredVm) -> object:
    return vm.power_state, vm.cpus, vm.memory_bytes, [disk.volume for disk in vm.disks]
