"""cairn user."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click
from cairn.controller.cli.client import Session
from cairn.controller.cli.commands import NounGroup, completer, name_argument
from cairn.controller.cli.noun import Noun, add_delete, add_label, add_list, add_show, perform
from cairn.controller.cli.output import Column
from cairn.controller.cli.values import PAIR


def _type(user: Any) -> str:
    return str(user.spec.Type.Name(user.spec.type).removeprefix("TYPE_"))


NOUN = Noun(
    "user",
    "users",
    "user",
    columns=[
        Column("NAME", lambda user: user.name),
        Column("ID", lambda user: user.id),
        Column("TYPE", _type),
        Column("GROUPS", lambda user: ", ".join(user.spec.groups)),
        Column("SAYS", lambda user: user.status.say),
        Column("AGE", lambda user: user.create_time, wide=True),
        Column("DESCRIPTION", lambda user: user.spec.description, wide=True),
    ],
    details=lambda user: [
        ("Type", _type(user)),
        ("Disabled", "yes" if user.spec.disabled else ""),
        ("Groups", list(user.spec.groups)),
        ("Logs in by", f"{user.status.provider_name} as {user.spec.login.subject}" if user.spec.HasField("login") else ""),
        ("Description", user.spec.description),
    ],
)
group = NounGroup("user", "People and programs that ask; what they may do, roles say that are bound to them.")
add_list(group, NOUN)
add_show(group, NOUN)
add_label(group, NOUN)
add_delete(group, NOUN, help="Remove one user, and the roles bound to it: it may do nothing from then on.")


@group.verb("create", changes=True)
@click.argument("name")
@click.option("--service", is_flag=True, help="A program, not a person.")
@click.option("--group", "groups", multiple=True, metavar="G", help="A group it is in; may be repeated.")
@click.option("--description", default="", help="One line about it.")
@click.option("--label", type=PAIR, multiple=True, help="May be repeated.")
async def create(
    session: Session, name: str, service: bool, groups: tuple[str, ...], description: str, label: tuple[tuple[str, str], ...]
) -> None:
    """Make a user; nothing is allowed to it until a role is bound to it."""
    from cairn.proto.v1.user_pb2 import CreateUserRequest, User, UserSpec

    kind = UserSpec.TYPE_SERVICE if service else UserSpec.TYPE_PERSON
    spec = UserSpec(type=kind, groups=groups, description=description)
    await perform(session, NOUN, CreateUserRequest(user=User(name=name, labels=dict(label), spec=spec)), None)


@group.verb("groups", changes=True)
@name_argument("user")
@click.option("--add", multiple=True, metavar="G", help="A group it is in from now on; may be repeated.")
@click.option("--remove", multiple=True, metavar="G", help="A group it is in no longer; may be repeated.")
async def groups_of(session: Session, name: str, add: tuple[str, ...], remove: tuple[str, ...]) -> None:
    """Change the groups of a user."""

    def change(user: Any) -> None:
        user.spec.groups[:] = sorted({*user.spec.groups, *add} - set(remove))

    await NOUN.update(session, name, change, ["spec.groups"], None)


@group.verb("link", changes=True)
@name_argument("user")
@click.argument("provider", shell_complete=completer("idp"))
@click.argument("subject")
async def link(session: Session, name: str, provider: str, subject: str) -> None:
    """Have a user log in by an identity provider, as the subject (`sub`) that it calls them."""

    def change(user: Any) -> None:
        user.spec.login.provider, user.spec.login.subject = provider, subject

    await NOUN.update(session, name, change, ["spec.login"], None)


@group.verb("unlink", changes=True)
@name_argument("user")
async def unlink(session: Session, name: str) -> None:
    """Have a user log in no longer: whoever did as it is out at once."""
    await NOUN.update(session, name, lambda user: user.spec.ClearField("login"), ["spec.login"], None)


def _add_switch(verb: str, help: str, *, disabled: bool) -> None:
    async def run(session: Session, name: str) -> None:
        await NOUN.update(session, name, _switched(disabled), ["spec.disabled"], None)

    run.__doc__ = help
    group.verb(verb, changes=True)(name_argument("user")(run))


def _switched(disabled: bool) -> Callable[[Any], None]:
    def change(user: Any) -> None:
        user.spec.disabled = disabled

    return change


_add_switch("disable", "Shut a user out: it may do nothing from now on, wherever it is signed in.", disabled=True)
_add_switch("enable", "Let a user in again that was disabled.", disabled=False)
