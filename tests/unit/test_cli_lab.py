"""`cairn lab --simulated` as a person runs it: without what only a real node has, and with nothing left after it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cairn.controller.cli import lab as lab_command
from cairn.controller.cli.main import cairn
from click.testing import CliRunner

from tests.lab.hosts import processes_naming, wait_until

CAIRN = [sys.executable, "-c", "from cairn.controller.cli.main import main; main()"]
# root here keeps its files and loses its powers; anybody else has none.
POWERLESS = ["setpriv", "--inh-caps=-all", "--bounding-set=-all", "--no-new-privs", "--"] if os.geteuid() == 0 else []
REAL_PARTS = ("libvirt", "libvirt_qemu", "libvirtaio", "pyroute2", "nftables")
START_S = 60.0


class Running:
    """The command in a process, everything it makes below one folder."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.folder = folder
        (folder / "modules").mkdir()
        for name in REAL_PARTS:
            (folder / "modules" / f"{name}.py").write_text(f"raise ImportError('{name} is for real nodes')\n")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("CAIRN_", "XDG_"))}
        self.environment = {
            **kept, "TMPDIR": str(folder), "HOME": str(folder), "PYTHONPATH": str(folder / "modules"), "COLUMNS": "100",
        }  # fmt: skip
        with (folder / "said").open("wb") as said:
            self.process = subprocess.Popen(
                [*POWERLESS, *CAIRN, "lab", "--simulated", *options],
                stdin=subprocess.DEVNULL, stdout=said, stderr=said, env=self.environment,
            )  # fmt: skip
        wait_until("the lab to be up", lambda: "Ctrl-C" in self.said or self.process.poll() is not None, START_S)
        assert self.process.poll() is None, self.said
        config = next(line for line in self.said.splitlines() if "CAIRN_CONFIG" in line).partition("=")[2]
        self.config, self.environment["CAIRN_CONFIG"] = Path(config), config

    @property
    def said(self) -> str:
        return (self.folder / "said").read_text()

    def cairn(self, *arguments: str, **keywords: Any) -> str:
        """Run a command against it that must succeed; return its data."""
        ran = subprocess.run(
            [*CAIRN, *arguments], capture_output=True, text=True, check=False, timeout=60, env=self.environment, **keywords
        )
        assert ran.returncode == 0, f"cairn {' '.join(arguments)}\n{ran.stdout}{ran.stderr}"
        return ran.stdout

    def json(self, *arguments: str) -> Any:
        return json.loads(self.cairn(*arguments, "-o", "json"))

    def children(self, module: str = "cairn.") -> list[int]:
        """The processes that work on its files."""
        return [pid for pid, command in processes_naming(str(self.config.parent)).items() if f"-m {module}" in command]

    def end(self, number: int) -> int:
        """Send a signal and return the exit code."""
        self.process.send_signal(number)
        return self.process.wait(30)


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Running]:
    running = Running(tmp_path, "--nodes", "10")
    try:
        yield running
    finally:
        running.process.kill()
        running.process.wait()


def test_a_day_in_a_simulated_cloud(lab: Running) -> None:
    nodes = lab.json("node", "list")
    assert [node["name"] for node in nodes] == [f"n{number:02d}" for number in range(1, 11)]
    assert {node["status"]["state"] for node in nodes} == {"STATE_READY"}
    assert {node["status"]["facts"]["arch"] for node in nodes} == {"x86_64", "aarch64"}
    for name, arch in (("demo", "x86_64"), ("arm", "aarch64")):
        lab.cairn("image", "import", name, "--file", str(lab.config.parent / "demo.raw"), "--arch", arch, "--replicas", "10")
    lab.cairn("vpc", "create", "demo", "--cidr", "10.1.0.0/16")
    lab.cairn("subnet", "create", "blue", "--vpc", "demo", "--cidr", "10.1.1.0/24")
    size = ("--cpus", "1", "--memory", "1GiB", "--subnet", "blue")
    made = lab.json("vm", "create", "web", *size, "--image", "demo", "--count", "12")
    assert {vm["status"]["state"] for vm in made} == {"STATE_RUNNING"}
    assert len({vm["status"]["nics"][0]["address"] for vm in made}) == 12
    assert lab.json("vm", "create", "armed", *size, "--image", "arm")["status"]["node"] == "n10"
    assert "web-7\n" in lab.cairn("vm", "console", "web-7", input="hostname\n")
    node = next(vm["status"]["node"] for vm in lab.json("vm", "list") if vm["name"] == "web-7")
    assert node in lab.cairn("vm", "explain", "web-7")

    before = connected(lab)
    os.kill(lab.children("cairn.agent.fleet")[0], signal.SIGKILL)
    wait_until("its nodes to come back", lambda: len(connected(lab).items() - before.items()) == 5)
    assert "its 5 nodes are started again" in lab.said
    wait_until("the guests to run again", lambda: lab.json("cluster", "status").get("vms_running") == 13)

    assert lab.end(signal.SIGTERM) == 0, lab.said
    assert "Traceback" not in lab.said
    assert processes_naming(str(lab.folder)) == {}
    assert sorted(path.name for path in lab.folder.iterdir()) == ["modules", "said"], "no file is left, no context was written"


def connected(lab: Running) -> dict[str, str]:
    """Since when each node that answers does."""
    nodes = lab.json("node", "list")
    return {node["name"]: node["status"]["connect_time"] for node in nodes if node["status"]["state"] == "STATE_READY"}


def test_kill_9_ends_the_children_and_the_next_lab_clears_up(lab: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(lab.folder))
    lab_command.sweep()
    assert len(lab.children()) == 3
    assert lab.config.exists(), "a living lab is left alone"
    lab.end(signal.SIGKILL)
    wait_until("the children to end", lambda: not processes_naming(str(lab.folder)))
    assert lab.config.exists()
    lab_command.sweep()
    assert not lab.config.parent.exists()


def test_without_its_controller_the_lab_ends(lab: Running) -> None:
    (controller,) = lab.children("cairn.controller.standalone")
    os.kill(controller, signal.SIGKILL)
    assert lab.process.wait(30) == 1
    assert "cannot bring up a simulated cloud: the controller has ended" in lab.said
    assert "Traceback" not in lab.said
    assert processes_naming(str(lab.folder)) == {}


def test_files_are_kept_where_they_are_wanted(tmp_path: Path) -> None:
    running = Running(tmp_path, "--nodes", "1", "--folder", str(tmp_path / "here"))
    assert running.config == tmp_path / "here" / "config.toml"
    assert running.end(signal.SIGINT) == 0
    assert (tmp_path / "here" / "nodes" / "n1" / "ledger" / "ledger").exists()
    again = CliRunner().invoke(cairn, ["lab", "--simulated", "--folder", str(tmp_path / "here")])
    assert (again.exit_code, "is not empty" in again.stderr) == (1, True)


def test_a_lab_of_real_parts_is_elsewhere() -> None:
    ran = CliRunner().invoke(cairn, ["lab"])
    assert ran.exit_code == 2
    assert "make up" in ran.stderr
