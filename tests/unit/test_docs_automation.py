"""The program in docs/operations/automation.md runs as it stands, against a real controller over TLS."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.cli_real import RealCloud

CAIRN = [sys.executable, "-c", "from cairn.controller.cli.main import main; main()"]
PAGE = Path(__file__).parents[2] / "docs" / "operations" / "automation.md"


@pytest.fixture
def real(tmp_path: Path):
    cloud = RealCloud(tmp_path)
    cloud.start()
    try:
        yield cloud
    finally:
        cloud.close()


def test_the_example_works_for_a_second_user_on_tcp(real: RealCloud, tmp_path: Path) -> None:
    (program,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    # By a process of its own: the clock of the other tests' command line shows a day long gone.
    certify = [*CAIRN, "cluster", "certify", "--directory", str(real.folder), "--user", "robot"]
    subprocess.run(certify, check=True, capture_output=True)
    again = subprocess.run(certify, capture_output=True, text=True)
    assert (again.returncode, "exists" in again.stderr) == (1, True)
    for command in (["user", "create", "robot", "--service"], ["role", "bind", "member", "--user", "robot", "--cluster"]):
        subprocess.run([*CAIRN, *command], check=True, capture_output=True, env={**os.environ, **real.environment})
    address = next(each for each in real.controllers["c1"].addresses if not each.startswith("unix:"))
    files = {"CAIRN_CA": "ca.crt", "CAIRN_CERT": "user-robot.crt", "CAIRN_KEY": "user-robot.key"}
    environment = {**os.environ, **{name: str(real.folder / file) for name, file in files.items()}, "CAIRN_ENDPOINT": address}
    told = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=60)
    assert told.returncode == 0, told.stderr
    assert "0 VMs run" in told.stdout
    # No image is there yet: refused, by name.
    assert "refused: NOT_FOUND" in told.stdout
    # A controller's certificate is for the address it was made for: no override is needed there.
    plain = program.replace('[("grpc.ssl_target_name_override", "controller.cairn")]', "[]")
    told = subprocess.run([sys.executable, "-c", plain], env=environment, capture_output=True, text=True, timeout=60)
    assert told.returncode == 0, told.stderr
