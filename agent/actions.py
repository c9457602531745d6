"""What can be done about a guest: the steps that agent/plan.py puts in order and agent/guests.py carries out."""

from __future__ import annotations

from dataclasses import dataclass

from cairn.agent.hypervisor.base import Disk, DomainSpec
from cairn.proto.v1.agent_pb2 import DesiredVm


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
    # Of the configuration it starts with, without data disks.
    machine_digest: str


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
class GrowDisk(Action):
    """Have the running guest see a disk as large as its volume is in its pool."""

    volume: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Undefine(Action):
    """Cut its power and remove its configuration."""


@dataclass(frozen=True, slots=True)
class RemoveFiles(Action):
    """Delete its seed and console log."""
