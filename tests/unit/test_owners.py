"""Whose a port is: said by records of this release and of the one before, of VMs and of what is to come."""

from __future__ import annotations

from typing import Any

import pytest
from cairn.controller.api import nouns
from cairn.controller.model.damage import findings
from cairn.controller.model.owners import owner, ports_of, vm_of
from cairn.controller.model.seats import seat_of
from cairn.controller.reconcilers.garbage import Garbage
from cairn.controller.reconcilers.ports import Ports
from cairn.proto import kinds
from cairn.proto.owners import owner_of, set_owner
from cairn.proto.v1.port_pb2 import Port

from tests.unit.cloud_kit import Cloud, absent_everywhere


def older(port: Port) -> Port:
    """The record as the release before this one writes it."""
    port.spec.ClearField("owner")
    return port


@pytest.fixture
def cloud() -> Cloud:
    made = Cloud()
    made.node("a")
    made.vm("web", subnet=made.subnet("blue", made.vpc("home")), node="node-0000000a")
    made.settle([Ports()])
    return made


PORT, VM = "nic-00000web", "i-00000web"


def rewritten(cloud: Cloud, **owner: str) -> None:
    port = cloud.edit(kinds.PORT, PORT)
    if owner:
        set_owner(port, owner["kind"], owner["id"])
    cloud.put(kinds.PORT, PORT, port if owner else older(port))


@pytest.mark.parametrize("old", [False, True])
def test_a_vms_cards_are_the_ports_it_owns(cloud: Cloud, old: bool) -> None:
    if old:
        rewritten(cloud)
    port: Any = cloud.view.get(kinds.PORT, PORT)
    assert port.spec.HasField("owner") != old
    assert (vm_of(port), owner_of(port).kind, owner_of(port).id) == (VM, "vm", VM)
    assert ports_of(cloud.view, kinds.VM, VM) == [PORT]
    shown = nouns.PORT.project(cloud.view, cloud.view.record(kinds.PORT, PORT))
    assert (shown.spec.owner.id, shown.status.owner_name, shown.status.vm_name) == (VM, "web", "web")
    assert not [each for each in findings(cloud.view) if each is not None and each.check == "reference"]


def test_an_older_release_reads_whose_a_card_is(cloud: Cloud) -> None:
    port: Any = cloud.view.get(kinds.PORT, PORT)
    assert port.spec.vm == VM


def test_a_port_of_another_kind_is_no_vms(cloud: Cloud) -> None:
    rewritten(cloud, kind="lb", id="lb-00000001")
    port: Any = cloud.view.get(kinds.PORT, PORT)
    assert (vm_of(port), port.spec.vm) == ("", "")
    assert ports_of(cloud.view, kinds.VM, VM) == []
    assert seat_of(cloud.view, PORT) is None
    whose = owner(cloud.view, port)
    assert whose is not None
    assert (whose.kind, whose.id, whose.name, whose.title) == (None, "lb-00000001", "", "lb")
    shown = nouns.PORT.project(cloud.view, cloud.view.record(kinds.PORT, PORT))
    assert (shown.status.owner_name, shown.status.vm_name) == ("", "")


def test_a_reserved_port_is_nobodys(cloud: Cloud) -> None:
    port: Any = cloud.view.get(kinds.PORT, cloud.port("spare", "vxnet-0000blue"))
    assert (owner(cloud.view, port), vm_of(port), owner_of(port).id) == (None, "", "")


@pytest.mark.parametrize("old", [False, True])
def test_a_port_goes_with_its_owner_alone(cloud: Cloud, old: bool) -> None:
    cloud.port("spare", "vxnet-0000blue")
    if old:
        rewritten(cloud)
    cloud.delete_vm(VM, purge=True)
    absent_everywhere(cloud, [VM])
    cloud.settle([Garbage(), Ports()])
    assert cloud.view.get(kinds.VM, VM) is None
    assert list(cloud.view.ids(kinds.PORT)) == ["nic-000spare"]


def test_fsck_finds_an_owner_that_is_not_there(cloud: Cloud) -> None:
    cloud.delete(kinds.VM, VM)
    assert f"port/{PORT}" in {each.object for each in findings(cloud.view) if each is not None and each.check == "reference"}
