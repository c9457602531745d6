"""Copies of the product with the simulation beside it, each in a folder of its own, one of its files changed.

A copy is complete: what runs in it imports `cairn` and `tests` from there and from nowhere else (seeds.py asserts that).
"""

from __future__ import annotations

import compileall
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from tests.sim.mutants.table import Mutant

ROOT: Final = Path(__file__).resolve().parents[3]
PACKAGES: Final = ("agent", "controller", "hardware", "net", "proto", "storage")
# Of the tests, what the simulation imports.
_TESTS: Final = ("tests/__init__.py", "tests/unit/agent_kit.py")


class NotThere(Exception):
    """A mutant's old text is not in its file exactly once: the product has changed, and the mutant must follow."""


def changed(mutant: Mutant, root: Path = ROOT) -> dict[str, str]:
    """Return the files a mutant changes, with their new content. Raises NotThere."""
    found: dict[str, str] = {}
    for edit in mutant.edits:
        content = found.get(edit.file) or (root / edit.file).read_text()
        count = content.count(edit.old)
        if count != 1:
            raise NotThere(f"mutant {mutant.name}: its text is {count} times in {edit.file}, not once:\n{edit.old}")
        found[edit.file] = content.replace(edit.old, edit.new)
    return found


def original(folder: Path) -> Path:
    """Copy the product as it is now, compiled."""
    quiet = shutil.ignore_patterns("__pycache__", "*.proto")
    for package in PACKAGES:
        shutil.copytree(ROOT / package, folder / package, ignore=quiet)
    shutil.copytree(ROOT / "tests/sim", folder / "tests/sim", ignore=quiet)
    for name in _TESTS:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, folder / name)
    links = folder / ".dev/cairn"
    links.mkdir(parents=True)
    for package in PACKAGES:
        (links / package).symlink_to(os.path.join("..", "..", package))
    compileall.compile_dir(folder, quiet=2)
    return folder


def copy(of: Path, to: Path, files: Mapping[str, str]) -> Path:
    """Copy a copy, and write these files."""
    shutil.copytree(of, to, symlinks=True)
    for name, content in files.items():
        (to / name).write_text(content)
    return to
