"""net/belief.py: what a plan of what changed says is what a plan of everything says, over whatever happened before."""

from __future__ import annotations

import asyncio

from cairn.net.base import Observed, Wanted
from cairn.net.belief import Belief
from cairn.net.fake import FakeDataplane, FakeNetHost
from cairn.net.plan import AddForward, BindPort, RemoveForward, plan, plan_forwards
from cairn.proto.v1.agent_pb2 import DesiredForward, DesiredPort
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.test_net_plan import BOUND, NETWORK, PORT, PORTS, SUBNETS, VPC, VPCS, forward_of, network_of, port_of

NETWORKS = {vpc: network_of(vpc, SUBNETS[vpc]) for vpc in VPCS}
# id of a port; what it is: on which other node, here (0), or nowhere (None); in which VPC and subnet; whose address it has.
changes = st.lists(
    st.tuples(
        st.sampled_from(PORTS),
        st.sampled_from([None, None, 0, 2, 3]),
        st.sampled_from(VPCS),
        st.integers(0, 1),
        st.sampled_from(PORTS),
    ),
    min_size=1,
    max_size=4,
)


@given(st.lists(changes, max_size=8))
@settings(max_examples=150, deadline=None)
def test_a_part_is_planned_as_the_whole_is(steps: list[list[tuple[str, int | None, str, int, str]]]) -> None:
    asyncio.run(_walk(steps))


async def _walk(steps: list[list[tuple[str, int | None, str, int, str]]]) -> None:
    host, forwards, ports = FakeNetHost(), dict[str, DesiredForward](), dict[str, DesiredPort]()
    dataplane = FakeDataplane(host)
    wanted = Wanted(NETWORKS, ports, forwards)
    await dataplane.apply(plan(wanted, await dataplane.observe()))
    belief = Belief(await dataplane.observe())
    for step in steps:
        for id, node, vpc, subnet, address_of in step:
            port = port_of(id, vpc, SUBNETS[vpc][subnet])
            port.addresses[:] = port_of(address_of, vpc, SUBNETS[vpc][subnet]).addresses
            forwards.pop(id, None)
            ports.pop(id, None)
            if node == 0:
                ports[id] = port
            elif node is not None:
                forwards[id] = forward_of(port, node)
        observed, changed = await dataplane.observe(), {id for id, *_ in step}
        whole, part = plan(wanted, observed), belief.part(wanted, changed, changed)
        if part is not None:
            assert plan_forwards(*part) == whole
        await dataplane.apply(whole)
        belief.did(whole)
        if part is None or not belief.holds:
            belief = Belief(await dataplane.observe())


def seen(**changes: object) -> Observed:
    return Observed(networks={VPC: NETWORK}, **changes)  # type: ignore[arg-type]


WAY = forward_of(port_of(PORTS[2], VPC, SUBNETS[VPC][0]), 2)


def test_one_change_is_planned_by_itself() -> None:
    many = {f"nic-{number:08d}": forward_of(PORT, 2) for number in range(100, 1100)}
    belief = Belief(seen(forwards=many))
    part = belief.part(Wanted({VPC: NETWORK}, {}, {**many, WAY.port: WAY}), {WAY.port}, set())
    assert part is not None
    assert (len(part[0].forwards), len(part[1].forwards)) == (1, 0)
    assert plan_forwards(*part) == [AddForward(WAY)]
    belief.did([AddForward(WAY)])
    part = belief.part(Wanted({VPC: NETWORK}, {}, many), {WAY.port}, set())
    assert part is not None
    assert plan_forwards(*part) == [RemoveForward(WAY)]


def test_what_concerns_a_card_or_a_network_is_no_part() -> None:
    wanted = Wanted({VPC: NETWORK}, {PORT.id: PORT}, {WAY.port: WAY})
    assert Belief(seen()).part(wanted, {WAY.port}, {PORT.id}) is not None, "its TAP is not there yet"
    assert Belief(seen(ports={PORT.id: BOUND})).part(wanted, set(), {PORT.id}) is None
    assert Belief(seen(waiting_taps=frozenset({PORT.tap}))).part(wanted, set(), {PORT.id}) is None
    assert Belief(seen(stray_taps={VPC: frozenset({PORT.tap})})).part(wanted, set(), {PORT.id}) is None
    assert Belief(seen(incomplete=frozenset({VPC}))).part(wanted, {WAY.port}, set()) is None
    assert Belief(Observed()).part(wanted, {WAY.port}, set()) is None
    assert Belief(seen()).part(Wanted({}, {}, {WAY.port: WAY}), {WAY.port}, set()) is None
    belief = Belief(seen())
    belief.did([BindPort(PORT)])
    assert not belief.holds


def test_two_cards_with_one_address_are_looked_at_in_the_kernel() -> None:
    """Its entries are those of who came last: removing the first by what was believed would take them away."""
    other = forward_of(port_of(PORTS[3], VPC, SUBNETS[VPC][0]), 3)
    other.addresses[:] = WAY.addresses
    belief = Belief(seen(forwards={WAY.port: WAY}))
    belief.did([AddForward(other)])
    assert not belief.holds
    assert belief.part(Wanted({VPC: NETWORK}, {}, {other.port: other}), {WAY.port}, set()) is None
    belief = Belief(seen(forwards={WAY.port: WAY}))
    belief.did([RemoveForward(WAY), AddForward(other)])
    assert belief.holds
    belief = Belief(seen(ports={PORT.id: BOUND}))
    other.addresses[:] = PORT.addresses
    belief.did([AddForward(other)])
    assert not belief.holds
