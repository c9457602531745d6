"""Words for quantities and lists in the sentences people read."""

from __future__ import annotations

from collections.abc import Sequence

NAMES_MAX = 5
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")


def size(amount: int) -> str:
    """Return an amount of bytes in IEC units with at most one decimal, rounded down: "1.2 GiB", "512 MiB"."""
    unit, scale = 0, 1
    while amount >= scale * 1024 and unit < len(_UNITS) - 1:
        unit, scale = unit + 1, scale * 1024
    tenths = max(0, amount) * 10 // scale
    whole, rest = divmod(tenths, 10)
    return f"{whole}.{rest} {_UNITS[unit]}" if rest else f"{whole} {_UNITS[unit]}"


def names(of: Sequence[str], total: int | None = None) -> str:
    """Return names as a phrase: "n1, n2, n3", past five "n1, n2, n3, n4, n5 and 95 more". total: when `of` is only a part."""
    count = len(of) if total is None else total
    shown = list(of[:NAMES_MAX])
    if count > len(shown):
        return f"{', '.join(shown)} and {count - len(shown)} more"
    return ", ".join(shown)


def several(count: int, noun: str) -> str:
    """Return "1 node", "3 nodes"."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
