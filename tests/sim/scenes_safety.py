"""What must never be, checker by checker, and what may be; see stage.py."""

from __future__ import annotations

from tests.sim.cloud import Guest
from tests.sim.stage import (
    GIB,
    NODE,
    OTHER,
    PORT,
    SCENES,
    SUBNET,
    VM,
    VOLUME,
    VPC,
    Stage,
    binding,
    card,
    claim,
    claims,
    cluster_pb2,
    defined,
    facts,
    guest,
    image,
    name,
    node,
    place,
    placement,
    pool_claims,
    port,
    said,
    scene,
    session,
    subnet,
    vm,
    vni,
    volume,
    vpc,
)

__all__ = ["SCENES"]


# --- one_node, one_attachment ------------------------------------------------------------------------------------------------


@scene("one_node")
def one_after_the_other(stage: Stage) -> None:
    stage.host(guests=guest())
    stage.host()
    stage.host(OTHER, guests=guest())


@scene("one_node", "has a process on n2 and on n1")
def two_processes(stage: Stage) -> None:
    stage.host(guests=guest())
    stage.host(OTHER, guests={VM: Guest(VM, False, 1, GIB)})


@scene("one_attachment")
def attached_then_open(stage: Stage) -> None:
    stage.commit(volume(vm=VM))
    stage.host(guests=guest(volumes=[VOLUME]), volumes={VOLUME: GIB})
    stage.host(volumes={VOLUME: 2 * GIB})


@scene("one_attachment", "never attached")
def open_in_a_stranger(stage: Stage) -> None:
    stage.commit(volume(vm="i-2"))
    stage.host(guests=guest(volumes=[VOLUME]), volumes={VOLUME: GIB})


@scene("one_attachment", "open in i-. and in i-")
def open_twice(stage: Stage) -> None:
    stage.commit(volume(vm=VM))
    stage.commit(volume(vm="i-2"))
    stage.host(guests={**guest(volumes=[VOLUME]), **guest("i-2", volumes=[VOLUME])}, volumes={VOLUME: GIB})


@scene("one_attachment", "has it open")
def removed_under_a_guest(stage: Stage) -> None:
    stage.commit(volume(vm=VM))
    stage.host(guests=guest(volumes=[VOLUME]), volumes={VOLUME: GIB}, grown={})
    stage.host(guests=guest(volumes=[VOLUME]), grown={})


@scene("one_attachment", "has it open")
def changed_under_a_guest(stage: Stage) -> None:
    stage.commit(volume(vm=VM))
    stage.host(guests=guest(volumes=[VOLUME]), volumes={VOLUME: GIB}, grown={})
    stage.host(guests=guest(volumes=[VOLUME]), volumes={VOLUME: 2 * GIB}, grown={})


@scene("one_attachment")
def grown_by_its_guest(stage: Stage) -> None:
    stage.commit(volume(vm=VM))
    stage.host(guests=guest(volumes=[VOLUME]), volumes={VOLUME: GIB}, grown={})
    stage.host(guests=guest(volumes=[VOLUME]), volumes={VOLUME: 2 * GIB}, grown={VOLUME: 2 * GIB})


# --- held_once ---------------------------------------------------------------------------------------------------------------


@scene("held_once")
def a_name_and_an_address_each(stage: Stage) -> None:
    stage.commit(vm(), name("vm", "vm1", VM), vm("i-2"), name("vm", "vm2", "i-2"))
    stage.commit(binding(), claim(), binding("nic-2", "10.0.0.3", "02:00:00:00:00:02"), claim("nic-2", "10.0.0.3"))
    stage.commit(vpc(), vni(6, VPC), name("vpc", "net", VPC), subnet(), vni(7, SUBNET), name("subnet", "net", SUBNET))
    stage.host(guests=guest(cards=[card()]))
    stage.settle()


@scene("held_once")
def a_deleted_vm_gave_its_name_and_that_of_its_disk_back(stage: Stage) -> None:
    disk = volume(vm=VM, boot=True, delete_with_vm=True, name="d")
    stage.commit(vm(), name("vm", "vm1", VM), disk, name("volume", "d", VOLUME))
    stage.commit(vm(gone=True), ("name", "p/vm/vm1", None), ("name", "p/volume/d", None))
    stage.commit(vm("i-2", name="vm1"), name("vm", "vm1", "i-2"), volume("vol-2", name="d"), name("volume", "d", "vol-2"))


@scene("held_once", "name p vm web is held by vm/i-1 and by vm/i-2")
def a_name_twice(stage: Stage) -> None:
    stage.commit(vm(name="web"), vm("i-2", name="web"))


@scene("held_once", "claimed by i-2")
def a_name_claimed_for_another(stage: Stage) -> None:
    stage.commit(vm(), name("vm", "vm1", "i-2"))


@scene("held_once", "claimed by nobody")
def a_name_let_go_of_while_it_is_used(stage: Stage) -> None:
    stage.commit(vm(), name("vm", "vm1", VM))
    stage.commit(("name", "p/vm/vm1", None))


@scene("held_once", "address vxnet-1 10.0.0.2 is held by")
def an_address_twice(stage: Stage) -> None:
    stage.commit(binding(), claim())
    stage.commit(binding("nic-2", mac="02:00:00:00:00:02"))


@scene("held_once", "10.0.0.2, which is claimed by nobody")
def an_address_without_a_claim(stage: Stage) -> None:
    stage.commit(binding())


@scene("held_once", "MAC 02:00:00:00:00:01 is held by")
def a_mac_twice(stage: Stage) -> None:
    stage.commit(binding(), claim(), binding("nic-2", "10.0.0.3"), claim("nic-2", "10.0.0.3"))


@scene("held_once", "number 1 is held by")
def a_node_number_twice(stage: Stage) -> None:
    stage.commit(node(), node(OTHER))


@scene("held_once", "VNI 7, which is claimed by nobody")
def a_vni_without_a_claim(stage: Stage) -> None:
    stage.commit(subnet(), name("subnet", "net", SUBNET))


@scene("held_once", "both have address")
def two_guests_with_one_address(stage: Stage) -> None:
    stage.commit(binding(), claim())
    stage.host(guests=guest(cards=[card()]))
    stage.host(OTHER, guests=guest("i-2", cards=[card()]))


@scene("held_once", "which was given 10.0.0.3")
def a_guest_with_another_address_than_its_port(stage: Stage) -> None:
    stage.commit(binding(address="10.0.0.3"), claim(address="10.0.0.3"))
    stage.host(guests=guest(cards=[card()]))


@scene("held_once", "address vxnet-1/10.0.0.2 is claimed by nic-1, which does not have it")
def a_claim_for_nothing(stage: Stage) -> None:
    stage.commit(claim())
    stage.settle()


@scene("held_once", "VNI 00000007 is claimed")
def a_vni_for_nothing(stage: Stage) -> None:
    stage.commit(vni(7, SUBNET))
    stage.settle()


@scene("held_once", "is claimed by i-1, which is not there")
def a_name_for_nothing(stage: Stage) -> None:
    stage.commit(name("vm", "vm1", VM))
    stage.settle()


# --- held_while_used, references ---------------------------------------------------------------------------------------------


def _lives(stage: Stage) -> None:
    stage.commit(vm(), placement(), port(), binding(), claim(), subnet(), vpc(), volume(vm=VM), place(), node())
    stage.host(guests=guest(cards=[card()]), definitions=defined(), files=frozenset({VM}), volumes={VOLUME: GIB})


@scene("held_while_used")
def removed_after_the_guest_was(stage: Stage) -> None:
    _lives(stage)
    stage.host(volumes={VOLUME: GIB})
    stage.commit(placement(released=True))
    stage.host()
    stage.commit(("vm", VM, None), ("placement", VM, None), ("port", PORT, None), ("volume", VOLUME, None))
    stage.commit(("address", f"{SUBNET}/10.0.0.2", None), ("volume_placement", VOLUME, None), ("node", NODE, None))


def _gone_while_it_lives(kind: str, id: str, says: str) -> None:
    def play(stage: Stage) -> None:
        _lives(stage)
        stage.commit((kind, id, None))

    play.__name__ = f"{kind}_gone_while_the_guest_lives"
    scene("held_while_used", says)(play)


for kind, id, says in (
    ("vm", VM, "record of VM i-1 vanished"),
    ("placement", VM, "placed nowhere"),
    ("volume", VOLUME, "record of volume vol-1 vanished"),
    ("volume_placement", VOLUME, "given away"),
    ("node", NODE, "was removed with"),
    ("port", PORT, "port or subnet has no record"),
    ("subnet", SUBNET, "port or subnet has no record"),
    ("address", f"{SUBNET}/10.0.0.2", "claimed by nobody"),
):
    _gone_while_it_lives(kind, id, says)


@scene("held_while_used", "placed on n1 and was released")
def released_while_the_guest_lives(stage: Stage) -> None:
    _lives(stage)
    stage.commit(placement(released=True))


@scene("held_while_used", "placed on node-2")
def placed_elsewhere_while_the_guest_lives(stage: Stage) -> None:
    _lives(stage)
    stage.commit(placement(node=OTHER))


@scene("held_while_used", "has no record")
def made_after_its_record_was_gone(stage: Stage) -> None:
    stage.host(definitions=defined())


@scene("held_while_used", "volume vol-1 is on n1")
def a_volume_made_where_it_is_not_placed(stage: Stage) -> None:
    stage.commit(volume(), place(node=OTHER))
    stage.host(volumes={VOLUME: GIB})


@scene("references")
def all_there(stage: Stage) -> None:
    made = vm(image="img-1", root_volume=VOLUME)
    stage.commit(made, volume(vm=VM, image="img-1"), image(), vpc(), subnet(), port(), node(), placement(), place("vol-9"))
    stage.commit(("port", PORT, None))
    stage.commit(("subnet", SUBNET, None), ("vpc", VPC, None))


@scene("references")
def a_node_removed_before_the_place_of_what_was_erased(stage: Stage) -> None:
    stage.commit(node(), volume(), place())
    stage.commit(("volume", VOLUME, None))
    stage.commit(("node", NODE, None))


@scene("references", "node/node-1 was removed while volume_placement/vol-1")
def a_node_removed_under_a_volume(stage: Stage) -> None:
    stage.commit(node(), volume(), place())
    stage.commit(("node", NODE, None))


@scene("references", "volume/vol-1 refers to vm/i-1, which is not there")
def attached_to_nothing(stage: Stage) -> None:
    stage.commit(volume(vm=VM))


@scene("references", "subnet/vxnet-1 was removed while port/nic-1")
def a_subnet_removed_under_its_port(stage: Stage) -> None:
    all_there(stage)
    stage.commit(vpc(), subnet(), port())
    stage.commit(("subnet", SUBNET, None))


@scene("references", r"lists the volumes \['vol-1'\], attached to it are \['vol-1', 'vol-2'\]")
def an_attachment_only_one_side_knows(stage: Stage) -> None:
    stage.commit(image(), vm(image="img-1", root_volume=VOLUME), volume(vm=VM), volume("vol-2", vm=VM))


# --- capacity ----------------------------------------------------------------------------------------------------------------


@scene("capacity")
def claimed_as_placed(stage: Stage) -> None:
    stage.commit(node(), facts())
    stage.commit(placement(), place(), claims(cpus=1, memory_bytes=GIB, vms=1), pool_claims(GIB))
    stage.commit(placement(released=True), claims())
    stage.settle()


@scene("capacity")
def claimed_by_an_older_release(stage: Stage) -> None:
    stage.commit(node(), facts())
    stage.commit(place(), claims(disk_bytes=GIB))
    stage.commit(place("vol-2"), pool_claims(2 * GIB), claims())
    stage.settle()


@scene("capacity", "what is placed there is 0")
def a_pool_claim_kept_for_nothing(stage: Stage) -> None:
    stage.commit(node(), facts())
    stage.commit(place(), pool_claims(GIB))
    stage.commit(("volume_placement", place()[1], None))


@scene("capacity", "what is placed there is")
def placed_without_a_claim(stage: Stage) -> None:
    stage.commit(node(), facts())
    stage.commit(placement())


@scene("capacity", "what is placed there is")
def a_claim_kept_by_a_released_placement(stage: Stage) -> None:
    stage.commit(node(), facts())
    stage.commit(placement(), claims(cpus=1, memory_bytes=GIB, vms=1))
    stage.commit(placement(released=True))


@scene("capacity", "4294967296 memory_bytes are claimed, it has 3865470566")
def more_memory_than_there_is(stage: Stage) -> None:
    stage.commit(node(), facts())
    some = [placement(f"i-{number}") for number in range(4)]
    stage.commit(*some, claims(cpus=4, memory_bytes=4 * GIB, vms=4))


@scene("capacity", "bytes are claimed, it has")
def more_disk_than_there_is(stage: Stage) -> None:
    stage.commit(node(), facts())
    stage.commit(place(size=96 * GIB), pool_claims(96 * GIB))


# --- never_back, ledger_first -------------------------------------------------------------------------------------------------


@scene("never_back")
def onwards(stage: Stage) -> None:
    stage.ledger({"vm/i-1": (1, 5)}, held=(1, 5))
    stage.ledger({"vm/i-1": (1, 6)}, held=(2, 1))
    stage.commit(vm(power_generation=1), volume(size_bytes=GIB), said("vm/i-1", revision=3))
    stage.commit(vm(power_generation=2), volume(size_bytes=2 * GIB), said("vm/i-1", revision=3))


@scene("never_back", "ledger of n1 went back")
def a_ledger_forgot(stage: Stage) -> None:
    stage.ledger({}, held=(1, 5))
    stage.host(held=(1, 4))


@scene("never_back", "vm/i-1 in the ledger of n1 went back")
def a_key_went_back(stage: Stage) -> None:
    stage.ledger({"vm/i-1": (1, 5)})
    stage.ledger({})
    stage.ledger({"vm/i-1": (1, 4)})


@scene("never_back", "revision 1 came after 1")
def a_revision_twice(stage: Stage) -> None:
    stage.commit(vm(), revision=1)
    stage.commit(vm(), revision=1)


@scene("never_back", "power generation of vm/i-1 went back from 2 to 1")
def a_generation_went_back(stage: Stage) -> None:
    stage.commit(vm(power_generation=2))
    stage.commit(vm(power_generation=1))


@scene("never_back", "epoch of cluster/self went back")
def the_epoch_went_back(stage: Stage) -> None:
    stage.commit(("cluster", "self", cluster_pb2.Cluster(epoch=2)))
    stage.commit(("cluster", "self", cluster_pb2.Cluster(epoch=1)))


@scene("never_back", "version of observed/node-1/vm/i-1 went back")
def a_stale_report(stage: Stage) -> None:
    stage.commit(said("vm/i-1", revision=3))
    stage.commit(said("vm/i-1", revision=2))


@scene("never_back", "shrank")
def a_volume_shrank(stage: Stage) -> None:
    stage.host(volumes={VOLUME: 2 * GIB})
    stage.host(volumes={VOLUME: GIB})


@scene("ledger_first")
def known_before_it_was_made(stage: Stage) -> None:
    stage.ledger({"vm/i-1": (1, 1), "volume/vol-1": (1, 1), "network/rtr-1": (1, 1)})
    known = {"vm/i-1": (1, 1), "volume/vol-1": (1, 1)}
    stage.host(definitions=defined(), volumes={VOLUME: GIB}, ports={VPC: frozenset()}, ledger=known)
    stage.host(definitions=defined(), volumes={VOLUME: GIB})


@scene("ledger_first", "vm/i-1 is on n1")
def defined_before_it_was_known(stage: Stage) -> None:
    stage.host(definitions=defined())


@scene("ledger_first", "volume/vol-1 is on n1")
def a_volume_made_after_it_was_forgotten(stage: Stage) -> None:
    stage.ledger({"volume/vol-1": (1, 1)})
    stage.ledger({})
    stage.host(volumes={VOLUME: GIB})


@scene("ledger_first", "forward/rtr-1/nic-1 is on n1")
def a_way_nobody_ever_told(stage: Stage) -> None:
    stage.host(forwards={VPC: {PORT: "192.0.2.2"}})


# --- sole_writer, checked, no_secret ------------------------------------------------------------------------------------------


@scene("sole_writer")
def each_by_its_writer(stage: Stage) -> None:
    stage.commit(vm(), placement(), by={"vm/i-1": "api", "placement/i-1": "placement"})
    stage.commit(("vm", VM, None), by={"vm/i-1": "garbage"})
    stage.commit(session(), by={f"node_session/{NODE}": "sync"})
    stage.commit(("node_session", NODE, None), by={})


@scene("sole_writer", "vm/i-1 was written by placement")
def written_by_another(stage: Stage) -> None:
    stage.commit(vm(), by={"vm/i-1": "placement"})


@scene("sole_writer", "vm/i-1 was written by garbage")
def written_by_who_may_only_remove(stage: Stage) -> None:
    stage.commit(vm(), by={"vm/i-1": "garbage"})


@scene("sole_writer", "placement/i-1 was removed by garbage")
def removed_by_who_may_not(stage: Stage) -> None:
    stage.commit(placement(), by={"placement/i-1": "placement"})
    stage.commit(("placement", VM, None), by={"placement/i-1": "garbage"})


@scene("sole_writer", "vm/i-1 was removed by nobody")
def under_a_lease_that_should_not_be(stage: Stage) -> None:
    stage.commit(vm(), by={"vm/i-1": "api"})
    stage.commit(("vm", VM, None), by={})


@scene("checked")
def looked_before(stage: Stage) -> None:
    stage.commit(vm(), checked=["vm/i-1"])
    stage.commit(said("vm/i-1"), checked=[f"node_session/{NODE}"], by={f"observed/{NODE}/vm/i-1": "sync"})
    stage.commit(("vm", VM, None), checked=[])


@scene("checked", "placement/i-1 was overwritten without looking")
def overwritten_blindly(stage: Stage) -> None:
    stage.commit(placement(), checked=["placement/i-1"])
    stage.commit(placement(node=OTHER), checked=["vm/i-1"])


@scene("checked", "vm/i-1 was made without looking")
def made_blindly(stage: Stage) -> None:
    stage.commit(vm(), checked=[])


@scene("checked", "did not look whether it still speaks")
def a_report_of_a_stream_that_is_over(stage: Stage) -> None:
    stage.commit(said("vm/i-1"), checked=[], by={f"observed/{NODE}/vm/i-1": "sync"})
