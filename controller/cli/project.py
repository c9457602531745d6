"""cairn project."""

from __future__ import annotations

from typing import Any

import click
from cairn.controller.cli.client import Session
from cairn.controller.cli.commands import NounGroup, name_argument
from cairn.controller.cli.noun import Noun, add_delete, add_label, add_list, add_rename, add_show, perform
from cairn.controller.cli.output import Column
from cairn.controller.cli.values import PAIR

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
add_delete(group, NOUN, help="Delete one project in which nothing lives; what was bound in it ends.")


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
