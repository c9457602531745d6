"""What operators do after the first day: what can change has a command, pipes get whole lines, waits end in time."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from typing import Any

import click
import pytest
from cairn.controller.api import images, nodes, ports, projects, subnets, vms, volumes, vpcs
from cairn.controller.cli.main import cairn
from cairn.proto.errors import Refused, TryAgain
from cairn.proto.v1 import vm_pb2
from cairn.proto.v1.common_pb2 import Decision

from tests.unit.cli_cloud import Cloud
from tests.unit.cli_objects import cloud, vm  # noqa: F401
from tests.unit.cli_run import run
from tests.unit.test_cli_commands import CREATE
from tests.unit.test_cli_golden import fill

# Field of the API -> (verb, option) that changes it.
COMMANDS = {
    "labels": ("label", "--set"),
    "name": ("rename", ""),
    "vm spec.cpus": ("resize", "--cpus"),
    "vm spec.memory_bytes": ("resize", "--memory"),
    "vm spec.power_state": ("start", ""),
    "vm spec.restart_policy": ("set", "--restart"),
    "vm spec.node_selector": ("set", "--node-label"),
    "volume spec.size_bytes": ("resize", "--size"),
    "volume spec.vm": ("attach", "--vm"),
    "volume spec.delete_with_vm": ("set", "--with-vm"),
    "project spec.description": ("update", "--description"),
    "node spec.cordoned": ("cordon", ""),
    "node spec.cpu_overcommit": ("set", "--cpu-overcommit"),
    "node spec.memory_share": ("set", "--memory-share"),
}
# Taken by the API and refused by it until it is true.
NOT_YET = {"vm spec.high_availability"}
RULES = {
    "vm": vms.RULES, "volume": volumes.RULES, "node": nodes.RULES, "image": images.RULES, "port": ports.RULES,
    "subnet": subnets.RULES, "vpc": vpcs.RULES, "project": projects.RULES,
}  # fmt: skip


def group_of(noun: str) -> click.Group:
    found = cairn.get_command(click.Context(cairn, info_name="cairn"), noun)
    assert isinstance(found, click.Group)
    return found


def test_every_field_that_can_change_has_a_command() -> None:
    for noun, rules in RULES.items():
        for path in rules.mutable:
            if f"{noun} {path}" in NOT_YET:
                continue
            verb, option = COMMANDS[path] if path in ("labels", "name") else COMMANDS[f"{noun} {path}"]
            command = group_of(noun).commands[verb]
            assert not option or any(option in parameter.opts for parameter in command.params), f"cairn {noun} {verb} {option}"


@pytest.mark.parametrize("noun", [noun for noun in RULES if noun != "node"])
def test_whatever_can_be_made_can_be_deleted(noun: str) -> None:
    verbs = group_of(noun).commands
    assert "delete" in verbs
    assert {"create", "import"} & verbs.keys()


def test_labels_are_set_and_removed(cloud: Cloud) -> None:  # noqa: F811
    fill(cloud)
    assert run(cloud, "vm", "label", "web", "--set", "env=test", "--remove", "old").code == 0
    (request,) = cloud.requests("UpdateVm")
    assert (list(request.update_mask.paths), request.vm.labels["env"]) == (["labels"], "test")
    assert run(cloud, "vm", "label", "web").code == 2


@pytest.mark.parametrize("noun", RULES)
def test_a_name_is_changed(cloud: Cloud, noun: str) -> None:  # noqa: F811
    fill(cloud)
    old = next(iter(cloud.objects[noun].values())).name
    ran = run(cloud, noun, "rename", old, "other")
    assert ran.code == 0, ran.err
    (request,) = cloud.requests(f"Update{noun.capitalize()}")
    assert list(request.update_mask.paths) == ["name"]
    given = getattr(request, noun)
    assert (given.id, given.name) == (next(iter(cloud.objects[noun].values())).id, "other")


def test_a_policy_is_changed(cloud: Cloud) -> None:  # noqa: F811
    fill(cloud)
    assert run(cloud, "vm", "set", "web", "--restart", "never", "--node-label", "rack=a").code == 0
    (request,) = cloud.requests("UpdateVm")
    assert list(request.update_mask.paths) == ["spec.restart_policy", "spec.node_selector"]
    assert request.vm.spec.restart_policy == vm_pb2.RESTART_POLICY_NEVER
    assert dict(request.vm.spec.node_selector) == {"rack": "a"}
    assert run(cloud, "vm", "set", "web").code == 2
    assert run(cloud, "volume", "set", "data", "--on-its-own").code == 0
    assert cloud.requests("UpdateVolume")[0].volume.spec.delete_with_vm is False


def test_a_deleted_vm_comes_back_under_another_name(cloud: Cloud) -> None:  # noqa: F811
    fill(cloud)
    run(cloud, "vm", "undelete", "i-00000001", "--name", "web-2", "--no-wait")
    (request,) = cloud.requests("UndeleteVm")
    assert (request.id, request.name) == ("i-00000001", "web-2")


def test_a_plan_that_cannot_be_ends_badly(cloud: Cloud) -> None:  # noqa: F811
    def answer(request: Any) -> Any:
        planned = vm_pb2.Vm(name=request.vm.name)
        planned.plan.decision.CopyFrom(Decision(considered=3, say="no node has 2 TiB of memory free"))
        return planned

    cloud.scripts["CreateVm"].append(answer)
    ran = run(cloud, *CREATE, "--plan")
    assert ran.code == 1
    assert "run nowhere: no node has 2 TiB" in ran.err
    assert "considered 3 nodes" in ran.out


def test_a_pipe_gets_one_object_a_line(cloud: Cloud) -> None:  # noqa: F811
    made = vm("a-name-of-sixty-three-letters-that-nobody-would-ever-type-by-hand-1")
    cloud.do(cloud.add("vm", made))
    command = [sys.executable, "-c", "from cairn.controller.cli.main import main; main()", "vm", "list"]
    told = subprocess.run(command, env={**os.environ, **cloud.environment}, capture_output=True, text=True, check=True)
    lines = told.stdout.splitlines()
    assert len(lines) == 2
    assert made.name in lines[1]


def test_a_command_waits_no_longer_than_it_is_told(cloud: Cloud) -> None:  # noqa: F811
    def slow(_request: Any) -> Refused:
        raise TryAgain("the store does not answer")

    cloud.scripts["GetVm"].extend([slow] * 1000)
    before_s = time.monotonic()
    ran = run(cloud, "vm", "show", "web", "--timeout", "1s")
    assert ran.code == 1
    assert time.monotonic() - before_s < 15, "one second was asked for, half a minute is what it would take"


def test_a_console_without_keys_is_read_only(cloud: Cloud) -> None:  # noqa: F811
    fill(cloud)
    command = [sys.executable, "-c", "from cairn.controller.cli.main import main; main()", "vm", "console", "web"]
    told = subprocess.run(
        command, env={**os.environ, **cloud.environment}, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60
    )
    assert (told.returncode, "Traceback" in told.stderr) == (0, False), told.stderr
