"""What goes to stdout: tables, details, JSON, YAML, names. And the live line on stderr while waiting.

Data on stdout only; everything said to the person on stderr. Tables fit 100 columns (or the terminal); `-o wide` does not care.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from cairn.controller.cli.failures import Failure
from cairn.controller.cli.settings import Settings
from cairn.controller.cli.values import age_text, distance_text
from google.protobuf.timestamp_pb2 import Timestamp

if TYPE_CHECKING:
    from rich.console import Console

WIDTH: Final = 100
UNBROKEN: Final = 10_000
_COLOURS: Final = {
    "RUNNING": "green", "READY": "green", "AVAILABLE": "green", "ATTACHED": "green", "ACTIVE": "green", "done": "green",
    "FAILED": "red", "DOWN": "red", "UNKNOWN": "red", "failed": "red",
    "PENDING": "yellow", "STARTING": "yellow", "STOPPING": "yellow", "CREATING": "yellow", "UPLOADING": "yellow",
    "VERIFYING": "yellow", "DELETING": "yellow", "JOINING": "yellow", "CORDONED": "yellow", "DEGRADED": "red",
}  # fmt: skip


@dataclass(frozen=True)
class Column:
    """One column of a table. `value` returns text, a number, a Timestamp (shown as an age) or None ("-")."""

    title: str
    value: Callable[[Any], object]
    wide: bool = False
    right: bool = False


@dataclass(frozen=True)
class Section:
    """A heading with rows below it, in details."""

    title: str
    rows: Sequence[tuple[str, object]]


Detail = tuple[str, object] | Section


class Output:
    """Writes for one command, in the format its settings ask for."""

    def __init__(self, settings: Settings, now: Callable[[], datetime]) -> None:
        self._settings, self._now = settings, now

    @property
    def human(self) -> bool:
        """Tell whether a person reads stdout."""
        return self._settings.output in ("table", "wide")

    def list(self, columns: Sequence[Column], objects: Sequence[Any], *, empty: str = "") -> None:
        """Write a list: a table, a bare array, or names."""
        if not self.human:
            self._document(objects, [document(each) for each in objects])
        elif objects or not empty:
            self._table(columns, objects, header=True)
        else:
            self.say(empty)

    def one(self, message: Any, details: Callable[[Any], Iterable[Detail]]) -> None:
        """Write one object in detail."""
        if not self.human:
            self._document([message], document(message))
        else:
            self._details(details(message))

    def made(self, columns: Sequence[Column], objects: Sequence[Any]) -> None:
        """Write what a command made or changed: table rows, or the object itself when it is one."""
        if not self.human and len(objects) == 1:
            self._document(objects, document(objects[0]))
        else:
            self.list(columns, objects)

    def change(self, columns: Sequence[Column], message: Any, *, header: bool) -> None:
        """Write one line of a list that is watched; JSON and YAML: one document per change."""
        if self._settings.output == "json":
            print(json.dumps(document(message)), flush=True)
        elif self._settings.output == "yaml":
            print("---")
            self._document([message], document(message))
        elif self._settings.output == "name":
            print(name_of(message), flush=True)
        else:
            self._table(columns, [message], header=header, spread=True)

    def lines(self, lines: Iterable[str]) -> None:
        """Write text as it is."""
        for line in lines:
            print(line, flush=True)

    def say(self, text: str) -> None:
        """Tell the person something, unless they asked for quiet."""
        if not self._settings.quiet:
            print(text, file=sys.stderr, flush=True)

    def progress(self) -> Progress:
        """Return the line that shows what is waited for."""
        return Progress(quiet=self._settings.quiet)

    def _document(self, objects: Sequence[Any], value: object) -> None:
        if self._settings.output == "name":
            self.lines(name_of(each) for each in objects)
        elif self._settings.output == "json":
            print(json.dumps(value, indent=2), flush=True)
        else:
            import yaml

            print(yaml.safe_dump(value, sort_keys=False, allow_unicode=True), end="", flush=True)

    def _table(self, columns: Sequence[Column], objects: Sequence[Any], *, header: bool, spread: bool = False) -> None:
        from rich.table import Table

        wide = self._settings.output == "wide"
        shown = [column for column in columns if wide or not column.wide]
        table = Table(box=None, pad_edge=False, show_header=header, header_style="bold", padding=(0, 2, 0, 0))
        for column in shown:
            table.add_column(
                column.title,
                justify="right" if column.right else "left",
                overflow="fold",
                min_width=max(len(column.title), 9) if spread else len(column.title),
            )
        for each in objects:
            table.add_row(*(self._cell(column.value(each)) for column in shown))
        self._print(table, unlimited=wide)

    def _cell(self, value: object) -> Any:
        from rich.text import Text

        text = self._text(value)
        return Text(text, style=_COLOURS.get(text, ""))

    def _text(self, value: object) -> str:
        if isinstance(value, Timestamp):
            return age_text(value.ToDatetime(UTC) if value.seconds else None, self._now())
        return "-" if value is None or value == "" else str(value)

    def _details(self, details: Iterable[Detail]) -> None:
        rows = [(label, self._moment(value)) for label, value in flat(details)]
        rows = [(label, value) for label, value in rows if value not in ("", None, [])]
        width = max((len(label) for label, _ in rows), default=0)
        from rich.table import Table

        table = Table(box=None, pad_edge=False, show_header=False, padding=(0, 2, 0, 0))
        table.add_column(min_width=width, no_wrap=True)
        table.add_column(overflow="fold")
        for label, value in rows:
            values = value if isinstance(value, list) else [value]
            for index, each in enumerate(values):
                table.add_row("" if index else label, self._cell(each))
        self._print(table, unlimited=self._settings.output == "wide")

    def _moment(self, value: object) -> object:
        if isinstance(value, Timestamp) and value.seconds:
            then = value.ToDatetime(UTC)
            return f"{then:%Y-%m-%d %H:%M:%S} UTC ({distance_text(then, self._now())})"
        return None if isinstance(value, Timestamp) else value

    def _print(self, table: Any, *, unlimited: bool) -> None:
        # One object a line for whoever reads a pipe: no line is broken, however long a name is.
        console = _console(sys.stdout, width() if sys.stdout.isatty() and not unlimited else UNBROKEN)
        with console.capture() as captured:
            console.print(table, soft_wrap=False)
        for line in captured.get().splitlines():
            print(line.rstrip(), flush=True)


class Progress:
    """What is waited for: one live line on a terminal, else a line whenever the sentence changes."""

    def __init__(self, *, quiet: bool) -> None:
        self._quiet = quiet
        self._live: Any = None
        self._last = ""

    def __enter__(self) -> Progress:
        if not self._quiet and sys.stderr.isatty():
            from rich.text import Text

            self._live = _console(sys.stderr, width()).status(Text("..."))
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def update(self, text: str, *, live_only: bool = False) -> None:
        """Show a sentence. live_only: it changes all the time, so it is not worth a line of a log."""
        if self._quiet or text == self._last:
            return
        if self._live is not None:
            from rich.text import Text

            self._live.update(Text(text))
        elif not live_only:
            print(text, file=sys.stderr, flush=True)
        self._last = text


def width() -> int:
    """Return how wide output may be."""
    if sys.stdout.isatty():
        return shutil.get_terminal_size().columns
    given = os.environ.get("COLUMNS", "")
    return int(given) if given.isdigit() and int(given) >= 40 else WIDTH


def _console(file: Any, columns: int) -> Console:
    from rich.console import Console

    return Console(file=file, width=columns, highlight=False, markup=False, emoji=False)


def document(message: Any) -> Any:
    """Return the proto's JSON mapping with snake_case names. Zeros, false and empty lists are there, too.

    Left out are only what can be unset (messages, optional fields): a program asks `.reconciling == false`.
    """
    from google.protobuf.json_format import MessageToDict

    found = MessageToDict(message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)
    return _ordered(message.DESCRIPTOR, found)


def _ordered(descriptor: Any, found: dict[str, Any]) -> dict[str, Any]:
    """Return a message's fields in the proto's order, set or not: two answers can be compared line by line."""
    result = {}
    for field in sorted(descriptor.fields, key=lambda field: field.number):
        if field.name not in found:
            continue
        value, inner = found[field.name], field.message_type
        if inner is None or inner.GetOptions().map_entry or inner.full_name.startswith("google.protobuf."):
            result[field.name] = value
        elif isinstance(value, list):
            result[field.name] = [_ordered(inner, each) for each in value]
        else:
            result[field.name] = _ordered(inner, value)
    return result


def name_of(message: Any) -> str:
    """Return an object's name, or its id when it has none."""
    return str(getattr(message, "name", "") or getattr(message, "id", ""))


def flat(details: Iterable[Detail]) -> Iterator[tuple[str, object]]:
    """Yield rows; those of a section are indented below its title."""
    for each in details:
        if isinstance(each, Section):
            rows = [(label, value) for label, value in each.rows if value not in ("", None, [])]
            if rows:
                yield each.title, " "
                yield from ((f"  {label}", value) for label, value in rows)
        else:
            yield each


@contextmanager
def quiet_stdout_errors() -> Iterator[None]:
    """End silently when whoever reads stdout has gone (head, less). Failure when it cannot be written, as the disk is full."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        _drop_stdout()
    except OSError as error:
        _drop_stdout()
        raise Failure(error.strerror or str(error)) from error


def _drop_stdout() -> None:
    """What is still to be flushed goes nowhere, instead of failing once more when the process ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
