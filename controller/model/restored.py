"""What a restore from a backup leaves open: which records nobody has touched since, which nodes have not spoken yet.

A restored record says what was true at the backup; its node may have been told otherwise since. So a record counts as a word of
today only once somebody wrote it after the restore, and numbers that must only grow start from what nodes have seen of them.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, Final

from cairn.controller.model.lifetime import kept_for_s, kept_no_longer
from cairn.controller.model.where import where
from cairn.controller.store.base import View
from cairn.proto import kinds
from cairn.proto.kinds import Kind
from cairn.proto.seams import moment
from cairn.proto.v1.agent_pb2 import VmReport
from cairn.proto.v1.vm_pb2 import Vm
from cairn.proto.v1.volume_pb2 import Volume

CLUSTER_ID: Final = "self"
# Room for the moves of some work in one epoch, below the epoch: seconds since 1970 and these fit 63 bits.
GENERATION_BITS: Final = 24
# What a change of may settle, or unsettle, what a restore has left open.
SETTLING: Final[frozenset[Kind[Any]]] = frozenset({kinds.CLUSTER, kinds.NODE, kinds.NODE_HEARD, kinds.UNKNOWN})


def is_under_way(view: View) -> bool:
    """Tell whether a restore is putting records in place: what there is now was never true together."""
    cluster = view.get(kinds.CLUSTER, CLUSTER_ID)
    return cluster is not None and cluster.HasField("restore")


def is_restored(view: View, kind: Kind[Any], id: str) -> bool:
    """Tell whether a record is as the last restore has it: nobody has written it since."""
    cluster = view.get(kinds.CLUSTER, CLUSTER_ID)
    if cluster is None or not cluster.HasField("restored"):
        return False
    return 0 < view.revision_of(kind, id) <= cluster.restored.revision


def is_erased_since(view: View, volume: str) -> bool:
    """Tell whether a volume is to be erased, by itself or with its VM, and not only by the word of a backup."""
    record = view.get(kinds.VOLUME, volume)
    vm = record.spec.vm if record is not None and record.spec.delete_with_vm else ""
    return any(view.get(kinds.PURGE, id) is not None and not is_restored(view, kinds.PURGE, id) for id in (volume, vm) if id)


def was_restored(view: View) -> bool:
    """Tell whether the records are those of a backup, with what was written since."""
    cluster = view.get(kinds.CLUSTER, CLUSTER_ID)
    return cluster is not None and cluster.HasField("restored")


def unheard(view: View) -> list[str]:
    """Return the nodes that have not said yet, since the last restore, what they hold that the records do not know."""
    cluster = view.get(kinds.CLUSTER, CLUSTER_ID)
    if cluster is None or not cluster.HasField("restored"):
        return []
    return sorted(node for node in view.ids(kinds.NODE) if not _has_spoken(view, node, cluster.epoch))


def settled(view: View) -> bool:
    """Tell whether it is known of every guest whether it is to be: no restore, or all nodes have spoken, and all is decided."""
    cluster = view.get(kinds.CLUSTER, CLUSTER_ID)
    if cluster is None or not cluster.HasField("restored"):
        return True
    undecided = any(id.partition("/")[2].startswith("vm/") for id in view.ids(kinds.UNKNOWN))
    return not undecided and not unheard(view)


def heard(view: View, node: str) -> bool:
    """Tell whether what a node holds is known: it was never in doubt, or the node has said it since the last restore."""
    cluster = view.get(kinds.CLUSTER, CLUSTER_ID)
    return cluster is None or not cluster.HasField("restored") or _has_spoken(view, node, cluster.epoch)


def _has_spoken(view: View, node: str, epoch: int) -> bool:
    said = view.get(kinds.NODE_HEARD, node)
    return said is not None and said.epoch == epoch


def is_undecided(view: View, vm: str) -> bool:
    """Tell whether it is open if a VM is as its record says: its node was told otherwise, or has not spoken since a restore."""
    if not is_restored(view, kinds.VM, vm):
        return False
    owner = where(view, vm).owner
    return bool(holders(view, f"{kinds.VM.name}/{vm}")) or (bool(owner) and not heard(view, owner))


def holders(view: View, key: str) -> list[str]:
    """Return the nodes that hold something without being told to."""
    return [id.partition("/")[0] for id in view.by(kinds.UNKNOWN, "key", key)]


def next_power(view: View, vm: Vm) -> int:
    """Return the next power generation of a VM: greater than its own, and than any a node has seen before a restore."""
    return 1 + max([vm.spec.power_generation, *(report.power_generation for report in _reports(view, vm.id))])


def next_reboot(view: View, vm: Vm) -> int:
    """Return the next reboot generation, likewise."""
    return 1 + max([vm.spec.reboot_generation, *(report.reboot_generation for report in _reports(view, vm.id))])


def next_generation(view: View, generation: int) -> int:
    """Return the next generation of some work: greater than any of before a restore, which pools remember, not records."""
    cluster = view.get(kinds.CLUSTER, CLUSTER_ID)
    least = cluster.epoch << GENERATION_BITS if cluster is not None and cluster.HasField("restored") else 0
    return max(generation + 1, least)


def is_generation_of_before(view: View, generation: int) -> bool:
    """Tell whether a generation may have been overtaken in a life that a restore has forgotten."""
    cluster = view.get(kinds.CLUSTER, CLUSTER_ID)
    return cluster is not None and cluster.HasField("restored") and generation < cluster.epoch << GENERATION_BITS


def kept_s(view: View, kind: Kind[Any], message: Vm | Volume, now: datetime) -> float:
    """Return for how many seconds more what was deleted is kept.

    Of a backup's record retention begins anew with the restore: it may have been brought back since, and its nodes not know.
    """
    left_s = kept_for_s(message, now)
    if kept_no_longer(message) or not is_restored(view, kind, message.id):
        return left_s
    cluster = view.get(kinds.CLUSTER, CLUSTER_ID)
    assert cluster is not None
    retention = moment(message.purge_time) - moment(message.delete_time)
    return max(left_s, (moment(cluster.restored.restore_time) + retention - now).total_seconds())


def _reports(view: View, vm: str) -> list[VmReport]:
    found = (view.get(kinds.OBSERVED, id) for id in view.by(kinds.OBSERVED, "key", f"vm/{vm}"))
    return [observed.report.vm for observed in found if observed is not None]
