"""What somebody tired sees: interrupted, waiting without an answer, wrong words; and what a program reads."""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cairn.controller.cli import backup, client, transfer
from cairn.controller.cli.output import Progress, document
from cairn.controller.cli.values import distance_text
from cairn.proto.errors import TryAgain
from cairn.proto.v1.cluster_pb2 import GetClusterStatusResponse
from cairn.proto.v1.vm_pb2 import Vm

from tests.unit.cli_cloud import Cloud
from tests.unit.cli_objects import cloud, vm  # noqa: F401
from tests.unit.cli_run import run
from tests.unit.test_cli_golden import verified
from tests.unit.test_cli_image import raw


class Interrupted(Exception):
    """Ctrl-C, as long as it is in the cloud's loop, which it would end."""


def interrupt(*_: Any, **__: Any) -> Any:
    raise Interrupted


@pytest.fixture(autouse=True)
def interrupts(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    wait = cloud.wait

    def run_until_interrupted(work: Any) -> Any:
        try:
            return wait(work)
        except Interrupted:
            raise KeyboardInterrupt from None

    monkeypatch.setattr(cloud, "wait", run_until_interrupted)


@pytest.mark.parametrize(
    ("where", "says"),
    [("checked_digest", "nothing was sent"), ("upload", "the image is not whole: the same command goes on with it")],
)
def test_an_interrupted_upload_is_not_said_to_go_on(
    cloud: Cloud,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    where: str,
    says: str,
) -> None:
    monkeypatch.setattr(transfer, where, interrupt)
    ran = run(cloud, "image", "import", "demo", "--file", str(raw(tmp_path / "r")))
    assert ran.code == 130
    assert ran.err == f"cairn: interrupted; {says}\n"


def test_what_was_sent_goes_on_and_a_look_is_only_interrupted(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    monkeypatch.setattr("cairn.controller.cli.noun.wait_for", interrupt)
    cloud.put("vm", vm("web"))
    assert "what was begun goes on" in run(cloud, "vm", "delete", "web").err
    monkeypatch.setattr(client.Session, "call", interrupt)
    assert run(cloud, "cluster", "status").err == "cairn: interrupted\n"


def test_an_interrupted_restore_says_what_stands_still(
    cloud: Cloud,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from cairn.proto.v1.backup_pb2 import RestorePlan

    async def plan(*_: Any) -> RestorePlan:
        return RestorePlan(cluster="test")

    (tmp_path / "b").write_bytes(b"x")
    monkeypatch.setattr(backup, "_verified", lambda _path: RestorePlan().backup)
    monkeypatch.setattr(backup, "_plan", interrupt)
    assert "nothing was changed" in run(cloud, "cluster", "restore", str(tmp_path / "b"), "--yes").err
    monkeypatch.setattr(backup, "_plan", plan)
    monkeypatch.setattr(backup, "_restore", interrupt)
    said = run(cloud, "cluster", "restore", str(tmp_path / "b"), "--yes").err
    assert "serves and decides nothing: run the same command again" in said


def test_who_waits_for_the_store_is_told_so(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    monkeypatch.setattr(client, "SAY_AFTER_S", 0.0)

    def refuse(_request: Any) -> Any:
        raise TryAgain("the store does not answer: no leader")

    cloud.scripts["ListVms"] += [refuse, refuse]
    cloud.put("vm", vm("web"))
    ran = run(cloud, "vm", "list")
    assert ran.code == 0, ran.err
    assert ran.err.count("the store does not answer: no leader; trying again for 30 s") == 1
    cloud.scripts["ListVms"].append(refuse)
    assert run(cloud, "vm", "list", "-q").err == ""


@pytest.mark.parametrize(
    ("typed", "says"), [("vms", "did you mean vm?"), ("imgae", "did you mean image?"), ("show", "`cairn NOUN VERB [NAME]`")]
)
def test_a_word_that_is_no_noun(cloud: Cloud, typed: str, says: str) -> None:  # noqa: F811
    ran = run(cloud, typed, "list")
    assert ran.code == 2
    assert says in ran.err


@pytest.mark.parametrize("noun", ["vm", "node", "cluster", "volume", "job"])
def test_help_says_whole_sentences(cloud: Cloud, noun: str) -> None:  # noqa: F811
    assert ".." not in run(cloud, noun, "--help").out.replace("[ARGS]...", "")


def test_json_has_zeros_and_always_the_same_order() -> None:
    status = document(GetClusterStatusResponse(say="no node is ready"))
    assert (status["nodes_down"], status["members"], status["nodes_ready"]) == (0, [], 0)
    assert "restored" not in status, "unset is not empty"
    one, other = Vm(id="i-1"), Vm(id="i-2", reconciling=True, labels={"a": "b"})
    other.spec.force = True
    other.status.nics.add(address="10.0.0.1")
    one.spec.cpus = other.spec.cpus = one.status.boots = 1
    first, second = document(one), document(other)
    assert list(first) == list(second)
    assert list(first["spec"]) == list(second["spec"])
    assert first["reconciling"] is False
    assert second["labels"] == {"a": "b"}
    assert second["status"]["nics"][0]["address"] == "10.0.0.1"


def test_what_is_still_to_come_is_not_past() -> None:
    now = datetime(2026, 1, 1, tzinfo=UTC)
    assert distance_text(now + timedelta(hours=2), now) == "in 2h"
    assert distance_text(now - timedelta(hours=2), now) == "2h ago"


def test_a_backup_replaces_no_device(cloud: Cloud, tmp_path: Path) -> None:  # noqa: F811
    """Its file appears by a rename, which root may do over anything."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    ran = run(cloud, "cluster", "backup", "--out", str(pipe))
    assert (ran.code, "is no file" in ran.err) == (2, True)
    assert pipe.is_fifo()


def test_a_full_disk_behind_stdout_is_told_in_a_sentence(cloud: Cloud) -> None:  # noqa: F811
    cloud.put("vm", vm("web"))
    program = "import sys; from cairn.controller.cli.main import main; sys.argv = ['cairn', 'vm', 'list']; main()"
    with Path("/dev/full").open("w") as full:
        ended = subprocess.run(
            [sys.executable, "-c", program], stdout=full, stderr=subprocess.PIPE, text=True, check=False,
            env={**os.environ, **cloud.environment},
        )  # fmt: skip
    assert ended.returncode == 1, ended.stderr
    assert ended.stderr == "cairn: cannot list vm: No space left on device\n"


@pytest.mark.parametrize(("output", "quiet"), [("table", False), ("json", True)])
def test_how_far_a_long_walk_is_is_for_a_persons_terminal(
    cloud: Cloud,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    output: str,
    quiet: bool,
) -> None:
    shown: list[tuple[bool, str, bool]] = []

    def update(progress: Any, text: str, *, live_only: bool = False) -> None:
        shown.append((progress._quiet, text, live_only))

    monkeypatch.setattr(Progress, "update", update)
    cloud.scripts["VerifyAudits"].append(lambda _: verified())
    assert run(cloud, "audit", "verify", "-o", output).code == 0
    # Neither a line of a log nor a spinner when a program reads.
    assert shown == [(quiet, "5,000 of about 12,000 records: chain c1, its file c1.x.audit", True)]
