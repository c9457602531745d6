"""Sums of usage over a time, by project, object, kind, type or day: a function of what is open, of days and of months. Pure.

    report = Report(Window(begin_us, end_us), UsageGroup.USAGE_GROUP_OBJECT)
    report.open(open); report.day(part); report.month(month)
    for key in sorted(report.rows): report.rows[key]

Each second of an object is in exactly one of the three: closed pieces are in days until those are folded, sums in months from
then on, and what is open is in neither.

What it costs is added up by *segments*: times in which months and price lists are the same. Tiers are of what a project used in
a calendar month, so what was before the window in its first month is added up too, and not reported; what a row costs is its
share of what all of its project cost in that segment.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Final

from cairn.controller.model.meter import piece_of
from cairn.controller.model.prices import CPU, GIB, IMAGE, MEMORY, VOLUME, Held, cost, first_of_month, price_of
from cairn.controller.model.usage_days import DAY_US, bytes_of, clipped, day_begin_us, day_of, days_of, number_of
from cairn.proto.v1.usage_pb2 import UsageDay, UsageGroup, UsageMonth, UsageOpen, UsagePiece, UsageSum

# Project, kind, type, object, day (0: none): what a row is of, empty where rows are of several.
Key = tuple[str, str, str, str, int]
# Of an object's intervals, so many are kept.
INTERVALS_MAX: Final = 100
_PARTS: Final = {
    UsageGroup.USAGE_GROUP_OBJECT: (True, True, True, False),
    UsageGroup.USAGE_GROUP_KIND: (True, False, False, False),
    UsageGroup.USAGE_GROUP_TYPE: (True, True, False, False),
    UsageGroup.USAGE_GROUP_DAY: (False, False, False, True),
}


@dataclass(frozen=True, slots=True)
class Window:
    """From when until when, in microseconds since 1970."""

    begin_us: int
    end_us: int

    @property
    def month_us(self) -> int:
        """When the month began that it begins in: what is used before it counts for the tiers of prices."""
        return day_begin_us(first_of_month(day_of(self.begin_us)))


@dataclass(slots=True)
class Row:
    """Sums. intervals: (piece with moments since 1970, it goes on)."""

    name: str = ""
    us: int = 0
    running_us: int = 0
    inexact_us: int = 0
    cpu_us: int = 0
    memory_byte_us: int = 0
    byte_us: int = 0
    open: bool = False
    intervals: list[tuple[UsagePiece, bool]] = field(default_factory=list)
    intervals_left: int = 0
    # (number of the segment, what it is called in prices) -> units and microseconds.
    units: Counter[tuple[int, str]] = field(default_factory=Counter)


class Report:
    """See the module. held: the price lists there are."""

    def __init__(
        self, window: Window, group: UsageGroup.ValueType, held: Held | None = None, *, intervals: bool = False
    ) -> None:
        self._window, self._group, self._intervals = window, group, intervals
        self.rows: dict[Key, Row] = {}
        self._held = held or Held(())
        self._begins = list(_segments(window, self._held)) if self._held else []
        # Project -> (segment, item) -> units and microseconds, also of before the window.
        self._used: dict[str, Counter[tuple[int, str]]] = defaultdict(Counter)
        self._wholes: dict[tuple[str, int, str], tuple[str, Fraction]] = {}

    def open(self, open: UsageOpen) -> None:
        """Add what an object counts with now, until the end of the window."""
        piece = piece_of(open, self._window.end_us)
        stored = UsagePiece(
            begin_us=piece.begin_us,
            end_us=piece.end_us,
            us=piece.us,
            running=piece.running,
            inexact=piece.inexact,
            cpu_us=piece.us * piece.cpus,
            memory_byte_us=bytes_of(piece.us * piece.memory_bytes),
            byte_us=bytes_of(piece.us * piece.size_bytes),
        )
        self._piece(open.project, open.object, open.name, open.type, stored, goes_on=True)

    def day(self, part: UsageDay) -> None:
        """Add what ended on a day."""
        began_us = day_begin_us(part.day)
        for object in part.objects:
            for piece in object.pieces:
                moved = UsagePiece()
                moved.CopyFrom(piece)
                moved.begin_us, moved.end_us = began_us + piece.begin_us, began_us + piece.end_us
                self._piece(part.project, object.object, object.name, object.type, moved)

    def month(self, month: UsageMonth) -> None:
        """Add the days of a month that lie within the window, whole."""
        for sums in month.sums:
            begin_us = day_begin_us(sums.day)
            row: Row | None = None
            if self._window.begin_us <= begin_us and begin_us + DAY_US <= self._window.end_us:
                row = self._row(month.project, sums.kind, sums.type, "", sums.day)
                self._add(row, sums)
            if begin_us + DAY_US <= self._window.end_us:
                self._price(month.project, sums.kind, sums.type, begin_us, sums, row)

    def _piece(self, project: str, object: str, name: str, type: str, piece: UsagePiece, *, goes_on: bool = False) -> None:
        kind = object.partition("/")[0]
        for share in self._before(piece):
            self._price(project, kind, type, share.begin_us, share, None)
        for share in self._shares(piece):
            row = self._row(project, kind, type, object, day_of(share.begin_us))
            row.name = row.name or name if not goes_on else name
            row.open = row.open or goes_on
            row.us += share.us
            row.running_us += share.us if share.running else 0
            row.inexact_us += share.us if share.inexact else 0
            row.cpu_us += share.cpu_us
            row.memory_byte_us += number_of(share.memory_byte_us)
            row.byte_us += number_of(share.byte_us)
            for part in self._parts(share):
                self._price(project, kind, type, part.begin_us, part, row)
            if self._intervals and len(row.intervals) < INTERVALS_MAX:
                row.intervals.append((share, goes_on))
            elif self._intervals:
                row.intervals_left += 1

    def _before(self, piece: UsagePiece) -> Iterator[UsagePiece]:
        """Yield what of a piece lies before the window and counts for tiers, by segments."""
        window = self._window
        share = clipped(piece, window.month_us, window.begin_us) if self._begins else None
        yield from self._parts(share) if share is not None else ()

    def _parts(self, piece: UsagePiece) -> Iterator[UsagePiece]:
        """Yield a piece by segments; nothing where there are no prices."""
        at = bisect_right(self._begins, piece.begin_us)
        while at and at <= len(self._begins):
            end_us = self._begins[at] if at < len(self._begins) else piece.end_us
            if (part := clipped(piece, self._begins[at - 1], end_us)) is not None:
                yield part
            if end_us >= piece.end_us:
                return
            at += 1

    def _price(self, project: str, kind: str, type: str, begin_us: int, sums: UsagePiece | UsageSum, row: Row | None) -> None:
        """Add what prices count to a segment of a project, and to a row."""
        segment = bisect_right(self._begins, begin_us) - 1
        if segment < 0:
            return
        item = f"{VOLUME}.{type}" if kind == VOLUME else IMAGE
        bytes_ = number_of(sums.byte_us)
        for what, units in ((CPU, sums.cpu_us * GIB), (MEMORY, number_of(sums.memory_byte_us)), (item, bytes_)):
            if units:
                self._used[project][segment, what] += units
                if row is not None:
                    row.units[segment, what] += units

    def costs(self, key: Key) -> dict[str, Fraction]:
        """Return what a row costs, by currency. Nothing is to be added after that."""
        found: dict[str, Fraction] = {}
        for (segment, item), units in self.rows[key].units.items():
            currency, whole = self._whole(key[0], segment, item)
            if currency:
                share = Fraction(units, self._used[key[0]][segment, item])
                found[currency] = found.get(currency, Fraction(0)) + whole * share
        return found

    def _whole(self, project: str, segment: int, item: str) -> tuple[str, Fraction]:
        """Return (currency, what all of a project's item costs in a segment); no currency: it has no price."""
        known = self._wholes.get((project, segment, item))
        if known is None:
            prices = self._held.list_at(project, self._begins[segment])
            price = price_of(prices, item) if prices is not None else None
            known = "", Fraction(0)
            if prices is not None and price is not None:
                used = self._used[project]
                before = sum(used[each, item] for each in self._same_month(segment))
                # Units are counted in bytes; of CPUs as many as a GiB has.
                amount = cost(price, Fraction(before, GIB), Fraction(used[segment, item], GIB))
                known = prices.spec.currency, amount
            self._wholes[project, segment, item] = known
        return known

    def _same_month(self, segment: int) -> Iterator[int]:
        """Yield the segments before one, of its month."""
        month = day_of(self._begins[segment]) // 100
        for each in range(segment):
            if day_of(self._begins[each]) // 100 == month:
                yield each

    def _shares(self, piece: UsagePiece) -> Iterator[UsagePiece]:
        """Yield what of a piece lies in the window; by days, if days are asked for."""
        window = self._window
        if self._group != UsageGroup.USAGE_GROUP_DAY:
            if (share := clipped(piece, window.begin_us, window.end_us)) is not None:
                yield share
            return
        for day_us in days_of(piece):
            begin_us, end_us = max(day_us, window.begin_us), min(day_us + DAY_US, window.end_us)
            if begin_us < end_us and (share := clipped(piece, begin_us, end_us)) is not None:
                yield share

    def _row(self, project: str, kind: str, type: str, object: str, day: int) -> Row:
        by_kind, by_type, by_object, by_day = _PARTS.get(self._group, (False, False, False, False))
        key = (
            project,
            kind if by_kind else "",
            type if by_type else "",
            object if by_object else "",
            day if by_day else 0,
        )
        return self.rows.setdefault(key, Row())

    @staticmethod
    def _add(row: Row, sums: UsageSum) -> None:
        row.us += sums.us
        row.running_us += sums.running_us
        row.inexact_us += sums.inexact_us
        row.cpu_us += sums.cpu_us
        row.memory_byte_us += number_of(sums.memory_byte_us)
        row.byte_us += number_of(sums.byte_us)


def _segments(window: Window, held: Held) -> Iterator[int]:
    """Yield when segments begin: months, price lists, and the window itself."""
    moments = {window.month_us, window.begin_us, *held.moments(window.month_us, window.end_us)}
    month_us = window.month_us
    while month_us < window.end_us:
        moments.add(month_us)
        month_us = day_begin_us(first_of_month(day_of(month_us + 32 * DAY_US)))
    yield from sorted(moments)
