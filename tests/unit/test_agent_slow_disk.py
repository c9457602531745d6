"""A disk that takes its time keeps only those waiting who wrote to it: its syncs end once the loop showed that it goes on."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest
from cairn.agent import journal, sync
from cairn.proto.pki import Authority
from cairn.proto.seams import SystemDisk
from cairn.proto.v1.agent_pb2 import VmReport
from cairn.proto.v1.agent_pb2_grpc import add_AgentServiceServicer_to_server

from tests.unit.agent_kit import Machine, until, vm_objects
from tests.unit.test_agent_ledger import at, content, loaded, put
from tests.unit.test_agent_sync import Controller, agent_of, ca, serving

__all__ = ["ca"]


async def test_the_loop_goes_on_while_a_disk_syncs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sync ends only when the loop says so: one that ran on the loop would wait for ever, and fails after a while."""
    waits, may_end = threading.Event(), threading.Event()

    def fdatasync(handle: int) -> None:
        waits.set()
        if not may_end.wait(20):
            raise OSError(5, "nobody let it end")

    ledger = await loaded(SystemDisk(tmp_path / "ledger"))
    await ledger.accept_snapshot(at(5), [])
    monkeypatch.setattr("os.fdatasync", fdatasync)
    task = asyncio.create_task(ledger.accept([put("vm/a", 6)]))
    await until("the sync", waits.is_set, 20)
    assert (task.done(), content(ledger)) == (False, {})
    may_end.set()
    assert await task == {"vm/a"}


async def test_heartbeats_go_on_while_the_ledgers_disk_takes_its_time(
    ca: Authority, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The sync ends once enough heartbeats came: one that kept the loop would end with an error instead."""
    waits, may_end = threading.Event(), threading.Event()

    def fdatasync(handle: int) -> None:
        waits.set()
        if not may_end.wait(20):
            raise OSError(5, "no heartbeats came")

    monkeypatch.setattr(sync, "HEARTBEAT_S", 0.05)
    monkeypatch.setattr(journal, "SLOW_S", 0.2)
    machine = Machine(disk=SystemDisk(tmp_path / "ledger"))
    machine.hold_image()
    controller = Controller({})
    async with (
        serving(ca, controller, add_AgentServiceServicer_to_server) as address,
        agent_of(ca, machine, [address]) as agent,
    ):
        await until("the snapshot", lambda: agent.sync.synced.is_set(), 20)
        monkeypatch.setattr("os.fdatasync", fdatasync)
        for key, object in vm_objects().items():
            await controller.put(key, object)
        await until("the sync", waits.is_set, 20)
        beats = controller.beats
        await until("heartbeats", lambda: controller.beats >= beats + 3, 15)
        assert not machine.pool.volumes, "nothing is acted on"
        assert agent.ledger.waits_s(agent.now_s()) > 0.0
        await until("it to be told", lambda: controller.events, 15)
        assert [event.reason for event in controller.events] == ["DiskSlow"], "once"
        assert not agent.ledger.desired
        may_end.set()
        await until("running", lambda: controller.state() == VmReport.STATE_RUNNING, 20)
        assert agent.ledger.waits_s(agent.now_s()) == 0.0
        assert len(controller.hellos) == 1
