"""What a start does not wait for: other guests that are looked at, steps that need each other in nothing, reports of nobody."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence

import pytest
from cairn.agent.app import Agent
from cairn.agent.hypervisor.base import Domain, DomainSpec, HypervisorError
from cairn.agent.hypervisor.fake import FakeHypervisor
from cairn.agent.world import Part
from cairn.controller.node_reports import BREATH_S, COALESCE_S
from cairn.proto import kinds
from cairn.proto.v1.agent_pb2 import DesiredVm, VmReport

from tests.unit.agent_kit import Machine, elapse, run, settled, until, vm_objects
from tests.unit.agent_kit import state_of as told
from tests.unit.sync_kit import N1, world
from tests.unit.sync_kit import agent as connected

FIRST, SECOND = "i-00000001", "i-00000002"


class Looks:
    """How an agent's guests were looked at: the ids, or None for all of them."""

    def __init__(self, agent: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
        self.said: list[set[str] | None] = []
        self.fail = False
        inner: FakeHypervisor = agent.world._hypervisor  # type: ignore[assignment]
        listed = inner.list

        async def list() -> Sequence[Domain]:
            self.said.append(None)
            return await listed()

        async def look(ids: Collection[str]) -> Sequence[Domain]:
            self.said.append(set(ids))
            if self.fail:
                raise HypervisorError("not now")
            return [domain for domain in await listed() if domain.id in ids]

        monkeypatch.setattr(inner, "list", list)
        monkeypatch.setattr(inner, "look", look)


def test_who_starts_a_guest_looks_at_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        machine = Machine()
        machine.hold_image()
        agent = machine.agent()
        await agent.start()
        await machine.snapshot(agent, vm_objects(1))
        await until("the first runs", lambda: told(agent, FIRST) == VmReport.STATE_RUNNING)
        await elapse(1)
        await settled(agent)
        looks = Looks(agent, monkeypatch)
        await machine.upsert(agent, {key: each for key, each in vm_objects(2).items() if not key.startswith("network")})
        await until("the second runs", lambda: told(agent, SECOND) == VmReport.STATE_RUNNING)
        assert looks.said
        assert all(said == {SECOND} for said in looks.said)
        await agent.stop()

    run(scenario)


def test_a_look_that_failed_is_followed_by_one_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        machine = Machine()
        machine.hold_image()
        agent = machine.agent()
        await agent.start()
        await machine.snapshot(agent, vm_objects(1))
        await until("it runs", lambda: told(agent, FIRST) == VmReport.STATE_RUNNING)
        await elapse(1)
        await settled(agent)
        looks = Looks(agent, monkeypatch)
        looks.fail = True
        agent.world.mark_guest(FIRST)
        with pytest.raises(HypervisorError):
            await agent.world.refresh(Part.DOMAINS)
        machine.host.crash(FIRST)
        await agent.world.refresh(Part.DOMAINS)
        assert looks.said == [{FIRST}, None]
        assert not agent.world.domains[FIRST].is_on
        await agent.stop()

    run(scenario)


def test_a_guest_that_vanished_is_seen_to_be_gone_by_a_look_at_it_alone() -> None:
    async def scenario() -> None:
        machine = Machine()
        machine.hold_image()
        agent = machine.agent()
        await agent.start()
        await machine.snapshot(agent, vm_objects(1))
        await until("it runs", lambda: told(agent, FIRST) == VmReport.STATE_RUNNING)
        del machine.host.guests[FIRST]
        agent.world.mark_guest(FIRST)
        await agent.world.refresh(Part.DOMAINS)
        assert FIRST not in agent.world.domains
        await agent.stop()

    run(scenario)


def test_a_seed_is_written_while_the_guest_is_defined(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        machine, defined = Machine(), asyncio.Event()
        machine.hold_image()
        agent = machine.agent()
        write, define = agent._files.write_seed, agent.world._hypervisor.define

        async def write_seed(vm: DesiredVm) -> None:
            async with asyncio.timeout(5):
                await defined.wait()
            await write(vm)

        async def define_and_tell(spec: DomainSpec) -> None:
            await define(spec)
            defined.set()

        monkeypatch.setattr(agent._files, "write_seed", write_seed)
        monkeypatch.setattr(agent.world._hypervisor, "define", define_and_tell)
        await agent.start()
        await machine.snapshot(agent, vm_objects(1))
        await until("it runs", lambda: told(agent, FIRST) == VmReport.STATE_RUNNING)
        await agent.stop()

    run(scenario)


def test_a_guest_is_not_started_with_a_seed_that_could_not_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        machine = Machine()
        machine.hold_image()
        agent = machine.agent()
        write, full = agent._files.write_seed, True

        async def write_seed(vm: DesiredVm) -> None:
            if full:
                raise OSError(28, "No space left on device")
            await write(vm)

        monkeypatch.setattr(agent._files, "write_seed", write_seed)
        await agent.start()
        await machine.snapshot(agent, vm_objects(1))
        await elapse(5)
        assert not machine.running()
        report = agent.reports.latest(f"vm/{FIRST}")
        assert report is not None
        assert "writing its seed image failed" in report.vm.error
        full = False
        await until("it runs", lambda: told(agent, FIRST) == VmReport.STATE_RUNNING)
        await agent.stop()

    run(scenario)


def test_a_report_that_comes_alone_is_written_soon_and_what_follows_it_together() -> None:
    async def scenario() -> None:
        async with world() as at:
            loop, vm = asyncio.get_running_loop(), at.cloud.vm("a", node=N1)
            await at.decided()
            here = connected(at)
            await until("it is connected", lambda: here.bookmarks)
            await elapse(1)

            async def reported(state: VmReport.State.ValueType) -> float:
                """Return after how long it is in the store."""
                began_s = loop.time()
                here.report(f"vm/{vm}", vm=VmReport(state=state))
                for _ in range(1000):
                    await asyncio.sleep(BREATH_S / 10)
                    report = at.observed(N1, f"vm/{vm}")
                    if report is not None and report.vm.state == state:
                        return loop.time() - began_s
                raise AssertionError("not written")

            assert await reported(VmReport.STATE_PREPARING) < 2 * BREATH_S
            before = at.cache.view.revision
            for say in ("first", "second", "third"):
                here.report(f"vm/{vm}", vm=VmReport(state=VmReport.STATE_RUNNING, say=say))
                await asyncio.sleep(COALESCE_S / 10)
            await elapse(1)
            record = at.cache.view.record(kinds.OBSERVED, f"{N1}/vm/{vm}")
            assert record is not None
            assert record.message.report.vm.say == "third"
            assert record.mod_revision == before + 1, "written once"
            await here.break_off()

    run(scenario)
