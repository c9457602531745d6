"""What nodes must hold: the rules, and that following changes gives the same as computing everything."""

from __future__ import annotations

from datetime import timedelta

from cairn.agent.sync import unpacked
from cairn.controller.api import nouns
from cairn.controller.hearers import Hearers
from cairn.controller.nodespec import desired, node_objects
from cairn.controller.outbox import Outbox
from cairn.controller.presence import Presence
from cairn.controller.reconcilers.assignments import Assignments
from cairn.controller.reconcilers.garbage import Garbage
from cairn.controller.reconcilers.openings import Openings
from cairn.controller.reconcilers.placement import Placements
from cairn.controller.reconcilers.ports import Ports
from cairn.controller.store.base import Txn, View
from cairn.proto import kinds
from cairn.proto.capabilities import OF_THIS_RELEASE, desired_kind
from cairn.proto.seams import timestamp
from cairn.proto.v1.agent_pb2 import (
    Desired,
    DesiredImage,
    ImageReport,
    Unknown,
    Version,
    VmReport,
    VolumeReport,
)
from cairn.proto.v1.cluster_pb2 import Cluster
from cairn.proto.v1.image_pb2 import ImageContent
from cairn.proto.v1.project_pb2 import Project
from cairn.proto.v1.volume_pb2 import Purge
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tests.unit.cloud_kit import GIB, MIB, Cloud

RECONCILERS = (Ports(), Placements(), Garbage(), Assignments(), Openings())


def objects(cloud: Cloud, node: str) -> dict[str, Desired]:
    return node_objects(cloud.view, Presence(cloud.view), node)


def two_vms() -> tuple[Cloud, list[str], list[str]]:
    """Two VMs of one VPC on two nodes."""
    cloud = Cloud()
    nodes = [cloud.node("n1"), cloud.node("n2")]
    image = cloud.image("demo")
    subnet = cloud.subnet("blue", cloud.vpc("v"))
    vms = [cloud.vm(f"vm{i}", image=image, subnet=subnet, node=nodes[i]) for i in range(2)]
    cloud.settle([Ports(), Placements()])
    return cloud, nodes, vms


def test_a_node_is_told_what_concerns_it_and_no_more() -> None:
    cloud, nodes, vms = two_vms()
    held = objects(cloud, nodes[0])
    assert sorted(held) == [
        "forward/rtr-0000000v/nic-00000vm1",
        "image/img-0000demo",
        "network/rtr-0000000v",
        f"peer/rtr-0000000v/{nodes[1]}",
        "port/nic-00000vm0",
        f"vm/{vms[0]}",
        "volume/vol-00000vm0",
    ]
    cloud.node("n3")
    assert objects(cloud, "node-000000n3") == {}


def test_contents() -> None:
    cloud, nodes, vms = two_vms()
    held = objects(cloud, nodes[0])
    network = held["network/rtr-0000000v"].network
    assert (network.transit_vni, network.vtep, network.mtu, network.cidr) == (5000, "192.0.2.1", 1450, "10.1.0.0/16")
    assert (network.transit_address, network.router_mac) == ("169.254.0.1", "02:00:5e:10:00:01")
    peer = held[f"peer/rtr-0000000v/{nodes[1]}"].peer
    assert (peer.node, peer.vtep, peer.transit_address) == (nodes[1], "192.0.2.2", "169.254.0.2")
    assert peer.router_mac == objects(cloud, nodes[1])["network/rtr-0000000v"].network.router_mac
    assert [(subnet.vni, subnet.gateway) for subnet in network.subnets] == [(5001, "10.1.1.1")]
    forward = held["forward/rtr-0000000v/nic-00000vm1"].forward
    assert (forward.address, forward.vtep, forward.transit_address) == ("10.1.1.3", "192.0.2.2", "169.254.0.2")
    port = held["port/nic-00000vm0"].port
    assert (port.address, port.tap, port.vm, port.hostname) == ("10.1.1.2", "tap-00000vm0", vms[0], "vm0")
    vm = held[f"vm/{vms[0]}"].vm
    assert (vm.cpus, vm.memory_bytes, vm.arch, vm.hostname) == (1, 512 * MIB, "x86_64", "vm0")
    assert vm.spec_revision == cloud.view.revision_of(kinds.VM, vms[0])
    assert [(disk.volume, disk.boot) for disk in vm.disks] == [("vol-00000vm0", True)]
    nic = vm.nics[0]
    assert (nic.tap, nic.address, nic.prefix_length, nic.gateway, nic.mtu) == ("tap-00000vm0", "10.1.1.2", 24, "10.1.1.1", 1450)
    volume = held["volume/vol-00000vm0"].volume
    assert (volume.size_bytes, volume.type, volume.image, volume.absent) == (1 << 30, "local", "img-0000demo", False)


def test_an_old_agent_is_sent_only_what_it_knows_and_its_users_are_told() -> None:
    """An agent of the release before capabilities, and one that knows no volumes, at a controller of this release."""
    cloud = Cloud()
    node = cloud.node("n1", shared={"tank": GIB << 10})
    plain, shared = cloud.vm("plain"), cloud.vm("shared", type="net")
    cloud.settle([Placements(), Openings()])
    assert {f"vm/{plain}", f"vm/{shared}", "volume/vol-000plain"} <= objects(cloud, node).keys()
    assert objects(cloud, node)[f"vm/{shared}"].vm.disks[0].pool == "net/tank"
    cloud.connect(node, knows=[])
    assert sorted(objects(cloud, node)) == [f"vm/{plain}", "volume/vol-000plain"]
    said = nouns.VM.of(cloud.view, shared)
    assert said is not None
    assert said.status.say == "the agent of n1 does not know volume:net: upgrade it; until then it is left as it is"
    cloud.connect(node, knows=[desired_kind("vm")])
    assert sorted(objects(cloud, node)) == [], "each of its disks must be known, too"
    volume = nouns.VOLUME.of(cloud.view, "vol-000plain")
    assert volume is not None
    assert volume.status.say == "waits: the agent of n1 does not know volume:local: upgrade it"


def test_a_vm_waits_for_its_address() -> None:
    cloud = Cloud()
    node = cloud.node("n1")
    vm = cloud.vm("web", subnet=cloud.subnet("blue", cloud.vpc("v")))
    cloud.settle([Placements()])
    assert sorted(objects(cloud, node)) == ["volume/vol-00000web"]
    cloud.settle([Ports()])
    assert f"vm/{vm}" in objects(cloud, node)


def test_a_deleted_vm_is_sent_as_absent_and_keeps_its_network_until_it_is_gone() -> None:
    cloud, nodes, vms = two_vms()
    cloud.delete_vm(vms[0])
    held = objects(cloud, nodes[0])
    assert held[f"vm/{vms[0]}"].vm.absent
    assert "port/nic-00000vm0" in held
    assert not held["volume/vol-00000vm0"].volume.absent
    cloud.report(nodes[0], f"vm/{vms[0]}", state=VmReport.STATE_ABSENT)
    held = objects(cloud, nodes[0])
    assert sorted(held) == ["image/img-0000demo", f"vm/{vms[0]}", "volume/vol-00000vm0"]
    assert "forward/rtr-0000000v/nic-00000vm0" not in objects(cloud, nodes[1])


def test_a_vm_brought_back_and_not_placed_again_is_absent_in_the_life_before() -> None:
    cloud, nodes, vms = two_vms()
    cloud.delete_vm(vms[0])
    assert objects(cloud, nodes[0])[f"vm/{vms[0]}"].vm.power_generation == cloud.edit(kinds.VM, vms[0]).spec.power_generation
    cloud.report(nodes[0], f"vm/{vms[0]}", state=VmReport.STATE_ABSENT)
    cloud.settle([Placements()])
    cloud.undelete_vm(vms[0])
    sent = objects(cloud, nodes[0])[f"vm/{vms[0]}"].vm
    assert (sent.absent, sent.power_generation) == (True, 0)


def test_a_purged_disk_is_sent_as_absent_and_its_image_is_not_needed() -> None:
    cloud, nodes, vms = two_vms()
    cloud.delete_vm(vms[0], purge=True)
    cloud.settle([Garbage()])
    held = objects(cloud, nodes[0])
    assert held["volume/vol-00000vm0"].volume.absent
    assert "image/img-0000demo" not in held


def test_of_what_was_purged_a_node_that_has_none_of_it_makes_none() -> None:
    """Its node had erased it, before a restore, and was told to make it anew until the word that it be erased was written."""
    cloud, nodes, vms = two_vms()
    cloud.delete_vm(vms[0])
    assert "volume/vol-00000vm0" in objects(cloud, nodes[0]), "it may be brought back"
    cloud.delete_vm(vms[0], purge=True)
    kept: set[str] = set()
    assert "volume/vol-00000vm0" not in node_objects(cloud.view, Presence(cloud.view), nodes[0], kept)
    assert "volume/vol-00000vm0" in kept


def test_a_copy_too_many_goes_only_once_a_keeper_has_one() -> None:
    """Keepers change; by the records of a backup they may be nodes that have left since, and this copy the last."""
    cloud, _, _ = two_vms()
    keeper, more = cloud.node("n3"), cloud.node("n4")
    cloud.put(kinds.IMAGE_CONTENT, "img-0000demo", ImageContent(image="img-0000demo", nodes=[keeper]))
    cluster = Cluster(epoch=2)
    cluster.restored.revision = cloud.view.revision
    cloud.put(kinds.CLUSTER, "self", cluster)
    told = Unknown(key="image/img-0000demo", node=more, desired=Desired(image=DesiredImage(id="img-0000demo")))
    cloud.put(kinds.UNKNOWN, f"{more}/image/img-0000demo", told)
    assert "image/img-0000demo" not in objects(cloud, more)
    cloud.report(keeper, "image/img-0000demo", state=ImageReport.STATE_READY)
    assert objects(cloud, more)["image/img-0000demo"].image.absent


def test_images_are_pulled_from_who_has_them() -> None:
    cloud, nodes, _ = two_vms()
    third = cloud.node("n3")
    cloud.put(kinds.IMAGE_CONTENT, "img-0000demo", ImageContent(image="img-0000demo", nodes=[third]))
    assert not objects(cloud, third)["image/img-0000demo"].image.sources
    cloud.report(third, "image/img-0000demo", state=ImageReport.STATE_READY)
    (source,) = objects(cloud, nodes[0])["image/img-0000demo"].image.sources
    assert (source.node, source.endpoint) == (third, f"{third}:7446")
    cloud.report(nodes[0], "image/img-0000demo", state=ImageReport.STATE_READY)
    assert not objects(cloud, nodes[0])["image/img-0000demo"].image.sources
    assert len(objects(cloud, nodes[1])["image/img-0000demo"].image.sources) == 2
    cloud.delete(kinds.NODE_SESSION, third)
    assert [source.node for source in objects(cloud, nodes[1])["image/img-0000demo"].image.sources] == [nodes[0]]


def test_what_is_sent_is_what_was_claimed() -> None:
    cloud, nodes, vms = two_vms()
    vm = cloud.edit(kinds.VM, vms[0])
    vm.spec.memory_bytes = 1 << 50
    cloud.put(kinds.VM, vms[0], vm)
    cloud.settle([Placements()])
    assert objects(cloud, nodes[0])[f"vm/{vms[0]}"].vm.memory_bytes == 512 * MIB


class Following(RuleBasedStateMachine):
    """Random histories: what was sent, kept up to date by what `follow` names, is what each node must hold."""

    def __init__(self) -> None:
        super().__init__()
        self.cloud = Cloud()
        self.nodes = [self.cloud.node(f"n{i}", shared={"tank": 1 << 40}) for i in range(3)]
        self.images = [self.cloud.image(f"im{i}") for i in range(2)]
        self.subnets: list[str] = []
        for i in range(2):
            vpc = self.cloud.vpc(f"v{i}")
            self.subnets += [self.cloud.subnet(f"s{i}{j}", vpc, f"10.1.{j}.0/24") for j in range(2)]
        self.cloud.take()
        self.presence = Presence(self.cloud.view)
        self.outboxes = {node: Outbox(node, OF_THIS_RELEASE) for node in self.nodes}
        # An agent of before: peers in its networks.
        self.old = {node: Outbox(node, ()) for node in self.nodes}
        self.sent: dict[str, dict[str, Desired]] = {node: {} for node in self.nodes}
        self.sent_old: dict[str, dict[str, Desired]] = {node: {} for node in self.nodes}
        # Of both, whose stream has to be told, and whom it was told to.
        self.hearers = (Hearers(), Hearers())
        self.woken: tuple[set[str], set[str]] = (set(self.nodes), set(self.nodes))
        self.made = 0

    def vm_at(self, number: int) -> str:
        vms = sorted(self.cloud.view.ids(kinds.VM))
        return vms[number % len(vms)]

    @rule(image=st.integers(0, 1), subnet=st.integers(0, 3), pinned=st.integers(0, 5), type=st.sampled_from(["local", "net"]))
    def create(self, image: int, subnet: int, pinned: int, type: str = "local") -> None:
        self.made += 1
        node = self.nodes[pinned] if pinned < 3 else ""
        self.cloud.vm(f"v{self.made}", image=self.images[image], subnet=self.subnets[subnet], node=node, type=type)

    @rule(which=st.integers(0, 3))
    def reconcile(self, which: int) -> None:
        self.cloud.settle([RECONCILERS[which]])

    @rule()
    def reconcile_all(self) -> None:
        self.cloud.settle(RECONCILERS)

    @precondition(lambda self: self.cloud.view.count(kinds.VM) > 0)
    @rule(number=st.integers(0), what=st.sampled_from(["delete", "purge", "undelete", "rename", "move", "data", "incoming"]))
    def change_vm(self, number: int, what: str) -> None:
        id = self.vm_at(number)
        vm = self.cloud.edit(kinds.VM, id)
        if what in ("delete", "purge"):
            self.cloud.delete_vm(id, purge=what == "purge")
        elif what == "undelete":
            self.cloud.undelete_vm(id)
        elif what == "rename":
            vm.name += "x"
            self.cloud.put(kinds.VM, id, vm)
        elif what == "data":
            self.made += 1
            self.cloud.volume(f"d{self.made}", vm=id, image=self.images[number % 2], type=("local", "net")[number % 2])
        elif self.cloud.view.get(kinds.PLACEMENT, id) is None:
            return
        elif what == "incoming":
            placement = self.cloud.edit(kinds.PLACEMENT, id)
            placement.incoming = ["", *self.nodes][number % 4]
            self.cloud.put(kinds.PLACEMENT, id, placement)
        else:
            self.move(id, self.nodes[number % 3])

    def move(self, vm: str, node: str) -> None:
        """As a migration would."""
        txn = Txn("placement")
        placement = self.cloud.edit(kinds.PLACEMENT, vm)
        placement.node = node
        txn.put(kinds.PLACEMENT, vm, placement)
        for volume in self.cloud.view.by(kinds.VOLUME, "vm", vm):
            if self.cloud.view.get(kinds.VOLUME_PLACEMENT, volume) is not None:
                place = self.cloud.edit(kinds.VOLUME_PLACEMENT, volume)
                if place.node:
                    place.node, place.pool = node, f"local/{node}"
                txn.put(kinds.VOLUME_PLACEMENT, volume, place)
        self.cloud.commit(txn)

    @precondition(lambda self: self.cloud.view.count(kinds.VM) > 0)
    @rule(number=st.integers(0), gone=st.booleans())
    def report_vm(self, number: int, gone: bool) -> None:
        id = self.vm_at(number)
        placement = self.cloud.view.get(kinds.PLACEMENT, id)
        if placement is not None and placement.node:
            state = VmReport.STATE_ABSENT if gone else VmReport.STATE_RUNNING
            self.cloud.report(placement.node, f"vm/{id}", state=state)
            for volume in self.cloud.view.by(kinds.VOLUME, "vm", id):
                said = VolumeReport.STATE_ABSENT if gone else VolumeReport.STATE_READY
                self.cloud.report(placement.node, f"volume/{volume}", state=said, size_bytes=(number % 100) << 20)

    @rule(node=st.integers(0, 2), image=st.integers(0, 1), ready=st.booleans())
    def report_image(self, node: int, image: int, ready: bool) -> None:
        state = ImageReport.STATE_READY if ready else ImageReport.STATE_FETCHING
        self.cloud.report(self.nodes[node], f"image/{self.images[image]}", state=state)

    @rule(nodes=st.sets(st.integers(0, 2)), image=st.integers(0, 1))
    def keepers(self, nodes: set[int], image: int) -> None:
        id = self.images[image]
        content = ImageContent(image=id, nodes=[self.nodes[node] for node in sorted(nodes)])
        self.cloud.put(kinds.IMAGE_CONTENT, id, content)

    @rule(node=st.integers(0, 2), what=st.sampled_from(["up", "down", "vtep", "mtu", "index"]))
    def change_node(self, node: int, what: str) -> None:
        id = self.nodes[node]
        if what == "up":
            self.cloud.connect(id)
        elif what == "down":
            self.cloud.delete(kinds.NODE_SESSION, id)
            self.cloud.now += timedelta(seconds=40)
        elif what == "index":
            record = self.cloud.edit(kinds.NODE, id)
            record.spec.index += 10
            self.cloud.put(kinds.NODE, id, record)
        else:
            facts = self.cloud.edit(kinds.NODE_FACTS, id)
            if what == "vtep":
                facts.vtep = "" if facts.vtep else f"192.0.2.{100 + node}"
            else:
                facts.underlay_mtu = 1400 + (facts.underlay_mtu + 50) % 200
            self.cloud.put(kinds.NODE_FACTS, id, facts)

    @rule(vpc=st.integers(0, 1), here=st.booleans())
    def change_subnets(self, vpc: int, here: bool) -> None:
        id = f"vxnet-{f'extra{vpc}':0>8}"
        if here:
            self.cloud.subnet(f"extra{vpc}", f"rtr-{f'v{vpc}':0>8}", "10.1.9.0/24")
        elif self.cloud.view.get(kinds.SUBNET, id) is not None:
            self.cloud.delete(kinds.SUBNET, id)

    @precondition(lambda self: self.cloud.view.count(kinds.VOLUME) > 0)
    @rule(number=st.integers(0))
    def purge_volume(self, number: int) -> None:
        volumes = sorted(self.cloud.view.ids(kinds.VOLUME))
        id = volumes[number % len(volumes)]
        self.cloud.put(kinds.PURGE, id, Purge(id=id, purge_time=timestamp(self.cloud.now)))

    @rule(image=st.integers(0, 1))
    def change_image(self, image: int) -> None:
        record = self.cloud.edit(kinds.IMAGE, self.images[image])
        record.spec.size_bytes += 1
        self.cloud.put(kinds.IMAGE, record.id, record)

    @rule(vpc=st.integers(0, 1))
    def change_vpc(self, vpc: int) -> None:
        record = self.cloud.edit(kinds.VPC, f"rtr-{f'v{vpc}':0>8}")
        record.spec.vni += 1
        self.cloud.put(kinds.VPC, record.id, record)

    @rule(project=st.text("ab", max_size=3))
    def rename_project(self, project: str) -> None:
        id = "prj-00000000"
        self.cloud.put(kinds.PROJECT, id, Project(id=id, name=project))

    @rule(node=st.integers(0, 2))
    def look(self, node: int) -> None:
        """The stream of a node takes what is there for it; others may be slow."""
        self.deliver(self.nodes[node])

    def deliver(self, node: str) -> None:
        ends = (self.outboxes, self.sent), (self.old, self.sent_old)
        for (outboxes, sent), hearers, woken in zip(ends, self.hearers, self.woken, strict=True):
            # One that nobody has woken sends nothing.
            if node in woken:
                woken.discard(node)
                receive(outboxes[node], self.cloud.view, self.presence, sent[node])
                hearers.sent(node, self.presence.vpcs_on(node))

    @invariant()
    def what_changed_is_followed(self) -> None:
        touched = self.presence.follow(self.cloud.view, self.cloud.take())
        assert set(touched.objects) <= set(self.nodes)
        for outboxes, hearers, woken in zip((self.outboxes, self.old), self.hearers, self.woken, strict=True):
            for node, keys in touched.objects.items():
                outboxes[node].touch(keys)
                woken.add(node)
            for node in hearers.of(touched.vpcs):
                hearers.sent(node, outboxes[node].touch_shared(touched.vpcs))
                woken.add(node)

    def sent_is_what_each_node_must_hold(self) -> None:
        self.what_changed_is_followed()
        fresh = Presence(self.cloud.view)
        for node in self.nodes:
            self.deliver(node)
            expected = node_objects(self.cloud.view, fresh, node)
            told = (self.outboxes[node], self.sent[node], expected), (self.old[node], self.sent_old[node], as_before(expected))
            for outbox, all_sent, right in told:
                # What cannot be told now stays as it was.
                assert not outbox.kept & right.keys()
                sent = {key: object for key, object in all_sent.items() if key not in outbox.kept}
                # Images it was told to hold, and is told to remove until it says that it has.
                removed = {key: object for key, object in sent.items() if object.image.absent and key not in right}
                assert sent == {**right, **removed}
                for key, object in removed.items():
                    assert object == desired(self.cloud.view, fresh, node, key, told=True)

    @rule()
    def all_look(self) -> None:
        self.sent_is_what_each_node_must_hold()

    def teardown(self) -> None:
        self.sent_is_what_each_node_must_hold()


def receive(outbox: Outbox, view: View, presence: Presence, held: dict[str, Desired]) -> None:
    """Take all there is for a node, as its agent does."""
    while True:
        parcel = outbox.take(view, presence)
        for message in outbox.messages(parcel, Version(revision=view.revision), complete=not outbox.pending):
            for each in unpacked(message):
                if each.HasField("upsert"):
                    held[each.upsert.key] = each.upsert.object
                elif each.HasField("remove"):
                    held.pop(each.remove.key, None)
        if not outbox.pending:
            return


def as_before(objects: dict[str, Desired]) -> dict[str, Desired]:
    """The same objects for an agent that has peers in its networks, and cards with an address and no name."""
    result = {
        key: Desired.FromString(object.SerializeToString()) for key, object in objects.items() if not object.HasField("peer")
    }
    for _, object in sorted(objects.items()):
        peer = object.peer
        if object.HasField("peer") and f"network/{peer.vpc}" in result:
            result[f"network/{peer.vpc}"].network.peers.add(
                node=peer.node, vtep=peer.vtep, transit_address=peer.transit_address, router_mac=peer.router_mac
            )
    for object in result.values():
        for part, fields in (("network", ("domain",)), ("port", ("addresses",)), ("forward", ("addresses", "hostname"))):
            if object.HasField(part):
                for field in fields:
                    getattr(object, part).ClearField(field)
        for nic in object.vm.nics if object.HasField("vm") else ():
            nic.ClearField("addresses")
    return result


def test_a_life_followed_step_by_step() -> None:
    """What random histories seldom put together."""
    life = Following()
    life.create(image=0, subnet=0, pinned=0)
    life.create(image=0, subnet=1, pinned=1)
    seen: set[str] = set()
    for step in (
        life.reconcile_all,
        lambda: life.keepers({1, 2}, 0),
        lambda: life.report_image(1, 0, True),
        lambda: life.change_node(1, "down"),
        lambda: life.change_node(1, "up"),
        lambda: life.change_vm(0, "move"),
        lambda: life.change_vm(0, "purge"),
        lambda: life.reconcile(2),
        lambda: life.report_vm(0, True),
        life.reconcile_all,
        lambda: life.change_vm(0, "delete"),
        lambda: life.report_vm(0, True),
        lambda: life.reconcile(1),
        lambda: life.change_vm(0, "undelete"),
        life.reconcile_all,
    ):
        step()
        life.sent_is_what_each_node_must_hold()
        seen |= {key for sent in life.sent.values() for key, object in sent.items() if object.volume.absent or object.vm.absent}
    assert seen == {"vm/i-000000v1", "volume/vol-000000v1", "vm/i-000000v2"}


TestFollowing = Following.TestCase
TestFollowing.settings = settings(max_examples=30, stateful_step_count=40, deadline=None)
