"""What to do about one guest: (what is wanted, what is there, what we remember, now) -> actions, report, note. Pure.

    verdict = plan_vm(wanted, found, note, memory, now_s)
    verdict.actions     # in order; empty when the world matches or something must come first (verdict.report.say says what)
    verdict.report      # what to tell the controller
    verdict.note        # what to remember, durably, before acting

Volumes, images and networks have plans of their own (storage/plan.py, net/plan.py) and are served first: a guest whose volumes
or ports are not there yet waits. The order for a guest is seed -> define -> start (paused) -> bind its ports -> resume.

What the guest did itself decides whether it runs again (RestartPolicy): one that shut itself down stays off until the power
generation grows; a crashed one is started again, later and later. A guest we do not want any more is never asked: its power is
cut, its configuration and seed removed; its volumes are objects of their own and stay.

Rejected: one plan of the whole node. It would be read and made again for every change of any guest.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from cairn.agent.hypervisor.base import Disk, Domain, DomainSpec, DomainState, ExitCause
from cairn.proto.v1.agent_pb2 import DesiredVm, VmReport
from cairn.proto.v1.vm_pb2 import (
    POWER_STATE_STOPPED,
    RESTART_POLICY_ALWAYS,
    RESTART_POLICY_NEVER,
)

CRASH_BACKOFF_S = 1.0
CRASH_BACKOFF_S_MAX = 300.0
# A guest that ran this long has recovered: its next crash is its first.
STEADY_S = 600.0
# A guest that did not react to the power button (it may have been booting) is asked again.
ASK_AGAIN_S = 30.0
CLOCK_SLACK_S = 0.001

_CAUSE = {
    ExitCause.NONE: "",
    ExitCause.GUEST: "guest",
    ExitCause.CRASHED: "crashed",
    ExitCause.STOPPED: "stopped",
}
_EXIT = {
    "": VmReport.EXIT_UNSPECIFIED,
    "guest": VmReport.EXIT_GUEST,
    "crashed": VmReport.EXIT_CRASHED,
    "stopped": VmReport.EXIT_STOPPED,
}


@dataclass(frozen=True, slots=True)
class Action:
    """Base of what a guest's plan consists of."""

    id: str


@dataclass(frozen=True, slots=True)
class WriteSeed(Action):
    """Make the seed image as the guest should find it at its next start."""

    vm: DesiredVm


@dataclass(frozen=True, slots=True)
class Define(Action):
    """Make or replace the configuration."""

    spec: DomainSpec


@dataclass(frozen=True, slots=True)
class Start(Action):
    """Start it paused."""

    power_generation: int
    reboot_generation: int


@dataclass(frozen=True, slots=True)
class BindPorts(Action):
    """Have the dataplane take its TAPs; done when all of them are bound."""

    ports: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Resume(Action):
    """Let it run."""


@dataclass(frozen=True, slots=True)
class Stop(Action):
    """Ask it to shut down, or cut its power."""

    force: bool


@dataclass(frozen=True, slots=True)
class Reboot(Action):
    """Restart it in place."""

    force: bool
    reboot_generation: int


@dataclass(frozen=True, slots=True)
class AttachDisk(Action):
    """Plug a disk in while it runs."""

    disk: Disk


@dataclass(frozen=True, slots=True)
class DetachDisk(Action):
    """Unplug a disk while it runs."""

    volume: str


@dataclass(frozen=True, slots=True)
class Undefine(Action):
    """Cut its power and remove its configuration."""


@dataclass(frozen=True, slots=True)
class RemoveFiles(Action):
    """Delete its seed and console log."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """A desired guest and what its definition needs, as far as that is there."""

    vm: DesiredVm
    # None: `waits` says for which volume.
    spec: DomainSpec | None
    # Of the whole definition, and of the part that a running guest cannot take (its data disks can be plugged).
    digest: str = ""
    machine_digest: str = ""
    # One sentence: what must come first before it can start; empty: nothing.
    waits: str = ""
    # Its ports not yet bound.
    unbound: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Found:
    """What is there of a guest."""

    domain: Domain | None = None
    # It has a seed or a console log.
    files: bool = False


@dataclass(frozen=True, slots=True)
class Note:
    """What is remembered of a guest over restarts of the agent and of the hypervisor."""

    # The last power generation that was answered; -1: none was.
    power_generation: int = -1
    # The same for reboots: a configuration that was lost and made again knows of none.
    reboot_generation: int = -1
    # Why it is off: "", "guest", "crashed" or "stopped".
    exit: str = ""
    # Crashes in a row.
    crashes: int = 0
    # Machine digest it was last started with.
    machine_digest: str = ""


def noted(content: Mapping[str, Any]) -> Note:
    """Return a note as it was written, by whatever release: what this one does not know of is left aside."""
    known = {each.name for each in fields(Note)}
    return Note(**{name: value for name, value in content.items() if name in known})


@dataclass(frozen=True, slots=True)
class Memory:
    """What is remembered of a guest while this agent runs. Times are the event loop's."""

    # When the guest was last asked to shut down.
    asked_s: float | None = None
    # When it was first seen running.
    running_s: float | None = None
    # When it was first seen off after ending by itself.
    ended_s: float | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """What to do, to tell and to remember."""

    report: VmReport
    actions: tuple[Action, ...] = ()
    note: Note = field(default_factory=Note)
    memory: Memory = field(default_factory=Memory)
    # Look again after this many seconds even if nothing changes; 0: no need.
    again_after_s: float = 0.0


def plan_gone(id: str, found: Found) -> tuple[Action, ...]:
    """Return what removes a guest and everything made for it; empty when nothing is left."""
    actions: tuple[Action, ...] = ()
    if found.domain is not None:
        actions += (Undefine(id),)
    if found.domain is not None or found.files:
        actions += (RemoveFiles(id),)
    return actions


def plan_vm(wanted: Wanted, found: Found, note: Note, memory: Memory, now_s: float) -> Verdict:
    """Return the verdict on a desired guest."""
    vm, domain = wanted.vm, found.domain
    if vm.absent:
        actions = plan_gone(vm.id, found)
        state = VmReport.STATE_STOPPING if actions else VmReport.STATE_ABSENT
        return Verdict(_report(wanted, None, state, "being removed" if actions else "removed"), actions)
    if domain is None or domain.state is DomainState.SHUT_OFF:
        return _off(wanted, found, note, memory, now_s)
    if domain.state is DomainState.STARTING:
        return _starting(wanted, domain, note, memory)
    memory = replace(memory, ended_s=None, running_s=now_s if memory.running_s is None else memory.running_s)
    if vm.power_state == POWER_STATE_STOPPED:
        return _stopping(wanted, domain, note, memory, now_s)
    return _running(wanted, domain, _seen_running(note, vm, domain, memory, now_s), memory, now_s)


# --- off -----------------------------------------------------------------------------------------------------------------


def _off(wanted: Wanted, found: Found, note: Note, memory: Memory, now_s: float) -> Verdict:
    vm, domain = wanted.vm, found.domain
    if vm.power_state == POWER_STATE_STOPPED:
        return _stopped(wanted, domain, note)
    cause = note.exit or (_CAUSE[domain.exit] if domain is not None else "")
    note, memory = _ended(note, memory, domain, cause, now_s)
    stays, wait_s = _stays_off(wanted, domain, note, cause), _wait_s(note, memory, cause, now_s)
    if _asked_anew(wanted, domain, note):
        stays, wait_s, note = False, 0.0, replace(note, crashes=0)
    if stays:
        state = VmReport.STATE_FAILED if cause == "crashed" else VmReport.STATE_STOPPED
        error = "the guest crashed, and its restart policy is never" if cause == "crashed" else ""
        report = _report(wanted, domain, state, _off_say(vm, cause), error=error, exit=cause)
        return Verdict(report, _define(wanted, domain), note, memory)
    if wait_s > 0:
        say = f"the guest crashed ({note.crashes} times in a row), starting it again in {wait_s:.0f} s"
        if cause == "guest":
            say = f"the guest shut itself down, starting it again in {wait_s:.0f} s"
        report = _report(wanted, domain, VmReport.STATE_PREPARING, say, exit=cause)
        return Verdict(report, (), note, memory, again_after_s=wait_s)
    if wanted.waits or wanted.spec is None:
        early = () if found.files else (WriteSeed(vm.id, vm),)
        return Verdict(_report(wanted, domain, VmReport.STATE_PREPARING, wanted.waits), early, note, memory)
    actions = (
        WriteSeed(vm.id, vm),
        *_define(wanted, domain),
        Start(vm.id, vm.power_generation, vm.reboot_generation),
        *_bind(wanted, started=False),
        Resume(vm.id),
    )
    note = replace(note, exit="", machine_digest=wanted.machine_digest)
    memory = replace(memory, asked_s=None, running_s=None, ended_s=None)
    return Verdict(_report(wanted, domain, VmReport.STATE_PREPARING, "starting"), actions, note, memory)


def _stopped(wanted: Wanted, domain: Domain | None, note: Note) -> Verdict:
    """A guest that shall be off, and is."""
    vm = wanted.vm
    note = replace(note, exit="stopped", crashes=0, power_generation=vm.power_generation)
    if domain is None and wanted.spec is None:
        return Verdict(_report(wanted, domain, VmReport.STATE_PREPARING, wanted.waits), (), note)
    seed = (WriteSeed(vm.id, vm),) if domain is None else ()
    actions = (*seed, *_define(wanted, domain))
    say = f"stopped; `cairn vm start {vm.name}` runs it"
    return Verdict(_report(wanted, domain, VmReport.STATE_STOPPED, say, exit="stopped"), actions, note)


def _ended(note: Note, memory: Memory, domain: Domain | None, cause: str, now_s: float) -> tuple[Note, Memory]:
    """Remember that, and when, a guest ended by itself."""
    if domain is None or cause not in ("guest", "crashed"):
        return note, memory
    if not note.exit:
        steady = memory.running_s is not None and now_s - memory.running_s >= STEADY_S
        crashes = 1 if steady else note.crashes + 1
        note = replace(note, exit=cause, crashes=crashes)
        # A crash nobody was there to see is long over.
        memory = replace(memory, ended_s=now_s, running_s=None)
    return note, memory


def _stays_off(wanted: Wanted, domain: Domain | None, note: Note, cause: str) -> bool:
    policy = wanted.vm.restart_policy
    if cause == "stopped":
        return False
    if cause == "guest":
        return policy != RESTART_POLICY_ALWAYS
    if cause == "crashed":
        return policy == RESTART_POLICY_NEVER
    ran = note.power_generation >= 0 or (domain is not None and domain.power_generation > 0)
    return ran and policy == RESTART_POLICY_NEVER


def _asked_anew(wanted: Wanted, domain: Domain | None, note: Note) -> bool:
    """Whether a start or reboot was asked for since it last ran."""
    answered = max(note.power_generation, domain.power_generation if domain is not None else -1)
    if 0 <= answered < wanted.vm.power_generation:
        return True
    rebooted = max(note.reboot_generation, domain.reboot_generation if domain is not None else -1)
    return domain is not None and rebooted < wanted.vm.reboot_generation


def _wait_s(note: Note, memory: Memory, cause: str, now_s: float) -> float:
    if cause not in ("guest", "crashed") or memory.ended_s is None:
        return 0.0
    backoff = min(CRASH_BACKOFF_S * 2.0 ** min(max(note.crashes - 1, 0), 20), CRASH_BACKOFF_S_MAX)
    left_s = memory.ended_s + backoff - now_s
    # Timers fire up to the clock's resolution early.
    return left_s if left_s > CLOCK_SLACK_S else 0.0


def _off_say(vm: DesiredVm, cause: str) -> str:
    if cause == "guest":
        return f"the guest shut itself down; `cairn vm start {vm.name}` runs it again"
    if cause == "crashed":
        return f"the guest crashed; `cairn vm start {vm.name}` runs it again"
    return f"the node was restarted; `cairn vm start {vm.name}` runs it again"


def _define(wanted: Wanted, domain: Domain | None) -> tuple[Action, ...]:
    if wanted.spec is None or (domain is not None and domain.digest == wanted.digest):
        return ()
    return (Define(wanted.vm.id, wanted.spec),)


# --- on ------------------------------------------------------------------------------------------------------------------


def _bind(wanted: Wanted, *, started: bool) -> tuple[Action, ...]:
    """Ports to bind: all of them for a guest about to start, else those that are not."""
    ports = wanted.unbound if started else tuple(nic.port for nic in wanted.vm.nics)
    return (BindPorts(wanted.vm.id, ports),) if ports else ()


def _starting(wanted: Wanted, domain: Domain, note: Note, memory: Memory) -> Verdict:
    """Started by us or by a killed predecessor, its first instruction not executed."""
    vm = wanted.vm
    if vm.power_state == POWER_STATE_STOPPED:
        return Verdict(_report(wanted, domain, VmReport.STATE_STOPPING, "stopping"), (Stop(vm.id, True),), note, memory)
    actions = (*_bind(wanted, started=True), Resume(vm.id))
    return Verdict(_report(wanted, domain, VmReport.STATE_PREPARING, "starting"), actions, note, memory)


def _seen_running(note: Note, vm: DesiredVm, domain: Domain, memory: Memory, now_s: float) -> Note:
    """A running guest answers the power generation, whoever started it."""
    steady = memory.running_s is not None and now_s - memory.running_s >= STEADY_S
    generation = max(vm.power_generation, domain.power_generation)
    rebooted, crashes = max(note.reboot_generation, domain.reboot_generation), 0 if steady else note.crashes
    return replace(note, exit="", power_generation=generation, reboot_generation=rebooted, crashes=crashes)


def _running(wanted: Wanted, domain: Domain, note: Note, memory: Memory, now_s: float) -> Verdict:
    vm = wanted.vm
    pending = bool(wanted.machine_digest and note.machine_digest and wanted.machine_digest != note.machine_digest)
    rebooting = domain.state is not DomainState.PAUSED and domain.reboot_generation < vm.reboot_generation
    say = "running; its new configuration takes effect when it is restarted" if pending else "running"
    # A guest that clings to a disk lets go of it at the reboot.
    actions = (*(() if rebooting else _plug(wanted, domain)), *_define(wanted, domain))
    if domain.state is DomainState.PAUSED:
        actions += (Resume(vm.id),)
        say = "the guest was paused; letting it run"
    elif rebooting:
        restart, memory = _restart(vm, domain, memory, now_s, pending=pending)
        actions += restart
        say = "rebooting"
    elif wanted.spec is None:
        say = f"running; {wanted.waits}"
    settled = not actions and not rebooting and wanted.spec is not None
    report = _report(wanted, domain, VmReport.STATE_RUNNING, say, settled=settled)
    return Verdict(report, actions, note, memory, again_after_s=ASK_AGAIN_S if rebooting else 0.0)


def _restart(
    vm: DesiredVm, domain: Domain, memory: Memory, now_s: float, *, pending: bool
) -> tuple[tuple[Action, ...], Memory]:
    """Reboot in place; but one that would not see its new configuration that way goes off, and then on again."""
    if not pending:
        return (Reboot(vm.id, vm.force, vm.reboot_generation),), memory
    ask, memory = _ask(memory, now_s)
    if ask or vm.force or domain.state is not DomainState.STOPPING:
        return (Stop(vm.id, vm.force),), memory
    return (), memory


def _plug(wanted: Wanted, domain: Domain) -> tuple[Action, ...]:
    """Data disks to plug in and out; the boot disk stays what it was started with."""
    if wanted.spec is None:
        return ()
    disks = {disk.volume: disk for disk in wanted.spec.disks}
    out = tuple(DetachDisk(wanted.vm.id, volume) for volume in sorted(set(domain.volumes) - disks.keys()))
    plugged = [disks[volume] for volume in sorted(disks.keys() - set(domain.volumes)) if not disks[volume].boot]
    return out + tuple(AttachDisk(wanted.vm.id, disk) for disk in plugged)


def _stopping(wanted: Wanted, domain: Domain, note: Note, memory: Memory, now_s: float) -> Verdict:
    vm = wanted.vm
    if vm.force:
        report = _report(wanted, domain, VmReport.STATE_STOPPING, "its power is being cut")
        return Verdict(report, (Stop(vm.id, True),), note, memory)
    ask, memory = _ask(memory, now_s)
    ask = ask or domain.state is not DomainState.STOPPING
    resume = (Resume(vm.id),) if domain.state is DomainState.PAUSED else ()
    actions = (*resume, Stop(vm.id, False)) if ask else ()
    say = f"the guest was asked to shut down; `cairn vm stop {vm.name} --force` cuts its power"
    return Verdict(_report(wanted, domain, VmReport.STATE_STOPPING, say), actions, note, memory, again_after_s=ASK_AGAIN_S)


def _ask(memory: Memory, now_s: float) -> tuple[bool, Memory]:
    """Whether it is time to press the power button (again)."""
    if memory.asked_s is not None and now_s - memory.asked_s < ASK_AGAIN_S:
        return False, memory
    return True, replace(memory, asked_s=now_s)


# --- report --------------------------------------------------------------------------------------------------------------


def _report(
    wanted: Wanted,
    domain: Domain | None,
    state: VmReport.State.ValueType,
    say: str,
    *,
    error: str = "",
    exit: str = "",
    settled: bool | None = None,
) -> VmReport:
    """Build the report; settled None: as the state says."""
    vm = wanted.vm
    if settled is None:
        settled = state in (VmReport.STATE_STOPPED, VmReport.STATE_ABSENT, VmReport.STATE_FAILED)
    report = VmReport(state=state, say=say, error=error, exit=_EXIT[exit])
    report.spec_revision = vm.spec_revision if settled else (domain.spec_revision if domain is not None else 0)
    if domain is not None:
        report.power_generation, report.reboot_generation = domain.power_generation, domain.reboot_generation
        if domain.start_time and state == VmReport.STATE_RUNNING:
            report.start_time.FromMicroseconds(int(domain.start_time * 1_000_000))
    if state == VmReport.STATE_RUNNING or settled:
        report.power_generation = max(report.power_generation, vm.power_generation)
    if settled and state != VmReport.STATE_RUNNING:
        report.reboot_generation = vm.reboot_generation
    return report
