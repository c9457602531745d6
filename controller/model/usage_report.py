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
from cairn.controller.model.usage_days import DAY_US, Share, day_begin_us, day_of, number_of
from cairn.proto.v1.usage_pb2 import UsageDay, UsageGroup, UsageMonth, UsageOpen, UsageSum

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
    """Sums. intervals: (what was had, it goes on)."""

    name: str = ""
    us: int = 0
    running_us: int = 0
    inexact_us: int = 0
    cpu_us: int = 0
    memory_byte_us: int = 0
    byte_us: int = 0
    intervals: list[tuple[Share, bool]] = field(default_factory=list)
    intervals_left: int = 0
    # (number of the segment, what it is called in prices) -> units and microseconds.
    units: Counter[tuple[int, str]] = field(default_factory=Counter)


class Report:
    """See the module. held: the price lists there are."""

    def __init__(
        self, window: Window, group: UsageGroup.ValueType, held: Held | None = None, *, intervals: bool = False
    ) -> None:
        self._window, self._intervals = window, intervals
        self._parts_of = _PARTS.get(group, (False, False, False, False))
        self.rows: dict[Key, Row] = {}
        # Objects that are there still, and what they are called now.
        self.there: dict[str, str] = {}
        self._held = held or Held(())
        self._begins = list(_segments(window, self._held)) if self._held else []
        # Project -> (segment, item) -> units and microseconds, also of before the window.
        self._used: dict[str, Counter[tuple[int, str]]] = defaultdict(Counter)
        self._wholes: dict[tuple[str, int, str], tuple[str, Fraction]] = {}

    def open(self, open: UsageOpen) -> None:
        """Add what an object counts with now, until the end of the window."""
        self.there[open.object] = open.name
        piece = piece_of(open, self._window.end_us)
        whole = Share(
            piece.begin_us,
            piece.end_us,
            piece.us,
            piece.running,
            piece.inexact,
            piece.us * piece.cpus,
            piece.us * piece.memory_bytes,
            piece.us * piece.size_bytes,
        )
        self._add_whole(open.project, open.object, open.name, open.type, whole, goes_on=True)

    def day(self, part: UsageDay) -> None:
        """Add what ended on a day."""
        began_us = day_begin_us(part.day)
        for object in part.objects:
            for piece in object.pieces:
                self._add_whole(part.project, object.object, object.name, object.type, Share.of(piece, began_us))

    def month(self, month: UsageMonth) -> None:
        """Add the days of a month that lie within the window, whole."""
        for sums in month.sums:
            begin_us = day_begin_us(sums.day)
            end_us = begin_us + DAY_US
            if end_us > self._window.end_us:
                continue
            row: Row | None = None
            if self._window.begin_us <= begin_us:
                row = self._row(month.project, sums.kind, sums.type, "", begin_us)
                _add(row, sums)
            memory, kept = number_of(sums.memory_byte_us), number_of(sums.byte_us)
            share = Share(begin_us, end_us, sums.us, False, False, sums.cpu_us, memory, kept)
            self._price(month.project, sums.kind, sums.type, share, row)

    def _add_whole(self, project: str, object: str, name: str, type: str, whole: Share, *, goes_on: bool = False) -> None:
        kind, window = object.partition("/")[0], self._window
        if self._begins and (before := whole.clipped(window.month_us, window.begin_us)) is not None:
            for part in self._parts(before):
                self._price(project, kind, type, part, None)
        within = whole.clipped(window.begin_us, window.end_us)
        if within is None:
            return
        for share in within.days() if self._parts_of[3] else (within,):
            row = self._row(project, kind, type, object, share.begin_us)
            row.name = row.name or name
            row.us += share.us
            row.running_us += share.us if share.running else 0
            row.inexact_us += share.us if share.inexact else 0
            row.cpu_us += share.cpu_us
            row.memory_byte_us += share.memory_byte_us
            row.byte_us += share.byte_us
            for part in self._parts(share) if self._begins else ():
                self._price(project, kind, type, part, row)
            if self._intervals and len(row.intervals) < INTERVALS_MAX:
                row.intervals.append((share, goes_on))
            elif self._intervals:
                row.intervals_left += 1

    def _parts(self, whole: Share) -> Iterator[Share]:
        """Yield a share by segments."""
        at = bisect_right(self._begins, whole.begin_us)
        while at and at <= len(self._begins):
            end_us = self._begins[at] if at < len(self._begins) else whole.end_us
            if (part := whole.clipped(self._begins[at - 1], end_us)) is not None:
                yield part
            if end_us >= whole.end_us:
                return
            at += 1

    def _price(self, project: str, kind: str, type: str, share: Share, row: Row | None) -> None:
        """Add what prices count to a segment of a project, and to a row. share: of one segment."""
        segment = bisect_right(self._begins, share.begin_us) - 1
        if segment < 0:
            return
        item = f"{VOLUME}.{type}" if kind == VOLUME else IMAGE
        for what, units in ((CPU, share.cpu_us * GIB), (MEMORY, share.memory_byte_us), (item, share.byte_us)):
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

    def _row(self, project: str, kind: str, type: str, object: str, day_us: int) -> Row:
        by_kind, by_type, by_object, by_day = self._parts_of
        key = (
            project,
            kind if by_kind else "",
            type if by_type else "",
            object if by_object else "",
            day_of(day_us) if by_day else 0,
        )
        row = self.rows.get(key)
        if row is None:
            row = self.rows[key] = Row()
        return row


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
