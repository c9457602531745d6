"""Sizes, durations, pairs and ages."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import click
import pytest
from cairn.controller.cli.cluster import hosts_of
from cairn.controller.cli.failures import Failure
from cairn.controller.cli.values import DURATION, PAIR, SIZE, age_text, size_text


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("128MiB", 128 << 20), ("20GiB", 20 << 30), ("1.5GiB", 3 << 29), ("2g", 2 << 30), ("512 mib", 512 << 20),
        ("1TiB", 1 << 40), ("4096KiB", 4 << 20), ("134217728", 128 << 20), ("5B", 5),
    ],
)  # fmt: skip
def test_sizes(text: str, size: int) -> None:
    assert SIZE.convert(text, None, None) == size


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("5GB", "write 5GiB"), ("5 XiB", "unknown unit"), ("GiB", "not a size"), ("", "not a size"), ("-1GiB", "not a size"),
        ("0GiB", "between 1 byte"), ("0.3B", "whole bytes"), ("4096PiB", "1024 PiB"), ("20", "has no unit"),
    ],
)  # fmt: skip
def test_bad_sizes_say_what_is_wrong(text: str, why: str) -> None:
    with pytest.raises(click.BadParameter, match=why):
        SIZE.convert(text, None, None)


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90), ("90s", 90), ("1.5m", 90), ("2h", 7200), ("500ms", 0.5), ("7d", 604800)]
)
def test_durations(text: str, seconds: float) -> None:
    assert DURATION.convert(text, None, None) == seconds


@pytest.mark.parametrize("text", ["", "m", "-5s", "5 minutes", "1h30m"])
def test_bad_durations(text: str) -> None:
    with pytest.raises(click.BadParameter, match="not a duration"):
        DURATION.convert(text, None, None)


def test_pairs() -> None:
    assert PAIR.convert("env=prod=1", None, None) == ("env", "prod=1")
    assert PAIR.convert("env=", None, None) == ("env", "")
    for bad in ("env", "=x"):
        with pytest.raises(click.BadParameter, match="KEY=VALUE"):
            PAIR.convert(bad, None, None)


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"), (1023, "1023 B"), (1024, "1 KiB"), (128 << 20, "128 MiB"), (3 << 29, "1.5 GiB"), (20 << 30, "20 GiB"),
        ((20 << 30) - 1, "20.0 GiB"), (1000 << 30, "1000 GiB"), (5 << 50, "5 PiB"), (5000 << 50, "5000 PiB"),
    ],
)  # fmt: skip
def test_sizes_are_shown(size: int, text: str) -> None:
    assert size_text(size) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-5, "0s"),
        (0, "0s"),
        (59, "59s"),
        (60, "1m"),
        (3599, "59m"),
        (3600, "1h"),
        (86_399, "23h"),
        (86_400, "1d"),
        (8_640_000, "100d"),
    ],
)
def test_ages_are_shown(seconds: int, text: str) -> None:
    now = datetime(2026, 5, 1, tzinfo=UTC)
    assert age_text(now - timedelta(seconds=seconds), now) == text
    assert age_text(None, now) == "-"


def test_hosts_of_cluster_init() -> None:
    given = ("n1=10.0.0.1", "n2=10.0.0.2:7443", "n3=[fd00::3]:7443", "n4=fd00::4", "n1=n1.example")
    assert hosts_of("--controller", given) == {
        "n1": ["10.0.0.1", "n1.example"],
        "n2": ["10.0.0.2"],
        "n3": ["fd00::3"],
        "n4": ["fd00::4"],
    }
    for bad in ("n1", "=x", "n1=", "n1=:5"):
        with pytest.raises(Failure, match="NAME=HOST"):
            hosts_of("--controller", (bad,))
