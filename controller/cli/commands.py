"""The grammar: `cairn NOUN VERB [NAME] [options]`, global options anywhere on the line, one place where commands end.

Only click is imported here: nouns are loaded when they are used, gRPC when something is called, so help and completion are
quick.
"""

from __future__ import annotations

import asyncio
import importlib
import re
import sys
from collections.abc import Callable, Coroutine, Mapping
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, Final

import click
from cairn.controller.cli.failures import Exit, Failure
from cairn.controller.cli.settings import Settings
from cairn.controller.cli.values import DURATION

if TYPE_CHECKING:
    from cairn.controller.cli.client import Session

FORMATS: Final = ("table", "wide", "json", "yaml", "name")
COMPLETION_S: Final = 1.5
INTERRUPTED: Final = 130
# What a verb does, where "cannot VERB NOUN NAME" would not be a sentence.
_DOING: Final = {
    "events": "list the events of",
    "console": "open the console of",
    "wait": "wait for",
    "login": "log in",
    "logout": "log out",
    "whoami": "tell who you are",
}
# The cluster has no name to be called by, and its verbs are not about the whole of it.
_DOING_TO_CLUSTER: Final = {
    "adopt": "adopt",
    "backup": "back up the cluster",
    "certify": "certify",
    "fsck": "check the records",
    "init": "make a cluster",
    "restore": "restore the cluster",
    "retire": "retire controller",
    "status": "tell the status of the cluster",
    "verify": "verify the backup",
}


def _remember(ctx: click.Context, param: click.Parameter, value: Any) -> None:
    """Put a global option into the settings; the one nearest to the verb wins."""
    if value is not None and ctx.get_parameter_source(param.name or "") is not click.core.ParameterSource.DEFAULT:
        setattr(settings_of(ctx), param.name or "", value)


def settings_of(ctx: click.Context) -> Settings:
    """Return the settings of this command line."""
    root = ctx.find_root()
    if not isinstance(root.obj, Settings):
        root.obj = Settings()
    return root.obj


class GlobalOption(click.Option):
    """An option every command takes, listed apart in help."""


def global_options() -> list[click.Parameter]:
    """Return them, made anew for each command."""

    def option(*names: str, **keywords: Any) -> GlobalOption:
        return GlobalOption(names, expose_value=False, callback=_remember, default=None, **keywords)

    return [
        option("-o", "--output", type=click.Choice(FORMATS), help="Format of what is printed; table unless given."),
        option("--project", metavar="P", help="Project to work in."),
        option("--plan", is_flag=True, flag_value=True, help="Show what would be done, do nothing."),
        option("--plan-id", metavar="ID", help="Do exactly what that plan showed, or refuse."),
        option("--wait/--no-wait", help="Wait until it is done; the default."),
        option("--timeout", "timeout_s", type=DURATION, metavar="90s", help="How long to wait."),
        option("-q", "--quiet", is_flag=True, flag_value=True, help="Print data only, no progress."),
        option("--context", metavar="NAME", help="Context of the configuration file to use."),
        option("--token-file", metavar="FILE", help="File with an API token to ask by, not a certificate."),
    ]


class _Command(click.Command):
    """A command or group with the global options, which its help lists last."""

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        keywords["params"] = [*(keywords.get("params") or []), *global_options()]
        super().__init__(*arguments, **keywords)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the own options, then the global ones."""
        for title, mine in (("Options", False), ("Global options", True)):
            if mine and isinstance(self, click.Group):
                self.format_commands(ctx, formatter)
            records = [
                record
                for param in self.get_params(ctx)
                if isinstance(param, click.Option)
                and isinstance(param, GlobalOption) is mine
                and (record := param.get_help_record(ctx)) is not None
            ]
            if records:
                with formatter.section(title):
                    formatter.write_dl(records)


class Verb(_Command):
    """One verb of a noun: an async function that is given a Session."""

    def __init__(self, run: Callable[..., Coroutine[Any, Any, None]], noun: str, changes: bool, **keywords: Any) -> None:
        # The first sentence, whole: "Make a VM and wait until..." leaves one to guess.
        keywords.setdefault("short_help", first_sentence(keywords.get("help") or ""))
        super().__init__(callback=self._execute, **keywords)
        self.run, self._noun, self._changes = run, noun, changes

    def _execute(self, **arguments: Any) -> None:
        ctx = click.get_current_context()
        settings = settings_of(ctx)
        if (settings.plan or settings.plan_id) and not self._changes:
            raise click.UsageError(f"`{ctx.command_path}` changes nothing, so there is nothing to plan", ctx)
        verb, of_cluster = self.name or "", self._noun == "cluster"
        doing = _DOING_TO_CLUSTER.get(verb, verb) if of_cluster else f"{_DOING.get(verb, verb)} {self._noun}"
        # `cluster init --name` names what is to be.
        name = "" if verb == "init" else str(arguments.get("name") or "")

        def run(session: Session) -> Coroutine[Any, Any, None]:
            if self._changes:
                session.interrupted = "interrupted; what was begun goes on"
            return self.run(session, **arguments)

        ctx.exit(execute(settings, run, f"{doing} {name}".rstrip()))


def execute(settings: Settings, run: Callable[[Any], Coroutine[Any, Any, None]], attempted: str) -> int:
    """Run a command's function with a Session and return the exit code; say what went wrong."""
    from cairn.controller.cli.client import Session
    from cairn.controller.cli.output import quiet_stdout_errors

    sessions: list[Session] = []

    async def whole() -> None:
        session = Session(settings)
        sessions.append(session)
        try:
            await run(session)
        finally:
            await session.close()

    try:
        with quiet_stdout_errors():
            settings.run(whole())
    except Failure as failure:
        failure.attempted = failure.attempted or attempted
        print("cairn: " + failure.text(), file=sys.stderr)
        return int(failure.code)
    except KeyboardInterrupt:
        print("cairn: " + (sessions[-1].interrupted if sessions else "interrupted"), file=sys.stderr)
        return INTERRUPTED
    return int(Exit.DONE)


def first_sentence(text: str) -> str:
    """Return it on one line, up to its first ".", ";" or ":"."""
    return re.split(r"(?<=[.;:]) ", " ".join(text.split()), maxsplit=1)[0].rstrip(".;:") + "."


class NounGroup(_Command, click.Group):
    """The verbs of one noun."""

    def __init__(self, name: str, help: str) -> None:
        super().__init__(name=name, help=help, short_help=first_sentence(help), no_args_is_help=True)

    def verb(
        self, name: str, *, changes: bool = False, noun: str | None = None
    ) -> Callable[[Callable[..., Coroutine[Any, Any, None]]], Verb]:
        """Make an async function (session, **options) a verb. changes: it is a mutation, so --plan makes sense."""

        def decorate(run: Callable[..., Coroutine[Any, Any, None]]) -> Verb:
            params = list(reversed(getattr(run, "__click_params__", [])))
            command = Verb(run, noun or self.name or "", changes, name=name, help=run.__doc__, params=params)
            self.add_command(command)
            return command

        return decorate


class Root(_Command, click.Group):
    """All nouns, by area, each in a module of its name that is loaded when used."""

    def __init__(self, areas: Mapping[str, Mapping[str, str]], **keywords: Any) -> None:
        super().__init__(**keywords)
        self._areas = areas

    def list_commands(self, _ctx: click.Context) -> list[str]:
        """Return all nouns, and the commands that are none."""
        return [noun for nouns in self._areas.values() for noun in nouns] + list(self.commands)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Load a noun."""
        if any(cmd_name in nouns for nouns in self._areas.values()):
            module = importlib.import_module(f"cairn.controller.cli.{cmd_name.replace('-', '_')}")
            return module.group  # type: ignore[no-any-return]
        return super().get_command(ctx, cmd_name)

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        """Find a noun; one that is none: name those meant by it, or show the order of words."""
        try:
            return super().resolve_command(ctx, args)
        except click.exceptions.NoSuchCommand as error:
            meant = get_close_matches(error.command_name, self.list_commands(ctx))
            say = (
                f"did you mean {' or '.join(meant)}?"
                if meant
                else "it is `cairn NOUN VERB [NAME]`, for example `cairn vm list`"
            )
            raise click.UsageError(f"there is no {error.command_name!r}: {say}", ctx) from None

    def format_commands(self, _ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the nouns grouped by area, without loading any."""
        for area, nouns in self._areas.items():
            with formatter.section(area):
                formatter.write_dl(list(nouns.items()))
        with formatter.section("Also"):
            formatter.write_dl([(name, first_sentence(command.help or "")) for name, command in self.commands.items()])


# --- names, completed by the shell ---------------------------------------------------------------------------------------


def completer(noun: str) -> Callable[[click.Context, click.Parameter, str], list[str]]:
    """Return a function that completes names of a noun; it gives up quickly and silently when the cloud does not answer."""

    def complete(ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
        from cairn.controller.cli.client import Session

        settings = settings_of(ctx)

        async def names() -> list[str]:
            session = Session(
                Settings(
                    timeout_s=COMPLETION_S, project=settings.project, context=settings.context, token_file=settings.token_file
                )
            )
            try:
                async with asyncio.timeout(COMPLETION_S):
                    found = await importlib.import_module(f"cairn.controller.cli.{noun}").NOUN.all(session)
            finally:
                await session.close()
            return [each.name or each.id for each in found]

        try:
            return [name for name in settings.run(names()) if name.startswith(incomplete)]
        except (Failure, TimeoutError):
            return []

    return complete


def name_argument(noun: str, argument: str = "name") -> Callable[[Any], Any]:
    """Return a decorator for a name or id of an existing object."""
    return click.argument(argument, metavar=argument.upper(), shell_complete=completer(noun))


def name_option(flag: str, noun: str, **keywords: Any) -> Callable[[Any], Any]:
    """Return a decorator for an option that names an object."""
    return click.option(flag, metavar=keywords.pop("metavar", "NAME"), shell_complete=completer(noun), **keywords)
