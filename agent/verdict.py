"""What a plan of a guest is made from and what it comes to: the vocabulary of agent/plan.py, and the report. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Final

from cairn.agent.actions import Action
from cairn.agent.hypervisor.base import Domain, DomainSpec, ExitCause, PauseReason
from cairn.proto.v1.agent_pb2 import (
    VM_PAUSE_BY_HAND,
    VM_PAUSE_IO_ERROR,
    VM_PAUSE_MIGRATION,
    VM_PAUSE_OTHER,
    VM_PAUSE_PANICKED,
    VM_PAUSE_UNSPECIFIED,
    DesiredVm,
    VmPause,
    VmReport,
)

CLOCK_SLACK_S: Final = 0.001
CAUSE: Final = {
    ExitCause.NONE: "",
    ExitCause.GUEST: "guest",
    ExitCause.CRASHED: "crashed",
    ExitCause.STOPPED: "stopped",
    ExitCause.MIGRATED: "migrated",
}
_EXIT: Final = {
    "": VmReport.EXIT_UNSPECIFIED,
    "guest": VmReport.EXIT_GUEST,
    "crashed": VmReport.EXIT_CRASHED,
    "stopped": VmReport.EXIT_STOPPED,
    "migrated": VmReport.EXIT_MIGRATED,
}
_PAUSE: Final[dict[PauseReason, VmPause.ValueType]] = {
    PauseReason.NONE: VM_PAUSE_UNSPECIFIED,
    PauseReason.IO_ERROR: VM_PAUSE_IO_ERROR,
    PauseReason.BY_HAND: VM_PAUSE_BY_HAND,
    PauseReason.MIGRATION: VM_PAUSE_MIGRATION,
    PauseReason.PANICKED: VM_PAUSE_PANICKED,
    PauseReason.OTHER: VM_PAUSE_OTHER,
}


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
    # A controller has said since this agent began that it may be started; asked for by vm.needs_permit.
    permitted: bool = True
    # Bytes of its volumes, as this node saw them in their pools.
    sizes: Mapping[str, int] = field(default_factory=dict)


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
    # Why it is off: "", "guest", "crashed", "stopped" or "migrated".
    exit: str = ""
    # Crashes in a row.
    crashes: int = 0
    # Machine digest it was last started with.
    machine_digest: str = ""
    # The last reboot generation the guest was asked for and did not react to in time; -1: none.
    reboot_ignored: int = -1
    # Somebody else started it, and what it was started with was found out.
    by_hand: bool = False


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
    # The pause that people were told of; when it was seen, or we last tried to end it, and how often we did.
    pause: PauseReason = PauseReason.NONE
    tried_s: float | None = None
    tries: int = 0
    # Since when a reboot is waited for, and when we last asked for it; None: an earlier agent did.
    reboot_s: float | None = None
    reboot_asked_s: float | None = None
    # Beginnings of the guest as last seen; None: not seen yet.
    boots: int | None = None


@dataclass(frozen=True, slots=True)
class Told:
    """Something worth an Event."""

    reason: str
    message: str
    warning: bool = False


@dataclass(frozen=True, slots=True)
class Verdict:
    """What to do, to tell and to remember."""

    report: VmReport
    actions: tuple[Action, ...] = ()
    note: Note = field(default_factory=Note)
    memory: Memory = field(default_factory=Memory)
    # Look again after this many seconds even if nothing changes; 0: no need.
    again_after_s: float = 0.0
    told: tuple[Told, ...] = ()


def is_off(domain: Domain | None) -> bool:
    """Tell whether nothing of a guest runs."""
    return domain is None or not domain.is_on


def report_of(
    wanted: Wanted,
    domain: Domain | None,
    state: VmReport.State.ValueType,
    say: str,
    *,
    error: str = "",
    exit: str = "",
    settled: bool | None = None,
    pause: PauseReason = PauseReason.NONE,
) -> VmReport:
    """Build the report; settled None: as the state says."""
    vm = wanted.vm
    if settled is None:
        settled = state in (VmReport.STATE_STOPPED, VmReport.STATE_ABSENT, VmReport.STATE_FAILED)
    report = VmReport(state=state, say=say, error=error, exit=_EXIT[exit], pause=_PAUSE[pause])
    report.volumes_generation = vm.volumes_generation
    # A configuration made from this revision is not yet a guest that is as it says.
    before = min(domain.spec_revision, max(0, vm.spec_revision - 1)) if domain is not None else 0
    report.spec_revision = vm.spec_revision if settled else before
    if domain is not None:
        report.power_generation, report.reboot_generation = domain.power_generation, domain.reboot_generation
        report.open_volumes.extend(domain.open_volumes)
        for volume, size_bytes in domain.seen:
            report.seen.add(volume=volume, size_bytes=size_bytes)
        report.boots, report.rebooted_generation = domain.boots, domain.rebooted_generation
        if domain.boot_time and state == VmReport.STATE_RUNNING:
            report.boot_time.FromMicroseconds(int(domain.boot_time * 1_000_000))
        if domain.start_time and state == VmReport.STATE_RUNNING:
            report.start_time.FromMicroseconds(int(domain.start_time * 1_000_000))
    if state == VmReport.STATE_RUNNING or settled:
        report.power_generation = max(report.power_generation, vm.power_generation)
    if settled and state != VmReport.STATE_RUNNING:
        report.reboot_generation = vm.reboot_generation
    return report
