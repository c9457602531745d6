"""Kill the agent after every step of making and removing a VM; its successor must finish, with nothing doubled or left."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from cairn.agent.app import Agent
from cairn.proto.v1.agent_pb2 import Desired, DesiredVm, VmReport, VolumeReport
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.agent_kit import Machine, elapse, image, ran, root_volume, run, settled, state_of, until, vm_objects

VM, KEY = "i-00000001", "vm/i-00000001"


async def step(agent: Agent, steps: int, done: Callable[[], bool]) -> bool:
    """Let the loop turn so often; whether everything was done before."""
    for _ in range(steps):
        if done() and agent.loop.is_idle:
            return True
        await asyncio.sleep(0)
    return False


def absent(volume: bool = True) -> dict[str, Desired]:
    gone = {KEY: Desired(vm=DesiredVm(id=VM, absent=True))}
    if volume:
        gone["volume/vol-00000001"] = Desired(volume=root_volume(absent=True))
    return gone


async def created(machine: Machine, agent: Agent) -> None:
    await ran(agent, VM)
    await settled(agent)
    await elapse(1)
    await settled(agent)
    assert machine.running() == {VM}
    assert machine.host.boots == [VM], "its first instruction ran once"
    assert machine.net.is_bound("nic-00000001")
    assert set(machine.pool.volumes) == {"vol-00000001"}
    assert machine.files.keys() == {VM}
    assert not machine.pool.unfinished


async def removed(machine: Machine, agent: Agent) -> None:
    def gone() -> bool:
        report = agent.reports.latest("volume/vol-00000001")
        return report is not None and report.volume.state == VolumeReport.STATE_ABSENT

    await until("VM absent", lambda: state_of(agent, VM) == VmReport.STATE_ABSENT)
    await until("volume absent", gone)
    await machine.remove(agent, vm_objects())
    await until("nothing left", machine.is_empty)


def test_killed_at_every_step_of_a_create() -> None:
    async def scenario() -> None:
        for steps in range(1, 2000):
            machine = Machine()
            machine.hold_image()
            agent = machine.agent()
            await agent.start()
            await machine.snapshot(agent, {})
            await machine.upsert(agent, vm_objects())
            finished = await step(agent, steps, lambda agent=agent: state_of(agent, VM) == VmReport.STATE_RUNNING)
            await machine.crash(agent, torn=steps % 7)
            agent = machine.agent()
            await agent.start()
            await created(machine, agent)
            await agent.stop()
            if finished:
                assert steps > 10
                return
        raise AssertionError("never finished")

    run(scenario)


def test_killed_at_every_step_of_a_removal() -> None:
    async def scenario() -> None:
        for steps in range(1, 2000):
            machine = Machine()
            machine.hold_image()
            agent = machine.agent()
            await agent.start()
            await machine.snapshot(agent, vm_objects())
            await created(machine, agent)
            await machine.upsert(agent, absent())
            finished = await step(agent, steps, lambda agent=agent: state_of(agent, VM) == VmReport.STATE_ABSENT)
            await machine.crash(agent, torn=steps % 7)
            agent = machine.agent()
            await agent.start()
            await removed(machine, agent)
            await agent.stop()
            if finished:
                assert steps > 5
                return
        raise AssertionError("never finished")

    run(scenario)


def test_killed_again_and_again() -> None:
    """Each agent lives for a few steps only; together they get there."""

    async def scenario() -> None:
        machine = Machine()
        machine.hold_image()
        agent = machine.agent()
        await agent.start()
        await machine.snapshot(agent, vm_objects())
        for life in range(400):
            if await step(agent, 12 + life % 60, lambda agent=agent: state_of(agent, VM) == VmReport.STATE_RUNNING):
                break
            await machine.crash(agent)
            agent = machine.agent()
            await agent.start()
        await created(machine, agent)
        await agent.stop()

    run(scenario)


commands = st.lists(
    st.tuples(
        st.sampled_from(["want", "gone", "forget", "stop", "crash agent", "crash guest", "power off", "daemon", "damage"]),
        st.integers(1, 2),
        st.integers(0, 40),
    ),
    min_size=1,
    max_size=10,
)


class Story:
    """Plays commands against a machine; knows what should be there in the end."""

    def __init__(self) -> None:
        self.machine = Machine()
        self.machine.hold_image()
        self.agent = self.machine.agent()
        self.wanted: dict[str, Desired] = {"image/img-00000001": Desired(image=image())}
        self.generation = 1
        # No longer desired, never said to be absent; and those among them that ran, and were not ended by themselves.
        self.unknown: set[str] = set()
        self.left_running: set[str] = set()

    async def play(self, verb: str, number: int) -> None:
        machine, vm = self.machine, f"i-{number:08d}"
        if verb in ("want", "stop"):
            self.unknown.discard(vm)
        if verb in ("crash guest", "power off"):
            self.left_running -= {vm} if verb == "crash guest" else self.left_running
        self.left_running &= self.unknown
        if verb in ("want", "stop"):
            self.generation += 1
            power = 2 if verb == "stop" else 1
            changed = vm_objects(number, power_state=power, power_generation=self.generation, force=verb == "stop")
            self.wanted.update(changed)
            await machine.upsert(self.agent, changed)
        elif verb == "gone" and f"vm/{vm}" in self.wanted:
            changed = {
                f"vm/{vm}": Desired(vm=DesiredVm(id=vm, absent=True)),
                f"volume/vol-{number:08d}": Desired(volume=root_volume(number, absent=True)),
            }
            self.wanted.update(changed)
            await machine.upsert(self.agent, changed)
        elif verb == "forget" and f"vm/{vm}" in self.wanted and not self.wanted[f"vm/{vm}"].vm.absent:
            self.unknown.add(vm)
            if vm in machine.running() and self.wanted[f"vm/{vm}"].vm.power_state == 1:
                self.left_running.add(vm)
            del self.wanted[f"vm/{vm}"], self.wanted[f"port/nic-{number:08d}"]
            await machine.remove(self.agent, [f"vm/{vm}", f"port/nic-{number:08d}"])
        elif verb == "crash agent":
            await machine.crash(self.agent, torn=number)
            self.agent = machine.agent()
            await self.agent.start()
            if not self.agent.ledger.trusted:
                await machine.snapshot(self.agent, self.wanted)
        elif verb == "crash guest" and vm in machine.host.guests:
            machine.host.crash(vm)
        elif verb == "power off":
            machine.host.power_off()
        elif verb == "daemon":
            machine.host.restart_daemon()
        elif verb == "damage" and machine.net.networks:
            machine.net.damage("rtr-00000001")

    def check(self) -> None:
        machine = self.machine
        alive = {
            key.partition("/")[2]: each.vm for key, each in self.wanted.items() if each.HasField("vm") and not each.vm.absent
        }
        assert set(alive) <= set(machine.host.guests) <= set(alive) | self.unknown
        assert machine.running() - self.unknown == {id for id, vm in alive.items() if vm.power_state == 1}
        assert self.left_running <= machine.running(), "what is unknown runs on"
        for id in (machine.running() - self.unknown) | self.left_running:
            assert machine.net.is_bound(f"nic-{id[2:]}")
        wanted = {k.partition("/")[2] for k, v in self.wanted.items() if v.HasField("volume") and not v.volume.absent}
        assert wanted == set(machine.pool.volumes)
        assert set(alive) <= set(machine.files) <= set(alive) | self.unknown


@given(story=commands)
@settings(max_examples=50, deadline=None)
def test_whatever_happens_the_node_becomes_what_is_wanted(story: list[tuple[str, int, int]]) -> None:
    async def scenario() -> None:
        tale = Story()
        await tale.agent.start()
        await tale.machine.snapshot(tale.agent, tale.wanted)
        for verb, number, pause in story:
            await tale.play(verb, number)
            for _ in range(pause):
                await asyncio.sleep(0)
        await elapse(120)
        await settled(tale.agent)
        tale.check()
        before = (tale.agent.guests.actions, tale.agent.networks.actions)
        await elapse(65)
        await settled(tale.agent)
        assert (tale.agent.guests.actions, tale.agent.networks.actions) == before, "nothing left to do"
        await tale.agent.stop()

    run(scenario)


@pytest.mark.parametrize("operation", ["define", "start", "resume", "undefine"])
def test_killed_between_effect_and_answer(operation: str) -> None:
    """The hypervisor did it, the agent died before it heard."""

    async def scenario() -> None:
        machine = Machine()
        machine.hold_image()
        machine.knobs.fail_after[operation] = 1
        agent = machine.agent()
        await agent.start()
        await machine.snapshot(agent, vm_objects())
        if operation == "undefine":
            await created(machine, agent)
            await machine.upsert(agent, absent())
        await until("it to happen", lambda: machine.knobs.fail_after[operation] == 0)
        await machine.crash(agent)
        agent = machine.agent()
        await agent.start()
        await (removed if operation == "undefine" else created)(machine, agent)
        await agent.stop()

    run(scenario)
