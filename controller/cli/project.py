"""cairn project."""

from __future__ import annotations

from cairn.controller.cli.client import Session
from cairn.controller.cli.commands import NounGroup
from cairn.controller.cli.noun import Noun, add_show
from cairn.controller.cli.output import Column

NOUN = Noun(
    "project",
    "projects",
    "project",
    columns=[
        Column("NAME", lambda project: project.name),
        Column("ID", lambda project: project.id),
        Column("AGE", lambda project: project.create_time),
        Column("DESCRIPTION", lambda project: project.spec.description),
    ],
    details=lambda project: [("Description", project.spec.description)],
)
group = NounGroup("project", "Owners of everything else.")
add_show(group, NOUN)


@group.verb("list")
async def list_projects(session: Session) -> None:
    """List projects."""
    session.output.list(NOUN.columns, await NOUN.all(session))
