"""Two nodes, each with a VM, of which the records or the hosts say something else; see stage.py."""

from __future__ import annotations

from typing import Any

from cairn.proto.v1.agent_pb2 import ImageReport, PortReport, VmReport, VolumeReport
from cairn.proto.v1.node_pb2 import NodeFacts, NodeSession
from cairn.proto.v1.vm_pb2 import Nic
from cairn.proto.v1.volume_pb2 import Purge

from tests.sim.stage import (
    DIGEST,
    GIB,
    IMAGE,
    NODE,
    OTHER,
    SCENES,
    SUBNET,
    VM,
    VPC,
    Stage,
    binding,
    card,
    claim,
    content,
    defined,
    facts,
    guest,
    image,
    node,
    place,
    placement,
    port,
    said,
    scene,
    session,
    subnet,
    vm,
    volume,
    vpc,
)

__all__ = ["SCENES"]


NAMES = {"vm1": frozenset({"10.0.0.2"}), "vm2": frozenset({"10.0.0.3"})}


def _two_nodes(stage: Stage) -> None:
    """A VM on each of two nodes, in one subnet; all records of it."""
    stage.commit(image(), content(), vpc(), subnet())
    for number, at in ((1, NODE), (2, OTHER)):
        id, disk, nic, address, mac = (
            f"i-{number}",
            f"vol-{number}",
            f"nic-{number}",
            f"10.0.0.{number + 1}",
            f"02:00:00:00:00:0{number}",
        )
        stage.commit(node(at, number), facts(at), session(at), placement(id, at), place(disk, at))
        stage.commit(
            vm(id, image=IMAGE, root_volume=disk, nics=[Nic(subnet=SUBNET, port=nic)]), volume(disk, vm=id, image=IMAGE)
        )
        stage.commit(port(nic, id), binding(nic, address, mac), claim(nic, address))
        stage.commit(
            said(f"vm/{id}", at, vm=VmReport(state=VmReport.STATE_RUNNING)),
            said(f"volume/{disk}", at, volume=VolumeReport(state=VolumeReport.STATE_READY, size_bytes=GIB)),
            said(f"image/{IMAGE}", at, image=ImageReport(state=ImageReport.STATE_READY)),
            said(f"port/{nic}", at, port=PortReport(state=PortReport.STATE_ACTIVE)),
        )


def _host(number: int, at: str, **other: Any) -> dict[str, Any]:
    id, disk, nic = f"i-{number}", f"vol-{number}", f"nic-{number}"
    there = {"n": 3 - number, "vtep": f"vtep-{OTHER if at == NODE else NODE}"}
    return {
        "node": at,
        "guests": guest(id, [card(nic, f"10.0.0.{number + 1}", f"02:00:00:00:00:0{number}")], [disk]),
        "definitions": defined(id, disk),
        "files": frozenset({id}),
        "volumes": {disk: GIB},
        "images": frozenset({DIGEST}),
        "ports": {VPC: frozenset({nic})},
        "forwards": {VPC: {f"nic-{there['n']}": there["vtep"]}},
        "subnets": {VPC: frozenset({SUBNET})},
        "peers": {VPC: frozenset({there["vtep"]})},
        "names": lambda: {VPC: dict(NAMES)},
        **other,
    }


@scene("agree")
def as_recorded(stage: Stage) -> None:
    _two_nodes(stage)
    stage.host(**_host(1, NODE))
    stage.host(**_host(2, OTHER))
    stage.settle()


def _disagrees(what: str, says: str, *records: Any, **other: Any) -> None:
    def play(stage: Stage) -> None:
        _two_nodes(stage)
        stage.commit(*records)
        stage.host(**_host(1, NODE, **other))
        stage.host(**_host(2, OTHER))
        stage.settle()

    play.__name__ = what
    scene("agree", says)(play)


_disagrees("a_volume_missing", r"volumes on n1: missing \['vol-1'\]", volumes={})
_disagrees("a_volume_too_many", r"volumes on n1: missing \[\], too many \['vol-9'\]", volumes={"vol-1": GIB, "vol-9": GIB})
_disagrees("a_volume_too_large", "has 2147483648 bytes, not 1073741824", volumes={"vol-1": 2 * GIB})
_disagrees("a_volume_too_small", "has 5 bytes", guests={}, volumes={"vol-1": 5})
_disagrees("an_image_missing", "images .* are not on n1", images=frozenset())
_disagrees("an_image_too_many", "images nobody needs are on n1", images=frozenset({DIGEST, "sha256:2"}))
_disagrees("a_guest_undefined", r"guests on n1: missing \['i-1'\]", definitions={}, guests={})
_disagrees("a_guest_defined_otherwise", "is defined on n1 with", definitions=defined(VM))
_disagrees("files_left", r"guests' files on n1: missing \[\], too many \['i-9'\]", files=frozenset({VM, "i-9"}))
_disagrees("a_port_unbound", r"ports of rtr-1 on n1: missing \['nic-1'\]", ports={VPC: frozenset()})
_disagrees("a_way_missing", "n1 knows the ways {} in rtr-1", forwards={VPC: {}})
_disagrees("a_way_to_nowhere", "n1 knows the ways", forwards={VPC: {"nic-2": "elsewhere"}})
_disagrees("a_peer_missing", "peers in rtr-1 on n1", peers={VPC: frozenset()})
_disagrees("a_name_missing", "n1 tells guests the names", names=lambda: {VPC: {"vm1": NAMES["vm1"]}})
_disagrees("a_name_of_one_gone", "n1 tells guests the names", names=lambda: {VPC: {**NAMES, "old": frozenset({"10.0.0.9"})}})
_disagrees("a_name_elsewhere", "n1 tells guests the names", names=lambda: {VPC: {**NAMES, "vm2": frozenset({"10.0.0.9"})}})
_disagrees("names_of_a_network_gone", "in rtr-9, n1 tells", names=lambda: {VPC: NAMES, "rtr-9": NAMES})
_disagrees("a_subnet_missing", "subnets of rtr-1 on n1", subnets={VPC: frozenset()})
_disagrees("a_network_missing", "networks on n1", ports={}, forwards={}, subnets={}, peers={})
_disagrees("rules_flushed", "rules of rtr-1 on n1 are damaged", damaged=frozenset({VPC}))
_disagrees("still_erasing", "i-1 is still being erased", ("purge", VM, Purge(id=VM)))
_disagrees("a_place_left", "record placement/i-9 is left of a vm that is gone", placement("i-9"))
_disagrees("not_connected", "n1 is not connected", ("node_session", NODE, None))
_disagrees("not_known", "n1 has not said what it is", ("node_facts", NODE, NodeFacts()))
_disagrees("a_report_missing", r"reports on n1: missing \['vm/i-1'\]", ("observed", f"{NODE}/vm/i-1", None))
_disagrees("a_report_left", r"reports on n1: missing \[\], too many \['vm/i-9'\]", said("vm/i-9", vm=VmReport()))
_disagrees("a_guest_said_off", "says STATE_STOPPED of i-1", said("vm/i-1", vm=VmReport(state=VmReport.STATE_STOPPED)))
_disagrees("a_guest_said_gone", "says STATE_ABSENT of i-1", said("vm/i-1", vm=VmReport(state=VmReport.STATE_ABSENT)))
_disagrees(
    "a_volume_said_otherwise", "of volume vol-1", said("volume/vol-1", volume=VolumeReport(state=VolumeReport.STATE_READY))
)
_disagrees("an_image_said_coming", "of image img-1", said("image/img-1", image=ImageReport(state=ImageReport.STATE_FETCHING)))
_disagrees(
    "a_port_said_idle", "says STATE_READY of port nic-1", said("port/nic-1", port=PortReport(state=PortReport.STATE_READY))
)


@scene("never_back", "node_session/node-1 was taken back by who had been superseded")
def a_stream_that_is_over_takes_its_node_back(stage: Stage) -> None:
    for controller in ("c1", "c2", "c1"):
        stage.commit(("node_session", NODE, NodeSession(node=NODE, controller=controller)))


@scene("never_back", "node_session/node-1 was taken back by who had been superseded")
def a_stream_that_is_over_takes_its_node_back_when_the_other_has_run_out(stage: Stage) -> None:
    for controller in ("c1", "", "c2", "", "c1"):
        stage.commit(("node_session", NODE, NodeSession(node=NODE, controller=controller) if controller else None))


@scene("never_back")
def a_stream_that_ended_and_one_that_begins(stage: Stage) -> None:
    for again in (NodeSession(node=NODE, boot_id="1"), None, NodeSession(node=NODE, boot_id="1"), NodeSession(node=NODE)):
        stage.commit(("node_session", NODE, again))


@scene("checked", "node_session/node-1 was overwritten without looking")
def a_session_written_blindly(stage: Stage) -> None:
    stage.commit(session(), checked=[f"node_session/{NODE}"])
    stage.commit(("node_session", NODE, NodeSession(node=NODE, controller="c2")), checked=[])
