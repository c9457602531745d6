"""Where a VM and a volume are: one answer, also while one node makes ready to take a VM over from another."""

from __future__ import annotations

from cairn.controller.model.where import Where, needs_permit, vms_on, volume_node, volume_nodes, volumes_on, where
from cairn.controller.nodespec import desired, node_objects
from cairn.controller.presence import Presence
from cairn.controller.reconcilers.placement import Placements
from cairn.controller.reconcilers.ports import Ports
from cairn.controller.store.base import Txn
from cairn.proto import kinds
from cairn.proto.v1.agent_pb2 import VM_ROLE_INCOMING, VM_ROLE_OUTGOING, VM_ROLE_OWNER, VM_ROLE_UNSPECIFIED
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.cloud_kit import Cloud

NODES = st.sampled_from(["", "n1", "n2", "n3"])


def placed() -> tuple[Cloud, str, list[str]]:
    """A VM on the first of two nodes."""
    cloud = Cloud()
    nodes = [cloud.node("n1"), cloud.node("n2")]
    vm = cloud.vm("web", image=cloud.image("demo"), subnet=cloud.subnet("blue", cloud.vpc("v")), node=nodes[0])
    cloud.settle([Ports(), Placements()])
    return cloud, vm, nodes


def take_over(cloud: Cloud, vm: str, node: str) -> None:
    """Have a node make ready for a VM that is on another."""
    placement = cloud.edit(kinds.PLACEMENT, vm)
    placement.incoming = node
    cloud.put(kinds.PLACEMENT, vm, placement)


@given(owner=NODES, incoming=NODES, released=st.booleans(), asked=NODES)
def test_a_vm_has_one_owner_and_nobody_else_runs_it(owner: str, incoming: str, released: bool, asked: str) -> None:
    place = Where(owner, incoming, released)
    roles = {node: place.role(node) for node in ("n1", "n2", "n3")}
    assert place.role("") == VM_ROLE_UNSPECIFIED
    assert {node for node, role in roles.items() if role != VM_ROLE_UNSPECIFIED} == set(place.nodes)
    assert [node for node, role in roles.items() if role in (VM_ROLE_OWNER, VM_ROLE_OUTGOING)] == ([owner] if owner else [])
    assert (VM_ROLE_INCOMING in roles.values()) == (bool(incoming) and incoming != owner)
    assert (VM_ROLE_OUTGOING in roles.values()) == (bool(owner and incoming) and incoming != owner)
    assert place.runs_on in ("", owner)
    assert not (released and place.runs_on)
    assert place.role(asked) == roles.get(asked, VM_ROLE_UNSPECIFIED)


def test_a_vm_that_is_nowhere() -> None:
    cloud = Cloud()
    vm = cloud.vm("web")
    assert where(cloud.view, vm) == Where()
    assert volume_nodes(cloud.view, "vol-00000web") == ()
    assert volume_node(cloud.view, "vol-00000web") == ""


def test_a_vm_and_its_disk_are_on_its_node() -> None:
    cloud, vm, nodes = placed()
    assert where(cloud.view, vm) == Where(nodes[0])
    assert volume_nodes(cloud.view, "vol-00000web") == (nodes[0],)
    assert (vms_on(cloud.view, nodes[0]), vms_on(cloud.view, nodes[1])) == ([vm], [])
    assert volumes_on(cloud.view, nodes[0]) == ["vol-00000web"]
    sent = node_objects(cloud.view, Presence(cloud.view), nodes[0])[f"vm/{vm}"].vm
    assert (sent.role, sent.needs_permit) == (VM_ROLE_OWNER, False)


def test_each_node_is_told_its_role_while_a_vm_is_taken_over() -> None:
    cloud, vm, nodes = placed()
    presence = Presence(cloud.view)
    take_over(cloud, vm, nodes[1])
    affected = presence.follow(cloud.view, [(kinds.PLACEMENT, vm)]).objects
    assert {node for node, keys in affected.items() if f"vm/{vm}" in keys} == set(nodes)
    assert vms_on(cloud.view, nodes[1]) == [vm]
    roles = []
    for node in nodes:
        sent = desired(cloud.view, presence, node, f"vm/{vm}")
        assert sent is not None
        roles.append((sent.vm.role, sent.vm.needs_permit))
    assert roles == [(VM_ROLE_OUTGOING, True), (VM_ROLE_INCOMING, True)]
    assert needs_permit(cloud.view, cloud.edit(kinds.VM, vm))
    take_over(cloud, vm, "")
    affected = presence.follow(cloud.view, [(kinds.PLACEMENT, vm)]).objects
    assert {node for node, keys in affected.items() if f"vm/{vm}" in keys} == set(nodes)
    assert desired(cloud.view, presence, nodes[1], f"vm/{vm}") is None


def test_a_deleted_vm_is_absent_at_both_its_nodes() -> None:
    cloud, vm, nodes = placed()
    take_over(cloud, vm, nodes[1])
    cloud.delete_vm(vm)
    presence = Presence(cloud.view)
    for node in nodes:
        sent = desired(cloud.view, presence, node, f"vm/{vm}")
        assert sent is not None
        assert sent.vm.absent


def test_the_index_of_a_vm_that_is_nowhere_is_empty() -> None:
    cloud, vm, nodes = placed()
    placement = cloud.edit(kinds.PLACEMENT, vm)
    placement.node, placement.incoming = "", ""
    cloud.put(kinds.PLACEMENT, vm, placement)
    assert cloud.view.by(kinds.PLACEMENT, "node", "") == [vm]
    cloud.commit(Txn("placement").delete(kinds.PLACEMENT, vm))
    assert vms_on(cloud.view, nodes[0]) == []
