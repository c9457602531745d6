"""The libvirt driver: QEMU guests, with KVM where the CPU really has it, emulated otherwise.

A domain's name is the VM's id, its UUID is derived from it, and our mark (mark.py) sits in its persistent configuration; what
has no mark is never listed nor touched. All state is libvirt's: this class can be thrown away and made again at any moment.
Order within an operation is chosen so that a crash of this process between two calls is repaired by doing the operation again.
"""

from __future__ import annotations

import asyncio
import dataclasses
import threading
import xml.etree.ElementTree as ET
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, Final

import libvirt
import structlog
from cairn.agent.hypervisor import domain_xml
from cairn.agent.hypervisor.base import (
    ConsoleStream,
    Disk,
    Domain,
    DomainEvent,
    DomainSpec,
    DomainState,
    ExitCause,
    HypervisorError,
    NoSuchDomain,
    PauseReason,
)
from cairn.agent.hypervisor.capabilities import read_facts
from cairn.agent.hypervisor.connection import Connection
from cairn.agent.hypervisor.events import Notices
from cairn.agent.hypervisor.mark import NAMESPACE, PREFIX, Mark, Phase, find_mark
from cairn.agent.hypervisor.serial import SerialConsole
from cairn.proto.seams import Clock
from cairn.proto.v1.node_pb2 import HypervisorFacts

DETACH_TIMEOUT_S: Final = 15.0
DETACH_POLL_S: Final = 0.1
# Reboots that could not be noted yet, the newest.
HEARD_MAX: Final = 1000
_OFF: Final = frozenset({libvirt.VIR_DOMAIN_SHUTOFF, libvirt.VIR_DOMAIN_CRASHED, libvirt.VIR_DOMAIN_NOSTATE})
_CAUSES: Final = {
    libvirt.VIR_DOMAIN_SHUTOFF_SHUTDOWN: ExitCause.GUEST,
    libvirt.VIR_DOMAIN_SHUTOFF_CRASHED: ExitCause.CRASHED,
    libvirt.VIR_DOMAIN_SHUTOFF_FAILED: ExitCause.CRASHED,
    libvirt.VIR_DOMAIN_SHUTOFF_DESTROYED: ExitCause.STOPPED,
    libvirt.VIR_DOMAIN_SHUTOFF_DAEMON: ExitCause.STOPPED,
    libvirt.VIR_DOMAIN_SHUTOFF_MIGRATED: ExitCause.MIGRATED,
    libvirt.VIR_DOMAIN_SHUTOFF_SAVED: ExitCause.STOPPED,
}
_PAUSES: Final = {
    libvirt.VIR_DOMAIN_PAUSED_IOERROR: PauseReason.IO_ERROR,
    libvirt.VIR_DOMAIN_PAUSED_USER: PauseReason.BY_HAND,
    libvirt.VIR_DOMAIN_PAUSED_SAVE: PauseReason.BY_HAND,
    libvirt.VIR_DOMAIN_PAUSED_DUMP: PauseReason.BY_HAND,
    libvirt.VIR_DOMAIN_PAUSED_SNAPSHOT: PauseReason.BY_HAND,
    libvirt.VIR_DOMAIN_PAUSED_FROM_SNAPSHOT: PauseReason.BY_HAND,
    libvirt.VIR_DOMAIN_PAUSED_MIGRATION: PauseReason.MIGRATION,
    libvirt.VIR_DOMAIN_PAUSED_POSTCOPY: PauseReason.MIGRATION,
    libvirt.VIR_DOMAIN_PAUSED_POSTCOPY_FAILED: PauseReason.MIGRATION,
}
# Paused like this it may be one that we are just starting.
_STARTED_PAUSED: Final = frozenset(
    {libvirt.VIR_DOMAIN_PAUSED_USER, libvirt.VIR_DOMAIN_PAUSED_UNKNOWN, libvirt.VIR_DOMAIN_PAUSED_STARTING_UP}
)
_DISK_ERRORS: Final = {
    libvirt.VIR_DOMAIN_DISK_ERROR_NO_SPACE: "no space left",
    libvirt.VIR_DOMAIN_DISK_ERROR_UNSPEC: "cannot be read or written",
}
_UNDEFINE: Final = (
    libvirt.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE
    | libvirt.VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA
    | libvirt.VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA
    | libvirt.VIR_DOMAIN_UNDEFINE_NVRAM
)


log = structlog.get_logger(__name__)


class LibvirtHypervisor:
    """Hypervisor over one libvirtd, by default this machine's."""

    def __init__(self, clock: Clock, uri: str = "qemu:///system", *, cpuinfo: Path = Path("/proc/cpuinfo")) -> None:
        self._clock = clock
        self._cpuinfo = cpuinfo
        self._notices = Notices()
        self._connection = Connection(
            uri, lambda name, _event: self._notices.tell(name), lambda: self._notices.tell(""), self._reboot_heard
        )
        self._facts: HypervisorFacts | None = None
        # One change of a mark at a time: each is read, changed, written, in one of the connection's threads.
        self._marking = threading.Lock()
        # (domain name, wall-clock time) of reboots that were heard of and are not in a mark yet.
        self._heard: deque[tuple[str, float]] = deque(maxlen=HEARD_MAX)
        # Domain name -> how many reboots were heard of.
        self._heard_count: Counter[str] = Counter()

    async def facts(self) -> HypervisorFacts:
        """Return what guests can be; asked of libvirt and the CPU each time, as QEMU may be upgraded under us."""
        cpuinfo = await asyncio.to_thread(self._cpuinfo.read_text)
        self._facts = await self._connection.call("read the hypervisor's facts", lambda c: read_facts(c, cpuinfo))
        return self._facts

    def digest(self, spec: DomainSpec) -> str:
        """Return the digest of the parts of a spec that are built into the domain."""
        return domain_xml.digest_of(spec)

    async def list(self) -> list[Domain]:
        """Return our domains. What libvirt forgets is written into marks on the way: why one ended, that one rebooted."""

        def act(connection: Any) -> list[Domain]:
            with self._marking:
                self._note_reboots(connection)
            found = _list(connection, self._marking)
            for name in list(self._heard_count.keys() - {domain.id for domain in found}):
                del self._heard_count[name]
            return found

        return await self._connection.call("list domains", act)

    def _reboot_heard(self, name: str) -> None:
        self._heard.append((name, self._clock.now().timestamp()))
        self._heard_count[name] += 1
        self._notices.tell(name)

    def _note_reboots(self, connection: Any) -> None:
        """Write into marks what was heard of reboots; what cannot be written yet is kept. Under the lock of marks."""
        left: dict[str, list[float]] = {}
        try:
            while self._heard:
                name, at = self._heard[0]
                if name in left or not _note_reboot(connection, name, at):
                    left.setdefault(name, []).append(at)
                self._heard.popleft()
        finally:
            self._heard.extendleft((name, at) for name, times in left.items() for at in reversed(times))

    async def define(self, spec: DomainSpec) -> None:
        """Define or redefine; the mark keeps what the domain went through."""
        facts = self._facts or await self.facts()
        digest = self.digest(spec)

        def act(connection: Any) -> None:
            with self._marking:
                old = _lookup(connection, spec.vm.id)
                mark = Mark(spec.vm.id) if old is None else _mark(old)
                connection.defineXML(domain_xml.domain_xml(spec, facts, mark.redefined(spec, digest)))

        try:
            await self._connection.call(f"define {spec.vm.id}", act)
        except ValueError as error:
            raise HypervisorError(f"define {spec.vm.id}: {error}", retryable=False) from error

    async def start(self, id: str, *, power_generation: int, reboot_generation: int, machine_digest: str = "") -> None:
        """Start paused. The mark is written first: a start cut short is seen as STARTING or as shut off, never as running."""
        now = self._clock.now().timestamp()

        def act(domain: Any) -> None:
            if domain.isActive():
                return
            with self._marking:
                _write_mark(domain, _mark(domain).started(power_generation, reboot_generation, machine_digest, now))
            domain.createWithFlags(libvirt.VIR_DOMAIN_START_PAUSED)

        await self._on(id, "start", act)

    async def resume(self, id: str) -> None:
        """Let it run, then note that the start is over."""

        def act(domain: Any) -> None:
            if not domain.isActive():
                raise HypervisorError(f"resume {id}: it is shut off")
            if domain.state()[0] == libvirt.VIR_DOMAIN_PAUSED:
                domain.resume()
            if _mark(domain).phase is Phase.STARTING:
                self._note(domain, phase=Phase.NONE)

        await self._on(id, "resume", act)

    async def stop(self, id: str, *, force: bool) -> None:
        """Cut power or press the power button; a paused guest cannot hear the button. May be repeated: presses again."""

        def act(domain: Any) -> None:
            if not domain.isActive():
                return
            if force or domain.state()[0] == libvirt.VIR_DOMAIN_PAUSED:
                domain.destroy()
                return
            self._note(domain, phase=Phase.STOPPING)
            domain.shutdownFlags(libvirt.VIR_DOMAIN_SHUTDOWN_ACPI_POWER_BTN)

        await self._on(id, "stop", act, fine_when=lambda domain: not domain.isActive())

    async def reboot(self, id: str, *, force: bool, reboot_generation: int) -> None:
        """Reset, or ask by ACPI. Noted afterwards: after a crash in between the guest is rebooted again, never not at all."""

        def act(domain: Any) -> None:
            if not domain.isActive():
                raise HypervisorError(f"reboot {id}: it is shut off")
            with self._marking:
                self._note_reboots(domain.connect())
                heard = self._heard_count[id]
            if force:
                domain.reset(0)
            else:
                domain.reboot(libvirt.VIR_DOMAIN_REBOOT_ACPI_POWER_BTN)
            with self._marking:
                mark = _mark(domain)
                # Reset, it may have begun anew, and been noted, already.
                begun = force and self._heard_count[id] > heard
                answered = reboot_generation if begun else mark.rebooted_generation
                changed = dataclasses.replace(
                    mark, reboot_generation=reboot_generation, rebooted_generation=answered, forced=force
                )
                _write_mark(domain, changed)

        await self._on(id, "reboot", act)

    async def undefine(self, id: str) -> None:
        """Cut power, then forget the configuration."""

        def act(domain: Any) -> None:
            if domain.isActive():
                domain.destroy()
            domain.undefineFlags(_UNDEFINE)

        try:
            await self._on(id, "undefine", act)
        except NoSuchDomain:
            return

    async def attach_disk(self, id: str, disk: Disk) -> None:
        """Add to configuration and running guest, whichever lacks it."""

        def act(domain: Any) -> None:
            sides = _sides(domain)
            missing = [flag for flag, tree in sides.items() if disk.volume not in domain_xml.disk_elements(tree)]
            target = domain_xml.free_target(list(sides.values()), disk.slot)
            for tree in sides.values():
                if (present := domain_xml.disk_elements(tree).get(disk.volume)) is not None:
                    target = present.find("target").get("dev", target)  # type: ignore[union-attr]
            element = ET.tostring(domain_xml.disk_element(disk, target), encoding="unicode")
            for flag in missing:
                domain.attachDeviceFlags(element, flag)

        try:
            await self._on(id, f"attach {disk.volume} to", act)
        except ValueError as error:
            raise HypervisorError(f"attach {disk.volume} to {id}: {error}", retryable=False) from error

    async def detach_disk(self, id: str, volume: str) -> None:
        """Remove from configuration, then from the running guest; HypervisorError (retryable) while the guest holds on."""

        def act(domain: Any) -> bool:
            for flag, tree in sorted(_sides(domain).items(), reverse=True):
                element = domain_xml.disk_elements(tree).get(volume)
                if element is not None:
                    _detach(domain, ET.tostring(element, encoding="unicode"), flag)
            return any(volume in domain_xml.disk_elements(tree) for tree in _sides(domain).values())

        loop = asyncio.get_running_loop()
        deadline = loop.time() + DETACH_TIMEOUT_S
        try:
            while await self._on(id, f"detach {volume} from", act):
                if loop.time() > deadline:
                    raise HypervisorError(f"detach {volume} from {id}: the guest has not let go of it")
                await asyncio.sleep(DETACH_POLL_S)
        except NoSuchDomain:
            return

    async def grow_disk(self, id: str, volume: str, size_bytes: int) -> None:
        """Have QEMU grow the image and tell the guest."""

        def act(domain: Any) -> None:
            if not domain.isActive():
                raise HypervisorError(f"grow {volume} of {id}: it is shut off")
            element = domain_xml.disk_elements(_tree(domain, 0)).get(volume)
            if element is None:
                raise HypervisorError(f"grow {volume} of {id}: it has no such disk")
            target = element.find("target").get("dev", "")  # type: ignore[union-attr]
            if domain.blockInfo(target)[0] < size_bytes:
                domain.blockResize(target, size_bytes, libvirt.VIR_DOMAIN_BLOCK_RESIZE_BYTES)

        await self._on(id, f"grow {volume} of", act)

    async def console(self, id: str) -> ConsoleStream:
        """Open the serial console, taking it from whoever has it."""

        def act(connection: Any) -> Any:
            domain = _ours(connection, id)
            if not domain.isActive():
                raise HypervisorError(f"open the console of {id}: it is shut off")
            stream = connection.newStream(libvirt.VIR_STREAM_NONBLOCK)
            domain.openConsole(None, stream, libvirt.VIR_DOMAIN_CONSOLE_FORCE)
            return stream

        return SerialConsole(id, await self._connection.call(f"open the console of {id}", act))

    def events(self) -> AsyncIterator[DomainEvent]:
        """Yield changes from now on."""
        self._connection.keep()
        return self._notices.listen()

    async def close(self) -> None:
        """Disconnect."""
        await self._connection.close()

    def _note(self, domain: Any, **changes: Any) -> None:
        with self._marking:
            _write_mark(domain, dataclasses.replace(_mark(domain), **changes))

    async def _on(
        self, id: str, verb: str, act: Callable[[Any], Any], fine_when: Callable[[Any], bool] = lambda _domain: False
    ) -> Any:
        """Run act(virDomain) on a domain of ours; an error is forgiven when the domain turns out to be as wanted."""

        def find_and_act(connection: Any) -> Any:
            domain = _ours(connection, id)
            try:
                return act(domain)
            except libvirt.libvirtError:
                if not fine_when(domain):
                    raise
                return None

        return await self._connection.call(f"{verb} {id}", find_and_act)


def _list(connection: Any, marking: threading.Lock) -> list[Domain]:
    found = []
    for domain in connection.listAllDomains(0):
        try:
            with marking:
                observed = _observe(domain)
        except libvirt.libvirtError as error:
            if error.get_error_code() != libvirt.VIR_ERR_NO_DOMAIN:
                raise
            continue
        if observed is not None:
            found.append(observed)
    return sorted(found, key=lambda domain: domain.id)


def _observe(domain: Any) -> Domain | None:
    """Return a domain as observed, noting why it ended; None when it is not ours. Under the lock of marks."""
    config = _tree(domain, libvirt.VIR_DOMAIN_XML_INACTIVE)
    mark = find_mark(config)
    if mark is None:
        return None
    state, reason = domain.state()
    off = state in _OFF
    seen = _state(mark, state, reason)
    shown = config if off else _tree(domain, 0)
    cause = _cause(mark, reason) if off else ExitCause.NONE
    # While a start is under way the reason is still that of the end before.
    if off and cause is not mark.exit and mark.phase is not Phase.STARTING:
        _write_seen(domain, dataclasses.replace(mark, exit=cause))
    return Domain(
        id=mark.id,
        state=seen,
        exit=cause,
        power_generation=mark.power_generation,
        reboot_generation=mark.reboot_generation,
        spec_revision=mark.spec_revision,
        digest=mark.digest,
        taps=domain_xml.taps_in(shown),
        volumes=domain_xml.volumes_in(shown),
        start_time=0.0 if off else mark.start_time,
        pause=_PAUSES.get(reason, PauseReason.OTHER) if seen is DomainState.PAUSED else PauseReason.NONE,
        disk_errors=_disk_errors(domain, shown) if seen is DomainState.PAUSED else (),
        boots=mark.boots,
        boot_time=mark.boot_time,
        rebooted_generation=mark.rebooted_generation,
        machine_digest=mark.machine_digest,
    )


def _write_seen(domain: Any, mark: Mark) -> bool:
    """Write what was seen of a domain; False: not now. One whose mark cannot be written (no room left for configurations, a
    process that hangs and holds libvirt's lock of it) must not hide the others: it is seen again at the next look."""
    try:
        _write_mark(domain, mark)
    except libvirt.libvirtError as error:
        if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
            raise
        log.warning("mark not written", vm=mark.id, error=str(error))
        return False
    return True


def _note_reboot(connection: Any, name: str, at: float) -> bool:
    """Write a reboot into the mark of a domain, if it is there and ours; False: not now."""
    domain = _found(connection, name)
    mark = find_mark(_tree(domain, libvirt.VIR_DOMAIN_XML_INACTIVE)) if domain is not None else None
    return mark is None or _write_seen(domain, mark.reset(at))


def _disk_errors(domain: Any, shown: ET.Element) -> tuple[tuple[str, str], ...]:
    """Return the volumes that failed, each with a few words; none: its process, which is asked, is stuck or has ended."""
    targets = {
        target.get("dev", ""): volume
        for volume, element in domain_xml.disk_elements(shown).items()
        if (target := element.find("target")) is not None
    }
    try:
        failed: dict[str, int] = domain.diskErrors()
    except libvirt.libvirtError as error:
        log.info("disk errors unknown", vm=domain.name(), error=str(error))
        return ()
    return tuple((targets.get(target, target), _DISK_ERRORS.get(error, "failed")) for target, error in sorted(failed.items()))


def _state(mark: Mark, state: int, reason: int) -> DomainState:
    if state in _OFF:
        return DomainState.SHUT_OFF
    if state == libvirt.VIR_DOMAIN_PAUSED:
        starting = mark.phase is Phase.STARTING and reason in _STARTED_PAUSED
        return DomainState.STARTING if starting else DomainState.PAUSED
    if state == libvirt.VIR_DOMAIN_SHUTDOWN or mark.phase is Phase.STOPPING:
        return DomainState.STOPPING
    return DomainState.RUNNING


def _cause(mark: Mark, reason: int) -> ExitCause:
    """Why a domain that is off ended: what libvirt says, or what was noted before libvirt forgot."""
    cause = _CAUSES.get(reason, mark.exit)
    if cause is ExitCause.GUEST and mark.phase is Phase.STOPPING:
        return ExitCause.STOPPED
    return cause


def _tree(domain: Any, flags: int) -> ET.Element:
    # From libvirtd over a root-only socket, not from outside.
    return ET.fromstring(domain.XMLDesc(flags))  # noqa: S314


def _found(connection: Any, name: str) -> Any:
    """Return the domain of that name, whosever it is, or None."""
    try:
        return connection.lookupByName(name)
    except libvirt.libvirtError as error:
        if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
            return None
        raise


def _lookup(connection: Any, id: str) -> Any:
    """Return the domain or None; HypervisorError when one of that name is not ours."""
    domain = _found(connection, id)
    if domain is not None:
        _mark(domain)
    return domain


def _ours(connection: Any, id: str) -> Any:
    domain = _lookup(connection, id)
    if domain is None:
        raise NoSuchDomain(f"{id} is not defined")
    return domain


def _mark(domain: Any) -> Mark:
    mark = find_mark(_tree(domain, libvirt.VIR_DOMAIN_XML_INACTIVE))
    if mark is None:
        raise HypervisorError(f"the domain {domain.name()} is not ours: it has no mark of Cairn", retryable=False)
    return mark


def _write_mark(domain: Any, mark: Mark) -> None:
    domain.setMetadata(libvirt.VIR_DOMAIN_METADATA_ELEMENT, mark.bare(), PREFIX, NAMESPACE, libvirt.VIR_DOMAIN_AFFECT_CONFIG)


def _sides(domain: Any) -> dict[int, ET.Element]:
    """The persistent configuration and, when it runs, the live one, by the flag that changes it."""
    sides = {libvirt.VIR_DOMAIN_AFFECT_CONFIG: _tree(domain, libvirt.VIR_DOMAIN_XML_INACTIVE)}
    if domain.isActive():
        sides[libvirt.VIR_DOMAIN_AFFECT_LIVE] = _tree(domain, 0)
    return sides


def _detach(domain: Any, element: str, flag: int) -> None:
    """Ask for the removal of a device; an earlier request still under way, or done meanwhile, is no error."""
    fine = {libvirt.VIR_ERR_DEVICE_MISSING, libvirt.VIR_ERR_OPERATION_TIMEOUT}
    try:
        domain.detachDeviceFlags(element, flag)
    except libvirt.libvirtError as error:
        if error.get_error_code() not in fine and "already in the process of unplug" not in str(error):
            raise
