"""cairn usage: what was used, by whom, how long."""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterable
from typing import Any, Final

import click
from cairn.controller.cli.audit import moment_of
from cairn.controller.cli.client import Session
from cairn.controller.cli.commands import NounGroup
from cairn.controller.cli.output import Column
from cairn.controller.cli.values import counted

PAGE_SIZE: Final = 1000
_GIB: Final = 1 << 30
_HOUR_S: Final = 3600.0
GROUPS: Final = ("project", "object", "kind", "type", "day")
# Fields of a row that are told as they are, in files for spreadsheets.
_TEXTS: Final = ("project", "project_name", "kind", "type", "object", "object_name", "day")
_SUMS: Final = (
    "seconds", "running_seconds", "cpu_seconds", "memory_byte_seconds", "byte_seconds", "inexact_seconds",
)  # fmt: skip
group = NounGroup("usage", "What was used, by whom, how long.")


def _sums() -> list[Column]:
    return [
        Column("CPU-H", lambda usage: _hours(usage.cpu_seconds), right=True),
        Column("MEMORY GIB-H", lambda usage: _hours(usage.memory_byte_seconds / _GIB), right=True),
        Column("DISK GIB-H", lambda usage: _hours(usage.byte_seconds / _GIB), right=True),
        Column("RAN", lambda usage: _hours(usage.running_seconds), right=True),
        Column("THERE", lambda usage: _hours(usage.seconds), right=True),
        Column("COST", _cost, right=True),
        Column("INEXACT", lambda usage: _hours(usage.inexact_seconds), wide=True, right=True),
    ]


def _hours(seconds: float) -> str:
    """Return seconds as hours, with what an hour's hundredth leaves; nothing for nothing."""
    return f"{seconds / _HOUR_S:,.2f}" if seconds else "-"


def _cost(usage: Any) -> str:
    """Return what a row costs, to a cent; nothing where no price list holds."""
    return ", ".join(f"{float(each.amount):,.2f} {each.currency}" for each in usage.costs) or "-"


def _columns(group_by: str) -> list[Column]:
    first = [Column("PROJECT", lambda usage: usage.project_name or usage.project)]
    if group_by in ("object", "kind", "type"):
        first.append(Column("KIND", lambda usage: usage.kind))
    if group_by in ("object", "type"):
        first.append(Column("TYPE", lambda usage: usage.type or None, wide=group_by == "object"))
    if group_by == "object":
        first.append(Column("NAME", lambda usage: usage.object_name or "(ended before)"))
        first.append(Column("ID", lambda usage: usage.object or None, wide=True))
    if group_by == "day":
        first.append(Column("DAY", lambda usage: usage.day))
    return [*first, *_sums()]


@group.verb("report")
@click.option("--from", "since", default="", metavar="TIME", help="From then on: 2026-11-01, UTC; this month unless given.")
@click.option("--to", "until", default="", metavar="TIME", help="Before then; until now unless given.")
@click.option(
    "--group-by", "group_by", type=click.Choice(GROUPS), default="project", show_default=True, help="What a row is of."
)
@click.option("--all-projects", is_flag=True, help="Of all projects whose usage you may read.")
@click.option("--intervals", is_flag=True, help="With --group-by object and -o json: from when until when each had what.")
@click.option("--csv", "as_csv", is_flag=True, help="For a spreadsheet: comma-separated, in seconds and bytes.")
async def report(
    session: Session, since: str, until: str, group_by: str, all_projects: bool, intervals: bool, as_csv: bool
) -> None:
    """Sum up what was used in a time: CPUs and memory while VMs ran, bytes while they were kept.

    A VM counts its CPUs and memory while its node says it runs; volumes and images count until they are erased, deleted or not.
    """
    from cairn.proto.v1.usage_pb2 import ReportUsageRequest, UsageGroup

    request = ReportUsageRequest(project="-" if all_projects else session.project, show_intervals=intervals)
    request.group_by = UsageGroup.Value(f"USAGE_GROUP_{group_by.upper()}")
    for option, field, text in (("from", "from_time", since), ("to", "until_time", until)):
        if text:
            getattr(request, field).FromDatetime(moment_of(option, text))
    usages, answer = await _all_of(session, request)
    if as_csv:
        _write_csv(usages)
    else:
        session.output.list(_columns(group_by), usages, empty="nothing was used")
    _tell(session, answer)


async def _all_of(session: Session, request: Any) -> tuple[list[Any], Any]:
    """Return the rows of all pages, and the last page."""
    found: list[Any] = []
    request.page_size = PAGE_SIZE
    while True:
        answer = await session.call("usage", request)
        found += answer.usages
        if not answer.next_page_token:
            return found, answer
        request.page_token = answer.next_page_token


def _write_csv(usages: Iterable[Any]) -> None:
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow((*_TEXTS, *_SUMS, "cost"))
    for usage in usages:
        sums = (getattr(usage, name) for name in _SUMS)
        writer.writerow(
            (*(getattr(usage, name) for name in _TEXTS), *(f"{each:.6f}" for each in sums), " ".join(_costs(usage)))
        )


def _costs(usage: Any) -> Iterable[str]:
    return (f"{each.amount} {each.currency}" for each in usage.costs)


def _tell(session: Session, answer: Any) -> None:
    """Say from when until when, and what is not exact."""
    begin, end = answer.from_time.ToDatetime(), answer.until_time.ToDatetime()
    session.output.say(f"from {begin:%Y-%m-%d %H:%M} to {end:%Y-%m-%d %H:%M:%S} UTC")
    if answer.begin_time.ToMicroseconds() > answer.from_time.ToMicroseconds():
        session.output.say(f"counting began {answer.begin_time.ToDatetime():%Y-%m-%d %H:%M:%S} UTC")
    for gap in answer.gaps:
        session.output.say(f"not exact ({counted(gap.objects, 'object')}): {gap.say}")
    if answer.behind:
        session.output.say("what was changed last is not counted yet")
