"""A started guest's card is put into its bridge by itself when nothing else is to be done, else in a pass over everything."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import pytest
from cairn.agent.app import Agent
from cairn.agent.world import Part
from cairn.net.base import Action, NetError, Observed, Result
from cairn.net.fake import FakeDataplane
from cairn.proto.ids import mac_of
from cairn.proto.v1.agent_pb2 import Desired, DesiredForward, DesiredNetwork, PortReport

from tests.unit.agent_kit import Machine, elapse, network, ran, run, settled, vm_objects

VM, PORT = "i-00000001", "nic-00000001"


@dataclass
class Watched:
    """What a dataplane was asked, in order: "observe" or the names of the actions."""

    said: list[str] = field(default_factory=list)

    def watch(self, agent: Agent, machine: Machine) -> None:
        watched = self

        class Dataplane(FakeDataplane):
            async def observe(self) -> Observed:
                watched.said.append("observe")
                return await super().observe()

            async def apply(self, actions: Sequence[Action]) -> list[Result]:
                watched.said += [type(action).__name__ for action in actions]
                return await super().apply(actions)

        agent.networks._dataplane = Dataplane(machine.net, machine.net_knobs)
        agent.world._read[next(part for part in agent.world._read if part.value == "networks")] = (
            agent.networks._dataplane.observe
        )


async def stopped() -> tuple[Machine, Agent, Watched]:
    """A guest that is off; its network is there."""
    machine, watched = Machine(), Watched()
    machine.hold_image()
    agent = machine.agent()
    watched.watch(agent, machine)
    await agent.start()
    await machine.snapshot(agent, vm_objects(power_state=2))
    await elapse(5)
    await settled(agent)
    watched.said.clear()
    return machine, agent, watched


async def started(machine: Machine, agent: Agent) -> None:
    await machine.upsert(agent, {f"vm/{VM}": vm_objects(power_generation=2)[f"vm/{VM}"]})
    await ran(agent, VM)
    await settled(agent)
    assert machine.net.is_bound(PORT)
    assert machine.host.boots == [VM]


def test_nobody_looks_at_everything_between_the_start_and_the_bind() -> None:
    async def scenario() -> None:
        machine, agent, watched = await stopped()
        await started(machine, agent)
        await elapse(2)
        await settled(agent)
        assert watched.said == ["BindPort", "observe"], "it is checked afterwards, once"
        await elapse(40)
        assert watched.said.count("BindPort") == 1
        await agent.stop()

    run(scenario)


def test_what_cannot_be_bound_by_itself_is_bound_in_a_pass() -> None:
    async def scenario() -> None:
        machine, agent, watched = await stopped()
        machine.net_knobs.fail_before["BindPort"] = 1
        await started(machine, agent)
        assert watched.said.count("BindPort") == 2
        assert "observe" in watched.said[: watched.said.index("BindPort") + 2]
        await agent.stop()

    run(scenario)


@pytest.mark.parametrize("change", ["forward", "peer", "network", "port"])
def test_while_something_else_is_to_be_done_it_is_bound_in_a_pass(change: str) -> None:
    """A guest that had its address was elsewhere until now: its way there goes before the card comes, in one pass."""

    async def scenario() -> None:
        machine, agent, watched = await stopped()
        keys = {
            "port": f"port/{PORT}",
            "network": "network/rtr-00000001",
            "peer": "peer/rtr-00000001/n2",
            "forward": "forward/x/y",
        }
        agent.networks.accept([keys[change]])
        agent.networks.begin_start(["tap-00000001"])
        machine.net.taps.add("tap-00000001")
        agent.networks.end_start(["tap-00000001"], made=True)
        await agent.networks.bind([PORT])
        assert watched.said[:2] == ["observe", "BindPort"], watched.said
        await agent.stop()

    run(scenario)


# --- forwards, by what changed ----------------------------------------------------------------------------------------------


def way(number: int) -> dict[str, Desired]:
    port = f"nic-{number:08d}"
    forward = DesiredForward(
        port=port, vpc="rtr-00000001", subnet="vxnet-00000001", addresses=[f"10.1.1.{number}"], mac=mac_of(port),
        vtep="172.31.0.12", transit_address="169.254.0.2",
    )  # fmt: skip
    return {f"forward/rtr-00000001/{port}": Desired(forward=forward)}


def ways(machine: Machine) -> set[str]:
    return set(machine.net.networks["rtr-00000001"].forwards)


def test_a_forward_is_programmed_without_a_look_at_the_others() -> None:
    async def scenario() -> None:
        machine, agent, watched = await stopped()
        for number in (20, 21):
            await machine.upsert(agent, way(number))
            await settled(agent)
        await machine.remove(agent, list(way(20)))
        await settled(agent)
        assert watched.said == ["AddForward", "AddForward", "RemoveForward"]
        assert ways(machine) == {"nic-00000021"}
        machine.net.networks["rtr-00000001"].forwards.clear()
        await elapse(40)
        assert ways(machine) == {"nic-00000021"}, "what somebody else did is found by the scan"
        assert "observe" in watched.said
        await agent.stop()

    run(scenario)


def test_after_a_failure_an_event_or_another_network_everything_is_looked_at() -> None:
    async def scenario() -> None:
        machine, agent, watched = await stopped()
        machine.net_knobs.fail_after["AddForward"] = 1
        await machine.upsert(agent, way(20))
        await elapse(3)
        await settled(agent)
        assert watched.said[:2] == ["AddForward", "observe"]
        watched.said.clear()
        await elapse(1)
        await settled(agent)
        watched.said.clear()
        await machine.upsert(agent, way(21))
        await settled(agent)
        assert watched.said == ["AddForward"], "believed again"
        await machine.upsert(agent, {"network/rtr-00000001": Desired(network=other_network())})
        await settled(agent)
        assert watched.said[:2] == ["AddForward", "observe"], "not what was seen before the last change"
        await elapse(1)
        await settled(agent)
        watched.said.clear()
        machine.net.damage("rtr-00000001")
        agent.world.mark()
        await machine.remove(agent, list(way(21)))
        await settled(agent)
        assert watched.said[0] == "observe"
        assert ways(machine) == {"nic-00000020"}
        await agent.stop()

    run(scenario)


def other_network() -> DesiredNetwork:
    changed = network()
    changed.mtu = 1400
    return changed


def test_a_network_that_cannot_be_looked_at_keeps_no_other_waiting() -> None:
    """Its own guests run on, as they were seen last; new ones wait, and are told why."""
    other = "rtr-00000002"

    async def scenario() -> None:
        machine = Machine()
        machine.hold_image()
        agent = machine.agent()
        hidden: set[str] = set()

        class Dataplane(FakeDataplane):
            async def observe(self) -> Observed:
                seen = await super().observe()
                return replace(
                    seen,
                    networks={vpc: each for vpc, each in seen.networks.items() if vpc not in hidden},
                    ports={id: each for id, each in seen.ports.items() if each.vpc not in hidden},
                    unseen={vpc: NetError(f"read the network namespace of {vpc}: no") for vpc in hidden},
                )

        agent.networks._dataplane = dataplane = Dataplane(machine.net, machine.net_knobs)
        agent.world._read[Part.NETWORKS] = dataplane.observe
        await agent.start()
        await machine.snapshot(agent, vm_objects())
        await ran(agent, VM)
        await settled(agent)
        hidden.add("rtr-00000001")
        agent.world.mark(Part.NETWORKS)
        await agent.networks.settle()
        second = network()
        second.vpc, second.transit_vni, second.subnets[0].id, second.subnets[0].vni = other, 6000, "vxnet-00000002", 6001
        await machine.upsert(agent, {f"network/{other}": Desired(network=second), **waiting_guest()})
        await elapse(5)
        assert set(machine.net.networks) == {"rtr-00000001", other}
        assert machine.net.is_bound(PORT)
        report = agent.reports.latest(f"port/{PORT}")
        assert report is not None
        assert report.port.state == PortReport.STATE_ACTIVE
        late = agent.reports.latest("vm/i-00000003")
        assert late is not None
        assert "read the network namespace of rtr-00000001" in late.vm.say
        hidden.clear()
        await ran(agent, "i-00000003")
        await agent.stop()

    run(scenario)


def waiting_guest() -> dict[str, Desired]:
    """Another guest of the first network."""
    return {key: each for key, each in vm_objects(3).items() if not key.startswith(("network/", "image/"))}
