"""The fake driver: guests that exist only in memory, with fault knobs. Shipped: it passes the same suite as libvirt.

`FakeHost` is the truth about one host's guests and outlives the agent: drop the driver, make another on the same host, and it
finds what runs. Tests and the simulation play the guest through it: `guest_poweroff`, `guest_reboot`, `crash`, `deaf`,
`clinging`; and what happens to it: `suspend`, `fill`, `migrated_away`. TAPs appear in and vanish from `FakeHost.taps`, which
may be any set that others watch. No threads, and no time but the event loop's and the Clock's.
"""

from __future__ import annotations

import asyncio
import contextvars
import dataclasses
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeVar

from cairn.agent.hypervisor import domain_xml
from cairn.agent.hypervisor.base import (
    ConsoleStream,
    Disk,
    Domain,
    DomainEvent,
    DomainSpec,
    DomainState,
    ExitCause,
    FaultKnobs,
    HypervisorError,
    NoSuchDomain,
    PauseReason,
)
from cairn.agent.hypervisor.events import Notices
from cairn.agent.hypervisor.fake_console import FakeConsole, prompt
from cairn.agent.hypervisor.mark import Mark, Phase
from cairn.proto.seams import Clock
from cairn.proto.v1.node_pb2 import HypervisorFacts
from cairn.storage.fake_shared import Connection

FACTS: Final = HypervisorFacts(
    accelerator="tcg", archs=["x86_64"], libvirt_version="9.0.0", qemu_version="7.2.22", cpu_mode="maximum"
)
T = TypeVar("T")


@dataclass(slots=True)
class _Live:
    """A running guest: what it was started with, and what was plugged since."""

    taps: tuple[str, ...]
    disks: dict[str, Disk]
    hostname: str
    paused: bool = True
    # Why it is, unless by a start.
    pause: PauseReason = PauseReason.NONE
    # How large the guest sees each disk, in bytes.
    seen: dict[str, int] = field(default_factory=dict)
    # We let it run.
    signed: bool = False
    # Counts boots, so that what was begun for an earlier one is dropped.
    boot: int = 0
    # Volume in a shared pool -> its process's way to it.
    connections: dict[str, Connection] = field(default_factory=dict)

    def open(self, disk: Disk, host: FakeHost) -> None:
        """Have a disk open, as large as it is now; open already: no change."""
        if disk.volume in self.disks:
            return
        self.disks[disk.volume], self.seen[disk.volume] = disk, host.size_at(disk.path)
        if disk.network is not None:
            self.connections[disk.volume] = host.connect(disk.path)


@dataclass(slots=True)
class _Guest:
    """One domain: its configuration, and its running half."""

    spec: DomainSpec
    mark: Mark
    disks: dict[str, Disk]
    live: _Live | None = None
    console: FakeConsole | None = None


@dataclass
class FakeHost:
    """One host's hypervisor daemon and guests. Durations are the event loop's."""

    facts: HypervisorFacts = field(default_factory=lambda: FACTS)
    # TAP devices in the host; share the set with whoever plays the kernel.
    taps: set[str] = field(default_factory=set)
    # How long guests take to say they are ready, and to shut down.
    boot_s: float = 0.0
    shutdown_s: float = 0.0
    # Guests that ignore the power button.
    deaf: set[str] = field(default_factory=set)
    # Volumes whose guest does not let go of them.
    clinging: set[str] = field(default_factory=set)
    # Volumes that cannot be written, as their pool has no room.
    full: set[str] = field(default_factory=set)
    # How a process opens what is in a shared pool, by its path there.
    connect: Callable[[str], Connection] = lambda _path: Connection()
    # Told the path of a disk that is opened: how large it is now; 0: nobody can tell.
    size_at: Callable[[str], int] = lambda _path: 0
    # Told (path, size) when a running guest's disk grows: the storage that plays along.
    on_grow: Callable[[str, int], None] = lambda _path, _size_bytes: None
    # Sizes of disks grown here, by volume.
    grown: dict[str, int] = field(default_factory=dict)
    guests: dict[str, _Guest] = field(default_factory=dict)
    # Domains of somebody else, by name.
    foreign: set[str] = field(default_factory=set)
    notices: Notices = field(default_factory=Notices)
    # Every guest that ever executed an instruction, in order: to prove that nothing ran twice.
    boots: list[str] = field(default_factory=list)
    # Wall-clock seconds since the epoch, for what guests do by themselves.
    now_s: Callable[[], float] = lambda: 0.0
    # Guests are the host's own: what they do later outlives the agent that asked for it.
    _context: contextvars.Context = field(default_factory=contextvars.copy_context, repr=False)

    def guest_poweroff(self, id: str) -> None:
        """The guest shuts itself down."""
        guest = self.guests[id]
        self.end(id, ExitCause.STOPPED if guest.mark.phase is Phase.STOPPING else ExitCause.GUEST)

    def guest_reboot(self, id: str) -> None:
        """The guest begins anew, by itself or as it was asked to."""
        guest = self.guests[id]
        if guest.live is not None and not guest.live.paused:
            guest.live.boot += 1
            guest.mark = guest.mark.rebooted(self.now_s())
            self.boot(id)
            self.notices.tell(id)

    def suspend(self, id: str, reason: PauseReason = PauseReason.BY_HAND) -> None:
        """Somebody, or something, pauses a guest that runs; one that does not: no change."""
        live = self.guests[id].live
        if live is not None and not live.paused:
            live.paused, live.pause = True, reason
            self.notices.tell(id)

    def resume_by_hand(self, id: str) -> None:
        """Somebody lets a guest run that was suspended by hand; otherwise: no change."""
        live = self.guests[id].live
        if live is not None and live.pause is PauseReason.BY_HAND:
            live.paused, live.pause = False, PauseReason.NONE
            self.notices.tell(id)

    def start_by_hand(self, id: str) -> None:
        """Somebody starts a guest that is off, as it is defined; our mark stays what it was. On already: no change."""
        guest = self.guests[id]
        if guest.live is None:
            guest.live = self.process(guest)
            guest.live.paused = False
            self.boot(id)
            self.notices.tell(id)

    def process(self, guest: _Guest) -> _Live:
        """Return a new process of a guest, which has its disks and its TAP devices. HypervisorError."""
        taps = tuple(nic.tap for nic in guest.spec.vm.nics)
        if taken := self.taps.intersection(taps):
            raise HypervisorError(f"start {guest.mark.id}: {', '.join(sorted(taken))} is there already")
        live = _Live(taps, {}, guest.spec.vm.hostname or guest.spec.vm.name)
        for disk in guest.disks.values():
            live.open(disk, self)
        for tap in taps:
            self.taps.add(tap)
        return live

    def fill(self, volume: str) -> None:
        """There is no room for what is written to a volume: a guest that runs with it open is paused."""
        self.full.add(volume)
        for id, guest in self.guests.items():
            if guest.live is not None and volume in guest.live.disks:
                self.suspend(id, PauseReason.IO_ERROR)

    def migrated_away(self, id: str) -> None:
        """The guest runs on another host from now on."""
        self.end(id, ExitCause.MIGRATED)

    def panic(self, id: str) -> None:
        """The guest's kernel panics, and nobody ends its process; one that does not run: no change."""
        self.suspend(id, PauseReason.PANICKED)

    def crash(self, id: str) -> None:
        """The guest's process dies."""
        self.end(id, ExitCause.CRASHED)

    def power_off(self) -> None:
        """The host loses power: all guests are gone, and nobody knows why; configurations stay."""
        for id in list(self.guests):
            self.end(id, ExitCause.NONE)

    def restart_daemon(self) -> None:
        """The hypervisor daemon is restarted: guests run on, listeners hear that they must look at all."""
        self.notices.tell("")

    def end(self, id: str, cause: ExitCause) -> None:
        """A guest stops running; off already: no change."""
        guest = self.guests[id]
        if guest.live is None:
            return
        for tap in guest.live.taps:
            self.taps.discard(tap)
        guest.live = None
        guest.mark = dataclasses.replace(guest.mark, exit=cause)
        if guest.console is not None:
            guest.console.end()
            guest.console = None
        self.notices.tell(id)

    def later(self, id: str, delay_s: float, act: Callable[[_Guest, _Live], None]) -> None:
        """Do something to a guest after a while, unless this boot of it is over by then."""
        live = self.guests[id].live
        boot = live.boot if live is not None else 0

        def do() -> None:
            guest = self.guests.get(id)
            if guest is not None and guest.live is live and live is not None and live.boot == boot:
                act(guest, live)

        if delay_s > 0:
            asyncio.get_running_loop().call_later(delay_s, do, context=self._context)
        else:
            do()

    def boot(self, id: str) -> None:
        """The guest's first instruction."""
        self.boots.append(id)

        def ready(guest: _Guest, live: _Live) -> None:
            self.say(guest, f"GUEST-READY host={live.hostname}\r\n{prompt(live.hostname)}")

        self.later(id, self.boot_s, ready)

    def say(self, guest: _Guest, text: str) -> None:
        """The guest prints on its serial console."""
        if guest.console is not None:
            guest.console.put(text.encode())


class FakeHypervisor:
    """Hypervisor on a FakeHost."""

    def __init__(self, host: FakeHost, clock: Clock, knobs: FaultKnobs | None = None, *, latency_s: float = 0.0) -> None:
        self.host = host
        self.knobs = knobs or FaultKnobs()
        self.latency_s = latency_s
        self._clock = clock
        host.now_s = lambda: clock.now().timestamp()

    async def facts(self) -> HypervisorFacts:
        """Return what guests can be."""
        return await self._do("facts", "", lambda: self.host.facts)

    def digest(self, spec: DomainSpec) -> str:
        """Return the digest of the parts of a spec that are built into the domain."""
        return domain_xml.digest_of(spec)

    async def list(self) -> list[Domain]:
        """Return our domains."""
        host = self.host
        return await self._do("list", "", lambda: [_observe(guest, host.full) for _, guest in sorted(host.guests.items())])

    async def look(self, ids: Collection[str]) -> Sequence[Domain]:
        """Return those of these that are there; who cannot list cannot look either."""
        return [domain for domain in await self.list() if domain.id in ids]

    async def define(self, spec: DomainSpec) -> None:
        """Define or redefine."""

        def act() -> None:
            id = spec.vm.id
            self._refuse_foreign(id)
            if spec.vm.arch not in self.host.facts.archs:
                raise HypervisorError(f"define {id}: this node does not run {spec.vm.arch}", retryable=False)
            old = self.host.guests.get(id)
            mark = (Mark(id) if old is None else old.mark).redefined(spec, self.digest(spec))
            frozen = dataclasses.replace(spec, vm=type(spec.vm).FromString(spec.vm.SerializeToString()))
            guest = _Guest(frozen, mark, {disk.volume: disk for disk in spec.disks})
            if old is not None:
                guest.live, guest.console = old.live, old.console
            self.host.guests[id] = guest
            self.host.notices.tell(id)

        await self._do("define", spec.vm.id, act)

    async def start(self, id: str, *, power_generation: int, reboot_generation: int, machine_digest: str = "") -> None:
        """Start paused."""

        def act() -> None:
            guest = self._guest(id)
            if guest.live is not None:
                return
            guest.live = self.host.process(guest)
            now = self._clock.now().timestamp()
            guest.mark = guest.mark.started(power_generation, reboot_generation, machine_digest, now)
            self.host.notices.tell(id)

        await self._do("start", id, act)

    async def resume(self, id: str) -> None:
        """Let it run."""

        def act() -> None:
            guest, live = self._running(id, "resume")
            if not live.paused or live.pause is PauseReason.PANICKED:
                return
            live.paused, live.pause = False, PauseReason.NONE
            if guest.mark.phase is Phase.STARTING:
                guest.mark, live.signed = dataclasses.replace(guest.mark, phase=Phase.NONE), True
                self.host.boot(id)
            if self.host.full & live.disks.keys():
                # It writes, and is paused again at once.
                self.host.suspend(id, PauseReason.IO_ERROR)
            self.host.notices.tell(id)

        await self._do("resume", id, act)

    async def stop(self, id: str, *, force: bool) -> None:
        """Cut power or press the power button."""

        def act() -> None:
            guest = self._guest(id)
            if guest.live is None:
                return
            if force or guest.live.paused:
                self.host.end(id, ExitCause.CRASHED if guest.live.pause is PauseReason.PANICKED else ExitCause.STOPPED)
                return
            guest.mark = dataclasses.replace(guest.mark, phase=Phase.STOPPING)
            if id not in self.host.deaf:
                self.host.later(id, self.host.shutdown_s, lambda _guest, _live: self.host.guest_poweroff(id))

        await self._do("stop", id, act)

    async def reboot(self, id: str, *, force: bool, reboot_generation: int) -> None:
        """Restart the guest; a deaf one, or one that is paused, only by force."""

        def act() -> None:
            guest, live = self._running(id, "reboot")
            guest.mark = dataclasses.replace(guest.mark, reboot_generation=reboot_generation)
            if force or id not in self.host.deaf:
                live.boot += 1
                guest.mark = guest.mark.rebooted(self._clock.now().timestamp())
                self.host.boot(id)
            self.host.notices.tell(id)

        await self._do("reboot", id, act)

    async def undefine(self, id: str) -> None:
        """Cut power and forget it."""

        def act() -> None:
            self._refuse_foreign(id)
            if id in self.host.guests:
                self.host.end(id, ExitCause.STOPPED)
                del self.host.guests[id]
                self.host.notices.tell(id)

        await self._do("undefine", id, act)

    async def attach_disk(self, id: str, disk: Disk) -> None:
        """Add a disk."""

        def act() -> None:
            guest = self._guest(id)
            guest.disks.setdefault(disk.volume, disk)
            if guest.live is not None:
                guest.live.open(disk, self.host)
            self.host.notices.tell(id)

        await self._do("attach_disk", id, act)

    async def detach_disk(self, id: str, volume: str) -> None:
        """Remove a disk."""

        def act() -> None:
            guest = self.host.guests.get(id)
            if guest is None:
                return
            guest.disks.pop(volume, None)
            if guest.live is not None and volume in guest.live.disks:
                if volume in self.host.clinging:
                    raise HypervisorError(f"detach {volume} from {id}: the guest has not let go of it")
                del guest.live.disks[volume], guest.live.seen[volume]
                guest.live.connections.pop(volume, None)
            self.host.notices.tell(id)

        await self._do("detach_disk", id, act)

    async def grow_disk(self, id: str, volume: str, size_bytes: int) -> None:
        """Grow a running guest's disk."""

        def act() -> None:
            _, live = self._running(id, f"grow {volume} of")
            if volume not in live.disks:
                raise HypervisorError(f"grow {volume} of {id}: it has no such disk")
            if size_bytes > live.seen[volume]:
                live.seen[volume] = self.host.grown[volume] = size_bytes
                self.host.on_grow(live.disks[volume].path, size_bytes)
            self.host.notices.tell(id)

        await self._do("grow_disk", id, act)

    async def seen_bytes(self, id: str, volumes: Collection[str]) -> Mapping[str, int]:
        """Return how large the guest sees them."""

        def act() -> Mapping[str, int]:
            live = self._guest(id).live
            seen = live.seen if live is not None else {}
            return {volume: seen[volume] for volume in sorted(volumes) if volume in seen}

        return await self._do("seen_bytes", id, act)

    async def console(self, id: str) -> ConsoleStream:
        """Open the serial console."""

        def act() -> FakeConsole:
            guest, _ = self._running(id, "open the console of")
            if guest.console is not None:
                guest.console.end()
            guest.console = FakeConsole(self.host, id)
            return guest.console

        return await self._do("console", id, act)

    def events(self) -> AsyncIterator[DomainEvent]:
        """Yield changes from now on."""
        return self.host.notices.listen()

    async def close(self) -> None:
        """Let go."""

    def _refuse_foreign(self, id: str) -> None:
        if id in self.host.foreign:
            raise HypervisorError(f"the domain {id} is not ours: it has no mark of Cairn", retryable=False)

    def _guest(self, id: str) -> _Guest:
        self._refuse_foreign(id)
        if id not in self.host.guests:
            raise NoSuchDomain(f"{id} is not defined")
        return self.host.guests[id]

    def _running(self, id: str, verb: str) -> tuple[_Guest, _Live]:
        guest = self._guest(id)
        if guest.live is None:
            raise HypervisorError(f"{verb} {id}: it is shut off")
        return guest, guest.live

    async def _do(self, operation: str, id: str, act: Callable[[], T]) -> T:
        await self.knobs.wait(operation)
        await asyncio.sleep(self.latency_s)
        if self.knobs.take(self.knobs.fail_before, operation):
            raise HypervisorError(f"{operation} {id}: failed on purpose, before anything was done")
        result = act()
        if self.knobs.take(self.knobs.fail_after, operation):
            raise HypervisorError(f"{operation} {id}: failed on purpose, after it was done")
        return result


def _observe(guest: _Guest, full: set[str]) -> Domain:
    mark, live = guest.mark, guest.live
    if live is None:
        state = DomainState.SHUT_OFF
    elif live.paused:
        starting = mark.phase is Phase.STARTING and live.pause is PauseReason.NONE
        state = DomainState.STARTING if starting else DomainState.PAUSED
    else:
        state = DomainState.STOPPING if mark.phase is Phase.STOPPING else DomainState.RUNNING
    disks = live.disks if live is not None else guest.disks
    errors = tuple((volume, "no space left") for volume in sorted(full & disks.keys()))
    return Domain(
        id=mark.id,
        state=state,
        exit=mark.exit if live is None else ExitCause.NONE,
        power_generation=mark.power_generation,
        reboot_generation=mark.reboot_generation,
        spec_revision=mark.spec_revision,
        digest=mark.digest,
        taps=live.taps if live is not None else tuple(nic.tap for nic in guest.spec.vm.nics),
        volumes=tuple(disk.volume for disk in sorted(disks.values(), key=lambda disk: disk.slot)),
        start_time=mark.start_time if live is not None else 0.0,
        pause=live.pause if live is not None and state is DomainState.PAUSED else PauseReason.NONE,
        disk_errors=errors if state is DomainState.PAUSED else (),
        boots=mark.boots,
        boot_time=mark.boot_time,
        rebooted_generation=mark.rebooted_generation,
        machine_digest=mark.machine_digest,
        by_hand=mark.signs and live is not None and state is not DomainState.STARTING and not live.signed,
    )
