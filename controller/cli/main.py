"""`cairn`: the command line. The grammar is in commands.py; each noun is a module of its name."""

from __future__ import annotations

import os
from importlib import metadata
from typing import Final

import click
from cairn.controller.cli.commands import Root

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
        "cluster": "The cluster as a whole; making a new one.",
    },
    "Operations": {
        "job": "Work in steps: image imports.",
        "event": "What happened, and to what.",
        "project": "Owners of everything else.",
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


def main() -> None:
    """Run the command line."""
    # gRPC's own log would mix into what we say; what matters is in the errors.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    cairn(prog_name="cairn")
