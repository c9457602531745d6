"""After a restore: what a node was told last stays in force where the restored record says otherwise."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from cairn.agent import ledger as module
from cairn.agent.last_word import overrules
from cairn.agent.ledger import Ledger
from cairn.proto.v1.agent_pb2 import Desired, DesiredVm, DesiredVolume, Remove, SyncResponse, Upsert, Version, VmDisk
from cairn.proto.v1.vm_pb2 import POWER_STATE_RUNNING, POWER_STATE_STOPPED

from tests.unit.agent_kit import Machine, elapse, ran, root_volume, run, vm_objects
from tests.unit.test_agent_ledger import loaded

VM, KEY, VOLUME = "i-00000001", "vm/i-00000001", "volume/vol-00000001"


def vm(
    *, absent: bool = False, on: bool = True, cpus: int = 1, disks: Iterable[str] = ("vol-1",), restored: bool = False
) -> Desired:
    power = POWER_STATE_RUNNING if on else POWER_STATE_STOPPED
    made = DesiredVm(id=VM, absent=absent, cpus=cpus, power_state=power, disks=[VmDisk(volume=each) for each in disks])
    return Desired(vm=made, restored=restored)


def volume(size: int = 1, *, absent: bool = False, restored: bool = False) -> Desired:
    return Desired(volume=DesiredVolume(id=VOLUME[7:], size_bytes=size, absent=absent), restored=restored)


def upsert(object: Desired, revision: int, epoch: int) -> Upsert:
    key = KEY if object.HasField("vm") else VOLUME
    return Upsert(key=key, version=Version(epoch=epoch, revision=revision), object=object)


@pytest.mark.parametrize(
    ("later", "now", "stays"),
    [
        (vm(), vm(restored=True), False),
        (vm(), vm(absent=True, restored=True), True),
        (vm(absent=True), vm(restored=True), True),
        (vm(on=False), vm(restored=True), True),
        (vm(cpus=2), vm(restored=True), True),
        (vm(disks=("vol-1", "vol-2")), vm(restored=True), True),
        (vm(), vm(absent=True), False),
        (volume(), volume(absent=True, restored=True), True),
        (volume(absent=True), volume(restored=True), True),
        (volume(2), volume(1, restored=True), True),
        (volume(), volume(restored=True), False),
    ],
)
def test_only_a_restored_word_about_life_gives_way_to_a_later_one(later: Desired, now: Desired, stays: bool) -> None:
    assert overrules(upsert(later, 50, 1), upsert(now, 3, 2)) == stays
    assert not overrules(upsert(later, 50, 2), upsert(now, 60, 2)), "words of one epoch follow each other"
    assert not overrules(None, upsert(now, 3, 2))


async def snapshot(ledger: Ledger, revision: int, epoch: int, *objects: Desired) -> None:
    await ledger.accept_snapshot(Version(epoch=epoch, revision=revision), [upsert(each, revision, epoch) for each in objects])


def state(ledger: Ledger) -> object:
    kept = (ledger.desired, ledger.unknown, ledger.overruled, ledger._removed)
    return [{key: each.SerializeToString(deterministic=True) for key, each in objects.items()} for objects in kept]


async def told(ledger: Ledger, object: Desired, revision: int, epoch: int) -> None:
    await ledger.accept([SyncResponse(upsert=upsert(object, revision, epoch))])


async def test_it_survives_restarts_and_ends_with_a_word_of_today() -> None:
    machine = Machine()
    ledger = await loaded(machine.disk)
    await snapshot(ledger, 50, 1, vm())
    await snapshot(ledger, 3, 2, vm(absent=True, restored=True))
    for each in (ledger, await loaded(machine.disk)):
        assert not each.desired[KEY].object.vm.absent
        assert each.overruled[KEY].object.vm.absent
        assert state(each) == state(ledger)
    await told(ledger, vm(absent=True, cpus=9, restored=True), 4, 2)
    assert not ledger.desired[KEY].object.vm.absent, "the record itself was not written again"
    await told(ledger, vm(absent=True), 5, 2)
    assert ledger.desired[KEY].object.vm.absent
    assert not ledger.overruled
    assert state(await loaded(machine.disk)) == state(ledger)


async def test_what_was_removed_by_word_is_remembered_within_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine()
    ledger = await loaded(machine.disk)
    await snapshot(ledger, 50, 1, vm(), volume())
    await told(ledger, vm(absent=True), 51, 1)
    await ledger.accept([SyncResponse(remove=Remove(key=KEY, version=Version(epoch=1, revision=52)))])
    await told(ledger, volume(absent=True), 53, 1)
    ledger = await loaded(machine.disk)
    await snapshot(ledger, 3, 2, vm(restored=True), volume(restored=True))
    assert set(ledger.overruled) == {KEY, VOLUME}
    assert ledger.desired[KEY].object.vm.absent
    assert ledger.desired[VOLUME].object.volume.absent
    assert state(await loaded(machine.disk)) == state(ledger)
    assert await ledger.yield_to(KEY)
    assert not ledger.desired[KEY].object.vm.absent
    assert state(await loaded(machine.disk)) == state(ledger)
    monkeypatch.setattr(module, "REMOVED_MAX", 3)
    for number in range(5):
        key = f"vm/i-{number}"
        gone = Upsert(key=key, version=Version(epoch=2, revision=10 + number), object=vm(absent=True))
        await ledger.accept([SyncResponse(upsert=gone), SyncResponse(remove=Remove(key=key, version=gone.version))])
    assert list(ledger._removed) == ["vm/i-2", "vm/i-3", "vm/i-4"]


def restored(objects: dict[str, Desired]) -> dict[str, Desired]:
    found = {}
    for key, each in objects.items():
        found[key] = Desired()
        found[key].CopyFrom(each)
        found[key].restored = key.startswith(("vm/", "volume/"))
    return found


def test_a_guest_brought_back_since_the_backup_is_not_destroyed_by_it() -> None:
    async def scenario() -> None:
        machine = Machine()
        machine.hold_image()
        agent = machine.agent()
        await agent.start()
        await machine.snapshot(agent, vm_objects())
        await ran(agent, VM)
        boots = list(machine.host.boots)
        old = restored({**vm_objects(), KEY: Desired(vm=DesiredVm(id=VM, absent=True))})
        machine.epoch, machine.revision = machine.epoch + 1, 1
        await machine.snapshot(agent, old)
        await elapse(100)
        assert machine.host.boots == boots
        assert machine.host.guests[VM].live is not None
        await agent.stop()

    run(scenario)


def test_what_was_removed_since_the_backup_is_not_made_again_unless_it_is_still_there() -> None:
    async def scenario() -> None:
        machine = Machine()
        machine.hold_image()
        agent = machine.agent()
        await agent.start()
        objects = vm_objects()
        await machine.snapshot(agent, objects)
        await ran(agent, VM)
        gone = {**objects, KEY: Desired(vm=DesiredVm(id=VM, absent=True)), VOLUME: Desired(volume=root_volume(absent=True))}
        await machine.snapshot(agent, gone)
        await elapse(30)
        assert not machine.host.guests
        assert not machine.pool.volumes
        boots = list(machine.host.boots)
        machine.epoch, machine.revision = machine.epoch + 1, 1
        await machine.snapshot(agent, restored(objects))
        await elapse(100)
        assert machine.host.boots == boots
        assert not machine.pool.volumes
        await machine.snapshot(agent, objects)
        await ran(agent, VM)
        await agent.stop()

    run(scenario)
