"""Waiting: until it runs, until it fails, until it is gone, until time is up, across the death of a controller."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

from cairn.proto.errors import OutOfRange
from cairn.proto.v1.job_pb2 import Job

from tests.unit.cli_cloud import Cloud
from tests.unit.cli_objects import cloud, peers, vm  # noqa: F401
from tests.unit.cli_run import Ran, run

CREATE = ("vm", "create", "web", "--image", "demo")


def life(cloud: Cloud, *states: tuple[str, str]) -> None:  # noqa: F811
    """Let every VM go through these states once it is made."""

    async def live(created: Any) -> None:
        for state, say in states:
            await cloud.advance("vm", created.id, state, say)

    cloud.after_create["vm"] = live


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.01)


def in_background(cloud: Cloud, *arguments: str) -> Callable[[], Ran]:  # noqa: F811
    """Start a command; the function returned waits for its end."""
    ran: list[Ran] = []
    thread = threading.Thread(target=lambda: ran.append(run(cloud, *arguments)))
    thread.start()

    def end() -> Ran:
        thread.join(30)
        return ran[0]

    return end


def test_create_returns_when_it_runs(cloud: Cloud) -> None:  # noqa: F811
    life(
        cloud, ("PENDING", "waits to be placed"), ("STARTING", "n1 is fetching image demo (40 %)"), ("RUNNING", "running on n1")
    )
    ran = run(cloud, *CREATE)
    assert ran.code == 0, ran.err
    assert "VM web: running on n1" in ran.err
    assert "RUNNING" in ran.out
    assert run(cloud, "vm", "create", "db", "--image", "demo", "-q").err == ""


def test_create_fails_as_soon_as_it_failed(cloud: Cloud) -> None:  # noqa: F811
    life(cloud, ("STARTING", "n1 prepares it"), ("FAILED", "n1: QEMU ended: exit 1"))
    ran = run(cloud, *CREATE)
    assert ran.code == 1
    assert "cannot create vm web: n1: QEMU ended: exit 1" in ran.err
    assert "cairn event list" in ran.err


def test_timeout_tells_what_is_waited_for(cloud: Cloud) -> None:  # noqa: F811
    life(cloud, ("PENDING", "no node has 2 GiB of memory free"))
    ran = run(cloud, *CREATE, "--timeout", "0.5")
    assert ran.code == 3
    assert "VM web is not running after 0.5 s; it is still going on: no node has 2 GiB of memory free" in ran.err


def test_no_wait_returns_at_once(cloud: Cloud) -> None:  # noqa: F811
    life(cloud, ("PENDING", "waits"))
    assert run(cloud, *CREATE, "--no-wait").code == 0
    assert not cloud.requests("WatchVms")


def test_a_state_older_than_the_change_is_not_believed(cloud: Cloud) -> None:  # noqa: F811
    """The VM is FAILED from before; the watch's first picture is a stale one from another controller."""
    cloud.do(cloud.add("vm", vm(state="FAILED", say="it crashed")))

    def start(_request: Any) -> Any:
        answer = vm(state="FAILED", say="it crashed")
        answer.revision = cloud.revision + 1
        return answer

    cloud.scripts["StartVm"].append(start)
    end = in_background(cloud, "vm", "start", "web", "--timeout", "20")

    async def go() -> None:
        await until(lambda: cloud.requests("WatchVms"))
        cloud.objects["vm"]["i-0000web1"].revision = cloud.revision + 1
        await cloud.advance("vm", "i-0000web1", "STARTING", "n2 was asked to start it")
        await cloud.advance("vm", "i-0000web1", "RUNNING", "running on n2")

    cloud.do(go())
    ran = end()
    assert ran.code == 0, ran.err


def test_waiting_survives_the_death_of_a_controller(peers: Cloud) -> None:  # noqa: F811
    end = in_background(peers, *CREATE, "--timeout", "25")

    async def kill_the_one_in_use() -> None:
        await until(lambda: peers.requests("WatchVms"))
        (created,) = peers.objects["vm"].values()
        await peers.advance("vm", created.id, "STARTING", "n1 prepares it")
        await peers.kill(0)
        await until(lambda: len(peers.requests("WatchVms")) > 1)
        await peers.advance("vm", created.id, "RUNNING", "running on n1")

    peers.do(kill_the_one_in_use())
    ran = end()
    assert ran.code == 0, ran.err
    assert peers.requests("WatchVms")[-1].after_revision > 0


def test_calls_go_to_the_controller_that_is_left(peers: Cloud) -> None:  # noqa: F811
    peers.do(peers.kill(0))
    assert run(peers, "vm", "list").code == 0


def test_a_watch_too_far_behind_starts_over(cloud: Cloud) -> None:  # noqa: F811
    def too_old(_request: Any) -> None:
        raise OutOfRange("changes are no longer kept")

    cloud.scripts["WatchVms"].append(too_old)
    life(cloud, ("RUNNING", "running on n1"))
    assert run(cloud, *CREATE).code == 0
    assert [request.after_revision for request in cloud.requests("WatchVms")] == [0, 0]


def test_delete_waits_until_it_is_gone(cloud: Cloud) -> None:  # noqa: F811
    cloud.do(cloud.add("vm", vm()))
    cloud.scripts["DeleteVm"].append(lambda _request: vm(state="DELETING"))
    end = in_background(cloud, "vm", "delete", "web", "--purge")

    async def go() -> None:
        await until(lambda: cloud.requests("WatchVms"))
        await cloud.advance("vm", "i-0000web1", "DELETED", "deleted; kept until 12:00 UTC")
        cloud.remove("vm", "i-0000web1")

    cloud.do(go())
    ran = end()
    assert (ran.code, ran.out) == (0, "")
    assert "VM web is gone" in ran.err
    assert cloud.requests("DeleteVm")[0].purge


def test_soft_delete_ends_with_the_way_back(cloud: Cloud) -> None:  # noqa: F811
    cloud.do(cloud.add("vm", vm()))

    async def delete(_request: Any) -> Any:
        await cloud.advance("vm", "i-0000web1", "DELETED", "deleted; `cairn vm undelete i-0000web1` brings it back")
        return cloud.objects["vm"]["i-0000web1"]

    cloud.scripts["DeleteVm"].append(delete)
    ran = run(cloud, "vm", "delete", "web")
    assert ran.code == 0
    assert "cairn vm undelete i-0000web1" in ran.err


def test_vm_wait(cloud: Cloud) -> None:  # noqa: F811
    cloud.do(cloud.add("vm", vm()))
    assert run(cloud, "vm", "wait", "web").code == 0
    assert run(cloud, "vm", "wait", "web", "--for", "stopped", "--timeout", "0.3").code == 3
    assert run(cloud, "vm", "wait", "nope", "--for", "deleted").code == 0
    assert run(cloud, "vm", "wait", "nope").code == 4
    end = in_background(cloud, "vm", "wait", "web", "--for", "running", "--no-wait")
    assert end().code == 0


def job(state: str, *, done: bool = False, failed: bool = False, error: str = "") -> Job:
    made = Job(id="j-1")
    made.spec.kind = "import_image"
    made.status.state, made.status.done, made.status.failed, made.status.error = state, done, failed, error
    made.status.say = state
    return made


def test_job_watch_ends_with_the_job(cloud: Cloud) -> None:  # noqa: F811
    cloud.do(cloud.add("job", job("upload")))
    end = in_background(cloud, "job", "watch", "j-1")

    async def fail() -> None:
        await until(lambda: cloud.requests("WatchJobs"))
        await cloud.add("job", job("failed", done=True, failed=True, error="the checksum is wrong"))

    cloud.do(fail())
    ran = end()
    assert ran.code == 1
    assert "the checksum is wrong" in ran.err
    cloud.do(cloud.add("job", job("done", done=True)))
    assert run(cloud, "job", "watch", "j-1").code == 0


def test_list_watch_shows_changes_until_interrupted(cloud: Cloud) -> None:  # noqa: F811
    cloud.do(cloud.add("vm", vm()))
    command = [sys.executable, "-c", "from cairn.controller.cli.main import main; main()", "vm", "list", "--watch"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, **cloud.environment}
    )
    assert process.stdout is not None
    lines = [process.stdout.readline() for _ in range(2)]
    cloud.do(cloud.advance("vm", "i-0000web1", "STOPPED", "stopped"))
    lines.append(process.stdout.readline())
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=20)
    assert ["STATE" in lines[0], "RUNNING" in lines[1], "STOPPED" in lines[2]] == [True] * 3
    assert process.returncode == 130
    assert "Traceback" not in said
