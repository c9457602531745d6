"""cairn cluster backup, verify, restore against a real controller and real agents on fake drivers."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cairn.proto import kinds

from tests.unit.cli_real import RealCloud
from tests.unit.cli_run import Ran, run
from tests.unit.test_cli_image import qcow2

VM = ("--cpus", "1", "--memory", "128MiB", "--image", "demo", "--subnet", "blue")


def done(cloud: RealCloud, *arguments: str) -> Ran:
    """Run a command that must succeed."""
    ran = run(cloud, *arguments, "--timeout", "60")
    assert ran.code == 0, f"cairn {' '.join(arguments)}\n{ran.out}{ran.err}"
    return ran


def until(condition: Callable[[], bool], what: str) -> None:
    end_s = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end_s, f"waited 30 s for {what}"
        time.sleep(0.1)


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealCloud]:
    """One controller, one node with a guest on it, and a backup of that."""
    folder = tmp_path_factory.mktemp("cloud")
    cloud = RealCloud(folder)
    cloud.start()
    try:
        cloud.do(cloud.join("n1", done(cloud, "node", "token", "create", "--node", "n1").out))
        done(
            cloud, "image", "import", "demo", "--file", str(qcow2(folder / "demo.qcow2")), "--arch", "x86_64", "--replicas", "1"
        )
        done(cloud, "vpc", "create", "demo", "--cidr", "10.1.0.0/16")
        done(cloud, "subnet", "create", "blue", "--vpc", "demo", "--cidr", "10.1.1.0/24")
        done(cloud, "vm", "create", "old", *VM)
        yield cloud
    finally:
        cloud.close()


def test_a_backup_is_written_whole_and_for_its_owner_alone(cloud: RealCloud, tmp_path: Path) -> None:
    out = tmp_path / "cairn.backup"
    before = os.umask(0)
    try:
        said = done(cloud, "cluster", "backup", "--out", str(out)).err
    finally:
        os.umask(before)
    assert "cluster 'cairn' at revision" in said
    assert stat.S_IMODE(out.stat().st_mode) == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["cairn.backup"]
    shown = done(cloud, "cluster", "verify", str(out))
    assert "whole and unchanged" in shown.out
    assert {"kind": "vm", "count": "1"} in done(cloud, "cluster", "verify", str(out), "-o", "json").json["counts"]
    alone = run(cloud, "cluster", "verify", str(out), CAIRN_ENDPOINT="127.0.0.1:1")
    assert alone.code == 0


def test_a_folder_keeps_the_newest_backups(cloud: RealCloud, tmp_path: Path) -> None:
    """What the playbook's timer runs. Files of other names are nobody's business."""
    for name in ("cairn-20200101T000000Z.backup", "cairn-20210101T000000Z.backup", "mine.backup"):
        (tmp_path / name).write_text("old")
    done(cloud, "cluster", "backup", "--out", str(tmp_path), "--keep", "2")
    left = sorted(path.name for path in tmp_path.iterdir())
    assert len(left) == 3
    assert "cairn-20210101T000000Z.backup" in left
    assert "mine.backup" in left
    (new,) = set(left) - {"cairn-20210101T000000Z.backup", "mine.backup"}
    assert "whole and unchanged" in done(cloud, "cluster", "verify", str(tmp_path / new)).out
    assert run(cloud, "cluster", "backup", "--out", str(tmp_path / "file"), "--keep", "2").code == 2


def test_a_backup_goes_to_standard_output(cloud: RealCloud, tmp_path: Path) -> None:
    out = tmp_path / "piped.backup"
    with out.open("wb") as file:
        command = [sys.executable, "-c", "from cairn.controller.cli.main import main; main()", "cluster", "backup"]
        subprocess.run(command, env={**os.environ, **cloud.environment}, stdout=file, check=True, timeout=60)
    assert "whole and unchanged" in done(cloud, "cluster", "verify", str(out)).out


def test_a_file_that_is_none_is_refused_with_what_to_do(cloud: RealCloud, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong"
    wrong.write_bytes(b"cairn-backup 1\n")
    for verb in ("verify", "restore"):
        ran = run(cloud, "cluster", verb, str(wrong))
        assert ran.code == 1
        assert "next: use another backup" in ran.err
    assert run(cloud, "cluster", "verify", str(tmp_path / "none")).code == 2


def test_a_restore_brings_the_old_state_and_stops_no_guest(cloud: RealCloud, tmp_path: Path) -> None:
    out, host = tmp_path / "cairn.backup", cloud.nodes["n1"].host
    done(cloud, "cluster", "backup", "--out", str(out))
    (old,) = host.boots
    done(cloud, "subnet", "create", "later", "--vpc", "demo", "--cidr", "10.1.2.0/24")
    plan = done(cloud, "cluster", "restore", str(out), "--plan").out
    assert "subnet: 0 added, 1 removed, 0 changed, 1 the same" in plan
    unasked = run(cloud, "cluster", "restore", str(out))
    assert unasked.code == 2
    assert "--yes" in unasked.err
    assert "later" in done(cloud, "subnet", "list").out
    said = done(cloud, "cluster", "restore", str(out), "--yes").err
    assert "restored" in said
    assert "later" not in done(cloud, "subnet", "list").out
    controller = cloud.controllers["c1"]
    until(lambda: controller.cache.view.count(kinds.NODE_SESSION) == 1, "the node to connect again")
    until(lambda: "RUNNING" in done(cloud, "vm", "list").out, "the guest to be known as running")
    assert host.boots == [old]
    assert host.guests[old].live is not None
    status = done(cloud, "cluster", "status").out
    assert "Restored" in status
    done(cloud, "subnet", "create", "later", "--vpc", "demo", "--cidr", "10.1.2.0/24")


def test_what_came_after_the_backup_is_listed_and_adopted(cloud: RealCloud, tmp_path: Path) -> None:
    """A VM made since runs on and is adopted whole; one deleted since is not brought back; one stopped since stays off."""
    out, host = tmp_path / "cairn.backup", cloud.nodes["n1"].host
    done(cloud, "vm", "create", "doomed", *VM)
    done(cloud, "vm", "create", "sleeper", *VM)
    done(cloud, "cluster", "backup", "--out", str(out))
    made = done(cloud, "vm", "create", "young", *VM, "-o", "json").json
    stray = done(cloud, "vm", "create", "stray", *VM, "-o", "json").json
    data = done(cloud, "volume", "create", "data", "--size", "1GiB", "-o", "json").json
    done(cloud, "volume", "attach", "data", "--vm", "young")
    doomed = done(cloud, "vm", "show", "doomed", "-o", "json").json
    done(cloud, "vm", "delete", "doomed", "--purge")
    done(cloud, "vm", "stop", "sleeper")
    boots = list(host.boots)
    done(cloud, "cluster", "restore", str(out), "--yes")
    controller = cloud.controllers["c1"]
    until(lambda: controller.cache.view.count(kinds.NODE_HEARD) == 1, "the node to say what it holds")
    assert host.boots == boots
    assert doomed["id"] not in host.guests
    listed = {each["key"]: each for each in done(cloud, "cluster", "adopt", "-o", "json").json}
    assert listed[f"vm/{made['id']}"]["name"] == "young"
    assert listed[f"vm/{doomed['id']}"]["removed"]
    assert "better than the records: `cairn cluster adopt` lists them" in done(cloud, "cluster", "status").out
    assert "young" not in done(cloud, "vm", "list").out
    keys = (f"vm/{stray['id']}", f"volume/{stray['spec']['root_volume']}")
    shown = done(cloud, "node", "show", "n1").out
    assert f"vm/{stray['id']}" in shown
    assert "stray: its guest runs" in shown
    planned = done(cloud, "node", "forget", "n1", *keys, "--plan").out
    assert planned.startswith(f"would remove vm/{stray['id']} stray: ")
    assert run(cloud, "node", "forget", "n1", *keys).code == 2
    refused = run(cloud, "node", "forget", "n1", f"vm/{doomed['id']}", "--yes")
    assert "there is a record" in refused.err
    assert stray["id"] in host.guests
    done(cloud, "node", "forget", "n1", *keys, "--yes")
    until(lambda: stray["id"] not in host.guests, "the forgotten guest to be gone")
    until(lambda: keys[1] not in str(done(cloud, "cluster", "adopt", "-o", "json").json), "its volume to be gone")
    done(cloud, "cluster", "adopt", "--all")
    assert host.boots == boots
    young = done(cloud, "vm", "show", "young", "-o", "json").json
    assert young["id"] == made["id"]
    assert young["status"]["nics"][0]["address"] == made["status"]["nics"][0]["address"]
    assert young["spec"]["volumes"] == [data["id"]]
    until(lambda: "RUNNING" in done(cloud, "vm", "list", "--filter", 'name = "young"').out, "the adopted VM to be RUNNING")
    assert "STOPPED" in done(cloud, "vm", "list", "--filter", 'name = "sleeper"').out
    until(lambda: run(cloud, "vm", "show", doomed["id"]).code == 4, "what was deleted since to be erased")
    until(lambda: not done(cloud, "cluster", "adopt", "-o", "json").json, "nothing to be left to adopt")
    assert host.boots == boots
    done(cloud, "vm", "start", "sleeper")
    done(cloud, "vm", "stop", "young")
    done(cloud, "vm", "start", "young")
