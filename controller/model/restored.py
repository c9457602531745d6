"""What a restore from a backup leaves open: which records nobody has touched since, which nodes have not spoken yet.

A restored record says what was true at the backup; its node may have been told otherwise since. So a record counts as a word of
today only once somebody wrote it after the restore, and numbers that must only grow start from what nodes have seen of them.
"""

from __future__ import annotations

from typing import Any, Final

from cairn.controller.store.base import View
from cairn.proto import kinds
from cairn.proto.kinds import Kind
from cairn.proto.v1.agent_pb2 import VmReport
from cairn.proto.v1.vm_pb2 import Vm

CLUSTER_ID: Final = "self"
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


def holders(view: View, key: str) -> list[str]:
    """Return the nodes that hold something without being told to."""
    return [id.partition("/")[0] for id in view.by(kinds.UNKNOWN, "key", key)]


def next_power(view: View, vm: Vm) -> int:
    """Return the next power generation of a VM: greater than its own, and than any a node has seen before a restore."""
    return 1 + max([vm.spec.power_generation, *(report.power_generation for report in _reports(view, vm.id))])


def next_reboot(view: View, vm: Vm) -> int:
    """Return the next reboot generation, likewise."""
    return 1 + max([vm.spec.reboot_generation, *(report.reboot_generation for report in _reports(view, vm.id))])


def _reports(view: View, vm: str) -> list[VmReport]:
    found = (view.get(kinds.OBSERVED, id) for id in view.by(kinds.OBSERVED, "key", f"vm/{vm}"))
    return [observed.report.vm for observed in found if observed is not None]
