"""Commands against a stand-in for the controllers: what is asked, what is answered, exit codes."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from cairn.proto import pki
from cairn.proto.errors import Invalid, Moved, TryAgain
from cairn.proto.v1.node_pb2 import CreateJoinTokenResponse, JoinToken, ListJoinTokensResponse
from cairn.proto.v1.vm_pb2 import POWER_STATE_STOPPED, Vm
from cairn.proto.v1.vpc_pb2 import Vpc

from tests.unit.cli_cloud import Cloud
from tests.unit.cli_objects import cloud, node, vm  # noqa: F401
from tests.unit.cli_run import run

CREATE = ("vm", "create", "web", "--image", "demo")


def refusing(error: Exception) -> Any:
    def refuse(_request: Any) -> Any:
        raise error

    return refuse


def test_create_sends_what_the_options_say(cloud: Cloud, tmp_path: Path) -> None:  # noqa: F811
    (tmp_path / "key.pub").write_text("ssh-ed25519 AAAA me\n")
    (tmp_path / "user-data").write_bytes(b"#cloud-config\n")
    ran = run(
        cloud, *CREATE, "--cpus", "2", "--memory", "2GiB", "--disk", "20GiB", "--subnet", "blue=10.1.1.9", "--subnet", "green",
        "--volume", "data", "--ssh-key", str(tmp_path / "key.pub"), "--ssh-key", "ssh-rsa BBBB", "--node", "n1",
        "--arch", "aarch64",
        "--user-data", str(tmp_path / "user-data"), "--label", "env=test", "--node-label", "rack=a", "--ha", "--stopped",
        "--restart", "on-failure", "--volume-type", "local", "--project", "p1", "--no-wait", "-o", "json",
    )  # fmt: skip
    assert ran.code == 0, ran.err
    (request,) = cloud.requests("CreateVm")
    spec = request.vm.spec
    assert (request.vm.name, request.vm.project, dict(request.vm.labels)) == ("web", "p1", {"env": "test"})
    assert (spec.cpus, spec.memory_bytes, spec.root_disk_bytes) == (2, 2 << 30, 20 << 30)
    assert [(nic.subnet, nic.address) for nic in spec.nics] == [("blue", "10.1.1.9"), ("green", "")]
    assert list(spec.ssh_keys) == ["ssh-ed25519 AAAA me", "ssh-rsa BBBB"]
    assert (spec.node, spec.arch, list(spec.volumes), spec.user_data) == ("n1", "aarch64", ["data"], b"#cloud-config\n")
    assert (spec.power_state, spec.restart_policy, spec.high_availability) == (POWER_STATE_STOPPED, 1, True)
    assert dict(spec.node_selector) == {"rack": "a"}
    assert len(request.request_id) == 36
    assert ran.json["name"] == "web"
    assert ran.json["spec"]["memory_bytes"] == str(2 << 30)


def test_unset_disk_stays_unset(cloud: Cloud) -> None:  # noqa: F811
    run(cloud, *CREATE, "--no-wait")
    assert not cloud.requests("CreateVm")[0].vm.spec.HasField("root_disk_bytes")


def test_private_key_is_not_sent(cloud: Cloud, tmp_path: Path) -> None:  # noqa: F811
    (tmp_path / "id").write_text("-----BEGIN OPENSSH PRIVATE KEY-----\n")
    ran = run(cloud, *CREATE, "--ssh-key", str(tmp_path / "id"))
    assert ran.code == 2
    assert "private key" in ran.err
    assert not cloud.calls


@pytest.mark.parametrize("line", ["-o json vm list", "vm -o json list", "vm list -o json", "-o yaml vm list -o json"])
def test_global_options_work_anywhere(cloud: Cloud, line: str) -> None:  # noqa: F811
    cloud.do(cloud.add("vm", vm()))
    assert [each["name"] for each in run(cloud, *line.split()).json] == ["web"]


def test_empty_lists(cloud: Cloud) -> None:  # noqa: F811
    assert run(cloud, "vm", "list", "-o", "json").json == []
    ran = run(cloud, "vm", "list")
    assert (ran.code, ran.out, ran.err) == (0, "", "no VMs yet\n")
    assert run(cloud, "vm", "list", "-q").err == ""


def test_lists_walk_every_page(cloud: Cloud) -> None:  # noqa: F811
    cloud.page_size_max = 2
    for number in range(5):
        cloud.do(cloud.add("vm", vm(f"web-{number}", id=f"i-0000000{number}")))
    assert run(cloud, "vm", "list", "-o", "name").out.split() == [f"web-{number}" for number in range(5)]
    assert [request.page_token for request in cloud.requests("ListVms")] == ["", "2", "4"]


def test_labels_join_the_filter(cloud: Cloud) -> None:  # noqa: F811
    run(cloud, "vm", "list", "--filter", 'status.node = "n1"', "--label", 'env=te"st', "--label", "a=b", "--deleted")
    (request,) = cloud.requests("ListVms")
    assert request.filter == 'status.node = "n1" AND labels.env = "te\\"st" AND labels.a = "b"'
    assert request.show_deleted


def test_a_call_in_doubt_is_repeated_with_its_request_id(cloud: Cloud) -> None:  # noqa: F811
    async def commit_and_die(request: Any) -> Any:
        cloud.answers[request.request_id] = await cloud._create("CreateVpc", request)
        raise TryAgain("the store does not answer")

    cloud.scripts["CreateVpc"].append(commit_and_die)
    ran = run(cloud, "vpc", "create", "demo", "--cidr", "10.1.0.0/16")
    assert ran.code == 0, ran.err
    first, second = cloud.requests("CreateVpc")
    assert first.request_id == second.request_id
    assert len(cloud.objects["vpc"]) == 1


def test_an_update_that_lost_a_race_reads_again(cloud: Cloud) -> None:  # noqa: F811
    cloud.do(cloud.add("node", node()))
    cloud.scripts["UpdateNode"].append(refusing(Moved("node 'n1' has changed")))
    ran = run(cloud, "node", "cordon", "n1")
    assert ran.code == 0, ran.err
    assert "CORDONED" in ran.out
    assert len(cloud.requests("GetNode")) == 2
    assert list(cloud.requests("UpdateNode")[1].update_mask.paths) == ["spec.cordoned"]


def test_a_plan_that_moved_is_not_repeated(cloud: Cloud) -> None:  # noqa: F811
    cloud.do(cloud.add("node", node()))
    cloud.scripts["UpdateNode"].append(refusing(Moved("plan plan-1 no longer applies")))
    ran = run(cloud, "node", "cordon", "n1", "--plan-id", "plan-1")
    assert ran.code == 1
    assert "plan plan-1 no longer applies" in ran.err
    assert cloud.requests("UpdateNode")[0].plan_id == "plan-1"


def test_plan_asks_only_and_does_not_wait(cloud: Cloud) -> None:  # noqa: F811
    answer = Vm()
    answer.plan.plan_id, answer.plan.say = "plan-1", "1 VM on n2"
    cloud.scripts["CreateVm"] = [lambda _request: answer, lambda _request: answer]
    assert "plan-1" in run(cloud, *CREATE, "--plan").out
    assert run(cloud, *CREATE, "--plan", "-o", "json").json["plan_id"] == "plan-1"
    assert all(request.validate_only for request in cloud.requests("CreateVm"))
    assert not cloud.requests("WatchVms")


def test_several_are_planned_as_one_and_made_part_by_part(cloud: Cloud) -> None:  # noqa: F811
    answer = Vm()
    answer.plan.plan_id, answer.plan.say = "plan-1", "2 of 3 fit; web-3: no node fits"
    for number in (1, 2):
        answer.plan.parts.add(plan_id=f"plan-1-{number}", name=f"web-{number}", node=f"n{number}")
    cloud.scripts["CreateVm"].append(lambda _request: answer)
    ran = run(cloud, *CREATE, "--plan", "--count", "3")
    assert ran.code == 1, "not all of them would run"
    assert "web-2  on n2" in ran.out
    assert "--plan-id plan-1 and --count 2" in ran.out
    (request,) = cloud.requests("CreateVm")
    assert (request.count, request.validate_only) == (3, True)

    async def run_it(created: Any) -> None:
        await cloud.advance("vm", created.id, "RUNNING", "running on n1")

    cloud.after_create["vm"] = run_it
    assert run(cloud, *CREATE, "--plan-id", "plan-1", "--count", "2").code == 0
    made = [(each.vm.name, each.plan_id, each.count) for each in cloud.requests("CreateVm")[1:]]
    assert made == [("web-1", "plan-1-1", 0), ("web-2", "plan-1-2", 0)]


def test_several_are_made_at_once_and_failures_are_told_apart(cloud: Cloud) -> None:  # noqa: F811
    async def run_it(created: Any) -> None:
        await cloud.advance("vm", created.id, "RUNNING", "running on n1")

    cloud.after_create["vm"] = run_it
    cloud.do(cloud.add("vm", vm("web-2")))
    ran = run(cloud, *CREATE, "--count", "3")
    assert ran.code == 1
    assert "1 of 3 VMs" in ran.err
    assert "web-2: vm 'web-2' exists already" in ran.err
    assert "web-1" in ran.out
    assert "web-3" in ran.out
    assert {request.vm.name for request in cloud.requests("CreateVm")} == {"web-1", "web-2", "web-3"}


def test_field_violations_are_all_listed(cloud: Cloud) -> None:  # noqa: F811
    class Both(Invalid):
        def details(self) -> list[Any]:
            (bad,) = super().details()
            bad.field_violations.add(field="vm.name", description="too long")  # type: ignore[attr-defined]
            return [bad]

    cloud.scripts["CreateVm"].append(refusing(Both("vm.spec.cpus", "0 is not in 1..64")))
    ran = run(cloud, *CREATE)
    assert "  - vm.spec.cpus: 0 is not in 1..64\n  - vm.name: too long" in ran.err


def test_a_crash_of_the_controller_shows_no_traceback(cloud: Cloud) -> None:  # noqa: F811
    cloud.scripts["GetVm"].append(refusing(KeyError("secret")))
    ran = run(cloud, "vm", "show", "web")
    assert ran.code == 1
    assert "err-" in ran.err
    assert "secret" not in ran.err
    assert "Traceback" not in ran.err


def test_unreachable_tells_the_endpoints_tried(cloud: Cloud) -> None:  # noqa: F811
    ran = run(cloud, "vm", "list", "--timeout", "0.2", CAIRN_ENDPOINT="127.0.0.1:1,127.0.0.1:2")
    assert ran.code == 5
    assert "127.0.0.1:1, 127.0.0.1:2" in ran.err
    assert "Traceback" not in ran.err


def test_a_stranger_does_not_get_in(cloud: Cloud, tmp_path: Path) -> None:  # noqa: F811
    other = pki.Authority.create("other", _clock(), _ids()).issue(pki.Identity("user", "admin"))
    pki.install_pair(tmp_path / "o.crt", tmp_path / "o.key", other)
    files = {"CAIRN_CERT": str(tmp_path / "o.crt"), "CAIRN_KEY": str(tmp_path / "o.key")}
    assert run(cloud, "vm", "list", "--timeout", "0.2", **files).code == 5
    ran = run(cloud, "vm", "list", CAIRN_KEY=str(tmp_path / "o.key"))
    assert ran.code == 2
    assert "is not the private key of" in ran.err


def _clock() -> Any:
    from cairn.proto.seams import SystemClock

    return SystemClock()


def _ids() -> Any:
    from cairn.proto.seams import SystemIds

    return SystemIds()


def test_contexts_of_the_configuration_file(cloud: Cloud, tmp_path: Path) -> None:  # noqa: F811
    endpoint = cloud.environment["CAIRN_ENDPOINT"]
    (tmp_path / "config.toml").write_text(
        'current = "gone"\n[contexts.lab]\n'
        f'endpoints = ["{endpoint}"]\nca = "ca.crt"\ncert = "admin.crt"\nkey = "admin.key"\nproject = "p7"\n'
        '[contexts.half]\nendpoints = ["127.0.0.1:1"]\n'
    )
    clear = {f"CAIRN_{name}": "" for name in ("ENDPOINT", "CA", "CERT", "KEY")}
    from_file = {**clear, "CAIRN_CONFIG": str(tmp_path / "config.toml")}
    assert run(cloud, "--context", "lab", "vm", "list", **from_file).code == 0
    assert cloud.requests("ListVms")[0].project == "p7"
    half = run(cloud, "--context", "half", "vm", "list", **from_file)
    assert (half.code, "lacks ca, cert, key" in half.err) == (2, True)
    unknown = run(cloud, "--context", "x", "vm", "list", **from_file)
    assert (unknown.code, "known: half, lab" in unknown.err) == (2, True)
    none = run(cloud, "vm", "list", **clear, CAIRN_CONFIG=str(tmp_path / "none"))
    assert (none.code, "no cloud to talk to" in none.err) == (2, True)
    (tmp_path / "bad.toml").write_text("current = ")
    assert run(cloud, "vm", "list", **clear, CAIRN_CONFIG=str(tmp_path / "bad.toml")).code == 2


def test_token_goes_to_stdout_alone_or_to_a_private_file(cloud: Cloud, tmp_path: Path) -> None:  # noqa: F811
    answer = CreateJoinTokenResponse(token="abc123")
    cloud.scripts["CreateJoinToken"] = [lambda _request: answer] * 3
    assert run(cloud, "node", "token", "create", "--node", "n4", "--ttl", "2h").out == "abc123\n"
    request = cloud.requests("CreateJoinToken")[0]
    assert (request.node_name, request.ttl_s) == ("n4", 7200)
    target = tmp_path / "token"
    ran = run(cloud, "node", "token", "create", "--out", str(target))
    assert (ran.out, target.read_text()) == ("", "abc123\n")
    assert "abc123" not in ran.err
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    assert run(cloud, "node", "token", "create", "-o", "json").json["token"] == "abc123"


def test_join_tokens_are_shown_with_who_used_them_and_taken_back(cloud: Cloud) -> None:  # noqa: F811
    tokens = [
        JoinToken(id="jt-1", used_by="node-1", used_by_name="n1"),
        JoinToken(id="jt-2", node_name="n4"),
        JoinToken(id="jt-3"),
    ]
    tokens[2].expire_time.FromSeconds(4_000_000_000)
    pages = [
        ListJoinTokensResponse(join_tokens=tokens[:2], next_page_token="jt-2"),
        ListJoinTokensResponse(join_tokens=tokens[2:]),
    ]
    cloud.scripts["ListJoinTokens"] = [lambda _request: pages[0], lambda _request: pages[1]]
    shown = run(cloud, "node", "token", "list").out.splitlines()
    assert [line.split()[0] for line in shown] == ["ID", "jt-1", "jt-2", "jt-3"]
    assert ["used by n1" in shown[1], "ended unused" in shown[2], "not used" in shown[3]] == [True] * 3
    cloud.scripts["DeleteJoinToken"] = [lambda _request: tokens[2]]
    assert "jt-3" in run(cloud, "node", "token", "delete", "jt-3").out
    assert [each.page_token for each in cloud.requests("ListJoinTokens")] == ["", "jt-2"]
    assert cloud.requests("DeleteJoinToken")[0].id == "jt-3"


def test_cluster_init_makes_certificates_and_says_what_next(cloud: Cloud, tmp_path: Path) -> None:  # noqa: F811
    line = f"cluster init --directory {tmp_path}/pki --name prod --controller n1=10.0.0.1:7443 --etcd n1=10.0.0.1"
    ran = run(cloud, *line.split())
    assert ran.code == 0, ran.err
    assert f"{tmp_path}/pki/admin.key" in ran.out
    assert "cairn node token create" in ran.err
    again = run(cloud, *line.split())
    assert (again.code, again.out) == (0, "")
    assert "nothing was missing" in again.err
    assert run(cloud, *line.replace("prod", "test").split()).code == 1
    assert run(cloud, *line.replace("n1=10", "10").split()).code == 2


def test_completion_offers_names(cloud: Cloud) -> None:  # noqa: F811
    import click
    from cairn.controller.cli.commands import completer
    from cairn.controller.cli.settings import Settings

    cloud.do(cloud.add("vpc", Vpc(id="rtr-1", name="demo")))
    cloud.do(cloud.add("vpc", Vpc(id="rtr-2", name="other")))
    context = click.Context(click.Command("x"), obj=Settings(run=cloud.wait))
    with pytest.MonkeyPatch.context() as patch:
        for name, value in cloud.environment.items():
            patch.setenv(name, value)
        assert completer("vpc")(context, click.Argument(["name"]), "de") == ["demo"]
        patch.setenv("CAIRN_ENDPOINT", "127.0.0.1:1")
        assert completer("vpc")(context, click.Argument(["name"]), "") == []


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(cloud: Cloud, shell: str) -> None:  # noqa: F811
    assert "_CAIRN_COMPLETE" in run(cloud, "completion", shell).out


def test_every_command_has_help(cloud: Cloud) -> None:  # noqa: F811
    import click
    from cairn.controller.cli.main import cairn as root

    def walk(command: click.Command, path: tuple[str, ...]) -> None:
        ran = run(cloud, *path, "--help")
        assert ran.code == 0, path
        assert command.help, path
        if isinstance(command, click.Group):
            for name in command.list_commands(click.Context(command)):
                child = command.get_command(click.Context(command), name)
                assert child is not None
                walk(child, (*path, name))

    walk(root, ())


def test_help_loads_neither_grpc_nor_rich() -> None:
    code = (
        "import sys\nfrom cairn.controller.cli.main import cairn\n"
        "try: cairn(['--help'])\nexcept SystemExit: pass\n"
        "print(sorted({'grpc', 'rich', 'google', 'yaml'} & set(sys.modules)), file=sys.stderr)"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stderr.strip() == "[]"
    assert "Compute:" in ended.stdout


def test_a_closed_pipe_is_no_error(cloud: Cloud) -> None:  # noqa: F811
    for number in range(200):
        cloud.do(cloud.add("vm", vm(f"web-{number}", id=f"i-{number:08d}")))
    line = f"{sys.executable} -c 'from cairn.controller.cli.main import main; main()' vm list -o json | head -1"
    ended = subprocess.run(
        ["bash", "-o", "pipefail", "-c", line],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **cloud.environment},
    )
    assert (ended.stdout, ended.stderr) == ("[\n", "")
    assert ended.returncode == 0


def test_json_of_one_and_of_many(cloud: Cloud) -> None:  # noqa: F811
    cloud.do(cloud.add("vm", vm()))
    assert run(cloud, "vm", "show", "web", "-o", "json").json["status"]["node"] == "n2"
    assert run(cloud, "vm", "show", "i-0000web1", "-o", "name").out == "web\n"
    assert json.loads(run(cloud, "vm", "list", "-o", "json").out)[0]["id"] == "i-0000web1"
