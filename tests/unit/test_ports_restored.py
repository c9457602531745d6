"""Addresses after a restore: a card that had none at the backup may have been given one since, and so may others."""

from __future__ import annotations

from cairn.controller.reconcilers.ports import Ports
from cairn.proto import kinds
from cairn.proto.v1.agent_pb2 import Desired, DesiredVm, NodeHeard, Unknown, VmNic
from cairn.proto.v1.cluster_pb2 import Cluster

from tests.unit.cloud_kit import Cloud

EPOCH = 2_000_000_000


def restored(cloud: Cloud) -> None:
    """All there is now is as a backup has it."""
    cluster = Cluster(name="test", epoch=EPOCH)
    cluster.restored.revision = cloud.view.revision
    cloud.put(kinds.CLUSTER, "self", cluster)


def heard(cloud: Cloud, node: str) -> None:
    cloud.put(kinds.NODE_HEARD, node, NodeHeard(node=node, epoch=EPOCH))


def address(cloud: Cloud, port: str) -> str:
    binding = cloud.view.get(kinds.PORT_BINDING, port)
    return binding.address if binding is not None else ""


def test_a_card_of_a_vm_that_nobody_placed_waits_for_a_word_about_the_vm() -> None:
    cloud = Cloud()
    heard(cloud, cloud.node("n1"))
    subnet = cloud.subnet("blue", cloud.vpc("v"))
    vm = cloud.vm("old", subnet=subnet)
    restored(cloud)
    cloud.vm("young", subnet=subnet)
    ports = Ports()
    cloud.settle([ports])
    assert address(cloud, "nic-00000old") == ""
    assert address(cloud, f"nic-{'young':0>8}") == "10.1.1.2", "who is new is not kept waiting"
    assert ports.reconcile(cloud.view, subnet, cloud.now).again_after_s == 5.0
    cloud.take()
    cloud.put(kinds.VM, vm, cloud.edit(kinds.VM, vm))
    assert subnet in ports.keys(cloud.view, kinds.VM, vm), "the word wakes it"
    cloud.settle([ports])
    assert address(cloud, "nic-00000old") == "10.1.1.3"


def test_a_card_of_a_placed_vm_waits_until_all_nodes_have_said_what_they_hold() -> None:
    cloud = Cloud()
    first, second = cloud.node("n1"), cloud.node("n2")
    subnet = cloud.subnet("blue", cloud.vpc("v"))
    cloud.vm("old", subnet=subnet, node=first)
    from cairn.controller.reconcilers.placement import Placements

    cloud.settle([Placements()])
    restored(cloud)
    heard(cloud, first)
    cloud.settle([Ports()])
    assert address(cloud, "nic-00000old") == ""
    card = VmNic(port="nic-since000", subnet=subnet, addresses=["10.1.1.2"])
    told = Unknown(key="vm/i-since000", node=second, desired=Desired(vm=DesiredVm(id="i-since000", nics=[card])))
    cloud.put(kinds.UNKNOWN, f"{second}/vm/i-since000", told)
    heard(cloud, second)
    cloud.settle([Ports()])
    assert address(cloud, "nic-00000old") == "10.1.1.3", "what a guest has that is to be adopted is given to nobody"


def test_who_is_held_by_a_node_is_adopted_with_its_address() -> None:
    cloud = Cloud()
    node = cloud.node("n1")
    heard(cloud, node)
    subnet = cloud.subnet("blue", cloud.vpc("v"))
    vm = cloud.vm("old", subnet=subnet)
    restored(cloud)
    cloud.put(kinds.UNKNOWN, f"{node}/vm/{vm}", Unknown(key=f"vm/{vm}", node=node, desired=Desired(vm=DesiredVm(id=vm))))
    cloud.put(kinds.VM, vm, cloud.edit(kinds.VM, vm))
    cloud.settle([Ports()])
    assert cloud.view.get(kinds.PORT_BINDING, "nic-00000old") is None


def test_without_a_restore_nobody_waits() -> None:
    cloud = Cloud()
    cloud.node("n1")
    subnet = cloud.subnet("blue", cloud.vpc("v"))
    cloud.vm("old", subnet=subnet)
    cloud.settle([Ports()])
    assert cloud.view.get(kinds.PORT_BINDING, "nic-00000old") is not None
