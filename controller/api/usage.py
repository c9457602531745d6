"""Usage, reported: what projects had in a time, as it was counted by controller/metering.py, until this moment.

A report is made of what the store has at one revision: what is open, days, sums of months. What is counted follows what happens
by a second or so: a report waits for it, a little, and says when it could not. Later pages are of the same moment as the first.
Of which projects a caller may read it is asked of each (`usage.read`); what he may not read is in no row and no sum.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from cairn.controller.api import resolution
from cairn.controller.api.authorise import caller_of
from cairn.controller.api.core import Core
from cairn.controller.api.listing import PAGE_BYTES_MAX, Token, page_size_of, read_token, write_token
from cairn.controller.api.selection import ALL_PROJECTS, Turns
from cairn.controller.api.stored import parsed
from cairn.controller.model.history import CLOCK_KEY
from cairn.controller.model.permits import Caller, Verb, permits
from cairn.controller.model.prices import held, text
from cairn.controller.model.usage_days import DAY_US, HOUR_US, day_begin_us, day_of, day_text, us_of
from cairn.controller.model.usage_report import Key, Report, Row, Window
from cairn.controller.outage import refusal
from cairn.controller.store.base import Compacted, Unavailable, View
from cairn.controller.usage_books import one, pages
from cairn.proto import kinds
from cairn.proto.errors import Denied, Invalid, OutOfRange
from cairn.proto.seams import moment
from cairn.proto.v1 import usage_pb2, usage_pb2_grpc
from cairn.proto.v1.usage_pb2 import Usage, UsageCursor, UsageInterval
from google.protobuf.timestamp_pb2 import Timestamp

# How long a report waits for what was changed last to be counted, and how often it looks.
WAIT_S: Final = 5.0
LOOK_S: Final = 0.1
# How long a report is kept for its next page.
KEPT_S: Final = 30.0
# Of costs, behind the point.
COST_DIGITS: Final = 6
_CURSOR_KEY: Final = kinds.USAGE_CURSOR.key("self")
_MICROS: Final = 1_000_000


@dataclass(frozen=True, slots=True)
class _Picture:
    """What is counted at a revision."""

    revision: int
    cursor: UsageCursor
    behind: bool


class UsageService(usage_pb2_grpc.UsageServiceServicer):
    """UsageService of proto/v1/usage.proto."""

    def __init__(self, core: Core) -> None:
        self._core = core
        # The last report that has more than one page: what it is of, and when it is forgotten.
        self._kept: tuple[tuple[str, int, int], Report] | None = None
        self._forgets: asyncio.TimerHandle | None = None

    async def ReportUsage(self, request: usage_pb2.ReportUsageRequest, context: Any) -> usage_pb2.ReportUsageResponse:
        """Return a page."""
        size, caller, view = page_size_of(request), caller_of(context), await self._core.mutations.freshen()
        project = "" if request.project == ALL_PROJECTS else resolution.project_id(view, caller, request.project)
        if project and not permits(view, caller, Verb.READ, Usage(project=project)):
            raise Denied(f"{caller.kind} {caller.id!r} may not read the usage of that project")
        scope = f"usage\0{caller.uri}\0{caller.token}\0{_asked(request)}"
        token = read_token(request.page_token, scope) if request.page_token else None
        try:
            picture = await self._picture(token.revision if token is not None else 0)
            now_us = int(token.after.partition("\0")[0]) if token is not None else us_of(self._core.clock.now())
            window = _window(request, now_us)
            _refuse_parts_of_days(window, picture.cursor)
            answer = usage_pb2.ReportUsageResponse(behind=picture.behind, begin_time=picture.cursor.begin_time)
            answer.gaps.extend(await self._gaps(window, picture.revision))
            readable = _Readable(view, caller, project)
            report = await self._report(request, scope, window, picture.revision, readable)
        except Compacted as error:
            raise OutOfRange("what is counted has moved on since the first page: ask again for that one") from error
        except Unavailable as error:
            raise refusal(error) from error
        answer.from_time.FromMicroseconds(window.begin_us)
        answer.until_time.FromMicroseconds(window.end_us)
        if picture.cursor.folded_before:
            answer.folded_before = day_text(picture.cursor.folded_before)
        _page(answer, readable, report, size, token)
        if answer.next_page_token:
            after = f"{window.end_us}\0{answer.next_page_token}"
            answer.next_page_token = write_token(Token(picture.revision, after), scope)
            self._keep((scope, picture.revision, window.end_us), report)
        return answer

    async def _report(
        self, request: usage_pb2.ReportUsageRequest, scope: str, window: Window, revision: int, readable: _Readable
    ) -> Report:
        """Return all rows of a report; of later pages those of the first, if it was here and not long ago."""
        if self._kept is not None and self._kept[0] == (scope, revision, window.end_us):
            return self._kept[1]
        report = Report(window, request.group_by, held(readable.view), intervals=request.show_intervals)
        await self._fill(report, window, revision, readable)
        return report

    def _keep(self, key: tuple[str, int, int], report: Report) -> None:
        """Keep a report for its next page, for a while, and no other."""
        if self._forgets is not None:
            self._forgets.cancel()
        self._kept = key, report
        self._forgets = asyncio.get_running_loop().call_later(KEPT_S, self._forget)

    def _forget(self) -> None:
        self._kept = None

    async def _picture(self, revision: int) -> _Picture:
        """Return what is counted at a revision; 0: now, once what was changed last is. Raises Compacted, Unavailable."""
        loop = asyncio.get_running_loop()
        until_s = loop.time() + WAIT_S
        while True:
            clock, at = await one(self._core.store, CLOCK_KEY, revision)
            item, _ = await one(self._core.store, _CURSOR_KEY, at)
            found = parsed(kinds.USAGE_CURSOR, _CURSOR_KEY, item.value) if item is not None else None
            cursor = found if found is not None else UsageCursor()
            behind = cursor.revision < (clock.mod_revision if clock is not None else 0)
            if not behind or found is None or revision or loop.time() >= until_s:
                return _Picture(at, cursor, behind)
            await asyncio.sleep(LOOK_S)

    async def _fill(self, report: Report, window: Window, revision: int, readable: _Readable) -> None:
        turns, store, first = Turns(), self._core.store, day_of(window.month_us)
        async for items in pages(store, kinds.USAGE_OPEN.prefix, revision):
            for item in items:
                open = parsed(kinds.USAGE_OPEN, item.key, item.value)
                if open is not None and open.project in readable:
                    report.open(open)
            if turns.over:
                await turns.next()
        for kind, start, add in (
            (kinds.USAGE_DAY, f"{first:08d}/", report.day),
            (kinds.USAGE_MONTH, f"{first // 100:06d}/", report.month),
        ):
            async for items in pages(store, kind.prefix, revision, kind.key(start)):
                for item in items:
                    project = item.key.removeprefix(kind.prefix).split("/")[1]
                    record: Any = parsed(kind, item.key, item.value) if project in readable else None
                    if record is not None:
                        add(record)
                    if turns.over:
                        await turns.next()

    async def _gaps(self, window: Window, revision: int) -> list[usage_pb2.UsageGap]:
        found, first = [], kinds.USAGE_GAP.key(f"{window.begin_us:016d}")
        async for items in pages(self._core.store, kinds.USAGE_GAP.prefix, revision, first):
            for item in items:
                gap = parsed(kinds.USAGE_GAP, item.key, item.value)
                if gap is not None and gap.begin_time.ToMicroseconds() <= window.end_us:
                    found.append(gap)
        return found


class _Readable:
    """The projects whose usage a caller may read, of those asked for."""

    def __init__(self, view: View, caller: Caller, project: str) -> None:
        self.view, self._caller, self._project = view, caller, project
        self._known = dict[str, bool]()

    def __contains__(self, project: str) -> bool:
        if self._project:
            return project == self._project
        if project not in self._known:
            self._known[project] = permits(self.view, self._caller, Verb.READ, Usage(project=project))
        return self._known[project]


def _asked(request: usage_pb2.ReportUsageRequest) -> str:
    """Return what is asked for, whatever the page."""
    bare = usage_pb2.ReportUsageRequest()
    bare.CopyFrom(request)
    bare.ClearField("page_token")
    bare.ClearField("page_size")
    return bare.SerializeToString(deterministic=True).hex()


def _window(request: usage_pb2.ReportUsageRequest, now_us: int) -> Window:
    """Return from when until when is asked for; now_us: until when at most. Raises Invalid."""
    month_us = day_begin_us(day_of(now_us) // 100 * 100 + 1)
    begin_us = _hour("from_time", request.from_time) if request.HasField("from_time") else month_us
    end_us = min(_hour("until_time", request.until_time), now_us) if request.HasField("until_time") else now_us
    if request.HasField("until_time") and request.until_time.ToMicroseconds() <= begin_us:
        raise Invalid("until_time", "is not after from_time")
    return Window(begin_us, max(begin_us, end_us))


def _hour(field: str, time: Timestamp) -> int:
    try:
        us = us_of(moment(time))
    except (ValueError, OverflowError) as error:
        raise Invalid(field, "is no time") from error
    if us % HOUR_US:
        raise Invalid(field, f"{moment(time):%Y-%m-%dT%H:%M:%S} is not at a whole hour: usage is known by hours")
    return us


def _refuse_parts_of_days(window: Window, cursor: UsageCursor) -> None:
    """Raise Invalid for a window that begins or ends within a day of which only the sum is known."""
    folded_us = day_begin_us(cursor.folded_before) if cursor.folded_before else 0
    for field, us in (("from_time", window.begin_us), ("until_time", window.end_us)):
        if us < folded_us and us % DAY_US:
            before = day_text(cursor.folded_before)
            raise Invalid(field, f"is within a day; of days before {before} only whole ones (UTC) are known")


def _page(answer: usage_pb2.ReportUsageResponse, readable: _Readable, report: Report, size: int, token: Token | None) -> None:
    """Put rows into an answer; its token says after which one to go on, as text. What may be read was asked anew."""
    after, size_bytes = token.after.partition("\0")[2] if token is not None else "", 0
    for key in sorted(report.rows):
        if (token is not None and _text(key) <= after) or key[0] not in readable:
            continue
        usage = _usage(readable.view, key, report)
        for currency, amount in sorted(report.costs(key).items()):
            usage.costs.add(currency=currency, amount=text(amount, COST_DIGITS))
        size_bytes += usage.ByteSize()
        if len(answer.usages) == size or (answer.usages and size_bytes > PAGE_BYTES_MAX):
            return
        answer.usages.append(usage)
        answer.next_page_token = _text(key)
    answer.next_page_token = ""


def _text(key: Key) -> str:
    """Return a key as text that sorts like it: nothing in it is below the character between."""
    return "\x01".join((*key[:4], f"{key[4]:08d}"))


def _usage(view: View, key: Key, report: Report) -> Usage:
    (project, kind, type, object, day), row = key, report.rows[key]
    known = view.get(kinds.PROJECT, project)
    usage = Usage(
        project=project,
        project_name=known.name if known is not None else "",
        kind=kind,
        type=type,
        object=object.partition("/")[2],
        object_name=report.there.get(object, row.name) if object else "",
        day=day_text(day) if day else "",
        seconds=row.us / _MICROS,
        running_seconds=row.running_us / _MICROS,
        cpu_seconds=row.cpu_us / _MICROS,
        memory_byte_seconds=row.memory_byte_us / _MICROS,
        byte_seconds=row.byte_us / _MICROS,
        inexact_seconds=row.inexact_us / _MICROS,
        open=object in report.there,
        intervals_left=row.intervals_left if object else 0,
    )
    usage.intervals.extend(_intervals(row) if object else ())
    return usage


def _intervals(row: Row) -> Iterator[UsageInterval]:
    for piece, goes_on in sorted(row.intervals, key=lambda each: each[0].begin_us):
        interval = UsageInterval(
            seconds=piece.us / _MICROS,
            running=piece.running,
            cpu_seconds=piece.cpu_us / _MICROS,
            memory_byte_seconds=piece.memory_byte_us / _MICROS,
            byte_seconds=piece.byte_us / _MICROS,
            inexact=piece.inexact,
            open=goes_on,
        )
        interval.begin_time.FromMicroseconds(piece.begin_us)
        interval.end_time.FromMicroseconds(piece.end_us)
        yield interval
