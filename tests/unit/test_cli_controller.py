"""The command line against a real controller, memory store, and real agents on fake drivers: what a person does in a day."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from cairn.agent import reboots
from cairn.controller.store.memory import MemoryStore
from cairn.proto import kinds
from cairn.proto.pki import Identity, identity_of, load_pair

from tests.unit.cli_real import START_S, RealCloud
from tests.unit.cli_run import Ran, run
from tests.unit.test_cli_image import qcow2

VM = ("--cpus", "1", "--memory", "128MiB", "--image", "demo", "--subnet", "blue")


def done(cloud: RealCloud, *arguments: str) -> Ran:
    """Run a command that must succeed."""
    ran = run(cloud, *arguments, "--timeout", "60")
    assert ran.code == 0, f"cairn {' '.join(arguments)}\n{ran.out}{ran.err}"
    return ran


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealCloud]:
    """Two controllers, two nodes that joined with tokens, an image, a VPC and a subnet."""
    folder = tmp_path_factory.mktemp("cloud")
    cloud = RealCloud(folder, controllers=2)
    cloud.start()
    try:
        for name in ("n1", "n2"):
            token = done(cloud, "node", "token", "create", "--node", name).out
            cloud.do(cloud.join(name, token))
        done(cloud, "image", "import", "demo", "--file", str(qcow2(folder / "demo.qcow2")), "--arch", "x86_64")
        done(cloud, "vpc", "create", "demo", "--cidr", "10.1.0.0/16")
        done(cloud, "subnet", "create", "blue", "--vpc", "demo", "--cidr", "10.1.1.0/24")
        yield cloud
    finally:
        cloud.close()


def test_import_left_the_image_on_two_nodes(cloud: RealCloud) -> None:
    (image,) = done(cloud, "image", "list", "-o", "json").json
    assert image["status"]["state"] == "STATE_AVAILABLE"
    assert image["status"]["nodes"] == ["n1", "n2"]
    (job,) = done(cloud, "job", "list", "-o", "json").json
    assert job["status"]["done"] is True
    done(cloud, "job", "watch", job["id"])


def test_a_project_goes_with_all_that_lives_in_it(cloud: RealCloud) -> None:
    done(cloud, "project", "create", "short")
    done(cloud, "image", "share", "demo", "--with", "short")
    inside = ("--project", "short")
    done(cloud, *inside, "vpc", "create", "net", "--cidr", "10.9.0.0/16")
    done(cloud, *inside, "subnet", "create", "a", "--vpc", "net", "--cidr", "10.9.1.0/24")
    done(cloud, *inside, "vm", "create", "one", *VM[:-1], "a")
    done(cloud, *inside, "volume", "create", "data", "--size", "8MiB")
    done(cloud, *inside, "vm", "create", "two", *VM[:-1], "a", "--volume", "data")
    done(cloud, *inside, "vm", "delete", "one")
    refused = run(cloud, "project", "delete", "short")
    assert (refused.code, "2 VMs" in refused.err) == (1, True)
    plan = done(cloud, "project", "delete", "short", "--cascade", "--plan").out
    assert all(each in plan for each in ("VM one", "VM two", "volume data", "subnet a", "VPC net", "project short"))
    assert "image demo" not in plan, "it is only shared with it"
    done(cloud, "project", "delete", "short", "--cascade")
    names = [each["name"] for each in done(cloud, "project", "list", "-o", "json").json]
    assert "short" not in names
    (last,) = done(cloud, "audit", "list", "--method", "DeleteProject", "-o", "json").json
    parts = done(cloud, "audit", "list", "--cause", last["request_id"], "-o", "json").json
    assert {each["method"] for each in parts} == {"DeleteVm", "DeleteVolume", "DeleteSubnet", "DeleteVpc"}
    assert not last.get("cause")
    (image,) = done(cloud, "image", "list", "-o", "json").json
    assert "sharing" not in image["spec"], "what was shared with it stays, and is shared with it no more"


def test_a_node_whose_certificate_ended_gets_another_one(cloud: RealCloud) -> None:
    certify = ("cluster", "certify", "--directory", str(cloud.folder))
    assert "node.crt and node.key" in done(cloud, *certify, "--node", "n1").err
    id = done(cloud, "node", "show", "n1", "-o", "json").json["id"]
    pair = load_pair(cloud.folder / "node-n1.crt", cloud.folder / "node-n1.key")
    assert identity_of(pair.cert_pem) == Identity("node", id)
    assert run(cloud, *certify, "--node", "n9").code == 4
    assert run(cloud, *certify).code == 2


def test_life_of_a_vm(cloud: RealCloud) -> None:
    made = done(cloud, "vm", "create", "web", *VM, "--label", "tier=front", "-o", "json").json
    assert made["status"]["state"] == "STATE_RUNNING"
    assert made["status"]["node"] in ("n1", "n2")
    assert made["status"]["nics"][0]["address"].startswith("10.1.1.")
    assert [vm["name"] for vm in done(cloud, "vm", "list", "--label", "tier=front", "-o", "json").json] == ["web"]
    assert done(cloud, "vm", "list", "--label", "tier=back", "-o", "json").json == []
    assert made["status"]["node"] in done(cloud, "vm", "explain", "web").out
    assert "STOPPED" in done(cloud, "vm", "stop", "web").out
    assert "RUNNING" in done(cloud, "vm", "start", "web").out
    assert "RUNNING" in done(cloud, "vm", "reboot", "web", "--force").out
    assert done(cloud, "vm", "resize", "web", "--cpus", "2", "-o", "json").json["spec"]["cpus"] == 2
    assert "Placed" in done(cloud, "vm", "events", "web").out
    assert "undelete" in done(cloud, "vm", "delete", "web").err
    assert "web" not in done(cloud, "vm", "list").out
    assert "RUNNING" in done(cloud, "vm", "undelete", made["id"]).out
    assert "gone" in done(cloud, "vm", "delete", "web", "--purge").err
    assert run(cloud, "vm", "show", made["id"]).code == 4


def test_a_reboot_is_done_once_the_guest_began_anew(cloud: RealCloud, monkeypatch: pytest.MonkeyPatch) -> None:
    """A guest that ignored it was told as rebooted, at once."""
    monkeypatch.setattr(reboots, "WAIT_S", 2.0)
    made = done(cloud, "vm", "create", "deaf", *VM, "-o", "json").json
    host = cloud.nodes[made["status"]["node"]].host
    assert made["status"]["boots"] == "1"
    done(cloud, "vm", "reboot", "deaf")
    assert host.boots.count(made["id"]) == 2
    assert done(cloud, "vm", "show", "deaf", "-o", "json").json["status"]["boots"] == "2"
    assert "Rebooted" in done(cloud, "vm", "events", "deaf").out
    host.deaf.add(made["id"])
    ran = run(cloud, "vm", "reboot", "deaf")
    assert ran.code == 1
    assert "did not react to the reboot within 2 s" in ran.err
    assert "cairn vm reboot deaf --force" in ran.err
    done(cloud, "vm", "reboot", "deaf", "--force")
    assert host.boots.count(made["id"]) == 3
    done(cloud, "vm", "delete", "deaf", "--purge")


def test_a_volume_is_attached_and_free_when_its_guest_says_so(cloud: RealCloud) -> None:
    """Both were told as done at once, whatever the guest had open."""
    made = done(cloud, "vm", "create", "keeper", *VM, "-o", "json").json
    host = cloud.nodes[made["status"]["node"]].host
    volume = done(cloud, "volume", "create", "kept", "--size", "64MiB", "-o", "json").json["id"]
    done(cloud, "volume", "attach", "kept", "--vm", "keeper")
    assert volume in host.guests[made["id"]].live.disks
    assert "128 MiB" in done(cloud, "volume", "resize", "kept", "--size", "128MiB").out, "under its running guest"
    host.clinging.add(volume)
    ran = run(cloud, "volume", "detach", "kept", "--timeout", "2s")
    assert ran.code == 3
    assert "the guest of VM keeper on" in ran.err
    assert "has it open still" in ran.err
    host.clinging.clear()
    done(cloud, "volume", "detach", "kept")
    assert volume not in host.guests[made["id"]].live.disks
    done(cloud, "vm", "delete", "keeper", "--purge")
    done(cloud, "volume", "delete", "kept", "--purge")


def test_a_plan_shows_node_address_and_disk_and_is_carried_out(cloud: RealCloud) -> None:
    shown = done(cloud, "vm", "create", "planned", *VM, "--plan")
    assert "10.1.1." in shown.out
    assert "planned" not in done(cloud, "vm", "list").out
    plan = done(cloud, "vm", "create", "planned", *VM, "--plan", "-o", "json").json
    made = done(cloud, "vm", "create", "planned", *VM, "--plan-id", plan["plan_id"], "-o", "json").json
    assert made["status"]["node"] == plan["decision"]["node_name"]
    done(cloud, "vm", "delete", "planned", "--purge")
    again = run(cloud, "vm", "create", "planned", *VM, "--plan-id", plan["plan_id"])
    assert again.code == 1
    assert "Traceback" not in again.err


def test_volumes(cloud: RealCloud) -> None:
    done(cloud, "vm", "create", "store", *VM)
    assert "AVAILABLE" in done(cloud, "volume", "create", "data", "--size", "64MiB").out
    assert "ATTACHED" in done(cloud, "volume", "attach", "data", "--vm", "store").out
    shrunk = run(cloud, "volume", "resize", "data", "--size", "32MiB")
    assert (shrunk.code, "only grow" in shrunk.err) == (1, True)
    assert "AVAILABLE" in done(cloud, "volume", "detach", "data").out
    grown = done(cloud, "volume", "resize", "data", "--size", "128MiB", "-o", "json").json
    assert grown["spec"]["size_bytes"] == str(128 << 20)
    done(cloud, "volume", "delete", "data", "--purge")
    done(cloud, "vm", "delete", "store", "--purge")
    assert done(cloud, "volume", "list", "-o", "json").json == []


def test_several_at_once(cloud: RealCloud) -> None:
    ran = done(cloud, "vm", "create", "many", *VM, "--count", "4", "-o", "json")
    assert [vm["name"] for vm in ran.json] == [f"many-{number}" for number in range(1, 5)]
    assert len({vm["status"]["nics"][0]["address"] for vm in ran.json}) == 4
    for vm in ran.json:
        done(cloud, "vm", "delete", vm["id"], "--purge", "--no-wait")
    for vm in ran.json:
        done(cloud, "vm", "wait", vm["id"], "--for", "deleted")


@pytest.mark.parametrize(
    ("line", "code", "words"),
    [
        ("vm create huge --memory 900GiB --image demo", 1, "memory"),
        ("vm create x --cpus 0 --image demo", 2, "1<=x<=64"),
        ("vm create x --image nope", 4, "nope"),
        ("vm create x --image demo --subnet nope", 4, "nope"),
        ("vm create x --image demo --node nope", 4, "nope"),
        ("vm create UPPER --image demo", 1, "name"),
        (f"vm create {'x' * 64} --image demo", 1, "63"),
        ("vpc create v --cidr 10.1.0.1/16", 1, "host bits"),
        ("vpc create v --cidr 8.8.0.0/16", 1, "private"),
        ("vpc create demo --cidr 10.1.0.0/16", 1, "exists"),
        ("subnet create s --vpc demo --cidr 10.1.1.128/25", 1, "overlap"),
        ("subnet create s --vpc nope --cidr 10.1.1.128/25", 4, "nope"),
        ("vpc delete demo", 1, "subnet"),
        ("vm list --filter nonsense.field=1", 1, "nonsense"),
        ("vm console nope", 4, "nope"),
        ("volume attach nope --vm nope", 4, "nope"),
    ],
)
def test_refusals_say_why(cloud: RealCloud, line: str, code: int, words: str) -> None:
    ran = run(cloud, *line.split(), "--timeout", "20")
    assert ran.code == code, ran.err
    assert words in ran.err
    assert "Traceback" not in ran.err
    assert "err-" not in ran.err


def test_nodes(cloud: RealCloud) -> None:
    nodes = done(cloud, "node", "list", "-o", "json").json
    assert {node["name"]: node["status"]["state"] for node in nodes} == {"n1": "STATE_READY", "n2": "STATE_READY"}
    assert nodes[0]["status"]["facts"]["cpu"]["threads"] > 0
    assert "CORDONED" in done(cloud, "node", "cordon", "n1").out
    done(cloud, "node", "label", "n1", "--set", "rack=a")
    assert done(cloud, "node", "list", "--label", "rack=a", "-o", "name").out == "n1\n"
    assert "READY" in done(cloud, "node", "uncordon", "n1").out
    shown = done(cloud, "node", "show", "n1").out
    assert "topology" in shown
    assert "default" in done(cloud, "project", "list").out
    status = done(cloud, "cluster", "status", "-o", "json").json
    assert status["nodes_ready"] == 2


def test_a_node_comes_and_leaves(cloud: RealCloud) -> None:
    token = done(cloud, "node", "token", "create", "--node", "n3").out
    cloud.do(cloud.join("n3", token))
    done(cloud, "vm", "create", "passing", *VM, "--node", "n3")
    refused = run(cloud, "node", "remove", "n3")
    assert refused.code == 1
    assert "node 'n3' still has 1 VM (passing) and 1 volume" in refused.err
    done(cloud, "vm", "delete", "passing", "--purge")
    assert "would delete node n3" in done(cloud, "node", "remove", "n3", "--plan").out
    assert "n3 is gone" in done(cloud, "node", "remove", "n3").err
    assert run(cloud, "node", "show", "n3").code == 4
    removed = cloud.nodes["n3"]
    cloud.do(nothing_left_of(cloud, removed.agent.membership.node))
    assert not removed.agent.sync.synced.is_set()
    assert done(cloud, "node", "list", "-o", "name").out == "n1\nn2\n"


def _told(key: str) -> bool:
    return key.startswith(kinds.EVENT_OF.prefix)


async def nothing_left_of(cloud: RealCloud, node: str) -> None:
    """Wait until no record has the node in its key, but that something happened to it."""
    store = MemoryStore(cloud.backend)
    async with asyncio.timeout(START_S):
        while [key for item in (await store.read(kinds.ROOT))[0] if node in (key := item.key) and not _told(key)]:
            await asyncio.sleep(0.02)


def test_a_controller_dies_while_a_vm_is_made(cloud: RealCloud) -> None:
    ran: list[Ran] = []
    thread = threading.Thread(target=lambda: ran.append(run(cloud, "vm", "create", "brave", *VM, "--timeout", "60")))
    thread.start()
    cloud.do(cloud.kill("c1"))
    thread.join(70)
    assert ran[0].code == 0, ran[0].err
    assert "RUNNING" in ran[0].out
    cloud.do(cloud.serve("c1"))
    done(cloud, "vm", "delete", "brave", "--purge")


def test_console_through_controller_and_agent(cloud: RealCloud) -> None:
    done(cloud, "vm", "create", "talker", *VM)
    said = console(cloud, "talker", b"echo hel''lo\n")
    assert said.returncode == 0, said.stderr
    assert b"hel" in said.stdout
    done(cloud, "vm", "stop", "talker", "--force")
    stopped = console(cloud, "talker", b"")
    assert stopped.returncode in (0, 1)
    assert b"Traceback" not in stopped.stderr
    done(cloud, "vm", "delete", "talker", "--purge")


def console(cloud: RealCloud, vm: str, keys: bytes) -> subprocess.CompletedProcess[bytes]:
    """Type into a console from a pipe; a process of its own, for it needs a real standard input."""
    command = [sys.executable, "-c", "from cairn.controller.cli.main import main; main()", "vm", "console", vm]
    environment = {**os.environ, **cloud.environment}
    return subprocess.run(command, input=keys, capture_output=True, check=False, timeout=60, env=environment)


def test_a_token_works_once(cloud: RealCloud, tmp_path: Path) -> None:
    token = done(cloud, "node", "token", "create", "--node", "n9").out
    with pytest.raises(Exception, match="is for node 'n9'"):
        cloud.do(cloud.join("n8", token))
