"""Running the command line inside a test, as a person would see it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from cairn.controller.cli.main import cairn
from cairn.controller.cli.settings import Settings
from click.testing import CliRunner

from tests.unit.cli_cloud import BORN, Cloud

GOLDEN = Path(__file__).parent.parent / "golden" / "cli"


@dataclass
class Ran:
    """What a command did."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@dataclass
class SetClock:
    """Shows one time: three minutes after things were born."""

    def now(self) -> datetime:
        return BORN + timedelta(minutes=3, seconds=20)


def run(cloud: Cloud, *arguments: str, input: str | None = None, **changed: str) -> Ran:
    """Run a command line in the cloud's own loop (gRPC wants one per process); a Python exception is a failed test."""
    environment: dict[str, str] = {**cloud.environment, **changed}
    clear = dict.fromkeys(("CAIRN_CONFIG", "CAIRN_ENDPOINT", "CAIRN_CA", "CAIRN_CERT", "CAIRN_KEY", "CAIRN_TOKEN_FILE"))
    runner = CliRunner(env={**clear, **environment})
    settings = Settings(run=cloud.wait, clock=SetClock())
    result = runner.invoke(cairn, list(arguments), prog_name="cairn", input=input, obj=settings)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return Ran(result.exit_code, result.stdout, result.stderr)


def transcript(command: str, ran: Ran) -> str:
    """Return what a person saw, for golden files."""
    said = [f"! {line}".rstrip() for line in ran.err.splitlines()]
    return "\n".join([f"$ {command}", *ran.out.splitlines(), *said, f"[exit {ran.code}]"]) + "\n"
