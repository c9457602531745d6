"""Scenes of the checker metered: what is counted as used, and what there was."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from cairn.proto.v1.agent_pb2 import VmReport
from cairn.proto.v1.usage_pb2 import ReportUsageResponse, UsageClock, UsageDay, UsageGap, UsageOpen

from tests.sim.stage import GIB, SCENES, VM, VOLUME, Stage, guest, said, scene, vm, volume

__all__ = ["SCENES"]
S = 1_000_000
START = datetime(2030, 1, 1, tzinfo=UTC)
START_US = int(START.timestamp()) * S


class _Clock:
    """The true time of a stage."""

    def __init__(self, stage: Stage) -> None:
        self.s = 0.0
        stage.cloud.clock = lambda: START + timedelta(seconds=self.s)


def _at(stage: Stage, s: float, *records: tuple[str, str, Any], clock: _Clock | None = None, wrong_s: float = 0) -> None:
    """Commit something at a time."""
    if clock is not None:
        clock.s = s
    stamp = UsageClock()
    stamp.time.FromMicroseconds(START_US + int((s + wrong_s) * S))
    stage.commit(*records, ("usage_clock", "self", stamp), by={})


def _open(object: str, since_s: int, *, size: int = 0, node: str = "", inexact: bool = False) -> tuple[str, str, UsageOpen]:
    open = UsageOpen(object=object, since_us=START_US + since_s * S, size_bytes=size, inexact=inexact)
    if node:
        open.guests.add(node=node)
    return "usage_open", object, open


def _day(object: str, *pieces: tuple[int, bool], size: int = 0) -> tuple[str, str, UsageDay]:
    day = UsageDay(project="p")
    held = day.objects.add(object=object)
    for seconds, running in pieces:
        byte_us, memory = (number.to_bytes(16, "big") for number in (seconds * S * size, seconds * S * GIB * running))
        held.pieces.add(us=seconds * S, running=running, cpu_us=seconds * S * running, memory_byte_us=memory, byte_us=byte_us)
    return "usage_day", "20300101/p/0000", day


def _kept(stage: Stage, *records: tuple[str, str, Any]) -> None:
    stage.commit(*records, by={})


def _reported(state: Any) -> tuple[str, str, Any]:
    return said(f"vm/{VM}", vm=VmReport(state=state))


def _ran(stage: Stage, clock: _Clock | None = None) -> None:
    """A VM is made, runs for 30 s, is off for 10 s and goes."""
    _at(stage, 0, vm(), clock=clock)
    _at(stage, 5, _reported(VmReport.STATE_RUNNING), clock=clock)
    _at(stage, 35, _reported(VmReport.STATE_STOPPED), clock=clock)
    _at(stage, 45, ("vm", VM, None), clock=clock)


@scene("metered")
def a_vm_is_counted_as_it_was(stage: Stage) -> None:
    _ran(stage)
    _kept(stage, _day(f"vm/{VM}", (5, False), (30, True), (10, False)))
    stage.settle()
    stage.bare()


@scene("metered")
def what_is_there_goes_on(stage: Stage) -> None:
    _at(stage, 0, volume())
    _kept(stage, _open(f"volume/{VOLUME}", 0, size=GIB))
    stage.settle()
    _at(stage, 8, volume(size_bytes=2 * GIB))
    _kept(stage, _open(f"volume/{VOLUME}", 8, size=2 * GIB), _day(f"volume/{VOLUME}", (8, False), size=GIB))
    stage.settle()


@scene("metered", "was changed and nothing says when")
def a_change_without_its_time(stage: Stage) -> None:
    stage.commit(volume(), by={})


@scene("metered", "volume/vol-1 is there and does not count")
def one_that_was_overlooked(stage: Stage) -> None:
    _at(stage, 0, volume())
    stage.settle()


@scene("metered", "volume/vol-1 is gone and goes on counting")
def an_interval_left_open(stage: Stage) -> None:
    _at(stage, 0, volume())
    _kept(stage, _open(f"volume/{VOLUME}", 0, size=GIB))
    _at(stage, 10, ("volume", VOLUME, None))
    stage.settle()


@scene("metered", "volume/vol-9 goes on counting")
def one_that_nobody_knows_goes_on(stage: Stage) -> None:
    _kept(stage, _open("volume/vol-9", 0, size=GIB))
    stage.bare()


@scene("metered", r"has 45000000 us by its records, and 55000000 are counted \(\+10000000\)")
def a_piece_counted_twice(stage: Stage) -> None:
    _ran(stage)
    _kept(stage, _day(f"vm/{VM}", (5, False), (30, True), (10, False), (10, False)))
    stage.settle()


@scene("metered", "has 30000000 running us by its records, and 0 are counted")
def one_that_ran_uncounted(stage: Stage) -> None:
    _ran(stage)
    _kept(stage, _day(f"vm/{VM}", (45, False)))
    stage.settle()


@scene("metered", f"counts as running False with {GIB} bytes, and is False with {2 * GIB}")
def a_volume_counted_with_its_old_size(stage: Stage) -> None:
    _at(stage, 0, volume())
    _at(stage, 8, volume(size_bytes=2 * GIB))
    _kept(stage, _open(f"volume/{VOLUME}", 0, size=GIB))
    stage.settle()


@scene("metered")
def within_a_gap_that_is_told(stage: Stage) -> None:
    _at(stage, 0, volume())
    _at(stage, 10, ("volume", VOLUME, None))
    gap = UsageGap()
    gap.begin_time.FromMicroseconds(START_US + 5 * S)
    gap.end_time.FromMicroseconds(START_US + 20 * S)
    _kept(stage, _day(f"volume/{VOLUME}", (5, False), size=GIB), ("usage_gap", "1", gap))
    stage.settle()


def _page(seconds: float, until_s: float = 100, **row: Any) -> ReportUsageResponse:
    page = ReportUsageResponse()
    page.usages.add(kind="vm", object=VM, seconds=seconds, **row)
    page.until_time.FromMicroseconds(START_US + int(until_s * S))
    return page


@scene("metered")
def a_report_says_what_was(stage: Stage) -> None:
    _ran(stage)
    stage.said += stage.checker.listed(stage.cloud, "c1", "usage", [_page(45, running_seconds=30)])
    # By a clock that is behind it has not ended yet.
    stage.said += stage.checker.listed(stage.cloud, "c2", "usage", [_page(40, 40, running_seconds=30)])


@scene("metered", "c1 reports that vm/i-1 was there for 40000000 us and ran for 30000000: 45000000, 30000000")
def a_report_leaves_something_out(stage: Stage) -> None:
    _ran(stage)
    stage.said += stage.checker.listed(stage.cloud, "c1", "usage", [_page(40, running_seconds=30)])


@scene("metered", "c1 reports that vm/i-1 is there")
def a_report_says_that_it_goes_on(stage: Stage) -> None:
    _ran(stage)
    stage.said += stage.checker.listed(stage.cloud, "c1", "usage", [_page(45, running_seconds=30, open=True)])


@scene("metered", "is marked as not exact, and no gap is told")
def marked_for_nothing(stage: Stage) -> None:
    _at(stage, 0, volume())
    _kept(stage, _open(f"volume/{VOLUME}", 0, size=GIB, inexact=True))
    stage.settle()


@scene("metered")
def a_guest_ran_as_long_as_was_reported(stage: Stage) -> None:
    clock = _Clock(stage)
    _at(stage, 0, vm(), clock=clock)
    clock.s = 3
    stage.host(guests=guest())
    _at(stage, 5, _reported(VmReport.STATE_RUNNING), clock=clock)
    clock.s = 33
    stage.host()
    _at(stage, 35, _reported(VmReport.STATE_STOPPED), clock=clock)
    _kept(stage, _open(f"vm/{VM}", 35), _day(f"vm/{VM}", (5, False), (30, True)))
    stage.settle()


@scene("metered", "ran for 20000000 us on hosts, 30000000 are counted; reports and clocks account for")
def a_guest_counted_for_longer_than_it_ran(stage: Stage) -> None:
    clock = _Clock(stage)
    _at(stage, 0, vm(), clock=clock)
    clock.s = 5
    stage.host(guests=guest())
    _at(stage, 5, _reported(VmReport.STATE_RUNNING), clock=clock)
    clock.s = 25
    stage.host()
    # Reported at once: only the time that is told with it is another.
    _at(stage, 25, _reported(VmReport.STATE_STOPPED), clock=clock, wrong_s=10)
    truth = vars(stage.checker)["_truths"][VM]
    truth.wrong_us = 0
    _kept(stage, _open(f"vm/{VM}", 35), _day(f"vm/{VM}", (5, False), (30, True)))
    stage.settle()
