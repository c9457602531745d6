"""cairn auth: who am I, what may I do, and why."""

from __future__ import annotations

import click
from cairn.controller.cli.client import Session
from cairn.controller.cli.commands import NounGroup
from cairn.controller.cli.failures import Failure
from cairn.controller.cli.role import BINDING

group = NounGroup("auth", "Who am I, what may I do, and why.")


@group.verb("whoami")
async def whoami(session: Session) -> None:
    """Say whom the controllers take you for, and which roles are bound to that user."""
    from cairn.proto.v1.auth_pb2 import WhoAmIRequest

    answer = await session.call("auth", WhoAmIRequest())
    by = f", by API token {answer.token.name}" if answer.HasField("token") else ""
    session.output.say(f"{answer.name}{by}: {answer.say}")
    session.output.list(BINDING.columns, list(answer.bindings), empty="no role is bound to it")


async def _check(session: Session, permission: str, object: str, user: str, *, everywhere: bool) -> None:
    from cairn.proto.v1.auth_pb2 import CheckPermissionRequest

    project = "-" if everywhere else session.project
    request = CheckPermissionRequest(permission=permission, object=object, project=project, user=user)
    answer = await session.call("auth", request)
    if not answer.allowed:
        raise Failure(answer.say, whole=True)
    session.output.say(answer.say)


@group.verb("can-i")
@click.argument("permission", metavar="NOUN.VERB")
@click.argument("object", default="", metavar="[NOUN/NAME]")
@click.option("--everywhere", is_flag=True, help="In the whole cluster, not in one project.")
async def can_i(session: Session, permission: str, object: str, everywhere: bool) -> None:
    """Say whether you may do that, and by which binding; the exit code is 1 when you may not."""
    await _check(session, permission, object, "", everywhere=everywhere)


@group.verb("explain")
@click.argument("user")
@click.argument("permission", metavar="NOUN.VERB")
@click.argument("object", default="", metavar="[NOUN/NAME]")
@click.option("--everywhere", is_flag=True, help="In the whole cluster, not in one project.")
async def explain(session: Session, user: str, permission: str, object: str, everywhere: bool) -> None:
    """Say whether a user may do that: which binding allows it, or what is missing."""
    await _check(session, permission, object, user, everywhere=everywhere)
