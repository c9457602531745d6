"""A noun of the command line, and the verbs all nouns share: list, show, delete.

    VPC = Noun("vpc", "vpcs", "VPC", columns=[...], details=...)
    vpc = NounGroup(VPC, "Address spaces of their own; their subnets route to each other.")
    add_list(vpc); add_show(vpc); add_delete(vpc, GONE)

Messages, services and methods are found by the API's naming rules (AIP-131 to 135), so a noun needs no glue.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import click
from cairn.controller.cli.client import Session, camel
from cairn.controller.cli.commands import NounGroup, name_argument
from cairn.controller.cli.failures import Failure
from cairn.controller.cli.output import Column, Detail, Section
from cairn.controller.cli.values import PAIR, state_text
from cairn.controller.cli.waiting import Goal, changes, wait_for

PAGE_SIZE: Final = 500
UPDATE_ATTEMPTS_MAX: Final = 5


@dataclass(frozen=True)
class Noun:
    """What the shared verbs must know of a noun. `name` is also the message's field and the module ("vm": vm_pb2)."""

    name: str
    plural: str
    title: str
    columns: Sequence[Column]
    details: Callable[[Any], Iterable[Detail]] = field(default=lambda _message: ())
    soft_delete: bool = False

    @property
    def message(self) -> str:
        """Name of the message: "Vm"."""
        return camel(self.name)

    @property
    def messages(self) -> str:
        """Plural, as in ListVms."""
        return camel(self.plural)

    def request(self, method: str, **fields: Any) -> Any:
        """Return a request message."""
        return getattr(importlib.import_module(f"cairn.proto.v1.{self.name}_pb2"), f"{method}Request")(**fields)

    async def get(self, session: Session, name: str) -> Any:
        """Return the object of that name or id."""
        return await session.call(self.name, self.request(f"Get{self.message}", id=name))

    async def all(self, session: Session, filter: str = "", **fields: Any) -> list[Any]:
        """Return all objects that pass a filter, every page of them."""
        found, _ = await self.listed(session, filter, **fields)
        return found

    async def listed(self, session: Session, filter: str = "", **fields: Any) -> tuple[list[Any], int]:
        """Return them and the revision they are of, to watch from."""
        found: list[Any] = []
        token = ""
        while True:
            fields |= {"filter": filter, "page_size": PAGE_SIZE, "page_token": token}
            answer = await session.call(self.name, self.request(f"List{self.messages}", **fields))
            found += getattr(answer, self.plural)
            token = answer.next_page_token
            if not token:
                return found, answer.revision

    async def update(
        self, session: Session, name: str, change: Callable[[Any], None], mask: Sequence[str], goal: Goal | None
    ) -> None:
        """Read, change, write back."""
        from google.protobuf.field_mask_pb2 import FieldMask

        def request(message: Any) -> Any:
            change(message)
            return self.request(f"Update{self.message}", **{self.name: message, "update_mask": FieldMask(paths=mask)})

        await self.rewrite(session, name, request, goal)

    async def rewrite(self, session: Session, name: str, request: Callable[[Any], Any], goal: Goal | None) -> None:
        """Read, and ask for what follows from that with its etag; again when somebody else was faster."""
        for attempt in range(UPDATE_ATTEMPTS_MAX):
            message = await self.get(session, name)
            try:
                await perform(session, self, request(message), goal)
            except Failure as failure:
                if failure.status != "ABORTED" or session.settings.plan_id or attempt + 1 == UPDATE_ATTEMPTS_MAX:
                    raise
            else:
                return

    def described(self, message: Any) -> Iterable[Detail]:
        """Yield what `show` prints: what all objects have, around what is the noun's own."""
        yield "Name", message.name
        yield "Id", message.id
        status = message.status
        if "state" in status.DESCRIPTOR.fields_by_name:
            yield "State", state_text(status)
        yield "Says", status.say
        yield from self.details(message)
        yield "Labels", [f"{key}={value}" for key, value in sorted(message.labels.items())]
        yield "Created", message.create_time
        yield "Deleted", message.delete_time
        yield "Erased at", message.purge_time if message.HasField("delete_time") else None
        unmet = [each for each in status.conditions if not each.status]
        yield Section("Unmet", [(each.type, f"{each.reason}: {each.message}") for each in unmet])


async def perform(session: Session, noun: Noun, request: Any, goal: Goal | None, *, silent: bool = False) -> Any:
    """Make a mutation, wait for its goal, show the result; with --plan, show the plan only. Return the object as it is then."""
    answer = await session.call(noun.name, request)
    if session.settings.plan:
        from cairn.controller.cli.plan import show_plan

        show_plan(session.output, answer)
        return answer
    result = await settle(session, noun, answer, goal)
    if not silent:
        session.output.made(noun.columns, [result])
    return result


async def settle(session: Session, noun: Noun, answer: Any, goal: Goal | None) -> Any:
    """Wait for the goal, unless told not to, showing what is waited for."""
    if goal is None or not session.settings.wait:
        return answer
    with session.output.progress() as progress:
        label = answer.name or answer.id
        reached = await wait_for(session, noun, answer, goal, lambda say: progress.update(f"{noun.title} {label}: {say}"))
    return answer if reached is None else reached


def filter_of(filter: str, labels: Sequence[tuple[str, str]]) -> str:
    """Return one filter (AIP-160) of --filter and --label options."""
    quoted = [f'labels.{key} = "{_escaped(value)}"' for key, value in labels]
    return " AND ".join([*([filter] if filter else []), *quoted])


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"')


def add_list(group: NounGroup, noun: Noun) -> None:
    """Add `list`, with --filter, --label and --watch; --deleted where objects are kept for a while."""

    async def run(session: Session, filter: str, label: Sequence[tuple[str, str]], watch: bool, deleted: bool = False) -> None:
        whole = filter_of(filter, label)
        if watch:
            await follow(session, noun, whole)
            return
        fields = {"show_deleted": True} if deleted else {}
        found = sorted(await noun.all(session, whole, **fields), key=lambda each: (each.name, each.id))
        session.output.list(noun.columns, found, empty=f"no {noun.title}s" + (" pass the filter" if whole else " yet"))

    run.__doc__ = f"List {noun.title}s."
    if noun.soft_delete:
        run = click.option("--deleted", is_flag=True, help="Also those that wait to be erased.")(run)
    run = click.option("--watch", is_flag=True, help="Go on showing changes until interrupted.")(run)
    run = click.option("--label", type=PAIR, multiple=True, help="Only those with this label; may be repeated.")(run)
    run = click.option("--filter", default="", metavar="EXPR", help="Comparisons joined with AND: 'status.node = \"n1\"'.")(run)
    group.verb("list")(run)


async def follow(session: Session, noun: Noun, filter: str, *, after_revision: int = 0, header: bool = True) -> None:
    """Print the current objects (unless after_revision is given) and then each that changes."""
    async for change in changes(session, noun, filter=filter, after_revision=after_revision, broken=session.output.say):
        if change.deleted:
            session.output.say(f"{noun.title} {change.message.name or change.message.id} is gone")
        elif change.message is not None:
            session.output.change(noun.columns, change.message, header=header)
            header = False


def add_show(group: NounGroup, noun: Noun) -> None:
    """Add `show NAME`."""

    async def run(session: Session, name: str) -> None:
        session.output.one(await noun.get(session, name), noun.described)

    run.__doc__ = f"Show one {noun.title} in detail."
    group.verb("show")(name_argument(noun.name)(run))


def add_delete(group: NounGroup, noun: Noun, verb: str = "delete", help: str = "") -> None:
    """Add `delete NAME`, under another verb where that says it better; --purge where objects are kept for a while."""

    async def run(session: Session, name: str, purge: bool = False) -> None:
        fields = {"purge": purge} if noun.soft_delete else {}
        request = noun.request(f"Delete{noun.message}", id=name, **fields)
        goal = Goal("gone", gone=True)
        if noun.soft_delete and not purge:
            goal = Goal("deleted", frozenset({"DELETED"}), gone=True)
        answer = await perform(session, noun, request, goal, silent=True)
        if session.settings.plan:
            return
        if not session.output.human:
            session.output.made(noun.columns, [answer])
        state = state_text(answer.status) if noun.soft_delete else ""
        kept = state == "DELETED" and session.settings.wait
        end = answer.status.say if kept else ("is gone" if session.settings.wait else "is being deleted")
        session.output.say(f"{noun.title} {answer.name}" + (f" is {end}" if kept else f" {end}"))

    run.__doc__ = help or f"Delete one {noun.title}."
    if noun.soft_delete:
        run.__doc__ += " It is kept for a while (see undelete), unless --purge."
        run = click.option("--purge", is_flag=True, help="Erase it at once, for good.")(run)
    group.verb(verb, changes=True)(name_argument(noun.name)(run))


def add_simple(group: NounGroup, noun: Noun, verb: str, help: str, goal: Goal | None) -> None:
    """Add a verb that takes a name and nothing else: start, undelete."""

    async def run(session: Session, name: str) -> None:
        await perform(session, noun, noun.request(f"{verb.capitalize()}{noun.message}", id=name), goal)

    run.__doc__ = help
    group.verb(verb, changes=True)(name_argument(noun.name)(run))


def add_undelete(group: NounGroup, noun: Noun, goal: Goal) -> None:
    """Add `undelete NAME`, with --name for one whose name somebody else has now."""

    async def run(session: Session, name: str, new_name: str) -> None:
        request = noun.request(f"Undelete{noun.message}", id=name, name=new_name)
        await perform(session, noun, request, goal)

    run.__doc__ = f"Bring a deleted {noun.title} back; take its id, the name may be used again."
    run = click.option("--name", "new_name", default="", metavar="NAME", help="Under another name, when its own is taken.")(run)
    group.verb("undelete", changes=True)(name_argument(noun.name)(run))


def add_rename(group: NounGroup, noun: Noun) -> None:
    """Add `rename NAME NEW`."""

    async def run(session: Session, name: str, new_name: str) -> None:
        def change(message: Any) -> None:
            message.name = new_name

        await noun.update(session, name, change, ["name"], None)

    run.__doc__ = f"Give one {noun.title} another name. Its id stays, and so does all that refers to it."
    run = click.argument("new_name", metavar="NEW")(run)
    group.verb("rename", changes=True)(name_argument(noun.name)(run))


def add_label(group: NounGroup, noun: Noun) -> None:
    """Add `label NAME --set KEY=VALUE --remove KEY`."""

    async def run(session: Session, name: str, set_: Sequence[tuple[str, str]], remove: Sequence[str]) -> None:
        if not set_ and not remove:
            raise Failure("nothing to change: give --set KEY=VALUE or --remove KEY", usage=True)

        def change(message: Any) -> None:
            for key in remove:
                message.labels.pop(key, None)
            for key, value in set_:
                message.labels[key] = value

        await noun.update(session, name, change, ["labels"], None)

    run.__doc__ = f"Change the labels of one {noun.title}."
    run = click.option("--remove", multiple=True, metavar="KEY", help="Label to remove; may be repeated.")(run)
    run = click.option("--set", "set_", type=PAIR, multiple=True, help="KEY=VALUE to set; may be repeated.")(run)
    group.verb("label", changes=True)(name_argument(noun.name)(run))
