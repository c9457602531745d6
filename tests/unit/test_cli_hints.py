"""Whatever a sentence tells people to type exists: each `cairn ...` in the product's texts, and each next step of a refusal."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from cairn.controller.cli import failures
from cairn.controller.cli.main import AREAS, cairn
from google.rpc import error_details_pb2 as known

ROOT = Path(__file__).parents[2]
TEXT = re.compile(r"`(cairn [^`]+)`")
# Words that stand for a name, and values filled in when the sentence is made.
FILLED = re.compile(r"\{[^{}]*\}")


def written() -> Iterator[tuple[str, str]]:
    """Yield (where, command) of every command the product's sources and docs name."""
    folders = ("controller", "agent", "storage", "net", "hardware", "proto")
    files = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    files += [*(ROOT / "docs" / "operations").glob("*.md"), ROOT / "README.md"]
    for path in sorted(files):
        if "_pb2" in path.name:
            continue
        for match in TEXT.finditer(path.read_text()):
            yield f"{path.relative_to(ROOT)}", match[1].replace("\n", " ")


def resolve(command: str) -> None:
    """Walk the command tree; LookupError for a noun, verb or option that is not there."""
    words = shlex.split(FILLED.sub("NAME", command).replace("...", "NAME"))[1:]
    context = click.Context(cairn, info_name="cairn")
    here: click.Command = cairn
    while words and isinstance(here, click.Group) and not words[0].startswith("-"):
        if words[0].isupper():
            return
        found = here.get_command(context, words[0])
        if found is None:
            raise LookupError(f"there is no {words[0]!r}")
        here, words = found, words[1:]
    options = {name for parameter in here.params for name in (*parameter.opts, *parameter.secondary_opts)}
    for word in words:
        name = word.partition("=")[0].rstrip(",.;")
        if name.startswith("-") and name not in options:
            raise LookupError(f"there is no option {name!r}")


def test_every_command_that_is_named_exists() -> None:
    wrong = []
    for where, command in written():
        try:
            resolve(command)
        except (LookupError, ValueError) as error:
            wrong.append(f"{where}: `{command}`: {error}")
    assert not wrong, "\n".join(wrong)
    assert len(list(written())) > 40


def test_a_command_that_does_not_exist_is_seen() -> None:
    for bad in ("cairn address show x", "cairn vm fly", "cairn vm list --nope", "cairn node token forge"):
        with pytest.raises(LookupError):
            resolve(bad)


@pytest.mark.parametrize("subject", ["address/10.1.1.2", "vm/web", "nothing/x", "volume/v", "node/n1", "token/t", "memory", ""])
def test_next_steps_of_refusals_exist(subject: str) -> None:
    failure = known.PreconditionFailure()
    failure.violations.add(subject=subject)
    quota = known.QuotaFailure()
    quota.violations.add(subject=f"subnet/{subject or 'x'}/addresses")
    kind, _, name = subject.partition("/")
    info = known.ResourceInfo(resource_type=kind, resource_name=name)
    said = [
        failures._ADVICE["FAILED_PRECONDITION", "PreconditionFailure"](failure),
        failures._ADVICE["RESOURCE_EXHAUSTED", "QuotaFailure"](quota),
        failures._ADVICE["NOT_FOUND", "ResourceInfo"](info),
        failures._ADVICE["ALREADY_EXISTS", "ResourceInfo"](info),
    ]
    for text in said:
        for command in re.findall(r"cairn [^;,)]+", text):
            resolve(command)


def test_nouns_that_hints_may_name() -> None:
    nouns = {noun for area in AREAS.values() for noun in area}
    assert nouns >= failures.NOUNS
    for noun in failures.NOUNS:
        resolve(f"cairn {noun} list")
        resolve(f"cairn {noun} show x")
