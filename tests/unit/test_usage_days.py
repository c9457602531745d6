"""How pieces are kept: few and bounded records, sums of days that lose nothing."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from cairn.controller.model import usage_days
from cairn.controller.model.meter import Piece
from cairn.controller.model.usage_days import DAY_US, HOUR_US, PART_BYTES_MAX, Day, day_before, day_begin_us, day_of, number_of
from cairn.proto.v1.usage_pb2 import UsageDay, UsageMonth, UsagePiece
from hypothesis import given
from hypothesis import strategies as st

DAY = 20261130
BEGIN_US = day_begin_us(DAY)
TIB = 1 << 40


def piece(begin_us: int, end_us: int, *, object: str = "volume/vol-12345678", running: bool = False, size: int = 0) -> Piece:
    return Piece(object, "prj-1", "data", "local", BEGIN_US + begin_us, BEGIN_US + end_us, running=running, size_bytes=size)


def kept(day: Day) -> list[UsagePiece]:
    return [each for part in day.parts for object in part.objects for each in object.pieces]


def test_days_are_of_utc() -> None:
    assert day_of(BEGIN_US) == DAY
    assert day_of(BEGIN_US - 1) == 20261129
    assert day_before(20260301, 1) == 20260228


def test_short_ones_of_one_hour_are_one() -> None:
    day = Day("prj-1", DAY)
    for number in range(20):
        day.add(piece(number * 10, number * 10 + 5, running=True, size=3))
        day.add(piece(number * 10 + 5, number * 10 + 10, size=3))
    ran, did_not = kept(day)
    assert (ran.us, did_not.us, number_of(ran.byte_us)) == (100, 100, 300)
    assert (ran.begin_us, ran.end_us) == (0, 195)


def test_one_that_crosses_an_hour_stays_as_it_is() -> None:
    day = Day("prj-1", DAY)
    day.add(piece(0, HOUR_US - 5))
    day.add(piece(HOUR_US - 5, HOUR_US + 5))
    day.add(piece(HOUR_US + 5, HOUR_US + 10))
    assert [(each.begin_us, each.end_us) for each in kept(day)] == [
        (0, HOUR_US - 5), (HOUR_US - 5, HOUR_US + 5), (HOUR_US + 5, HOUR_US + 10),
    ]  # fmt: skip


def test_one_that_began_months_ago_is_in_the_day_it_ended() -> None:
    day = Day("prj-1", DAY)
    day.add(piece(-90 * DAY_US, HOUR_US, size=TIB))
    (held,) = kept(day)
    assert held.begin_us == -90 * DAY_US
    assert number_of(held.byte_us) == (90 * DAY_US + HOUR_US) * TIB


def test_parts_are_bounded_and_what_was_stored_is_added_to() -> None:
    day = Day("prj-1", DAY)
    for number in range(1000):
        day.add(piece(number, number + 1, object=f"volume/vol-{number:08d}", size=TIB))
    sizes = [part.ByteSize() for part in day.parts]
    assert max(sizes) < PART_BYTES_MAX
    assert len(day.changed) == len(day.parts)
    again = Day("prj-1", DAY, [UsageDay.FromString(part.SerializeToString()) for part in day.parts])
    again.add(piece(5000, 6000, object="volume/vol-00000000", size=TIB))
    assert list(again.changed) == [0]
    assert len(kept(again)) == 1000


def test_an_object_that_never_rests_is_bounded_too() -> None:
    """Stopped and started every ten seconds, all day, with the hours crossed."""
    day, ten_s = Day("prj-1", DAY), 10_000_000
    for number in range(DAY_US // ten_s):
        begin_us = number * ten_s + ten_s // 2
        day.add(piece(begin_us, begin_us + ten_s, running=number % 2 == 0))
    assert len(kept(day)) <= 3 * 24
    assert sum(part.ByteSize() for part in day.parts) < PART_BYTES_MAX


def folded(days: Iterable[Day], since_day: int = 20200101) -> dict[tuple[int, str], UsageMonth]:
    months: dict[tuple[int, str], UsageMonth] = defaultdict(UsageMonth)
    for day in days:
        for part in day.parts:
            assert set(usage_days.months_of(part, since_day)) >= set()
            usage_days.fold(months, part, since_day)
    return months


@given(st.lists(st.tuples(st.integers(-40 * 24, 23), st.integers(1, 60 * 24), st.booleans()), max_size=20))
def test_folding_loses_nothing(hours: list[tuple[int, int, bool]]) -> None:
    day, pieces = Day("prj-1", DAY), list[Piece]()
    for begin, length, running in hours:
        end = min(begin + length, 24)
        pieces.append(piece(begin * HOUR_US, end * HOUR_US, running=running, size=TIB))
        day.add(pieces[-1])
    sums = [each for month in folded([day]).values() for each in month.sums]
    assert sum(each.us for each in sums) == sum(each.us for each in pieces)
    assert sum(each.running_us for each in sums) == sum(each.us for each in pieces if each.running)
    assert sum(number_of(each.byte_us) for each in sums) == sum(each.us for each in pieces) * TIB
    assert all(each.us <= DAY_US * len(pieces) for each in sums)


def test_days_too_old_are_not_summed() -> None:
    day = Day("prj-1", DAY)
    day.add(piece(-10 * DAY_US, HOUR_US))
    sums = [each for month in folded([day], since_day=20261129).values() for each in month.sums]
    assert [(each.day, each.us) for each in sums] == [(20261129, DAY_US), (DAY, HOUR_US)]
