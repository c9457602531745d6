"""net/plan.py by itself and against the fake: it converges in one round, from anywhere, and takes no TAP from a guest."""

from __future__ import annotations

import asyncio

from cairn.net import naming
from cairn.net.base import Observed, PortState, Wanted
from cairn.net.fake import FakeDataplane, FakeNetHost, FaultKnobs
from cairn.net.plan import (
    AddForward,
    BindPort,
    EnsureNetwork,
    RemoveForward,
    RemoveNetwork,
    RemoveSubnet,
    SetPeers,
    UnbindPort,
    plan,
)
from cairn.proto.ids import mac_of, router_mac, tap_of, transit_address
from cairn.proto.v1.agent_pb2 import DesiredForward, DesiredNetwork, DesiredPort
from hypothesis import given, settings
from hypothesis import strategies as st

VPCS = ["rtr-0000000a", "rtr-0000000b"]
SUBNETS = {vpc: [f"vxnet-0000{vpc[-1]}00{n}" for n in range(2)] for vpc in VPCS}
PORTS = [f"nic-0000000{n}" for n in range(6)]


def network_of(vpc: str, subnets: list[str], *, vni: int = 0, mtu: int = 1450, peers: int = 1) -> DesiredNetwork:
    base = 4096 + VPCS.index(vpc) * 100 + vni
    network = DesiredNetwork(
        vpc=vpc, transit_vni=base, transit_address=transit_address(1), router_mac=router_mac(1), vtep="192.0.2.1", mtu=mtu,
        cidr="10.0.0.0/16",
    )  # fmt: skip
    for id in subnets:
        number = SUBNETS[vpc].index(id) + 1
        network.subnets.add(id=id, vni=base + number, cidr=f"10.0.{number}.0/24", gateway=f"10.0.{number}.1")
    for index in range(2, 2 + peers):
        network.peers.add(
            node=f"node-0000000{index}", vtep=f"192.0.2.{index}", transit_address=transit_address(index),
            router_mac=router_mac(index),
        )  # fmt: skip
    return network


def port_of(id: str, vpc: str, subnet: str) -> DesiredPort:
    address = f"10.0.{SUBNETS[vpc].index(subnet) + 1}.{10 + PORTS.index(id)}"
    return DesiredPort(id=id, vpc=vpc, subnet=subnet, addresses=[address], mac=mac_of(id), tap=tap_of(id), vm="i-00000000")


def forward_of(port: DesiredPort, node: int) -> DesiredForward:
    return DesiredForward(
        port=port.id, vpc=port.vpc, subnet=port.subnet, addresses=port.addresses, mac=port.mac, vtep=f"192.0.2.{node}",
        transit_address=transit_address(node),
    )  # fmt: skip


@st.composite
def wanted_states(draw: st.DrawFn) -> Wanted:
    """Anything a control plane could ask of one node, including ports of networks that are not wanted."""
    networks = {}
    for vpc in draw(st.sets(st.sampled_from(VPCS))):
        subnets = draw(st.lists(st.sampled_from(SUBNETS[vpc]), unique=True, min_size=1))
        vni, mtu, peers = draw(st.sampled_from([0, 50])), draw(st.sampled_from([1400, 1450])), draw(st.integers(0, 3))
        networks[vpc] = network_of(vpc, subnets, vni=vni, mtu=mtu, peers=peers)
    ports, forwards = {}, {}
    for id in PORTS:
        vpc = VPCS[PORTS.index(id) % 2]
        place = draw(st.sampled_from(["nowhere", "here", "node 2", "node 3"]))
        port = port_of(id, vpc, draw(st.sampled_from(SUBNETS[vpc])))
        if place == "here":
            ports[id] = port
        elif place != "nowhere":
            forwards[id] = forward_of(port, int(place[-1]))
    return Wanted(networks, ports, forwards)


STEPS = st.lists(st.tuples(wanted_states(), st.sets(st.sampled_from([tap_of(id) for id in PORTS]))), min_size=1, max_size=4)


@settings(max_examples=150, deadline=None)
@given(STEPS)
def test_one_round_reaches_what_is_wanted_and_takes_no_tap(steps: list[tuple[Wanted, set[str]]]) -> None:
    asyncio.run(_walk(steps))


async def _walk(steps: list[tuple[Wanted, set[str]]]) -> None:
    host = FakeNetHost()
    dataplane = FakeDataplane(host)
    for wanted, taps in steps:
        for tap in set(host.taps) - taps:
            host.taps.discard(tap)
        host.taps.update(taps)
        held = {vpc: host.inside(vpc) for vpc in host.networks}
        results = await dataplane.apply(plan(wanted, await dataplane.observe()))
        assert [str(result.error) for result in results if result.error is not None] == []
        assert plan(wanted, await dataplane.observe()) == []
        assert set(host.taps) == taps
        assert all(taps_before <= host.inside(vpc) for vpc, taps_before in held.items()), "a TAP lost its namespace"
        for id, port in wanted.ports.items():
            network = wanted.networks.get(port.vpc)
            if network is not None and port.subnet in {s.id for s in network.subnets} and port.tap in taps:
                assert host.is_bound(id)


@settings(max_examples=60, deadline=None)
@given(wanted_states(), st.integers(0, 30), st.sampled_from(["before", "after"]))
def test_it_converges_after_a_crash_at_any_action(wanted: Wanted, survived: int, when: str) -> None:
    async def crash_and_recover() -> None:
        host = FakeNetHost()
        host.taps.update(tap_of(id) for id in PORTS)
        actions = plan(wanted, await FakeDataplane(host).observe())
        await FakeDataplane(host).apply(actions[:survived])
        if when == "after" and survived < len(actions):
            name = type(actions[survived]).__name__
            await FakeDataplane(host, FaultKnobs(fail_after={name: 1})).apply([actions[survived]])
        fresh = FakeDataplane(host)
        await fresh.apply(plan(wanted, await fresh.observe()))
        assert plan(wanted, await fresh.observe()) == []

    asyncio.run(crash_and_recover())


VPC, SUBNET = VPCS[0], SUBNETS[VPCS[0]][0]
NETWORK = network_of(VPC, [SUBNET])
PORT = port_of(PORTS[0], VPC, SUBNET)
BOUND = PortState(PORT.id, VPC, SUBNET, tuple(PORT.addresses), PORT.mac, bound=True)


def observed(**changes: object) -> Observed:
    return Observed(networks={VPC: NETWORK}, **changes)  # type: ignore[arg-type]


def test_a_network_comes_before_its_ports_and_forwards() -> None:
    other = port_of(PORTS[2], VPC, SUBNET)
    wanted = Wanted({VPC: NETWORK}, {PORT.id: PORT}, {other.id: forward_of(other, 2)})
    actions = plan(wanted, Observed(waiting_taps=frozenset({PORT.tap})))
    assert [type(action) for action in actions] == [EnsureNetwork, BindPort, AddForward]
    assert [action.key for action in actions] == [f"network/{VPC}", f"port/{PORT.id}", f"forward/{VPC}/{other.id}"]


def test_only_peers_changed_touches_only_peers() -> None:
    assert [type(a) for a in plan(Wanted({VPC: network_of(VPC, [SUBNET], peers=2)}), observed())] == [SetPeers]


def test_names_of_peer_nodes_do_not_matter() -> None:
    renamed = network_of(VPC, [SUBNET])
    renamed.peers[0].node = "node-zzzzzzzz"
    assert plan(Wanted({VPC: renamed}), observed()) == []


def test_an_incomplete_network_is_made_again() -> None:
    assert plan(Wanted({VPC: NETWORK}), observed(incomplete=frozenset({VPC}))) == [EnsureNetwork(NETWORK)]


def test_a_held_network_stays_until_its_taps_are_gone() -> None:
    assert plan(Wanted(), observed(ports={PORT.id: BOUND})) == [UnbindPort(BOUND)]
    assert plan(Wanted(), observed(stray_taps={VPC: frozenset({PORT.tap})})) == []
    assert plan(Wanted(), observed()) == [RemoveNetwork(VPC)]


def test_a_subnet_with_a_tap_in_its_bridge_stays() -> None:
    both = Observed(networks={VPC: network_of(VPC, SUBNETS[VPC])}, ports={PORT.id: BOUND})
    assert plan(Wanted({VPC: network_of(VPC, [SUBNETS[VPC][1]])}, {}), both) == [UnbindPort(BOUND)]
    empty = Observed(networks={VPC: network_of(VPC, SUBNETS[VPC])})
    assert plan(Wanted({VPC: network_of(VPC, [SUBNETS[VPC][1]])}), empty) == [RemoveSubnet(VPC, SUBNET)]


def test_only_taps_of_started_domains_are_moved() -> None:
    wanted, there = Wanted({VPC: NETWORK}, {PORT.id: PORT}), observed(waiting_taps=frozenset({PORT.tap}))
    assert plan(wanted, there, started_taps=set()) == []
    assert plan(wanted, there, started_taps={PORT.tap}) == [BindPort(PORT)]


def test_a_forward_that_changes_its_node_is_overwritten_in_place() -> None:
    before, after = forward_of(PORT, 2), forward_of(PORT, 3)
    assert plan(Wanted({VPC: NETWORK}, {}, {PORT.id: after}), observed(forwards={PORT.id: before})) == [AddForward(after)]


def test_an_address_given_to_another_card_is_taken_back_first() -> None:
    old = forward_of(PORT, 2)
    new = forward_of(port_of(PORTS[2], VPC, SUBNET), 2)
    new.addresses[:] = old.addresses
    assert plan(Wanted({VPC: NETWORK}, {}, {new.port: new}), observed(forwards={old.port: old})) == [
        RemoveForward(old),
        AddForward(new),
    ]


@given(st.text(alphabet="0123456789abcdefghijklmnopqrstuvwxyz", min_size=8, max_size=8))
def test_names_lead_back_to_ids(text: str) -> None:
    assert naming.port_of_mac(mac_of(f"nic-{text}")) == f"nic-{text}"
    assert naming.port_of_tap(tap_of(f"nic-{text}")) == f"nic-{text}"
    assert naming.subnet_of(naming.bridge_of(f"vxnet-{text}")) == f"vxnet-{text}"
    assert naming.subnet_of(naming.vxlan_of(f"vxnet-{text}")) == f"vxnet-{text}"
    assert naming.vpc_of(f"cairn-{text}") == f"rtr-{text}"


def test_names_of_others_are_not_ours() -> None:
    assert naming.vpc_of("cairn-") == naming.vpc_of("cairnv-00000000") == naming.vpc_of("other") == ""
    assert naming.port_of_tap("tap0") == naming.port_of_tap("tap-UPPERCAS") == ""
    assert naming.subnet_of("br-0") == naming.subnet_of("virbr0") == ""
    assert naming.port_of_mac("02:00:5e:00:00:01") == naming.port_of_mac("2a:00") == ""
