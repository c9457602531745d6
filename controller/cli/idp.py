"""cairn idp: identity providers, by which people log in."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
from cairn.controller.cli.client import Session
from cairn.controller.cli.commands import NounGroup, name_argument
from cairn.controller.cli.failures import Failure
from cairn.controller.cli.noun import Noun, add_delete, add_label, add_list, add_show, perform
from cairn.controller.cli.output import Column, Detail, Section
from cairn.controller.cli.values import DURATION, PAIR


def _rows(provider: Any) -> Iterator[Detail]:
    spec = provider.spec
    yield "Issuer", spec.issuer
    yield "Client", spec.client_id
    yield "CA", "its own" if spec.ca_pem else "the machine's"
    yield "Scopes", list(spec.scopes)
    yield "Users are called by", spec.user_claim
    yield "Groups are in", spec.groups_claim
    yield "New users", "are made at their first login" if spec.create_users else "are not: link them (cairn user link)"
    yield "Logged in for", f"{spec.session_s / 3600:g} h"
    yield "Disabled", "yes" if spec.disabled else ""
    yield "Description", spec.description
    yield Section("Groups", [(ours, f"whoever it has in {theirs}") for theirs, ours in sorted(spec.groups.items())])


NOUN = Noun(
    "identity_provider",
    "identity_providers",
    "identity provider",
    columns=[
        Column("NAME", lambda provider: provider.name),
        Column("ISSUER", lambda provider: provider.spec.issuer),
        Column("GROUPS", lambda provider: ", ".join(sorted(set(provider.spec.groups.values())))),
        Column("SAYS", lambda provider: provider.status.say),
        Column("ID", lambda provider: provider.id, wide=True),
        Column("AGE", lambda provider: provider.create_time, wide=True),
        Column("DESCRIPTION", lambda provider: provider.spec.description, wide=True),
    ],
    details=_rows,
)
group = NounGroup("idp", "Identity providers (OpenID Connect), by which people log in.")
add_list(group, NOUN)
add_show(group, NOUN)
add_label(group, NOUN)
add_delete(group, NOUN, help="Trust a provider no longer, once no user logs in by it.")
_SPEC = (
    click.option("--client-id", metavar="ID", help="What it calls Cairn: a public client, without a secret."),
    click.option("--ca", type=click.Path(dir_okay=False, path_type=Path), help="File with the CA of its certificate, in PEM."),
    click.option("--scope", "scopes", multiple=True, metavar="S", help='Asked for besides "openid"; may be repeated.'),
    click.option("--user-claim", metavar="CLAIM", help="What new users are called after; preferred_username unless given."),
    click.option("--groups-claim", metavar="CLAIM", help="Which claim has the groups; groups unless given."),
    click.option(
        "--group",
        "groups",
        type=PAIR,
        multiple=True,
        metavar="THEIRS=OURS",
        help="A group of its, and its name here; repeatable.",
    ),
    click.option("--create-users/--no-create-users", default=None, help="Whoever it knows becomes a user by logging in."),
    click.option("--session", "session_s", type=DURATION, metavar="8h", help="How long one is logged in; at most 24h."),
    click.option("--description", help="One line about it."),
)


def _described(run: Callable[..., Any]) -> Callable[..., Any]:
    for option in reversed(_SPEC):
        run = option(run)
    return run


@group.verb("create", changes=True)
@click.argument("name")
@click.option("--issuer", required=True, metavar="URL", help="As its tokens name it, letter by letter.")
@_described
@click.option("--label", type=PAIR, multiple=True, help="May be repeated.")
async def create(session: Session, name: str, issuer: str, label: tuple[tuple[str, str], ...], **given: Any) -> None:
    """Have people log in by an OpenID provider. Register Cairn there as a native app, redirected to http://127.0.0.1/callback."""
    from cairn.proto.v1.identity_provider_pb2 import CreateIdentityProviderRequest, IdentityProvider

    provider = IdentityProvider(name=name, labels=dict(label))
    provider.spec.issuer = issuer
    _fill(provider.spec, given)
    await perform(session, NOUN, CreateIdentityProviderRequest(identity_provider=provider), None)


@group.verb("update", changes=True)
@name_argument("idp")
@_described
async def update(session: Session, name: str, **given: Any) -> None:
    """Change how a provider's word is taken. Groups and scopes are given whole."""
    named = [field for field, value in _named(given).items() if value not in (None, ())]
    if not named:
        raise Failure("nothing to change: give an option", usage=True)

    def change(provider: Any) -> None:
        _fill(provider.spec, given)

    await NOUN.update(session, name, change, [f"spec.{field}" for field in named], None)


def _named(given: dict[str, Any]) -> dict[str, Any]:
    """Return what was given by the names of the record's fields."""
    return {"ca_pem" if field == "ca" else field: value for field, value in given.items()}


def _fill(spec: Any, given: dict[str, Any]) -> None:
    """Raises Failure."""
    for field, value in _named(given).items():
        if value in (None, ()):
            continue
        spec.ClearField(field)
        if field == "ca_pem":
            spec.ca_pem = _read(value)
        elif field == "groups":
            spec.groups.update(dict(value))
        elif field == "scopes":
            spec.scopes.extend(value)
        else:
            setattr(spec, field, round(value) if field == "session_s" else value)


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise Failure(f"cannot read {path}: {error}", usage=True) from error


def _add_switch(verb: str, help: str, *, disabled: bool) -> None:
    def change(provider: Any) -> None:
        provider.spec.disabled = disabled

    async def run(session: Session, name: str) -> None:
        await NOUN.update(session, name, change, ["spec.disabled"], None)

    run.__doc__ = help
    group.verb(verb, changes=True)(name_argument("idp")(run))


_add_switch("disable", "Trust a provider no longer: nobody can log in by it, and whoever has is out at once.", disabled=True)
_add_switch("enable", "Trust a provider again that was disabled.", disabled=False)
