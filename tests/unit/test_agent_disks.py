"""A volume that goes from one guest to another is never open in both."""

from __future__ import annotations

from cairn.agent.app import Agent
from cairn.proto.v1.agent_pb2 import Desired, DesiredVm, DesiredVolume, VmDisk, VolumeReport
from cairn.proto.v1.vm_pb2 import POWER_STATE_STOPPED
from cairn.storage.base import StorageError

from tests.unit.agent_kit import MIB, Machine, elapse, ran, run, until, vm_objects

DATA = "vol-000000da"
ONE, TWO = "i-00000001", "i-00000002"


def data() -> dict[str, Desired]:
    return {f"volume/{DATA}": Desired(volume=DesiredVolume(id=DATA, size_bytes=MIB, type="local"))}


def guest(number: int, *, data: bool) -> dict[str, Desired]:
    objects = vm_objects(number)
    vm: DesiredVm = objects[f"vm/i-{number:08d}"].vm
    if data:
        vm.disks.append(VmDisk(volume=DATA))
    vm.spec_revision = 2 if data else 1
    return objects


def holders(machine: Machine) -> list[str]:
    return sorted(id for id, found in machine.host.guests.items() if found.live is not None and DATA in found.live.disks)


async def both_run(machine: Machine) -> Agent:
    machine.hold_image()
    agent = machine.agent(latency_s=0.02)
    await agent.start()
    await machine.snapshot(agent, {**guest(1, data=True), **guest(2, data=False), **data()})
    await ran(agent, ONE)
    await ran(agent, TWO)
    assert holders(machine) == [ONE]
    return agent


def test_the_next_guest_waits_until_the_one_before_has_let_go() -> None:
    async def scenario() -> None:
        machine = Machine()
        agent = await both_run(machine)
        machine.host.clinging.add(DATA)
        await machine.upsert(
            agent, {f"vm/{ONE}": guest(1, data=False)[f"vm/{ONE}"], f"vm/{TWO}": guest(2, data=True)[f"vm/{TWO}"]}
        )
        await until("the second to be told of", lambda: "has not let go" in agent.reports.latest(f"vm/{TWO}").vm.error)
        assert holders(machine) == [ONE]
        machine.host.clinging.clear()
        await until("it to have the volume", lambda: holders(machine) == [TWO])
        await agent.stop()

    run(scenario)


def test_two_guests_that_open_it_at_the_same_moment_do_so_one_after_the_other() -> None:
    async def scenario() -> None:
        machine = Machine()
        agent = await both_run(machine)
        seen: list[list[str]] = []
        tell = machine.host.notices.tell
        machine.host.notices.tell = lambda id: (seen.append(holders(machine)), tell(id))[1]
        for _ in range(5):
            for there, here in ((1, 2), (2, 1)):
                await machine.upsert(agent, {f"vm/i-{there:08d}": guest(there, data=False)[f"vm/i-{there:08d}"]})
                await machine.upsert(agent, {f"vm/i-{here:08d}": guest(here, data=True)[f"vm/i-{here:08d}"]})
                await until("it to have moved", lambda here=here: holders(machine) == [f"i-{here:08d}"])
        assert max(len(each) for each in seen) == 1
        await agent.stop()

    run(scenario)


def test_no_guest_opens_a_volume_while_it_is_grown_from_outside() -> None:
    async def scenario() -> None:
        machine = Machine()
        agent = await both_run(machine)
        off = guest(1, data=True)
        off[f"vm/{ONE}"].vm.power_state = POWER_STATE_STOPPED
        off[f"vm/{ONE}"].vm.force = True
        await machine.upsert(agent, {f"vm/{ONE}": off[f"vm/{ONE}"]})
        await until("it to be off", lambda: holders(machine) == [])
        machine.pool.hang["resize"] = 1
        larger = data()
        larger[f"volume/{DATA}"].volume.size_bytes = 2 * MIB
        await machine.upsert(agent, larger)
        await until("its growing to begin", lambda: len(machine.pool.hanging) == 1)
        on = guest(1, data=True)[f"vm/{ONE}"]
        on.vm.power_generation = 1
        await machine.upsert(agent, {f"vm/{ONE}": on})
        await elapse(5)
        assert holders(machine) == []
        assert machine.pool.volumes[DATA].size_bytes == MIB
        machine.pool.let_go()
        await until("it to run", lambda: holders(machine) == [ONE])
        assert machine.pool.volumes[DATA].size_bytes == 2 * MIB
        await agent.stop()

    run(scenario)


def test_a_volume_is_not_removed_while_a_guest_is_just_opening_it() -> None:
    async def scenario() -> None:
        machine = Machine()
        agent = await both_run(machine)
        await machine.upsert(agent, {f"vm/{ONE}": guest(1, data=False)[f"vm/{ONE}"]})
        await until("the first to have let go", lambda: holders(machine) == [])
        machine.knobs.hang["attach_disk"] = 1
        await machine.upsert(agent, {f"vm/{TWO}": guest(2, data=True)[f"vm/{TWO}"]})
        await until("it to be plugged in", lambda: len(machine.knobs.hanging) == 1)
        gone = {f"volume/{DATA}": Desired(volume=DesiredVolume(id=DATA, absent=True))}
        await machine.upsert(agent, {**gone, f"vm/{TWO}": guest(2, data=False)[f"vm/{TWO}"]})
        await elapse(5)
        assert DATA in machine.pool.volumes
        machine.knobs.let_go()
        await until("it to be removed", lambda: DATA not in machine.pool.volumes)
        assert holders(machine) == []
        await agent.stop()

    run(scenario)


def test_one_that_cannot_grow_is_ready_as_it_is_and_says_why() -> None:
    """It was told as being made, and why not at all."""

    async def scenario() -> None:
        machine = Machine()
        agent = machine.agent()
        await agent.start()
        await machine.snapshot(agent, data())
        key, ready = f"volume/{DATA}", VolumeReport.STATE_READY
        await until("it to be made", lambda: _told(agent, key).state == ready)
        machine.pool.faults["resize"].extend([StorageError("the pool does not answer")] * 3)
        larger = data()
        larger[key].volume.size_bytes = 2 * MIB
        await machine.upsert(agent, larger)
        await until("it to say why", lambda: _told(agent, key).error == "the pool does not answer")
        assert (_told(agent, key).state, _told(agent, key).size_bytes) == (ready, MIB)
        await until("it to have grown", lambda: _told(agent, key).size_bytes == 2 * MIB)
        assert not _told(agent, key).error
        await agent.stop()

    run(scenario)


def test_one_that_cannot_be_made_says_why() -> None:
    async def scenario() -> None:
        machine = Machine()
        agent = machine.agent()
        await agent.start()
        machine.pool.faults["create"].append(StorageError("the pool does not answer"))
        await machine.snapshot(agent, data())
        say = "the pool does not answer; trying again"
        await until("it to say why", lambda: _told(agent, f"volume/{DATA}").say == say)
        await until("it to be made", lambda: _told(agent, f"volume/{DATA}").state == VolumeReport.STATE_READY)
        await agent.stop()

    run(scenario)


def _told(agent: Agent, key: str) -> VolumeReport:
    latest = agent.reports.latest(key)
    return latest.volume if latest is not None else VolumeReport()
