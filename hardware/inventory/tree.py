"""Reading /proc and /sys below a root folder. Absent, unreadable and "no such device" are all the same: nothing told."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

_NUMBERED: Final = re.compile(r"[a-z]+(\d+)")
# What vendors leave in fields nobody filled in.
_PLACEHOLDERS: Final = re.compile(
    r"to be filled by o\.e\.m\.?|default string|not (specified|applicable|available|present)|none|n/a|o\.e\.m\."
    r"|unknown|empty|undefined|system (serial number|product name|manufacturer|version)|(0?123456789|1234567890)\w*",
    re.IGNORECASE,
)


class Tree:
    """The files of one machine: of this one ("/"), or recorded elsewhere."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def path(self, name: str) -> Path:
        """Return where a name like "proc/meminfo" is."""
        return self.root / name

    def text(self, name: str | Path) -> str:
        """Return a file's content, stripped of blanks and NULs; empty when it tells nothing."""
        return self.raw(name).decode(errors="replace").strip("\0 \n\t\r")

    def raw(self, name: str | Path) -> bytes:
        """Return a file's bytes; empty when it tells nothing."""
        try:
            return (self.root / name).read_bytes()
        except OSError:
            return b""

    def number(self, name: str | Path, default: int = 0) -> int:
        """Return a file's decimal number; `default` when it holds none."""
        try:
            return int(self.text(name))
        except ValueError:
            return default

    def folders(self, name: str | Path) -> list[Path]:
        """Return the entries of a folder in the order of their names; none when it is absent."""
        try:
            return sorted((self.root / name).iterdir())
        except OSError:
            return []

    def numbered(self, name: str | Path, prefix: str) -> Iterator[tuple[int, Path]]:
        """Yield (7, …/cpu7) for each entry that is the prefix and a number, in the order of the numbers."""
        found = [(int(match[1]), path) for path in self.folders(name) if (match := _NUMBERED.fullmatch(path.name))]
        return iter(sorted((number, path) for number, path in found if path.name == f"{prefix}{number}"))


def told(text: str) -> str:
    """Return the text, or nothing when it is a vendor's placeholder."""
    text = " ".join(text.split())
    return "" if _PLACEHOLDERS.fullmatch(text) or not text.strip("0 -.x") else text


def parse_list(text: str) -> list[int]:
    """Return the numbers of a kernel list such as "0-3,8" (or "0-62:2"). Source: Linux Documentation/core-api/kernel-api."""
    numbers: list[int] = []
    for part in text.replace("\n", "").split(","):
        match = re.fullmatch(r"\s*(\d+)(?:-(\d+)(?::(\d+))?)?\s*", part)
        if match:
            first, last, step = int(match[1]), int(match[2] or match[1]), int(match[3] or 1)
            numbers += range(first, last + 1, step or 1)
    return numbers


def parse_mask(text: str) -> list[int]:
    """Return the numbers set in a kernel bit mask such as "00000000,0000000f"."""
    try:
        mask = int(text.replace(",", "").replace("\n", "") or "0", 16)
    except ValueError:
        return []
    return [bit for bit in range(mask.bit_length()) if mask >> bit & 1]


def format_list(numbers: list[int]) -> str:
    """Return numbers as a kernel list: runs as "0-3", others alone."""
    runs: list[list[int]] = []
    for number in sorted(set(numbers)):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)
