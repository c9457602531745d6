"""`share` and `unshare`: with which other projects an image or a VPC is shared."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import click
from cairn.controller.cli.client import Session
from cairn.controller.cli.commands import NounGroup, name_argument
from cairn.controller.cli.failures import Failure
from cairn.controller.cli.noun import Noun
from cairn.controller.cli.project import NOUN as PROJECT


def add_share(group: NounGroup, noun: Noun, what: str) -> None:
    """Add both verbs. what: what others may do with it."""

    async def share(session: Session, name: str, projects: Sequence[str], all_: bool) -> None:
        def change(sharing: Any) -> None:
            sharing.projects.extend(each for each in projects if each not in sharing.projects)
            sharing.all = sharing.all or all_

        await _change(session, noun, name, projects, all_, change)

    async def unshare(session: Session, name: str, projects: Sequence[str], all_: bool) -> None:
        shared = (await noun.get(session, name)).spec.sharing.projects
        ids = [each if each in shared else (await PROJECT.get(session, each)).id for each in projects]

        def change(sharing: Any) -> None:
            for given, id in zip(projects, ids, strict=True):
                if id not in sharing.projects:
                    raise Failure(f"{noun.title} {name!r} is not shared with project {given!r}")
                sharing.projects.remove(id)
            sharing.all = sharing.all and not all_

        await _change(session, noun, name, projects, all_, change)

    share.__doc__ = f"Let other projects {what}."
    unshare.__doc__ = f"Share it no longer. What uses the {noun.title} already goes on."
    for verb, run in (("share", share), ("unshare", unshare)):
        command = click.option("--all", "all_", is_flag=True, help="With all projects, also those to come.")(run)
        command = click.option("--with", "projects", multiple=True, metavar="PROJECT", help="May be repeated.")(command)
        group.verb(verb, changes=True)(name_argument(noun.name)(command))


def shared_text(sharing: Any) -> str:
    """Return with whom something is shared, for `show`."""
    return "with all projects" if sharing.all else ", ".join(sharing.projects)


async def _change(
    session: Session, noun: Noun, name: str, projects: Sequence[str], all_: bool, change: Callable[[Any], None]
) -> None:
    """Read, change, write back."""
    if not projects and not all_:
        raise Failure("with whom? Give --with PROJECT or --all", usage=True)

    def request(message: Any) -> Any:
        sharing = message.spec.sharing
        change(sharing)
        return noun.request(f"Share{noun.message}", id=message.id, etag=message.etag, sharing=sharing)

    await noun.rewrite(session, name, request, None)
