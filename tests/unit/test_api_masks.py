"""Update masks at any depth, and names that will never be taken for ids."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from cairn.controller.api import masks, validation
from cairn.controller.api.masks import UpdateRules
from cairn.proto import kinds
from cairn.proto.errors import Invalid
from cairn.proto.v1.node_pb2 import Node, NodeSpec
from cairn.proto.v1.vm_pb2 import Vm, VmSpec

# Messages within messages: nothing users may set goes that deep yet.
DEEP = UpdateRules(mutable=("labels", "status.facts.cpu", "status.facts.pools"), immutable=("status.facts.arch",))
FLAT = UpdateRules(mutable=("labels", "spec.cpus", "spec.node_selector"), immutable=("name", "spec.image"))


def node(**cpu: Any) -> Node:
    result = Node(id="node-1")
    for name, value in cpu.items():
        setattr(result.status.facts.cpu, name, value)
    return result


def test_a_path_goes_as_deep_as_messages_do() -> None:
    new = node(model="old", threads=4, sockets=1)
    masks.copied(new, node(model="new", threads=8), ["status.facts.cpu.threads"], DEEP, "node.")
    assert (new.status.facts.cpu.model, new.status.facts.cpu.threads) == ("old", 8)


def test_what_is_named_and_not_set_is_cleared_and_nothing_else() -> None:
    new = node(model="old", threads=4)
    masks.copied(new, Node(), ["status.facts.cpu.threads"], DEEP, "node.")
    assert (new.status.facts.cpu.model, new.status.facts.cpu.threads) == ("old", 0)
    bare = Node(id="node-1")
    masks.copied(bare, Node(), ["status.facts.cpu.threads"], DEEP, "node.")
    assert not bare.HasField("status"), "clearing what is not there makes nothing"


def test_a_whole_message_is_replaced_with_its_presence() -> None:
    new = node(model="old", threads=4)
    masks.copied(new, node(threads=8), ["status.facts.cpu"], DEEP, "node.")
    assert (new.status.facts.cpu.model, new.status.facts.cpu.threads) == ("", 8)
    masks.copied(new, Node(), ["status.facts.cpu"], DEEP, "node.")
    assert not new.status.facts.HasField("cpu")


def test_maps_go_by_key_at_any_depth() -> None:
    new = Vm(labels={"a": "1", "b": "2"}, spec=VmSpec(node_selector={"disk": "hdd", "zone": "a"}))
    given = Vm(labels={"a": "9"}, spec=VmSpec(node_selector={"disk": "ssd"}))
    masks.copied(new, given, ["labels.a", "labels.b", "spec.node_selector.disk"], FLAT, "vm.")
    assert dict(new.labels) == {"a": "9"}
    assert dict(new.spec.node_selector) == {"disk": "ssd", "zone": "a"}


@pytest.mark.parametrize("path", ["labels.a.b", "spec.cpus.more"])
def test_a_key_may_have_dots_and_a_number_has_no_parts(path: str) -> None:
    new, given = Vm(), Vm(labels={"a.b": "1"}, spec=VmSpec(cpus=2))
    if path.startswith("labels"):
        masks.copied(new, given, [path], FLAT, "vm.")
        assert dict(new.labels) == {"a.b": "1"}
    else:
        with pytest.raises(Invalid, match="is not a field that can be set"):
            masks.copied(new, given, [path], FLAT, "vm.")


@pytest.mark.parametrize("path", ["", ".", "spec..cpus", "status", "status.facts.pools.name", "spec.colour", "id", "spec"])
def test_what_is_no_field_that_can_be_set_is_refused(path: str) -> None:
    given = Node(spec=NodeSpec(cordoned=True))
    with pytest.raises(Invalid) as caught:
        masks.copied(Node(), given, [path], DEEP, "node.")
    assert caught.value.field == "update_mask"


def test_what_cannot_be_changed_may_be_said_again() -> None:
    new, given = Node(), Node()
    new.status.facts.arch = given.status.facts.arch = "x86_64"
    masks.copied(new, given, ["status.facts.arch"], DEEP, "node.")
    given.status.facts.arch = "aarch64"
    with pytest.raises(Invalid, match=r"node\.status\.facts\.arch: cannot be changed"):
        masks.copied(new, given, ["status.facts.arch"], DEEP, "node.")


DESIGNED = (
    "i", "vol", "ss", "img", "rtr", "vxnet", "nic", "eip", "sg", "lb", "kp", "j", "ig", "node", "bm", "bak", "usr", "prj",
    "tok", "ak", "role", "pool", "vt",
)  # fmt: skip


@pytest.mark.parametrize("prefix", sorted({*DESIGNED, *(kind.id_prefix for kind in kinds.ALL if kind.id_prefix)}))
def test_no_name_is_what_an_id_may_be_one_day(prefix: str) -> None:
    with pytest.raises(Invalid, match="looks like an id"):
        validation.name("name", f"{prefix}-0a1b2c3d")
    assert validation.name("name", f"{prefix}-0a1b2c3") == f"{prefix}-0a1b2c3"


def test_every_prefix_the_code_makes_ids_with_is_reserved() -> None:
    """Also those of things that are no records."""
    import re

    root, found = Path(__file__).parent.parent.parent, set[str]()
    for folder in ("controller", "proto"):
        for path in (root / folder).rglob("*.py"):
            found |= set(re.findall(r"ids\.new\(\"([a-z]+)\"\)", path.read_text()))
    assert found - {"err"} <= kinds.ID_PREFIXES, "an id of an incident in the log is nothing users name"
