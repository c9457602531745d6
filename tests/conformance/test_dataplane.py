"""The contract of net/base.py's Dataplane: on the fake always, on this kernel as root."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator

import pytest
from cairn.net import namespace
from cairn.net.base import Dataplane, Observed, Wanted
from cairn.net.belief import Belief
from cairn.net.plan import plan, plan_forwards

from tests.conformance.net_kit import (
    Card,
    FakeNode,
    RealNode,
    Vpc,
    fresh_prefix,
    id_of,
    missing,
    real_nodes,
    run,
    settle,
    wanted_on,
)

Node = FakeNode | RealNode
BLUE, GREEN = id_of("vxnet", 1), id_of("vxnet", 2)
VPC = Vpc(1, {BLUE: "10.0.1.0/24", GREEN: "10.0.2.0/24"}, 5000)
ADDRESSES = {1: "172.31.0.1", 2: "172.31.0.2"}
LOCAL = Card(11, VPC.id, BLUE, "10.0.1.11/24", 1)
SECOND = Card(12, VPC.id, GREEN, "10.0.2.12/24", 1)
REMOTE = Card(21, VPC.id, BLUE, "10.0.1.21/24", 2)


@pytest.fixture(params=["fake", pytest.param("kernel", marks=pytest.mark.root)])
def node(request: pytest.FixtureRequest) -> Iterator[Node]:
    if request.param == "fake":
        yield FakeNode(1)
        return
    if reason := missing():
        pytest.skip(reason)
    with real_nodes(fresh_prefix(), 1) as nodes:
        yield nodes[0]


@contextlib.asynccontextmanager
async def opened(node: Node):  # type: ignore[no-untyped-def]
    dataplane = node.dataplane()
    try:
        yield dataplane
    finally:
        await dataplane.close()


def wanted(*cards: Card) -> Wanted:
    return wanted_on(1, ADDRESSES, [VPC], list(cards))


async def test_an_untouched_node_has_nothing(node: Node) -> None:
    async with opened(node) as dataplane:
        assert await dataplane.observe() == Observed()


async def test_networks_forwards_and_ports_are_made_in_one_round(node: Node) -> None:
    node.start_guest(LOCAL)
    async with opened(node) as dataplane:
        observed = await settle(dataplane, wanted(LOCAL, REMOTE))
    assert observed.ports[LOCAL.id].bound
    assert observed.ports[LOCAL.id].subnet == BLUE
    assert observed.forwards == {REMOTE.id: REMOTE.forward(ADDRESSES[2])}
    assert observed.waiting_taps == frozenset()
    assert [subnet.gateway for subnet in observed.networks[VPC.id].subnets] == ["10.0.1.1", "10.0.2.1"]


async def test_a_port_waits_for_its_tap(node: Node) -> None:
    async with opened(node) as dataplane:
        observed = await settle(dataplane, wanted(LOCAL))
        assert observed.ports == {}
        node.start_guest(LOCAL)
        observed = await dataplane.observe()
        assert observed.waiting_taps == {LOCAL.tap}
        assert plan(wanted(LOCAL), observed, started_taps=()) == []
        assert (await settle(dataplane, wanted(LOCAL))).ports[LOCAL.id].bound


async def test_a_restarted_agent_finds_everything_as_it_left_it(node: Node) -> None:
    node.start_guest(LOCAL)
    async with opened(node) as dataplane:
        before = await settle(dataplane, wanted(LOCAL, SECOND, REMOTE))
    async with opened(node) as dataplane:
        after = await dataplane.observe()
        assert after == before
        assert plan(wanted(LOCAL, SECOND, REMOTE), after) == []


async def test_applying_twice_changes_nothing(node: Node) -> None:
    node.start_guest(LOCAL)
    async with opened(node) as dataplane:
        actions = plan(wanted(LOCAL, REMOTE), await dataplane.observe())
        for _ in range(2):
            assert [result.error for result in await dataplane.apply(actions)] == [None] * len(actions)
        assert plan(wanted(LOCAL, REMOTE), await dataplane.observe()) == []


async def test_a_guest_that_restarts_is_bound_again(node: Node) -> None:
    node.start_guest(LOCAL)
    async with opened(node) as dataplane:
        await settle(dataplane, wanted(LOCAL))
        node.stop_guest(LOCAL)
        observed = await settle(dataplane, wanted(LOCAL))
        assert not observed.ports[LOCAL.id].bound
        assert not observed.ports[LOCAL.id].tap_present
        node.start_guest(LOCAL)
        assert (await settle(dataplane, wanted(LOCAL))).ports[LOCAL.id].bound


async def test_a_network_is_not_removed_under_a_guest(node: Node) -> None:
    node.start_guest(LOCAL)
    async with opened(node) as dataplane:
        await settle(dataplane, wanted(LOCAL, REMOTE))
        observed = await settle(dataplane, Wanted())
        assert observed.stray_taps == {VPC.id: {LOCAL.tap}}
        assert list(observed.networks) == [VPC.id]
        assert (observed.ports, observed.forwards) == ({}, {})
        node.stop_guest(LOCAL)
        assert await settle(dataplane, Wanted()) == Observed()
        assert node.namespaces() == []


async def test_removal_is_refused_when_a_tap_came_after_the_plan(node: Node) -> None:
    async with opened(node) as dataplane:
        await settle(dataplane, wanted(LOCAL))
        removal = plan(Wanted(), await dataplane.observe())
        node.start_guest(LOCAL)
        await settle(dataplane, wanted(LOCAL))
        (result,) = await dataplane.apply(removal)
        assert result.error is not None
        assert LOCAL.tap in str(result.error)
        assert (await dataplane.observe()).ports[LOCAL.id].bound


async def test_a_damaged_network_is_completed(node: Node) -> None:
    node.start_guest(LOCAL)
    async with opened(node) as dataplane:
        await settle(dataplane, wanted(LOCAL, REMOTE))
        node.damage(VPC.id)
        observed = await dataplane.observe()
        assert observed.incomplete == {VPC.id}
        assert (await settle(dataplane, wanted(LOCAL, REMOTE))).ports[LOCAL.id].bound


async def test_changed_networks_converge_in_one_round(node: Node) -> None:
    node.start_guest(LOCAL)
    async with opened(node) as dataplane:
        await settle(dataplane, wanted(LOCAL, REMOTE))
        changed = wanted(LOCAL, REMOTE)
        network = changed.networks[VPC.id]
        network.subnets[0].vni += 50
        network.transit_vni += 50
        network.mtu = 1400
        del network.subnets[1], network.peers[:]
        network.peers.add(vtep="172.31.0.9", transit_address="169.254.0.9", router_mac="02:00:5e:10:00:09")
        observed = await settle(dataplane, changed)
        assert [subnet.id for subnet in observed.networks[VPC.id].subnets] == [BLUE]
        assert [peer.vtep for peer in observed.networks[VPC.id].peers] == ["172.31.0.9"]


async def test_a_guest_that_moves_here_changes_from_forward_to_port_and_back(node: Node) -> None:
    moving = Card(REMOTE.number, REMOTE.vpc, REMOTE.subnet, REMOTE.address, 1)
    node.start_guest(LOCAL)
    async with opened(node) as dataplane:
        await settle(dataplane, wanted(LOCAL, REMOTE))
        node.start_guest(moving)
        observed = await settle(dataplane, wanted(LOCAL, moving))
        assert observed.forwards == {}
        assert observed.ports[moving.id].bound
        node.stop_guest(moving)
        observed = await settle(dataplane, wanted(LOCAL, REMOTE))
        assert list(observed.ports) == [LOCAL.id]
        assert list(observed.forwards) == [REMOTE.id]


async def test_what_is_done_by_what_changed_is_what_is_wanted(node: Node) -> None:
    """Also when an address goes to another card before it is taken from the first, whose entries are not there any more."""
    other, heir = Card(22, VPC.id, BLUE, "10.0.1.22/24", 3), Card(23, VPC.id, BLUE, REMOTE.address, 3)
    steps = [(REMOTE,), (REMOTE, other), (other,), (REMOTE, other), (REMOTE, other, heir), (other, heir), (heir,), ()]
    parts = 0
    async with opened(node) as dataplane:
        belief, before = Belief(await settle(dataplane, on_three())), on_three()
        for step in steps:
            now = on_three(*step)
            part = belief.part(now, before.forwards.keys() ^ now.forwards.keys(), ())
            if part is None:
                belief = Belief(await settle(dataplane, now))
            else:
                parts += 1
                actions = plan_forwards(*part)
                assert [result.error for result in await dataplane.apply(actions)] == [None] * len(actions)
                belief.did(actions)
            if not (REMOTE in step and heir in step):
                assert plan(now, await dataplane.observe()) == []
            before = now
    assert parts == 7, "only what follows the doubled address is looked at as a whole"


def on_three(*cards: Card) -> Wanted:
    return wanted_on(1, {**ADDRESSES, 3: "172.31.0.3"}, [VPC], [LOCAL, *cards])


async def test_cards_have_several_addresses(node: Node) -> None:
    both = wanted(LOCAL, REMOTE)
    both.ports[LOCAL.id].addresses.append("10.0.1.77")
    both.forwards[REMOTE.id].addresses.append("10.0.1.5")
    node.start_guest(LOCAL)
    async with opened(node) as dataplane:
        observed = await settle(dataplane, both)
        assert observed.ports[LOCAL.id].addresses == ("10.0.1.11", "10.0.1.77")
        assert sorted(observed.forwards[REMOTE.id].addresses) == sorted(both.forwards[REMOTE.id].addresses)
        observed = await settle(dataplane, wanted(LOCAL, REMOTE))
        assert observed.ports[LOCAL.id].addresses == ("10.0.1.11",)
        assert list(observed.forwards[REMOTE.id].addresses) == list(wanted(LOCAL, REMOTE).forwards[REMOTE.id].addresses)
        node.stop_guest(LOCAL)
        observed = await settle(dataplane, wanted(SECOND, REMOTE))
        assert observed.ports == {}


async def test_one_failure_does_not_stop_other_objects(node: Node) -> None:
    node.start_guest(LOCAL)
    async with opened(node) as dataplane:
        bad = wanted(LOCAL, SECOND, REMOTE)
        actions = plan(bad, Observed(waiting_taps=frozenset({LOCAL.tap, SECOND.tap})))
        failed = [result.action.key for result in await dataplane.apply(actions) if result.error is not None]
        assert failed == [f"port/{SECOND.id}"]
        assert plan(bad, await dataplane.observe()) == []


async def test_taps_that_come_and_go_are_told(node: Node) -> None:
    async with opened(node) as dataplane:
        await settle(dataplane, wanted(LOCAL))
        events = dataplane.events()
        first = asyncio.ensure_future(anext(events))
        await asyncio.sleep(0)
        node.start_guest(LOCAL)
        assert await asyncio.wait_for(first, 10) == f"port/{LOCAL.id}"
        await settle(dataplane, wanted(LOCAL))
        node.stop_guest(LOCAL)
        assert await _wait_for_key(events, f"port/{LOCAL.id}")


def leave_a_file(node: RealNode) -> None:
    (namespace.FOLDER / (node.vpc_prefix + VPC.id.rpartition("-")[2])).touch()


def leave_a_namespace(node: RealNode) -> None:
    namespace.create(node.vpc_prefix + VPC.id.rpartition("-")[2])


def leave_a_bridge(node: RealNode) -> None:
    leave_a_namespace(node)
    name = node.vpc_prefix + VPC.id.rpartition("-")[2]
    run("ip", "-n", name, "link", "add", "br-" + BLUE.rpartition("-")[2], "type", "bridge")


def leave_another_tunnel(node: RealNode) -> None:
    leave_a_bridge(node)
    name = node.vpc_prefix + VPC.id.rpartition("-")[2]
    run(*f"ip -n {name} link add l3x type vxlan id 77 local 172.31.0.1 dstport 4789".split())


@pytest.mark.root
@pytest.mark.skipif(bool(missing()), reason=missing())
@pytest.mark.parametrize("leave", [leave_a_file, leave_a_namespace, leave_a_bridge, leave_another_tunnel])
async def test_what_a_crash_left_half_made_is_completed_or_removed(leave: Callable[[RealNode], None]) -> None:
    with real_nodes(fresh_prefix(), 1) as (node,):
        async with opened(node) as dataplane:
            leave(node)
            assert (await dataplane.observe()).incomplete == {VPC.id}
            await settle(dataplane, wanted(LOCAL, REMOTE))
            await settle(dataplane, Wanted())
            leave(node)
            assert await settle(dataplane, Wanted()) == Observed()
            assert node.namespaces() == []


@pytest.mark.root
@pytest.mark.skipif(bool(missing()), reason=missing())
async def test_a_vni_that_is_still_taken_is_waited_for() -> None:
    """As after the removal of a namespace, which the kernel finishes seconds later."""
    with real_nodes(fresh_prefix(), 1) as (node,):
        run(*f"ip -n {node.name} link add old type vxlan id {VPC.base_vni} local {node.address} dstport 4789".split())
        async with opened(node) as dataplane:
            making = asyncio.ensure_future(settle(dataplane, wanted(LOCAL)))
            while not node.namespaces():
                await asyncio.sleep(0.01)
            run("ip", "-n", node.name, "link", "del", "old")
            assert list((await making).networks) == [VPC.id]


async def _wait_for_key(events, key: str) -> bool:  # type: ignore[no-untyped-def]
    async with asyncio.timeout(10):
        async for seen in events:
            if seen in ("", key):
                return True
    return False


async def test_two_dataplanes_do_not_see_each_other(node: Node) -> None:
    """Whatever one node holds is its own: another one's observation stays empty."""
    other: Node
    async with opened(node) as dataplane:
        await settle(dataplane, wanted(LOCAL))
        if isinstance(node, FakeNode):
            other = FakeNode(2)
        else:
            other = RealNode(1, node.prefix, node.address, node.cable)
            other.index = 9
            other_dataplane: Dataplane = type(dataplane)(prefix=other.vpc_prefix)
            assert await other_dataplane.observe() == Observed()
            await other_dataplane.close()
            return
        async with opened(other) as second:
            assert await second.observe() == Observed()
