"""Addresses of either family in messages and records, of this release and of the one before."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from typing import Any

import pytest
from cairn.agent.kept import stays
from cairn.controller.model.damage import findings
from cairn.controller.nodespec import node_objects, own_keys
from cairn.controller.outbox import Outbox
from cairn.controller.presence import Presence
from cairn.controller.reconcilers.placement import Placements
from cairn.controller.reconcilers.ports import Ports
from cairn.net.base import Wanted
from cairn.net.fake import FakeDataplane, FakeNetHost
from cairn.net.plan import plan
from cairn.proto import kinds
from cairn.proto.addresses import addresses_of, canonical, claim_key, current, first_ipv4, set_addresses
from cairn.proto.capabilities import CARDS, OF_THIS_RELEASE
from cairn.proto.ids import mac_of, tap_of
from cairn.proto.v1.agent_pb2 import Desired, DesiredForward, DesiredNetwork, DesiredPort, SyncResponse, Upsert, Version
from cairn.proto.v1.port_pb2 import AddressClaim, PortBinding

from tests.unit.cloud_kit import Cloud

SIX, FOUR = "fd00::1:2", "10.1.1.7"


def test_both_fields_are_written_and_either_is_read() -> None:
    binding = PortBinding()
    set_addresses(binding, ("FD00:0::1:0002", FOUR))
    assert (list(binding.addresses), binding.address) == ([SIX, FOUR], FOUR)
    assert addresses_of(binding) == (SIX, FOUR)
    assert addresses_of(PortBinding(address=FOUR)) == (FOUR,)
    assert addresses_of(PortBinding()) == ()
    set_addresses(binding, ())
    assert binding == PortBinding()
    assert first_ipv4([SIX]) == ""


def test_as_this_release_means_it() -> None:
    told = DesiredForward(port="nic-1", address=FOUR)
    assert current(told) == DesiredForward(port="nic-1", addresses=[FOUR])
    assert current(DesiredForward(port="nic-1", address=FOUR, addresses=[SIX, FOUR])).addresses == [SIX, FOUR]
    assert told.address == FOUR


@pytest.mark.parametrize(("text", "wanted"), [("10.1.1.7", "10.1.1.7"), ("FD00::0:1:2", SIX), ("fd00:0:0:0:0:0:1:2", SIX)])
def test_one_spelling(text: str, wanted: str) -> None:
    assert canonical(text) == wanted
    assert claim_key("vxnet-1", text) == f"vxnet-1/{wanted}"


def world() -> tuple[Cloud, str]:
    cloud = Cloud()
    cloud.node("a")
    cloud.node("b")
    subnet, image = cloud.subnet("blue", cloud.vpc("home")), cloud.image("demo")
    for name, node in (("one", "a"), ("two", "b")):
        cloud.vm(name, image=image, subnet=subnet, node=f"node-0000000{node}")
    cloud.settle([Ports(), Placements()])
    return cloud, subnet


def objects(cloud: Cloud) -> dict[str, Desired]:
    return node_objects(cloud.view, Presence(cloud.view), "node-0000000a")


def test_nodes_and_controllers_of_the_release_before_read_what_they_know() -> None:
    cloud, _ = world()
    binding: Any = cloud.view.get(kinds.PORT_BINDING, "nic-00000one")
    assert (binding.address, list(binding.addresses)) == ("10.1.1.2", ["10.1.1.2"])
    sent = objects(cloud)
    port, vm = sent["port/nic-00000one"].port, sent["vm/i-00000one"].vm
    forward = sent["forward/rtr-0000home/nic-00000two"].forward
    for each in (port, vm.nics[0], forward):
        assert [each.address] == list(each.addresses)


def test_records_of_the_release_before_are_read() -> None:
    cloud, _ = world()
    before = objects(cloud)
    for id in list(cloud.view.ids(kinds.PORT_BINDING)):
        binding = cloud.edit(kinds.PORT_BINDING, id)
        del binding.addresses[:]
        cloud.put(kinds.PORT_BINDING, id, binding)
    cloud.take()
    cloud.settle([Ports()])
    assert cloud.take() == []
    assert objects(cloud) == before
    assert not [each for each in findings(cloud.view) if each is not None and each.check == "address"]
    cloud.delete(kinds.PORT, "nic-00000one")
    cloud.settle([Ports()])
    assert list(cloud.view.ids(kinds.ADDRESS)) == ["vxnet-0000blue/10.1.1.3"]


def test_a_port_of_both_families_keeps_both_and_gives_both_back() -> None:
    cloud, subnet = world()
    port, binding = cloud.edit(kinds.PORT, "nic-00000one"), cloud.edit(kinds.PORT_BINDING, "nic-00000one")
    for each in (port.spec, binding):
        set_addresses(each, ("10.1.1.2", SIX))
    cloud.put(kinds.PORT, port.id, port)
    cloud.put(kinds.PORT_BINDING, port.id, binding)
    cloud.put(kinds.ADDRESS, claim_key(subnet, SIX), AddressClaim(subnet=subnet, address=SIX, port=port.id))
    cloud.settle([Ports()])
    assert cloud.view.get(kinds.ADDRESS, f"{subnet}/{SIX}") is not None
    assert not [each for each in findings(cloud.view) if each is not None and each.check == "address"]
    sent = objects(cloud)["port/nic-00000one"].port
    assert (sent.address, list(sent.addresses)) == ("10.1.1.2", ["10.1.1.2", SIX])
    # A claim that goes in a subnet whose book is led.
    ports = Ports()
    cloud.settle([ports])
    cloud.delete(kinds.PORT, port.id)
    cloud.settle([ports])
    assert list(cloud.view.ids(kinds.ADDRESS)) == [f"{subnet}/10.1.1.3"]
    cloud.port("next", subnet)
    cloud.settle([ports])
    assert addresses_of(cloud.view.get(kinds.PORT_BINDING, "nic-0000next")) == ("10.1.1.2",)


def test_the_plan_and_the_fake_take_lists() -> None:
    vpc, subnet, near, far = "rtr-00000001", "vxnet-00000001", "nic-00000001", "nic-00000002"
    network = DesiredNetwork(vpc=vpc, mtu=1450)
    network.subnets.add(id=subnet, vni=1, cidr="10.1.1.0/24", gateway="10.1.1.1")
    port = DesiredPort(id=near, vpc=vpc, subnet=subnet, addresses=[FOUR, SIX], mac=mac_of(near), tap=tap_of(near))
    forward = DesiredForward(port=far, vpc=vpc, subnet=subnet, addresses=["10.1.1.8", "fd00::9"], mac=mac_of(far))
    host = FakeNetHost()
    host.taps.add(port.tap)
    wanted = Wanted({vpc: network}, {near: port}, {far: forward})

    async def settle(wanted: Wanted) -> int:
        dataplane = FakeDataplane(host)
        actions = plan(wanted, await dataplane.observe())
        assert all(result.error is None for result in await dataplane.apply(actions))
        assert plan(wanted, await dataplane.observe()) == []
        return len(actions)

    assert asyncio.run(settle(wanted)) == 3
    assert host.observe().ports[near].addresses == (FOUR, SIX)
    swapped = DesiredForward()
    swapped.CopyFrom(forward)
    swapped.addresses[:] = reversed(forward.addresses)
    assert asyncio.run(settle(Wanted(wanted.networks, wanted.ports, {far: swapped}))) == 0
    del swapped.addresses[0]
    assert asyncio.run(settle(Wanted(wanted.networks, wanted.ports, {far: swapped}))) == 2


def test_a_forward_stays_until_one_of_its_addresses_is_anothers() -> None:
    forward = DesiredForward(port="nic-2", vpc="rtr-1", subnet="s", addresses=[FOUR, SIX])
    unknown = {"forward/rtr-1/nic-2": Upsert(object=Desired(forward=forward))}
    network = {"network/rtr-1": Upsert(object=Desired(network=DesiredNetwork(vpc="rtr-1")))}
    other = DesiredForward(port="nic-3", vpc="rtr-1", subnet="s", addresses=["10.1.1.9"])
    desired = {**network, "forward/rtr-1/nic-3": Upsert(object=Desired(forward=other))}
    assert stays("forward/rtr-1/nic-2", desired, unknown)
    other.addresses.append(SIX)
    desired["forward/rtr-1/nic-3"] = Upsert(object=Desired(forward=other))
    assert not stays("forward/rtr-1/nic-2", desired, unknown)


def test_an_agent_that_does_not_know_them_is_sent_none_of_it() -> None:
    """It would find them missing in its kernel, and program the same for ever."""
    cloud, _ = world()
    presence, node = Presence(cloud.view), "node-0000000a"
    for knows, whole in ((OF_THIS_RELEASE, True), (OF_THIS_RELEASE - {CARDS}, False), ((), False)):
        outbox = Outbox(node, knows)
        outbox.touch(own_keys(cloud.view, presence, node))
        parcel = outbox.take(cloud.view, presence)
        told = {each.key: each.object for each in upserts(outbox.messages(parcel, Version(revision=1), complete=True))}
        forward = told["forward/rtr-0000home/nic-00000two"].forward
        cards = [told["port/nic-00000one"].port, told["vm/i-00000one"].vm.nics[0], forward]
        assert [bool(card.addresses) for card in cards] == [whole] * 3
        assert all(card.address for card in cards)
        assert (forward.hostname, told["network/rtr-0000home"].network.domain) == (
            ("two", "home.cairn.internal") if whole else ("", "")
        )


def upserts(messages: Iterable[SyncResponse]) -> Iterator[Upsert]:
    for message in messages:
        if message.HasField("upsert"):
            yield message.upsert
        yield from (Upsert.FromString(each) for each in message.changes.upserts)


# A field 2047 of type string (protobuf's wire format: tag, length, bytes).
LATER = b"\xfa\x7f\x05later"


def test_fields_of_a_release_to_come_are_nothing_to_program() -> None:
    network, forward = (
        DesiredNetwork(vpc="rtr-00000001", mtu=1450),
        DesiredForward(addresses=[FOUR], mac=mac_of("nic-00000002")),
    )
    forward.port, forward.vpc, forward.subnet = "nic-00000002", network.vpc, "vxnet-00000001"
    network.subnets.add(id=forward.subnet, vni=1, cidr="10.1.1.0/24", gateway="10.1.1.1")
    host = FakeNetHost()
    for action in plan(Wanted({network.vpc: network}, {}, {forward.port: forward}), host.observe()):
        host.perform(action)
    told, way = DesiredNetwork.FromString(network.SerializeToString()), DesiredForward.FromString(forward.SerializeToString())
    for message in (told, told.subnets[0], way):
        message.MergeFromString(LATER)
    assert plan(Wanted({network.vpc: told}, {}, {forward.port: current(way)}), host.observe()) == []
