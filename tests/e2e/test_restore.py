"""The control plane is put back to an older backup: guests answer throughout, and what came after is a person's to decide."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.e2e.conftest import create, wait_state
from tests.e2e.test_faults import qemu_pids
from tests.e2e.test_walk import address
from tests.lab.demo import ping_from
from tests.lab.hosts import wait_until
from tests.lab.lab import Lab

PINGS = 40


@contextmanager
def pinged(lab: Lab, watcher: str, targets: list[str]) -> Iterator[None]:
    """Ping every target each second from inside a guest, meanwhile and until all were sent; none may stay unanswered."""
    logs = [f"/tmp/ping-{number}" for number in range(len(targets))]
    begin = " ".join(f"ping -c {PINGS} {target} > {log} 2>&1 &" for target, log in zip(targets, logs, strict=True))
    lab.console(watcher, f"{begin} echo beg''un", until="begun")
    yield
    waits = "; ".join(f"until grep -q transmitted {log}; do sleep 1; done; grep transmitted {log}" for log in logs)
    said = lab.console(watcher, f"{waits}; echo all-do''ne", until="all-done", timeout_s=PINGS + 60.0)
    assert said.count(f"{PINGS} packets transmitted, {PINGS} packets received, 0% packet loss") == len(targets), said


def processes(lab: Lab) -> dict[str, str]:
    return {f"{host.name}/{vm}": pid for host in lab.hosts for vm, pid in qemu_pids(host).items()}


def test_guests_answer_throughout_a_restore_and_what_came_after_is_listed(lab: Lab, vms: list[str], tmp_path: Path) -> None:
    backup = tmp_path / "cairn.backup"
    create(lab, vms, "watcher", "--node", "n1")
    steady = create(lab, vms, "steady", "--node", "n2")
    create(lab, vms, "doomed", "--node", "n3")
    doomed = lab.json("vm", "show", "doomed")["id"]
    lab.cairn("cluster", "backup", "--out", str(backup))
    assert "whole and unchanged" in lab.cairn("cluster", "verify", str(backup)).stdout
    lab.cairn("subnet", "create", "since", "--vpc", "demo", "--cidr", "10.1.9.0/24")
    young = create(lab, vms, "young", "--node", "n3", subnet="since")
    create(lab, vms, "stray", "--node", "n2")
    made = {name: lab.json("vm", "show", name) for name in ("young", "stray")}
    lab.cairn("vm", "delete", "doomed", "--purge")
    for each in (steady, young):
        wait_until("guests to have booted", lambda each=each: answers(lab, address(each)), 240.0, every_s=1.0)
    before = processes(lab)
    with pinged(lab, "watcher", [address(steady), address(young)]):
        lab.cairn("cluster", "restore", str(backup), "--yes")
        wait_until("all nodes to be ready", lambda: ready(lab) == 3, every_s=0.5)
        wait_until("what came after to be listed", lambda: listed(lab).keys() >= {f"vm/{made['young']['id']}"}, every_s=0.5)
        wait_until("what was deleted to be listed", lambda: f"vm/{doomed}" in listed(lab), every_s=0.5)
    assert processes(lab) == before, "nothing was stopped, started, or started again"
    known = listed(lab)
    assert known[f"vm/{doomed}"]["removed"]
    assert {"watcher", "steady"} <= names(lab)
    assert not {"young", "stray"} & names(lab)
    decide(lab, made, doomed)
    after = processes(lab)
    stray = f"n2/{made['stray']['id']}"
    assert after == {vm: pid for vm, pid in before.items() if vm != stray}
    assert wait_state(lab, "young", "RUNNING")["nics"] == made["young"]["status"]["nics"]
    ping_from(lab, "watcher", address(young))
    ping_from(lab, "young", address(steady))
    lab.cairn("vm", "stop", "young")
    lab.cairn("vm", "start", "young")


def decide(lab: Lab, made: dict[str, Any], doomed: str) -> None:
    """Adopt one that was made since, remove the other, and let the deleted one be deleted."""
    lab.cairn("cluster", "adopt", "young")
    # Its network was made since, too, and comes with it; its name no node knows.
    lab.cairn("subnet", "rename", made["young"]["status"]["nics"][0]["subnet"], "since")
    stray = made["stray"]
    lab.cairn("node", "forget", "n2", f"vm/{stray['id']}", f"volume/{stray['spec']['root_volume']}", "--yes")
    wait_until("the forgotten guest to be gone", lambda: f"n2/{stray['id']}" not in processes(lab), every_s=0.5)
    lab.cairn("cluster", "adopt", f"vm/{doomed}")
    wait_until("nothing to be left to decide", lambda: not listed(lab), every_s=0.5)


def answers(lab: Lab, target: str) -> bool:
    return ", 0% packet loss" in lab.console("watcher", f"ping -c 3 -W 2 {target}", until="packet loss", timeout_s=60.0)


def ready(lab: Lab) -> int:
    return sum(node["status"]["state"] == "STATE_READY" for node in lab.json("node", "list"))


def listed(lab: Lab) -> dict[str, dict[str, bool]]:
    return {each["key"]: each for each in lab.json("cluster", "adopt")}


def names(lab: Lab) -> set[str]:
    return {vm["name"] for vm in lab.json("vm", "list")}
