"""What to do about a guest that is on and executes nothing, and what to say about it. Pure; part of agent/plan.py.

    a disk failed (no room)     told at once; tried again later and later, up to once a minute, until it goes on: then told, too
    suspended by hand           told; whoever did it had a reason, so it stays until `cairn vm start` or `reboot` asks for it
    being moved                 told; whoever moves it lets it run
    its kernel panicked         its power is cut: it has crashed, and its restart policy says what comes
    anything else               as suspended by hand

Rejected: resuming whatever is paused. A guest whose disk is full was resumed in a loop, and reported as running; one that just
arrives from another node would run twice.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from cairn.agent.actions import Action, Resume, Stop
from cairn.agent.hypervisor.base import Domain, PauseReason
from cairn.agent.verdict import CLOCK_SLACK_S, Memory, Note, Told, Verdict, Wanted, report_of
from cairn.proto.v1.agent_pb2 import VM_ROLE_OUTGOING, VmReport

RETRY_S: Final = 5.0
RETRY_S_MAX: Final = 60.0
# One that runs on for this long after an I/O error is over it.
OVER_S: Final = 5.0


def plan_paused(wanted: Wanted, domain: Domain, note: Note, memory: Memory, now_s: float) -> Verdict:
    """Return the verdict on a paused guest that shall run."""
    vm, told = wanted.vm, tuple[Told, ...]()
    if domain.pause is PauseReason.PANICKED and vm.role != VM_ROLE_OUTGOING:
        report = report_of(wanted, domain, VmReport.STATE_RUNNING, _PANICKED, settled=False, pause=domain.pause)
        return Verdict(report, (Stop(vm.id, True),), note, memory)
    say = _say(wanted, domain)
    if memory.pause is not domain.pause:
        memory = replace(memory, pause=domain.pause, tried_s=now_s, tries=0)
        told = (Told("Paused", f"{vm.name} is paused: {say}", warning=True),)
    answered = max(note.power_generation, domain.power_generation)
    asked = answered < vm.power_generation
    wait_s = _wait_s(memory, now_s)
    hopeful = domain.pause is PauseReason.IO_ERROR or domain.reboot_generation < vm.reboot_generation
    actions = tuple[Action, ...]()
    if domain.pause is PauseReason.MIGRATION or vm.role == VM_ROLE_OUTGOING:
        wait_s = 0.0
    elif asked or (hopeful and wait_s <= 0):
        # Whether that helped or not, it was answered: the next try is a matter of time again.
        actions, note = (Resume(vm.id),), replace(note, power_generation=max(answered, vm.power_generation))
        memory = replace(memory, tried_s=now_s, tries=memory.tries + 1)
        wait_s = _wait_s(memory, now_s)
    elif not hopeful:
        wait_s = 0.0
    report = report_of(wanted, domain, VmReport.STATE_RUNNING, say, settled=False, pause=domain.pause)
    return Verdict(report, actions, note, memory, again_after_s=wait_s, told=told)


def recovered(wanted: Wanted, memory: Memory, now_s: float) -> tuple[Memory, tuple[Told, ...], float]:
    """Return (what is remembered of a pause of a guest that executes now, what to tell, seconds until that counts as over)."""
    if memory.pause is PauseReason.NONE:
        return memory, (), 0.0
    if memory.pause is PauseReason.IO_ERROR and memory.tried_s is not None:
        left_s = memory.tried_s + OVER_S - now_s
        if left_s > CLOCK_SLACK_S:
            return memory, (), left_s
    told = Told("Resumed", f"{wanted.vm.name} runs again: it was paused, {_WHY[memory.pause]}")
    return forgotten(memory), (told,), 0.0


def forgotten(memory: Memory) -> Memory:
    """Return what is remembered once a pause is over."""
    return replace(memory, pause=PauseReason.NONE, tried_s=None, tries=0)


def _wait_s(memory: Memory, now_s: float) -> float:
    """Return how long to wait until the next try."""
    if memory.tried_s is None:
        return 0.0
    left_s = memory.tried_s + min(RETRY_S * 2.0 ** min(memory.tries, 10), RETRY_S_MAX) - now_s
    return left_s if left_s > CLOCK_SLACK_S else 0.0


_WHY: Final = {
    PauseReason.NONE: "",
    PauseReason.IO_ERROR: "as a disk failed",
    PauseReason.BY_HAND: "suspended by hand",
    PauseReason.MIGRATION: "being moved",
    PauseReason.PANICKED: "as its kernel panicked",
    PauseReason.OTHER: "by the hypervisor",
}
_PANICKED: Final = "its kernel panicked; its power is being cut"


def _say(wanted: Wanted, domain: Domain) -> str:
    name = wanted.vm.name
    if domain.pause is PauseReason.IO_ERROR:
        failed = ", ".join(f"{volume}: {why}" for volume, why in domain.disk_errors) or "a disk failed"
        return f"{failed}; it goes on by itself once that is mended"
    if domain.pause is PauseReason.MIGRATION:
        return "it is being moved"
    if domain.pause is PauseReason.PANICKED:
        return _PANICKED
    who = "suspended by hand on its node" if domain.pause is PauseReason.BY_HAND else "the hypervisor paused it"
    return f"{who}; `cairn vm start {name}` lets it run"
