"""A short run of the real-life twin: the simulation's users, faults and checkers on the lab. `make twin` runs longer."""

from __future__ import annotations

from tests.lab.lab import Lab
from tests.twin.__main__ import inside

MINUTES = 1.6


def test_nothing_is_found_under_load_and_faults(lab: Lab) -> None:
    played = inside(lab, "1", MINUTES, capture_output=True, text=True)
    story = played.stdout + played.stderr
    assert played.returncode == 0, story[-8000:]
    assert "violations: 0" in story
