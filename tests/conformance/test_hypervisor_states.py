"""What a guest's state says: why it is paused, whether it did reboot, what its disks are. On the fake, on libvirt and QEMU."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from cairn.agent.hypervisor.base import ConsoleStream, Domain, DomainState, ExitCause, Hypervisor, HypervisorError, PauseReason

from tests.conformance.hypervisor_kit import (
    MIB,
    FakeWorld,
    World,
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


@pytest.fixture(params=["fake", pytest.param("libvirt", marks=[pytest.mark.libvirt, needs_libvirt])])
def world(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[World]:
    if request.param == "fake":
        yield FakeWorld(tmp_path)
        return
    with libvirt_world(request.getfixturevalue("real_host"), tmp_path / "w") as real:
        yield real


@pytest.fixture
async def driver(world: World) -> AsyncIterator[Hypervisor]:
    driver = world.driver()
    yield driver
    await driver.close()


async def run(driver: Hypervisor, reboot_generation: int = 0) -> None:
    await driver.start(WEB, power_generation=1, reboot_generation=reboot_generation)
    await driver.resume(WEB)


async def booted(driver: Hypervisor) -> ConsoleStream:
    """Start it, and return its console once somebody is logged in there."""
    await driver.start(WEB, power_generation=1, reboot_generation=0)
    console = await driver.console(WEB)
    await driver.resume(WEB)
    await read_until(console, "root@")
    return console


async def seen(driver: Hypervisor) -> Domain:
    domain = await observed(driver, WEB)
    assert domain is not None
    return domain


async def test_one_that_is_being_started_is_not_paused_and_one_suspended_by_hand_is(world: World, driver: Hypervisor) -> None:
    await driver.define(spec(world, WEB))
    await driver.start(WEB, power_generation=1, reboot_generation=0)
    domain = await seen(driver)
    assert (domain.state, domain.pause) == (DomainState.STARTING, PauseReason.NONE)
    await driver.resume(WEB)
    events = driver.events()
    world.suspend(WEB)
    await next_event(events, lambda event: event.id == WEB)
    domain = await seen(driver)
    assert (domain.state, domain.pause, domain.is_on) == (DomainState.PAUSED, PauseReason.BY_HAND, True)
    await asyncio.to_thread(world.restart_daemon)
    domain = await domain_when(driver, WEB, lambda domain: domain.state is DomainState.PAUSED)
    assert domain.pause is PauseReason.BY_HAND, "the daemon remembers"
    await driver.resume(WEB)
    domain = await seen(driver)
    assert (domain.state, domain.pause) == (DomainState.RUNNING, PauseReason.NONE)


async def test_one_whose_kernel_panicked_is_on_until_it_is_stopped_and_has_crashed(world: World, driver: Hypervisor) -> None:
    """Left there by a daemon that did not live to end it, it was read as one whose guest had shut it down."""
    wanted = spec(world, WEB, system=True)
    await driver.define(dataclasses.replace(wanted, console_log=world.console_log(WEB)))
    console = await booted(driver)
    await world.panic(WEB, console)
    domain = await domain_when(driver, WEB, lambda domain: domain.state is DomainState.PAUSED)
    assert (domain.pause, domain.exit, domain.open_volumes) == (PauseReason.PANICKED, ExitCause.NONE, domain.volumes)
    await driver.resume(WEB)
    assert (await seen(driver)).pause is PauseReason.PANICKED, "it goes no further"
    await driver.stop(WEB, force=False)
    domain = await seen(driver)
    assert (domain.state, domain.exit, world.running()) == (DomainState.SHUT_OFF, ExitCause.CRASHED, 0)
    await asyncio.to_thread(world.restart_daemon)
    domain = await domain_when(driver, WEB, lambda domain: domain.exit is ExitCause.CRASHED)
    await run(driver)
    domain = await seen(driver)
    assert (domain.state, domain.exit) == (DomainState.RUNNING, ExitCause.NONE)


async def test_a_process_that_somebody_else_started_is_told_from_ours(world: World, driver: Hypervisor) -> None:
    """Also after the daemon was restarted, and what is ours stays so over a pause and a new definition."""
    await driver.define(spec(world, WEB))
    await run(driver)
    assert not (await seen(driver)).by_hand
    await asyncio.to_thread(world.restart_daemon)
    await domain_when(driver, WEB, lambda domain: domain.state is DomainState.RUNNING and not domain.by_hand)
    world.suspend(WEB)
    await driver.resume(WEB)
    await driver.define(spec(world, WEB, spec_revision=2))
    assert not (await seen(driver)).by_hand
    await driver.stop(WEB, force=True)
    assert not (await seen(driver)).by_hand, "one that is off was started by nobody"
    world.start_by_hand(WEB)
    domain = await seen(driver)
    assert (domain.state, domain.by_hand) == (DomainState.RUNNING, True)
    await asyncio.to_thread(world.restart_daemon)
    await domain_when(driver, WEB, lambda domain: domain.state is DomainState.RUNNING and domain.by_hand)
    await driver.stop(WEB, force=True)
    await driver.start(WEB, power_generation=2, reboot_generation=0)
    assert not (await seen(driver)).by_hand, "before its first instruction too"
    await driver.resume(WEB)
    assert not (await seen(driver)).by_hand


async def test_what_is_off_has_nothing_open(world: World, driver: Hypervisor) -> None:
    wanted = spec(world, WEB)
    await driver.define(wanted)
    assert (await seen(driver)).open_volumes == ()
    await run(driver)
    assert (await seen(driver)).open_volumes == (wanted.disks[0].volume,)
    await driver.stop(WEB, force=True)
    assert (await seen(driver)).open_volumes == ()


async def test_beginnings_are_counted_and_tell_that_a_reboot_was_done(world: World, driver: Hypervisor) -> None:
    await driver.define(spec(world, WEB))
    await run(driver)
    domain = await seen(driver)
    assert (domain.boots, domain.rebooted_generation, domain.boot_time) == (1, 0, domain.start_time)
    events = driver.events()
    await driver.reboot(WEB, force=True, reboot_generation=1)
    await next_event(events, lambda event: event.id == WEB)
    domain = await domain_when(driver, WEB, lambda domain: domain.boots == 2)
    assert (domain.reboot_generation, domain.rebooted_generation) == (1, 1)
    assert domain.boot_time > domain.start_time
    world.deafen(WEB)
    await driver.reboot(WEB, force=False, reboot_generation=2)
    domain = await seen(driver)
    assert (domain.boots, domain.reboot_generation, domain.rebooted_generation) == (2, 2, 1), "asked, and not done"
    await driver.stop(WEB, force=True)
    await run(driver, 2)
    domain = await seen(driver)
    # A guest without a system may begin anew by itself, on a slow machine more than once.
    assert domain.boots >= 3, "a start is a beginning, too"
    assert domain.rebooted_generation == 2


async def test_a_disk_grows_under_a_running_guest(world: World, driver: Hypervisor) -> None:
    wanted = spec(world, WEB)
    root = wanted.disks[0]
    await driver.define(wanted)
    with pytest.raises(HypervisorError, match="shut off"):
        await driver.grow_disk(WEB, root.volume, 128 * MIB)
    assert await driver.seen_bytes(WEB, [root.volume]) == {}
    await run(driver)
    assert await driver.seen_bytes(WEB, [root.volume, "vol-elsewhere"]) == {root.volume: 64 * MIB}
    for size in (128 * MIB, 128 * MIB, 96 * MIB):
        await driver.grow_disk(WEB, root.volume, size)
    assert world.size_bytes(root) == 128 * MIB, "it grows, once, and never shrinks"
    more = dataclasses.replace(world.disk("vol-more"), slot=1)
    await driver.attach_disk(WEB, more)
    await driver.grow_disk(WEB, more.volume, 192 * MIB)
    assert await driver.seen_bytes(WEB, [root.volume, more.volume]) == {root.volume: 128 * MIB, more.volume: 192 * MIB}
    assert await driver.seen_bytes(WEB, []) == {}
    with pytest.raises(HypervisorError, match="no such disk"):
        await driver.grow_disk(WEB, "vol-elsewhere", 128 * MIB)


async def test_disks_are_found_in_the_order_of_their_slots(world: World, driver: Hypervisor) -> None:
    wanted = spec(world, WEB)
    root = wanted.disks[0].volume
    # Ids in another order than slots.
    names = ("vol-data000c", "vol-data000a", "vol-data000b")
    first, second, third = (dataclasses.replace(world.disk(name), slot=slot) for slot, name in enumerate(names, 1))
    await driver.define(dataclasses.replace(wanted, disks=(third, wanted.disks[0], first)))
    assert (await seen(driver)).volumes == (root, first.volume, third.volume)
    await driver.start(WEB, power_generation=1, reboot_generation=0)
    await driver.attach_disk(WEB, second)
    assert (await seen(driver)).volumes == (root, first.volume, second.volume, third.volume)
    await driver.stop(WEB, force=True)
    assert (await seen(driver)).volumes == (root, first.volume, second.volume, third.volume)
    await driver.detach_disk(WEB, first.volume)
    assert (await seen(driver)).volumes == (root, second.volume, third.volume)


async def test_a_guest_whose_disk_has_no_room_is_paused_and_goes_on_when_there_is(world: World, driver: Hypervisor) -> None:
    wanted = spec(world, WEB, system=True)
    small = dataclasses.replace(world.small_disk("vol-small000"), slot=1)
    await driver.define(dataclasses.replace(wanted, disks=(*wanted.disks, small)))
    console = await booted(driver)
    await world.use_up(small, console)
    domain = await domain_when(driver, WEB, lambda domain: domain.state is DomainState.PAUSED)
    assert domain.pause is PauseReason.IO_ERROR
    assert domain.disk_errors == ((small.volume, "no space left"),)
    await driver.resume(WEB)
    domain = await domain_when(driver, WEB, lambda domain: domain.state is DomainState.PAUSED)
    assert domain.pause is PauseReason.IO_ERROR, "there is still none"
    world.make_room(small)
    await driver.resume(WEB)
    domain = await domain_when(driver, WEB, lambda domain: domain.state is DomainState.RUNNING)
    assert domain.pause is PauseReason.NONE
    await console.close()
