"""Values people type and read: sizes, durations, key=value pairs, ages."""

from __future__ import annotations

import re
from datetime import datetime
from typing import Any, Final

import click

_UNITS: Final = {"": 1, "b": 1} | {
    f"{letter}{suffix}": 1024**power for power, letter in enumerate("kmgtp", start=1) for suffix in ("", "ib")
}
_DECIMAL: Final = {"kb", "mb", "gb", "tb", "pb"}
_SECONDS: Final = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86_400}
SIZE_MAX: Final = 1 << 60


class Size(click.ParamType[int]):
    """Bytes: a whole number with an IEC unit, "128MiB", "20G"."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return bytes."""
        if isinstance(value, int):
            return value
        match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-zA-Z]*)", str(value).strip())
        if match is None:
            self.fail(f"{value!r} is not a size; write for example 512MiB or 20GiB", param, ctx)
        number, unit = match[1], match[2].lower()
        if unit in _DECIMAL:
            self.fail(f"{value!r}: write {number}{match[2][0].upper()}iB; sizes are powers of 1024 here", param, ctx)
        if unit not in _UNITS:
            self.fail(f"{value!r} has the unknown unit {match[2]!r}; use KiB, MiB, GiB or TiB", param, ctx)
        size = float(number) * _UNITS[unit] if "." in number else int(number) * _UNITS[unit]
        if size != int(size) or not 0 < size <= SIZE_MAX:
            self.fail(f"{value!r} is not a size between 1 byte and 1024 PiB, in whole bytes", param, ctx)
        if not unit and size < 1 << 20:
            self.fail(f"{value!r} has no unit and would be {int(size)} bytes: is it {number}MiB or {number}GiB?", param, ctx)
        return int(size)


class Duration(click.ParamType[float]):
    """Seconds: a number with a unit, "90s", "5m"; a bare number is seconds."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return seconds."""
        if isinstance(value, int | float):
            return float(value)
        match = re.fullmatch(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)?", str(value).strip())
        if match is None:
            self.fail(f"{value!r} is not a duration; write for example 90s, 5m or 1h", param, ctx)
        return float(match[1]) * _SECONDS[match[2] or "s"]


class Pair(click.ParamType[tuple[str, str]]):
    """One KEY=VALUE."""

    name = "key=value"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, str]:
        """Return (key, value)."""
        if isinstance(value, tuple):
            return value
        key, equals, rest = str(value).partition("=")
        if not equals or not key:
            self.fail(f"{value!r} is not KEY=VALUE", param, ctx)
        return key, rest


SIZE, DURATION, PAIR = Size(), Duration(), Pair()


def size_text(size_bytes: int) -> str:
    """Return a size as people read it: "128 MiB", "1.5 GiB"; exact when it is a whole number of units."""
    if size_bytes < 1024:
        return f"{size_bytes} B"
    value = float(size_bytes)
    for unit in ("KiB", "MiB", "GiB", "TiB", "PiB"):
        value /= 1024
        if value < 1023.95 or unit == "PiB":
            break
    return f"{value:.0f} {unit}" if value == int(value) or value >= 100 else f"{value:.1f} {unit}"


def counted(count: int, noun: str) -> str:
    """Return "1 cpu", "2 cpus"."""
    return f"{count} {noun}" + ("" if count == 1 else "s")


def age_text(since: datetime | None, now: datetime) -> str:
    """Return how long ago: "42s", "3m", "5h", "12d"; "-" when it never was."""
    if since is None:
        return "-"
    seconds = max(0, int((now - since).total_seconds()))
    for unit, length in (("d", 86_400), ("h", 3600), ("m", 60)):
        if seconds >= length:
            return f"{seconds // length}{unit}"
    return f"{seconds}s"


def distance_text(moment: datetime, now: datetime) -> str:
    """Return how far a moment is: "3m ago", "in 2h"."""
    return f"in {age_text(now, moment)}" if moment > now else f"{age_text(moment, now)} ago"


def state_text(message: Any) -> str:
    """Return the state of a status message without its prefix: "RUNNING"."""
    descriptor = message.DESCRIPTOR.fields_by_name["state"]
    if descriptor.enum_type is None:
        return str(message.state)
    found = descriptor.enum_type.values_by_number.get(message.state)
    return str(found.name if found else message.state).removeprefix("STATE_")
