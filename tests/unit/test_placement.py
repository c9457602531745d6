"""Placement: what goes where, why, and that nothing is ever promised twice."""

from __future__ import annotations

import pytest
from cairn.controller.model.where import explained
from cairn.controller.reconcilers.fit import FILTERS
from cairn.controller.reconcilers.placement import Placements
from cairn.controller.runtime import check_writers
from cairn.controller.store.base import Conflict
from cairn.proto import kinds
from cairn.proto.seams import timestamp
from cairn.proto.v1.agent_pb2 import VmReport
from cairn.proto.v1.common_pb2 import Decision
from cairn.proto.v1.vm_pb2 import NodeClaims

from tests.unit.cloud_kit import GIB, MIB, NOW, Cloud, absent_everywhere


def place(cloud: Cloud, vm: str) -> Decision:
    cloud.decide(Placements(), vm)
    decision = explained(cloud.view, vm, cloud.stored(kinds.DECISION, vm))
    assert decision is not None
    return decision


def adds_up(decision: Decision) -> bool:
    return sum(each.refused for each in decision.filters) <= decision.considered


def test_spreads_over_equal_nodes() -> None:
    cloud = Cloud()
    for name in ("n1", "n2", "n3"):
        cloud.node(name)
    on = [place(cloud, cloud.vm(f"vm{i}")).node_name for i in range(6)]
    assert sorted(on[:3]) == sorted(on[3:]) == ["n1", "n2", "n3"]


def test_claims_follow_the_placement() -> None:
    cloud = Cloud()
    node = cloud.node("n1")
    vm = cloud.vm("web", cpus=2, memory=GIB, disk=3 * GIB)
    outcome = Placements().reconcile(cloud.view, vm, NOW)
    assert outcome.txn is not None
    check_writers(Placements(), outcome.txn)
    assert [event.reason for event in outcome.events] == ["Placed"]
    cloud.commit(outcome.txn)
    assert cloud.claims(node) == (2, GIB, 3 * GIB, 1)
    place_of = cloud.view.get(kinds.VOLUME_PLACEMENT, "vol-00000web")
    assert place_of is not None
    assert place_of.node == node
    assert Placements().reconcile(cloud.view, vm, NOW).txn is None, "a placed VM stays as it is"


def test_says_what_would_make_it_fit() -> None:
    cloud = Cloud()
    cloud.node("n1", memory=GIB)
    cloud.node("n2", memory=1434 * MIB)
    cloud.node("n3", memory=512 * MIB)
    decision = place(cloud, cloud.vm("big", memory=4 * GIB))
    assert decision.node == ""
    assert decision.say == (
        "no node fits: 3 nodes considered; n1, n2, n3 lack memory: the most free is 1.2 GiB on n2, 4 GiB wanted; "
        "ask for at most 1.2 GiB or add a node"
    )
    assert [(each.name, each.refused, each.example) for each in decision.filters] == [
        ("memory", 3, "n1: 921.5 MiB free, 4 GiB wanted")
    ]


@pytest.mark.parametrize(
    ("vm", "filter", "says"),
    [
        ({"arch": "aarch64"}, "arch", "n1, n2, n3 cannot run aarch64 guests; add a node that runs aarch64 guests"),
        ({"selector": {"ssd": "yes"}}, "labels", "n1, n2, n3 lack the labels ssd=yes"),
        ({"cpus": 9}, "cpus", "lack CPUs: the most free is 8 CPUs on n1, 9 CPUs wanted; ask for at most 8 CPUs"),
        ({"disk": 200 * GIB}, "disk", "lack disk space: the most free is 95 GiB on n1, 200 GiB wanted"),
        ({"node": "node-000000n9"}, "node", "n1, n2, n3 are not node-000000n9, the one asked for"),
    ],
)
def test_each_filter_says_why(vm: dict[str, object], filter: str, says: str) -> None:
    cloud = Cloud()
    for name in ("n1", "n2", "n3"):
        cloud.node(name)
    decision = place(cloud, cloud.vm("web", **vm))  # type: ignore[arg-type]
    assert decision.node == ""
    assert says in decision.say
    assert [(each.name, each.refused) for each in decision.filters] == [(filter, 3)]


def test_each_node_is_refused_once_and_the_nearest_gets_the_advice() -> None:
    cloud = Cloud()
    cloud.node("n1", up=False)
    cloud.node("n2", cordoned=True)
    cloud.node("n3", archs=[])
    cloud.node("n4", memory=256 * MIB)
    decision = place(cloud, cloud.vm("web"))
    assert {each.name: each.refused for each in decision.filters} == {"state": 1, "cordoned": 1, "hypervisor": 1, "memory": 1}
    assert decision.say == (
        "no node fits: 4 nodes considered; n1 does not answer; n2 is cordoned; n3 has no hypervisor that answers; "
        "n4 lacks memory: 230.3 MiB free, 512 MiB wanted; ask for at most 230 MiB or add a node"
    )


def test_where_the_hypervisor_does_not_answer_nothing_new_goes() -> None:
    cloud = Cloud()
    cloud.node("n1", silent="connect: no such socket")
    cloud.node("n2", threads=1)
    assert place(cloud, cloud.vm("web")).node == "node-000000n2"
    alone = Cloud()
    alone.node("n1", silent="connect: no such socket")
    decision = place(alone, alone.vm("web"))
    assert decision.node == ""
    assert "n1 has no hypervisor that answers; see why with `cairn node show n1`" in decision.say


def test_no_nodes_at_all() -> None:
    cloud = Cloud()
    assert "there are no nodes" in place(cloud, cloud.vm("web")).say


def test_pinned_selected_and_home_nodes() -> None:
    cloud = Cloud()
    n1, n2 = cloud.node("n1"), cloud.node("n2", labels={"ssd": "yes"})
    assert place(cloud, cloud.vm("a", node=n1)).say == "on n1, the node asked for"
    assert place(cloud, cloud.vm("b", selector={"ssd": "yes"})).node == n2
    data = cloud.volume("data", vm=(first := cloud.vm("c", node=n1)))
    place(cloud, first)
    volume = cloud.edit(kinds.VOLUME, data)
    volume.spec.vm = (second := cloud.vm("d"))
    cloud.put(kinds.VOLUME, data, volume)
    assert place(cloud, second).say == "on n1, where its volumes are"


def test_an_unplaceable_vm_is_written_once_and_placed_when_room_is_given_back() -> None:
    cloud = Cloud()
    cloud.node("n1", memory=GIB)
    placements = Placements()
    first, second = cloud.vm("a", memory=600 * MIB), cloud.vm("b", memory=600 * MIB)
    cloud.settle([placements])
    waiting = cloud.view.get(kinds.PLACEMENT, second)
    assert waiting is not None
    assert waiting.node == ""
    assert cloud.decide(placements, second).txn is None, "the same sentence is not written again"
    cloud.delete_vm(first)
    cloud.take()
    assert cloud.decide(placements, first).txn is None, "nothing is given back before the node says ABSENT"
    absent_everywhere(cloud, [first])
    assert [event.reason for event in cloud.decide(placements, first).events] == ["Released"]
    woken = {key for kind, id in cloud.take() for key in placements.keys(cloud.view, kind, id) if kind in placements.reads}
    assert second in woken
    assert place(cloud, second).node != ""


def test_a_claim_that_grew_wakes_nobody() -> None:
    cloud = Cloud()
    node = cloud.node("n1", memory=GIB)
    placements = Placements()
    cloud.vm("big", memory=3 * GIB)
    cloud.settle([placements])
    cloud.vm("small", memory=128 * MIB)
    cloud.settle([placements])
    assert not list(placements.keys(cloud.view, kinds.NODE_CLAIMS, node))


def test_deleted_vm_brought_back_returns_to_its_disks() -> None:
    cloud = Cloud()
    cloud.node("n1")
    cloud.node("n2")
    vm = cloud.vm("web")
    home = place(cloud, vm).node
    cloud.delete_vm(vm)
    absent_everywhere(cloud, [vm])
    cloud.settle([Placements()])
    assert cloud.claims(home) == (0, 0, GIB, 0)
    cloud.undelete_vm(vm)
    assert place(cloud, vm).node == home
    assert cloud.claims(home) == (1, 512 * MIB, GIB, 1)


def test_what_a_node_said_of_an_earlier_life_gives_nothing_back() -> None:
    cloud = Cloud()
    cloud.node("n1")
    vm = cloud.vm("web")
    place(cloud, vm)
    cloud.delete_vm(vm)
    absent_everywhere(cloud, [vm])
    cloud.undelete_vm(vm)
    cloud.delete_vm(vm)
    assert cloud.decide(Placements(), vm).txn is None, "its guest may run: the node has not said anything since"
    absent_everywhere(cloud, [vm])
    assert [event.reason for event in cloud.decide(Placements(), vm).events] == ["Released"]


def test_everything_is_given_back_when_records_are_gone() -> None:
    cloud = Cloud()
    node = cloud.node("n1")
    vm = cloud.vm("web")
    place(cloud, vm)
    cloud.delete(kinds.VM, vm)
    cloud.delete(kinds.VOLUME, "vol-00000web")
    cloud.settle([Placements()])
    assert cloud.claims(node) == (0, 0, 0, 0)
    assert not list(cloud.view.ids(kinds.PLACEMENT))
    assert not list(cloud.view.ids(kinds.VOLUME_PLACEMENT))


def resize(cloud: Cloud, vm: str, *, cpus: int, memory: int) -> None:
    record = cloud.edit(kinds.VM, vm)
    record.spec.cpus, record.spec.memory_bytes = cpus, memory
    cloud.put(kinds.VM, vm, record)


def test_resize_changes_the_claim_or_says_what_is_missing() -> None:
    cloud = Cloud()
    node = cloud.node("n1", memory=4 * GIB)
    vm = cloud.vm("web", memory=GIB)
    place(cloud, vm)
    resize(cloud, vm, cpus=2, memory=2 * GIB)
    assert place(cloud, vm).say == "resized on n1: 2 CPUs, 2 GiB of memory"
    assert cloud.claims(node)[:2] == (2, 2 * GIB)
    resize(cloud, vm, cpus=2, memory=64 * GIB)
    assert "stays as it is on n1: 62 GiB more memory wanted, 1.5 GiB free" in place(cloud, vm).say
    placement = cloud.view.get(kinds.PLACEMENT, vm)
    assert placement is not None
    assert placement.memory_bytes == 2 * GIB
    assert cloud.decide(Placements(), vm).txn is None
    place(cloud, cloud.vm("neighbour", memory=GIB))
    assert cloud.decide(Placements(), vm).txn is None, "less is free there, and it still stays as it is: nothing new"
    resize(cloud, vm, cpus=1, memory=GIB)
    assert place(cloud, vm).say == "resized on n1: 1 CPU, 1 GiB of memory"


def test_volumes_attached_later_and_grown_are_claimed() -> None:
    cloud = Cloud()
    node = cloud.node("n1", disk=100 * GIB)
    vm = cloud.vm("web", disk=GIB)
    place(cloud, vm)
    data = cloud.volume("data", vm=vm, size=10 * GIB)
    cloud.decide(Placements(), vm)
    assert cloud.claims(node)[2] == 11 * GIB
    volume = cloud.edit(kinds.VOLUME, data)
    volume.spec.size_bytes = 500 * GIB
    cloud.put(kinds.VOLUME, data, volume)
    assert "volume data needs 490 GiB more" in place(cloud, vm).say
    assert cloud.claims(node)[2] == 11 * GIB


def test_two_controllers_on_one_node_conflict_and_the_second_decides_again() -> None:
    cloud = Cloud()
    cloud.node("n1", memory=GIB)
    first, second = cloud.vm("a", memory=600 * MIB), cloud.vm("b", memory=600 * MIB)
    one, two = Placements().reconcile(cloud.view, first, NOW), Placements().reconcile(cloud.view, second, NOW)
    assert one.txn is not None
    assert two.txn is not None
    cloud.commit(one.txn)
    with pytest.raises(Conflict):
        cloud.commit(two.txn)
    assert "n1 lacks memory" in place(cloud, second).say


def test_a_node_that_leaves_at_that_moment_makes_the_placement_conflict() -> None:
    cloud = Cloud()
    cloud.node("n1", memory=GIB)
    better = cloud.node("n2")
    vm = cloud.vm("a")
    chosen = Placements().reconcile(cloud.view, vm, NOW)
    assert chosen.say.startswith("on n2")
    assert chosen.txn is not None
    marked = cloud.edit(kinds.NODE, better)
    marked.delete_time.CopyFrom(timestamp(NOW))
    cloud.put(kinds.NODE, better, marked)
    with pytest.raises(Conflict):
        cloud.commit(chosen.txn)
    assert place(cloud, vm).say == "on n1, the only one of 2 nodes that fits"


def test_the_claims_of_a_node_that_left_go() -> None:
    cloud = Cloud()
    stays, leaves = cloud.node("n1"), cloud.node("n2")
    vm = cloud.vm("a", node=leaves)
    placements = Placements()
    cloud.settle([placements])
    cloud.delete(kinds.VM, vm)
    cloud.delete(kinds.VOLUME, "vol-0000000a")
    cloud.settle([placements])
    waiting = cloud.vm("b", node=leaves, cpus=64)
    cloud.settle([placements])
    cloud.put(kinds.NODE_CLAIMS, stays, NodeClaims(node=stays))
    assert placements.reconcile(cloud.view, leaves, NOW).txn is None, "it is there"
    cloud.take()
    cloud.delete(kinds.NODE, leaves)
    ((kind, id),) = cloud.take()
    assert list(placements.keys(cloud.view, kind, id)) == [leaves, waiting]
    outcome = placements.reconcile(cloud.view, leaves, NOW)
    assert outcome.txn is not None
    check_writers(placements, outcome.txn)
    cloud.settle([placements])
    assert list(cloud.view.ids(kinds.NODE_CLAIMS)) == [stays]


def test_a_followed_table_decides_like_a_fresh_one() -> None:
    cloud = Cloud()
    for i in range(20):
        cloud.node(f"n{i}", memory=(1 + i % 5) * GIB)
    followed = Placements()
    cloud.settle([followed])
    for i in range(60):
        vm = cloud.vm(f"vm{i}", memory=(1 + i % 4) * 256 * MIB)
        if i == 30:
            cloud.delete(kinds.NODE_SESSION, "node-000000n3")
            cloud.node("n99")
        if i % 7 == 0:
            cloud.put(kinds.NODE, "node-000000n4", cloud.edit(kinds.NODE, "node-000000n4"))
        followed.follow(cloud.view, cloud.take())
        mine, fresh = followed.reconcile(cloud.view, vm, NOW), Placements().reconcile(cloud.view, vm, NOW)
        assert mine.say == fresh.say
        assert mine.txn is not None
        assert fresh.txn is not None
        assert mine.txn.puts == fresh.txn.puts
        fork = cloud.view.fork(mine.txn)
        assert followed.reconcile(fork, vm, NOW).txn is None, "a fork nobody led to is derived from scratch"
        cloud.commit(mine.txn)


def test_filters_have_their_own_names() -> None:
    assert len({each.name for each in FILTERS}) == len(FILTERS)


def test_observed_wakes_only_what_is_deleted() -> None:
    cloud = Cloud()
    node = cloud.node("n1")
    vm = cloud.vm("web")
    place(cloud, vm)
    cloud.report(node, f"vm/{vm}", state=VmReport.STATE_RUNNING)
    assert not list(Placements().keys(cloud.view, kinds.OBSERVED, f"{node}/vm/{vm}"))
    cloud.delete_vm(vm)
    assert list(Placements().keys(cloud.view, kinds.OBSERVED, f"{node}/vm/{vm}")) == [vm]


def test_scores_are_beside_the_placement_and_go_with_it() -> None:
    """Every controller holds every placement: it has the sentence, who asks why looks the rest up."""
    cloud = Cloud()
    for name in ("n1", "n2", "n3"):
        cloud.node(name)
    vm = cloud.vm("web")
    cloud.decide(Placements(), vm)
    placement, decision = cloud.view.get(kinds.PLACEMENT, vm), cloud.stored(kinds.DECISION, vm)
    assert placement is not None
    assert placement.decision == Decision(say=decision.say, decide_time=decision.decide_time)
    assert (len(decision.top), decision.node) == (3, placement.node)
    assert not list(cloud.view.ids(kinds.DECISION))
    cloud.delete(kinds.VM, vm)
    cloud.decide(Placements(), vm)
    assert (cloud.view.get(kinds.PLACEMENT, vm), cloud.stored(kinds.DECISION, vm)) == (None, None)


def test_what_became_of_a_vm_is_told_with_the_scores_it_was_placed_for() -> None:
    cloud = Cloud()
    cloud.node("n1")
    vm = cloud.vm("web")
    placed = place(cloud, vm)
    grown = cloud.edit(kinds.VM, vm)
    grown.spec.cpus += 1
    cloud.put(kinds.VM, vm, grown)
    resized = place(cloud, vm)
    assert resized.say == "resized on n1: 2 CPUs, 512 MiB of memory"
    assert (resized.node, resized.node_name, list(resized.top)) == (placed.node, "n1", list(placed.top))


def test_decisions_of_other_releases_and_of_before_are_told_right() -> None:
    cloud = Cloud()
    cloud.node("n1")
    vm = cloud.vm("web")
    whole = place(cloud, vm)
    older = cloud.edit(kinds.PLACEMENT, vm)
    # An older release keeps all of it in the placement, and knows nothing of the record beside it.
    older.decision.CopyFrom(whole)
    cloud.put(kinds.PLACEMENT, vm, older)
    assert explained(cloud.view, vm, None) == explained(cloud.view, vm, whole) == whole
    elsewhere = Decision(node="node-000000n9", node_name="n9", considered=7)
    older.decision.CopyFrom(Decision(say="on n1, which held it when it was adopted"))
    cloud.put(kinds.PLACEMENT, vm, older)
    told = explained(cloud.view, vm, elsewhere)
    assert told is not None
    assert (told.node_name, told.considered) == ("n1", 0), "what was decided about another node explains nothing here"
    assert explained(cloud.view, "i-undecided", None) is None
