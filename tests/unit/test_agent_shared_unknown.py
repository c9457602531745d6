"""Volumes of shared pools that an agent administered before a restore: kept as unknown, told, and let go of when told so."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest
from cairn.agent.app import Agent
from cairn.proto.v1.agent_pb2 import Desired, DesiredVolume, Unknown
from cairn.storage.fake_shared import SharedPool

from tests.unit.agent_kit import MIB, Machine, elapse, run, settled, until, vm_objects

DATA = "vol-0000000d"
KEY = f"volume/{DATA}"
POOL = "fake-shared/tank"
Scenario = Callable[[Machine, Agent], Awaitable[None]]


def shared_volume(**more: object) -> Desired:
    fields = {"id": DATA, "size_bytes": 64 * MIB, "type": "fake-shared", "pool": POOL, "generation": 3, **more}
    return Desired(volume=DesiredVolume(**fields))  # type: ignore[arg-type]


def told(agent: Agent) -> dict[str, Unknown]:
    agent.reports.resend_all()
    return {each.unknown.key: each.unknown for each in agent.reports.take() if each.HasField("unknown")}


def administered(then: Scenario) -> None:
    """Have a node make a volume in the pool, and be told of a restored store that knows nothing of it."""

    async def scenario() -> None:
        machine = Machine(tank=SharedPool("tank"))
        agent = machine.agent()
        await agent.start()
        await machine.snapshot(agent, {KEY: shared_volume()})
        await until("it to be made", lambda: agent.reports.latest(KEY) is not None)
        await settled(agent)
        machine.epoch += 1
        await machine.snapshot(agent, {})
        await elapse(70)
        await then(machine, agent)
        await agent.stop()

    run(scenario)


def test_it_is_unknown_after_a_restore_and_told_whole() -> None:
    async def then(machine: Machine, agent: Agent) -> None:
        unknown = told(agent)
        assert set(unknown) == {KEY}
        given = unknown[KEY].desired.volume
        assert (given.size_bytes, given.pool, given.generation, given.made) == (64 * MIB, POOL, 3, True)
        assert POOL in unknown[KEY].say
        await machine.snapshot(agent, {})
        assert set(told(agent)) == {KEY}, "it stays so until there is a word"
        await machine.crash(agent)
        again = machine.agent()
        await again.start()
        await elapse(70)
        assert set(told(again)) == {KEY}
        await again.stop()

    administered(then)


def test_what_was_never_made_is_not_told() -> None:
    async def scenario() -> None:
        machine = Machine(tank=SharedPool("tank"))
        agent = machine.agent()
        await agent.start()
        await machine.snapshot(agent, {KEY: shared_volume(image_digest="sha256:" + "0" * 64, image="img-00000009")})
        await elapse(10)
        machine.epoch += 1
        await machine.snapshot(agent, {})
        await elapse(70)
        assert not told(agent)
        await agent.stop()

    run(scenario)


def test_a_guest_is_told_as_a_guest() -> None:
    """What is added to a volume that is told must not touch anything else."""

    async def scenario() -> None:
        machine = Machine(tank=SharedPool("tank"))
        machine.hold_image()
        agent = machine.agent()
        await agent.start()
        await machine.snapshot(agent, vm_objects())
        await settled(agent)
        machine.epoch += 1
        await machine.snapshot(agent, {})
        await elapse(70)
        unknown = told(agent)
        assert unknown["vm/i-00000001"].desired == vm_objects()["vm/i-00000001"]
        assert not unknown["volume/vol-00000001"].desired.volume.made
        await agent.stop()

    run(scenario)


@pytest.mark.parametrize("removed", [False, True], ids=["not in a snapshot", "removed"])
def test_who_hears_that_it_is_anothers_lets_go_and_touches_nothing(removed: bool) -> None:
    async def then(machine: Machine, agent: Agent) -> None:
        elsewhere = {KEY: Desired(volume=DesiredVolume(id=DATA, type="fake-shared", pool=POOL, elsewhere=True))}
        await machine.upsert(agent, elsewhere)
        await elapse(70)
        assert not told(agent)
        assert agent.reports.latest(KEY) is None, "it is not its work to report"
        await (machine.remove(agent, [KEY]) if removed else machine.snapshot(agent, {}))
        await elapse(70)
        assert not told(agent)
        assert not agent.ledger.desired
        assert machine.tank is not None
        assert machine.tank.volumes[DATA].size_bytes == 64 * MIB
        assert machine.tank.generations == {DATA: 3}

    administered(then)


def test_who_gets_it_again_goes_on_with_it() -> None:
    async def then(machine: Machine, agent: Agent) -> None:
        await machine.upsert(agent, {KEY: shared_volume(generation=9, size_bytes=128 * MIB, made=True)})
        await settled(agent)
        assert not told(agent)
        assert machine.tank is not None
        assert machine.tank.volumes[DATA].size_bytes == 128 * MIB

    administered(then)


def test_an_explicit_word_removes_it() -> None:
    async def then(machine: Machine, agent: Agent) -> None:
        await machine.upsert(agent, {KEY: shared_volume(absent=True, generation=9)})
        await settled(agent)
        assert machine.tank is not None
        assert not machine.tank.volumes

    administered(then)


def test_what_a_restored_record_contradicts_is_kept_when_the_work_goes_to_another() -> None:
    """It was grown since the backup: only this node knows."""

    async def then(machine: Machine, agent: Agent) -> None:
        before = shared_volume(size_bytes=32 * MIB, generation=2)
        before.restored = True
        machine.epoch += 1
        await machine.snapshot(agent, {KEY: before})
        await elapse(10)
        assert told(agent)[KEY].contested
        await machine.remove(agent, [KEY])
        await elapse(70)
        unknown = told(agent)
        assert (unknown[KEY].contested, unknown[KEY].desired.volume.size_bytes) == (False, 64 * MIB)

    administered(then)
