"""A started guest's card is put into its bridge by itself when nothing else is to be done, else in a pass over everything."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
from cairn.agent.app import Agent
from cairn.net.base import Action, Observed, Result
from cairn.net.fake import FakeDataplane

from tests.unit.agent_kit import Machine, elapse, ran, run, settled, vm_objects

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
        assert watched.said[: watched.said.index("BindPort")] == [], watched.said
        await elapse(40)
        assert "observe" in watched.said, "it is checked afterwards"
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
