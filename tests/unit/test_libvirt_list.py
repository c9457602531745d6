"""One guest that libvirt cannot write or ask about hides none of the others."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

libvirt = pytest.importorskip("libvirt")
from cairn.agent.hypervisor import domain_xml  # noqa: E402
from cairn.agent.hypervisor.base import Domain, DomainSpec, DomainState, ExitCause  # noqa: E402
from cairn.agent.hypervisor.fake import FACTS  # noqa: E402
from cairn.agent.hypervisor.libvirt import LibvirtHypervisor  # noqa: E402
from cairn.agent.hypervisor.mark import NAMESPACE, Mark  # noqa: E402
from cairn.proto.seams import SystemClock  # noqa: E402
from cairn.proto.v1.agent_pb2 import DesiredVm  # noqa: E402

CRASHED = (libvirt.VIR_DOMAIN_SHUTOFF, libvirt.VIR_DOMAIN_SHUTOFF_CRASHED)
RUNS = (libvirt.VIR_DOMAIN_RUNNING, libvirt.VIR_DOMAIN_RUNNING_BOOTED)
FAILED_DISK = (libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_IOERROR)


def refused(code: int) -> Exception:
    error = libvirt.libvirtError("no")
    error.err = (code, 0, "no", 2, "", "", "", 0, 0)
    return error  # type: ignore[no-any-return]


class Guest:
    """A domain as libvirt shows it. stuck: what it raises when it is written or its process is asked."""

    def __init__(self, id: str, state: tuple[int, int], stuck: Exception | None = None) -> None:
        self.id, self._state, self.stuck = id, state, stuck
        self.mark = Mark(id, power_generation=1, start_time=1.0, boots=1, boot_time=1.0)

    def name(self) -> str:
        return self.id

    def state(self) -> tuple[int, int]:
        return self._state

    def XMLDesc(self, _flags: int) -> str:
        vm = DesiredVm(id=self.id, name=self.id, cpus=1, memory_bytes=1 << 20, arch=FACTS.archs[0])
        return domain_xml.domain_xml(DomainSpec(vm, ()), FACTS, self.mark)

    def setMetadata(self, _kind: int, content: str, _prefix: str, uri: str, _flags: int) -> None:
        if self.stuck is not None:
            raise self.stuck
        assert uri == NAMESPACE
        self.written = content

    def diskErrors(self) -> dict[str, int]:
        if self.stuck is not None:
            raise self.stuck
        return {}


class Host:
    """A connection to some guests."""

    def __init__(self, *guests: Guest) -> None:
        self.guests = {guest.id: guest for guest in guests}

    def listAllDomains(self, _flags: int) -> list[Guest]:
        return list(self.guests.values())

    def lookupByName(self, name: str) -> Guest:
        return self.guests[name]


async def listed(hypervisor: LibvirtHypervisor, host: Host, monkeypatch: pytest.MonkeyPatch) -> dict[str, Domain]:
    async def call(_what: str, act: Callable[[Any], list[Domain]]) -> list[Domain]:
        return act(host)

    monkeypatch.setattr(hypervisor._connection, "call", call)
    return {domain.id: domain for domain in await hypervisor.list()}


@pytest.mark.parametrize("code", [libvirt.VIR_ERR_SYSTEM_ERROR, libvirt.VIR_ERR_OPERATION_TIMEOUT])
def test_a_guest_whose_end_cannot_be_noted_hides_no_other(code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk of libvirt's configurations is full, or its lock of that guest is held."""
    host = Host(Guest("i-00000001", CRASHED, refused(code)), Guest("i-00000002", RUNS))
    found = asyncio.run(listed(LibvirtHypervisor(SystemClock()), host, monkeypatch))
    assert found["i-00000001"].exit is ExitCause.CRASHED, "seen, if not noted"
    assert found["i-00000002"].state is DomainState.RUNNING


def test_a_guest_whose_process_does_not_say_which_disk_failed_hides_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    host = Host(Guest("i-00000001", FAILED_DISK, refused(libvirt.VIR_ERR_OPERATION_INVALID)), Guest("i-00000002", RUNS))
    found = asyncio.run(listed(LibvirtHypervisor(SystemClock()), host, monkeypatch))
    assert found["i-00000001"].state is DomainState.PAUSED
    assert found["i-00000001"].disk_errors == ()
    assert found["i-00000002"].state is DomainState.RUNNING


def test_a_reboot_that_cannot_be_noted_hides_no_guest_and_is_noted_later(monkeypatch: pytest.MonkeyPatch) -> None:
    stuck, other = Guest("i-00000001", RUNS, refused(libvirt.VIR_ERR_OPERATION_TIMEOUT)), Guest("i-00000002", RUNS)
    host, hypervisor = Host(stuck, other), LibvirtHypervisor(SystemClock())
    for name in (stuck.id, other.id, stuck.id):
        hypervisor._reboot_heard(name)
    assert len(asyncio.run(listed(hypervisor, host, monkeypatch))) == 2
    assert 'boots="2"' in other.written
    assert [name for name, _ in hypervisor._heard] == [stuck.id, stuck.id]
    stuck.stuck = None
    asyncio.run(listed(hypervisor, host, monkeypatch))
    assert 'boots="2"' in stuck.written
    assert not hypervisor._heard


def test_reboots_of_guests_that_are_gone_are_not_counted_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    hypervisor, host = LibvirtHypervisor(SystemClock()), Host(Guest("i-00000001", RUNS))
    hypervisor._reboot_heard("i-00000001")
    asyncio.run(listed(hypervisor, host, monkeypatch))
    assert set(hypervisor._heard_count) == {"i-00000001"}
    host.guests.clear()
    asyncio.run(listed(hypervisor, host, monkeypatch))
    assert not hypervisor._heard_count
