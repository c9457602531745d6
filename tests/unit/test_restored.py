"""What a restore leaves open: words of before, and numbers that must not go back."""

from __future__ import annotations

from cairn.controller.model.restored import is_restored, next_power, next_reboot
from cairn.controller.nodespec import desired
from cairn.controller.presence import Presence
from cairn.controller.reconcilers.placement import Placements
from cairn.controller.reconcilers.ports import Ports
from cairn.proto import kinds
from cairn.proto.v1.agent_pb2 import Observed, Report, VmReport
from cairn.proto.v1.cluster_pb2 import Cluster

from tests.unit.cloud_kit import Cloud


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
