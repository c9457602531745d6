"""cairn role: what is given together, and to whom."""

from __future__ import annotations

from typing import Any, Final

import click
from cairn.controller.cli.client import Session
from cairn.controller.cli.commands import NounGroup, name_argument
from cairn.controller.cli.failures import Failure
from cairn.controller.cli.noun import Noun, add_delete, add_list, add_show, perform
from cairn.controller.cli.output import Column

NOUN = Noun(
    "role",
    "roles",
    "role",
    columns=[
        Column("NAME", lambda role: role.name),
        Column("ID", lambda role: role.id),
        Column("BUILT IN", lambda role: "yes" if role.spec.builtin else ""),
        Column("BOUND", lambda role: role.status.bindings, right=True),
        Column("DESCRIPTION", lambda role: role.spec.description),
        Column("PERMISSIONS", lambda role: ", ".join(role.spec.permissions), wide=True),
    ],
    details=lambda role: [
        ("Description", role.spec.description),
        ("Built in", "yes" if role.spec.builtin else ""),
        ("Permissions", list(role.spec.permissions)),
    ],
)
BINDING = Noun(
    "binding",
    "bindings",
    "binding",
    columns=[
        Column("NAME", lambda binding: binding.name),
        Column("WHO", lambda binding: binding.status.subject_name),
        Column("ROLE", lambda binding: binding.status.role_name),
        Column("WHERE", lambda binding: _where(binding)),
        Column("ID", lambda binding: binding.id, wide=True),
        Column("AGE", lambda binding: binding.create_time, wide=True),
    ],
)
group = NounGroup("role", "Permissions that are given together, and who has them where.")
add_list(group, NOUN)
add_show(group, NOUN)
add_delete(group, NOUN, help="Delete a role of your own that is bound to nobody.")
_EVERYWHERE: Final = "cluster"


def _where(binding: Any) -> str:
    if binding.status.object_name:
        return str(binding.status.object_name.removeprefix("for "))
    return f"project {binding.project}" if binding.project else _EVERYWHERE


@group.verb("create", changes=True)
@click.argument("name")
@click.option(
    "--permission", "permissions", multiple=True, required=True, metavar="NOUN.VERB", help="May be repeated; vm.*, *.see."
)
@click.option("--description", default="", help="One line about it.")
async def create(session: Session, name: str, permissions: tuple[str, ...], description: str) -> None:
    """Make a role of permissions that you have."""
    from cairn.proto.v1.role_pb2 import CreateRoleRequest, Role, RoleSpec

    spec = RoleSpec(permissions=permissions, description=description)
    await perform(session, NOUN, CreateRoleRequest(role=Role(name=name, spec=spec)), None)


@group.verb("bind", changes=True)
@name_argument("role")
@click.option("--user", default="", metavar="U", help="Who is to have it.")
@click.option("--group", "group_name", default="", metavar="G", help="All users of a group.")
@click.option("--everyone", is_flag=True, help="All users.")
@click.option("--cluster", is_flag=True, help="In the whole cluster, not in one project.")
@click.option("--object", "object", default="", metavar="NOUN/NAME", help="For one object of the project alone: vm/web.")
async def bind(session: Session, name: str, user: str, group_name: str, everyone: bool, cluster: bool, object: str) -> None:
    """Give a role to somebody, in a project (--project, or that of the context) or in the whole cluster (--cluster)."""
    from cairn.proto.v1.binding_pb2 import Binding, BindingSpec, CreateBindingRequest, Subject

    if bool(user) + bool(group_name) + everyone != 1:
        raise Failure("say who: --user, --group or --everyone, one of them")
    if cluster and object:
        raise Failure("--object is of a project, and --cluster of none: give one of them")
    subject = Subject(user=user) if user else Subject(group=group_name) if group_name else Subject(everyone=True)
    project = "" if cluster else session.project or "default"
    binding = Binding(project=project, spec=BindingSpec(role=name, subject=subject, object=object))
    await perform(session, BINDING, CreateBindingRequest(binding=binding), None)


@group.verb("unbind", changes=True)
@name_argument("binding")
async def unbind(session: Session, name: str) -> None:
    """Take a role back: it ends at once. NAME is that of the binding (`cairn role bindings`)."""
    await perform(session, BINDING, BINDING.request("DeleteBinding", id=name), None)


@group.verb("bindings")
@click.option("--filter", default="", metavar="EXPR", help="Comparisons joined with AND: 'status.role_name = \"member\"'.")
async def bindings(session: Session, filter: str) -> None:
    """List who has which role where."""
    found = sorted(await BINDING.all(session, filter), key=lambda each: (each.status.subject_name, each.name))
    session.output.list(BINDING.columns, found, empty="nothing is bound" if not filter else "no bindings pass the filter")
