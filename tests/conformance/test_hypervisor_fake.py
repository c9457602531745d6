"""What only the fake can show: faults on purpose, guests that misbehave, a host that loses power."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from cairn.agent.hypervisor.base import DomainState, ExitCause, FaultKnobs, HypervisorError
from cairn.agent.hypervisor.fake import FakeHost, FakeHypervisor
from cairn.proto.seams import SystemClock

from tests.conformance.hypervisor_kit import FakeWorld, domain_when, observed, read_until, spec

WEB = "i-0000001a"


@pytest.fixture
def host() -> FakeHost:
    return FakeHost()


@pytest.fixture
def world(tmp_path: Path, host: FakeHost) -> FakeWorld:
    return FakeWorld(tmp_path, host)


def driver_on(host: FakeHost, **knobs: dict[str, int]) -> FakeHypervisor:
    return FakeHypervisor(host, SystemClock(), FaultKnobs(**knobs))


async def start(driver: FakeHypervisor) -> None:
    await driver.start(WEB, power_generation=1, reboot_generation=0)


async def test_failing_before_leaves_nothing_done(world: FakeWorld, host: FakeHost) -> None:
    driver = driver_on(host, fail_before={"define": 1})
    with pytest.raises(HypervisorError, match="before anything") as failed:
        await driver.define(spec(world, WEB))
    assert failed.value.retryable
    assert host.guests == {}
    await driver.define(spec(world, WEB))
    assert list(host.guests) == [WEB]


async def test_failing_after_leaves_it_done(world: FakeWorld, host: FakeHost) -> None:
    driver = driver_on(host, fail_after={"start": 2})
    await driver.define(spec(world, WEB))
    for _ in range(2):
        with pytest.raises(HypervisorError, match="after it was done"):
            await start(driver)
    await start(driver)
    await driver.resume(WEB)
    assert host.boots == [WEB], "tried three times, run once"


async def test_hanging_never_returns(world: FakeWorld, host: FakeHost) -> None:
    driver = driver_on(host, hang={"list": 1})
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await driver.list()
    assert await driver.list() == []


async def test_a_deaf_guest_goes_only_by_force(world: FakeWorld, host: FakeHost) -> None:
    driver = driver_on(host)
    await driver.define(spec(world, WEB))
    await start(driver)
    await driver.resume(WEB)
    host.deaf.add(WEB)
    await driver.stop(WEB, force=False)
    domain = await observed(driver, WEB)
    assert domain is not None
    assert domain.state is DomainState.STOPPING
    await driver.reboot(WEB, force=False, reboot_generation=1)
    assert host.boots == [WEB]
    await driver.stop(WEB, force=True)
    domain = await observed(driver, WEB)
    assert domain is not None
    assert (domain.state, domain.exit) == (DomainState.SHUT_OFF, ExitCause.STOPPED)


async def test_a_clinging_guest_keeps_its_disk(world: FakeWorld, host: FakeHost) -> None:
    driver = driver_on(host)
    await driver.define(spec(world, WEB))
    await start(driver)
    disk = world.disk("vol-data0000")
    await driver.attach_disk(WEB, disk)
    host.clinging.add(disk.volume)
    with pytest.raises(HypervisorError, match="not let go") as failed:
        await driver.detach_disk(WEB, disk.volume)
    assert failed.value.retryable
    host.clinging.clear()
    await driver.detach_disk(WEB, disk.volume)
    domain = await observed(driver, WEB)
    assert domain is not None
    assert disk.volume not in domain.volumes


async def test_a_host_without_power_forgets_what_ran_but_not_what_was_defined(world: FakeWorld, host: FakeHost) -> None:
    driver = driver_on(host)
    await driver.define(spec(world, WEB, cards=2))
    await start(driver)
    assert len(host.taps) == 2
    host.power_off()
    assert host.taps == set()
    domain = await observed(driver, WEB)
    assert domain is not None
    assert (domain.state, domain.exit, domain.power_generation) == (DomainState.SHUT_OFF, ExitCause.NONE, 1)


async def test_a_tap_of_that_name_stands_in_the_way(world: FakeWorld, host: FakeHost) -> None:
    driver = driver_on(host)
    wanted = spec(world, WEB, cards=1)
    await driver.define(wanted)
    host.taps.add(wanted.vm.nics[0].tap)
    with pytest.raises(HypervisorError, match="there already"):
        await start(driver)


async def test_guests_take_their_time(world: FakeWorld, host: FakeHost) -> None:
    """Booting and shutting down take time on the loop's clock; what an earlier boot began does not reach the next."""
    host.boot_s, host.shutdown_s = 0.01, 0.01
    driver = driver_on(host)
    await driver.define(spec(world, WEB))
    await start(driver)
    console = await driver.console(WEB)
    await driver.resume(WEB)
    await read_until(console, "GUEST-READY host=web")
    await driver.stop(WEB, force=False)
    await driver.stop(WEB, force=True)
    await start(driver)
    await driver.resume(WEB)
    again = await driver.console(WEB)
    await again.write(b"poweroff\n")
    domain = await domain_when(driver, WEB, lambda domain: domain.state is DomainState.SHUT_OFF)
    assert domain.exit is ExitCause.GUEST, "not the shutdown asked of the boot before"


async def test_a_person_can_type_anything_into_the_console(world: FakeWorld, host: FakeHost) -> None:
    driver = driver_on(host)
    await driver.define(spec(world, WEB))
    await start(driver)
    await driver.resume(WEB)
    console = await driver.console(WEB)
    await console.write(b"it's\r")
    assert "syntax error" in await read_until(console, "# ")
    await console.write(b"ls -l\r")
    assert (
        await read_until(console, "# ")
        == "ls -l\r\nls: not found; this guest knows echo, hostname and poweroff\r\nroot@web:~# "
    )
    await console.close()
