"""The bugs: what a tired colleague might write. Each is a file in bugs/, named for what was forgotten:

    One sentence: what it breaks.
    --- controller/runtime.py
    @@
     a line that stays
    -a line that goes
    +a line that comes

Like a diff without line numbers: the lines that stay and go are found exactly once in the file. Most are one change of one
file. Where the design has two defences that each suffice, both must fall before anything goes wrong, and the mutant fells both.
Rejected: making them by rule (flipped comparisons and the like): they are not the bugs that people write.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

FOLDER: Final = Path(__file__).parent / "bugs"


@dataclass(frozen=True, slots=True)
class Edit:
    """old, found exactly once in a file, becomes new. Whole lines."""

    file: str
    old: str
    new: str


@dataclass(frozen=True, slots=True)
class Mutant:
    """One bug. breaks: one sentence."""

    name: str
    breaks: str
    edits: tuple[Edit, ...]


def parse(name: str, text: str) -> Mutant:
    """Return the mutant a file describes. ValueError when it is none."""
    said, *files = text.split("\n--- ")
    edits = [_edit(name, *_file(part, hunk)) for part in files for hunk in part.split("\n@@\n")[1:]]
    if not said.strip() or not edits:
        raise ValueError(f"mutant {name}: a sentence and at least one change are needed")
    return Mutant(name, " ".join(said.split()), tuple(edits))


def _file(part: str, hunk: str) -> tuple[str, str]:
    return part.partition("\n")[0], hunk


def _edit(name: str, file: str, hunk: str) -> Edit:
    lines = hunk.strip("\n").split("\n")
    strange = [line for line in lines if line[:1] not in ("-", "+", " ")]
    if strange:
        raise ValueError(f"mutant {name}: {strange[0]!r} begins with neither -, + nor a space")
    old = "".join(f"{line[1:]}\n" for line in lines if line[0] != "+")
    return Edit(file, old, "".join(f"{line[1:]}\n" for line in lines if line[0] != "-"))


MUTANTS: Final = tuple(parse(path.stem, path.read_text()) for path in sorted(FOLDER.glob("*.diff")))
