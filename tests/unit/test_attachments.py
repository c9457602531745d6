"""What is said of a volume is what a guest has open, whatever was asked for."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from cairn.controller.api import nouns
from cairn.controller.api.dependents import affected, held
from cairn.controller.api.feed import Feed
from cairn.controller.api.nouns import DEFAULT_PROJECT, DEFAULT_PROJECT_ID
from cairn.controller.api.vms import delete_vm
from cairn.controller.api.volumes import amend, attach, detach
from cairn.controller.model.permits import Caller
from cairn.controller.model.slots import free_slot, slots
from cairn.controller.nodespec import desired
from cairn.controller.presence import Presence
from cairn.controller.reconcilers.assignments import Assignments
from cairn.controller.reconcilers.openings import Openings
from cairn.controller.reconcilers.placement import Placements
from cairn.controller.reconcilers.ports import Ports
from cairn.controller.store.base import Conflict, Txn
from cairn.proto import kinds
from cairn.proto.v1.agent_pb2 import Desired, DesiredVm, Observed, Unknown, VmDisk, VmReport, VolumeReport, VolumeTrouble
from cairn.proto.v1.project_pb2 import Project
from cairn.proto.v1.vm_pb2 import POWER_STATE_STOPPED, DeleteVmRequest
from cairn.proto.v1.volume_pb2 import Volume, VolumeStatus

from tests.unit.cloud_kit import GIB, Cloud

DATA, ROOT, VM = "vol-0000data", "vol-00000web", "i-00000web"
S = VolumeStatus
CALLER = Caller("user", "admin")


class Site:
    """A VM that runs on n1, and a volume beside it."""

    def __init__(self) -> None:
        self.cloud = Cloud()
        self.node = self.cloud.node("n1")
        self.cloud.vm("web", image=self.cloud.image("demo"))
        self.cloud.volume("data", vm=VM)
        self.cloud.settle([Ports(), Placements()])
        for volume in (ROOT, DATA):
            self.cloud.report(self.node, f"volume/{volume}", state=VolumeReport.STATE_READY, size_bytes=GIB)
        self.detach()
        self.says(open=[ROOT])

    @property
    def generation(self) -> int:
        return int(self.cloud.edit(kinds.VM, VM).spec.volumes_generation)

    def says(self, *, open: list[str], generation: int | None = None, **more: Any) -> None:
        """What the node reports of the VM, in answer to that generation: the newest."""
        state = more.pop("state", VmReport.STATE_RUNNING)
        known = self.generation if generation is None else generation
        self.cloud.report(self.node, f"vm/{VM}", state=state, open_volumes=open, volumes_generation=known, **more)

    def attach(self) -> None:
        self._change(lambda view, txn, volume: attach(view, CALLER, txn, volume, VM))

    def detach(self) -> None:
        self._change(lambda view, txn, volume: detach(view, CALLER, txn, volume, self.cloud.edit(kinds.VM, VM)))

    def _change(self, change: Any) -> None:
        volume, txn = self.cloud.edit(kinds.VOLUME, DATA), Txn("api")
        change(self.cloud.view, txn, volume)
        self.cloud.commit(txn.put(kinds.VOLUME, DATA, volume))

    def shown(self) -> Any:
        volume = nouns.VOLUME.of(self.cloud.view, DATA)
        assert volume is not None
        settled = volume.status.state in (S.STATE_AVAILABLE, S.STATE_ATTACHED)
        assert volume.reconciling is not settled
        assert bool(volume.status.observed_revision) is settled
        return volume.status

    @property
    def state(self) -> Any:
        return self.shown().state


def test_attached_once_the_guest_has_it() -> None:
    site = Site()
    assert site.state == S.STATE_AVAILABLE
    site.attach()
    assert (site.state, site.shown().say) == (S.STATE_ATTACHING, "waits for n1 to attach it to VM web")
    site.says(open=[ROOT], volume_troubles=[VolumeTrouble(volume=DATA, error="no free PCI slot")])
    assert site.state == S.STATE_ATTACHING
    assert site.shown().say == "n1 could not attach it to VM web: no free PCI slot; trying again"
    # One that is off gets it with its definition, whatever its node said of it while it ran.
    site.says(open=[], state=VmReport.STATE_STOPPED, volume_troubles=[VolumeTrouble(volume=DATA, error="no free PCI slot")])
    assert site.state == S.STATE_ATTACHED
    site.says(open=[ROOT, DATA])
    assert (site.state, site.shown().say) == (S.STATE_ATTACHED, "attached to web on n1")


def test_free_once_the_guest_let_go_and_its_node_said_so() -> None:
    site = Site()
    site.attach()
    site.says(open=[ROOT, DATA])
    site.detach()
    assert (site.state, site.shown().vm_name) == (S.STATE_DETACHING, "")
    site.says(open=[ROOT, DATA], volume_troubles=[VolumeTrouble(volume=DATA, error="the guest has not let go of it")])
    assert site.shown().say == "the guest of VM web on n1 has it open still (the guest has not let go of it)"
    site.says(open=[ROOT])
    assert site.state == S.STATE_AVAILABLE


def test_a_node_that_never_said_anything_of_the_vm_may_have_it_open() -> None:
    """Its reports wait for the store, say: the guest was started with the volume, and nobody knows yet."""
    site = Site()
    site.attach()
    site.cloud.delete(kinds.OBSERVED, f"{site.node}/vm/{VM}")
    site.detach()
    assert (site.state, site.shown().say) == (S.STATE_DETACHING, "waits for n1 to say whether VM web has it")
    site.says(open=[ROOT])
    assert site.state == S.STATE_AVAILABLE


def test_a_node_that_was_not_told_of_the_vm_has_nothing_of_it() -> None:
    site = Site()
    site.attach()
    site.cloud.delete(kinds.OBSERVED, f"{site.node}/vm/{VM}")
    vm, port = site.cloud.edit(kinds.VM, VM), site.cloud.port("web", site.cloud.subnet("net", site.cloud.vpc("net")), vm=VM)
    vm.spec.nics.add(port=port)
    site.cloud.put(kinds.VM, VM, vm)
    site.detach()
    assert site.state == S.STATE_AVAILABLE


def test_a_node_that_is_silent_has_not_let_go() -> None:
    site = Site()
    site.attach()
    site.says(open=[ROOT, DATA])
    site.cloud.delete(kinds.NODE_SESSION, site.node)
    assert site.state == S.STATE_ATTACHED
    site.detach()
    assert site.state == S.STATE_DETACHING
    assert "n1 does not answer" in site.shown().say


def test_what_a_node_said_before_it_heard_of_the_change_proves_nothing() -> None:
    """Attached and detached again before the node answered: its guest may be opening it at this moment."""
    site = Site()
    before = site.generation
    site.attach()
    site.detach()
    site.says(open=[ROOT], generation=before)
    assert (site.state, site.shown().say) == (S.STATE_DETACHING, "waits for n1 to say that VM web let go of it")
    site.says(open=[ROOT], generation=before + 1)
    assert site.state == S.STATE_DETACHING
    site.says(open=[ROOT])
    assert site.state == S.STATE_AVAILABLE


def test_at_a_vm_that_is_off_it_is_attached_once_the_node_knows() -> None:
    site = Site()
    vm = site.cloud.edit(kinds.VM, VM)
    vm.spec.power_state = POWER_STATE_STOPPED
    site.cloud.put(kinds.VM, VM, vm)
    site.says(open=[], state=VmReport.STATE_STOPPED)
    site.attach()
    assert site.state == S.STATE_ATTACHING
    site.says(open=[], state=VmReport.STATE_STOPPED)
    assert site.state == S.STATE_ATTACHED
    site.detach()
    assert site.state == S.STATE_DETACHING
    site.says(open=[], state=VmReport.STATE_STOPPED)
    assert site.state == S.STATE_AVAILABLE


def test_attached_to_another_it_waits_for_the_first_to_let_go() -> None:
    site = Site()
    site.attach()
    site.says(open=[ROOT, DATA])
    site.detach()
    other = site.cloud.vm("db")
    volume = site.cloud.edit(kinds.VOLUME, DATA)
    volume.spec.vm = other
    site.cloud.put(kinds.VOLUME, DATA, volume)
    assert site.state == S.STATE_ATTACHING
    assert "VM web on n1 has it open still" in site.shown().say


def test_a_removed_vm_has_let_go() -> None:
    site = Site()
    site.attach()
    site.says(open=[ROOT, DATA])
    site.detach()
    site.cloud.delete_vm(VM)
    assert site.state == S.STATE_DETACHING
    site.cloud.report(site.node, f"vm/{VM}", state=VmReport.STATE_ABSENT)
    assert site.state == S.STATE_AVAILABLE


def test_what_a_node_said_of_an_earlier_life_proves_nothing() -> None:
    """Brought back, started with the volume, and detached from it before the node had said anything of this life."""
    site = Site()
    site.cloud.report(site.node, f"vm/{VM}", state=VmReport.STATE_ABSENT)
    vm = site.cloud.edit(kinds.VM, VM)
    vm.spec.power_generation += 1
    site.cloud.put(kinds.VM, VM, vm)
    site.attach()
    site.detach()
    assert (site.state, site.shown().say) == (S.STATE_DETACHING, "waits for n1 to say that VM web let go of it")
    site.says(open=[ROOT])
    assert site.state == S.STATE_AVAILABLE


@pytest.mark.parametrize("connected", [True, False])
def test_of_an_agent_that_lists_nothing_the_wish_to_attach_is_believed(connected: bool) -> None:
    site = Site()
    site.cloud.connect(site.node, knows=[])
    if not connected:
        site.cloud.delete(kinds.NODE_SESSION, site.node)
    site.says(open=[], generation=0)
    site.attach()
    assert site.state == S.STATE_ATTACHED


@pytest.mark.parametrize("connected", [True, False])
def test_an_agent_that_lists_nothing_lets_go_by_saying_that_the_guest_is_as_asked(connected: bool) -> None:
    """The volume was said to be free as soon as somebody wished it, while the guest had it open."""
    site = Site()
    site.cloud.connect(site.node, knows=[])
    site.attach()
    before = site.cloud.view.revision_of(kinds.VM, VM)
    site.says(open=[], generation=0, spec_revision=before)
    site.detach()
    if not connected:
        site.cloud.delete(kinds.NODE_SESSION, site.node)
    assert site.state == S.STATE_DETACHING
    assert site.shown().say.endswith("to say that VM web let go of it")
    site.says(open=[], generation=0, spec_revision=site.cloud.view.revision_of(kinds.VM, VM))
    assert site.state == S.STATE_AVAILABLE


def test_whether_a_disk_goes_with_its_vm_is_not_changed_while_that_is_deleted() -> None:
    """Its name was given back with the VM's deletion, which writes no volume that goes with it."""
    cloud, txn, volume = Site().cloud, Txn("api"), Volume()
    record = cloud.view.record(kinds.VOLUME, ROOT)
    assert record is not None
    volume.CopyFrom(record.message)
    volume.spec.delete_with_vm = not volume.spec.delete_with_vm
    amend(cloud.view, CALLER, txn, volume, record)
    cloud.delete_vm(VM)
    with pytest.raises(Conflict):
        cloud.commit(txn.check(kinds.VOLUME, ROOT, record.mod_revision).put(kinds.VOLUME, ROOT, volume))


def test_a_volume_without_room_to_grow_says_so() -> None:
    site = Site()
    volume = site.cloud.edit(kinds.VOLUME, DATA)
    volume.spec.size_bytes = 500 * GIB
    site.cloud.put(kinds.VOLUME, DATA, volume)
    site.cloud.settle([Placements()])
    shown = nouns.VOLUME.of(site.cloud.view, DATA)
    assert shown is not None
    assert (shown.status.say, shown.reconciling) == ("waits for room to grow to 500 GiB", True)
    assert shown.status.state == S.STATE_AVAILABLE, "it can be used as it is"


def test_watchers_are_told_when_a_guest_lets_go() -> None:
    site = Site()
    site.attach()
    site.detach()
    assert ("volume", DATA) in set(affected(site.cloud.view, kinds.OBSERVED, f"{site.node}/vm/{VM}"))
    site.attach()
    assert ("volume", DATA) in set(affected(site.cloud.view, kinds.OBSERVED, f"{site.node}/vm/{VM}"))


def test_watchers_are_told_of_guests_that_no_record_speaks_of() -> None:
    site, key = Site(), "vm/i-0000gone"
    id, guest = f"{site.node}/{key}", DesiredVm(id="i-0000gone", name="gone", disks=[VmDisk(volume=DATA)])
    before = site.state
    site.cloud.put(kinds.UNKNOWN, id, Unknown(key=key, node=site.node, running=True, desired=Desired(vm=guest)))
    assert site.state != before
    assert ("volume", DATA) in set(affected(site.cloud.view, kinds.UNKNOWN, id))
    told = site.cloud.edit(kinds.UNKNOWN, id)
    site.cloud.delete(kinds.UNKNOWN, id)
    assert site.state == before
    assert ("volume", DATA) in set(held(told)), "who tells knows how it looked"


def test_watchers_are_told_of_a_guest_that_let_go_of_a_volume_that_names_others() -> None:
    site, feed = Site(), Feed(0)
    key, id = kinds.OBSERVED.key("n/vm/i-0000more"), "n/vm/i-0000more"
    before = Observed(key="vm/i-0000more", node="n")
    before.report.vm.open_volumes.append(DATA)
    with feed.subscribe("volume", 0) as told:
        feed.push(site.cloud.view, 1, [(kinds.OBSERVED, id)], before={key: before})
        assert asyncio.run(told.take())[0] == {DATA: None}


def order(cloud: Cloud) -> list[str]:
    sent = desired(cloud.view, Presence(cloud.view), "node-000000n1", f"vm/{VM}")
    assert sent is not None
    return [disk.volume for disk in sent.vm.disks]


def test_disks_are_found_in_the_order_given_and_keep_it() -> None:
    """It was that of their random ids, and another after each detach and restart."""
    site = Site()
    cloud = site.cloud
    names = ["qd", "qa", "qc", "qb"]
    for name in names:
        cloud.volume(name)
    ids = [f"vol-{name:0>8}" for name in names]

    def change(id: str, *, on: bool) -> None:
        volume, txn = cloud.edit(kinds.VOLUME, id), Txn("api")
        if on:
            attach(cloud.view, CALLER, txn, volume, VM)
        else:
            detach(cloud.view, CALLER, txn, volume, cloud.edit(kinds.VM, VM))
        cloud.commit(txn.put(kinds.VOLUME, id, volume))
        cloud.settle([Placements()])

    for id in ids:
        change(id, on=True)
    assert order(cloud) == [ROOT, *ids]
    assert list(cloud.edit(kinds.VM, VM).spec.volumes) == ids
    change(ids[1], on=False)
    assert order(cloud) == [ROOT, ids[0], ids[2], ids[3]]
    assert slots(cloud.view, VM)[ids[3]] == 4, "its neighbour's going does not move it"
    assert free_slot(cloud.view, VM) == 2
    change(DATA, on=True)
    assert order(cloud) == [ROOT, ids[0], DATA, ids[2], ids[3]]
    assert list(cloud.edit(kinds.VM, VM).spec.volumes) == [ids[0], DATA, ids[2], ids[3]]


def test_volumes_attached_by_a_release_that_knew_no_slots_keep_the_order_of_the_list() -> None:
    site = Site()
    cloud = site.cloud
    vm = cloud.edit(kinds.VM, VM)
    for name in ("zz", "aa"):
        vm.spec.volumes.append(cloud.volume(name, vm=VM))
    cloud.put(kinds.VM, VM, vm)
    cloud.settle([Placements()])
    assert order(cloud) == [ROOT, "vol-000000zz", "vol-000000aa"]


class Tank:
    """Two nodes that reach a pool, a VM on each, and a volume in the pool that the first has."""

    def __init__(self) -> None:
        self.cloud = Cloud()
        self.nodes = [self.cloud.node(f"n{number}", shared={"tank": 100 * GIB}) for number in (1, 2)]
        self.vms = [self.cloud.vm(f"vm{number}", node=self.nodes[number - 1]) for number in (1, 2)]
        self.cloud.volume("data", type="net")
        self.settle()
        self.presence = Presence(self.cloud.view)
        self.known: dict[int, bool] = {}
        self.move(0, on=True)
        self.says(0, [DATA])

    def settle(self) -> None:
        self.cloud.settle([Placements(), Assignments(), Openings()])

    def move(self, vm: int, *, on: bool) -> None:
        view, volume, txn = self.cloud.view, self.cloud.edit(kinds.VOLUME, DATA), Txn("api")
        if on:
            attach(view, CALLER, txn, volume, self.vms[vm])
        else:
            detach(view, CALLER, txn, volume, self.cloud.edit(kinds.VM, self.vms[vm]))
        self.cloud.commit(txn.put(kinds.VOLUME, DATA, volume))
        self.settle()

    def says(self, vm: int, open: list[str]) -> None:
        """What a node reports in answer to the newest."""
        generation = self.cloud.edit(kinds.VM, self.vms[vm]).spec.volumes_generation
        self.cloud.report(
            self.nodes[vm],
            f"vm/{self.vms[vm]}",
            state=VmReport.STATE_RUNNING,
            open_volumes=[f"vol-00000vm{vm + 1}", *open],
            volumes_generation=generation,
        )
        self.settle()

    def told(self, vm: int) -> bool:
        """Whether its node is told that a VM has the volume; also who only follows what changed learns of it."""
        affected = self.presence.follow(self.cloud.view, self.cloud.take()).objects
        sent = desired(self.cloud.view, self.presence, self.nodes[vm], f"vm/{self.vms[vm]}")
        assert sent is not None
        now = DATA in [disk.volume for disk in sent.vm.disks]
        if now != self.known.get(vm, False):
            assert f"vm/{self.vms[vm]}" in affected.get(self.nodes[vm], set()), "or its stream would never say it"
            self.known[vm] = now
        return now


def test_a_shared_volume_is_given_to_a_second_node_once_the_first_let_go() -> None:
    """Two nodes would have written to it: each agent sees only its own guests."""
    tank = Tank()
    assert (tank.told(0), tank.told(1)) == (True, False)
    tank.move(0, on=False)
    tank.move(1, on=True)
    assert (tank.told(0), tank.told(1)) == (False, False)
    tank.says(0, [DATA])
    assert not tank.told(1), "it has heard of it, and its guest clings"
    tank.says(0, [])
    assert tank.told(1)


def test_a_node_that_has_not_answered_has_not_let_go_of_a_shared_volume() -> None:
    tank = Tank()
    tank.says(0, [])
    tank.move(0, on=False)
    tank.move(1, on=True)
    assert not tank.told(1), "it may be opening it at this moment"
    tank.cloud.delete(kinds.NODE_SESSION, tank.nodes[0])
    assert not tank.told(1)
    tank.cloud.connect(tank.nodes[0])
    tank.says(0, [])
    assert tank.told(1)


@pytest.mark.parametrize("deleted", [False, True])
def test_who_got_it_in_between_is_not_waited_for_instead(deleted: bool) -> None:
    """Two nodes would have written to it: who was never told of it has nothing to let go of."""
    tank = Tank()
    tank.move(0, on=False)
    tank.move(1, on=True)
    if deleted:
        tank.cloud.put(kinds.PROJECT, DEFAULT_PROJECT_ID, Project(id=DEFAULT_PROJECT_ID, name=DEFAULT_PROJECT))
        core: Any = SimpleNamespace(clock=SimpleNamespace(now=lambda: tank.cloud.now))
        decided = delete_vm(tank.cloud.view, CALLER, core, DeleteVmRequest(id=tank.vms[1]))
        tank.cloud.commit(decided.txn)
        tank.cloud.undelete_vm(tank.vms[1])
        tank.settle()
    else:
        tank.move(1, on=False)
    assert tank.cloud.edit(kinds.VOLUME, DATA).spec.former_vm == tank.vms[0]
    tank.says(1, [])
    tank.move(1, on=True)
    assert not tank.told(1)
    tank.says(0, [])
    assert tank.told(1)


def test_who_has_it_open_is_waited_for_whatever_the_one_before_says_by_now() -> None:
    """A volume was said to be free that a guest had open: the node it was taken from before had an older agent by then."""
    tank = Tank()
    tank.move(0, on=False)
    tank.says(0, [])
    tank.move(1, on=True)
    assert tank.told(1)
    tank.says(1, [DATA])
    tank.cloud.report(tank.nodes[0], f"vm/{tank.vms[0]}", state=VmReport.STATE_RUNNING)
    tank.move(1, on=False)
    assert tank.cloud.edit(kinds.VOLUME, DATA).spec.former_vm == tank.vms[1]


@pytest.mark.parametrize("started", [False, True])
def test_a_guest_whose_volume_names_it_no_more_is_waited_for_and_heard(started: bool) -> None:
    """It was handed on twice before the first had let go: who was to have it waited for ever, as only two are named."""
    tank = Tank()
    tank.move(0, on=False)
    tank.move(1, on=True)
    volume = tank.cloud.edit(kinds.VOLUME, DATA)
    volume.spec.former_vm = ""
    tank.cloud.put(kinds.VOLUME, DATA, volume)
    if started:
        tank.presence = Presence(tank.cloud.view)
    assert not tank.told(1)
    tank.says(0, [])
    assert tank.told(1)


def test_an_older_agent_gives_a_shared_volume_free_by_saying_that_the_guest_is_as_asked() -> None:
    tank = Tank()
    tank.cloud.connect(tank.nodes[0], knows=[])
    tank.move(0, on=False)
    tank.move(1, on=True)
    said: dict[str, Any] = {"state": VmReport.STATE_RUNNING, "spec_revision": 1}
    tank.cloud.report(tank.nodes[0], f"vm/{tank.vms[0]}", **said)
    tank.settle()
    assert not tank.told(1)
    said["spec_revision"] = tank.cloud.view.revision_of(kinds.VM, tank.vms[0])
    tank.cloud.report(tank.nodes[0], f"vm/{tank.vms[0]}", **said)
    tank.settle()
    assert tank.told(1)
