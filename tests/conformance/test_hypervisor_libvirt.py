"""What only the real thing can show: a private daemon, seeds and logs, a kernel panic, a daemon that is not there."""

from __future__ import annotations

import asyncio
import dataclasses
import stat
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

pytest.importorskip("libvirt")

from cairn.agent.hypervisor import connection
from cairn.agent.hypervisor.base import DomainState, ExitCause, Hypervisor, HypervisorError
from cairn.agent.hypervisor.libvirt import LibvirtHypervisor
from cairn.agent.hypervisor.serial import SerialConsole
from cairn.proto.seams import SystemClock
from cairn.storage.seed import write_seed

from tests.conformance.hypervisor_kit import (
    LibvirtWorld,
    RealHost,
    domain_when,
    libvirt_world,
    needs_libvirt,
    next_event,
    observed,
    read_until,
    real_host,
    spec,
)

__all__ = ["real_host"]
WEB = "i-0000001a"


@pytest.fixture
def world(real_host: RealHost, tmp_path: Path) -> Iterator[LibvirtWorld]:
    with libvirt_world(real_host, tmp_path / "w") as real:
        yield real


@pytest.fixture
async def driver(world: LibvirtWorld) -> AsyncIterator[Hypervisor]:
    driver = world.driver()
    yield driver
    await driver.close()


@needs_libvirt
@pytest.mark.libvirt
async def test_no_disk_grows_while_an_earlier_growth_may_still_be_done(world: LibvirtWorld) -> None:
    """One asked for by a killed agent, and smaller, would cut it."""
    driver = LibvirtHypervisor(SystemClock(), world.settings.uri)
    wanted = spec(world, WEB)
    root = wanted.disks[0]
    await driver.define(wanted)
    await driver.start(WEB, power_generation=1, reboot_generation=0)
    await driver.grow_disk(WEB, root.volume, 64 << 20)
    with pytest.raises(HypervisorError, match=r"asked before libvirt was connected to may still be done, for 3\d s") as refused:
        await driver.grow_disk(WEB, root.volume, 128 << 20)
    assert refused.value.retryable
    assert await driver.seen_bytes(WEB, [root.volume]) == {root.volume: 64 << 20}
    await driver.close()


@needs_libvirt
@pytest.mark.libvirt
def test_the_daemon_listens_to_root_alone(world: LibvirtWorld) -> None:
    sockets = [path for path in world.settings.socket.parent.iterdir() if path.is_socket()]
    assert world.settings.socket in sockets
    assert {stat.S_IMODE(path.stat().st_mode) for path in sockets} == {0o700}
    assert world.host.run("ss", "-Hltn").stdout.strip() == ""


@needs_libvirt
@pytest.mark.libvirt
async def test_a_seeded_guest_is_logged_and_its_panic_is_a_crash(world: LibvirtWorld, driver: Hypervisor) -> None:
    wanted = spec(world, WEB, system=True, hostname="seeded", user_data=b"#!/bin/sh\necho made-by-user > /root/made\n")
    seed, console_log = world.folder / "seed.iso", world.folder / "console.log"
    await write_seed(seed, wanted.vm)
    await driver.define(dataclasses.replace(wanted, seed=str(seed), console_log=str(console_log)))
    await driver.start(WEB, power_generation=1, reboot_generation=0)
    console = await driver.console(WEB)
    await driver.resume(WEB)
    await read_until(console, "root@seeded:~#")
    await console.write(b"cat /root/made\n")
    await read_until(console, "made-by-user")
    assert "GUEST-READY host=seeded" in console_log.read_text(errors="replace")
    await console.write(b"echo c > /proc/sysrq-trigger\n")
    domain = await domain_when(driver, WEB, lambda domain: domain.state is DomainState.SHUT_OFF)
    assert domain.exit is ExitCause.CRASHED
    await console.close()


@needs_libvirt
@pytest.mark.libvirt
async def test_a_daemon_that_comes_late_is_found(world: LibvirtWorld, tmp_path: Path) -> None:
    place = tmp_path / "socket"
    driver = LibvirtHypervisor(SystemClock(), f"qemu+unix:///system?socket={place}")
    try:
        events = driver.events()
        await next_event(events, lambda event: event.id == "")
        with pytest.raises(HypervisorError, match=f"list domains: connect to .*{place}") as refused:
            await driver.list()
        assert refused.value.retryable
        place.symlink_to(world.settings.socket)
        await next_event(events, lambda event: event.id == "")
        assert await driver.list() == []
    finally:
        await driver.close()


@needs_libvirt
@pytest.mark.libvirt
async def test_many_calls_at_once_share_a_few_threads(world: LibvirtWorld, driver: Hypervisor) -> None:
    ids = [f"i-000000{number:02}" for number in range(20)]
    await asyncio.gather(*(driver.define(dataclasses.replace(spec(world, id), disks=())) for id in ids))
    answers = await asyncio.gather(*(driver.list() for _ in range(20)))
    assert all([domain.id for domain in answer] == ids for answer in answers)
    await asyncio.gather(*(driver.undefine(id) for id in ids))
    assert await driver.list() == []


@needs_libvirt
@pytest.mark.libvirt
async def test_a_guest_whose_process_hangs_can_be_cut_off(
    world: LibvirtWorld, driver: Hypervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """libvirt waits for its answer to the power button without an end; whoever waited for libvirt could never cut its power."""
    await driver.define(spec(world, WEB))
    await driver.start(WEB, power_generation=1, reboot_generation=0)
    await driver.resume(WEB)
    world.hang(WEB)
    monkeypatch.setattr(connection, "GIVE_UP_S", 3.0)
    with pytest.raises(HypervisorError, match="no answer within 3 s"):
        await driver.stop(WEB, force=False)
    monkeypatch.setattr(connection, "GIVE_UP_S", 120.0)
    seen = await observed(driver, WEB)
    assert seen is not None
    assert seen.is_on
    await driver.stop(WEB, force=True)
    await domain_when(driver, WEB, lambda domain: domain.state is DomainState.SHUT_OFF)


@needs_libvirt
@pytest.mark.libvirt
async def test_libvirt_stops_calling_for_a_console_that_ended(world: LibvirtWorld, driver: Hypervisor) -> None:
    """libvirt calls for an ended stream as fast as it can: a console left so costs a core."""
    await driver.define(spec(world, WEB))
    await driver.start(WEB, power_generation=1, reboot_generation=0)
    first, second = await driver.console(WEB), await driver.console(WEB)
    assert isinstance(first, SerialConsole)
    assert isinstance(second, SerialConsole)
    while await first.read():
        continue
    assert not first.listening
    assert second.listening
    await driver.stop(WEB, force=True)
    while await second.read():
        continue
    assert not second.listening
    third = await _closed_at_once(driver)
    assert not third.listening
    assert second.calls + first.calls + third.calls < 100


async def _closed_at_once(driver: Hypervisor) -> SerialConsole:
    await driver.start(WEB, power_generation=2, reboot_generation=0)
    console = await driver.console(WEB)
    assert isinstance(console, SerialConsole)
    await console.close()
    return console
