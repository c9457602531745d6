"""Domains as libvirt shows them, and the marks on them: what the driver (libvirt.py) reads and writes. Blocking.

A mark is read, changed and written under the driver's lock of marks, and so is a domain seen: its state belongs to its mark.
"""

from __future__ import annotations

import dataclasses
import threading
import xml.etree.ElementTree as ET
from collections.abc import Collection, Iterator
from typing import Any, Final

import libvirt
import structlog
from cairn.agent.hypervisor import domain_xml
from cairn.agent.hypervisor.base import Domain, DomainState, ExitCause, HypervisorError, PauseReason
from cairn.agent.hypervisor.mark import NAMESPACE, PREFIX, SIGN, SIGN_NAMESPACE, SIGN_PREFIX, Mark, Phase, find_mark, is_signed

_OFF: Final = frozenset({libvirt.VIR_DOMAIN_SHUTOFF, libvirt.VIR_DOMAIN_NOSTATE})
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

log = structlog.get_logger(__name__)


def observed(connection: Any, marking: threading.Lock, names: Collection[str] | None = None) -> list[Domain]:
    """Return our domains, of these names or all; why one ended is noted on the way. libvirtError."""
    seen = []
    for domain in connection.listAllDomains(0) if names is None else _named(connection, names):
        try:
            with marking:
                each = _observe(domain)
        except libvirt.libvirtError as error:
            if error.get_error_code() != libvirt.VIR_ERR_NO_DOMAIN:
                raise
            continue
        if each is not None:
            seen.append(each)
    return sorted(seen, key=lambda domain: domain.id)


def _named(connection: Any, names: Collection[str]) -> Iterator[Any]:
    domains = (by_name(connection, name) for name in sorted(names))
    return (domain for domain in domains if domain is not None)


def _observe(domain: Any) -> Domain | None:
    """Return a domain as observed, noting why it ended; None when it is not ours. Under the lock of marks."""
    config = xml_of(domain, libvirt.VIR_DOMAIN_XML_INACTIVE)
    mark = find_mark(config)
    if mark is None:
        return None
    state, reason = domain.state()
    # A kernel that panicked leaves its process there until libvirt, or we, end it.
    panicked = _panicked(state, reason)
    off = state in _OFF or (panicked and not domain.isActive())
    seen = DomainState.SHUT_OFF if off else _state(mark, state, reason)
    shown = config if off else xml_of(domain, 0)
    cause = ExitCause.NONE if not off else ExitCause.CRASHED if panicked else _cause(mark, reason)
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
        pause=_pause(state, reason) if seen is DomainState.PAUSED else PauseReason.NONE,
        disk_errors=_disk_errors(domain, shown) if seen is DomainState.PAUSED else (),
        boots=mark.boots,
        boot_time=mark.boot_time,
        rebooted_generation=mark.rebooted_generation,
        machine_digest=mark.machine_digest,
        by_hand=mark.signs and seen not in (DomainState.SHUT_OFF, DomainState.STARTING) and not is_signed(shown),
    )


def _write_seen(domain: Any, mark: Mark) -> bool:
    """Write what was seen of a domain; False: not now. One whose mark cannot be written (no room left for configurations, a
    process that hangs and holds libvirt's lock of it) must not hide the others: it is seen again at the next look."""
    try:
        write_mark(domain, mark)
    except libvirt.libvirtError as error:
        if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
            raise
        log.warning("mark not written", vm=mark.id, error=str(error))
        return False
    return True


def note_reboot(connection: Any, name: str, at: float) -> bool:
    """Write a reboot into the mark of a domain, if it is there and ours; False: not now."""
    domain = by_name(connection, name)
    mark = find_mark(xml_of(domain, libvirt.VIR_DOMAIN_XML_INACTIVE)) if domain is not None else None
    return mark is None or _write_seen(domain, mark.reset(at))


def _disk_errors(domain: Any, shown: ET.Element) -> tuple[tuple[str, str], ...]:
    """Return the volumes that failed, each with a few words; none: its process, which is asked, is stuck or has ended."""
    volumes = {target: volume for volume, target in targets_in(shown).items()}
    try:
        failed: dict[str, int] = domain.diskErrors()
    except libvirt.libvirtError as error:
        log.info("disk errors unknown", vm=domain.name(), error=str(error))
        return ()
    return tuple((volumes.get(target, target), _DISK_ERRORS.get(error, "failed")) for target, error in sorted(failed.items()))


def targets_in(shown: ET.Element) -> dict[str, str]:
    """Return what its disks are called in a domain's XML ("vda"), by volume."""
    found = {volume: element.find("target") for volume, element in domain_xml.disk_elements(shown).items()}
    return {volume: target.get("dev", "") for volume, target in found.items() if target is not None}


def has_panicked(domain: Any) -> bool:
    """Tell whether its kernel panicked and its process is still there. libvirtError."""
    state, reason = domain.state()
    return _panicked(state, reason) and bool(domain.isActive())


def _panicked(state: int, reason: int) -> bool:
    crashed = ((libvirt.VIR_DOMAIN_CRASHED, reason), (libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_CRASHED))
    return (state, reason) in crashed


def _pause(state: int, reason: int) -> PauseReason:
    # The reasons of another state are other numbers: read as pauses they would mean something else.
    return PauseReason.PANICKED if _panicked(state, reason) else _PAUSES.get(reason, PauseReason.OTHER)


def _state(mark: Mark, state: int, reason: int) -> DomainState:
    """What one that is on does."""
    if _panicked(state, reason):
        return DomainState.PAUSED
    if state == libvirt.VIR_DOMAIN_PAUSED:
        starting = mark.phase is Phase.STARTING and reason in _STARTED_PAUSED
        return DomainState.STARTING if starting else DomainState.PAUSED
    if state == libvirt.VIR_DOMAIN_SHUTDOWN or mark.phase is Phase.STOPPING:
        return DomainState.STOPPING
    return DomainState.RUNNING


def _cause(mark: Mark, reason: int) -> ExitCause:
    """Why a domain that is off ended: what libvirt says, or what was noted before libvirt forgot."""
    cause = _CAUSES.get(reason, mark.exit)
    # One whose kernel panicked had crashed before we stopped it (see libvirt.py, stop).
    if cause is ExitCause.STOPPED and mark.exit is ExitCause.CRASHED:
        return ExitCause.CRASHED
    if cause is ExitCause.GUEST and mark.phase is Phase.STOPPING:
        return ExitCause.STOPPED
    return cause


def xml_of(domain: Any, flags: int) -> ET.Element:
    """Return a domain's XML; flags: VIR_DOMAIN_XML_*. libvirtError."""
    # From libvirtd over a root-only socket, not from outside.
    return ET.fromstring(domain.XMLDesc(flags))  # noqa: S314


def by_name(connection: Any, name: str) -> Any:
    """Return the domain of that name, whosever it is, or None."""
    try:
        return connection.lookupByName(name)
    except libvirt.libvirtError as error:
        if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
            return None
        raise


def mark_of(domain: Any) -> Mark:
    """Return our mark on a domain; HypervisorError when it has none."""
    mark = find_mark(xml_of(domain, libvirt.VIR_DOMAIN_XML_INACTIVE))
    if mark is None:
        raise HypervisorError(f"the domain {domain.name()} is not ours: it has no mark of Cairn", retryable=False)
    return mark


def write_mark(domain: Any, mark: Mark) -> None:
    """Write our mark into a domain's configuration. libvirtError."""
    domain.setMetadata(libvirt.VIR_DOMAIN_METADATA_ELEMENT, mark.bare(), PREFIX, NAMESPACE, libvirt.VIR_DOMAIN_AFFECT_CONFIG)


def sign(domain: Any) -> None:
    """Note in a domain's live configuration that its process is one we let run. libvirtError."""
    domain.setMetadata(libvirt.VIR_DOMAIN_METADATA_ELEMENT, SIGN, SIGN_PREFIX, SIGN_NAMESPACE, libvirt.VIR_DOMAIN_AFFECT_LIVE)
