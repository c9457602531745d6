"""What guests are called: told with their cards, kept on each node of their VPC by what changed."""

from __future__ import annotations

import random

from cairn.controller.nodespec import node_objects
from cairn.controller.presence import Presence
from cairn.controller.reconcilers.placement import Placements
from cairn.controller.reconcilers.ports import Ports
from cairn.net.base import Wanted
from cairn.net.fake import FakeNetHost
from cairn.net.names import Named, Names
from cairn.net.plan import EnsureNetwork, plan
from cairn.proto import kinds
from cairn.proto.ids import mac_of
from cairn.proto.v1.agent_pb2 import Desired, DesiredForward, DesiredNetwork, Upsert

from tests.unit.agent_kit import Machine, ran, run, settled, vm_objects
from tests.unit.cloud_kit import Cloud

A, B = "rtr-0000000a", "rtr-0000000b"


def test_names_of_cards_and_back() -> None:
    names = Names()
    names.put("port/1", Named(A, "web", ("10.1.1.10", "fd00::1")))
    names.put("forward/2", Named(A, "web", ("10.1.1.9",)))
    names.put("forward/3", Named(B, "web", ("10.1.1.9",)))
    assert names.addresses(A, "web") == ["10.1.1.9", "10.1.1.10", "fd00::1"]
    assert names.addresses(B, "web") == ["10.1.1.9"]
    assert names.addresses(A, "db") == []
    assert names.hostname(A, "fd00::1") == "web"
    assert names.hostname(B, "fd00::1") == ""


def test_a_card_told_twice_counts_until_both_are_taken_back() -> None:
    names = Names()
    names.put("port/1", Named(A, "web", ("10.1.1.10",)))
    names.put("forward/1", Named(A, "web", ("10.1.1.10",)))
    names.put("forward/1", None)
    assert names.hostname(A, "10.1.1.10") == "web"
    names.put("port/1", None)
    names.put("port/1", None)
    assert (names.hostname(A, "10.1.1.10"), len(names)) == ("", 0)


def test_whatever_changes_it_is_as_if_told_anew() -> None:
    rng = random.Random(7)
    names, held = Names(), dict[str, Named | None]()
    for _ in range(2000):
        key = f"forward/{rng.randrange(12)}"
        held[key] = rng.choice(
            [
                None,
                Named(
                    rng.choice((A, B)), rng.choice(("", "web", "db")), tuple(rng.sample(["10.0.0.1", "10.0.0.2", "fd00::1"], 2))
                ),
            ]
        )
        names.put(key, held[key])
        fresh = Names()
        for each, named in held.items():
            fresh.put(each, named)
        for vpc in (A, B):
            assert names.addresses(vpc, "web") == fresh.addresses(vpc, "web")
            assert bool(names.hostname(vpc, "10.0.0.1")) == bool(fresh.hostname(vpc, "10.0.0.1"))
        assert len(names) == len(fresh)


def two_nodes() -> Cloud:
    cloud = Cloud()
    image, subnet = cloud.image("demo"), cloud.subnet("blue", cloud.vpc("home"))
    for name in ("one", "two"):
        cloud.vm(name, image=image, subnet=subnet, node=cloud.node(name))
    cloud.settle([Ports(), Placements()])
    return cloud


def test_nodes_are_told_names_and_the_domain() -> None:
    cloud = two_nodes()
    held = node_objects(cloud.view, Presence(cloud.view), "node-00000one")
    assert held["network/rtr-0000home"].network.domain == "home.cairn.internal"
    assert held["port/nic-00000one"].port.hostname == "one"
    assert held["forward/rtr-0000home/nic-00000two"].forward.hostname == "two"


def test_who_is_called_otherwise_is_told_anew_to_the_others() -> None:
    cloud = two_nodes()
    presence = Presence(cloud.view)
    number, key = presence.shared("rtr-0000home").last, "forward/rtr-0000home/nic-00000two"
    cloud.take()
    vm = cloud.edit(kinds.VM, "i-00000two")
    vm.name = "new"
    cloud.put(kinds.VM, vm.id, vm)
    presence.follow(cloud.view, cloud.take())
    told = dict(presence.shared("rtr-0000home").since(number, "node-00000one"))
    assert list(told) == [key]
    assert Upsert.FromString(told[key]).object.forward.hostname == "new"


def test_the_kernel_knows_no_names() -> None:
    network = DesiredNetwork(vpc=A, mtu=1450, domain="home.cairn.internal")
    host = FakeNetHost()
    host.perform(EnsureNetwork(network))
    assert host.observe().networks[A].domain == ""
    assert plan(Wanted({A: network}), host.observe()) == []


def test_an_agent_knows_the_names_of_its_networks() -> None:
    async def scenario() -> None:
        machine = Machine()
        machine.hold_image()
        agent = machine.agent()
        await agent.start()
        key, objects = "forward/rtr-00000001/nic-00000002", vm_objects()
        objects["port/nic-00000001"].port.hostname = "web1"
        forward = DesiredForward(
            port="nic-00000002", vpc="rtr-00000001", subnet="vxnet-00000001", addresses=["10.1.1.9"],
            mac=mac_of("nic-00000002"), vtep="172.31.0.12", transit_address="169.254.0.2", hostname="db",
        )  # fmt: skip
        await machine.snapshot(agent, {**objects, key: Desired(forward=forward)})
        await ran(agent, "i-00000001")
        await settled(agent)
        names = machine.services.names
        assert names.addresses("rtr-00000001", "db") == ["10.1.1.9"]
        assert names.addresses("rtr-00000001", "web1") == ["10.1.1.2"]
        assert machine.net.observe().forwards["nic-00000002"].hostname == ""
        actions = agent.networks.actions
        forward.hostname = "db2"
        await machine.upsert(agent, {key: Desired(forward=forward)})
        await settled(agent)
        assert (names.addresses("rtr-00000001", "db"), names.addresses("rtr-00000001", "db2")) == ([], ["10.1.1.9"])
        assert agent.networks.actions == actions, "nothing is programmed for a name"
        await machine.remove(agent, [key])
        await settled(agent)
        assert names.addresses("rtr-00000001", "db2") == []
        await agent.stop()

    run(scenario)
