"""Assignments: work that is no VM's has one node that can do it, keeps it, and gets another when it is lost."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from cairn.controller.api import nouns
from cairn.controller.nodespec import node_objects
from cairn.controller.presence import Presence
from cairn.controller.reconcilers.assignments import MARGIN_S, Assignments
from cairn.controller.reconcilers.garbage import Garbage
from cairn.controller.reconcilers.openings import Openings
from cairn.controller.reconcilers.placement import Placements
from cairn.controller.runtime import check_writers
from cairn.controller.store.base import Conflict
from cairn.proto import kinds
from cairn.proto.capabilities import of_agent
from cairn.proto.v1.agent_pb2 import DesiredVolume, NodeHeard, VmReport, VolumeReport
from cairn.proto.v1.cluster_pb2 import Cluster
from cairn.proto.v1.node_pb2 import Assignment
from cairn.proto.v1.volume_pb2 import Purge
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from tests.unit.cloud_kit import GIB, Cloud

ALL = (Placements(), Assignments(), Openings(), Garbage())
VOLUME = "vol-00000web"
WORK = f"volume/{VOLUME}"
TANK = {"tank": 100 * GIB}


def shared(count: int = 3) -> tuple[Cloud, list[str], str]:
    """A cloud of nodes that reach a pool, with a VM in it whose volume has an administrator."""
    cloud = Cloud()
    nodes = [cloud.node(f"n{i + 1}", shared=TANK) for i in range(count)]
    vm = cloud.vm("web", type="net", node=nodes[0])
    cloud.settle(ALL)
    return cloud, nodes, vm


def held(cloud: Cloud) -> Assignment:
    found = cloud.view.get(kinds.ASSIGNMENT, WORK)
    assert found is not None
    return found


def desired_at(cloud: Cloud, node: str) -> DesiredVolume | None:
    objects = node_objects(cloud.view, Presence(cloud.view), node)
    return objects[WORK].volume if WORK in objects else None


def later(cloud: Cloud, seconds: float) -> None:
    cloud.now += timedelta(seconds=seconds)


def test_one_node_administers_and_the_guests_node_opens() -> None:
    cloud, nodes, vm = shared()
    work = held(cloud)
    assert (work.node in nodes, work.generation) == (True, 1)
    told = [node for node in nodes if desired_at(cloud, node) is not None]
    assert told == [work.node]
    volume = desired_at(cloud, work.node)
    assert volume is not None
    assert (volume.pool, volume.type, volume.size_bytes, volume.generation) == ("net/tank", "net", GIB, 1)
    disk = node_objects(cloud.view, Presence(cloud.view), nodes[0])[f"vm/{vm}"].vm.disks[0]
    assert (disk.volume, disk.type, disk.pool) == (VOLUME, "net", "net/tank")


def test_work_is_spread_and_stays_when_nodes_join() -> None:
    cloud, nodes, _ = shared()
    for number in range(30):
        cloud.vm(f"v{number}", type="net", memory=1 << 20, cpus=0)
    cloud.settle(ALL)
    before = {id: cloud.view.get(kinds.ASSIGNMENT, id) for id in cloud.view.ids(kinds.ASSIGNMENT)}
    assert {work.node for work in before.values() if work is not None} == set(nodes)
    cloud.node("n9", shared=TANK)
    cloud.settle(ALL)
    assert {id: cloud.view.get(kinds.ASSIGNMENT, id) for id in before} == before


def test_a_lost_node_keeps_its_work_for_a_while_and_then_another_has_it() -> None:
    cloud, nodes, _ = shared()
    lost = held(cloud).node
    cloud.delete(kinds.NODE_SESSION, lost)
    cloud.settle(ALL)
    outcome = cloud.decide(Assignments(), WORK)
    assert outcome.txn is None
    assert outcome.again_after_s == pytest.approx(MARGIN_S)
    later(cloud, MARGIN_S - 1)
    cloud.settle(ALL)
    assert held(cloud).node == lost
    later(cloud, 1)
    outcome = Assignments().reconcile(cloud.view, WORK, cloud.now)
    assert outcome.txn is not None
    check_writers(Assignments(), outcome.txn)
    assert [event.reason for event in outcome.events] == ["Reassigned"]
    name = next(node.name for node in cloud.view.all(kinds.NODE) if node.id == lost)
    assert outcome.say.endswith(f"administers volume web now: {name} does not answer")
    cloud.commit(outcome.txn)
    moved = held(cloud)
    assert moved.node in set(nodes) - {lost}
    assert moved.generation == 2
    volume = desired_at(cloud, moved.node)
    assert volume is not None
    assert volume.generation == 2
    cloud.connect(lost)
    cloud.settle(ALL)
    assert held(cloud) == moved, "who comes back does not get it back"
    assert not list(cloud.view.ids(kinds.NODE_LOSS))


def test_a_node_that_was_back_in_between_begins_to_be_lost_anew() -> None:
    cloud, _, _ = shared()
    lost = held(cloud).node
    cloud.delete(kinds.NODE_SESSION, lost)
    cloud.settle(ALL)
    later(cloud, MARGIN_S - 1)
    cloud.connect(lost)
    cloud.settle(ALL)
    cloud.delete(kinds.NODE_SESSION, lost)
    cloud.settle(ALL)
    later(cloud, MARGIN_S - 1)
    cloud.settle(ALL)
    assert held(cloud).node == lost


@pytest.mark.parametrize("how", ["cordoned", "removed", "capability", "pool"])
def test_a_node_that_cannot_or_should_not_loses_its_work_at_once(how: str) -> None:
    cloud, _, _ = shared()
    node = held(cloud).node
    record, facts = cloud.edit(kinds.NODE, node), cloud.edit(kinds.NODE_FACTS, node)
    match how:
        case "cordoned":
            record.spec.cordoned = True
            cloud.put(kinds.NODE, node, record)
        case "removed":
            cloud.delete(kinds.NODE, node)
        case "capability":
            cloud.connect(node, knows=of_agent(["local"]))
        case _:
            del facts.pools[1:]
            cloud.put(kinds.NODE_FACTS, node, facts)
    woken = list(Assignments().keys(cloud.view, kinds.NODE, node))
    assert WORK in woken
    cloud.decide(Assignments(), WORK)
    assert held(cloud).node != node


def test_a_cordoned_node_keeps_what_only_it_can_do() -> None:
    cloud, nodes, _ = shared(1)
    record = cloud.edit(kinds.NODE, nodes[0])
    record.spec.cordoned = True
    cloud.put(kinds.NODE, nodes[0], record)
    cloud.settle(ALL)
    assert held(cloud).node == nodes[0]


def test_work_without_a_node_is_woken_when_one_comes_and_says_so() -> None:
    cloud, nodes, _ = shared(2)
    assignments = Assignments()
    for node in nodes:
        cloud.delete(kinds.NODE_SESSION, node)
    cloud.settle([assignments])
    later(cloud, MARGIN_S)
    outcome = cloud.decide(assignments, WORK)
    assert outcome.txn is None
    volume = nouns.VOLUME.of(cloud.view, VOLUME)
    assert volume is not None
    assert volume.status.say.endswith("does not answer; another node takes over")
    other = next(node for node in nodes if node != held(cloud).node)
    cloud.connect(other)
    assert WORK in list(assignments.keys(cloud.view, kinds.NODE_SESSION, other))
    cloud.decide(assignments, WORK)
    assert held(cloud).node == other


def test_a_generation_is_greater_than_any_of_before_a_restore() -> None:
    """The pool has seen generation 7 since the backup, and would refuse its administrator for ever."""
    cloud, nodes, _ = shared()
    before = held(cloud)
    cluster = Cluster(name="blue", epoch=1_900_000_000)
    cluster.restored.revision = cloud.view.revision
    cloud.put(kinds.CLUSTER, "self", cluster)
    cloud.settle(ALL)
    assert held(cloud) == before, "not before every node has said what it knows better"
    for node in nodes:
        cloud.put(kinds.NODE_HEARD, node, NodeHeard(node=node, epoch=cluster.epoch))
    cloud.settle(ALL)
    after = held(cloud)
    assert (after.node, after.made) == (before.node, before.made)
    assert after.generation > 1 << 32
    cloud.settle(ALL)
    assert held(cloud) == after, "once"
    cluster.epoch += 1
    cluster.restored.revision = cloud.view.revision
    cloud.put(kinds.CLUSTER, "self", cluster)
    for node in nodes:
        cloud.put(kinds.NODE_HEARD, node, NodeHeard(node=node, epoch=cluster.epoch))
    cloud.settle(ALL)
    assert held(cloud).generation > after.generation, "in the next epoch, however often it moved in this one"


def test_work_of_a_backup_goes_on_anew_also_on_nodes_that_are_cordoned_by_then() -> None:
    cloud, nodes, _ = shared()
    before = held(cloud)
    for node in nodes:
        record = cloud.edit(kinds.NODE, node)
        record.spec.cordoned = True
        cloud.put(kinds.NODE, node, record)
    cluster = Cluster(name="blue", epoch=1_900_000_000)
    cluster.restored.revision = cloud.view.revision
    cloud.put(kinds.CLUSTER, "self", cluster)
    for node in nodes:
        cloud.put(kinds.NODE_HEARD, node, NodeHeard(node=node, epoch=cluster.epoch))
    cloud.settle(ALL)
    after = held(cloud)
    assert after.generation > max(1 << 32, before.generation)
    cloud.settle(ALL)
    assert held(cloud) == after, "once"


@pytest.mark.parametrize("of", ["vm", "volume"])
def test_what_is_to_be_erased_by_a_word_since_the_restore_waits_for_no_decision(of: str) -> None:
    """The pool may have seen newer generations: it refused its administrator, and what was left to decide waited for that."""
    cloud, _, vm = shared()
    before = held(cloud)
    doomed = vm if of == "vm" else VOLUME
    cluster = Cluster(name="blue", epoch=1_900_000_000)
    cloud.put(kinds.PURGE, doomed, Purge(id=doomed))
    cluster.restored.revision = cloud.view.revision
    cloud.put(kinds.CLUSTER, "self", cluster)
    cloud.settle([Assignments()])
    assert held(cloud) == before, "the word of a backup is none"
    cloud.put(kinds.PURGE, doomed, Purge(id=doomed))
    cloud.settle([Assignments()])
    assert held(cloud).generation > 1 << 32


def test_two_deciders_conflict() -> None:
    cloud, _, _ = shared()
    node = held(cloud).node
    cloud.delete(kinds.NODE, node)
    first, second = (Assignments().reconcile(cloud.view, WORK, cloud.now).txn for _ in range(2))
    assert first is not None
    assert second is not None
    cloud.commit(first)
    with pytest.raises(Conflict):
        cloud.commit(second)


def test_work_is_not_given_to_a_node_that_went_away_meanwhile() -> None:
    cloud, _, _ = shared()
    cloud.delete(kinds.NODE, held(cloud).node)
    txn = Assignments().reconcile(cloud.view, WORK, cloud.now).txn
    assert txn is not None
    chosen = Assignment.FromString(txn.puts[kinds.ASSIGNMENT.key(WORK)].value).node
    cloud.delete(kinds.NODE_SESSION, chosen)
    with pytest.raises(Conflict):
        cloud.commit(txn)
    cloud.settle(ALL)
    assert held(cloud).node != chosen


def test_a_shared_volume_is_erased_on_the_word_of_who_administers_it_now() -> None:
    cloud, nodes, vm = shared()
    lost = held(cloud).node
    cloud.delete_vm(vm, purge=True)
    cloud.settle(ALL)
    assert cloud.view.get(kinds.PURGE, vm) is None, "its guest may still have the volume open"
    cloud.report(nodes[0], f"vm/{vm}", state=VmReport.STATE_ABSENT)
    cloud.settle(ALL)
    volume = desired_at(cloud, lost)
    assert volume is not None
    assert volume.absent
    cloud.delete(kinds.NODE_SESSION, lost)
    cloud.settle(ALL)
    later(cloud, MARGIN_S)
    cloud.settle(ALL)
    after = held(cloud).node
    assert after != lost
    cloud.report(lost, WORK, state=VolumeReport.STATE_ABSENT)
    cloud.settle(ALL)
    assert cloud.view.get(kinds.VOLUME, VOLUME) is not None, "it is not the one that is asked any more"
    cloud.report(after, WORK, state=VolumeReport.STATE_ABSENT)
    cloud.settle(ALL)
    for kind in (kinds.VOLUME, kinds.VM, kinds.VOLUME_PLACEMENT, kinds.POOL_CLAIMS, kinds.ASSIGNMENT, kinds.NODE_LOSS):
        assert not list(cloud.view.ids(kind)), kind.name


def test_a_detached_volume_that_a_guest_was_seen_to_hold_is_not_erased() -> None:
    cloud, nodes, _ = shared()
    data = cloud.volume("data", type="net", vm="")
    volume = cloud.edit(kinds.VOLUME, data)
    volume.spec.vm = cloud.vm("other", type="net", node=nodes[1])
    cloud.put(kinds.VOLUME, data, volume)
    cloud.settle(ALL)
    cloud.report(nodes[1], "vm/i-000other", state=VmReport.STATE_RUNNING, open_volumes=[data])
    volume.spec.vm = ""
    volume.delete_time.GetCurrentTime()
    volume.purge_time.CopyFrom(volume.delete_time)
    cloud.put(kinds.VOLUME, data, volume)
    outcome = cloud.decide(Garbage(), f"volume/{data}")
    assert outcome.say == "guest i-000other may have a disk of it open"
    assert outcome.again_after_s
    cloud.report(nodes[1], "vm/i-000other", state=VmReport.STATE_RUNNING)
    cloud.settle([Openings()])
    cloud.decide(Garbage(), f"volume/{data}")
    assert cloud.view.get(kinds.PURGE, data) is not None


def test_a_volume_that_goes_with_a_vm_is_not_erased_under_the_guest_it_was_taken_from() -> None:
    """The VM it goes with was never given it, as the node of the guest before had not answered; then that VM was purged."""
    cloud, nodes, web = shared()
    other = cloud.vm("other", type="net", node=nodes[1])
    volume = cloud.edit(kinds.VOLUME, cloud.volume("data", type="net", vm=web))
    volume.spec.former_vm, volume.spec.former_generation, volume.spec.delete_with_vm = other, 1, True
    cloud.put(kinds.VOLUME, volume.id, volume)
    cloud.settle(ALL)
    cloud.delete_vm(web, purge=True)
    cloud.report(nodes[0], f"vm/{web}", state=VmReport.STATE_ABSENT)
    cloud.settle([Openings()])
    outcome = cloud.decide(Garbage(), f"vm/{web}")
    assert outcome.say == f"guest {other} may have a disk of it open"
    cloud.report(nodes[1], f"vm/{other}", state=VmReport.STATE_RUNNING, volumes_generation=1)
    cloud.decide(Garbage(), f"vm/{web}")
    assert cloud.view.get(kinds.PURGE, web) is not None


@pytest.mark.parametrize("kind", [kinds.VOLUME_PLACEMENT, kinds.VOLUME, kinds.PLACEMENT], ids=lambda kind: kind.name)
def test_nothing_is_erased_while_it_cannot_be_read_where_it_is(kind: Any) -> None:
    """A volume whose place could not be read counted as one of its node's own: seed busy-880046."""
    cloud, nodes, web = shared()
    cloud.settle(ALL)
    cloud.report(nodes[0], f"vm/{web}", state=VmReport.STATE_RUNNING, open_volumes=[VOLUME])
    cloud.delete_vm(web, purge=True)
    id = web if kind is kinds.PLACEMENT else VOLUME
    good = cloud.view.record(kind, id)
    assert good is not None
    cloud.view.table(kind).delete(id)
    cloud.view.table(kind).keep(id, 7, "garbage")
    outcome = cloud.decide(Garbage(), f"vm/{web}")
    assert outcome.say == f"{kind.name} {id} cannot be read"
    assert cloud.view.get(kinds.PURGE, web) is None
    cloud.put(kind, id, good.message)
    outcome = cloud.decide(Garbage(), f"vm/{web}")
    assert outcome.say == f"guest {web} may have a disk of it open"


def test_nothing_is_erased_while_it_cannot_be_read_what_a_guest_has_open() -> None:
    """Lists of who has a volume open lack what cannot be read; that it is another guest's report does not help."""
    cloud, nodes, web = shared()
    cloud.settle(ALL)
    cloud.delete_vm(web, purge=True)
    cloud.report(nodes[0], f"vm/{web}", state=VmReport.STATE_ABSENT)
    seen = f"{nodes[1]}/vm/i-former00"
    cloud.view.table(kinds.OBSERVED).keep(seen, 7, "garbage")
    outcome = cloud.decide(Garbage(), f"vm/{web}")
    assert (outcome.say, outcome.held_up_by) == ("what guest i-former00 has open cannot be read", (f"observed/{seen}",))
    assert cloud.view.get(kinds.PURGE, web) is None


class Losing(RuleBasedStateMachine):
    """Nodes come, go, are cordoned and forget; whatever happens, work ends with a node that can do it."""

    def __init__(self) -> None:
        super().__init__()
        self.cloud = Cloud()
        self.nodes = [self.cloud.node(f"n{i}", shared=TANK, up=i < 2) for i in range(3)]
        for number in range(3):
            self.cloud.vm(f"v{number}", type="net")
        self.cloud.settle(ALL)
        self.seen: dict[str, int] = {}

    @rule(which=st.integers(0, 2), act=st.sampled_from(["up", "down", "old", "cordon", "uncordon"]), wait=st.integers(0, 40))
    def change(self, which: int, act: str, wait: int) -> None:
        node, record = self.nodes[which], self.cloud.edit(kinds.NODE, self.nodes[which])
        match act:
            case "up" | "old":
                self.cloud.connect(node, knows=None if act == "up" else of_agent(["local"]))
            case "down":
                self.cloud.delete(kinds.NODE_SESSION, node)
            case _:
                record.spec.cordoned = act == "cordon"
                self.cloud.put(kinds.NODE, node, record)
        self.cloud.settle(ALL)
        later(self.cloud, wait)
        self.cloud.settle(ALL)

    @invariant()
    def generations_only_grow(self) -> None:
        for id in self.cloud.view.ids(kinds.ASSIGNMENT):
            work = self.cloud.view.get(kinds.ASSIGNMENT, id)
            assert work is not None
            assert work.generation >= self.seen.get(id, 0)
            self.seen[id] = work.generation

    def teardown(self) -> None:
        later(self.cloud, MARGIN_S)
        self.cloud.settle(ALL)
        able = [
            node
            for node in self.nodes
            if (session := self.cloud.view.get(kinds.NODE_SESSION, node)) and "volume:net" in session.capabilities
        ]
        if able:
            assert all(work.node in able for work in self.cloud.view.all(kinds.ASSIGNMENT))


TestLosing = Losing.TestCase
TestLosing.settings = settings(max_examples=30, stateful_step_count=20, deadline=None)
