"""Guests that are on and execute nothing, that moved away, or were asked for what they do not do."""

from __future__ import annotations

from typing import Any

from cairn.agent.app import Agent
from cairn.agent.hypervisor.base import PauseReason
from cairn.proto.v1.agent_pb2 import (
    VM_PAUSE_BY_HAND,
    VM_PAUSE_IO_ERROR,
    VM_PAUSE_PANICKED,
    VM_PAUSE_UNSPECIFIED,
    VM_ROLE_INCOMING,
    VM_ROLE_OUTGOING,
    VM_ROLE_OWNER,
    AgentEvent,
    Desired,
    VmDisk,
    VmReport,
)
from cairn.proto.v1.vm_pb2 import RESTART_POLICY_NEVER

from tests.unit.agent_kit import Machine, elapse, ran, root_volume, run, settled, state_of, until, vm_objects

VM, KEY, ROOT, DATA = "i-00000001", "vm/i-00000001", "vol-00000001", "vol-00000002"


class Told:
    """The events an agent would have sent, as nobody takes them here."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent
        self.events: list[AgentEvent] = []

    def reasons(self) -> list[str]:
        self.events += [message.event for message in self._agent.reports.take() if message.HasField("event")]
        return [event.reason for event in self.events]


def report(agent: Agent) -> VmReport:
    latest = agent.reports.latest(KEY)
    assert latest is not None
    return latest.vm


async def started(machine: Machine, **more: Any) -> tuple[Agent, Told]:
    machine.hold_image()
    agent = machine.agent()
    await agent.start()
    await machine.snapshot(agent, vm_objects(**more))
    await ran(agent, VM)
    await settled(agent)
    told = Told(agent)
    told.reasons()
    told.events.clear()
    return agent, told


def test_a_guest_whose_disk_is_full_is_told_and_goes_on_once_there_is_room() -> None:
    async def scenario() -> None:
        machine = Machine()
        agent, told = await started(machine)
        machine.host.fill(ROOT)
        await until("the pause to be told", lambda: report(agent).pause == VM_PAUSE_IO_ERROR, 5)
        assert f"{ROOT}: no space left" in report(agent).say
        assert report(agent).spec_revision < 5, "not as it should be"
        before = agent.guests.actions
        await elapse(600)
        assert report(agent).pause == VM_PAUSE_IO_ERROR
        assert 5 <= agent.guests.actions - before <= 16, "tried later and later, not in a loop"
        assert told.reasons() == ["Paused"], "once, not at each try"
        machine.host.full.clear()
        await until("it to go on", lambda: report(agent).pause == VM_PAUSE_UNSPECIFIED, 90)
        assert machine.running() == {VM}
        assert told.reasons() == ["Paused", "Resumed"]
        assert report(agent).spec_revision == 5
        assert machine.host.boots == [VM]
        await agent.stop()

    run(scenario)


def test_a_guest_suspended_by_hand_is_told_and_left_until_a_user_starts_it() -> None:
    async def scenario() -> None:
        machine = Machine()
        agent, told = await started(machine)
        machine.host.suspend(VM)
        await until("the pause to be told", lambda: report(agent).pause == VM_PAUSE_BY_HAND, 5)
        assert "cairn vm start web1" in report(agent).say
        before = agent.guests.actions
        await elapse(600)
        assert agent.guests.actions == before
        assert machine.running() == set()
        await machine.upsert(agent, {KEY: vm_objects(power_generation=2)[KEY]})
        await until("it to run", lambda: machine.running() == {VM}, 5)
        await until("that to be told", lambda: report(agent).pause == VM_PAUSE_UNSPECIFIED, 5)
        assert told.reasons() == ["Paused", "Resumed"]
        await agent.stop()

    run(scenario)


def test_whoever_suspended_a_guest_may_let_it_run() -> None:
    async def scenario() -> None:
        machine = Machine()
        agent, told = await started(machine)
        machine.host.suspend(VM)
        await until("the pause to be told", lambda: report(agent).pause == VM_PAUSE_BY_HAND, 5)
        machine.host.resume_by_hand(VM)
        await until("that to be told", lambda: report(agent).pause == VM_PAUSE_UNSPECIFIED, 5)
        assert told.reasons() == ["Paused", "Resumed"]
        await agent.stop()

    run(scenario)


def test_a_guest_suspended_by_hand_is_rebooted_and_stopped_when_asked() -> None:
    async def scenario() -> None:
        machine = Machine()
        agent, _ = await started(machine)
        machine.host.suspend(VM)
        await until("the pause to be told", lambda: report(agent).pause == VM_PAUSE_BY_HAND, 5)
        await machine.upsert(agent, {KEY: vm_objects(reboot_generation=1)[KEY]})
        await until("the reboot", lambda: machine.host.boots == [VM, VM], 60)
        machine.host.suspend(VM)
        await machine.upsert(agent, {KEY: vm_objects(reboot_generation=1, power_state=2)[KEY]})
        await until("its end", lambda: state_of(agent, VM) == VmReport.STATE_STOPPED, 60)
        await agent.stop()

    run(scenario)


def test_a_guest_whose_kernel_panicked_has_crashed_and_its_policy_says_what_comes() -> None:
    async def scenario() -> None:
        machine = Machine()
        agent, told = await started(machine)
        machine.host.panic(VM)
        await until("it to run again", lambda: machine.host.boots == [VM, VM], 60)
        await ran(agent, VM)
        assert "Paused" not in told.reasons(), "nothing is there to be mended"
        await machine.upsert(agent, {KEY: vm_objects(restart_policy=RESTART_POLICY_NEVER)[KEY]})
        machine.host.panic(VM)
        await until("its end", lambda: state_of(agent, VM) == VmReport.STATE_FAILED, 60)
        assert (report(agent).exit, machine.host.boots) == (VmReport.EXIT_CRASHED, [VM, VM])
        await agent.stop()

    run(scenario)


def test_a_guest_whose_kernel_panicked_on_its_way_to_another_node_is_left_to_whoever_moves_it() -> None:
    async def scenario() -> None:
        machine = Machine()
        agent, _ = await started(machine)
        await machine.upsert(agent, {KEY: vm_objects(role=VM_ROLE_OUTGOING)[KEY]})
        machine.host.panic(VM)
        await until("the panic to be told", lambda: report(agent).pause == VM_PAUSE_PANICKED, 5)
        await elapse(120)
        assert report(agent).pause == VM_PAUSE_PANICKED
        await agent.stop()

    run(scenario)


def test_a_guest_that_moved_away_is_never_started_again() -> None:
    """Its state was read as "stopped by us", and what is stopped by us is started when it is to run."""

    async def scenario() -> None:
        machine = Machine()
        agent, _ = await started(machine)
        await machine.upsert(agent, {KEY: vm_objects(role=VM_ROLE_OUTGOING)[KEY]})
        machine.host.migrated_away(VM)
        await until("that to be told", lambda: report(agent).exit == VmReport.EXIT_MIGRATED, 5)
        for role, generation in ((VM_ROLE_OUTGOING, 1), (VM_ROLE_OWNER, 1), (VM_ROLE_OWNER, 2)):
            await machine.upsert(agent, {KEY: vm_objects(role=role, power_generation=generation)[KEY]})
            await elapse(120)
        del machine.host.guests[VM]
        machine.host.notices.tell(VM)
        await elapse(120)
        await machine.crash(agent)
        agent = machine.agent()
        await agent.start()
        await elapse(120)
        assert machine.host.boots == [VM]
        assert report(agent).state == VmReport.STATE_STOPPED
        await machine.upsert(agent, {KEY: vm_objects(absent=True)[KEY]})
        await until("nothing to be left", lambda: state_of(agent, VM) == VmReport.STATE_ABSENT, 60)
        await agent.stop()

    run(scenario)


def test_the_incoming_node_makes_ready_and_starts_nothing() -> None:
    async def scenario() -> None:
        machine = Machine()
        machine.hold_image()
        agent = machine.agent()
        await agent.start()
        await machine.snapshot(agent, vm_objects(role=VM_ROLE_INCOMING, needs_permit=True))
        await until("it to be ready", lambda: ROOT in machine.pool.volumes and bool(machine.files), 60)
        await elapse(300)
        await settled(agent)
        assert report(agent).say == "ready to take it over"
        assert not machine.host.guests
        await machine.upsert(agent, {KEY: vm_objects(role=VM_ROLE_OWNER)[KEY]})
        await until("its owner to start it", lambda: machine.running() == {VM}, 60)
        await agent.stop()

    run(scenario)


def test_what_arrives_is_not_resumed_by_us() -> None:
    async def scenario() -> None:
        machine = Machine()
        agent, _ = await started(machine)
        machine.host.suspend(VM, PauseReason.MIGRATION)
        await machine.upsert(agent, {KEY: vm_objects(role=VM_ROLE_INCOMING)[KEY]})
        await elapse(300)
        assert machine.running() == set()
        assert (report(agent).state, report(agent).say) == (VmReport.STATE_PREPARING, "it is arriving")
        live = machine.host.guests[VM].live
        assert live is not None
        live.paused, live.pause = False, PauseReason.NONE
        machine.host.notices.tell(VM)
        await ran(agent, VM)
        await agent.stop()

    run(scenario)


def test_the_node_it_leaves_changes_nothing_of_it() -> None:
    async def scenario() -> None:
        machine = Machine()
        agent, _ = await started(machine)
        before = agent.guests.actions
        outgoing = vm_objects(role=VM_ROLE_OUTGOING, cpus=4, reboot_generation=3, spec_revision=9)
        await machine.upsert(agent, {KEY: outgoing[KEY]})
        await elapse(120)
        assert (agent.guests.actions, machine.running()) == (before, {VM})
        machine.host.crash(VM)
        await elapse(600)
        assert machine.host.boots == [VM], "another node is about to have it"
        assert report(agent).state == VmReport.STATE_STOPPED
        await agent.stop()

    run(scenario)


def test_after_a_cold_start_a_guest_that_needs_a_permit_waits_for_a_controller() -> None:
    async def scenario() -> None:
        machine = Machine()
        machine.hold_image()
        agent = machine.agent()
        await agent.start()
        agent.guests.permitted = lambda: True
        await machine.snapshot(agent, vm_objects(needs_permit=True))
        await ran(agent, VM)
        await settled(agent)
        await machine.crash(agent)
        machine.host.power_off()
        agent = machine.agent()
        await agent.start()
        await elapse(300)
        assert machine.running() == set()
        assert "permit" in report(agent).say
        agent.guests.permitted = lambda: True
        await until("it to run again", lambda: machine.running() == {VM}, 10)
        await agent.stop()

    run(scenario)


def test_one_that_needs_no_permit_runs_again_by_the_ledger_alone() -> None:
    async def scenario() -> None:
        machine = Machine()
        agent, _ = await started(machine)
        await machine.crash(agent)
        machine.host.power_off()
        agent = machine.agent()
        await agent.start()
        await until("it to run again", lambda: machine.running() == {VM}, 60)
        await agent.stop()

    run(scenario)


def test_a_reboot_is_seen_counted_and_told() -> None:
    async def scenario() -> None:
        machine = Machine()
        agent, told = await started(machine)
        assert (report(agent).boots, report(agent).rebooted_generation) == (1, 0)
        await machine.upsert(agent, {KEY: vm_objects(reboot_generation=1, spec_revision=6)[KEY]})
        await until("the reboot to be seen", lambda: report(agent).rebooted_generation == 1, 60)
        await settled(agent)
        assert (report(agent).boots, report(agent).spec_revision, told.reasons()) == (2, 6, ["Rebooted"])
        machine.host.guest_reboot(VM)
        await until("its own to be seen", lambda: report(agent).boots == 3, 60)
        assert told.reasons() == ["Rebooted", "Rebooted"]
        await agent.stop()

    run(scenario)


def test_a_guest_that_ignores_the_button_is_asked_again_and_then_told_of() -> None:
    async def scenario() -> None:
        machine = Machine()
        agent, told = await started(machine)
        machine.host.deaf.add(VM)
        await machine.upsert(agent, {KEY: vm_objects(reboot_generation=1, spec_revision=6)[KEY]})
        await elapse(60)
        assert report(agent).rebooted_generation == 0
        assert report(agent).spec_revision < 6
        assert "not reacted" in report(agent).say
        await until("it to be given up", lambda: told.reasons() == ["RebootIgnored"], 60)
        await settled(agent)
        assert (report(agent).rebooted_generation, report(agent).spec_revision) == (0, 6)
        assert "cairn vm reboot web1 --force" in report(agent).say
        machine.host.deaf.clear()
        await elapse(600)
        assert machine.host.boots == [VM], "given up: not pressed at any later time"
        await machine.upsert(agent, {KEY: vm_objects(reboot_generation=2, force=True, spec_revision=7)[KEY]})
        await until("the forced one", lambda: report(agent).rebooted_generation == 2, 60)
        await agent.stop()

    run(scenario)


def test_a_guest_that_was_booting_hears_the_second_press() -> None:
    async def scenario() -> None:
        machine = Machine()
        agent, _ = await started(machine)
        machine.host.deaf.add(VM)
        await machine.upsert(agent, {KEY: vm_objects(reboot_generation=1, spec_revision=6)[KEY]})
        await elapse(10)
        machine.host.deaf.clear()
        await until("the reboot", lambda: report(agent).rebooted_generation == 1, 60)
        assert machine.host.boots == [VM, VM]
        await agent.stop()

    run(scenario)


def test_a_restarted_agent_presses_no_button_for_a_reboot_asked_before() -> None:
    async def scenario() -> None:
        machine = Machine()
        agent, _ = await started(machine)
        machine.host.deaf.add(VM)
        await machine.upsert(agent, {KEY: vm_objects(reboot_generation=1, spec_revision=6)[KEY]})
        await elapse(10)
        await machine.crash(agent)
        machine.host.deaf.clear()
        agent = machine.agent()
        await agent.start()
        await elapse(300)
        assert machine.host.boots == [VM]
        assert report(agent).spec_revision == 6
        await agent.stop()

    run(scenario)


def with_data(**more: Any) -> dict[str, Desired]:
    data = root_volume(2)
    data.image = data.image_digest = ""
    disks = [VmDisk(volume=ROOT, boot=True), VmDisk(volume=DATA, slot=1)]
    return {**vm_objects(disks=disks, **more), f"volume/{DATA}": Desired(volume=data)}


def test_reports_list_what_a_guest_has_open_and_why_it_lacks_the_rest() -> None:
    async def scenario() -> None:
        machine = Machine()
        agent, _ = await started(machine)
        assert list(report(agent).open_volumes) == [ROOT]
        machine.knobs.fail_before["attach_disk"] = 3
        await machine.upsert(agent, with_data(spec_revision=6, volumes_generation=1))
        await until("the trouble to be told", lambda: bool(report(agent).volume_troubles), 5)
        assert (report(agent).volume_troubles[0].volume, list(report(agent).open_volumes)) == (DATA, [ROOT])
        assert "on purpose" in report(agent).volume_troubles[0].error
        await until("it to be plugged", lambda: list(report(agent).open_volumes) == [ROOT, DATA], 60)
        await settled(agent)
        assert not report(agent).volume_troubles
        machine.host.clinging.add(DATA)
        await machine.upsert(agent, {KEY: vm_objects(spec_revision=7, volumes_generation=2)[KEY]})
        await until("the trouble to be told", lambda: bool(report(agent).volume_troubles), 60)
        assert (list(report(agent).open_volumes), report(agent).volumes_generation) == ([ROOT, DATA], 2)
        machine.host.clinging.clear()
        await until("it to be unplugged", lambda: list(report(agent).open_volumes) == [ROOT], 60)
        await machine.upsert(agent, {KEY: vm_objects(spec_revision=8, power_state=2)[KEY]})
        await until("its end", lambda: state_of(agent, VM) == VmReport.STATE_STOPPED, 60)
        assert list(report(agent).open_volumes) == []
        await agent.stop()

    run(scenario)


def test_a_guest_that_is_off_has_no_trouble_with_plugging() -> None:
    async def scenario() -> None:
        machine = Machine()
        agent, _ = await started(machine)
        machine.knobs.fail_before["attach_disk"] = 1000
        await machine.upsert(agent, with_data(spec_revision=6, volumes_generation=1))
        await until("the trouble to be told", lambda: bool(report(agent).volume_troubles), 5)
        await machine.upsert(agent, {KEY: with_data(spec_revision=7, volumes_generation=1, power_state=2)[KEY]})
        await until("its end", lambda: state_of(agent, VM) == VmReport.STATE_STOPPED, 60)
        await settled(agent)
        assert (list(report(agent).volume_troubles), report(agent).spec_revision) == ([], 7)
        await agent.stop()

    run(scenario)


def test_a_disk_that_cannot_be_plugged_keeps_no_other_waiting() -> None:
    async def scenario() -> None:
        machine = Machine()
        agent, _ = await started(machine)
        third = root_volume(3)
        third.image = third.image_digest = ""
        objects = with_data(spec_revision=6)
        objects[KEY].vm.disks.add(volume="vol-00000003", slot=2)
        objects["volume/vol-00000003"] = Desired(volume=third)
        machine.knobs.fail_before["attach_disk"] = 1
        await machine.upsert(agent, objects)
        await until("the second", lambda: "vol-00000003" in report(agent).open_volumes, 5)
        await until("the first", lambda: list(report(agent).open_volumes) == [ROOT, DATA, "vol-00000003"], 60)
        await agent.stop()

    run(scenario)
