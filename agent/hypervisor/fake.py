"""The fake driver: guests that exist only in memory, with fault knobs. Shipped: it passes the same suite as libvirt.

`FakeHost` is the truth about one host's guests and outlives the agent: drop the driver, make another on the same host, and it
finds what runs. Tests and the simulation play the guest through it: `guest_poweroff`, `crash`, `deaf`, `clinging`. TAPs appear
in and vanish from `FakeHost.taps`, which may be any set that others watch. No threads, and no time but the event loop's and
the Clock's.
"""

from __future__ import annotations

import asyncio
import contextvars
import dataclasses
import shlex
from collections.abc import AsyncIterator, Callable
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
)
from cairn.agent.hypervisor.events import Notices
from cairn.agent.hypervisor.mark import Mark, Phase
from cairn.proto.seams import Clock
from cairn.proto.v1.node_pb2 import HypervisorFacts

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
    # Counts boots, so that what was begun for an earlier one is dropped.
    boot: int = 0


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
    guests: dict[str, _Guest] = field(default_factory=dict)
    # Domains of somebody else, by name.
    foreign: set[str] = field(default_factory=set)
    notices: Notices = field(default_factory=Notices)
    # Every guest that ever executed an instruction, in order: to prove that nothing ran twice.
    boots: list[str] = field(default_factory=list)
    # Guests are the host's own: what they do later outlives the agent that asked for it.
    _context: contextvars.Context = field(default_factory=contextvars.copy_context, repr=False)

    def guest_poweroff(self, id: str) -> None:
        """The guest shuts itself down."""
        guest = self.guests[id]
        self.end(id, ExitCause.STOPPED if guest.mark.phase is Phase.STOPPING else ExitCause.GUEST)

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
        self.later(id, self.boot_s, lambda guest, live: self.say(guest, f"GUEST-READY host={live.hostname}\r\n{_prompt(live)}"))

    def say(self, guest: _Guest, text: str) -> None:
        """The guest prints on its serial console."""
        if guest.console is not None:
            guest.console.put(text.encode())


class FakeConsole:
    """A serial console with a root shell that knows echo, hostname and poweroff."""

    def __init__(self, host: FakeHost, id: str) -> None:
        self._host, self._id = host, id
        self._output = bytearray()
        self._line = bytearray()
        self._some = asyncio.Event()
        self._ended = False

    async def read(self) -> bytes:
        """Return what was printed; empty when it ended."""
        await self._some.wait()
        data = bytes(self._output)
        self._output.clear()
        if not self._ended:
            self._some.clear()
        return data

    async def write(self, data: bytes) -> None:
        """Type."""
        if self._ended:
            raise HypervisorError(f"write to the console of {self._id}: it has ended")
        # Enter is a carriage return on a terminal, and shows as a new line.
        self.put(data.replace(b"\r\n", b"\n").replace(b"\r", b"\n").replace(b"\n", b"\r\n"))
        for byte in data:
            if byte in b"\r\n":
                line, self._line = self._line.decode(errors="replace"), bytearray()
                self._execute(line)
            else:
                self._line.append(byte)

    async def close(self) -> None:
        """Let go."""
        self.end()
        guest = self._host.guests.get(self._id)
        if guest is not None and guest.console is self:
            guest.console = None

    def put(self, data: bytes) -> None:
        """Show output."""
        if not self._ended:
            self._output += data
            self._some.set()

    def end(self) -> None:
        """No more output."""
        self._ended = True
        self._some.set()

    def _execute(self, line: str) -> None:
        guest = self._host.guests.get(self._id)
        if guest is None or guest.live is None or guest.live.paused:
            return
        try:
            words = shlex.split(line)
        except ValueError as error:
            words = ["echo", f"syntax error: {error}"]
        if words[:1] == ["poweroff"]:
            self._host.later(self._id, self._host.shutdown_s, lambda _guest, _live: self._host.guest_poweroff(self._id))
            return
        if words[:1] == ["echo"]:
            self.put(" ".join(words[1:]).encode() + b"\r\n")
        elif words[:1] == ["hostname"]:
            self.put(guest.live.hostname.encode() + b"\r\n")
        elif words:
            self.put(f"{words[0]}: not found; this guest knows echo, hostname and poweroff\r\n".encode())
        self.put(_prompt(guest.live).encode())


class FakeHypervisor:
    """Hypervisor on a FakeHost."""

    def __init__(self, host: FakeHost, clock: Clock, knobs: FaultKnobs | None = None, *, latency_s: float = 0.0) -> None:
        self.host = host
        self.knobs = knobs or FaultKnobs()
        self.latency_s = latency_s
        self._clock = clock

    async def facts(self) -> HypervisorFacts:
        """Return what guests can be."""
        return await self._do("facts", "", lambda: self.host.facts)

    def digest(self, spec: DomainSpec) -> str:
        """Return the digest of the parts of a spec that are built into the domain."""
        return domain_xml.digest_of(spec)

    async def list(self) -> list[Domain]:
        """Return our domains."""
        return await self._do("list", "", lambda: [_observe(guest) for _, guest in sorted(self.host.guests.items())])

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

    async def start(self, id: str, *, power_generation: int, reboot_generation: int) -> None:
        """Start paused."""

        def act() -> None:
            guest = self._guest(id)
            if guest.live is not None:
                return
            taps = tuple(nic.tap for nic in guest.spec.vm.nics)
            if taken := self.host.taps.intersection(taps):
                raise HypervisorError(f"start {id}: {', '.join(sorted(taken))} is there already")
            guest.live = _Live(taps, dict(guest.disks), guest.spec.vm.hostname or guest.spec.vm.name)
            for tap in taps:
                self.host.taps.add(tap)
            guest.mark = dataclasses.replace(
                guest.mark,
                power_generation=power_generation,
                reboot_generation=reboot_generation,
                phase=Phase.STARTING,
                exit=ExitCause.NONE,
                start_time=self._clock.now().timestamp(),
            )
            self.host.notices.tell(id)

        await self._do("start", id, act)

    async def resume(self, id: str) -> None:
        """Let it run."""

        def act() -> None:
            guest, live = self._running(id, "resume")
            if not live.paused:
                return
            live.paused = False
            if guest.mark.phase is Phase.STARTING:
                guest.mark = dataclasses.replace(guest.mark, phase=Phase.NONE)
                self.host.boot(id)
            self.host.notices.tell(id)

        await self._do("resume", id, act)

    async def stop(self, id: str, *, force: bool) -> None:
        """Cut power or press the power button."""

        def act() -> None:
            guest = self._guest(id)
            if guest.live is None:
                return
            if force or guest.live.paused:
                self.host.end(id, ExitCause.STOPPED)
                return
            guest.mark = dataclasses.replace(guest.mark, phase=Phase.STOPPING)
            if id not in self.host.deaf:
                self.host.later(id, self.host.shutdown_s, lambda _guest, _live: self.host.guest_poweroff(id))

        await self._do("stop", id, act)

    async def reboot(self, id: str, *, force: bool, reboot_generation: int) -> None:
        """Restart the guest; a deaf one only by force."""

        def act() -> None:
            guest, live = self._running(id, "reboot")
            if force or id not in self.host.deaf:
                live.boot += 1
                self.host.boot(id)
            guest.mark = dataclasses.replace(guest.mark, reboot_generation=reboot_generation)
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
                guest.live.disks.setdefault(disk.volume, disk)
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
                del guest.live.disks[volume]
            self.host.notices.tell(id)

        await self._do("detach_disk", id, act)

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


def _prompt(live: _Live) -> str:
    return f"root@{live.hostname}:~# "


def _observe(guest: _Guest) -> Domain:
    mark, live = guest.mark, guest.live
    if live is None:
        state = DomainState.SHUT_OFF
    elif live.paused:
        state = DomainState.STARTING if mark.phase is Phase.STARTING else DomainState.PAUSED
    else:
        state = DomainState.STOPPING if mark.phase is Phase.STOPPING else DomainState.RUNNING
    return Domain(
        id=mark.id,
        state=state,
        exit=mark.exit if live is None else ExitCause.NONE,
        power_generation=mark.power_generation,
        reboot_generation=mark.reboot_generation,
        spec_revision=mark.spec_revision,
        digest=mark.digest,
        taps=live.taps if live is not None else tuple(nic.tap for nic in guest.spec.vm.nics),
        volumes=tuple(live.disks if live is not None else guest.disks),
        start_time=mark.start_time if live is not None else 0.0,
    )
