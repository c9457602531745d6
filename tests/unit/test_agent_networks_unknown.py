"""Networks a restored store does not know: kept for the guests in them, also a subnet alone, and told with those guests."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest
from cairn.agent.app import Agent
from cairn.agent.kept import SUBNETS, with_subnets
from cairn.proto.keys import UNSETTLED
from cairn.proto.v1.agent_pb2 import (
    Desired,
    DesiredForward,
    DesiredNetwork,
    DesiredSubnet,
    DesiredVm,
    Unknown,
    Upsert,
    Version,
)

from tests.unit.agent_kit import Machine, elapse, network, ran, run, vm_objects

VPC, OLD, NEW = "rtr-00000001", "vxnet-00000001", "vxnet-00000002"
FIRST, SECOND = "i-00000001", "i-00000002"
LACKED = SUBNETS + VPC
Scenario = Callable[[Machine, Agent], Awaitable[None]]


def whole() -> DesiredNetwork:
    """The VPC with a subnet that the backup does not know."""
    result = network()
    result.domain = "shop.cairn.internal"
    result.subnets.append(DesiredSubnet(id=NEW, vni=5002, cidr="10.1.2.0/24", gateway="10.1.2.1"))
    return result


def guests() -> dict[str, Desired]:
    """One guest in the subnet of the backup, one in that made since."""
    objects = {**vm_objects(1), **vm_objects(2), f"network/{VPC}": Desired(network=whole())}
    objects[f"vm/{FIRST}"].vm.nics[0].subnet = OLD
    objects[f"vm/{SECOND}"].vm.nics[0].subnet = NEW
    objects["port/nic-00000002"].port.subnet = NEW
    objects["port/nic-00000002"].port.address = "10.1.2.2"
    return objects


def restored(*, first: bool) -> dict[str, Desired]:
    """What the backup knows. first: the guest in its subnet is among that."""
    known = {key: object for key, object in vm_objects(1).items() if first or key.startswith("image/")}
    for key, object in guests().items():
        if key in known:
            known[key].CopyFrom(object)
    if first:
        known[f"network/{VPC}"] = Desired(network=network())
    return known


def told(agent: Agent) -> dict[str, Unknown]:
    agent.reports.resend_all()
    return {each.unknown.key: each.unknown for each in agent.reports.take() if each.HasField("unknown")}


def subnets(machine: Machine) -> set[str]:
    return {subnet.id for subnet in machine.net.networks[VPC].network.subnets}


def after(snapshot: dict[str, Desired], then: Scenario) -> None:
    async def scenario() -> None:
        machine = Machine()
        machine.hold_image()
        agent = machine.agent()
        await agent.start()
        await machine.snapshot(agent, guests())
        await ran(agent, FIRST)
        await ran(agent, SECOND)
        machine.epoch += 1
        await machine.snapshot(agent, snapshot)
        await elapse(70)
        await then(machine, agent)
        await agent.stop()

    run(scenario)


@pytest.mark.parametrize("first", [False, True], ids=["the whole VPC", "a subnet"])
def test_a_guest_keeps_its_network_and_tells_of_it(first: bool) -> None:
    async def then(machine: Machine, agent: Agent) -> None:
        assert subnets(machine) == {OLD, NEW}
        assert machine.net.is_bound("nic-00000002")
        (given,) = told(agent)[f"vm/{SECOND}"].networks
        assert (given.vpc, given.transit_vni, given.cidr, given.domain) == (VPC, 5000, "10.1.0.0/16", "shop.cairn.internal")
        assert [(subnet.id, subnet.vni, subnet.cidr) for subnet in given.subnets] == [(NEW, 5002, "10.1.2.0/24")]
        assert not given.vtep, "of the node nothing is told with it"
        await machine.crash(agent)
        again = machine.agent()
        await again.start()
        await elapse(70)
        assert subnets(machine) == {OLD, NEW}
        assert told(again)[f"vm/{SECOND}"].networks == [given]
        await again.stop()

    after(restored(first=first), then)


def test_a_change_of_the_vpc_takes_no_subnet_from_a_guest() -> None:
    async def then(machine: Machine, agent: Agent) -> None:
        changed = network()
        changed.subnets.append(DesiredSubnet(id="vxnet-00000003", vni=5003, cidr="10.1.3.0/24", gateway="10.1.3.1"))
        await machine.upsert(agent, {f"network/{VPC}": Desired(network=changed)})
        await elapse(10)
        assert subnets(machine) == {OLD, NEW, "vxnet-00000003"}
        await machine.snapshot(agent, restored(first=True))
        await elapse(10)
        assert subnets(machine) == {OLD, NEW}

    after(restored(first=True), then)


def test_the_way_to_a_guest_elsewhere_keeps_its_subnet() -> None:
    """Without it what is sent there is dropped at once."""

    async def scenario() -> None:
        machine = Machine()
        machine.hold_image()
        agent = machine.agent()
        await agent.start()
        way = DesiredForward(
            port="nic-00000002", vpc=VPC, subnet=NEW, addresses=["10.1.2.2"], mac="02:00:00:00:00:02",
            vtep="172.31.0.12", transit_address="169.254.0.2",
        )  # fmt: skip
        key, known = f"forward/{VPC}/nic-00000002", restored(first=True)
        await machine.snapshot(agent, {**known, f"network/{VPC}": Desired(network=whole()), key: Desired(forward=way)})
        await ran(agent, FIRST)
        machine.epoch += 1
        revision = machine.revision + 1
        upserts = [Upsert(key=each, version=Version(epoch=2, revision=revision), object=known[each]) for each in known]
        machine.revision = revision
        await agent.ledger.accept_snapshot(machine.version(), upserts, [UNSETTLED], agent.loop.accepted)
        await elapse(10)
        assert subnets(machine) == {OLD, NEW}
        await machine.snapshot(agent, known)
        await elapse(10)
        assert subnets(machine) == {OLD}, "once all is decided, and nobody is there"
        await agent.stop()

    run(scenario)


@pytest.mark.parametrize(
    "given",
    [
        DesiredSubnet(id="vxnet-00000003", vni=5003, cidr="10.1.2.0/25", gateway="10.1.2.1"),
        DesiredSubnet(id="vxnet-00000003", vni=5002, cidr="10.1.3.0/24", gateway="10.1.3.1"),
    ],
    ids=["its addresses", "its identifier"],
)
def test_what_the_vpc_gave_to_another_subnet_is_its(given: DesiredSubnet) -> None:
    changed = network()
    changed.subnets.append(given)
    assert [subnet.id for subnet in with_subnets(changed, whole().subnets).subnets] == [OLD, given.id]
    assert with_subnets(network(), whole().subnets).subnets == whole().subnets


def test_once_the_records_know_it_nothing_is_kept_beside() -> None:
    async def then(machine: Machine, agent: Agent) -> None:
        assert LACKED in agent.ledger.unknown
        await machine.upsert(agent, guests())
        await elapse(10)
        assert not agent.ledger.unknown
        assert subnets(machine) == {OLD, NEW}
        await machine.upsert(agent, {f"network/{VPC}": Desired(network=whole())})
        assert not agent.ledger.unknown

    after(restored(first=True), then)


def test_it_goes_with_the_guest() -> None:
    async def then(machine: Machine, agent: Agent) -> None:
        await machine.upsert(agent, {f"vm/{SECOND}": Desired(vm=DesiredVm(id=SECOND, absent=True))})
        await elapse(70)
        assert subnets(machine) == {OLD}
        assert LACKED not in agent.ledger.unknown

    after(restored(first=True), then)


def test_it_stays_when_the_known_guest_goes() -> None:
    """The VPC is nobody's by the records then."""

    async def then(machine: Machine, agent: Agent) -> None:
        gone = {f"vm/{FIRST}": Desired(vm=DesiredVm(id=FIRST, absent=True))}
        await machine.upsert(agent, gone)
        await elapse(10)
        await machine.remove(agent, [f"vm/{FIRST}", "port/nic-00000001", f"network/{VPC}"])
        await elapse(70)
        assert NEW in subnets(machine)
        assert machine.net.is_bound("nic-00000002")
        assert told(agent)[f"vm/{SECOND}"].networks[0].subnets[0].id == NEW

    after(restored(first=True), then)
