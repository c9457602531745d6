"""A guest that was asked to reboot: did it? Pure; part of agent/plan.py.

Asked by the power button it may ignore it (no ACPI daemon), or be booting and deaf for a moment: it is asked again for a while,
then told as ignored. It counts as rebooted when the hypervisor saw it begin anew. A restarted agent does not know whether it
missed that, so it waits but presses no button: nothing is rebooted twice.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from cairn.agent.actions import Action, Reboot
from cairn.agent.hypervisor.base import Domain
from cairn.agent.verdict import CLOCK_SLACK_S, Memory, Note, Told
from cairn.proto.v1.agent_pb2 import DesiredVm

ASK_AGAIN_S: Final = 30.0
WAIT_S: Final = 100.0


def is_waited_for(vm: DesiredVm, domain: Domain, note: Note) -> bool:
    """Tell whether the guest was asked for a reboot that it has neither done nor let pass."""
    asked = domain.reboot_generation >= vm.reboot_generation
    return asked and domain.rebooted_generation < vm.reboot_generation and note.reboot_ignored < vm.reboot_generation


def waiting(
    vm: DesiredVm, note: Note, memory: Memory, now_s: float
) -> tuple[tuple[Action, ...], Note, Memory, tuple[Told, ...], float]:
    """Return (actions, note, memory, what to tell, seconds until the next look) while a reboot is waited for."""
    if memory.reboot_s is None:
        memory = replace(memory, reboot_s=now_s)
    since_s = now_s - (memory.reboot_s if memory.reboot_s is not None else now_s)
    if since_s >= WAIT_S - CLOCK_SLACK_S:
        told = Told("RebootIgnored", f"{vm.name}: {ignored_say(vm)}", warning=True)
        return (), replace(note, reboot_ignored=vm.reboot_generation), forgotten(memory), (told,), 0.0
    left_s = WAIT_S - since_s
    if memory.reboot_asked_s is None:
        return (), note, memory, (), left_s
    next_s = memory.reboot_asked_s + ASK_AGAIN_S - now_s
    if next_s > CLOCK_SLACK_S:
        return (), note, memory, (), min(next_s, left_s)
    again = Reboot(vm.id, False, vm.reboot_generation)
    return (again,), note, replace(memory, reboot_asked_s=now_s), (), min(ASK_AGAIN_S, left_s)


def asked(memory: Memory, now_s: float) -> Memory:
    """Return what is remembered once we ask for a reboot."""
    return replace(memory, reboot_s=now_s, reboot_asked_s=now_s)


def forgotten(memory: Memory) -> Memory:
    """Return what is remembered when no reboot is waited for."""
    return replace(memory, reboot_s=None, reboot_asked_s=None)


def begun(vm: DesiredVm, domain: Domain, memory: Memory) -> tuple[Memory, tuple[Told, ...]]:
    """Return (memory, what to tell) of a guest that may have begun anew since it was last looked at."""
    before, memory = memory.boots, replace(memory, boots=domain.boots)
    if before is None or domain.boots <= before or domain.boot_time <= domain.start_time:
        return memory, ()
    return memory, (Told("Rebooted", f"{vm.name} rebooted: its guest began anew (boot {domain.boots})"),)


def ignored_say(vm: DesiredVm) -> str:
    """Say that a guest let a reboot pass, and what to do."""
    return (
        f"its guest did not react to the reboot within {WAIT_S:.0f} s (does it run an ACPI daemon or a guest agent?);"
        f" `cairn vm reboot {vm.name} --force` resets it"
    )
