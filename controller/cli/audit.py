"""cairn audit: who changed what."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import click
from cairn.controller.cli.client import Patience, Session
from cairn.controller.cli.commands import NounGroup
from cairn.controller.cli.failures import Failure
from cairn.controller.cli.output import Column, Progress
from cairn.controller.cli.values import counted

PAGE_SIZE = 500
COLUMNS = [
    Column("TIME", lambda audit: _time(audit)),
    Column("WHO", lambda audit: _who(audit)),
    Column("METHOD", lambda audit: audit.method),
    Column("OBJECT", lambda audit: audit.object_name or audit.object.partition("/")[2]),
    Column("CHANGES", lambda audit: _changes(audit)),
    Column("ID", lambda audit: audit.object, wide=True),
    Column("WHY", lambda audit: audit.say, wide=True),
    Column("FROM", lambda audit: audit.address, wide=True),
    Column("TOKEN", lambda audit: audit.token, wide=True),
    Column("REQUEST", lambda audit: audit.request_id, wide=True),
    Column("CAUSE", lambda audit: audit.cause, wide=True),
    Column("RECORD", lambda audit: f"{audit.chain}/{audit.number}", wide=True),
    Column("REVISION", lambda audit: str(audit.revision), wide=True),
]
# Of what changed, in a table.
_CHARACTERS = 44
group = NounGroup("audit", "Who changed what, and whether the record of it is whole.")


def _time(audit: Any) -> str:
    return f"{audit.time.ToDatetime(UTC):%Y-%m-%d %H:%M:%S}"


def _who(audit: Any) -> str:
    if audit.first_administrator:
        return f"{audit.who} (first)"
    return str(audit.who if audit.caller == "user" else f"{audit.caller} {audit.who}".strip())


def _changes(audit: Any) -> str:
    """Return what changed of the object itself, in a few words, or that it was refused."""
    if audit.refusal:
        return f"refused: {audit.refusal}" + (f", {audit.count} times" if audit.count > 1 else "")
    own = [change for change in audit.changes if not change.object]
    told = [f"{change.field}: {change.before} -> {change.after}" for change in own if change.before and change.field]
    told = told or [f"{change.field}={change.after}" for change in own if change.field.startswith("spec.")]
    shown = list[str]()
    while told and (not shown or len(", ".join([*shown, told[0]])) <= _CHARACTERS):
        shown.append(told.pop(0)[:_CHARACTERS])
    return ", ".join(shown) + (f" and {len(told)} more" if told else "")


@group.verb("list")
@click.option("--who", default="", metavar="USER", help="What this user did.")
@click.option("--object", "object", default="", metavar="NAME", help="What was done to an object: its name or id.")
@click.option("--method", default="", metavar="METHOD", help="For example DeleteVm.")
@click.option(
    "--cause",
    default="",
    metavar="REQUEST",
    help="What was part of a request, `project delete --cascade` for example, or followed from it.",
)
@click.option("--since", default="", metavar="TIME", help="From then on: 2026-11-30T08:00, UTC.")
@click.option("--until", default="", metavar="TIME", help="Before then.")
@click.option("--refused/--done", default=None, help="Only what was refused; only what was carried out.")
async def list_audits(
    session: Session, who: str, object: str, method: str, cause: str, since: str, until: str, refused: bool | None
) -> None:
    """List what was changed or refused, and who asked, newest last; of one project (--project), or of all you may read of."""
    from cairn.proto.v1.audit_pb2 import ListAuditsRequest

    request = ListAuditsRequest(who=who, object=object, method=method, cause=cause, project=session.project)
    request.refused, request.done = refused is True, refused is False
    for name, text in (("since", since), ("until", until)):
        if text:
            getattr(request, name).FromDatetime(moment_of(name, text))
    session.output.list(COLUMNS, await all_of(session, request), empty="no changes are recorded")


def moment_of(option: str, text: str) -> datetime:
    """Return the time that an option says; UTC unless it says otherwise. Raises Failure."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise Failure(f"--{option}: {text!r} is no time; write it like 2026-11-30T08:00") from None
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)


async def all_of(session: Session, request: Any) -> list[Any]:
    """Return every page of what is asked for."""
    found: list[Any] = []
    request.page_size = PAGE_SIZE
    while True:
        answer = await session.call("audit", request)
        found += answer.audits
        for missing in answer.missing:
            session.output.say(f"not searched: {missing}")
        if not answer.next_page_token:
            return found
        request.page_token = answer.next_page_token


@group.verb("verify")
async def verify(session: Session) -> None:
    """Look whether any record was changed, removed, or put in between; exit code 1 when one was."""
    verdict = await _verdict(session)
    if session.output.human:
        for line in verdict_lines(verdict):
            session.output.say(line)
    else:
        session.output.one(verdict, lambda _verdict: ())
    if verdict.broken:
        raise Failure("\n".join(["the audit is broken:", *verdict.broken]), whole=True)


async def _verdict(session: Session) -> Any:
    """Return what was found, showing on a terminal how far it is. Begins again when the controller goes."""
    from cairn.proto.v1.audit_pb2 import VerifyAuditsRequest
    from grpc.aio import AioRpcError

    patience = Patience(session)
    with Progress(quiet=session.settings.quiet or not session.output.human) as progress:
        while True:
            try:
                walk = session.stub("audit").VerifyAudits(VerifyAuditsRequest(), timeout=session.settings.timeout_s)
                async for answer in walk:
                    if answer.WhichOneof("part") == "verdict":
                        return answer.verdict
                    progress.update(_progress_text(answer.progress), live_only=True)
            except AioRpcError as error:
                await patience.wait_after(error)
            else:
                raise Failure("the controller ended the walk without a word of what it found", next="run it again")


def _progress_text(progress: Any) -> str:
    where = f"its file {progress.file}" if progress.file else "in the store"
    return f"{progress.records:,} of about {progress.whole:,} records: chain {progress.chain}, {where}"


def verdict_lines(verdict: Any) -> Iterator[str]:
    """Yield what was found of each chain, and that all is well when it is."""
    for chain in verdict.chains:
        cut = f"; up to record {chain.cut} they were let go" if chain.cut else ""
        filed = f"; records {chain.filed_first} to {chain.filed_last} are in files" if chain.filed_last else ""
        yield f"chain {chain.chain}: {counted(chain.records, 'record')}, the last is {chain.number}{cut}{filed}"
        yield from (f"    {missing}" for missing in chain.missing)
    if not verdict.broken:
        yield "every record follows the one before"


def history_lines(audits: list[Any]) -> Iterator[str]:
    """Yield what was done to an object, one line for each change."""
    for audit in audits:
        token = f" (by token {audit.token})" if audit.token else ""
        yield f"{_time(audit)}  {_who(audit)}{token}  {audit.method}"
        for change in audit.changes:
            what = change.field if not change.object else " ".join(filter(None, (change.object, change.field)))
            yield f"    {what}: {change.before or '(none)'} -> {change.after or '(none)'}"
        if audit.changes_left:
            yield f"    and {counted(audit.changes_left, 'change')} more"
