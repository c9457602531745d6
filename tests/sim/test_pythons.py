"""A seed tells the same story on every Python that is supported, whatever the order of sets and dictionaries of strings."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path
from shutil import which

import pytest

ROOT = Path(__file__).parent.parent.parent
SEEDS = (1, 2, 3, 4, 5, 6)
OTHERS = ("3.12", "3.13")
PRINT_HASHES = f"""
from tests.sim.loop import traced
from tests.sim.swarm import judge_seed
for seed in {SEEDS}:
    with traced() as trace:
        judge_seed(seed)
    print("hash", seed, trace.hash)
"""


def hashes(python: Path | str, **environment: str) -> list[str]:
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / '.dev'}:{ROOT}", **environment}
    command = [str(python), "-c", PRINT_HASHES]
    ran = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr[-2000:]
    return [line for line in ran.stdout.splitlines() if line.startswith("hash")]


def interpreter(version: str) -> str:
    """Return the path of an interpreter of that version, also one that pyenv keeps; empty: none is here."""
    if found := which(f"python{version}"):
        works = subprocess.run([found, "-c", ""], capture_output=True, check=False).returncode == 0
        if works:
            return found
    kept = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    found_kept = sorted(kept.glob(f"{version}.*/bin/python"))
    return str(found_kept[-1]) if found_kept else ""


def environment_of(version: str, python: str) -> Path:
    """Return an interpreter that has what the simulation needs; made by pip in .dev when it is not there, or needs more."""
    folder = ROOT / ".dev" / "pythons" / version
    done = folder / "done"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needs = "\n".join(project["dependencies"])
    if not done.exists() or done.read_text() != needs:
        subprocess.run([python, "-m", "venv", "--clear", str(folder)], check=True)
        pip = [str(folder / "bin" / "pip"), "install", "-q", "--disable-pip-version-check", "--only-binary", ":all:"]
        subprocess.run([*pip, *project["dependencies"]], check=True, capture_output=True)
        done.write_text(needs)
    return folder / "bin" / "python"


# As fast as this machine is while others use it, too.
pytestmark = pytest.mark.timeout(1200)


@pytest.fixture(scope="module")
def expected() -> list[str]:
    found = hashes(sys.executable)
    assert len(set(found)) == len(SEEDS)
    return found


@pytest.mark.parametrize("hash_seed", ["1", "4711"])
def test_the_order_of_sets_decides_nothing(expected: list[str], hash_seed: str) -> None:
    assert hashes(sys.executable, PYTHONHASHSEED=hash_seed) == expected


@pytest.mark.slow
@pytest.mark.parametrize("version", OTHERS)
def test_every_python_tells_the_same_story(expected: list[str], version: str) -> None:
    python = interpreter(version)
    if not python:
        pytest.skip(f"no Python {version} is on this machine")
    assert hashes(environment_of(version, python)) == expected
