"""The claim to open a shared volume: one guest at a time, given up by its node's word or when the pool has shut it out."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from cairn.controller.api import nouns
from cairn.controller.api.volumes import attach, detach
from cairn.controller.model.attachments import attachment
from cairn.controller.model.opened import opened_by
from cairn.controller.model.openings import holders
from cairn.controller.model.permits import Caller
from cairn.controller.nodespec import node_objects
from cairn.controller.presence import Presence
from cairn.controller.reconcilers.assignments import MARGIN_S, Assignments
from cairn.controller.reconcilers.openings import Openings
from cairn.controller.reconcilers.placement import Placements
from cairn.controller.runtime import check_writers
from cairn.controller.store.base import Conflict, Txn
from cairn.proto import kinds
from cairn.proto.capabilities import SHUT_OUT, of_agent
from cairn.proto.v1.agent_pb2 import DesiredVolume, NodeHeard, VmDisk, VmReport, VolumeReport
from cairn.proto.v1.cluster_pb2 import Cluster
from cairn.proto.v1.vm_pb2 import POWER_STATE_RUNNING, POWER_STATE_STOPPED
from cairn.proto.v1.volume_pb2 import Opening, VolumeStatus

from tests.unit.cloud_kit import GIB, Cloud

CALLER = Caller("user", "admin")
DATA = "vol-0000data"
RUNNING = VmReport.STATE_RUNNING


class Tank:
    """Three nodes that reach a pool, a VM on each of the first two, and a volume there that the first VM has open."""

    def __init__(self, **knows: Any) -> None:
        self.cloud = Cloud()
        self.nodes = [self.cloud.node(f"n{number}", shared={"tank": 100 * GIB}) for number in (1, 2, 3)]
        for node in self.nodes if knows else ():
            self.cloud.connect(node, **knows)
        self.vms = [self.cloud.vm(f"vm{number}", node=self.nodes[number - 1]) for number in (1, 2)]
        self.cloud.volume("data", type="net")
        self.settle()
        self.move(0)
        self.says(0, [DATA])

    def settle(self) -> None:
        self.cloud.settle([Placements(), Assignments(), Openings()])

    def move(self, vm: int | None) -> None:
        view, volume, txn = self.cloud.view, self.cloud.edit(kinds.VOLUME, DATA), Txn("api")
        if volume.spec.vm:
            detach(view, CALLER, txn, volume, self.cloud.edit(kinds.VM, volume.spec.vm))
            self.cloud.commit(txn.put(kinds.VOLUME, DATA, volume))
            volume, txn = self.cloud.edit(kinds.VOLUME, DATA), Txn("api")
        if vm is not None:
            attach(view, CALLER, txn, volume, self.vms[vm])
            self.cloud.commit(txn.put(kinds.VOLUME, DATA, volume))
        self.settle()

    def says(self, vm: int, open: list[str]) -> None:
        generation = self.cloud.edit(kinds.VM, self.vms[vm]).spec.volumes_generation
        said = {"state": RUNNING, "open_volumes": open, "volumes_generation": generation}
        self.cloud.report(self.nodes[vm], f"vm/{self.vms[vm]}", **said)
        self.settle()

    def lose(self, node: str, seconds: float = MARGIN_S + 1) -> None:
        self.cloud.delete(kinds.NODE_SESSION, node)
        self.settle()
        self.cloud.now += timedelta(seconds=seconds)
        self.settle()

    @property
    def claim(self) -> Opening:
        found = self.cloud.view.get(kinds.OPENING, DATA)
        assert found is not None
        return found

    @property
    def has(self) -> tuple[str, str]:
        return self.claim.vm, self.claim.node

    def seat(self, vm: int) -> tuple[str, str]:
        return self.vms[vm], self.nodes[vm]

    def disk(self, vm: int) -> VmDisk | None:
        told = node_objects(self.cloud.view, Presence(self.cloud.view), self.nodes[vm])[f"vm/{self.vms[vm]}"]
        return next((disk for disk in told.vm.disks if disk.volume == DATA), None)

    def administrator(self) -> tuple[str, DesiredVolume]:
        work = self.cloud.view.get(kinds.ASSIGNMENT, f"volume/{DATA}")
        assert work is not None
        return work.node, node_objects(self.cloud.view, Presence(self.cloud.view), work.node)[f"volume/{DATA}"].volume

    def say(self) -> str:
        return attachment(self.cloud.view, self.cloud.edit(kinds.VOLUME, DATA)).say

    def shown(self) -> VolumeStatus:
        volume = nouns.VOLUME.of(self.cloud.view, DATA)
        assert volume is not None
        return volume.status


def test_a_guest_is_told_of_a_disk_by_its_claim_alone() -> None:
    tank = Tank()
    assert (tank.has, tank.claim.generation, tank.claim.asks) == (tank.seat(0), 1, True)
    disk = tank.disk(0)
    assert disk is not None
    assert disk.open_generation == 1
    tank.move(1)
    assert (tank.has, tank.disk(1)) == (tank.seat(0), None)
    assert tank.say() == "the guest of VM vm1 on n1 has it open still"
    tank.says(0, [])
    assert (tank.has, tank.claim.generation) == (tank.seat(1), 2)
    assert tank.disk(0) is None
    disk = tank.disk(1)
    assert disk is not None
    assert disk.open_generation == 2


def test_one_that_is_taken_off_and_given_back_keeps_its_claim_until_it_let_go() -> None:
    tank = Tank()
    tank.move(None)
    tank.move(0)
    assert (tank.has, tank.claim.generation) == (tank.seat(0), 1)
    tank.move(None)
    tank.says(0, [])
    assert (tank.has, tank.claim.generation) == (("", ""), 1)
    tank.move(0)
    assert (tank.has, tank.claim.generation) == (tank.seat(0), 2), "the pool refuses whoever comes late by the one before"


def test_a_guest_of_a_lost_node_is_shut_out_before_another_gets_the_volume() -> None:
    tank = Tank()
    tank.lose(tank.nodes[0], MARGIN_S / 2)
    tank.move(1)
    assert not tank.claim.shutting_out
    tank.cloud.now += timedelta(seconds=MARGIN_S)
    tank.settle()
    assert (tank.has, tank.claim.shutting_out, tank.disk(1)) == (tank.seat(0), True, None)
    assert tank.say() == "the guest of VM vm1 on n1, which does not answer, is being shut out of it"
    node, told = tank.administrator()
    assert (node in tank.nodes[1:], told.shut_out) == (True, 1)
    made = {"state": VolumeReport.STATE_READY, "size_bytes": GIB}
    tank.cloud.report(node, f"volume/{DATA}", **made)
    tank.settle()
    assert tank.has == tank.seat(0), "it has not said so"
    tank.cloud.report(node, f"volume/{DATA}", shut_out=1, **made)
    tank.settle()
    assert (tank.has, tank.claim.generation, tank.claim.shutting_out) == (tank.seat(1), 2, False)
    assert [(each.vm, each.node, each.generation) for each in tank.claim.outcasts] == [(*tank.seat(0), 1)]
    assert tank.administrator()[1].shut_out == 0
    assert (holders(tank.cloud.view, DATA), tank.disk(1) is not None) == ([], True), "its last word counts no more"


def shut_out() -> Tank:
    tank = Tank()
    tank.move(None)
    tank.lose(tank.nodes[0])
    tank.cloud.report(tank.administrator()[0], f"volume/{DATA}", state=VolumeReport.STATE_READY, shut_out=1)
    tank.settle()
    assert tank.has == ("", "")
    return tank


def test_who_was_shut_out_gets_it_back_once_it_has_let_go() -> None:
    """Its process has it still, and can do nothing with it: what it would be told of as a disk it has would stay dead."""
    tank = shut_out()
    tank.cloud.connect(tank.nodes[0])
    tank.move(0)
    assert (tank.has, tank.disk(0)) == (("", ""), None)
    assert tank.shown().state == VolumeStatus.STATE_ATTACHING
    tank.says(0, [DATA])
    assert (tank.has, tank.disk(0)) == (("", ""), None)
    tank.says(0, [])
    assert (tank.has, tank.claim.generation, list(tank.claim.outcasts)) == (tank.seat(0), 2, [])


def test_a_vm_that_may_be_brought_back_keeps_its_disk_and_one_that_was_comes_back_with_it() -> None:
    cloud = Cloud()
    first, _ = (cloud.node(f"n{number}", shared={"tank": 100 * GIB}) for number in (1, 2))
    vm, root, all = cloud.vm("web", type="net", node=first), "vol-00000web", [Placements(), Assignments(), Openings()]
    cloud.settle(all)
    cloud.report(first, f"vm/{vm}", state=RUNNING, open_volumes=[root])
    cloud.delete_vm(vm)
    cloud.delete(kinds.NODE_SESSION, first)
    cloud.settle(all)
    cloud.now += timedelta(seconds=MARGIN_S + 1)
    cloud.settle(all)
    claim = cloud.view.get(kinds.OPENING, root)
    assert claim is not None
    assert (claim.node, claim.shutting_out) == (first, False)
    cloud.undelete_vm(vm)
    # However it came about: it runs, and its disk is dead.
    claim = cloud.edit(kinds.OPENING, root)
    claim.outcasts.add(vm=vm, node=first, generation=claim.generation)
    claim.vm = claim.node = ""
    cloud.put(kinds.OPENING, root, claim)
    cloud.connect(first)
    cloud.settle(all)
    told = node_objects(cloud.view, Presence(cloud.view), first)[f"vm/{vm}"].vm
    assert (told.power_state, told.force, list(told.disks)) == (POWER_STATE_STOPPED, True, [])
    generation = cloud.edit(kinds.VM, vm).spec.volumes_generation
    cloud.report(first, f"vm/{vm}", state=VmReport.STATE_STOPPED, volumes_generation=generation)
    cloud.settle(all)
    told = node_objects(cloud.view, Presence(cloud.view), first)[f"vm/{vm}"].vm
    assert (told.power_state, [disk.volume for disk in told.disks]) == (POWER_STATE_RUNNING, [root])


def test_what_was_shut_out_may_be_erased() -> None:
    tank = Tank()
    tank.move(None)
    assert opened_by(tank.cloud.view, DATA) == tank.vms[0]
    tank = shut_out()
    assert opened_by(tank.cloud.view, DATA) == ""


@pytest.mark.parametrize("knows", [[], sorted(set(of_agent(["local", "net"])) - {SHUT_OUT})])
def test_of_an_older_agent_nobody_is_shut_out_who_might_come_late(knows: list[str]) -> None:
    tank = Tank()
    tank.cloud.connect(tank.nodes[0], knows=knows)
    tank.settle()
    assert not tank.claim.asks
    tank.move(1)
    tank.lose(tank.nodes[0], 3600)
    assert (tank.has, tank.claim.shutting_out) == (tank.seat(0), False)


def test_a_node_that_comes_back_says_itself_that_its_guest_let_go() -> None:
    tank = Tank()
    tank.lose(tank.nodes[0], MARGIN_S / 2)
    tank.move(1)
    tank.cloud.connect(tank.nodes[0])
    tank.says(0, [DATA])
    tank.cloud.now += timedelta(hours=1)
    tank.settle()
    assert (tank.has, tank.claim.shutting_out) == (tank.seat(0), False)
    tank.says(0, [])
    assert (tank.has, list(tank.claim.outcasts)) == (tank.seat(1), [])


def test_a_claim_of_a_backup_gets_a_generation_above_all_of_before() -> None:
    tank = Tank()
    cluster = Cluster(name="c", epoch=5)
    cluster.restored.revision = tank.cloud.view.revision
    tank.cloud.put(kinds.CLUSTER, "self", cluster)
    tank.settle()
    assert tank.claim.generation == 1, "nodes have not said yet what they hold"
    for node in tank.nodes:
        tank.cloud.put(kinds.NODE_HEARD, node, NodeHeard(node=node, epoch=5))
    tank.settle()
    assert (tank.has, tank.claim.generation) == (tank.seat(0), 5 << 24)


def test_what_it_was_decided_on_must_still_be_so() -> None:
    tank = Tank()
    tank.move(None)
    vm = tank.cloud.edit(kinds.VM, tank.vms[0])
    tank.cloud.report(tank.nodes[0], f"vm/{vm.id}", state=RUNNING, volumes_generation=vm.spec.volumes_generation)
    outcome = Openings().reconcile(tank.cloud.view, DATA, tank.cloud.now)
    assert outcome.txn is not None
    check_writers(Openings(), outcome.txn)
    tank.cloud.report(tank.nodes[0], f"vm/{vm.id}", state=RUNNING, open_volumes=[DATA])
    with pytest.raises(Conflict):
        tank.cloud.commit(outcome.txn)
