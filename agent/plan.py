"""What to do about one guest: (what is wanted, what is there, what we remember, now) -> actions, report, note. Pure.

    verdict = plan_vm(wanted, found, note, memory, now_s)
    verdict.actions     # in order; empty when the world matches or something must come first (verdict.report.say says what)
    verdict.report      # what to tell the controller
    verdict.note        # what to remember, durably, before acting

Volumes, images and networks have plans of their own (storage/plan.py, net/plan.py) and are served first: a guest whose volumes
or ports are not there yet waits. The order for a guest is seed and define -> start (paused) -> bind its ports -> resume; the
first two need each other in nothing.

What the guest did itself decides whether it runs again (RestartPolicy): one that shut itself down stays off until the power
generation grows; a crashed one is started again, later and later; one that moved to another node is never started here again.
A guest we do not want any more is never asked: its power is
cut, its configuration and seed removed; its volumes are objects of their own and stay.

A node that is to take a VM over (role INCOMING) makes ready and never starts or resumes it; the one it leaves (OUTGOING) lets
it run and never starts it again. One that needs a permit is started only while a controller is heard.

Rejected: one plan of the whole node. It would be read and made again for every change of any guest.
"""

from __future__ import annotations

from dataclasses import replace

from cairn.agent import pauses, reboots
from cairn.agent.actions import (
    Action,
    AttachDisk,
    BindPorts,
    Define,
    DetachDisk,
    Reboot,
    RemoveFiles,
    Resume,
    Start,
    Stop,
    Undefine,
    WriteSeed,
)
from cairn.agent.growth import plan_growth
from cairn.agent.hypervisor.base import Domain, DomainState, PauseReason
from cairn.agent.verdict import CAUSE, CLOCK_SLACK_S, Found, Memory, Note, Verdict, Wanted, is_off, report_of
from cairn.proto.v1.agent_pb2 import VM_ROLE_INCOMING, VM_ROLE_OUTGOING, DesiredVm, VmReport
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
# A guest that waits for a permit to start.
PERMIT_AGAIN_S = 1.0
# Like no digest: what a guest was started with cannot be told any more.
UNKNOWN_MACHINE = "unknown"


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
        return Verdict(report_of(wanted, domain, state, "being removed" if actions else "removed"), actions)
    if vm.role == VM_ROLE_INCOMING:
        return _incoming(wanted, found, note, memory, now_s)
    if domain is None or is_off(domain):
        memory = pauses.forgotten(memory)
        elsewhere = _moved_away(domain, note)
        if elsewhere or vm.role == VM_ROLE_OUTGOING:
            return _left(wanted, domain, note, memory, elsewhere=elsewhere)
        return _off(wanted, found, note, memory, now_s)
    if domain.state is DomainState.STARTING:
        return _starting(wanted, domain, note, memory)
    memory = replace(memory, ended_s=None, running_s=now_s if memory.running_s is None else memory.running_s)
    if vm.power_state == POWER_STATE_STOPPED:
        return _stopping(wanted, domain, note, memory, now_s)
    if domain.state is DomainState.PAUSED:
        return pauses.plan_paused(wanted, domain, note, memory, now_s)
    return _running(wanted, domain, _seen_running(note, wanted, domain, memory, now_s), memory, now_s)


# --- on its way from one node to another -----------------------------------------------------------------------------------


def _incoming(wanted: Wanted, found: Found, note: Note, memory: Memory, now_s: float) -> Verdict:
    """Make all ready for a guest that another node still runs; what arrives is started by whoever moves it, not by us."""
    vm, domain = wanted.vm, found.domain
    if domain is None or is_off(domain):
        actions = () if found.files else (WriteSeed(vm.id, vm),)
        say = wanted.waits or "ready to take it over"
        note = replace(note, exit="migrated") if _moved_away(domain, note) else note
        return Verdict(report_of(wanted, domain, VmReport.STATE_PREPARING, say), actions, note, memory)
    if domain.state in (DomainState.STARTING, DomainState.PAUSED):
        return Verdict(report_of(wanted, domain, VmReport.STATE_PREPARING, "it is arriving"), (), note, memory)
    note = _seen_running(note, wanted, domain, memory, now_s)
    return Verdict(report_of(wanted, domain, VmReport.STATE_RUNNING, "it has arrived and runs"), (), note, memory)


def _moved_away(domain: Domain | None, note: Note) -> bool:
    """Tell whether a guest that is off here went to another node."""
    return (note.exit or (CAUSE[domain.exit] if domain is not None else "")) == "migrated"


def _left(wanted: Wanted, domain: Domain | None, note: Note, memory: Memory, *, elsewhere: bool) -> Verdict:
    """A guest that is off here and is not ours to start: it runs on another node, or is just being given to one."""
    cause = "migrated" if elsewhere else note.exit or (CAUSE[domain.exit] if domain is not None else "")
    say = "it moved to another node" if elsewhere else "off while it was to move to another node"
    report = report_of(wanted, domain, VmReport.STATE_STOPPED, say, exit=cause)
    return Verdict(report, (), replace(note, exit=cause), memory)


# --- off -----------------------------------------------------------------------------------------------------------------


def _off(wanted: Wanted, found: Found, note: Note, memory: Memory, now_s: float) -> Verdict:
    vm, domain = wanted.vm, found.domain
    if vm.power_state == POWER_STATE_STOPPED:
        return _stopped(wanted, domain, note)
    cause = note.exit or (CAUSE[domain.exit] if domain is not None else "")
    note, memory = _ended(note, memory, domain, cause, now_s)
    stays, wait_s = _stays_off(wanted, domain, note, cause), _wait_s(note, memory, cause, now_s)
    if _asked_anew(wanted, domain, note):
        stays, wait_s, note = False, 0.0, replace(note, crashes=0)
    if stays:
        state = VmReport.STATE_FAILED if cause == "crashed" else VmReport.STATE_STOPPED
        error = "the guest crashed, and its restart policy is never" if cause == "crashed" else ""
        report = report_of(wanted, domain, state, _off_say(vm, cause), error=error, exit=cause)
        return Verdict(report, _define(wanted, domain), note, memory)
    if wait_s > 0:
        say = f"the guest crashed ({note.crashes} times in a row), starting it again in {wait_s:.0f} s"
        if cause == "guest":
            say = f"the guest shut itself down, starting it again in {wait_s:.0f} s"
        report = report_of(wanted, domain, VmReport.STATE_PREPARING, say, exit=cause)
        return Verdict(report, (), note, memory, again_after_s=wait_s)
    if wanted.waits or wanted.spec is None:
        return Verdict(report_of(wanted, domain, VmReport.STATE_PREPARING, wanted.waits), (), note, memory)
    if vm.needs_permit and not wanted.permitted:
        return _unpermitted(wanted, domain, note, memory)
    actions = (
        WriteSeed(vm.id, vm),
        *_define(wanted, domain),
        Start(vm.id, vm.power_generation, vm.reboot_generation, wanted.machine_digest),
        *_bind(wanted, started=False),
        Resume(vm.id),
    )
    note = replace(note, exit="", machine_digest=wanted.machine_digest)
    memory = replace(memory, asked_s=None, running_s=None, ended_s=None)
    return Verdict(report_of(wanted, domain, VmReport.STATE_PREPARING, "starting"), actions, note, memory)


def _unpermitted(wanted: Wanted, domain: Domain | None, note: Note, memory: Memory) -> Verdict:
    """One that another node may be running: a controller must have said since we began that it is to run here."""
    say = "waits for a controller to permit its start, as another node may be running it"
    report = report_of(wanted, domain, VmReport.STATE_PREPARING, say)
    return Verdict(report, (), note, memory, again_after_s=PERMIT_AGAIN_S)


def _stopped(wanted: Wanted, domain: Domain | None, note: Note) -> Verdict:
    """A guest that shall be off, and is."""
    vm = wanted.vm
    note = replace(note, exit="stopped", crashes=0, power_generation=vm.power_generation)
    if domain is None and wanted.spec is None:
        return Verdict(report_of(wanted, domain, VmReport.STATE_PREPARING, wanted.waits), (), note)
    seed = (WriteSeed(vm.id, vm),) if domain is None else ()
    actions = (*seed, *_define(wanted, domain))
    say = f"stopped; `cairn vm start {vm.name}` runs it"
    return Verdict(report_of(wanted, domain, VmReport.STATE_STOPPED, say, exit="stopped"), actions, note)


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
    """Define what differs. A disk that was plugged in, or half so, is in a configuration whose digest does not know of it."""
    if wanted.spec is None:
        return ()
    if domain is not None and domain.digest == wanted.digest:
        disks = {disk.volume for disk in wanted.spec.disks}
        if domain.is_on or set(domain.volumes) == disks:
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
        return Verdict(report_of(wanted, domain, VmReport.STATE_STOPPING, "stopping"), (Stop(vm.id, True),), note, memory)
    if vm.needs_permit and not wanted.permitted:
        return _unpermitted(wanted, domain, note, memory)
    actions = (*_bind(wanted, started=True), Resume(vm.id))
    return Verdict(report_of(wanted, domain, VmReport.STATE_PREPARING, "starting"), actions, note, memory)


def _seen_running(note: Note, wanted: Wanted, domain: Domain, memory: Memory, now_s: float) -> Note:
    """A running guest answers the power generation, whoever started it."""
    vm = wanted.vm
    steady = memory.running_s is not None and now_s - memory.running_s >= STEADY_S
    generation = max(vm.power_generation, domain.power_generation)
    rebooted, crashes = max(note.reboot_generation, domain.reboot_generation), 0 if steady else note.crashes
    digest = _machine_of(note, wanted, domain)
    note = replace(note, exit="", power_generation=generation, reboot_generation=rebooted, crashes=crashes)
    return replace(note, machine_digest=digest, by_hand=domain.by_hand)


def _machine_of(note: Note, wanted: Wanted, domain: Domain) -> str:
    """Return the machine digest that a running guest was started with.

    One that was off, and runs though we did not start it, was started by hand as it was defined then: as it is now, if that
    is what is wanted; otherwise nobody knows, and it takes effect when it is restarted. So is one whose end nobody saw.
    """
    if note.exit in ("guest", "crashed", "stopped") or (domain.by_hand and not note.by_hand):
        return wanted.machine_digest if domain.digest == wanted.digest else UNKNOWN_MACHINE
    # The note may have been lost with the ledger, or given up when the guest was to go.
    return note.machine_digest or domain.machine_digest


def _running(wanted: Wanted, domain: Domain, note: Note, memory: Memory, now_s: float) -> Verdict:
    """A guest that executes: what of it differs from what is wanted, and did it do what it was asked?"""
    vm = wanted.vm
    memory, told, wait_s = pauses.recovered(wanted, memory, now_s)
    memory, begun = reboots.begun(vm, domain, memory)
    if vm.role == VM_ROLE_OUTGOING:
        report = report_of(wanted, domain, VmReport.STATE_RUNNING, "running; it is being moved", settled=False)
        return Verdict(report, (), note, memory, told=told + begun)
    pending = bool(wanted.machine_digest and note.machine_digest and wanted.machine_digest != note.machine_digest)
    rebooting = domain.reboot_generation < vm.reboot_generation
    # A guest that clings to a disk lets go of it at the reboot.
    actions = (*(() if rebooting else _plug(wanted, domain)), *_define(wanted, domain))
    say = _running_say(wanted, note, pending=pending)
    waits = reboots.is_waited_for(vm, domain, note)
    if rebooting:
        restart, memory, wait_s = _restart(vm, domain, memory, now_s, pending=pending)
        actions, say = actions + restart, "rebooting"
    elif waits:
        asked, note, memory, more, wait_s = reboots.waiting(vm, note, memory, now_s)
        actions, say, told = actions + asked, "asked to reboot; its guest has not reacted yet", told + more
        waits = reboots.is_waited_for(vm, domain, note)
        say = say if waits else _running_say(wanted, note, pending=pending)
    else:
        memory = reboots.forgotten(memory)
    pause = memory.pause
    settled = not actions and not rebooting and not waits and wanted.spec is not None and pause is PauseReason.NONE
    if pause is not PauseReason.NONE:
        say = "let run again after a disk failed"
    if not rebooting:
        # Beside what its record asks for: that is so whatever its guest sees of a volume.
        grows, look_s = plan_growth(wanted, domain)
        actions, wait_s = actions + grows, min(filter(None, (wait_s, look_s)), default=0.0)
    report = report_of(wanted, domain, VmReport.STATE_RUNNING, say, settled=settled, pause=pause)
    return Verdict(report, actions, note, memory, again_after_s=wait_s, told=told + begun)


def _running_say(wanted: Wanted, note: Note, *, pending: bool) -> str:
    """What is worth saying about a guest that runs and has nothing to wait for."""
    if wanted.spec is None:
        return f"running; {wanted.waits}"
    later = "; its new configuration takes effect when it is restarted" if pending else ""
    if note.reboot_ignored >= wanted.vm.reboot_generation > 0:
        return f"running; {reboots.ignored_say(wanted.vm)}{later}"
    return f"running{later}"


def _restart(
    vm: DesiredVm, domain: Domain, memory: Memory, now_s: float, *, pending: bool
) -> tuple[tuple[Action, ...], Memory, float]:
    """Reboot in place; but one that would not see its new configuration that way goes off, and then on again.

    Returns the seconds until it is looked at again, too.
    """
    if not pending:
        return (Reboot(vm.id, vm.force, vm.reboot_generation),), reboots.asked(memory, now_s), ASK_AGAIN_S
    ask, memory, wait_s = _ask(memory, now_s)
    if ask or vm.force or domain.state is not DomainState.STOPPING:
        return (Stop(vm.id, vm.force),), memory, wait_s
    return (), memory, wait_s


def _plug(wanted: Wanted, domain: Domain) -> tuple[Action, ...]:
    """Data disks to plug in and out; the boot disk stays what it was started with."""
    if wanted.spec is None:
        return ()
    disks = {disk.volume: disk for disk in wanted.spec.disks}
    out = tuple(DetachDisk(wanted.vm.id, volume) for volume in sorted(set(domain.volumes) - disks.keys()))
    plugged = [disk for disk in disks.values() if disk.volume not in domain.volumes and not disk.boot]
    return out + tuple(AttachDisk(wanted.vm.id, disk) for disk in sorted(plugged, key=lambda disk: (disk.slot, disk.volume)))


def _stopping(wanted: Wanted, domain: Domain, note: Note, memory: Memory, now_s: float) -> Verdict:
    vm = wanted.vm
    if vm.force:
        report = report_of(wanted, domain, VmReport.STATE_STOPPING, "its power is being cut")
        return Verdict(report, (Stop(vm.id, True),), note, memory)
    ask, memory, wait_s = _ask(memory, now_s)
    if domain.pause is PauseReason.MIGRATION:
        report = report_of(wanted, domain, VmReport.STATE_STOPPING, "it is being moved", pause=domain.pause)
        return Verdict(report, (), note, memory, again_after_s=wait_s)
    ask = ask or domain.state not in (DomainState.STOPPING, DomainState.PAUSED)
    resume = (Resume(vm.id),) if domain.state is DomainState.PAUSED else ()
    actions = (*resume, Stop(vm.id, False)) if ask else ()
    say = f"the guest was asked to shut down; `cairn vm stop {vm.name} --force` cuts its power"
    return Verdict(report_of(wanted, domain, VmReport.STATE_STOPPING, say), actions, note, memory, again_after_s=wait_s)


def _ask(memory: Memory, now_s: float) -> tuple[bool, Memory, float]:
    """Whether it is time to press the power button (again), and in how many seconds it is the next time."""
    left_s = 0.0 if memory.asked_s is None else memory.asked_s + ASK_AGAIN_S - now_s
    if left_s > CLOCK_SLACK_S:
        return False, memory, left_s
    return True, replace(memory, asked_s=now_s), ASK_AGAIN_S
