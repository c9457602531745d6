"""A short run of the real-life twin: the simulation's users, faults and checkers on the lab. `make twin` runs longer."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.lab.lab import Lab
from tests.twin.__main__ import inside

MINUTES = 1.6


# More than all its own limits, which tell more.
@pytest.mark.timeout(900)
def test_nothing_is_found_under_load_and_faults(lab: Lab, tmp_path: Path) -> None:
    told = tmp_path / "story"
    try:
        with told.open("w") as file:
            played = inside(lab, "1", MINUTES, stdout=file, stderr=subprocess.STDOUT)
    finally:
        # Also when the time ran out.
        print(told.read_text()[-12000:])
    assert played.returncode == 0
    assert "violations: 0" in told.read_text()
