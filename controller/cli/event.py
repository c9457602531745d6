"""cairn event."""

from __future__ import annotations

import click
from cairn.controller.cli.client import Session
from cairn.controller.cli.commands import NounGroup
from cairn.controller.cli.noun import Noun
from cairn.controller.cli.noun import follow as follow_changes
from cairn.controller.cli.output import Column

NOUN = Noun(
    "event",
    "events",
    "event",
    columns=[
        Column("AGE", lambda event: event.event_time),
        Column("OBJECT", lambda event: event.object_name or event.object),
        Column("REASON", lambda event: event.reason + (" !" if event.warning else "")),
        Column("MESSAGE", lambda event: event.message),
        Column("ID", lambda event: event.object, wide=True),
        Column("NODE", lambda event: event.node, wide=True),
        Column("BY", lambda event: event.actor, wide=True),
        Column("TIME", lambda event: event.event_time.ToJsonString(), wide=True),
    ],
)
group = NounGroup("event", "What happened, and to what; kept for 24 hours.")


@group.verb("list")
@click.option("--filter", default="", metavar="EXPR", help="Comparisons joined with AND: 'reason = \"Placed\"'.")
@click.option("--follow", is_flag=True, help="Go on showing them until interrupted.")
async def list_events(session: Session, filter: str, follow: bool) -> None:
    """List events, newest last."""
    await show_events(session, filter, follow=follow)


async def show_events(session: Session, filter: str, *, follow: bool) -> None:
    """Print the events that pass a filter, then, if asked, those that come."""
    found, revision = await NOUN.listed(session, filter)
    found.sort(key=lambda event: (event.event_time.ToNanoseconds(), event.id))
    if not follow:
        session.output.list(NOUN.columns, found, empty="no events")
        return
    for index, event in enumerate(found):
        session.output.change(NOUN.columns, event, header=index == 0)
    await follow_changes(session, NOUN, filter, after_revision=revision, header=not found)
