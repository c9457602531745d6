"""Hypervisors: domains on this node. The nouns, and one example walked.

A *domain* is one guest machine as the hypervisor knows it: defined (has a configuration), then running, paused or shut off.
What we define carries our mark (libvirt metadata: VM id, power and reboot generation, spec revision, digest of the
configuration), so orphans are visible and nothing of anyone else's is touched.

    await driver.define(DomainSpec(vm=desired, disks=(Disk("/var/lib/cairn/volumes/vol-…", "qcow2", …),), seed="/…/seed.iso"))
    await driver.start("i-0000001a")        # paused: its TAPs exist in the node's namespace, nothing runs yet
    …the dataplane moves the TAPs into the VPC namespace…
    await driver.resume("i-0000001a")       # the guest's first instruction
    await driver.stop("i-0000001a", force=False)   # ACPI; returns when asked, the domain's end comes as an event
    await driver.undefine("i-0000001a")

Every method is idempotent: doing what is already so succeeds. Errors are HypervisorError, which says whether it is retryable.
Drivers: libvirt.py and fake.py (shipped, with fault knobs); tests/conformance/test_hypervisor.py runs on both.
"""

from __future__ import annotations

import asyncio
import enum
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from cairn.proto.v1.agent_pb2 import DesiredVm
from cairn.proto.v1.node_pb2 import HypervisorFacts
from cairn.storage.base import Network


class HypervisorError(Exception):
    """What was attempted on what, and why it failed."""

    def __init__(self, say: str, *, retryable: bool = True) -> None:
        super().__init__(say)
        self.retryable = retryable


class NoSuchDomain(HypervisorError):
    """The domain is not defined."""


class DomainState(enum.Enum):
    """What a domain does."""

    SHUT_OFF = "shut off"
    # Started by us, first instruction not executed: TAPs wait to be moved.
    STARTING = "starting"
    RUNNING = "running"
    PAUSED = "paused"
    STOPPING = "stopping"


class ExitCause(enum.Enum):
    """Why a domain is shut off."""

    NONE = "never started or unknown"
    GUEST = "the guest shut itself down"
    CRASHED = "the guest or its process crashed"
    STOPPED = "we stopped it"
    # It runs elsewhere: to start it here would be to run it twice.
    MIGRATED = "the guest moved to another node"


class PauseReason(enum.Enum):
    """Why a domain that is on executes nothing (only with DomainState.PAUSED)."""

    NONE = "it is not paused"
    # A disk could not be written (no room) or read; resuming tries that again.
    IO_ERROR = "the hypervisor stopped it at a disk that failed"
    BY_HAND = "somebody suspended it with the hypervisor's own tools"
    MIGRATION = "it is being moved"
    # It goes no further: stopped (by whoever is first, the hypervisor or us), it has crashed.
    PANICKED = "its kernel panicked"
    OTHER = "the hypervisor stopped it for another reason"


@dataclass(frozen=True, slots=True)
class Disk:
    """One block device as the hypervisor opens it."""

    volume: str
    path: str
    # qcow2 or raw.
    format: str
    boot: bool = False
    # Place among the guest's disks: 0 is the first it finds, 1 the next.
    slot: int = 0
    read_only: bool = False
    # How to reach it when it is no file: then `path` is its name there.
    network: Network | None = None


@dataclass(frozen=True, slots=True)
class DomainSpec:
    """Everything a domain is defined from: the desired VM and where its disks are on this node."""

    vm: DesiredVm
    disks: tuple[Disk, ...]
    # NoCloud seed image (ISO 9660, label cidata); empty: none.
    seed: str = ""
    # Serial console log kept by the hypervisor; empty: none.
    console_log: str = ""


@dataclass(frozen=True, slots=True)
class Domain:
    """One of our domains as observed."""

    id: str
    state: DomainState
    exit: ExitCause = ExitCause.NONE
    # Copied from the mark given at define.
    power_generation: int = 0
    reboot_generation: int = 0
    spec_revision: int = 0
    # Digest of the DomainSpec it was defined from (driver.digest(spec)): differs from the wanted one = must be redefined.
    digest: str = ""
    # TAP names of its cards.
    taps: tuple[str, ...] = ()
    # Volume ids attached to the live domain (while it is off: in its configuration), in the order the guest finds them.
    volumes: tuple[str, ...] = ()
    # Wall-clock seconds since the epoch when it last started; 0: not running or unknown.
    start_time: float = 0.0
    pause: PauseReason = PauseReason.NONE
    # What the hypervisor says of disks that failed: (volume id, a few words).
    disk_errors: tuple[tuple[str, str], ...] = ()
    # How often its guest was seen to begin anew (starts and reboots, also its own), and when it last was.
    boots: int = 0
    boot_time: float = 0.0
    # The newest reboot generation that was followed by such a beginning; reboot_generation is the newest asked of the guest.
    rebooted_generation: int = 0
    # What `start` was told of the configuration it was last started with; empty: an older agent started it.
    machine_digest: str = ""
    # Its process was started by somebody else. What an older agent started is not told from that, and counts as ours.
    by_hand: bool = False
    # How large its guest sees volumes, in bytes, of which somebody asked (seen_bytes); a look asks of none.
    seen: tuple[tuple[str, int], ...] = ()

    @property
    def is_on(self) -> bool:
        """Its process runs, whether its guest executes or not."""
        return self.state is not DomainState.SHUT_OFF

    @property
    def open_volumes(self) -> tuple[str, ...]:
        """The volumes its process has open."""
        return self.volumes if self.is_on else ()


@dataclass(frozen=True, slots=True)
class DomainEvent:
    """Something changed about a domain: a trigger, look again. id empty: look at all (the connection was re-made)."""

    id: str


class ConsoleStream(Protocol):
    """A serial console, both ways."""

    async def read(self) -> bytes:
        """Return some bytes; empty when it ended."""
        ...

    async def write(self, data: bytes) -> None:
        """Send key strokes."""
        ...

    async def close(self) -> None:
        """Let go of it."""
        ...


class Hypervisor(Protocol):
    """What the agent needs of a hypervisor."""

    async def facts(self) -> HypervisorFacts:
        """Return accelerator, guest architectures, versions, CPU mode."""
        ...

    def digest(self, spec: DomainSpec) -> str:
        """Return a digest of all that would need a redefinition if it changed (not generations, power state or metadata)."""
        ...

    async def list(self) -> list[Domain]:
        """Return all of our domains, also those shut off."""
        ...

    async def look(self, ids: Collection[str]) -> Sequence[Domain]:
        """Return those of these that are there, as `list` would."""
        ...

    async def define(self, spec: DomainSpec) -> None:
        """Make or replace the configuration; a running guest keeps running and sees it at its next start."""
        ...

    async def start(self, id: str, *, power_generation: int, reboot_generation: int, machine_digest: str = "") -> None:
        """Start paused (state STARTING), noting the generations and the digest in the mark; running already: no change."""
        ...

    async def resume(self, id: str) -> None:
        """Let a STARTING or PAUSED domain run; one whose disk still fails is PAUSED again at once."""
        ...

    async def stop(self, id: str, *, force: bool) -> None:
        """force: cut power, return when off. Otherwise ask the guest and return at once; asking again presses the button again.

        A paused guest cannot hear the button, so its power is cut.
        """
        ...

    async def reboot(self, id: str, *, force: bool, reboot_generation: int) -> None:
        """Restart the guest in place and note the generation in the mark; again: asks again.

        Unforced it returns when the guest was asked. That it did begin anew shows in boots and rebooted_generation.
        """
        ...

    async def undefine(self, id: str) -> None:
        """Cut power if needed and remove the configuration; absent: no error."""
        ...

    async def attach_disk(self, id: str, disk: Disk) -> None:
        """Add a disk to the domain, live if it runs; attached already: no change."""
        ...

    async def detach_disk(self, id: str, volume: str) -> None:
        """Remove a disk, waiting for the guest to let go; absent: no error."""
        ...

    async def grow_disk(self, id: str, volume: str, size_bytes: int) -> None:
        """Grow the image of a disk that a running guest has open, which sees it at once; large enough already: no change.

        size_bytes: of a network disk, what its image has by now: it is made larger, or cut, to what is asked for.
        HypervisorError when the domain is off or has no such disk.
        """
        ...

    async def seen_bytes(self, id: str, volumes: Collection[str]) -> Mapping[str, int]:
        """Return how large a guest that is on sees those of these volumes that it has open; off: none.

        Asked of its process, which may hang: not for every look.
        """
        ...

    async def console(self, id: str) -> ConsoleStream:
        """Open the serial console; takes it from an earlier holder. NoSuchDomain, or HypervisorError when it does not run."""
        ...

    def events(self) -> AsyncIterator[DomainEvent]:
        """Yield changes for ever, beginning with "look at all"; survives restarts of the hypervisor daemon."""
        ...

    async def close(self) -> None:
        """Let go; guests keep running."""
        ...


@dataclass(slots=True)
class FaultKnobs:
    """How a fake driver fails on purpose. Each entry: operation name -> how many more times."""

    # Raise before anything happened.
    fail_before: dict[str, int] = field(default_factory=dict)
    # Do it, then raise: the outcome is unknown to the caller.
    fail_after: dict[str, int] = field(default_factory=dict)
    # Do not return until let go.
    hang: dict[str, int] = field(default_factory=dict)
    hanging: list[asyncio.Event] = field(default_factory=list, repr=False)

    def take(self, knob: dict[str, int], operation: str) -> bool:
        """Use up one of a knob's failures; whether there was one."""
        left = knob.get(operation, 0)
        if left > 0:
            knob[operation] = left - 1
        return left > 0

    async def wait(self, operation: str) -> None:
        """Hang, if it is to."""
        if self.take(self.hang, operation):
            self.hanging.append(asyncio.Event())
            await self.hanging[-1].wait()

    def let_go(self) -> None:
        """Nothing hangs any more; what hung goes on."""
        self.hang.clear()
        while self.hanging:
            self.hanging.pop().set()
