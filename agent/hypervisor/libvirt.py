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
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
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
    ExitCause,
    HypervisorError,
    NoSuchDomain,
)
from cairn.agent.hypervisor.capabilities import read_facts
from cairn.agent.hypervisor.connection import Connection
from cairn.agent.hypervisor.domains import (
    by_name,
    has_panicked,
    mark_of,
    note_reboot,
    observed,
    sign,
    targets_in,
    write_mark,
    xml_of,
)
from cairn.agent.hypervisor.events import Notices
from cairn.agent.hypervisor.mark import Mark, Phase
from cairn.agent.hypervisor.secrets import Keys, secrets_of
from cairn.agent.hypervisor.serial import SerialConsole
from cairn.proto.seams import Clock
from cairn.proto.v1.node_pb2 import HypervisorFacts
from cairn.storage.base import Network

DETACH_TIMEOUT_S: Final = 15.0
DETACH_POLL_S: Final = 0.1
# A call waits so long for its turn at a domain (libvirt's QEMU_JOB_WAIT_TIME, 30 s), also when who asked is gone.
LEFTOVER_S: Final = 35.0
# Reboots that could not be noted yet, the newest.
HEARD_MAX: Final = 1000
_UNDEFINE: Final = (
    libvirt.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE
    | libvirt.VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA
    | libvirt.VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA
    | libvirt.VIR_DOMAIN_UNDEFINE_NVRAM
)


log = structlog.get_logger(__name__)


class LibvirtHypervisor:
    """Hypervisor over one libvirtd, by default this machine's."""

    def __init__(
        self,
        clock: Clock,
        uri: str = "qemu:///system",
        *,
        cpuinfo: Path = Path("/proc/cpuinfo"),
        keys: Mapping[Network, Callable[[], Awaitable[str]]] | None = None,
        leftover_s: float = LEFTOVER_S,
    ) -> None:
        """keys: how disks are reached whose secret has a value -> who tells it, in base 64; asked when it is first needed.

        leftover_s: how long after connecting something asked before may still be done.
        """
        self._clock = clock
        self._cpuinfo = cpuinfo
        self._notices = Notices()
        self._connection = Connection(uri, lambda name, _event: self._notices.tell(name), self._connected, self._reboot_heard)
        # From when on, on the event loop's clock, nothing is done any more that was asked over an earlier connection.
        self._leftover_s, self._alone_s = leftover_s, 0.0
        self._keys = Keys(keys or {}, self._connection.call)
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
            found = observed(connection, self._marking)
            for name in list(self._heard_count.keys() - {domain.id for domain in found}):
                del self._heard_count[name]
            return found

        return await self._connection.call("list domains", act)

    async def look(self, ids: Collection[str]) -> Sequence[Domain]:
        """Return those of these domains that are there; noted is as much as when all are listed."""

        def act(connection: Any) -> Sequence[Domain]:
            with self._marking:
                self._note_reboots(connection)
            return observed(connection, self._marking, ids)

        return await self._connection.call(f"look at {', '.join(sorted(ids))}", act)

    def _connected(self) -> None:
        self._alone_s = asyncio.get_running_loop().time() + self._leftover_s
        self._notices.tell("")

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
                if name in left or not note_reboot(connection, name, at):
                    left.setdefault(name, []).append(at)
                self._heard.popleft()
        finally:
            self._heard.extendleft((name, at) for name, times in left.items() for at in reversed(times))

    async def define(self, spec: DomainSpec) -> None:
        """Define or redefine; the mark keeps what the domain went through."""
        facts = self._facts or await self.facts()
        digest = self.digest(spec)
        await self._keys.give(disk.network.secret for disk in spec.disks if disk.network is not None)

        def act(connection: Any) -> None:
            with self._marking:
                old = _lookup(connection, spec.vm.id)
                mark = Mark(spec.vm.id) if old is None else mark_of(old)
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
                write_mark(domain, mark_of(domain).started(power_generation, reboot_generation, machine_digest, now))
            domain.createWithFlags(libvirt.VIR_DOMAIN_START_PAUSED)

        if self._keys:
            await self._keys.give(await self._on(id, "look at", secrets_of), again=True)
        await self._on(id, "start", act)

    async def resume(self, id: str) -> None:
        """Let it run, then note that the start is over; signed before, so that none of ours runs unsigned."""

        def act(domain: Any) -> None:
            if not domain.isActive():
                raise HypervisorError(f"resume {id}: it is shut off")
            starting = mark_of(domain).phase is Phase.STARTING
            if domain.state()[0] == libvirt.VIR_DOMAIN_PAUSED:
                if starting:
                    sign(domain)
                domain.resume()
            if starting:
                self._note(domain, phase=Phase.NONE)

        await self._on(id, "resume", act)

    async def stop(self, id: str, *, force: bool) -> None:
        """Cut power or press the power button; a paused guest cannot hear the button. May be repeated: presses again."""

        def act(domain: Any) -> None:
            if not domain.isActive():
                return
            if has_panicked(domain):
                # First: one that is off by our hand is otherwise one that we stopped.
                self._note(domain, exit=ExitCause.CRASHED)
                domain.destroy()
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
                mark = mark_of(domain)
                # Reset, it may have begun anew, and been noted, already.
                begun = force and self._heard_count[id] > heard
                answered = reboot_generation if begun else mark.rebooted_generation
                changed = dataclasses.replace(
                    mark, reboot_generation=reboot_generation, rebooted_generation=answered, forced=force
                )
                write_mark(domain, changed)

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

        await self._keys.give([disk.network.secret] if disk.network is not None else [])
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
        """Have QEMU grow the image and tell the guest.

        QEMU cuts an image to what it is told: an earlier, smaller growth that is carried out after this one would take what the
        guest has written meanwhile. So none is asked for while such a one may be left of an agent that was killed.
        """

        def act(domain: Any) -> None:
            if not domain.isActive():
                raise HypervisorError(f"grow {volume} of {id}: it is shut off")
            target = targets_in(xml_of(domain, 0)).get(volume)
            if target is None:
                raise HypervisorError(f"grow {volume} of {id}: it has no such disk")
            if domain.blockInfo(target)[0] >= size_bytes:
                return
            if (left_s := self._alone_s - loop.time()) > 0:
                say = f"what was asked before libvirt was connected to may still be done, for {left_s:.0f} s"
                raise HypervisorError(f"grow {volume} of {id}: {say}")
            domain.blockResize(target, size_bytes, libvirt.VIR_DOMAIN_BLOCK_RESIZE_BYTES)

        loop = asyncio.get_running_loop()
        await self._on(id, f"grow {volume} of", act)

    async def seen_bytes(self, id: str, volumes: Collection[str]) -> Mapping[str, int]:
        """Ask QEMU how large the disks are."""

        def act(domain: Any) -> Mapping[str, int]:
            if not domain.isActive():
                return {}
            targets = targets_in(xml_of(domain, 0))
            return {volume: int(domain.blockInfo(targets[volume])[0]) for volume in sorted(volumes) if volume in targets}

        found: Mapping[str, int] = await self._on(id, "ask about disks of", act)
        return found

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
            write_mark(domain, dataclasses.replace(mark_of(domain), **changes))

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


def _lookup(connection: Any, id: str) -> Any:
    """Return the domain or None; HypervisorError when one of that name is not ours."""
    domain = by_name(connection, id)
    if domain is not None:
        mark_of(domain)
    return domain


def _ours(connection: Any, id: str) -> Any:
    domain = _lookup(connection, id)
    if domain is None:
        raise NoSuchDomain(f"{id} is not defined")
    return domain


def _sides(domain: Any) -> dict[int, ET.Element]:
    """The persistent configuration and, when it runs, the live one, by the flag that changes it."""
    sides = {libvirt.VIR_DOMAIN_AFFECT_CONFIG: xml_of(domain, libvirt.VIR_DOMAIN_XML_INACTIVE)}
    if domain.isActive():
        sides[libvirt.VIR_DOMAIN_AFFECT_LIVE] = xml_of(domain, 0)
    return sides


def _detach(domain: Any, element: str, flag: int) -> None:
    """Ask for the removal of a device; an earlier request still under way, or done meanwhile, is no error."""
    fine = {libvirt.VIR_ERR_DEVICE_MISSING, libvirt.VIR_ERR_OPERATION_TIMEOUT}
    try:
        domain.detachDeviceFlags(element, flag)
    except libvirt.libvirtError as error:
        if error.get_error_code() not in fine and "already in the process of unplug" not in str(error):
            raise
