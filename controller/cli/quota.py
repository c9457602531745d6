"""cairn quota: how much a project may have, and has."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import click
from cairn.controller.cli.client import Session
from cairn.controller.cli.commands import NounGroup
from cairn.controller.cli.failures import Failure
from cairn.controller.cli.noun import Noun, add_list, follow, perform
from cairn.controller.cli.output import Column, Detail
from cairn.controller.cli.values import SIZE, size_text

_ANY = -1


def _text(name: str, amount: int) -> str:
    return size_text(amount) if "bytes" in name else str(amount)


def _rows(quota: Any) -> Iterator[Detail]:
    used, limits = quota.status.used, quota.status.limits
    for name in sorted({*used, *limits}):
        most = f"of {_text(name, limits[name])}" if name in limits else "no limit"
        own = "" if name in quota.spec.limits else " (by default)" if name in limits else ""
        yield name, f"{_text(name, used[name])} {most}{own}" if quota.project else f"{_text(name, limits[name])}"


def _share(name: str) -> Column:
    def text(quota: Any) -> str:
        used, limits = quota.status.used, quota.status.limits
        most = f"/{_text(name, limits[name])}" if name in limits else ""
        return f"{_text(name, used[name])}{most}" if quota.project else most.removeprefix("/")

    return Column(name.partition("_")[0].upper(), text, right=True)


NOUN = Noun(
    "quota",
    "quotas",
    "quota",
    columns=[
        Column("PROJECT", lambda quota: quota.status.project_name),
        *(_share(name) for name in ("vms", "cpus", "memory_bytes", "volumes", "images", "ports")),
        Column("SAYS", lambda quota: quota.status.say),
        Column("ID", lambda quota: quota.id, wide=True),
    ],
    details=_rows,
)
group = NounGroup("quota", "How much a project may have, and has.")
add_list(group, NOUN)
_defaults = click.option("--defaults", is_flag=True, help="What holds where projects say nothing.")


@group.verb("show")
@click.option("--watch", is_flag=True, help="Go on showing changes until interrupted.")
@_defaults
async def show(session: Session, watch: bool, defaults: bool) -> None:
    """Show the quota of the project, and what is used of it."""
    quota = await NOUN.get(session, "defaults" if defaults else "")
    if watch:
        await follow(session, NOUN, f'id = "{quota.id}"')
        return
    session.output.one(quota, NOUN.described)


@group.verb("set", changes=True)
@click.option(
    "--limit", "limits", multiple=True, metavar="NAME=AMOUNT", help="vms=10, memory_bytes=64GiB, cpus=any; may be repeated."
)
@click.option("--unset", multiple=True, metavar="NAME", help="As the defaults say again; may be repeated.")
@_defaults
async def set_limits(session: Session, limits: tuple[str, ...], unset: tuple[str, ...], defaults: bool) -> None:
    """Set limits of the project (--project); what is there already stays, also beyond them."""
    amounts = dict(_parsed(each) for each in limits)
    if not amounts and not unset:
        raise Failure("nothing to change: give --limit NAME=AMOUNT or --unset NAME", usage=True)
    quota = await NOUN.get(session, "defaults" if defaults else "")
    quota.spec.limits.update(amounts)
    for name in unset:
        quota.spec.limits.pop(name, None)
    mask = [f"spec.limits.{name}" for name in (*amounts, *unset)]
    request = NOUN.request("UpdateQuota", quota=quota, allow_stale=True)
    request.update_mask.paths.extend(mask)
    await perform(session, NOUN, request, None)


def _parsed(text: str) -> tuple[str, int]:
    """Return name and amount. Raises Failure."""
    name, _, amount = text.partition("=")
    if amount in ("any", "none"):
        return name, _ANY
    try:
        return name, SIZE.convert(amount, None, None) if "bytes" in name else int(amount)
    except (ValueError, click.BadParameter) as error:
        raise Failure(
            f"--limit {text}: give NAME=AMOUNT, for example vms=10, memory_bytes=64GiB or cpus=any", usage=True
        ) from error
