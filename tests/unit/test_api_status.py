"""Projections, and the table that says which objects a changed record shows in."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cairn.controller.api import nouns
from cairn.controller.api.dependents import affected
from cairn.controller.api.vm_status import runs
from cairn.controller.store.base import Txn, View
from cairn.controller.store.view import LiveView
from cairn.proto import kinds
from cairn.proto.capabilities import of_agent
from cairn.proto.owners import set_owner
from cairn.proto.seams import timestamp
from cairn.proto.v1.agent_pb2 import ImageReport, Observed, PortReport, Report, VmReport, VolumeReport
from cairn.proto.v1.image_pb2 import Image, ImageContent
from cairn.proto.v1.job_pb2 import Job, JobStatus
from cairn.proto.v1.node_pb2 import Assignment, Node, NodeFacts, NodeSession, NodeStatus
from cairn.proto.v1.port_pb2 import AddressClaim, Port, PortBinding
from cairn.proto.v1.project_pb2 import Project
from cairn.proto.v1.subnet_pb2 import Subnet
from cairn.proto.v1.vm_pb2 import POWER_STATE_RUNNING, POWER_STATE_STOPPED, NodeClaims, Placement, Vm, VmStatus
from cairn.proto.v1.volume_pb2 import PoolClaims, Purge, Volume, VolumePlacement, VolumeStatus
from cairn.proto.v1.vpc_pb2 import Vpc

VM, NODE, NODE2, IMAGE, ROOT, DATA = (
    "i-00000001",
    "node-00000001",
    "node-00000002",
    "img-00000001",
    "vol-00000001",
    "vol-00000002",
)
NET = "vol-00000003"
PORT, SUBNET, VPC = "nic-00000001", "vxnet-00000001", "rtr-00000001"
NOW = datetime(2026, 1, 2, 3, 4, tzinfo=UTC)


def records() -> dict[tuple[kinds.Kind[Any], str], Any]:
    """A running VM on one of two nodes, and everything around it."""
    vm = Vm(id=VM, name="web", project="p")
    vm.spec.image, vm.spec.root_volume = IMAGE, ROOT
    vm.spec.power_state, vm.spec.power_generation = POWER_STATE_RUNNING, 1
    vm.spec.nics.add(subnet=SUBNET, port=PORT)
    root, data, net = Volume(id=ROOT, name="web-root"), Volume(id=DATA, name="data"), Volume(id=NET, name="net")
    net.spec.size_bytes, net.spec.type = 1 << 30, "net"
    root.spec.vm = data.spec.vm = VM
    root.spec.size_bytes = data.spec.size_bytes = 1 << 30
    root.spec.image = IMAGE
    port = Port(id=PORT, name=PORT)
    port.spec.vpc, port.spec.subnet = VPC, SUBNET
    set_owner(port, "vm", VM)
    subnet, vpc, image, job = (
        Subnet(id=SUBNET, name="blue"),
        Vpc(id=VPC, name="home"),
        Image(id=IMAGE, name="demo"),
        Job(id="j-00000001"),
    )
    subnet.spec.vpc, subnet.spec.cidr, vpc.spec.cidr = VPC, "10.1.1.0/24", "10.1.0.0/16"
    image.spec.size_bytes, job.spec.target = 100, IMAGE
    placement = Placement(vm=VM, node=NODE)
    placement.decision.say = "on n1, the only node"
    facts = NodeFacts(memory_bytes=1 << 30)
    return {
        (kinds.PROJECT, "p"): Project(id="p", name="default"),
        (kinds.VM, VM): vm,
        (kinds.VOLUME, ROOT): root,
        (kinds.VOLUME, DATA): data,
        (kinds.VOLUME, NET): net,
        (kinds.PORT, PORT): port,
        (kinds.SUBNET, SUBNET): subnet,
        (kinds.VPC, VPC): vpc,
        (kinds.IMAGE, IMAGE): image,
        (kinds.JOB, job.id): job,
        (kinds.JOB_STATE, job.id): JobStatus(done=True),
        (kinds.NODE, NODE): Node(id=NODE, name="n1"),
        (kinds.NODE, NODE2): Node(id=NODE2, name="n2"),
        (kinds.NODE_FACTS, NODE): facts,
        (kinds.NODE_SESSION, NODE): NodeSession(node=NODE, capabilities=of_agent(["local"])),
        (kinds.NODE_CLAIMS, NODE): NodeClaims(node=NODE, vms=1),
        (kinds.POOL_CLAIMS, f"local/{NODE}"): PoolClaims(pool=f"local/{NODE}", disk_bytes=1 << 30),
        (kinds.PLACEMENT, VM): placement,
        (kinds.VOLUME_PLACEMENT, ROOT): VolumePlacement(volume=ROOT, node=NODE),
        (kinds.VOLUME_PLACEMENT, DATA): VolumePlacement(volume=DATA, node=NODE),
        (kinds.VOLUME_PLACEMENT, NET): VolumePlacement(volume=NET, pool="net/tank"),
        (kinds.ASSIGNMENT, f"volume/{NET}"): Assignment(kind="volume", id=NET, node=NODE2, generation=1),
        (kinds.PORT_BINDING, PORT): PortBinding(port=PORT, subnet=SUBNET, vpc=VPC, address="10.1.1.2"),
        (kinds.ADDRESS, f"{SUBNET}/10.1.1.2"): AddressClaim(subnet=SUBNET, address="10.1.1.2", port=PORT),
        (kinds.IMAGE_CONTENT, IMAGE): ImageContent(image=IMAGE, virtual_size_bytes=1 << 20, nodes=[NODE]),
        **seen(NODE, f"vm/{VM}", vm=VmReport(**RUNS)),
        **seen(NODE, f"volume/{ROOT}", volume=VolumeReport(state=VolumeReport.STATE_READY, size_bytes=1 << 30)),
        **seen(NODE, f"volume/{DATA}", volume=VolumeReport(state=VolumeReport.STATE_READY, size_bytes=1 << 30)),
        **seen(NODE2, f"volume/{NET}", volume=VolumeReport(state=VolumeReport.STATE_CREATING, say="being made")),
        **seen(NODE, f"port/{PORT}", port=PortReport(state=PortReport.STATE_ACTIVE)),
        **seen(NODE, f"image/{IMAGE}", image=ImageReport(state=ImageReport.STATE_READY)),
    }


RUNS: dict[str, Any] = {
    "state": VmReport.STATE_RUNNING, "power_generation": 1, "spec_revision": 9, "open_volumes": [ROOT, DATA],
}  # fmt: skip


def seen(node: str, key: str, **report: Any) -> dict[tuple[kinds.Kind[Any], str], Any]:
    return {(kinds.OBSERVED, f"{node}/{key}"): Observed(node=node, key=key, report=Report(key=key, **report))}


def picture(changes: dict[tuple[kinds.Kind[Any], str], Any] | None = None) -> LiveView:
    """The records with some replaced, or taken out where the change is None; all at revision 5."""
    view = LiveView()
    for (kind, id), message in {**records(), **(changes or {})}.items():
        if message is not None:
            view.table(kind).put(id, message.SerializeToString(), 5, 5)
    view.advance(5)
    return view


def shown(view: View) -> dict[tuple[str, str], Any]:
    """Every projected object."""
    return {
        (noun.kind.name, id): projected
        for noun in nouns.ALL
        for id in list(view.ids(noun.kind))
        if (projected := noun.of(view, id)) is not None
    }


def vm_in(changes: dict[tuple[kinds.Kind[Any], str], Any]) -> Vm:
    found = nouns.VM.of(picture(changes), VM)
    assert found is not None
    return found


def vm_reported(**report: Any) -> dict[tuple[kinds.Kind[Any], str], Any]:
    return seen(NODE, f"vm/{VM}", vm=VmReport(**{"power_generation": 1, "spec_revision": 5} | report))


# What is in the picture once, and what may come and go.
EXTRA: dict[tuple[kinds.Kind[Any], str], Any] = {
    (kinds.PURGE, VM): Purge(id=VM),
    (kinds.PURGE, DATA): Purge(id=DATA),
    (kinds.NODE_SESSION, NODE2): NodeSession(node=NODE2),
    (kinds.NODE_FACTS, NODE2): NodeFacts(memory_bytes=1),
    **seen(NODE2, f"image/{IMAGE}", image=ImageReport(state=ImageReport.STATE_READY)),
}


@pytest.mark.parametrize("change", [*records(), *EXTRA], ids=lambda change: f"{change[0].name}-{change[1]}")
def test_every_object_a_record_shows_in_is_in_the_table(change: tuple[kinds.Kind[Any], str]) -> None:
    """Take a record away, put it back: whatever looks different must have been named. Also while being deleted."""
    deleted = records()[kinds.VM, VM]
    deleted.delete_time.CopyFrom(timestamp(NOW))
    deleted.purge_time.CopyFrom(timestamp(NOW))
    lost = records()[kinds.VOLUME, DATA]
    lost.delete_time.CopyFrom(timestamp(NOW))
    both = {(kinds.VM, VM): deleted, (kinds.VOLUME, DATA): lost}
    mute = {(kinds.NODE_FACTS, NODE): silent()}
    for base in ({}, both, {(kinds.VM, VM): deleted}, vm_reported(state=VmReport.STATE_PREPARING), mute):
        full = picture({**EXTRA, **base})
        kind, id = change
        without = full.fork(Txn("test", deletes={kind.key(id)}))
        before, after = shown(full), shown(without)
        differ = {key for key in before.keys() | after.keys() if before.get(key) != after.get(key)}
        assert differ <= set(affected(without, kind, id)), "taken away"
        assert differ <= set(affected(full, kind, id)), "put back"


NAMED = [key for key, record in records().items() if getattr(record, "name", "") and key[0] is not kinds.JOB]


@pytest.mark.parametrize("change", NAMED, ids=lambda change: f"{change[0].name}-{change[1]}")
def test_every_object_a_name_shows_in_is_in_the_table(change: tuple[kinds.Kind[Any], str]) -> None:
    """Whoever is renamed looks different, and so does whoever shows its name."""
    full, (kind, id) = picture(EXTRA), change
    renamed: Any = kind.message()
    renamed.CopyFrom(full.get(kind, id))
    renamed.name = "another"
    before, after = shown(full), shown(full.fork(Txn("api").put(kind, id, renamed)))
    differ = {key for key in before.keys() | after.keys() if before.get(key) != after.get(key)}
    assert (kind.name, id) in differ
    assert differ <= set(affected(full, kind, id))


def test_a_running_vm() -> None:
    vm = vm_in(vm_reported(state=VmReport.STATE_RUNNING))
    assert (vm.status.state, vm.status.say, vm.status.node) == (VmStatus.STATE_RUNNING, "running on n1", "n1")
    assert vm.status.nics[0].address == "10.1.1.2"
    assert vm.status.image_name == "demo"
    assert (vm.revision, vm.etag, vm.reconciling) == (5, "5", False)


def stopped() -> Vm:
    vm: Vm = records()[kinds.VM, VM]
    vm.spec.power_state = POWER_STATE_STOPPED
    return vm


def started_again() -> Vm:
    vm: Vm = records()[kinds.VM, VM]
    vm.spec.power_generation = 2
    return vm


def silent() -> NodeFacts:
    facts: NodeFacts = records()[kinds.NODE_FACTS, NODE]
    facts.hypervisor.silent = "no such socket"
    return facts


FETCHING = seen(NODE, f"image/{IMAGE}", image=ImageReport(state=ImageReport.STATE_FETCHING, held_bytes=45))
UNPLACED = Placement(vm=VM)
UNPLACED.decision.say = "no node fits: ask for less"
STATES: list[tuple[dict[tuple[kinds.Kind[Any], str], Any], Any, str]] = [
    ({(kinds.PLACEMENT, VM): None}, VmStatus.STATE_PENDING, "waits to be placed"),
    ({(kinds.PLACEMENT, VM): UNPLACED}, VmStatus.STATE_PENDING, "no node fits: ask for less"),
    (
        {(kinds.PLACEMENT, VM): None, (kinds.PORT_BINDING, PORT): PortBinding(port=PORT, error="no address left")},
        VmStatus.STATE_PENDING,
        "has no address: no address left",
    ),
    ({(kinds.OBSERVED, f"{NODE}/vm/{VM}"): None}, VmStatus.STATE_STARTING, "waits for n1 to take it up"),
    (
        {(kinds.OBSERVED, f"{NODE}/vm/{VM}"): None, **FETCHING},
        VmStatus.STATE_STARTING,
        "n1 is fetching image demo (45 %)",
    ),
    (vm_reported(state=VmReport.STATE_PREPARING, say="making the disk"), VmStatus.STATE_STARTING, "n1: making the disk"),
    ({**vm_reported(state=VmReport.STATE_PREPARING), **FETCHING}, VmStatus.STATE_STARTING, "n1 is fetching image demo (45 %)"),
    (
        vm_reported(state=VmReport.STATE_STOPPED, exit=VmReport.EXIT_GUEST),
        VmStatus.STATE_STOPPED,
        "the guest shut itself down; `cairn vm start web` runs it again",
    ),
    (
        {**vm_reported(state=VmReport.STATE_STOPPED, exit=VmReport.EXIT_GUEST), (kinds.VM, VM): started_again()},
        VmStatus.STATE_STARTING,
        "n1 was asked to start it",
    ),
    (
        {**vm_reported(state=VmReport.STATE_STOPPED, exit=VmReport.EXIT_STOPPED), (kinds.VM, VM): stopped()},
        VmStatus.STATE_STOPPED,
        "stopped; `cairn vm start web` runs it",
    ),
    (
        {**vm_reported(state=VmReport.STATE_RUNNING), (kinds.VM, VM): stopped()},
        VmStatus.STATE_STOPPING,
        "the guest is asked to shut down",
    ),
    (vm_reported(state=VmReport.STATE_FAILED, error="disk full"), VmStatus.STATE_FAILED, "n1: disk full"),
    (
        {(kinds.OBSERVED, f"{NODE}/vm/{VM}"): None, (kinds.NODE_FACTS, NODE): silent()},
        VmStatus.STATE_STARTING,
        "waits for n1 to take it up; the hypervisor of n1 does not answer: `cairn node show n1`",
    ),
    (
        {(kinds.NODE_SESSION, NODE): None, (kinds.NODE_FACTS, NODE): silent()},
        VmStatus.STATE_UNKNOWN,
        "node n1 does not answer; the guest may be running",
    ),
    (
        {(kinds.NODE_SESSION, NODE): None},
        VmStatus.STATE_UNKNOWN,
        "node n1 does not answer; the guest may be running",
    ),
]


@pytest.mark.parametrize(("changes", "state", "say"), STATES, ids=[say[:40] for _, _, say in STATES])
def test_what_a_vm_says(changes: dict[tuple[kinds.Kind[Any], str], Any], state: Any, say: str) -> None:
    status = vm_in(changes).status
    assert (status.state, status.say) == (state, say)
    view = picture(changes)
    vm = view.get(kinds.VM, VM)
    assert vm is not None
    assert vm.HasField("delete_time") or runs(view, vm) == (state == VmStatus.STATE_RUNNING), "counted as it is shown"


def test_a_deleted_vm_tells_how_to_get_it_back_then_that_it_goes() -> None:
    vm = records()[kinds.VM, VM]
    vm.delete_time.CopyFrom(timestamp(NOW))
    vm.purge_time.CopyFrom(timestamp(NOW + timedelta(hours=2)))
    gone = {(kinds.VM, VM): vm}
    assert vm_in(gone).status.say == "being removed from n1"
    absent = {**gone, **vm_reported(state=VmReport.STATE_ABSENT)}
    status = vm_in(absent).status
    assert status.state == VmStatus.STATE_DELETED
    assert status.say == f"deleted; `cairn vm undelete {VM}` brings it back until 2026-01-02 05:04 UTC"
    purged = Vm()
    purged.CopyFrom(vm)
    purged.purge_time.CopyFrom(vm.delete_time)
    assert vm_in({**absent, (kinds.VM, VM): purged}).status.say == "deleted for good; its disks are about to be erased"
    status = vm_in({**absent, (kinds.PURGE, VM): Purge(id=VM)}).status
    assert (status.state, status.say) == (VmStatus.STATE_DELETING, "its disks are being erased")


def test_the_others_say_what_they_are() -> None:
    view = picture(EXTRA)
    said = {key[0]: projected.status.say for key, projected in shown(view).items() if key[0] != "event" and key[1] != NET}
    assert shown(view)["volume", NET].status.say == "the agent of n2 does not know volume:net: upgrade it"
    assert said["subnet"] == "252 of 253 addresses free"
    assert said["volume"] == "attached to web on n1"
    assert said["port"] == "active on n1"
    assert said["image"] == "ready on n1, n2"
    node = nouns.NODE.of(view, NODE)
    assert node is not None
    assert (node.status.say, node.status.state) == ("ready, 1 VM", NodeStatus.STATE_READY)
    mute = nouns.NODE.of(picture({(kinds.NODE_FACTS, NODE): silent()}), NODE)
    assert mute is not None
    assert mute.status.say.startswith("ready, 1 VM; its hypervisor does not answer: it takes no new VMs,")
    assert mute.status.say.endswith(": no such socket")
    assert [each.reason for each in mute.status.conditions if not each.status] == ["HypervisorSilent"]
    down = nouns.NODE.of(picture({(kinds.NODE_SESSION, NODE): None}), NODE)
    assert down is not None
    assert down.status.state == NodeStatus.STATE_DOWN
    volume = nouns.VOLUME.of(picture({(kinds.VOLUME_PLACEMENT, DATA): None}), DATA)
    assert volume is not None
    assert (volume.status.state, volume.status.say) == (VolumeStatus.STATE_PENDING, "waits for VM web to be placed")
