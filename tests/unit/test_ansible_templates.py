"""The files Ansible writes are ones the programs accept: rendered here, read by the programs' own parsers."""

from __future__ import annotations

import configparser
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import yaml
from cairn.agent import config as agent_config
from cairn.controller.cli.main import cairn
from cairn.controller.config import Config as ControllerConfig

jinja2 = pytest.importorskip("jinja2", reason="jinja2 comes with ansible-core (the extra `ansible`)")

ANSIBLE = Path(__file__).parent.parent.parent / "ansible"
ROLES = sorted(path.name for path in (ANSIBLE / "roles").iterdir())
HOSTS = {f"node{number}": {"ansible_host": f"192.0.2.{10 + number}"} for number in (1, 2, 3)}


# Options of systemd.exec(5) that give a service a mount namespace.
OWN_MOUNTS = """
ProtectSystem ProtectHome PrivateTmp PrivateDevices PrivateMounts ProtectKernelTunables ProtectProc ProtectKernelModules
ProtectKernelLogs ProtectControlGroups ProtectHostname ReadWritePaths ReadOnlyPaths InaccessiblePaths BindPaths ProcSubset
TemporaryFileSystem RootDirectory DynamicUser MountFlags
"""


def render(role: str, template: str, **more: Any) -> str:
    variables: dict[str, Any] = {"ansible_managed": "made by Ansible", "inventory_hostname": "node1", "hostvars": HOSTS}
    variables |= {"groups": {"controllers": list(HOSTS), "nodes": list(HOSTS)}, "ansible_host": "192.0.2.11"}
    for name in ("cairn", role):
        defaults = ANSIBLE / "roles" / name / "defaults" / "main.yml"
        if defaults.exists():
            variables |= yaml.safe_load(defaults.read_text())
    variables |= {"cairn_address": "192.0.2.11", **more}
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True, trim_blocks=True)
    source = (ANSIBLE / "roles" / role / "templates" / template).read_text()
    text: str = environment.from_string(source).render(variables)
    assert "{{" not in text
    return text


def test_the_controller_reads_its_configuration() -> None:
    config = ControllerConfig.parse(tomllib.loads(render("controller", "controller.toml.j2")))
    assert config.name == "node1"
    assert config.listen == ("192.0.2.11:7443",)
    assert config.etcd_endpoints == ("192.0.2.11:2379", "192.0.2.12:2379", "192.0.2.13:2379")
    assert config.ca_key
    defaults = yaml.safe_load((ANSIBLE / "roles/controller/defaults/main.yml").read_text())
    named = {
        Path(getattr(config, key)).name
        for key in ("ca", "ca_key", "secrets_key", "cert", "key", "etcd_ca", "etcd_cert", "etcd_key")
    }
    assert named == set(defaults["controller_files"])


def test_the_agent_reads_its_configuration() -> None:
    config = agent_config.parse(tomllib.loads(render("agent", "agent.toml.j2")))
    assert (config.name, config.listen, config.tunnel_address) == ("node1", "192.0.2.11:7446", "192.0.2.11")
    defaults = yaml.safe_load((ANSIBLE / "roles/agent/defaults/main.yml").read_text())
    assert defaults["agent_pki_dir"] == config.pki_dir
    assert config.rbd_pool == ""


def test_a_node_has_a_pool_of_ceph_if_its_inventory_says_so() -> None:
    text = render("agent", "agent.toml.j2", cairn_rbd_pool="vms/cairn", cairn_rbd_user="ours")
    config = agent_config.parse(tomllib.loads(text))
    assert (config.rbd_pool, config.rbd_user, config.rbd_conf) == ("vms/cairn", "ours", "/etc/ceph/ceph.conf")


def test_etcd_has_no_plaintext_url() -> None:
    lines = render("etcd", "etcd.env.j2").splitlines()
    settings = dict(line.split("=", 1) for line in lines if "=" in line and not line.startswith("#"))
    urls = [url for name, value in settings.items() if name.endswith("_URLS") for url in value.split(",")]
    assert urls
    assert all(url.startswith("https://") for url in urls)
    members = settings["ETCD_INITIAL_CLUSTER"].split(",")
    assert [member.split("=")[0] for member in members] == list(HOSTS)
    assert settings["ETCD_CLIENT_CERT_AUTH"] == settings["ETCD_PEER_CLIENT_CERT_AUTH"] == "true"


def unit(role: str, template: str) -> configparser.SectionProxy:
    parser = configparser.RawConfigParser(strict=True)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string(render(role, template))
    return parser["Service"]


HARDENED = [
    ("etcd", "hardening.conf.j2"),
    ("controller", "cairn-controller.service.j2"),
    ("controller", "cairn-backup.service.j2"),
]


@pytest.mark.parametrize(("role", "template"), HARDENED)
def test_the_control_plane_can_do_little(role: str, template: str) -> None:
    service = unit(role, template)
    assert service["CapabilityBoundingSet"] == ""
    assert service["ProtectSystem"] == "strict"
    assert service["NoNewPrivileges"] == "true"


def test_backups_are_made_by_a_command_there_is_and_readable_by_nobody_else() -> None:
    service = unit("controller", "cairn-backup.service.j2")
    program, *arguments = service["ExecStart"].split()
    assert program == "/opt/cairn/venv/bin/cairn"
    context = cairn.make_context("cairn", list(arguments))
    group = cairn.get_command(context, arguments[0])
    assert isinstance(group, click.Group)
    verb = group.commands[arguments[1]].make_context(arguments[1], arguments[2:], parent=context)
    assert verb.params == {"out": Path("/var/lib/cairn-backups"), "keep": 168}
    assert (service["StateDirectory"], service["StateDirectoryMode"]) == ("cairn-backups", "0700")
    given = dict(each.split("=", 1) for each in service["Environment"].replace("\\\n", " ").split())
    config = ControllerConfig.parse(tomllib.loads(render("controller", "controller.toml.j2")))
    assert (given["CAIRN_ENDPOINT"], given["CAIRN_CA"]) == (config.advertise, config.ca)
    assert (given["CAIRN_CERT"], given["CAIRN_KEY"]) == (config.cert, config.key)
    assert "OnCalendar=hourly" in render("controller", "cairn-backup.timer.j2")


def test_the_agent_shares_the_hosts_mounts() -> None:
    """Network namespaces are mounts that must outlive it: with mounts of its own, its end would end every guest's network."""
    service = unit("agent", "cairn-agent.service.j2")
    assert not set(OWN_MOUNTS.split()) & set(service)
    assert service["NoNewPrivileges"] == "true"
    assert "CAP_SYS_MODULE" not in service["CapabilityBoundingSet"]


def argvs(document: object) -> Iterator[object]:
    """Every command line in a parsed task file."""
    if isinstance(document, list):
        for each in document:
            yield from argvs(each)
    elif isinstance(document, dict):
        for key, value in document.items():
            if key in ("argv", "cmd", "ansible.builtin.shell"):
                yield value
            else:
                yield from argvs(value)


def test_secrets_are_never_in_a_command_line_or_a_log() -> None:
    for role in ROLES:
        for path in (ANSIBLE / "roles" / role / "tasks").glob("*.yml"):
            for task in re.split(r"\n(?=\s*- name:)", path.read_text()):
                if "token, create" in task or "agent_token.stdout" in task or (".key" in task and "copy:" in task):
                    assert "no_log: true" in task, f"{path}: {task}"
            for argv in argvs(yaml.safe_load(path.read_text())):
                assert "agent_token" not in str(argv), f"{path}: {argv}"


def test_guests_run_as_a_user_who_owns_nothing_else() -> None:
    config = agent_config.parse(tomllib.loads(render("agent", "agent.toml.j2")))
    options = dict(re.findall(r"^(\w+) = (.+)$", render("agent", "qemu.conf.j2"), re.MULTILINE))
    assert options["user"] == f'"{config.guest_user}"' == '"libvirt-qemu"'
    assert options["group"] == '"kvm"'
    assert options["dynamic_ownership"] == "0", "the agent says whose a file is"
    tasks = (ANSIBLE / "roles" / "agent" / "tasks" / "main.yml").read_text()
    assert '{path: /var/lib/cairn, mode: "0711"}' in tasks, "it passes through"
