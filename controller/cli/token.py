"""cairn token: API tokens, for who has no certificate."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
from cairn.controller.cli.client import Session
from cairn.controller.cli.commands import NounGroup, name_argument
from cairn.controller.cli.failures import Failure
from cairn.controller.cli.noun import Noun, add_label, add_list, add_show, perform
from cairn.controller.cli.output import Column, Detail
from cairn.controller.cli.values import DURATION, PAIR


def _is_key(token: Any) -> bool:
    return bool(token.spec.type == token.spec.TYPE_SIGNING)


def _narrowed(token: Any) -> str:
    spec = token.spec
    parts = (spec.permissions, token.status.role_names, spec.projects, spec.sources)
    return "; ".join(", ".join(part) for part in parts if part) or "nothing"


def _details(token: Any) -> list[Detail]:
    spec = token.spec
    return [
        ("User", token.status.user_name),
        ("Use", "signs requests: an access key" if _is_key(token) else "is sent along"),
        ("Description", spec.description),
        ("Disabled", "yes" if spec.disabled else ""),
        ("Ends", spec.expire_time.ToJsonString()),
        ("Only permissions", list(spec.permissions)),
        ("Only by roles", list(token.status.role_names)),
        ("Only in projects", list(spec.projects)),
        ("Only from", list(spec.sources)),
    ]


NOUN = Noun(
    "api_token",
    "api_tokens",
    "API token",
    columns=[
        Column("NAME", lambda token: token.name),
        Column("USER", lambda token: token.status.user_name),
        Column("USE", lambda token: "access key" if _is_key(token) else "token"),
        Column("NARROWED TO", _narrowed),
        Column("ENDS", lambda token: f"{token.spec.expire_time.ToDatetime():%Y-%m-%d %H:%M}"),
        Column("SAYS", lambda token: token.status.say, wide=True),
        Column("ID", lambda token: token.id, wide=True),
        Column("AGE", lambda token: token.create_time, wide=True),
        Column("DESCRIPTION", lambda token: token.spec.description, wide=True),
    ],
    details=_details,
)
KEY = replace(
    NOUN, columns=[Column("KEY", lambda key: key.id), *(each for each in NOUN.columns if each.title not in ("ID", "USE"))]
)
# What is said of both tokens and access keys when they are made.
_MADE_WITH = (
    click.option("--user", default="", metavar="U", help="Whom it stands for; you, unless given."),
    click.option(
        "--ttl", type=DURATION, default=0.0, metavar="90d", help="How long it is good for; 90d unless given, at most 366d."
    ),
    click.option(
        "--permission", "permissions", multiple=True, metavar="NOUN.VERB", help="Only these (vm.*, *.see); repeatable."
    ),
    click.option("--role", "roles", multiple=True, metavar="ROLE", help="Only what is bound by these roles; may be repeated."),
    click.option("--in-project", "projects", multiple=True, metavar="P", help="Only in these projects; may be repeated."),
    click.option("--from", "sources", multiple=True, metavar="CIDR", help="Only from these addresses; may be repeated."),
    click.option("--description", default="", help="One line about it."),
)


def made_with(run: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that say whose it is, for how long, and what it is narrowed to."""
    for option in reversed(_MADE_WITH):
        run = option(run)
    return run


group = NounGroup("token", "API tokens: what programs show that have no certificate.")
add_list(group, NOUN)
add_show(group, NOUN)
add_label(group, NOUN)


@group.verb("create", changes=True)
@click.argument("name", default="", required=False)
@made_with
@click.option("--label", type=PAIR, multiple=True, help="May be repeated.")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="Write it to this file, mode 0600.")
async def create(
    session: Session, name: str, ttl: float, label: tuple[tuple[str, str], ...], out: Path | None, **spec: Any
) -> None:
    """Make a token and show it, once. It is a secret: keep it in a file, and name that file in CAIRN_TOKEN_FILE."""
    from cairn.controller.cli.plan import show_plan
    from cairn.proto.v1.api_token_pb2 import ApiToken, ApiTokenSpec, CreateApiTokenRequest

    token = ApiToken(name=name, labels=dict(label), spec=ApiTokenSpec(**spec))
    answer = await session.call("api_token", CreateApiTokenRequest(api_token=token, ttl_s=round(ttl)))
    if session.settings.plan:
        show_plan(session.output, answer.api_token)
        return
    made = answer.api_token
    say = f"API token {made.name}: {made.status.say}; it is not shown again"
    if out is not None:
        write_secret(out, f"{answer.token}\n")
        session.output.say(f"written to {out}. {say}")
    elif session.output.human:
        session.output.lines([answer.token])
        session.output.say(say)
    else:
        session.output.one(answer, lambda _answer: ())


def write_secret(out: Path, text: str) -> None:
    """Write what is shown once to a file that only its owner reads. Raises Failure."""
    from cairn.proto import pki

    try:
        pki.write_private(out, text.encode())
    except OSError as error:
        raise Failure(f"cannot write {out}: {error.strerror}; take back what was made (cairn token list)") from error


@group.verb("delete", changes=True)
@name_argument("token")
async def delete(session: Session, name: str) -> None:
    """Take a token back: it is good for nothing from then on, also where it is in use."""
    # Nothing is looked at after it: this may be the one that it is asked by.
    await perform(session, NOUN, NOUN.request("DeleteApiToken", id=name), None)


def _add_switch(verb: str, help: str, *, disabled: bool) -> None:
    def change(token: Any) -> None:
        token.spec.disabled = disabled

    async def run(session: Session, name: str) -> None:
        await NOUN.update(session, name, change, ["spec.disabled"], None)

    run.__doc__ = help
    group.verb(verb, changes=True)(name_argument("token")(run))


_add_switch("disable", "Have a token count no longer, until it is enabled.", disabled=True)
_add_switch("enable", "Have a token count again that was disabled.", disabled=False)
