"""Sums of usage over a time, by project, object, kind, type or day: a function of what is open, of days and of months. Pure.

    report = Report(Window(begin_us, end_us), UsageGroup.USAGE_GROUP_OBJECT)
    report.open(open); report.day(part); report.month(month)
    for key in sorted(report.rows): report.rows[key]

Each second of an object is in exactly one of the three: closed pieces are in days until those are folded, sums in months from
then on, and what is open is in neither.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from cairn.controller.model.meter import piece_of
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


class Report:
    """See the module."""

    def __init__(self, window: Window, group: UsageGroup.ValueType, *, intervals: bool = False) -> None:
        self._window, self._group, self._intervals = window, group, intervals
        self.rows: dict[Key, Row] = {}

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
            if self._window.begin_us <= begin_us and begin_us + DAY_US <= self._window.end_us:
                self._add(self._row(month.project, sums.kind, sums.type, "", sums.day), sums)

    def _piece(self, project: str, object: str, name: str, type: str, piece: UsagePiece, *, goes_on: bool = False) -> None:
        kind = object.partition("/")[0]
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
            if self._intervals and len(row.intervals) < INTERVALS_MAX:
                row.intervals.append((share, goes_on))
            elif self._intervals:
                row.intervals_left += 1

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
