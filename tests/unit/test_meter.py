"""Usage as a function of what changed: pieces add up to lives, whatever clocks said; sizes are those of the start."""

from __future__ import annotations

from itertools import pairwise

from cairn.controller.model.meter import At, Meter, Piece
from cairn.controller.store.sums import COUNTED as LIMITED
from cairn.controller.store.usage import COUNTED, FREE, Counted, guest_of, is_counted
from cairn.proto import kinds
from cairn.proto.v1.agent_pb2 import VmReport
from hypothesis import given
from hypothesis import strategies as st

WEB = "vm/i-1"
SMALL = Counted("prj-1", "web", cpus=1, memory_bytes=100)
LARGE = Counted("prj-1", "web", cpus=4, memory_bytes=400)


def running(start_us: int = 1, revision: int = 0) -> VmReport:
    report = VmReport(state=VmReport.STATE_RUNNING, spec_revision=revision)
    report.start_time.FromMicroseconds(start_us)
    return report


STOPPED = VmReport(state=VmReport.STATE_STOPPED)


def told(pieces: list[Piece]) -> list[tuple[int, int, int]]:
    """From when until when, and with how many processors."""
    return [(each.begin_us, each.end_us, each.cpus) for each in pieces]


def test_every_noun_with_a_quota_is_counted_or_named_free() -> None:
    assert set(LIMITED) == set(COUNTED) | FREE
    assert not set(COUNTED) & FREE


def test_what_is_stamped_is_what_is_counted() -> None:
    assert is_counted(kinds.VM.key("i-1"))
    assert is_counted(kinds.OBSERVED.key("node-1/vm/i-1"))
    assert not is_counted(kinds.OBSERVED.key("node-1/volume/vol-1"))
    assert not is_counted(kinds.PORT.key("nic-1"))
    assert guest_of("node-1/vm/i-1") == ("node-1", "i-1")
    assert guest_of("node-1/image/img-1") is None


def test_a_vm_counts_its_processors_while_it_runs() -> None:
    meter = Meter()
    meter.record(WEB, SMALL, At(10, 1))
    meter.report("n1", "i-1", running(), At(20, 2))
    meter.report("n1", "i-1", STOPPED, At(50, 3))
    meter.record(WEB, None, At(60, 4))
    pieces = meter.take()
    assert told(pieces) == [(10, 20, 0), (20, 50, 1), (50, 60, 0)]
    assert [each.running for each in pieces] == [False, True, False]
    assert not meter.opens


def test_a_report_that_says_the_same_closes_nothing() -> None:
    meter = Meter()
    meter.record(WEB, SMALL, At(10, 1))
    meter.report("n1", "i-1", running(), At(20, 2))
    meter.take()
    meter.touched.clear()
    meter.report("n1", "i-1", running(), At(30, 3))
    meter.record(WEB, SMALL, At(40, 4))
    assert not meter.take()
    assert not meter.touched


def test_a_volume_that_grows_counts_each_size_for_its_time() -> None:
    meter = Meter()
    meter.record("volume/v", Counted("p", "data", size_bytes=10, type="local"), At(0, 1))
    meter.record("volume/v", Counted("p", "data", size_bytes=30, type="local"), At(5, 2))
    meter.record("volume/v", None, At(7, 3))
    assert [(each.us, each.size_bytes) for each in meter.take()] == [(5, 10), (2, 30)]


def test_what_is_asked_for_while_it_runs_counts_from_the_next_start_on() -> None:
    meter = Meter()
    meter.record(WEB, SMALL, At(0, 1))
    meter.report("n1", "i-1", running(1), At(10, 2))
    meter.record(WEB, LARGE, At(20, 3))
    # The node has heard of it; the guest is as it was.
    meter.report("n1", "i-1", running(1, revision=2), At(25, 4))
    meter.report("n1", "i-1", STOPPED, At(30, 5))
    meter.report("n1", "i-1", running(2, revision=3), At(40, 6))
    meter.record(WEB, None, At(50, 7))
    assert told(meter.take()) == [(0, 10, 0), (10, 30, 1), (30, 40, 0), (40, 50, 4)]


def test_a_guest_that_was_restarted_between_two_reports_has_the_new_sizes_from_the_second_on() -> None:
    meter = Meter()
    meter.record(WEB, SMALL, At(0, 1))
    meter.report("n1", "i-1", running(1), At(10, 2))
    meter.record(WEB, LARGE, At(20, 3))
    meter.report("n1", "i-1", running(2, revision=3), At(30, 4))
    meter.record(WEB, None, At(40, 5))
    assert told(meter.take()) == [(0, 10, 0), (10, 30, 1), (30, 40, 4)]


def test_asked_for_and_taken_back_is_nothing() -> None:
    meter = Meter()
    meter.record(WEB, SMALL, At(0, 1))
    meter.report("n1", "i-1", running(1), At(10, 2))
    meter.record(WEB, LARGE, At(20, 3))
    meter.record(WEB, SMALL, At(25, 4))
    meter.report("n1", "i-1", running(2, revision=4), At(30, 5))
    meter.record(WEB, None, At(40, 6))
    assert told(meter.take()) == [(0, 10, 0), (10, 40, 1)]


def test_a_guest_that_a_restore_took_the_reports_of_ran_all_the_time() -> None:
    meter = Meter()
    meter.record(WEB, SMALL, At(0, 1))
    meter.report("n1", "i-1", running(7), At(10, 2))
    meter.report("n1", "i-1", None, At(20, 3), taken=True)
    meter.report("n1", "i-1", running(7), At(35, 4))
    meter.record(WEB, None, At(50, 5))
    assert told(meter.take()) == [(0, 10, 0), (10, 20, 1), (20, 50, 1)]


def test_one_that_was_started_anew_meanwhile_did_not() -> None:
    meter = Meter()
    meter.record(WEB, SMALL, At(0, 1))
    meter.report("n1", "i-1", running(7), At(10, 2))
    meter.report("n1", "i-1", None, At(20, 3), taken=True)
    meter.report("n1", "i-1", running(8), At(35, 4))
    meter.record(WEB, None, At(50, 5))
    assert told(meter.take()) == [(0, 10, 0), (10, 20, 1), (20, 35, 0), (35, 50, 1)]


def test_a_clock_that_goes_back_makes_nothing_negative() -> None:
    meter = Meter()
    meter.record(WEB, SMALL, At(100, 1))
    meter.report("n1", "i-1", running(), At(50, 2))
    meter.report("n1", "i-1", STOPPED, At(120, 3))
    meter.record(WEB, None, At(110, 4))
    assert told(meter.take()) == [(100, 120, 1)]


def test_what_is_not_exact_is_marked_on_both_sides() -> None:
    meter = Meter()
    meter.record(WEB, SMALL, At(0, 1))
    meter.report("n1", "i-1", running(), At(10, 2, exact=False))
    meter.report("n1", "i-1", STOPPED, At(20, 3))
    meter.record(WEB, None, At(30, 4))
    assert [each.inexact for each in meter.take()] == [True, True, False]


def test_one_that_was_started_anew_where_nobody_looked_is_marked() -> None:
    meter = Meter()
    meter.record(WEB, SMALL, At(0, 1))
    meter.report("n1", "i-1", running(1), At(10, 2))
    meter.report("n1", "i-1", running(2), At(30, 3, exact=False))
    meter.record(WEB, None, At(40, 4))
    assert [each.inexact for each in meter.take()] == [False, True, True]


steps = st.lists(
    st.tuples(
        st.sampled_from(("small", "large", "runs", "anew", "stopped", "silent", "taken", "other")),
        st.integers(0, 100),
    ),
    max_size=30,
)


@given(steps)
def test_pieces_follow_one_another_and_add_up_to_the_life(steps: list[tuple[str, int]]) -> None:
    meter = Meter()
    meter.record(WEB, SMALL, At(50, 1))
    pieces = list[Piece]()
    for number, (what, us) in enumerate(steps, 2):
        at = At(us, number)
        if what in ("small", "large"):
            meter.record(WEB, SMALL if what == "small" else LARGE, at)
        elif what == "other":
            meter.report("n2", "i-1", running(5), at)
        else:
            report = {"runs": running(1), "anew": running(number), "stopped": STOPPED}.get(what)
            meter.report("n1", "i-1", report, at, taken=what == "taken")
        pieces += meter.take()
    end_us = max(50, meter.opens[WEB].since_us, 90)
    meter.record(WEB, None, At(end_us, 99))
    pieces += meter.take()
    assert all(each.us > 0 for each in pieces)
    assert all(first.end_us == second.begin_us for first, second in pairwise(pieces))
    assert sum(each.us for each in pieces) == end_us - 50
    assert all(bool(each.cpus) == each.running for each in pieces)
