"""What a restore leaves open: words of before, and numbers that must not go back."""

from __future__ import annotations

from datetime import timedelta

from cairn.controller.model.beyond import beyond
from cairn.controller.model.restored import is_restored, next_power, next_reboot
from cairn.controller.nodespec import desired, unsure
from cairn.controller.presence import Presence
from cairn.controller.reconcilers.garbage import Garbage
from cairn.controller.reconcilers.placement import Placements
from cairn.controller.reconcilers.ports import Ports
from cairn.proto import kinds
from cairn.proto.keys import UNSETTLED
from cairn.proto.seams import timestamp
from cairn.proto.v1.agent_pb2 import Desired, DesiredVm, DesiredVolume, NodeHeard, Observed, Report, Unknown, VmReport
from cairn.proto.v1.cluster_pb2 import Cluster
from cairn.proto.v1.node_pb2 import NodeCapacity

from tests.unit.cloud_kit import GIB, Cloud


def placed() -> tuple[Cloud, str, str]:
    """A cloud with one VM on its one node."""
    cloud = Cloud()
    node = cloud.node("n1")
    vm = cloud.vm("web")
    cloud.settle([Ports(), Placements()])
    return cloud, node, vm


def restore(cloud: Cloud) -> None:
    """Everything there is now is as a restore has it."""
    cluster = Cluster(name="blue", epoch=2)
    cluster.restored.revision = cloud.view.revision
    cloud.put(kinds.CLUSTER, "self", cluster)


def is_told_restored(cloud: Cloud, node: str, key: str) -> bool:
    object = desired(cloud.view, Presence(cloud.view), node, key)
    assert object is not None
    return object.restored


def test_a_record_is_of_the_backup_until_somebody_writes_it() -> None:
    cloud, node, vm = placed()
    assert not is_told_restored(cloud, node, f"vm/{vm}")
    restore(cloud)
    (volume,) = cloud.view.by(kinds.VOLUME, "vm", vm)
    assert is_told_restored(cloud, node, f"vm/{vm}")
    assert is_told_restored(cloud, node, f"volume/{volume}")
    cloud.put(kinds.VM, vm, cloud.edit(kinds.VM, vm))
    assert not is_told_restored(cloud, node, f"vm/{vm}")
    assert is_told_restored(cloud, node, f"volume/{volume}")
    assert not is_restored(cloud.view, kinds.VM, "i-nobody")


def test_ways_to_guests_elsewhere_may_go_once_all_nodes_spoke_and_all_is_decided() -> None:
    cloud, node, _ = placed()
    assert UNSETTLED not in unsure(cloud.view), "nothing was restored"
    restore(cloud)
    assert UNSETTLED in unsure(cloud.view), "its node has not spoken"
    cloud.put(kinds.NODE_HEARD, node, NodeHeard(node=node, epoch=2))
    assert UNSETTLED not in unsure(cloud.view)
    unknown = f"{node}/vm/i-00000009"
    cloud.put(kinds.UNKNOWN, unknown, Unknown(key="vm/i-00000009", desired=Desired(vm=DesiredVm(id="i-00000009"))))
    assert UNSETTLED in unsure(cloud.view), "whether that guest is to be is not decided"
    cloud.delete(kinds.UNKNOWN, unknown)
    assert UNSETTLED not in unsure(cloud.view)


def test_a_start_after_a_restore_is_newer_than_any_its_node_has_answered() -> None:
    """The backup has generation 1, the guest was started three times since: its next start must be a new one to its node."""
    cloud, node, vm = placed()
    known = cloud.view.get(kinds.VM, vm)
    assert known is not None
    own = known.spec.power_generation
    assert next_power(cloud.view, known) == own + 1
    said = VmReport(state=VmReport.STATE_RUNNING, power_generation=own + 3, reboot_generation=2)
    key = f"vm/{vm}"
    cloud.put(kinds.OBSERVED, f"{node}/{key}", Observed(key=key, node=node, report=Report(key=key, vm=said)))
    assert next_power(cloud.view, known) == own + 4
    assert next_reboot(cloud.view, known) == 3


def unknown(cloud: Cloud, node: str, desired: Desired, *, contested: bool = False) -> None:
    key = f"vm/{desired.vm.id}" if desired.HasField("vm") else f"volume/{desired.volume.id}"
    cloud.put(kinds.UNKNOWN, f"{node}/{key}", Unknown(key=key, node=node, desired=desired, contested=contested))


def hear(cloud: Cloud, node: str) -> None:
    cluster = cloud.view.get(kinds.CLUSTER, "self")
    assert cluster is not None
    cloud.put(kinds.NODE_HEARD, node, NodeHeard(node=node, epoch=cluster.epoch))


def node_of(cloud: Cloud, vm: str) -> str:
    placement = cloud.view.get(kinds.PLACEMENT, vm)
    return placement.node if placement is not None else ""


def test_nothing_is_placed_on_a_node_that_has_not_said_what_it_holds() -> None:
    cloud, node, _ = placed()
    other = cloud.node("n2")
    restore(cloud)
    vm = cloud.vm("new")
    cloud.settle([Ports(), Placements()])
    assert not node_of(cloud, vm)
    hear(cloud, other)
    cloud.settle([Ports(), Placements()])
    assert node_of(cloud, vm) == other
    assert node != other


def test_what_a_node_says_it_holds_beyond_its_claims_counts_as_taken() -> None:
    """A guest of 3 GiB that was made since the backup leaves no room for another of 2 GiB, though nothing is claimed for it."""
    cloud = Cloud()
    node = cloud.node("n1", memory=4 * GIB)
    restore(cloud)
    hear(cloud, node)
    unknown(cloud, node, Desired(vm=DesiredVm(id="i-made0000", cpus=1, memory_bytes=3 * GIB)))
    vm = cloud.vm("large", memory=2 * GIB)
    cloud.settle([Ports(), Placements()])
    assert not node_of(cloud, vm)
    cloud.delete(kinds.UNKNOWN, f"{node}/vm/i-made0000")
    cloud.settle([Ports(), Placements()])
    assert node_of(cloud, vm) == node


def test_the_same_of_a_volume_and_of_a_guest_that_grew() -> None:
    cloud, node, vm = placed()
    restore(cloud)
    assert beyond(cloud.view, node) == NodeCapacity()
    unknown(cloud, node, Desired(volume=DesiredVolume(id="vol-made0000", size_bytes=GIB)))
    grown = DesiredVm(id=vm, cpus=3, memory_bytes=GIB)
    unknown(cloud, node, Desired(vm=grown), contested=True)
    unknown(cloud, node, Desired(vm=DesiredVm(id="i-removed0", cpus=3, absent=True)), contested=True)
    assert beyond(cloud.view, node) == NodeCapacity(cpus=2, memory_bytes=GIB // 2, disk_bytes=GIB)


def decision(cloud: Cloud, vm: str) -> str:
    placement = cloud.view.get(kinds.PLACEMENT, vm)
    assert placement is not None
    assert not placement.node
    return placement.decision.say


def test_a_restored_vm_without_a_node_is_placed_only_on_a_word_of_today() -> None:
    """It waited for a node at the backup, and may have been placed since: again it would run twice, or come back."""
    cloud = Cloud()
    vm = cloud.vm("web")
    restore(cloud)
    first, second = cloud.node("n1"), cloud.node("n2")
    hear(cloud, first)
    cloud.settle([Ports(), Placements()])
    assert "cairn vm start web" in decision(cloud, vm)
    cloud.put(kinds.VM, vm, cloud.edit(kinds.VM, vm))
    cloud.settle([Ports(), Placements()])
    assert "n2 has not said what it holds" in decision(cloud, vm)
    unknown(cloud, second, Desired(vm=DesiredVm(id=vm, cpus=1, memory_bytes=GIB)))
    hear(cloud, second)
    cloud.settle([Ports(), Placements()])
    assert "cairn cluster adopt" in decision(cloud, vm)
    cloud.delete(kinds.UNKNOWN, f"{second}/vm/{vm}")
    cloud.settle([Ports(), Placements()])
    assert node_of(cloud, vm)


def test_a_volume_that_a_node_holds_is_not_made_anew_elsewhere() -> None:
    """It had no place at the backup, and has data on n2 by now: made anew on n1 it would be empty, and there would be two."""
    cloud, node, vm = placed()
    volume = cloud.volume("data", vm=vm)
    other = cloud.node("n2")
    restore(cloud)
    hear(cloud, node)
    cloud.settle([Ports(), Placements()])
    assert cloud.view.get(kinds.VOLUME_PLACEMENT, volume) is None, "n2 has not said what it holds"
    unknown(cloud, other, Desired(volume=DesiredVolume(id=volume, size_bytes=GIB)))
    hear(cloud, other)
    cloud.settle([Ports(), Placements()])
    assert cloud.view.get(kinds.VOLUME_PLACEMENT, volume) is None
    assert "n2 holds volume data" in cloud.edit(kinds.PLACEMENT, vm).decision.say
    cloud.delete(kinds.UNKNOWN, f"{other}/volume/{volume}")
    cloud.settle([Ports(), Placements()])
    assert cloud.view.get(kinds.VOLUME_PLACEMENT, volume) is not None


def test_what_a_backup_says_is_deleted_is_kept_from_the_restore_on() -> None:
    """It may have been brought back since, in a pool whose administrator of today never heard of that."""
    cloud, _, vm = placed()
    cloud.delete_vm(vm)
    cloud.now += timedelta(hours=3)
    restore(cloud)
    cluster = cloud.edit(kinds.CLUSTER, "self")
    cluster.restored.restore_time.CopyFrom(timestamp(cloud.now))
    cloud.put(kinds.CLUSTER, "self", cluster)
    cloud.settle([Garbage()])
    assert cloud.view.get(kinds.PURGE, vm) is None
    cloud.now += timedelta(hours=2, seconds=1)
    cloud.settle([Garbage()])
    assert cloud.view.get(kinds.PURGE, vm) is not None
    purged = cloud.vm("purged")
    cloud.delete_vm(purged, purge=True)
    restore(cloud)
    cloud.settle([Garbage()])
    assert cloud.view.get(kinds.VM, purged) is None, "that was a word nobody could take back"
