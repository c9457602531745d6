"""cairn key: access keys, for programs that sign their requests. They are API tokens of another use: see token.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from cairn.controller.cli.client import Session
from cairn.controller.cli.commands import NounGroup, name_argument
from cairn.controller.cli.noun import add_show, perform
from cairn.controller.cli.token import KEY, made_with, write_secret

group = NounGroup("key", "Access keys: an id that is sent, and a secret that requests are signed with.")
add_show(group, KEY)


@group.verb("create", changes=True)
@click.argument("name", default="", required=False)
@made_with
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="Write id and secret to this file, mode 0600.")
async def create(session: Session, name: str, ttl: float, out: Path | None, **spec: Any) -> None:
    """Make an access key and show its id and secret, once: each on a line."""
    from cairn.controller.cli.plan import show_plan
    from cairn.proto.v1.api_token_pb2 import ApiToken, ApiTokenSpec, CreateApiTokenRequest

    key = ApiToken(name=name, spec=ApiTokenSpec(type=ApiTokenSpec.TYPE_SIGNING, **spec))
    answer = await session.call("api_token", CreateApiTokenRequest(api_token=key, ttl_s=round(ttl)))
    made = answer.api_token
    if session.settings.plan:
        show_plan(session.output, made)
        return
    say = f"access key {made.name}: {made.status.say}; its secret is not shown again"
    if out is not None:
        write_secret(out, f"{made.id}\n{answer.secret}\n")
        session.output.say(f"written to {out}. {say}")
    elif session.output.human:
        session.output.lines([made.id, answer.secret])
        session.output.say(say)
    else:
        session.output.one(answer, lambda _answer: ())


@group.verb("list")
async def list_keys(session: Session) -> None:
    """List access keys."""
    session.output.list(KEY.columns, await KEY.all(session, "spec.type = SIGNING"), empty="there are no access keys")


@group.verb("delete", changes=True)
@name_argument("key")
async def delete(session: Session, name: str) -> None:
    """Take an access key back: it is good for nothing from then on."""
    await perform(session, KEY, KEY.request("DeleteApiToken", id=name), None)
