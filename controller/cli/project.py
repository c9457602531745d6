"""cairn project."""

from __future__ import annotations

from typing import Any

import click
from cairn.controller.cli.client import Session
from cairn.controller.cli.commands import NounGroup, name_argument
from cairn.controller.cli.noun import Noun, add_label, add_list, add_rename, add_show, perform
from cairn.controller.cli.output import Column
from cairn.controller.cli.values import PAIR
from cairn.controller.cli.waiting import Goal

NOUN = Noun(
    "project",
    "projects",
    "project",
    columns=[
        Column("NAME", lambda project: project.name),
        Column("ID", lambda project: project.id),
        Column("VMS", lambda project: project.status.vms, right=True),
        Column("VOLUMES", lambda project: project.status.volumes, right=True),
        Column("AGE", lambda project: project.create_time),
        Column("DESCRIPTION", lambda project: project.spec.description),
    ],
    details=lambda project: [
        ("Description", project.spec.description),
        ("VMs", project.status.vms),
        ("Volumes", project.status.volumes),
        ("Images", project.status.images),
        ("VPCs", project.status.vpcs),
    ],
)
group = NounGroup("project", "Owners of everything else.")
add_list(group, NOUN)
add_show(group, NOUN)
add_label(group, NOUN)
add_rename(group, NOUN)


@group.verb("create", changes=True)
@click.argument("name")
@click.option("--description", default="", help="One line about it.")
@click.option("--label", type=PAIR, multiple=True, help="May be repeated.")
async def create(session: Session, name: str, description: str, label: tuple[tuple[str, str], ...]) -> None:
    """Make a project; who may work in it, bindings say (`cairn role bind`)."""
    from cairn.proto.v1.project_pb2 import CreateProjectRequest, Project, ProjectSpec

    project = Project(name=name, labels=dict(label), spec=ProjectSpec(description=description))
    await perform(session, NOUN, CreateProjectRequest(project=project), None)


@group.verb("update", changes=True)
@name_argument("project")
@click.option("--description", required=True, help="One line about it.")
async def update(session: Session, name: str, description: str) -> None:
    """Change the description of a project."""

    def change(project: Any) -> None:
        project.spec.description = description

    await NOUN.update(session, name, change, ["spec.description"], None)


@group.verb("delete", changes=True)
@name_argument("project")
@click.option("--cascade", is_flag=True, help="With all that lives in it, for good; with --plan: show what that is.")
async def delete(session: Session, name: str, cascade: bool) -> None:
    """Delete a project in which nothing lives; what was bound in it ends."""
    from cairn.controller.cli import cascade as all_in

    if not cascade:
        answer = await perform(session, NOUN, NOUN.request("DeleteProject", id=name), Goal("gone", gone=True), silent=True)
        if not session.settings.plan:
            session.output.say(f"project {answer.name} is gone")
        return
    project = await NOUN.get(session, name)
    if session.settings.plan:
        all_in.show(session, project, await all_in.living(session, project.id))
        return
    await all_in.empty(session, project)
    await all_in.finish(session, NOUN, project)
