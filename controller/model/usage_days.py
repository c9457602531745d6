"""Pieces as they are kept: of each project and day those that ended then, of long ago their sums by day. Pure.

    day = Day(project, 20261130, parts)      # as stored, in their order
    day.add(piece)                           # day.changed: the numbers of the parts that are to be stored
    fold(months, part, since_day)            # adds a part to the sums of its days, by (month, project)

Bounded by construction: pieces of an object that lie within one hour are one, so an object has at most three a day's hour (one
that crosses into it, those that ran, those that did not), and twice that with inexact ones; a part takes no new object when it
has PART_BYTES, and what is there already moves on when it has PART_BYTES_MAX. So times are exact at whole hours.

Sums of bytes and microseconds do not fit 64 bits: they are kept as whole numbers of any length.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, MutableMapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Final

from cairn.controller.model.meter import Piece
from cairn.proto.v1.usage_pb2 import UsageDay, UsageMonth, UsageObject, UsagePiece, UsageSum

HOUR_US: Final = 3_600_000_000
DAY_US: Final = 24 * HOUR_US
# Of a part: from here on it takes no new object; none grows beyond the second.
PART_BYTES: Final = 8 << 10
PART_BYTES_MAX: Final = 12 << 10
_EPOCH: Final = date(1970, 1, 1)
# Days whose pieces are kept one by one; and how long their sums are.
DAYS_KEPT: Final = 31
SUMS_KEPT: Final = 400


def number_of(value: bytes) -> int:
    """Return a whole number as it is kept."""
    return int.from_bytes(value)


def bytes_of(number: int) -> bytes:
    """Return how a whole number is kept."""
    return number.to_bytes((number.bit_length() + 7) // 8)


def day_of(us: int) -> int:
    """Return the day (YYYYMMDD, UTC) of a moment."""
    return day_number(_EPOCH + timedelta(days=us // DAY_US))


def day_number(day: date) -> int:
    """Return a day as a number."""
    return day.year * 10_000 + day.month * 100 + day.day


def day_begin_us(day: int) -> int:
    """Return when a day began."""
    return (date(day // 10_000, day // 100 % 100, day % 100) - _EPOCH).days * DAY_US


def day_before(day: int, days: int) -> int:
    """Return the day so many before one."""
    return day_of(day_begin_us(day) - days * DAY_US)


def day_text(day: int) -> str:
    """Return a day as people write it."""
    return f"{day // 10_000:04d}-{day // 100 % 100:02d}-{day % 100:02d}"


def us_of(moment: datetime) -> int:
    """Return a moment in microseconds since 1970."""
    since = moment - datetime(1970, 1, 1, tzinfo=UTC)
    return (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds


def part_id(day: int, project: str, part: int) -> str:
    """Return the id of a part of a day."""
    return f"{day:08d}/{project}/{part:04d}"


def month_id(month: int, project: str) -> str:
    """Return the id of a month's sums."""
    return f"{month:06d}/{project}"


class Day:
    """See the module."""

    def __init__(self, project: str, day: int, parts: Iterable[UsageDay] = ()) -> None:
        self.project, self.day, self.parts = project, day, list(parts)
        self.changed: dict[int, None] = {}
        self._begin_us = day_begin_us(day)
        # Object -> the last part that has it.
        self._places = {each.object: at for at, part in enumerate(self.parts) for each in part.objects}
        self._sizes = [part.ByteSize() for part in self.parts]

    def add(self, piece: Piece) -> None:
        """Take a piece in."""
        at = self._place(piece)
        part = self.parts[at]
        held = next((each for each in part.objects if each.object == piece.object), None)
        if held is None:
            held = part.objects.add(object=piece.object, type=piece.type)
        held.name = piece.name
        _add(held, piece, self._begin_us)
        self._places[piece.object], self._sizes[at] = at, part.ByteSize()
        self.changed[at] = None

    def _place(self, piece: Piece) -> int:
        at = self._places.get(piece.object)
        if at is not None and self._sizes[at] < PART_BYTES_MAX:
            return at
        if not self.parts or self._sizes[-1] >= PART_BYTES:
            self.parts.append(UsageDay(project=self.project, day=self.day))
            self._sizes.append(0)
        return len(self.parts) - 1


def _add(held: UsageObject, piece: Piece, begin_us: int) -> None:
    begin, end = piece.begin_us - begin_us, piece.end_us - begin_us
    hour = _hour(begin, end)
    for each in reversed(held.pieces) if hour is not None else ():
        if (each.running, each.inexact, _hour(each.begin_us, each.end_us)) == (piece.running, piece.inexact, hour):
            _merge(each, piece, begin, end)
            return
    _merge(held.pieces.add(begin_us=begin, end_us=end, running=piece.running, inexact=piece.inexact), piece, begin, end)


def _hour(begin_us: int, end_us: int) -> int | None:
    """Return the hour of the day that a piece lies in; None: in none alone."""
    hour = begin_us // HOUR_US
    return hour if (end_us - 1) // HOUR_US == hour else None


def _merge(into: UsagePiece, piece: Piece, begin_us: int, end_us: int) -> None:
    into.begin_us, into.end_us = min(into.begin_us, begin_us), max(into.end_us, end_us)
    into.us += piece.us
    into.cpu_us += piece.us * piece.cpus
    into.memory_byte_us = bytes_of(number_of(into.memory_byte_us) + piece.us * piece.memory_bytes)
    into.byte_us = bytes_of(number_of(into.byte_us) + piece.us * piece.size_bytes)


# --- sums ------------------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Share:
    """A piece, or what of it lies in some time; moments since 1970."""

    begin_us: int
    end_us: int
    us: int
    running: bool
    inexact: bool
    cpu_us: int
    memory_byte_us: int
    byte_us: int

    @classmethod
    def of(cls, piece: UsagePiece, day_us: int) -> Share:
        """Return a piece of a day as a share of its own: all of it."""
        return cls(
            day_us + piece.begin_us,
            day_us + piece.end_us,
            piece.us,
            piece.running,
            piece.inexact,
            piece.cpu_us,
            number_of(piece.memory_byte_us),
            number_of(piece.byte_us),
        )

    def clipped(self, begin_us: int, end_us: int) -> Share | None:
        """Return what of it lies between two moments; None: nothing does. Exact for what had the same all the time."""
        begin, end = max(self.begin_us, begin_us), min(self.end_us, end_us)
        if begin >= end:
            return None
        whole, part = self.end_us - self.begin_us, end - begin
        if part == whole:
            return self
        us, cpu_us, memory_byte_us, byte_us = (
            number * part // whole for number in (self.us, self.cpu_us, self.memory_byte_us, self.byte_us)
        )
        return Share(begin, end, us, self.running, self.inexact, cpu_us, memory_byte_us, byte_us)

    def days(self) -> Iterator[Share]:
        """Yield what of it lies in each day."""
        day_us = self.begin_us // DAY_US * DAY_US
        while day_us < self.end_us:
            if (share := self.clipped(day_us, day_us + DAY_US)) is not None:
                yield share
            day_us += DAY_US


def fold(months: MutableMapping[tuple[int, str], UsageMonth], part: UsageDay, since_day: int) -> None:
    """Add what is in a part of a day to the sums of months, but for days before `since_day`."""
    began_us, since_us = day_begin_us(part.day), day_begin_us(since_day)
    for object in part.objects:
        kind = object.object.partition("/")[0]
        for piece in object.pieces:
            kept = Share.of(piece, began_us).clipped(since_us, began_us + DAY_US)
            for share in kept.days() if kept is not None else ():
                day = day_of(share.begin_us)
                _sum(months[day // 100, part.project], day, kind, object.type, share)


def months_of(part: UsageDay, since_day: int) -> list[tuple[int, str]]:
    """Return the months that folding a part adds to, in their order."""
    began_us, since_us = day_begin_us(part.day), day_begin_us(since_day)
    earliest = min((began_us + piece.begin_us for object in part.objects for piece in object.pieces), default=began_us)
    day_us, found = max(since_us, earliest) // DAY_US * DAY_US, dict[int, None]()
    while day_us < began_us + DAY_US:
        found[day_of(day_us) // 100] = None
        day_us += DAY_US
    return [(month, part.project) for month in found]


def _sum(month: UsageMonth, day: int, kind: str, type: str, share: Share) -> None:
    found: UsageSum | None = next((each for each in month.sums if (each.day, each.kind, each.type) == (day, kind, type)), None)
    if found is None:
        found = month.sums.add(day=day, kind=kind, type=type)
    found.us += share.us
    found.running_us += share.us if share.running else 0
    found.inexact_us += share.us if share.inexact else 0
    found.cpu_us += share.cpu_us
    found.memory_byte_us = bytes_of(number_of(found.memory_byte_us) + share.memory_byte_us)
    found.byte_us = bytes_of(number_of(found.byte_us) + share.byte_us)
