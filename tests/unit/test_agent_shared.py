"""Volumes of pools that several nodes reach, on the agent: made by one node, opened by another; drivers by type."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from cairn.proto.v1.agent_pb2 import Desired, DesiredVolume, VmDisk, VmReport, VolumeReport
from cairn.storage.base import StorageError, Superseded, Volume
from cairn.storage.fake_shared import Connection, SharedPool

from tests.unit.agent_kit import MIB, Machine, elapse, ran, run, settled, state_of, until, vm_objects

VM, ROOT, DATA = "i-00000001", "vol-00000001", "vol-0000000d"
KEY = f"volume/{DATA}"


def shared_volume(**more: object) -> Desired:
    fields = {"id": DATA, "size_bytes": 64 * MIB, "type": "fake-shared", "pool": "fake-shared/tank", "generation": 1, **more}
    return Desired(volume=DesiredVolume(**fields))  # type: ignore[arg-type]


def with_data() -> dict[str, Desired]:
    """A guest with a local root disk and a data disk in the shared pool."""
    objects = vm_objects()
    objects[f"vm/{VM}"].vm.disks.append(VmDisk(volume=DATA, type="fake-shared", pool="fake-shared/tank"))
    return objects


def said(agent: object, key: str = KEY) -> VolumeReport:
    report = agent.reports.latest(key)  # type: ignore[attr-defined]
    assert report is not None
    return report.volume


def test_one_node_makes_it_and_another_opens_it() -> None:
    async def scenario() -> None:
        tank = SharedPool("tank")
        maker, runner = Machine(tank=tank), Machine(tank=tank)
        runner.hold_image()
        first, second = maker.agent(), runner.agent()
        await first.start()
        await second.start()
        await runner.snapshot(second, with_data())
        await elapse(5)
        assert state_of(second, VM) == VmReport.STATE_PREPARING
        assert f"waits for volume {DATA}" in second.reports.latest(f"vm/{VM}").vm.say
        await maker.snapshot(first, {KEY: shared_volume()})
        await until("it to be made", lambda: DATA in tank.volumes)
        await ran(second, VM)
        assert DATA in runner.host.guests[VM].disks
        assert not maker.pool.volumes
        assert second.reports.latest(KEY) is None, "its administrator speaks of it, nobody else"
        await settled(first)
        assert (said(first).state, said(first).size_bytes) == (VolumeReport.STATE_READY, 64 * MIB)
        await first.stop()
        await second.stop()

    run(scenario)


def test_who_administers_it_no_more_lets_go_and_does_not_call_it_unknown() -> None:
    async def scenario() -> None:
        machine = Machine(tank=SharedPool("tank"))
        agent = machine.agent()
        await agent.start()
        await machine.snapshot(agent, {KEY: shared_volume()})
        await until("it to be made", lambda: agent.reports.latest(KEY) is not None)
        await settled(agent)
        await machine.remove(agent, [KEY])
        await elapse(70)
        assert machine.tank is not None
        assert DATA in machine.tank.volumes
        assert not agent.ledger.unknown
        assert not [each for each in agent.reports.take() if each.HasField("unknown")]
        await agent.stop()

    run(scenario)


def test_one_that_was_made_before_and_is_not_there_is_lost_not_made_again() -> None:
    async def scenario() -> None:
        machine = Machine(tank=SharedPool("tank"))
        agent = machine.agent()
        await agent.start()
        await machine.snapshot(agent, {KEY: shared_volume(generation=2, made=True)})
        await elapse(40)
        assert said(agent).state == VolumeReport.STATE_FAILED
        assert machine.tank is not None
        assert DATA not in machine.tank.volumes
        machine.tank.volumes[DATA] = Volume(DATA, 64 * MIB, 1)
        await until("it to be seen again", lambda: said(agent).state == VolumeReport.STATE_READY, 60)
        await agent.stop()

    run(scenario)


def test_the_word_of_an_older_generation_is_refused_and_said() -> None:
    async def scenario() -> None:
        tank = SharedPool("tank")
        tank.admit(DATA, 2)
        machine = Machine(tank=tank)
        agent = machine.agent()
        await agent.start()
        await machine.snapshot(agent, {KEY: shared_volume(generation=1)})
        await elapse(40)
        assert said(agent).state == VolumeReport.STATE_FAILED
        assert "administered by another node" in said(agent).error
        assert DATA not in tank.volumes
        await agent.stop()

    run(scenario)


def test_what_is_not_seen_is_deleted_in_the_pool_too_and_nobody_late_makes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Deleted before it was whole it was told as removed; what there was of it stayed, and who is late could still make it."""

    async def scenario() -> None:
        tank, asked = SharedPool("tank"), list[int]()
        admit = tank.admit

        def heard(id: str, generation: int) -> None:
            asked.append(generation)
            admit(id, generation)

        monkeypatch.setattr(tank, "admit", heard)
        machine = Machine(tank=tank)
        agent = machine.agent()
        await agent.start()
        await machine.snapshot(agent, {KEY: shared_volume(generation=3, absent=True)})
        await until("it to be removed", lambda: agent.reports.latest(KEY) is not None)
        assert said(agent).state == VolumeReport.STATE_ABSENT
        await elapse(100)
        assert asked == [3], "once"
        with pytest.raises(Superseded):
            tank.admit(DATA, 2)
        await agent.stop()

    run(scenario)


def test_a_type_this_node_does_not_know_is_failed_with_a_sentence_never_local() -> None:
    async def scenario() -> None:
        machine = Machine()
        machine.hold_image()
        agent = machine.agent()
        await agent.start()
        await machine.snapshot(agent, {**with_data(), KEY: shared_volume()})
        await elapse(40)
        assert said(agent).state == VolumeReport.STATE_FAILED
        assert said(agent).error == (
            "this node does not know volumes of type fake-shared, only local: give it that pool, or upgrade its agent"
        )
        assert DATA not in machine.pool.volumes
        assert said(agent, f"volume/{ROOT}").state == VolumeReport.STATE_READY
        assert state_of(agent, VM) == VmReport.STATE_PREPARING
        assert "does not know volumes of type fake-shared" in agent.reports.latest(f"vm/{VM}").vm.say
        await agent.stop()

    run(scenario)


def test_a_pool_that_cannot_be_looked_at_hides_nothing_of_the_others() -> None:
    """The shared pool does not answer: guests on local disks start, one with a disk there waits and is not harmed."""

    async def scenario() -> None:
        tank = SharedPool("tank")
        machine = Machine(tank=tank)
        machine.hold_image()
        agent = machine.agent()
        await agent.start()
        await machine.snapshot(agent, {**with_data(), KEY: shared_volume()})
        await ran(agent, VM)
        broken = True
        observe = agent.drivers.of("fake-shared").observe

        async def fails(ids: object) -> object:
            if broken:
                raise StorageError("the pool does not answer")
            return await observe(ids)  # type: ignore[arg-type]

        agent.drivers.of("fake-shared").observe = fails  # type: ignore[method-assign, assignment]
        other = "vol-0000000e"
        both = {**with_data(), KEY: shared_volume(), f"volume/{other}": shared_volume(id=other), **vm_objects(2)}
        await machine.snapshot(agent, both)
        await ran(agent, "i-00000002")
        await elapse(70)
        assert machine.running() == {VM, "i-00000002"}
        assert said(agent).state == VolumeReport.STATE_READY, "what was last seen stays"
        assert other not in tank.volumes, "nobody knows whether it is there"
        broken = False
        await until("it to be looked at again", lambda: other in tank.volumes, 120)
        await agent.stop()

    run(scenario)


def test_what_it_knows_and_reaches_is_told() -> None:
    async def scenario() -> None:
        machine = Machine(tank=SharedPool("tank", capacity_bytes=7 << 30))
        agent = machine.agent()
        await agent.facts.refresh()
        assert [(pool.type, pool.name, pool.total_bytes) for pool in agent.reports.facts.pools] == [
            ("local", "", machine.pool.capacity_bytes), ("fake-shared", "tank", 7 << 30),
        ]  # fmt: skip
        hello = agent._hello()
        assert {"volume:local", "volume:fake-shared", "desired:vm", "desired:volume"} <= set(hello.capabilities)

    run(scenario)


def claimed(claim: int) -> dict[str, Desired]:
    objects = with_data()
    objects[f"vm/{VM}"].vm.disks[1].open_generation = claim
    return {KEY: shared_volume(), **objects}


def error_of(agent: object) -> str:
    report = agent.reports.latest(f"vm/{VM}")  # type: ignore[attr-defined]
    return report.vm.error if report is not None else ""


def with_agent(scenario: Callable[[Machine, SharedPool, Any], Awaitable[None]]) -> None:
    """Play with a machine that reaches a pool, and its agent."""

    async def played() -> None:
        tank = SharedPool("tank")
        machine = Machine(tank=tank)
        machine.hold_image()
        machine.host.connect = tank.connect
        agent = machine.agent()
        await agent.start()
        await scenario(machine, tank, agent)
        await agent.stop()

    run(played)


def refuse_once_open(machine: Machine, tank: SharedPool, claim: int) -> None:
    """Have the pool refuse a claim from the moment on in which its guest's process opens the volume."""

    def connect(path: str) -> Connection:
        tank.refused[DATA] = claim
        return tank.connect(path)

    machine.host.connect = connect


def test_a_guest_is_not_started_with_what_was_given_to_another() -> None:
    async def scenario(machine: Machine, tank: SharedPool, agent: Any) -> None:
        tank.opened[DATA] = 5
        await machine.snapshot(agent, claimed(4))
        say = "was given to another guest, or is to be: claim 4, newest 5"
        await until("it to be refused", lambda: say in error_of(agent), 60)
        assert not machine.host.boots
        await machine.snapshot(agent, claimed(6))
        await ran(agent, VM)
        assert tank.opened[DATA] == 6

    with_agent(scenario)


def test_one_that_was_shut_out_while_it_was_started_executes_nothing() -> None:
    """It is started paused; its claim ends before it is let run, and its process might have come too late to be shut out."""

    async def scenario(machine: Machine, tank: SharedPool, agent: Any) -> None:
        refuse_once_open(machine, tank, 4)
        await machine.snapshot(agent, claimed(4))
        await until("it to be refused", lambda: "claim 4" in error_of(agent), 60)
        await elapse(5)
        assert not machine.host.boots
        assert machine.host.guests[VM].live is None, "its power is cut"

    with_agent(scenario)


def test_a_disk_that_was_given_away_while_it_was_plugged_is_taken_out_again() -> None:
    async def scenario(machine: Machine, tank: SharedPool, agent: Any) -> None:
        await machine.snapshot(agent, {KEY: shared_volume(), **vm_objects()})
        await ran(agent, VM)
        refuse_once_open(machine, tank, 4)
        await machine.snapshot(agent, claimed(4))
        await until("it to be refused", lambda: "claim 4" in error_of(agent), 60)
        live = machine.host.guests[VM].live
        assert live is not None
        assert DATA not in live.disks

    with_agent(scenario)


def test_who_administers_it_shuts_out_and_says_so_once_it_is_done() -> None:
    async def scenario(machine: Machine, tank: SharedPool, agent: Any) -> None:
        await machine.snapshot(agent, {KEY: shared_volume()})
        await until("it to be made", lambda: DATA in tank.volumes)
        other = tank.connect(f"tank/{DATA}")
        tank.opened[DATA] = 7
        machine.pool.faults["shut_out"].append(StorageError("failed on purpose"))
        await machine.snapshot(agent, {KEY: shared_volume(shut_out=7)})
        await until("it to be said", lambda: said(agent).shut_out == 7, 60)
        assert other.is_out
        assert tank.refused[DATA] == 7
        await machine.snapshot(agent, {KEY: shared_volume()})
        await until("it to be asked for no more", lambda: said(agent).shut_out == 0)

    with_agent(scenario)
