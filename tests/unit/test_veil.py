"""What those who may not see nodes are told: nothing of machines, and sentences that still read well."""

from __future__ import annotations

from typing import Any

import pytest
from cairn.controller.model import veil
from cairn.controller.model.permits import Caller
from cairn.controller.model.veil import Veil, covered, parts_of, plainly
from cairn.controller.store.base import Txn
from cairn.controller.store.view import LiveView
from cairn.proto import kinds
from cairn.proto.errors import BadState, Invalid, Repeated
from cairn.proto.v1 import access_pb2, common_pb2, event_pb2, image_pb2, job_pb2, port_pb2, vm_pb2, volume_pb2
from cairn.proto.v1.audit_pb2 import Audit
from cairn.proto.v1.common_pb2 import Decision, FilterCount, Plan
from cairn.proto.v1.event_pb2 import Event
from cairn.proto.v1.node_pb2 import Node
from cairn.proto.v1.vm_pb2 import Placement, Vm
from cairn.proto.v1.volume_pb2 import Volume

from tests.unit.test_view import commit

NODES = ("n1", "n2", "rack-7")
# What tenants are shown; nodes, unknown objects and the cluster itself are not for them.
TENANTS = (vm_pb2, volume_pb2, image_pb2, port_pb2, job_pb2, event_pb2, common_pb2)
# Stored, or said to nodes only.
WITHIN = {"Placement", "VolumePlacement", "ImageContent", "NodeScore", "NodeClaims", "Opening", "Outcast"}


def cover(*more: Txn) -> Veil:
    txn = Txn("api")
    for name in NODES:
        txn.create(kinds.NODE, f"node-{name:0>8}", Node(id=f"node-{name:0>8}", name=name))
    view = LiveView()
    for each in (txn, *more):
        commit(view, each)
    return Veil(view, Caller("user", "bob"))


def test_no_field_that_names_a_node_is_forgotten() -> None:
    forgotten = []
    for module in TENANTS:
        for message in module.DESCRIPTOR.message_types_by_name.values():
            for field in message.fields:
                names_one = field.name in ("node", "nodes", "node_name", "host", "endpoint", "top", "example")
                if names_one and message.name not in WITHIN and not field.GetOptions().Extensions[access_pb2.physical]:
                    forgotten.append(f"{message.name}.{field.name}")
    assert not forgotten


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("running on n1", "running on a node"),
        ("node n2 does not answer; the guest may be running", "a node does not answer; the guest may be running"),
        ("ready on n1, n2; copying to rack-7 (40 %)", "ready on several nodes; copying to a node (40 %)"),
        ("n1, n2 and rack-7 lack memory", "several nodes lack memory"),
        ("n1: cannot open the disk", "a node: cannot open the disk"),
        ("n10 and rack-70 are no nodes, n1x neither", "n10 and rack-70 are no nodes, n1x neither"),
        ("in pool local/node-000000n1", "in pool local/a node"),
    ],
)
def test_sentences(said: str, told: str) -> None:
    assert cover().sentence(said) == told


def test_a_vm_says_neither_where_it_is_nor_what_others_have() -> None:
    placement = Placement(vm="i-1", decision=Decision(say="n1, n2 lack memory: the most free is 1 GiB on n2, 2 GiB wanted"))
    placement.decision.filters.append(FilterCount(name="memory", refused=2, example="n1: 512 MiB free"))
    vm = Vm(id="i-1", name="web")
    vm.status.say = placement.decision.say
    vm.status.conditions.add(type="Placed", message=placement.decision.say)
    shown = cover(Txn("placement").create(kinds.PLACEMENT, "i-1", placement)).over(vm)
    assert shown.status.say == shown.status.conditions[0].message == "no node fits it now: memory"
    vm.status.node, vm.status.say = "n1", "running on n1"
    shown = cover().over(vm)
    assert (shown.status.node, shown.status.say) == ("", "running on a node")
    assert vm.status.node == "n1", "what others are shown is another message"


def test_a_decision_a_volume_and_an_event() -> None:
    decision = Decision(considered=3, node="node-000000n1", node_name="n1", say="n1 has the most left")
    decision.top.add(node="node-000000n1", node_name="n1", total=0.7)
    shown = cover().over(decision)
    assert shown == Decision(say="placed on a node")
    volume = Volume(id="vol-1")
    volume.status.node, volume.status.pool, volume.status.say = "n1", "local/node-000000n1", "on n1, attached to no VM"
    status = cover().over(volume).status
    assert (status.node, status.pool, status.say) == ("", "local", "on a node, attached to no VM")
    event = Event(reason="CannotPlace", message="n1 lacks memory: 1 GiB free", node="n1")
    assert cover().over(event) == Event(reason="CannotPlace", message="no node fits it now")


def test_a_plan() -> None:
    plan = Plan(say="would place vm web")
    plan.changes.add(action="place", kind="vm", name="web", details=["on n1", "disk 1 GiB"])
    plan.parts.add(name="web", node="n1")
    shown = cover().over(plan)
    assert list(shown.changes[0].details) == ["on a node", "disk 1 GiB"]
    assert shown.parts[0].node == ""


def test_what_was_changed_of_nodes_is_not_told_by_the_audit() -> None:
    audit = Audit(object="vm/i-1")
    audit.changes.add(field="spec.node", after="node-000000n1")
    audit.changes.add(field="spec.cpus", before="1", after="2")
    audit.changes.add(field="spec.nics[0].subnet", after="vxnet-1")
    audit.changes.add(object="image/img-1", field="sharing.projects[0]", after="prj-others00")
    audit.changes.add(object="secret/vm/i-1", after="sha256:00")
    shown = cover().over(audit)
    assert [each.field for each in shown.changes] == ["spec.cpus", "spec.nics[0].subnet", ""]


def test_refusals_are_told_in_other_words() -> None:
    refused: list[Any] = [
        BadState("volume", "data", "volume 'data' is on n1"),
        Repeated(BadState("volume", "data", "volume 'data' is on n1").status()),
        Invalid("vm.spec.volumes", "local volumes on different nodes: 'a' on n1, 'b' on n2"),
    ]
    for error in refused:
        error.worded(cover().sentence)
        text = error.status().SerializeToString()
        assert b"n1" not in text
        assert b"a node" in text


def test_what_is_covered_finds_nothing() -> None:
    paths = ("status.node", "status.say", "status.conditions.message")
    assert all(covered(Vm.DESCRIPTOR, path) for path in paths)
    assert covered(Volume.DESCRIPTOR, "status.pool")
    assert not any(covered(Vm.DESCRIPTOR, path) for path in ("name", "status.state", "spec.cpus", "nonsense.path"))


def test_messages_without_anything_physical_are_left_alone() -> None:
    assert not parts_of(vm_pb2.Nic.DESCRIPTOR).one_inner
    assert not parts_of(vm_pb2.Nic.DESCRIPTOR).inner
    assert plainly(Decision()) == "no node fits it now"
    assert veil.SEES_NODES == "node.see"
