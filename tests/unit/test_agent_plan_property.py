"""What no guest's plan may ever say, whatever is wanted, found and remembered."""

from __future__ import annotations

import dataclasses

import pytest
from cairn.agent.actions import Action, AttachDisk, Define, Reboot, Resume, Start, Stop
from cairn.agent.hypervisor.base import Disk, Domain, DomainSpec, DomainState, ExitCause, PauseReason
from cairn.agent.plan import plan_vm
from cairn.agent.verdict import Found, Memory, Note, Verdict, Wanted
from cairn.proto.v1.agent_pb2 import (
    VM_PAUSE_UNSPECIFIED,
    VM_ROLE_INCOMING,
    VM_ROLE_OUTGOING,
    VM_ROLE_OWNER,
    VM_ROLE_UNSPECIFIED,
    DesiredVm,
    VmReport,
)
from cairn.proto.v1.vm_pb2 import POWER_STATE_RUNNING, POWER_STATE_STOPPED
from hypothesis import given, settings
from hypothesis import strategies as st

ID = "i-0000001a"
ROLES = st.sampled_from([VM_ROLE_UNSPECIFIED, VM_ROLE_OWNER, VM_ROLE_INCOMING, VM_ROLE_OUTGOING])
GENERATIONS = st.integers(0, 3)
DISKS = [
    Disk("vol-root", "/root", "qcow2", boot=True),
    Disk("vol-a", "/a", "qcow2", slot=1),
    Disk("vol-b", "/b", "qcow2", slot=2),
]
TIMES = st.none() | st.floats(0, 1000)

domains = st.builds(
    Domain,
    id=st.just(ID),
    state=st.sampled_from(DomainState),
    exit=st.sampled_from(ExitCause),
    power_generation=GENERATIONS,
    reboot_generation=GENERATIONS,
    rebooted_generation=GENERATIONS,
    spec_revision=st.integers(0, 9),
    digest=st.sampled_from(["", "d1", "d2"]),
    volumes=st.sampled_from([(), ("vol-root",), ("vol-root", "vol-a", "vol-b"), ("vol-root", "vol-gone")]),
    pause=st.sampled_from(PauseReason),
    boots=st.integers(0, 3),
)
desired = st.builds(
    DesiredVm,
    id=st.just(ID),
    name=st.just("web"),
    absent=st.booleans(),
    role=ROLES,
    needs_permit=st.booleans(),
    power_state=st.sampled_from([POWER_STATE_RUNNING, POWER_STATE_STOPPED]),
    power_generation=GENERATIONS,
    reboot_generation=GENERATIONS,
    force=st.booleans(),
    restart_policy=st.integers(0, 3),
    spec_revision=st.integers(1, 9),
)
notes = st.builds(
    Note,
    power_generation=st.integers(-1, 3),
    reboot_generation=st.integers(-1, 3),
    exit=st.sampled_from(["", "guest", "crashed", "stopped", "migrated"]),
    crashes=st.integers(0, 3),
    machine_digest=st.sampled_from(["", "m1"]),
    reboot_ignored=st.integers(-1, 3),
)
memories = st.builds(
    Memory,
    asked_s=TIMES,
    running_s=TIMES,
    ended_s=TIMES,
    pause=st.sampled_from(PauseReason),
    tried_s=TIMES,
    tries=st.integers(0, 9),
    reboot_s=TIMES,
    reboot_asked_s=TIMES,
    boots=st.none() | st.integers(0, 3),
)


@st.composite
def situations(draw: st.DrawFn) -> tuple[Wanted, Found, Note, Memory, float]:
    vm = draw(desired)
    spec = DomainSpec(vm, tuple(DISKS)) if draw(st.booleans()) else None
    wanted = Wanted(vm, spec, "d1", draw(st.sampled_from(["m1", "m2"])), "" if spec else "waits", (), draw(st.booleans()))
    found = Found(draw(st.none() | domains), draw(st.booleans()))
    return wanted, found, draw(notes), draw(memories), draw(st.floats(0, 2000))


def has(verdict: Verdict, *kinds: type[Action]) -> bool:
    return any(isinstance(action, kinds) for action in verdict.actions)


@settings(max_examples=500)
@given(situations())
def test_a_guest_runs_only_where_it_may(situation: tuple[Wanted, Found, Note, Memory, float]) -> None:
    wanted, found, note, memory, now_s = situation
    vm, domain = wanted.vm, found.domain
    verdict = plan_vm(wanted, found, note, memory, now_s)
    off = domain is None or domain.state is DomainState.SHUT_OFF
    begins = has(verdict, Start) or (has(verdict, Resume) and domain is not None and domain.state is DomainState.STARTING)
    if vm.absent or vm.power_state == POWER_STATE_STOPPED:
        assert not has(verdict, Start)
    if vm.absent:
        return
    if vm.role == VM_ROLE_INCOMING:
        assert not has(verdict, Start, Resume, Define, AttachDisk, Reboot)
    if vm.role == VM_ROLE_OUTGOING:
        assert not has(verdict, Start, Define, AttachDisk, Reboot)
    if vm.needs_permit and not wanted.permitted:
        assert not begins
    if off and "migrated" in (note.exit, "" if note.exit or domain is None else domain.exit.name.lower()):
        assert not has(verdict, Start)
        assert verdict.note.exit == "migrated", "also once its configuration is gone"


@settings(max_examples=500)
@given(situations())
def test_what_is_paused_is_told_and_not_resumed_in_a_loop(situation: tuple[Wanted, Found, Note, Memory, float]) -> None:
    wanted, found, note, memory, now_s = situation
    vm, domain = wanted.vm, found.domain
    if vm.absent or vm.role == VM_ROLE_INCOMING or vm.power_state == POWER_STATE_STOPPED:
        return
    if domain is None or domain.state is not DomainState.PAUSED:
        return
    verdict = plan_vm(wanted, found, note, memory, now_s)
    assert verdict.report.state == VmReport.STATE_RUNNING
    assert verdict.report.spec_revision < vm.spec_revision
    assert (verdict.report.pause == VM_PAUSE_UNSPECIFIED) == (domain.pause is PauseReason.NONE)
    if domain.pause is PauseReason.MIGRATION:
        assert not verdict.actions
    again = plan_vm(wanted, found, verdict.note, verdict.memory, now_s)
    assert not has(again, Resume), "that helped nothing: now time must pass"
    assert not again.told


@settings(max_examples=300)
@given(situations())
def test_what_a_report_lists_as_open_is_what_the_process_has(situation: tuple[Wanted, Found, Note, Memory, float]) -> None:
    wanted, found, note, memory, now_s = situation
    report = plan_vm(wanted, found, note, memory, now_s).report
    domain = found.domain
    on = domain is not None and domain.state is not DomainState.SHUT_OFF
    assert list(report.open_volumes) == (list(domain.volumes) if domain is not None and on else [])
    missing = {disk.volume for disk in DISKS[1:]} - set(report.open_volumes)
    runs = report.state == VmReport.STATE_RUNNING and not wanted.vm.absent and wanted.vm.role != VM_ROLE_INCOMING
    if runs and missing and wanted.spec is not None:
        assert report.spec_revision < wanted.vm.spec_revision, "a guest that lacks a disk is not as asked"


@given(domains, memories, st.sampled_from([POWER_STATE_RUNNING, POWER_STATE_STOPPED]))
def test_a_guest_that_is_off_gets_the_disks_wanted_and_no_other(domain: Domain, memory: Memory, power: int) -> None:
    """Also when its configuration's digest is the wanted one: what was plugged in since changed the configuration alone."""
    vm = DesiredVm(id=ID, name="web", power_state=power, power_generation=4, spec_revision=9)  # type: ignore[arg-type]
    domain = dataclasses.replace(domain, state=DomainState.SHUT_OFF, exit=ExitCause.STOPPED)
    verdict = plan_vm(Wanted(vm, DomainSpec(vm, tuple(DISKS)), "d1", "m1"), Found(domain, True), Note(), memory, 2000.0)
    assert has(verdict, Start) is (power == POWER_STATE_RUNNING)
    has_them = set(domain.volumes) == {disk.volume for disk in DISKS}
    assert has(verdict, Define) is (domain.digest != "d1" or not has_them)


def test_a_guest_that_ignored_a_reboot_is_said_to_have_a_new_configuration_too() -> None:
    vm = DesiredVm(id=ID, name="web", power_state=POWER_STATE_RUNNING, reboot_generation=1, spec_revision=9)
    volumes = tuple(disk.volume for disk in DISKS)
    domain = Domain(ID, DomainState.RUNNING, digest="d1", volumes=volumes, reboot_generation=1)
    note = Note(power_generation=0, reboot_generation=1, machine_digest="m1", reboot_ignored=1)
    verdict = plan_vm(Wanted(vm, DomainSpec(vm, tuple(DISKS)), "d1", "m2"), Found(domain, True), note, Memory(), 2000.0)
    assert "did not react to the reboot" in verdict.report.say
    assert verdict.report.say.endswith("its new configuration takes effect when it is restarted")


@pytest.mark.parametrize(("started_with", "waits"), [("m1", True), ("m2", False), ("", False)])
def test_a_guest_whose_note_is_lost_tells_what_it_was_started_with(started_with: str, waits: bool) -> None:
    vm = DesiredVm(id=ID, name="web", power_state=POWER_STATE_RUNNING, spec_revision=9)
    volumes = tuple(disk.volume for disk in DISKS)
    domain = Domain(ID, DomainState.RUNNING, digest="d1", volumes=volumes, machine_digest=started_with)
    verdict = plan_vm(Wanted(vm, DomainSpec(vm, tuple(DISKS)), "d1", "m2"), Found(domain, True), Note(), Memory(), 2000.0)
    assert ("its new configuration takes effect" in verdict.report.say) is waits
    assert verdict.note.machine_digest == started_with


@pytest.mark.parametrize("defined", ["d1", "d0"])
def test_one_that_was_started_by_hand_has_what_it_was_defined_with_then(defined: str) -> None:
    vm = DesiredVm(id=ID, name="web", power_state=POWER_STATE_RUNNING, spec_revision=9)
    domain = Domain(ID, DomainState.RUNNING, digest=defined, volumes=tuple(disk.volume for disk in DISKS))
    wanted = Wanted(vm, DomainSpec(vm, tuple(DISKS)), "d1", "m1")
    first = plan_vm(wanted, Found(domain, True), Note(exit="guest", machine_digest="m0"), Memory(), 2000.0)
    assert ("its new configuration takes effect" in first.report.say) is (defined != "d1")
    after = dataclasses.replace(wanted, digest="d2", machine_digest="m2")
    later = plan_vm(after, Found(domain, True), first.note, first.memory, 2001.0)
    assert "its new configuration takes effect" in later.report.say


@pytest.mark.parametrize("defined", ["d1", "d0"])
def test_one_that_was_stopped_and_started_by_hand_while_nobody_looked_is_asked_once_what_it_has(defined: str) -> None:
    """Its note knows of no end: that the process is not ours tells. What was found out of it holds until it is started anew."""
    vm = DesiredVm(id=ID, name="web", power_state=POWER_STATE_RUNNING, spec_revision=9)
    disks = tuple(disk.volume for disk in DISKS)
    domain = Domain(ID, DomainState.RUNNING, digest=defined, volumes=disks, machine_digest="m1", by_hand=True)
    wanted = Wanted(vm, DomainSpec(vm, tuple(DISKS)), "d1", "m1")
    first = plan_vm(wanted, Found(domain, True), Note(machine_digest="m1"), Memory(), 2000.0)
    assert ("its new configuration takes effect" in first.report.say) is (defined != "d1")
    assert has(first, Define) is (defined != "d1")
    again = plan_vm(wanted, Found(dataclasses.replace(domain, digest="d1"), True), first.note, first.memory, 2001.0)
    assert ("its new configuration takes effect" in again.report.say) is (defined != "d1"), "its definition changed, not it"
    ours = dataclasses.replace(domain, digest="d1", by_hand=False)
    later = plan_vm(wanted, Found(ours, True), dataclasses.replace(again.note, machine_digest="m1"), again.memory, 2002.0)
    assert "its new configuration takes effect" not in later.report.say
    assert not later.note.by_hand


@pytest.mark.parametrize(
    ("power", "reboot_generation"), [(POWER_STATE_STOPPED, 0), (POWER_STATE_RUNNING, 1)], ids=["stop", "reboot"]
)
def test_who_was_asked_to_go_off_is_asked_again_in_time_however_often_he_is_looked_at(
    power: int, reboot_generation: int
) -> None:
    vm = DesiredVm(id=ID, name="web", power_state=power, reboot_generation=reboot_generation, spec_revision=9)  # type: ignore[arg-type]
    domain = Domain(ID, DomainState.STOPPING, digest="d1", volumes=tuple(disk.volume for disk in DISKS))
    wanted, note = Wanted(vm, DomainSpec(vm, tuple(DISKS)), "d1", "m2"), Note(power_generation=0, machine_digest="m1")
    first = plan_vm(wanted, Found(domain, True), note, Memory(), 2000.0)
    assert (has(first, Stop), first.again_after_s) == (True, 30.0)
    looked = plan_vm(wanted, Found(domain, True), note, first.memory, 2020.0)
    assert (has(looked, Stop), looked.again_after_s) == (False, 10.0)
    again = plan_vm(wanted, Found(domain, True), note, looked.memory, 2030.0)
    assert (has(again, Stop), again.again_after_s) == (True, 30.0)
