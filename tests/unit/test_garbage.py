"""Garbage: nothing vanishes before its time, nor before the nodes have let go; then all of it does."""

from __future__ import annotations

from datetime import timedelta

import pytest
from cairn.controller.acts import RECORD_BYTES_MAX
from cairn.controller.api.chain import LINK_BYTES
from cairn.controller.api.mutation import Mutations
from cairn.controller.gathered import Group
from cairn.controller.jobs.import_image import start
from cairn.controller.reconcilers.garbage import Garbage
from cairn.controller.reconcilers.placement import Placements
from cairn.controller.reconcilers.ports import Ports
from cairn.controller.runtime import check_writers
from cairn.controller.store.base import OPERATIONS_MAX, Conflict
from cairn.controller.store.cache import Cache
from cairn.controller.store.memory import MemoryStore
from cairn.proto import kinds
from cairn.proto.seams import SystemClock, SystemIds, timestamp
from cairn.proto.v1.agent_pb2 import VmReport, VolumeReport
from cairn.proto.v1.cluster_pb2 import NameClaim
from cairn.proto.v1.image_pb2 import ImageContent
from cairn.proto.v1.job_pb2 import JobStatus
from cairn.proto.v1.node_pb2 import JoinToken
from cairn.proto.v1.volume_pb2 import Volume, VolumeSpec
from cairn.proto.v1.vpc_pb2 import VniClaim
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tests.unit.cloud_kit import Cloud, absent_everywhere

ALL = (Ports(), Placements(), Garbage())


def cloud_with_vm() -> tuple[Cloud, str]:
    cloud = Cloud()
    cloud.node("n1")
    vm = cloud.vm("web", subnet=cloud.subnet("blue", cloud.vpc("v")))
    cloud.settle(ALL)
    return cloud, vm


def left(cloud: Cloud) -> list[str]:
    """Every record about VMs there still is."""
    about = (
        kinds.VM, kinds.VOLUME, kinds.PORT, kinds.PORT_BINDING, kinds.ADDRESS, kinds.PLACEMENT, kinds.VOLUME_PLACEMENT,
        kinds.PURGE, kinds.OBSERVED,
    )  # fmt: skip
    return sorted(f"{kind.name}/{id}" for kind in about for id in cloud.view.ids(kind))


def test_waits_for_the_end_of_retention() -> None:
    cloud, vm = cloud_with_vm()
    cloud.delete_vm(vm)
    absent_everywhere(cloud, [vm])
    outcome = cloud.decide(Garbage(), f"vm/{vm}")
    assert outcome.txn is None
    assert outcome.again_after_s == 7200
    cloud.now += timedelta(hours=2)
    cloud.settle(ALL)
    assert left(cloud) == []


def test_what_is_purged_goes_though_the_clock_is_behind() -> None:
    cloud, vm = cloud_with_vm()
    cloud.now += timedelta(minutes=10)
    cloud.delete_vm(vm, purge=True)
    cloud.now -= timedelta(minutes=10)
    cloud.settle(ALL)
    assert cloud.view.get(kinds.PURGE, vm) is not None


def test_waits_for_every_node_to_say_absent() -> None:
    cloud, vm = cloud_with_vm()
    cloud.delete_vm(vm, purge=True)
    cloud.settle(ALL)
    assert cloud.view.get(kinds.PURGE, vm) is not None
    assert cloud.view.get(kinds.VM, vm) is not None
    node = "node-000000n1"
    cloud.report(node, f"vm/{vm}", state=VmReport.STATE_ABSENT)
    cloud.settle(ALL)
    assert cloud.view.get(kinds.VM, vm) is not None, "its disk has not been erased yet"
    cloud.report(node, "volume/vol-00000web", state=VolumeReport.STATE_ABSENT)
    cloud.settle(ALL)
    assert left(cloud) == []
    assert cloud.claims(node) == (0, 0, 0, 0)


def test_what_a_node_said_of_an_earlier_life_erases_nothing() -> None:
    cloud, vm = cloud_with_vm()
    node = "node-000000n1"
    cloud.delete_vm(vm)
    cloud.report(node, f"vm/{vm}", state=VmReport.STATE_ABSENT)
    cloud.undelete_vm(vm)
    cloud.delete_vm(vm, purge=True)
    cloud.settle(ALL)
    cloud.report(node, "volume/vol-00000web", state=VolumeReport.STATE_ABSENT)
    cloud.settle(ALL)
    assert cloud.view.get(kinds.VM, vm) is not None, "its guest may run: the node has not said anything of it since"
    cloud.report(node, f"vm/{vm}", state=VmReport.STATE_ABSENT)
    cloud.settle(ALL)
    assert left(cloud) == []


def test_what_a_node_reported_goes_when_it_has_left() -> None:
    cloud, vm = cloud_with_vm()
    other = cloud.node("n2")
    for number in range(OPERATIONS_MAX):
        cloud.report("node-000000n1", f"image/img-{number:08d}")
    cloud.report(other, "image/img-00000000")
    cloud.settle(ALL)
    assert cloud.view.count(kinds.OBSERVED) == OPERATIONS_MAX + 1
    cloud.delete_vm(vm, purge=True)
    absent_everywhere(cloud, [vm])
    cloud.settle(ALL)
    garbage = Garbage()
    assert garbage.reconcile(cloud.view, "node/node-000000n1", cloud.now).txn is None, "it is there"
    cloud.take()
    cloud.delete(kinds.NODE, "node-000000n1")
    ((kind, id),) = cloud.take()
    assert list(garbage.keys(cloud.view, kind, id)) == ["node/node-000000n1"]
    outcome = cloud.decide(garbage, "node/node-000000n1")
    assert outcome.txn is not None
    assert outcome.txn.size <= OPERATIONS_MAX
    check_writers(garbage, outcome.txn)
    woken = {key for changed in cloud.take() for key in garbage.keys(cloud.view, *changed)}
    assert woken == {"node/node-000000n1"}, "what is left of it is looked at again"
    cloud.settle(ALL)
    assert [id.partition("/")[0] for id in cloud.view.ids(kinds.OBSERVED)] == [other]
    assert list(cloud.view.ids(kinds.NODE_FACTS)) == [other]


def test_never_placed_needs_no_node() -> None:
    cloud = Cloud()
    vm = cloud.vm("web")
    cloud.settle(ALL)
    cloud.delete_vm(vm, purge=True)
    cloud.settle(ALL)
    assert left(cloud) == []


def test_a_placement_made_at_that_moment_wins() -> None:
    cloud = Cloud()
    vm = cloud.vm("web")
    late = cloud.vm("late")
    cloud.delete_vm(vm, purge=True)
    garbage = Garbage()
    cloud.decide(garbage, f"vm/{vm}")
    erase = garbage.reconcile(cloud.view, f"vm/{vm}", cloud.now)
    assert erase.txn is not None
    assert [event.reason for event in erase.events] == ["Erased"]
    check_writers(garbage, erase.txn)
    assert erase.txn.size <= OPERATIONS_MAX
    cloud.node("n1")
    cloud.decide(Placements(), late)
    placement = cloud.edit(kinds.PLACEMENT, late)
    placement.vm = vm
    cloud.put(kinds.PLACEMENT, vm, placement)
    with pytest.raises(Conflict):
        cloud.commit(erase.txn)


def test_brought_back_before_the_end() -> None:
    cloud, vm = cloud_with_vm()
    cloud.delete_vm(vm)
    cloud.settle(ALL)
    cloud.undelete_vm(vm)
    cloud.now += timedelta(hours=3)
    cloud.settle(ALL)
    assert cloud.view.get(kinds.VM, vm) is not None
    assert cloud.view.count(kinds.PURGE) == 0


def test_data_volumes_are_erased_by_themselves() -> None:
    cloud, vm = cloud_with_vm()
    data = cloud.volume("data", vm=vm)
    cloud.settle(ALL)
    volume = cloud.edit(kinds.VOLUME, data)
    volume.spec.vm = ""
    volume.delete_time.CopyFrom(timestamp(cloud.now))
    volume.purge_time.CopyFrom(timestamp(cloud.now))
    cloud.put(kinds.VOLUME, data, volume)
    cloud.settle(ALL)
    assert cloud.view.get(kinds.VOLUME, data) is not None
    cloud.report("node-000000n1", f"volume/{data}", state=VolumeReport.STATE_ABSENT)
    cloud.settle(ALL)
    assert cloud.view.get(kinds.VOLUME, data) is None
    assert cloud.view.get(kinds.VOLUME_PLACEMENT, data) is None
    assert cloud.view.get(kinds.VM, vm) is not None


def test_what_nobody_refers_to_goes() -> None:
    cloud, _ = cloud_with_vm()
    cloud.put(kinds.VNI, "00004096", VniClaim(vni=4096, holder="rtr-gone0000"))
    cloud.put(kinds.VNI, "00004097", VniClaim(vni=4097, holder="rtr-0000000v"))
    cloud.put(kinds.NAME, "p/vm/old", NameClaim(kind="vm", project="p", name="old", id="i-gone0000"))
    cloud.put(kinds.NAME, "p/vm/web", NameClaim(kind="vm", project="p", name="web", id="i-00000web"))
    cloud.put(kinds.IMAGE_CONTENT, "img-gone0000", ImageContent(image="img-gone0000"))
    cloud.put(kinds.JOIN_TOKEN, "jt-00000000", JoinToken(id="jt-00000000", expire_time=timestamp(cloud.now)))
    image = cloud.image("demo")
    record = cloud.view.get(kinds.IMAGE, image)
    assert record is not None
    cloud.commit(start(record, "j-00000000", cloud.now))
    cloud.settle(ALL)
    assert list(cloud.view.ids(kinds.VNI)) == ["00004097"]
    assert list(cloud.view.ids(kinds.NAME)) == ["p/vm/web"]
    assert not list(cloud.view.ids(kinds.IMAGE_CONTENT))
    cloud.now += timedelta(days=2)
    cloud.settle(ALL)
    assert not list(cloud.view.ids(kinds.JOIN_TOKEN))
    assert list(cloud.view.ids(kinds.JOB)) == ["j-00000000"], "an unfinished job stays"
    ended = JobStatus(done=True, end_time=timestamp(cloud.now - timedelta(days=2)))
    cloud.put(kinds.JOB_STATE, "j-00000000", ended)
    cloud.put(kinds.JOB_STATE, "j-gone0000", JobStatus(state="upload"))
    old = cloud.edit(kinds.JOB, "j-00000000")
    old.id = old.name = "j-old00000"
    old.status.CopyFrom(ended)
    cloud.put(kinds.JOB, old.id, old)
    cloud.settle(ALL)
    assert not list(cloud.view.ids(kinds.JOB)), "also as an older release stored it"
    assert not list(cloud.view.ids(kinds.JOB_STATE)), "with its job, and without one"


class Erasing(RuleBasedStateMachine):
    """The world holds guests and disks; records may go only when it holds neither."""

    def __init__(self) -> None:
        super().__init__()
        self.cloud = Cloud()
        self.cloud.node("n1")
        self.subnet = self.cloud.subnet("blue", self.cloud.vpc("v"))
        self.made = 0
        # What exists in the world: VM and volume ids.
        self.world: set[str] = set()

    def pick(self, number: int) -> str:
        vms = sorted(self.cloud.view.ids(kinds.VM))
        return vms[number % len(vms)]

    @rule()
    def create(self) -> None:
        self.made += 1
        self.cloud.vm(f"v{self.made}", subnet=self.subnet)

    @rule(which=st.integers(0, 2))
    def reconcile(self, which: int) -> None:
        self.cloud.settle([ALL[which]])

    @precondition(lambda self: self.cloud.view.count(kinds.VM) > 0)
    @rule(number=st.integers(0), what=st.sampled_from(["delete", "purge", "undelete"]))
    def change(self, number: int, what: str) -> None:
        id = self.pick(number)
        if what == "undelete":
            if self.cloud.view.get(kinds.PURGE, id) is None:
                self.cloud.undelete_vm(id)
        else:
            self.cloud.delete_vm(id, purge=what == "purge")

    @rule(minutes=st.integers(1, 90))
    def wait(self, minutes: int) -> None:
        self.cloud.now += timedelta(minutes=minutes)

    @precondition(lambda self: self.cloud.view.count(kinds.PLACEMENT) > 0)
    @rule(number=st.integers(0))
    def node_acts(self, number: int) -> None:
        """The node makes, or removes, what one VM is."""
        view = self.cloud.view
        id = self.pick(number) if view.count(kinds.VM) else ""
        vm, placement = view.get(kinds.VM, id), view.get(kinds.PLACEMENT, id)
        if vm is None or placement is None or not placement.node:
            return
        gone = vm.HasField("delete_time")
        (self.world.discard if gone else self.world.add)(id)
        self.cloud.report(placement.node, f"vm/{id}", state=VmReport.STATE_ABSENT if gone else VmReport.STATE_RUNNING)
        erased = view.get(kinds.PURGE, id) is not None
        for volume in view.by(kinds.VOLUME, "vm", id):
            (self.world.discard if erased else self.world.add)(volume)
            state = VolumeReport.STATE_ABSENT if erased else VolumeReport.STATE_READY
            self.cloud.report(placement.node, f"volume/{volume}", state=state)

    @invariant()
    def what_exists_has_a_record(self) -> None:
        for id in self.world:
            kind = kinds.VM if id.startswith("i-") else kinds.VOLUME
            assert self.cloud.view.get(kind, id) is not None, f"{id} is in the world and forgotten"

    def teardown(self) -> None:
        for id in list(self.cloud.view.ids(kinds.VM)):
            self.cloud.delete_vm(id, purge=True)
        self.cloud.now += timedelta(hours=3)
        self.cloud.settle(ALL)
        absent_everywhere(self.cloud, list(self.cloud.view.ids(kinds.VM)))
        self.cloud.settle(ALL)
        assert left(self.cloud) == []


TestErasing = Erasing.TestCase
TestErasing.settings = settings(max_examples=20, stateful_step_count=40, deadline=None)


def test_what_takes_several_commits_has_room_for_its_records_in_each() -> None:
    cloud, garbage = Cloud(), Garbage()
    vm = cloud.vm("web")
    disks = [f"vol-{number:08d}" for number in range(60)]
    for id in disks:
        # Of the largest records that there may be.
        labels = {f"label-{number}": "\N{SNOWMAN}" * 60 for number in range(60)}
        disk = Volume(id=id, name=id, labels=labels, spec=VolumeSpec(vm=vm, delete_with_vm=True))
        cloud.put(kinds.VOLUME, id, disk)
    cloud.delete_vm(vm, purge=True)
    deleted = cloud.edit(kinds.VM, vm)
    deleted.delete_request = "asked"
    cloud.put(kinds.VM, vm, deleted)
    store = MemoryStore()
    records = Mutations(store, Cache(store), SystemClock(), SystemIds(), "c1").acts
    told: list[str] = []
    while cloud.view.get(kinds.VM, vm) is not None:
        outcome = garbage.reconcile(cloud.view, f"vm/{vm}", cloud.now)
        assert outcome.txn is not None
        audits = records.of(outcome.acts, cloud.view, outcome.txn)
        assert Group("garbage", 0).add("vm", outcome.txn, outcome, audits, records.bytes_of(audits))
        assert max([each.ByteSize() + LINK_BYTES for each in audits], default=0) <= RECORD_BYTES_MAX
        assert {each.cause for each in outcome.acts} <= {"asked"}
        told += [each.object for each in outcome.acts]
        cloud.commit(outcome.txn)
    assert sorted(told) == sorted([f"vm/{vm}", *(f"volume/{id}" for id in (*disks, "vol-00000web"))])
