"""Reading /proc and /sys below a root folder, of this machine or of one recorded elsewhere. Nothing read is believed blindly.

What is absent tells nothing, and that is no fault: machines differ. What is there and cannot be read (a folder without
permission, a file larger than any of its kind, a number no field can hold) tells nothing either, but is a *fault*, remembered
in `faults`, so that "has none" and "could not look" are never confused.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

# Files of /sys are one page; lists of CPUs and pages of SCSI may be somewhat more.
FILE_BYTES_MAX: Final = 64 << 10
# /proc/cpuinfo of a large machine, udev's notes.
TEXT_BYTES_MAX: Final = 16 << 20
# More than Linux can have CPUs (CONFIG_NR_CPUS is at most 8,192).
NUMBERS_MAX: Final = 16_384
NUMBER_MAX: Final = 2**32 - 1
FAULTS_MAX: Final = 20
# How Linux says "there is none", for files of devices too.
_ABSENT: Final = frozenset(
    {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ENODEV, errno.ENXIO, errno.EINVAL, errno.EOPNOTSUPP, errno.ENODATA}
)
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
        # Absolute: an entry of a folder must not be looked up below the root a second time.
        self.root = root.resolve()
        self.faults: list[str] = []

    def path(self, name: str) -> Path:
        """Return where a name like "proc/meminfo" is."""
        return self.root / name

    def fault(self, what: str | Path, why: object) -> None:
        """Remember that something is there and could not be read."""
        name = str(what).removeprefix(f"{self.root}/")
        said = f"{name}: {why}"
        if said not in self.faults and len(self.faults) < FAULTS_MAX:
            self.faults.append(said)

    def text(self, name: str | Path, bytes_max: int = FILE_BYTES_MAX) -> str:
        """Return a file's content, stripped of blanks and NULs; empty when it tells nothing."""
        return self.raw(name, bytes_max).decode(errors="replace").strip("\0 \n\t\r")

    def raw(self, name: str | Path, bytes_max: int = FILE_BYTES_MAX) -> bytes:
        """Return a file's bytes; empty when it tells nothing, or more than it may."""
        path = self.root / name
        try:
            with path.open("rb") as file:
                content = file.read(bytes_max + 1)
        except OSError as error:
            self._unread(path, error)
            return b""
        if len(content) > bytes_max:
            self.fault(path, f"more than {bytes_max} bytes")
            return b""
        return content

    def number(self, name: str | Path, default: int = 0, number_max: int = NUMBER_MAX) -> int:
        """Return a file's natural number up to number_max; `default` when it holds none."""
        text = self.text(name)
        number = whole(text)
        if number is None or number > number_max:
            # -1 is how drivers say "none".
            if text and text != "-1":
                self.fault(name, f"{text[:40]!r} is no number from 0 to {number_max}")
            return default
        return number

    def exists(self, name: str | Path) -> bool:
        """Tell whether there is such a file or folder, as far as it can be seen."""
        return self._is(name, Path.exists)

    def is_dir(self, name: str | Path) -> bool:
        """Tell whether there is such a folder, as far as it can be seen."""
        return self._is(name, Path.is_dir)

    def _is(self, name: str | Path, test: Callable[[Path], bool]) -> bool:
        path = self.root / name
        try:
            return test(path)
        except OSError as error:
            self._unread(path, error)
            return False

    def device(self, name: str | Path) -> str:
        """Return where a path really is, below the root: "/sys/devices/pci0000:00/..."; empty: nowhere."""
        path = self.root / name
        try:
            real = str(path.resolve())
        except (OSError, RuntimeError) as error:  # RuntimeError: a loop of links
            self.fault(path, error)
            return ""
        return real.removeprefix("" if self.root == Path("/") else str(self.root))

    def link_name(self, name: str | Path) -> str:
        """Return the last part of what a link points to, which need not be there; empty: no link."""
        path = self.root / name
        try:
            return path.readlink().name
        except OSError as error:
            self._unread(path, error)
            return ""

    def folders(self, name: str | Path) -> list[Path]:
        """Return the entries of a folder in the order of their names; none when it is absent."""
        path = self.root / name
        try:
            return sorted(path.iterdir())
        except OSError as error:
            self._unread(path, error)
            return []

    def _unread(self, path: Path, error: OSError) -> None:
        if error.errno not in _ABSENT:
            self.fault(path, error.strerror or error)

    def numbered(self, name: str | Path, prefix: str) -> Iterator[tuple[int, Path]]:
        """Yield (7, …/cpu7) for each entry that is the prefix and a number, in the order of the numbers."""
        found = [(int(match[1]), path) for path in self.folders(name) if (match := _NUMBERED.fullmatch(path.name))]
        return iter(sorted((number, path) for number, path in found if path.name == f"{prefix}{number}"))


def told(text: str) -> str:
    """Return the text, or nothing when it is a vendor's placeholder."""
    text = " ".join(text.split())
    return "" if _PLACEHOLDERS.fullmatch(text) or not text.strip("0 -.x") else text


def whole(text: str) -> int | None:
    """Return a decimal natural number of at most 20 digits; None for anything else."""
    return int(text) if len(text) <= 20 and text.isascii() and text.isdigit() else None


def parse_list(text: str) -> list[int]:
    """Return the numbers of a kernel list such as "0-3,8" (or "0-62:2"); those of CPUs, so none past NUMBERS_MAX.

    Source: Linux Documentation/core-api/kernel-api.
    """
    numbers: list[int] = []
    for part in text.replace("\n", "").split(","):
        match = re.fullmatch(r"\s*([0-9]{1,9})(?:-([0-9]{1,9})(?::([0-9]{1,9}))?)?\s*", part)
        if match:
            first, last, step = int(match[1]), int(match[2] or match[1]), int(match[3] or 1)
            numbers += range(first, min(last + 1, NUMBERS_MAX), step or 1)
        if len(numbers) > NUMBERS_MAX:
            return []
    return numbers


def parse_mask(text: str) -> list[int]:
    """Return the numbers set in a kernel bit mask such as "00000000,0000000f"."""
    digits = text.replace(",", "").replace("\n", "").lstrip("0")
    if len(digits) * 4 > NUMBERS_MAX or not re.fullmatch(r"[0-9a-fA-F]+", digits):
        return []
    mask = int(digits, 16)
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
