"""Pools: whose they are, who reaches them, what is promised of them, and records of older releases."""

from __future__ import annotations

import pytest
from cairn.controller.model.pools import pool_capacity, pool_claimed, pool_for, pool_of, pool_room, pools_on, reaching
from cairn.controller.reconcilers.claims import claim
from cairn.controller.reconcilers.placement import Placements
from cairn.controller.store.base import Txn
from cairn.proto import kinds
from cairn.proto.capabilities import of_agent
from cairn.proto.ids import pool_id
from cairn.proto.v1.vm_pb2 import NodeClaims
from cairn.proto.v1.volume_pb2 import VolumePlacement

from tests.unit.cloud_kit import GIB, Cloud


def tank(*totals: int) -> tuple[Cloud, list[str]]:
    """A cloud with one node outside the pool "net/tank", and one inside it for each total."""
    cloud = Cloud()
    nodes = [cloud.node("n0")]
    nodes += [cloud.node(f"n{1 + i}", shared={"tank": total * GIB}) for i, total in enumerate(totals)]
    return cloud, nodes


def decided(cloud: Cloud, vm: str) -> str:
    cloud.decide(Placements(), vm)
    placement = cloud.view.get(kinds.PLACEMENT, vm)
    assert placement is not None
    return placement.decision.say


def test_a_local_pool_is_its_nodes_own_whatever_it_is_called() -> None:
    assert pool_id("local", "node-a", "node-b") == "local/node-a"
    assert pool_id("net", "node-a", "tank") == "net/tank"
    assert pool_id("net", "node-a") == "net/node-a"


def test_who_reaches_a_pool_and_what_it_may_promise() -> None:
    cloud, (outside, first, second) = tank(20, 10)
    assert reaching(cloud.view, "net/tank") == [first, second]
    assert pools_on(cloud.view, first, "net") == {"net/tank": True}
    assert pools_on(cloud.view, outside, "net") == {}
    assert pool_capacity(cloud.view, "net/tank") == int(10 * GIB * 0.95), "nodes differ: the least counts"
    cloud.delete(kinds.NODE_SESSION, second)
    assert pool_capacity(cloud.view, "net/tank") == int(20 * GIB * 0.95), "a node that is gone does not hold it down"
    cloud.delete(kinds.NODE_SESSION, first)
    assert pool_capacity(cloud.view, "net/tank") == int(10 * GIB * 0.95)
    assert pool_for(cloud.view, outside, "net") == ""


def test_a_shared_volume_ties_its_vm_to_nodes_that_reach_it() -> None:
    cloud, (_, first, _) = tank(20, 20)
    vm = cloud.vm("web", type="net", disk=2 * GIB)
    decided(cloud, vm)
    place = cloud.view.get(kinds.VOLUME_PLACEMENT, "vol-00000web")
    assert place == VolumePlacement(volume="vol-00000web", pool="net/tank", disk_bytes=2 * GIB)
    assert pool_claimed(cloud.view, "net/tank") == 2 * GIB
    volume = cloud.edit(kinds.VOLUME, "vol-00000web")
    volume.spec.vm = cloud.vm("other", disk=0)
    cloud.put(kinds.VOLUME, volume.id, volume)
    cloud.put(kinds.NODE, first, _cordoned(cloud, first))
    assert "on n2" in decided(cloud, volume.spec.vm)
    assert pool_claimed(cloud.view, "net/tank") == 2 * GIB, "its room is claimed once, wherever it is used"


def _cordoned(cloud: Cloud, node: str) -> object:
    record = cloud.edit(kinds.NODE, node)
    record.spec.cordoned = True
    return record


def test_an_agent_that_does_not_know_a_type_of_volume_is_not_chosen() -> None:
    cloud, (_, first, second) = tank(20, 20)
    cloud.connect(first, knows=of_agent(["local"]))
    assert "on n2" in decided(cloud, cloud.vm("web", type="net"))
    cloud.connect(second, knows=[])
    assert decided(cloud, cloud.vm("other", type="net")) == (
        "no node fits: 3 nodes considered; n0 reaches no net pool; "
        "n1, n2 have agents that do not know volume:net; upgrade the agent on n1"
    )


def test_says_which_pool_is_missing_or_full() -> None:
    cloud, (outside, *_) = tank(20, 20)
    assert decided(cloud, cloud.vm("far", type="far")) == (
        "no node fits: 3 nodes considered; n0, n1, n2 reach no far pool; give a node access to a far pool"
    )
    assert "n0 reaches no net pool" in decided(cloud, cloud.vm("there", type="net", node=outside))
    assert decided(cloud, cloud.vm("big", type="net", disk=50 * GIB)) == (
        "no node fits: 3 nodes considered; n0, n1, n2 lack room in net pools: 19 GiB free, 50 GiB wanted; "
        "free some in the net pool, or make it larger"
    )
    decided(cloud, cloud.vm("web", type="net"))
    volume = cloud.edit(kinds.VOLUME, "vol-00000web")
    volume.spec.vm = cloud.vm("out", disk=0, node=outside)
    cloud.put(kinds.VOLUME, volume.id, volume)
    assert "n0 does not reach the pools net/tank" in decided(cloud, volume.spec.vm)


def test_room_of_a_shared_pool_is_claimed_once_for_all_nodes_and_given_back() -> None:
    cloud, _ = tank(10, 10)
    first, second = cloud.vm("a", type="net", disk=6 * GIB), cloud.vm("b", type="net", disk=6 * GIB)
    placements = Placements()
    cloud.settle([placements])
    assert pool_room(cloud.view, "net/tank") == int(10 * GIB * 0.95) - 6 * GIB
    placed = [vm for vm in (first, second) if cloud.view.by(kinds.PLACEMENT, "node", "") != [vm]]
    assert len(placed) == 1
    cloud.delete(kinds.VM, placed[0])
    cloud.delete(kinds.VOLUME, f"vol-{placed[0][2:]}")
    cloud.settle([placements])
    assert cloud.view.by(kinds.PLACEMENT, "node", "") == [], "the other one got the room"
    assert pool_claimed(cloud.view, "net/tank") == 6 * GIB


def test_a_followed_table_sees_what_a_fresh_one_sees_of_pools() -> None:
    cloud, (outside, first, second) = tank(10, 12)
    followed = Placements()
    cloud.settle([followed])
    facts = cloud.edit(kinds.NODE_FACTS, outside)
    facts.pools.add(type="net", name="tank", total_bytes=8 * GIB)
    cloud.take()
    for change in (
        lambda: cloud.put(kinds.NODE_FACTS, outside, facts),
        lambda: cloud.delete(kinds.NODE_SESSION, outside),
        lambda: cloud.delete(kinds.NODE_SESSION, first),
        lambda: cloud.put(kinds.NODE, second, _cordoned(cloud, second)),
    ):
        change()
        followed.follow(cloud.view, cloud.take())
        vm = cloud.vm(f"v{cloud.view.revision}", type="net", disk=9 * GIB)
        followed.follow(cloud.view, cloud.take())
        fresh, led = (each.reconcile(cloud.view, vm, cloud.now) for each in (Placements(), followed))
        assert fresh.say == led.say
        cloud.delete(kinds.VM, vm)
        cloud.delete(kinds.VOLUME, f"vol-{vm[2:]}")


def test_records_of_older_releases_are_read_and_taken_over() -> None:
    cloud = Cloud()
    node = cloud.node("n1", disk=100 * GIB)
    old = VolumePlacement(volume=cloud.volume("old", size=60 * GIB), node=node, disk_bytes=60 * GIB)
    cloud.put(kinds.VOLUME_PLACEMENT, old.volume, old)
    cloud.put(kinds.NODE_CLAIMS, node, NodeClaims(node=node, disk_bytes=60 * GIB))
    assert pool_of(old) == f"local/{node}"
    assert "lacks disk space: 35 GiB free" in decided(cloud, cloud.vm("big", disk=50 * GIB))
    decided(cloud, cloud.vm("web", disk=20 * GIB))
    claims = cloud.view.get(kinds.POOL_CLAIMS, f"local/{node}")
    held = cloud.view.get(kinds.NODE_CLAIMS, node)
    assert claims is not None
    assert held is not None
    assert (claims.disk_bytes, held.disk_bytes) == (80 * GIB, 0), "what was claimed there is claimed of the pool now"
    cloud.delete(kinds.VOLUME, old.volume)
    cloud.settle([Placements()])
    assert cloud.claims(node)[2] == 70 * GIB, "the large one got the room"


def test_giving_back_more_than_was_taken_is_a_fault_not_a_zero() -> None:
    cloud, (node, *_) = tank(10)
    with pytest.raises(ValueError, match="cannot be given back"):
        claim(Txn("placement"), cloud.view, pools={"net/tank": -1})
    with pytest.raises(ValueError, match="cannot be given back"):
        claim(Txn("placement"), cloud.view, node, cpus=-1)


def test_a_node_that_left_keeps_its_claims_until_what_is_erased_has_given_back() -> None:
    cloud = Cloud()
    node = cloud.node("n1")
    vm = cloud.vm("web")
    placements = Placements()
    cloud.settle([placements])
    for kind, id in ((kinds.VM, vm), (kinds.VOLUME, "vol-00000web"), (kinds.NODE, node)):
        cloud.delete(kind, id)
    waits = placements.reconcile(cloud.view, node, cloud.now)
    assert waits.txn is None
    assert waits.again_after_s
    cloud.settle([placements])
    assert not list(cloud.view.ids(kinds.NODE_CLAIMS))
    assert not list(cloud.view.ids(kinds.POOL_CLAIMS))


def test_vms_on_shared_disks_only_may_go_wherever_the_pool_is_reached() -> None:
    """The disk of a lost node's VM is not lost with it: the pool is still there, and another node can open it."""
    cloud, (_, first, second) = tank(20, 20)
    decided(cloud, cloud.vm("web", type="net", node=first))
    volume = cloud.edit(kinds.VOLUME, "vol-00000web")
    volume.spec.vm = cloud.vm("again", disk=0)
    cloud.put(kinds.VOLUME, volume.id, volume)
    cloud.delete(kinds.NODE_SESSION, first)
    decided(cloud, volume.spec.vm)
    placement = cloud.view.get(kinds.PLACEMENT, volume.spec.vm)
    assert placement is not None
    assert placement.node == second


def test_a_volume_that_no_vm_has_gets_its_room_in_a_shared_pool_at_once_and_a_nodes_own_waits() -> None:
    cloud, _ = tank(10, 10)
    placements = Placements()
    first, second = cloud.volume("a", type="net", size=6 * GIB), cloud.volume("b", type="net", size=6 * GIB)
    local, gone = cloud.volume("l"), cloud.volume("g", type="net")
    deleted = cloud.edit(kinds.VOLUME, gone)
    deleted.delete_time.seconds = 1
    cloud.put(kinds.VOLUME, gone, deleted)
    cloud.settle([placements])
    place = cloud.view.get(kinds.VOLUME_PLACEMENT, first)
    assert place == VolumePlacement(volume=first, pool="net/tank", disk_bytes=6 * GIB)
    assert [cloud.view.get(kinds.VOLUME_PLACEMENT, id) for id in (second, local, gone)] == [None] * 3
    assert "it needs 6 GiB, and 3.5 GiB is free in pool net/tank" in cloud.decide(placements, second).say
    cloud.delete(kinds.VOLUME, first)
    cloud.settle([placements])
    assert cloud.view.get(kinds.VOLUME_PLACEMENT, second) is not None, "the other one got the room"
    assert pool_claimed(cloud.view, "net/tank") == 6 * GIB


def test_a_volume_of_no_vm_waits_for_somebody_who_reaches_its_pool() -> None:
    cloud, _ = tank()
    volume, placements = cloud.volume("a", type="net"), Placements()
    assert "no connected node reaches a shared pool of type net" in cloud.decide(placements, volume).say
    assert volume in placements.keys(cloud.view, kinds.NODE_FACTS, cloud.node("n9", shared={"tank": 9 * GIB}))
    cloud.settle([placements])
    assert cloud.view.get(kinds.VOLUME_PLACEMENT, volume) is not None
