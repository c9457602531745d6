"""Scenes of the pool that all nodes reach, and of work that is no VM's."""

from __future__ import annotations

from typing import Any

from cairn.proto.v1 import node_pb2, volume_pb2

from tests.sim.cloud import Guest
from tests.sim.stage import GIB, NODE, OTHER, VM, VOLUME, Stage, guest, node, placement, pool_claims, scene, vm, volume

TANK = "fake-shared/tank"
Made = tuple[str, str, Any]


def shared_place(size: int = GIB) -> Made:
    return "volume_placement", VOLUME, volume_pb2.VolumePlacement(volume=VOLUME, pool=TANK, disk_bytes=size)


def work(on: str = NODE, generation: int = 1) -> Made:
    return "assignment", f"volume/{VOLUME}", node_pb2.Assignment(kind="volume", id=VOLUME, node=on, generation=generation)


def able(id: str = NODE, *, knows: str = "volume:fake-shared", pool: str = "tank") -> tuple[Made, Made, Made]:
    """A connected node that can administer volumes of the pool."""
    facts = node_pb2.NodeFacts()
    facts.pools.add(type="fake-shared", name=pool, total_bytes=100 * GIB)
    return node(id), ("node_facts", id, facts), ("node_session", id, node_pb2.NodeSession(node=id, capabilities=[knows]))


def shared() -> Made:
    return volume(type="fake-shared")


def gone(made: Made) -> tuple[str, str, None]:
    return made[0], made[1], None


# --- assigned ----------------------------------------------------------------------------------------------------------------


@scene("assigned")
def work_moves_to_a_living_node(stage: Stage) -> None:
    stage.commit(*able(), *able(OTHER), shared(), shared_place(), work())
    stage.commit(gone(able()[2]))
    stage.commit(work(OTHER, 2))
    stage.settle()


@scene("assigned", "nobody does volume/vol-1")
def nobody_does_it(stage: Stage) -> None:
    stage.commit(*able(), shared(), shared_place())
    stage.settle()


@scene("assigned", "which is not connected")
def it_stays_with_a_dead_node(stage: Stage) -> None:
    stage.commit(*able(), *able(OTHER), shared(), shared_place(), work())
    stage.commit(gone(able()[2]))
    stage.settle()


@scene("assigned", "was given to n1, which does not reach fake-shared/tank")
def it_goes_to_a_node_without_the_pool(stage: Stage) -> None:
    stage.host()
    stage.commit(*able(pool="other"), shared(), shared_place(), work())


@scene("assigned", "was given to n1, which does not know volumes of type fake-shared")
def it_goes_to_a_node_that_does_not_know_it(stage: Stage) -> None:
    stage.host()
    stage.commit(*able(knows="volume:local"), shared(), shared_place(), work())


@scene("assigned", "as generation 1 after 1")
def two_have_one_generation(stage: Stage) -> None:
    stage.commit(*able(), *able(OTHER), shared(), shared_place(), work())
    stage.commit(work(OTHER, 1))


@scene("assigned", "which is not to be done")
def work_is_left(stage: Stage) -> None:
    stage.commit(*able(), work())
    stage.settle()


@scene("assigned", "counts as lost, and is connected")
def a_loss_is_left(stage: Stage) -> None:
    stage.commit(*able(), ("node_loss", NODE, node_pb2.NodeLoss(node=NODE)))
    stage.settle()


# --- what the pool holds, and what is promised of it -------------------------------------------------------------------------


@scene("capacity", "of pool fake-shared/tank 3221225472 bytes are claimed, what is placed there is 1073741824")
def more_is_claimed_of_the_pool_than_is_placed_there(stage: Stage) -> None:
    stage.commit(*able(), shared_place(), pool_claims(3 * GIB, TANK))


@scene("capacity", "of pool fake-shared/tank 103079215104 bytes are claimed, it has 102005473280")
def more_than_the_pool_has(stage: Stage) -> None:
    stage.commit(*able(), shared_place(96 * GIB), pool_claims(96 * GIB, TANK))


@scene("held_while_used")
def a_shared_volume_goes_before_its_records(stage: Stage) -> None:
    stage.commit(shared(), shared_place())
    stage.pool(vol_1=GIB)
    stage.pool()
    stage.commit(gone(shared()), gone(shared_place()))


@scene("held_while_used", "the record of volume vol-1 vanished while it is in the shared pool")
def a_shared_volume_outlives_its_record(stage: Stage) -> None:
    stage.commit(shared(), shared_place())
    stage.pool(vol_1=GIB)
    stage.commit(gone(shared()))


@scene("held_while_used", "is in the shared pool, its records are not")
def a_shared_volume_is_made_for_nobody(stage: Stage) -> None:
    stage.pool(vol_1=GIB)


@scene("one_attachment", "was taken from the shared pool while i-1 on n1 has it open")
def a_shared_volume_is_erased_under_a_guest(stage: Stage) -> None:
    stage.commit(volume(type="fake-shared", vm=VM), shared_place())
    stage.pool(vol_1=GIB)
    stage.host(guests={VM: Guest(VM, True, 1, GIB, (), (VOLUME,))})
    stage.pool()


@scene("one_attachment", "shrank")
def a_shared_volume_shrinks(stage: Stage) -> None:
    stage.pool(vol_1=2 * GIB)
    stage.pool(vol_1=GIB)


@scene("one_attachment")
def a_shared_volume_is_cut_where_no_guest_saw_it(stage: Stage) -> None:
    stage.commit(volume(type="fake-shared", vm=VM), shared_place())
    stage.host(guests=sees(GIB), looked={VOLUME: 2 * GIB})
    stage.pool(vol_1=3 * GIB)
    stage.pool(vol_1=2 * GIB)


@scene("one_attachment", "shrank")
def a_shared_volume_is_cut_where_a_guest_saw_it(stage: Stage) -> None:
    stage.commit(volume(type="fake-shared", vm=VM), shared_place())
    stage.host(guests=sees(3 * GIB))
    stage.host(guests=sees(3 * GIB), looked={VOLUME: 2 * GIB})
    stage.pool(vol_1=3 * GIB)
    stage.pool(vol_1=2 * GIB)


def sees(size: int) -> dict[str, Guest]:
    """A guest that runs, and sees so much of its volume."""
    return {VM: Guest(VM, True, 1, GIB, (), (VOLUME,), {VOLUME: size})}


@scene("as_seen")
def all_of_it_is_seen(stage: Stage) -> None:
    stage.pool(vol_1=2 * GIB)
    stage.commit(volume(type="fake-shared", vm=VM), shared_place(2 * GIB))
    stage.host(guests=sees(2 * GIB), looked={VOLUME: 2 * GIB})
    stage.host(OTHER, guests={"i-2": Guest("i-2", True, 1, GIB, (), ("vol-2",), {"vol-2": GIB})}, volumes={"vol-2": GIB})
    stage.settle()


@scene("as_seen", "i-1 on n1 sees 1073741824 bytes of volume vol-1, which has 2147483648")
def a_growth_is_not_seen(stage: Stage) -> None:
    stage.pool(vol_1=2 * GIB)
    stage.host(guests=sees(GIB))
    stage.settle()


@scene("as_seen", "its guest on n1 is told 2147483648")
def a_guest_makes_its_volume_larger(stage: Stage) -> None:
    stage.pool(vol_1=GIB)
    stage.host(guests=sees(GIB), looked={VOLUME: 2 * GIB})


@scene("as_seen", "n1 is told that volume vol-1 has 2147483648 bytes, and it had 1073741824")
def a_node_is_told_of_a_growth_too_early(stage: Stage) -> None:
    stage.pool(vol_1=GIB)
    stage.ledger({}, told={VOLUME: GIB})
    assert not stage.said
    stage.ledger({}, told={VOLUME: 2 * GIB})


@scene("as_seen", "has 1073741824 bytes in the shared pool, and is to have 2147483648")
def a_shared_volume_stays_small(stage: Stage) -> None:
    stage.commit(shared(), shared_place(2 * GIB))
    stage.pool(vol_1=GIB)
    stage.settle()


@scene("agree", "the shared pool holds {}")
def a_shared_volume_is_missing(stage: Stage) -> None:
    stage.commit(shared(), shared_place())
    stage.settle()


@scene("orphans", "volumes are left in the shared pool")
def a_shared_volume_is_left(stage: Stage) -> None:
    stage.pool(vol_1=GIB)
    stage.empty()


# --- claimed -----------------------------------------------------------------------------------------------------------------


def claim(vm: str = VM, on: str = NODE, generation: int = 1, **more: Any) -> Made:
    opening = volume_pb2.Opening(volume=VOLUME, vm=vm, node=on if vm else "", generation=generation, **more)
    return "opening", VOLUME, opening


@scene("claimed")
def a_claim_passes_once_nobody_has_it_open(stage: Stage) -> None:
    stage.commit(volume(type="fake-shared", vm=VM), shared_place(), vm(), placement(), claim())
    stage.pool(vol_1=GIB)
    stage.host(guests=guest(volumes=(VOLUME,)))
    stage.host(guests=guest())
    stage.commit(volume(type="fake-shared", vm="i-2"), vm("i-2"), placement("i-2", OTHER), claim("i-2", OTHER, 2))
    stage.host(OTHER, guests=guest("i-2", volumes=(VOLUME,)))
    stage.settle()


@scene("claimed", "i-1 on n1 has vol-1 open, the claim is 2 of i-2 on")
def it_is_opened_without_the_claim(stage: Stage) -> None:
    stage.commit(volume(type="fake-shared", vm="i-2"), shared_place(), claim("i-2", OTHER, 2))
    stage.pool(vol_1=GIB)
    stage.host(guests=guest(volumes=(VOLUME,)))


@scene("claimed", "passed from 1 of i-1 on .* as the same")
def a_claim_passes_as_the_same(stage: Stage) -> None:
    stage.commit(claim())
    stage.commit(claim("i-2", OTHER, 1))


@scene("claimed", "went back from 2 to 1")
def a_claim_goes_back(stage: Stage) -> None:
    stage.commit(claim(generation=2))
    stage.commit(claim("", generation=1))


@scene("claimed", "the claim to vol-1 is none, and not that of")
def a_claim_is_given_to_nobody(stage: Stage) -> None:
    stage.commit(volume(type="fake-shared", vm=VM), shared_place(), vm(), placement())
    stage.settle()


@scene("claimed", "somebody is shut out still")
def who_was_shut_out_is_never_forgotten(stage: Stage) -> None:
    outcast = volume_pb2.Outcast(vm=VM, node=NODE, generation=1)
    stage.commit(volume(type="fake-shared"), shared_place(), claim("", outcasts=[outcast]))
    stage.settle()
