"""Finds the first seed that a bug makes fail: one that fails with the bug, and goes well without it.

    with Hunt() as hunt:
        caught = hunt.catch(mutant, seeds=300)      # .seed, .checker, .failure; seed None: it got away

A seed that fails with the bug is played without it, too, and counts only if it goes well then; what that gave is remembered for
all mutants (`trusted`: believe that the product passes every seed). Thread-safe: each copy is played by a process of its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from tests.sim.mutants import copies
from tests.sim.mutants.table import Mutant


@dataclass(frozen=True, slots=True)
class Caught:
    """What became of a mutant."""

    mutant: Mutant
    # None: every seed goes as well with it as without.
    seed: int | None = None
    checker: str = ""
    failure: str = ""
    seconds: float = 0.0
    # Seeds that fail without it, too.
    ill: tuple[int, ...] = field(default_factory=tuple)


class Hunt:
    """A copy of the product as it is now, and a changed copy per mutant for as long as it is hunted."""

    def __init__(self, *, trusted: bool = False) -> None:
        self._trusted = trusted
        self._folder = tempfile.TemporaryDirectory(prefix="cairn-mutants-")
        self._original = copies.original(Path(self._folder.name) / "original")
        # Seed -> whether the product as it is fails it.
        self._ill: dict[int, bool] = {}
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self._folder.cleanup()

    def catch(self, mutant: Mutant, seeds: int) -> Caught:
        """Play seeds until one catches it. Raises NotThere, RuntimeError."""
        begin_s = time.monotonic()
        with tempfile.TemporaryDirectory(prefix=f"{mutant.name}-", dir=self._folder.name) as folder:
            copy = copies.copy(self._original, Path(folder) / "copy", copies.changed(mutant, self._original))
            ill: list[int] = []
            first = 1
            while first <= seeds:
                found = _play(copy, first, seeds, self._known_ill())
                if not found:
                    break
                if self._fails_anyway(found["seed"]):
                    ill.append(found["seed"])
                    first = found["seed"] + 1
                    continue
                seconds = time.monotonic() - begin_s
                return Caught(mutant, found["seed"], found["kind"], found["failure"], seconds, tuple(ill))
            return Caught(mutant, seconds=time.monotonic() - begin_s, ill=tuple(ill))

    def _fails_anyway(self, seed: int) -> bool:
        if self._trusted:
            return False
        with self._lock:
            if seed not in self._ill:
                self._ill[seed] = bool(_play(self._original, seed, seed, []))
            return self._ill[seed]

    def _known_ill(self) -> list[int]:
        with self._lock:
            return [seed for seed, fails in self._ill.items() if fails]


def _play(copy: Path, first: int, last: int, left_out: Sequence[int]) -> dict[str, Any]:
    """Play seeds in a copy until one fails; return what it told. RuntimeError when they cannot be played there."""
    but = ",".join(str(seed) for seed in left_out)
    command = [sys.executable, "-m", "tests.sim.mutants.seeds", str(first), str(last), "--but", but]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(copy), str(copy / ".dev")))}
    done = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"seeds could not be played in {copy}: {done.stderr.strip()[-2000:]}")
    told: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return told
