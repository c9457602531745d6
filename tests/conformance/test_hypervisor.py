"""What every hypervisor driver promises: one suite, on the fake always, on libvirt and QEMU where they are."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from cairn.agent.hypervisor.base import (
    DomainState,
    ExitCause,
    Hypervisor,
    HypervisorError,
    NoSuchDomain,
)
from cairn.proto.v1.agent_pb2 import DesiredVm

from tests.conformance.hypervisor_kit import (
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

WEB, DB = "i-0000001a", "i-0000002b"


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


async def start(driver: Hypervisor, id: str, power_generation: int = 1) -> None:
    await driver.start(id, power_generation=power_generation, reboot_generation=0)


async def run(driver: Hypervisor, id: str) -> None:
    await start(driver, id)
    await driver.resume(id)


async def test_facts_say_what_guests_can_be(driver: Hypervisor) -> None:
    facts = await driver.facts()
    assert facts.accelerator in ("kvm", "tcg")
    assert "x86_64" in facts.archs
    assert facts.cpu_mode == {"kvm": "host-passthrough", "tcg": "maximum"}[facts.accelerator]
    assert facts.libvirt_version.count(".") == 2
    assert facts.qemu_version.count(".") == 2


async def test_a_domain_is_defined_started_paused_run_cut_off_and_forgotten(world: World, driver: Hypervisor) -> None:
    wanted = spec(world, WEB, cards=2, spec_revision=7)
    taps = {nic.tap for nic in wanted.vm.nics}
    assert await driver.list() == []

    await driver.define(wanted)
    domain = await observed(driver, WEB)
    assert domain is not None
    assert (domain.state, domain.exit, domain.start_time) == (DomainState.SHUT_OFF, ExitCause.NONE, 0.0)
    assert (domain.spec_revision, domain.digest) == (7, driver.digest(wanted))
    assert world.taps() == set()

    await driver.start(WEB, power_generation=3, reboot_generation=5, machine_digest="m1")
    domain = await observed(driver, WEB)
    assert domain is not None
    assert domain.state is DomainState.STARTING
    assert domain.machine_digest == "m1"
    assert (domain.power_generation, domain.reboot_generation) == (3, 5)
    assert set(domain.taps) == taps == world.taps()
    assert domain.volumes == (wanted.disks[0].volume,)
    assert domain.start_time > 1_700_000_000

    await driver.resume(WEB)
    domain = await observed(driver, WEB)
    assert domain is not None
    assert domain.state is DomainState.RUNNING
    changed = DesiredVm()
    changed.CopyFrom(wanted.vm)
    changed.spec_revision = 8
    # With the disk that it has open: not made once more.
    await driver.define(dataclasses.replace(wanted, vm=changed))
    domain = await observed(driver, WEB)
    assert domain is not None
    assert (domain.spec_revision, domain.machine_digest) == (8, "m1"), "it runs with what it was started with"

    await driver.stop(WEB, force=True)
    domain = await observed(driver, WEB)
    assert domain is not None
    assert (domain.state, domain.exit) == (DomainState.SHUT_OFF, ExitCause.STOPPED)
    assert domain.power_generation == 3
    assert world.taps() == set()

    await driver.undefine(WEB)
    assert await driver.list() == []


async def test_doing_what_is_already_so_succeeds(world: World, driver: Hypervisor) -> None:
    wanted = spec(world, WEB, cards=1)
    for _ in range(2):
        await driver.define(wanted)
    for generation in (1, 9):
        await start(driver, WEB, generation)
    domain = await observed(driver, WEB)
    assert domain is not None
    assert domain.power_generation == 1, "a start of what runs changes nothing"
    for _ in range(2):
        await driver.resume(WEB)
    await start(driver, WEB, 9)
    assert world.running() == 1
    for _ in range(2):
        await driver.stop(WEB, force=True)
    await driver.stop(WEB, force=False)
    for _ in range(2):
        await driver.undefine(WEB)
    await driver.detach_disk(WEB, wanted.disks[0].volume)


async def test_what_is_not_defined_cannot_be_used(driver: Hypervisor) -> None:
    with pytest.raises(NoSuchDomain, match=WEB):
        await start(driver, WEB)
    with pytest.raises(NoSuchDomain, match=WEB):
        await driver.stop(WEB, force=False)
    with pytest.raises(NoSuchDomain, match=WEB):
        await driver.console(WEB)


async def test_what_is_off_cannot_be_resumed_rebooted_or_watched(world: World, driver: Hypervisor) -> None:
    await driver.define(spec(world, WEB))
    with pytest.raises(HypervisorError, match="shut off"):
        await driver.resume(WEB)
    with pytest.raises(HypervisorError, match="shut off"):
        await driver.reboot(WEB, force=True, reboot_generation=1)
    with pytest.raises(HypervisorError, match="shut off"):
        await driver.console(WEB)


async def test_an_architecture_the_node_lacks_is_refused_for_good(world: World, driver: Hypervisor) -> None:
    with pytest.raises(HypervisorError, match="s390x") as refused:
        await driver.define(spec(world, WEB, arch="s390x"))
    assert not refused.value.retryable
    assert await driver.list() == []


async def test_the_digest_changes_with_the_machine_only(world: World, driver: Hypervisor) -> None:
    wanted = spec(world, WEB, cards=1)
    digest = driver.digest(wanted)

    def changed(**fields: object) -> str:
        vm = DesiredVm.FromString(wanted.vm.SerializeToString())
        for name, value in fields.items():
            setattr(vm, name, value)
        return driver.digest(dataclasses.replace(wanted, vm=vm))

    assert changed() == digest
    assert (
        changed(power_generation=4, reboot_generation=2, spec_revision=9, power_state=2, name="other", hostname="x") == digest
    )
    assert len({digest, changed(cpus=2), changed(memory_bytes=1 << 28)}) == 3
    assert driver.digest(dataclasses.replace(wanted, seed="/seed.iso")) != digest
    assert driver.digest(dataclasses.replace(wanted, disks=())) != digest


async def test_a_new_definition_waits_for_the_next_start(world: World, driver: Hypervisor) -> None:
    small = spec(world, WEB, cards=1, spec_revision=1)
    big = spec(world, WEB, cards=2, spec_revision=2, memory_bytes=160 << 20)
    await driver.define(small)
    await run(driver, WEB)
    await driver.define(big)
    domain = await observed(driver, WEB)
    assert domain is not None
    assert domain.state is DomainState.RUNNING
    assert (domain.digest, domain.spec_revision) == (driver.digest(big), 2)
    assert len(domain.taps) == 1
    assert domain.power_generation == 1, "what the domain went through is not forgotten by a new definition"
    await driver.stop(WEB, force=True)
    await start(driver, WEB, 2)
    domain = await observed(driver, WEB)
    assert domain is not None
    assert len(domain.taps) == 2


async def test_a_look_at_some_sees_what_a_list_of_all_would(world: World, driver: Hypervisor) -> None:
    await driver.define(spec(world, WEB, cards=1))
    await driver.define(spec(world, DB))
    await start(driver, WEB, 4)
    await run(driver, DB)
    web, db = sorted(await driver.list(), key=lambda domain: domain.id != WEB)
    assert list(await driver.look({WEB})) == [web]
    assert sorted(await driver.look({WEB, DB, "i-00000404"}), key=lambda domain: domain.id != WEB) == [web, db]
    assert list(await driver.look(set())) == []
    world.crash(DB)
    await domain_when(driver, DB, lambda domain: domain.exit is ExitCause.CRASHED)
    (db,) = await driver.look({DB})
    assert (db.state, db.exit) == (DomainState.SHUT_OFF, ExitCause.CRASHED)
    await driver.undefine(DB)
    assert list(await driver.look({DB})) == []


async def test_another_driver_finds_everything(world: World, driver: Hypervisor) -> None:
    """As after a crash of the agent: nothing is kept in the driver."""
    await driver.define(spec(world, WEB, cards=1))
    await driver.define(spec(world, DB))
    await start(driver, WEB, 4)
    await run(driver, DB)
    before = await driver.list()
    other = world.driver()
    try:
        assert await other.list() == before
        assert [domain.state for domain in before] == [DomainState.STARTING, DomainState.RUNNING]
        await other.resume(WEB)
        assert [domain.state for domain in await driver.list()] == [DomainState.RUNNING] * 2
        assert world.running() == 2
    finally:
        await other.close()


async def test_disks_come_and_go_while_it_is_off_and_before_it_runs(world: World, driver: Hypervisor) -> None:
    wanted = spec(world, WEB)
    root = wanted.disks[0].volume
    await driver.define(wanted)
    data = [world.disk(f"vol-data000{index}") for index in range(2)]
    for _ in range(2):
        await driver.attach_disk(WEB, data[0])
    domain = await observed(driver, WEB)
    assert domain is not None
    assert set(domain.volumes) == {root, data[0].volume}
    await start(driver, WEB)
    for _ in range(2):
        await driver.attach_disk(WEB, data[1])
    domain = await observed(driver, WEB)
    assert domain is not None
    assert set(domain.volumes) == {root, data[0].volume, data[1].volume}
    await driver.stop(WEB, force=True)
    await driver.detach_disk(WEB, data[0].volume)
    domain = await observed(driver, WEB)
    assert domain is not None
    assert set(domain.volumes) == {root, data[1].volume}, "what was plugged in stays over a restart"


async def test_a_killed_guest_is_seen_crashed_and_starts_again(world: World, driver: Hypervisor) -> None:
    await driver.define(spec(world, WEB, cards=1))
    await run(driver, WEB)
    events = driver.events()
    world.crash(WEB)
    await next_event(events, lambda event: event.id == WEB)
    domain = await domain_when(driver, WEB, lambda domain: domain.state is DomainState.SHUT_OFF)
    assert domain.exit is ExitCause.CRASHED
    assert world.taps() == set()
    await start(driver, WEB, 2)
    domain = await observed(driver, WEB)
    assert domain is not None
    assert (domain.state, domain.exit) == (DomainState.STARTING, ExitCause.NONE)


async def test_guests_of_others_are_never_listed_nor_touched(world: World, driver: Hypervisor) -> None:
    world.make_foreign(DB)
    assert await driver.list() == []
    with pytest.raises(HypervisorError, match=DB):
        await driver.define(spec(world, DB))
    with pytest.raises(HypervisorError, match=DB):
        await driver.stop(DB, force=True)
    with pytest.raises(HypervisorError, match=DB):
        await driver.undefine(DB)
    assert world.foreign() == {DB}


async def test_the_daemon_may_be_restarted_under_running_guests(world: World, driver: Hypervisor) -> None:
    await driver.define(spec(world, WEB, cards=1))
    await driver.define(spec(world, DB))
    await run(driver, WEB)
    await run(driver, DB)
    events = driver.events()
    await next_event(events, lambda event: event.id == "")
    world.crash(DB)
    await next_event(events, lambda event: event.id == DB)
    await domain_when(driver, DB, lambda domain: domain.exit is ExitCause.CRASHED)

    await asyncio.to_thread(world.restart_daemon)
    await next_event(events, lambda event: event.id == "")
    web, db = await driver.list()
    assert (web.id, web.state) == (WEB, DomainState.RUNNING)
    assert (db.id, db.state, db.exit) == (DB, DomainState.SHUT_OFF, ExitCause.CRASHED), "why it ended outlives the daemon"
    assert world.running() == 1
    assert world.taps() == set(web.taps)
    await driver.stop(WEB, force=True)
    await next_event(events, lambda event: event.id == WEB)


async def test_a_guest_at_work(world: World, driver: Hypervisor) -> None:
    """Console, disks plugged and unplugged with the guest's help, reboot, and the power button. (One boot: it is dear.)"""
    wanted = spec(world, WEB, system=True)
    await driver.define(wanted)
    await start(driver, WEB)
    console = await driver.console(WEB)
    await driver.resume(WEB)
    await read_until(console, "root@")
    await console.write(b"echo it wor''ks\n")
    await read_until(console, "it works")

    data = world.disk("vol-data0000")
    await driver.attach_disk(WEB, data)
    await driver.detach_disk(WEB, data.volume)
    domain = await observed(driver, WEB)
    assert domain is not None
    assert domain.volumes == (wanted.disks[0].volume,)

    second = await driver.console(WEB)
    while await console.read():
        pass
    await second.write(b"echo tak''en\n")
    await read_until(second, "taken")

    await driver.reboot(WEB, force=True, reboot_generation=1)
    await read_until(second, "GUEST-READY")
    domain = await observed(driver, WEB)
    assert domain is not None
    assert (domain.state, domain.reboot_generation, domain.power_generation) == (DomainState.RUNNING, 1, 1)

    await driver.reboot(WEB, force=False, reboot_generation=2)
    domain = await domain_when(driver, WEB, lambda domain: domain.rebooted_generation == 2)
    assert domain.boots == 3, "seen to begin anew as it was asked to"
    await read_until(second, "GUEST-READY")

    await driver.stop(WEB, force=False)
    domain = await domain_when(driver, WEB, lambda domain: domain.state is DomainState.SHUT_OFF)
    assert domain.exit is ExitCause.STOPPED, "it went because we asked"
    assert await second.read() == b"" or await second.read() == b""
    await second.close()
    await console.close()


async def test_a_guest_that_leaves_by_itself(world: World, driver: Hypervisor) -> None:
    await driver.define(spec(world, WEB, system=True))
    await start(driver, WEB)
    console = await driver.console(WEB)
    await driver.resume(WEB)
    await read_until(console, "root@")
    events = driver.events()
    await console.write(b"poweroff\n")
    await next_event(events, lambda event: event.id == WEB)
    domain = await domain_when(driver, WEB, lambda domain: domain.state is DomainState.SHUT_OFF)
    assert domain.exit is ExitCause.GUEST
    await asyncio.to_thread(world.restart_daemon)
    await next_event(events, lambda event: event.id == "")
    domain = await observed(driver, WEB)
    assert domain is not None
    assert domain.exit is ExitCause.GUEST
