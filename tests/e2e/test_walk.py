"""The walk a newcomer makes: create, look, ping, talk, delete."""

from __future__ import annotations

import json
from pathlib import Path

from tests.e2e.conftest import create, status, wait_state
from tests.lab.demo import ping_from
from tests.lab.hosts import wait_until
from tests.lab.lab import Lab


def nodes_of(lab: Lab) -> dict[str, str]:
    return {node["name"]: node["id"] for node in lab.json("node", "list")}


def test_two_guests_on_two_nodes_ping_each_other_and_route(lab: Lab, vms: list[str]) -> None:
    lab.cairn("subnet", "create", "green", "--vpc", "demo", "--cidr", "10.1.2.0/24")
    left = create(lab, vms, "left")
    right = create(lab, vms, "right")
    routed = create(lab, vms, "routed", subnet="green")
    assert left["node"] != right["node"]
    assert left["state"] == right["state"] == "STATE_RUNNING"
    ping_from(lab, "left", address(right))
    ping_from(lab, "right", address(left))
    ping_from(lab, "left", address(routed))
    assert "hello from right" in lab.console("left", f"wget -qO- http://{address(right)}/", until="hello from right")
    # By name: the search domain, the resolver at the gateway, and what left's node was told of right.
    assert "hello from right" in lab.console("left", "wget -qO- http://right/", until="hello from right")
    said = lab.console("left", "nslookup right.demo.cairn.internal; echo en''d", until="end")
    assert address(right) in said
    said = lab.console("left", "wget -qO- http://169.254.169.254/latest/meta-data/hostname; echo; echo en''d", until="end")
    assert "left" in said
    for name in ("left", "right", "routed"):
        lab.cairn("vm", "delete", name, "--purge")
    lab.cairn("subnet", "delete", "green")


def address(state: dict[str, object]) -> str:
    nics = state["nics"]
    assert isinstance(nics, list)
    return str(nics[0]["address"])


def test_overlapping_vpcs_do_not_see_each_other(lab: Lab, vms: list[str]) -> None:
    lab.cairn("vpc", "create", "other", "--cidr", "10.1.0.0/16")
    lab.cairn("subnet", "create", "other-blue", "--vpc", "other", "--cidr", "10.1.1.0/24")
    mine = create(lab, vms, "mine")
    alone = create(lab, vms, "alone", subnet="other-blue=10.1.1.77")
    assert address(alone) == "10.1.1.77"
    said = lab.console("mine", "ping -c 2 -W 1 10.1.1.77", until="packet loss")
    assert "100% packet loss" in said
    assert address(mine) != address(alone)
    for name in ("mine", "alone"):
        lab.cairn("vm", "delete", name, "--purge")
    wait_until("the port to be gone", lambda: not lab.json("port", "list", "--filter", 'status.vm_name = "alone"'), every_s=0.3)
    lab.cairn("subnet", "delete", "other-blue")
    lab.cairn("vpc", "delete", "other")


def test_plan_makes_nothing_and_shows_node_address_and_disk(lab: Lab) -> None:
    before = len(lab.json("vm", "list"))
    said = lab.cairn(
        "vm", "create", "planned", "--cpus", "1", "--memory", "128MiB", "--image", "demo", "--subnet", "blue", "--plan"
    ).stdout
    assert "10.1.1." in said
    assert any(name in said for name in nodes_of(lab))
    assert len(lab.json("vm", "list")) == before


def test_explain_and_cannot_be_placed(lab: Lab, vms: list[str]) -> None:
    create(lab, vms, "explained")
    explained = lab.cairn("vm", "explain", "explained").stdout
    assert status(lab, "explained")["node"] in explained
    assert "3 nodes" in explained
    refused = lab.cairn(
        "vm", "create", "huge", "--cpus", "1", "--memory", "900GiB", "--image", "demo", "--subnet", "blue", check=False
    )
    assert refused.returncode == 1
    assert "memory" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_stop_start_and_a_guest_that_exits_by_itself(lab: Lab, vms: list[str]) -> None:
    create(lab, vms, "sleepy")
    lab.cairn("vm", "stop", "sleepy")
    assert status(lab, "sleepy")["state"] == "STATE_STOPPED"
    lab.cairn("vm", "start", "sleepy")
    assert status(lab, "sleepy")["state"] == "STATE_RUNNING"
    power_off(lab, "sleepy")
    stopped = wait_state(lab, "sleepy", "STOPPED")
    assert "guest shut itself down" in str(stopped["say"])
    lab.cairn("vm", "start", "sleepy")
    assert status(lab, "sleepy")["state"] == "STATE_RUNNING"


def power_off(lab: Lab, vm: str) -> None:
    lab.console(vm, "(sleep 1; poweroff -f) & echo bye''bye", until="byebye")


def test_delete_keeps_it_for_undelete_and_purge_erases(lab: Lab, vms: list[str]) -> None:
    node = create(lab, vms, "phoenix")["node"]
    vm = lab.json("vm", "show", "phoenix")["id"]
    volumes = Path(lab.host(str(node)).folder / "data/lib")
    lab.cairn("vm", "delete", "phoenix")
    assert vm not in lab.host(str(node)).run("virsh", "list", "--all", "--name").stdout
    assert "phoenix" not in [each["name"] for each in lab.json("vm", "list")]
    lab.cairn("vm", "undelete", vm)
    wait_state(lab, vm, "RUNNING")
    volume = lab.json("vm", "show", "phoenix")["spec"]["root_volume"]
    assert list(volumes.rglob(f"*{volume}*"))
    lab.cairn("vm", "delete", "phoenix", "--purge")
    wait_until("its volume's file to be gone", lambda: not list(volumes.rglob(f"*{volume}*")))
    assert not list(volumes.rglob(f"*{vm}*"))


def test_data_volume_attached_to_a_running_guest(lab: Lab, vms: list[str]) -> None:
    create(lab, vms, "store")
    lab.cairn("volume", "create", "data", "--size", "64MiB")
    lab.cairn("volume", "attach", "data", "--vm", "store")
    said = lab.console("store", "sleep 1; cat /proc/partitions; echo do''ne", until="done")
    assert "vdb" in said
    lab.cairn("volume", "detach", "data")
    lab.cairn("volume", "delete", "data", "--purge")


def test_json_is_a_bare_array_with_snake_case(lab: Lab) -> None:
    document = json.loads(lab.cairn("node", "list", "-o", "json").stdout)
    assert isinstance(document, list)
    assert {"create_time", "status"} <= document[0].keys()
    assert document[0]["status"]["facts"]["cpu"]["threads"] > 0
