"""What was refused comes on record a moment later by itself; the same again is counted, and told after a while."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress

import pytest
from cairn.controller.api import refusals
from cairn.controller.api.refusals import Refusals
from cairn.controller.model.permits import Caller
from cairn.controller.store.base import Unavailable
from cairn.controller.store.view import LiveView
from cairn.proto.errors import BadState, Repeated, TryAgain
from cairn.proto.seams import SystemClock
from cairn.proto.v1.audit_pb2 import Audit
from cairn.proto.v1.vm_pb2 import GetVmRequest, StopVmRequest

STOP, GET = "/cairn.v1.VmService/StopVm", "/cairn.v1.VmService/GetVm"
BOB, WHY = Caller("user", "bob"), BadState("vm", "web", "VM 'web' is deleted")


class Views:
    view = LiveView()


class Recorder:
    def __init__(self) -> None:
        self.told: list[list[Audit]] = []
        self.heard = asyncio.Event()
        self.fails = 0

    async def record(self, audits: Sequence[Audit]) -> None:
        if self.fails:
            self.fails -= 1
            raise Unavailable("no member answers")
        self.told.append(list(audits))
        self.heard.set()

    async def next(self) -> list[Audit]:
        async with asyncio.timeout(20):
            await self.heard.wait()
        self.heard.clear()
        return self.told[-1]


async def test_told_a_moment_later_and_what_comes_again_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refusals, "GATHER_S", 0.01)
    monkeypatch.setattr(refusals, "WINDOW_S", 0.1)
    recorder = Recorder()
    kept = Refusals(recorder, Views(), SystemClock())
    running = asyncio.create_task(kept.run())
    kept.note(BOB, "10.0.0.1", STOP, StopVmRequest(id="web"), WHY)
    kept.note(BOB, "10.0.0.1", STOP, StopVmRequest(id="db"), WHY)
    first = await recorder.next()
    while len(first) < 2:
        # Each has its time, and those are not one.
        first += await recorder.next()
    assert [(each.object_name, each.count, each.say) for each in first] == [("web", 1, WHY.say), ("db", 1, WHY.say)]
    for _ in range(5):
        kept.note(BOB, "10.0.0.1", STOP, StopVmRequest(id="web"), WHY)
    assert [(each.object_name, each.count) for each in await recorder.next()] == [("web", 5)]
    recorder.fails = 2
    kept.note(BOB, "10.0.0.1", STOP, StopVmRequest(id="db"), WHY)
    assert [(each.object_name, each.count) for each in await recorder.next()] == [("db", 1)]
    assert not recorder.fails
    running.cancel()
    with suppress(asyncio.CancelledError):
        await running


async def test_what_passes_or_was_told_or_only_reads_is_not_told() -> None:
    recorder = Recorder()
    kept = Refusals(recorder, Views(), SystemClock())
    kept.note(BOB, "", STOP, StopVmRequest(id="web"), TryAgain("later"))
    kept.note(BOB, "", STOP, StopVmRequest(id="web"), Repeated(WHY.status()))
    kept.note(BOB, "", GET, GetVmRequest(id="web"), WHY)
    await kept.tell(float("inf"))
    assert recorder.told == []
