"""`cairn`: the command line. The grammar is in commands.py; each noun is a module of its name."""

from __future__ import annotations

import os
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click
from cairn.controller.cli.commands import Root, Verb

if TYPE_CHECKING:
    from cairn.controller.cli.client import Session

AREAS: Final = {
    "Compute": {
        "vm": "Virtual machines.",
        "image": "What root disks start from.",
    },
    "Network": {
        "vpc": "Address spaces of their own.",
        "subnet": "Parts of a VPC that VMs plug into.",
        "port": "Network cards of VMs, with their addresses.",
    },
    "Storage": {
        "volume": "Block devices that outlive their VM.",
    },
    "Infrastructure": {
        "node": "Servers that carry VMs, and tokens to join more.",
        "cluster": "The cluster as a whole; making a new one; backup and restore.",
    },
    "Operations": {
        "job": "Work in steps: image imports.",
        "event": "What happened, and to what.",
        "project": "Owners of everything else.",
        "usage": "What was used, by whom, how long.",
        "price": "What it costs, from when on.",
    },
    "Access": {
        "user": "People and programs that ask.",
        "role": "What may be done, and who may do it where.",
        "token": "API tokens, for who has no certificate.",
        "key": "Access keys, for who signs requests.",
        "idp": "Identity providers, by which people log in.",
        "quota": "How much a project may have, and has.",
        "auth": "Who am I, what may I do, and why.",
        "audit": "Who changed what.",
    },
}


@click.command(
    cls=Root,
    areas=AREAS,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Exit codes: 0 done, 1 failed, 2 usage, 3 timed out (still going on), 4 not found, 5 no controller reached.",
    no_args_is_help=True,
)
def cairn() -> None:
    """Cairn, a private cloud: cairn NOUN VERB [NAME] [options]."""


@cairn.command()
def version() -> None:
    """Print the version of this command."""
    click.echo(f"cairn {metadata.version('cairn')}")


@cairn.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print a script that makes the shell complete nouns, verbs, options and names.

    For bash: cairn completion bash > ~/.local/share/bash-completion/completions/cairn
    """
    from click.shell_completion import get_completion_class

    kind = get_completion_class(shell)
    if kind is None:
        raise click.UsageError(f"no completion for {shell}")
    click.echo(kind(cairn, {}, "cairn", "_CAIRN_COMPLETE").source())


@cairn.command()
@click.option("--simulated", is_flag=True, help="Real controller and agents on made-up servers: no root, no libvirt.")
@click.option("--nodes", type=click.IntRange(1, 500), default=100, help="How many servers; 100 unless given.")
@click.option(
    "--folder", type=click.Path(file_okay=False, path_type=Path), help="Keep files here, not in a folder that is removed."
)
@click.pass_context
def lab(ctx: click.Context, simulated: bool, nodes: int, folder: Path | None) -> None:
    """Bring up a whole cloud on this machine, to try things out, until Ctrl-C.

    Its servers are made up, so nothing needs root, but everything the command line does works against it.
    """
    from cairn.controller.cli.commands import execute, settings_of
    from cairn.controller.cli.lab import bring_up

    if not simulated:
        raise click.UsageError(
            "say --simulated for a cloud of made-up servers; one of real parts on this machine is brought up by `make up` in "
            "Cairn's source tree, as root",
            ctx,
        )
    ctx.exit(execute(settings_of(ctx), lambda session: bring_up(session, nodes, folder), "bring up a simulated cloud"))


async def _login(session: Session, **given: Any) -> None:
    """Log in by an OpenID provider, and keep the token that commands ask by from then on.

    The first time: cairn login HOST:PORT --ca FILE, with the port where tokens are taken; it is remembered.
    """
    from cairn.controller.cli.login import login

    await login(session, **given)


async def _logout(session: Session) -> None:
    """Log out: take the token back, and remove it here."""
    from cairn.controller.cli.login import logout

    await logout(session)


async def _whoami(session: Session) -> None:
    """Say whom the controllers take you for, and which roles are bound to that user."""
    from cairn.controller.cli.auth import whoami

    await whoami.run(session)


_LOGIN: Final[list[click.Parameter]] = [
    click.Argument(["endpoints"], nargs=-1, metavar="[HOST:PORT]..."),
    click.Option(["--ca"], type=click.Path(dir_okay=False, path_type=Path), help="File with the CA of the cloud, in PEM."),
    click.Option(["--provider"], default="", metavar="NAME", help="Which identity provider, where there are several."),
    click.Option(["--device"], is_flag=True, help="Show a code to enter at a browser anywhere; for machines without one."),
    click.Option(["--browser/--no-browser"], default=True, help="Open a browser; the address is shown in any case."),
    click.Option(["--port"], type=click.IntRange(0, 65535), default=0, help="Where the browser comes back to, on loopback."),
]
for _name, _run, _params in (("login", _login, _LOGIN), ("logout", _logout, []), ("whoami", _whoami, [])):
    cairn.add_command(Verb(_run, "", False, name=_name, help=_run.__doc__, params=_params))


def main() -> None:
    """Run the command line."""
    # gRPC's own log would mix into what we say; what matters is in the errors.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    cairn(prog_name="cairn")
