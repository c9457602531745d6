"""site.yml over real SSH makes one fresh Debian server a cluster of its own, and run again changes nothing."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from tests.e2e.debian_host import HOST_ADDRESS, REPOSITORY, STRICT_UMASK, DebianHost, missing, run, tail, wait_until

ANSIBLE = REPOSITORY / "ansible"
BINARIES = REPOSITORY / ".venv" / "bin"
PLAYBOOK = BINARIES / "ansible-playbook"
pytestmark = [
    pytest.mark.root,
    pytest.mark.slow,
    pytest.mark.timeout(1500),
    pytest.mark.skipif(bool(missing()), reason=missing() or "-"),
    pytest.mark.skipif(not PLAYBOOK.exists(), reason="ansible-core is not installed (the extra `ansible`)"),
]


def debian_packages() -> list[str]:
    defaults = yaml.safe_load((ANSIBLE / "roles/packages/defaults/main.yml").read_text())
    lists = (defaults["packages_common"], defaults["packages_controller"], defaults["packages_node"])
    return sorted(name for names in (*lists, defaults["packages_qemu"][os.uname().machine]) for name in names)


@dataclass
class Cluster:
    """The server, and what an administrator has at hand."""

    host: DebianHost
    folder: Path

    def write_inventory(self) -> None:
        options = f"-o UserKnownHostsFile={self.host.known_hosts}"
        variables = {
            "ansible_user": "root",
            "ansible_host": HOST_ADDRESS,
            "ansible_ssh_private_key_file": str(self.host.key),
            "ansible_ssh_common_args": options,
            "cairn_pki_dir": str(self.folder / "pki"),
            "cairn_bundle": str(self.folder / "bundle.tar"),
            # The server has the package lists of the day its tree was made, and no mirror.
            "cairn_apt_cache_valid_s": 10**9,
        }
        groups = {name: {"hosts": {"node1": {}}} for name in ("controllers", "nodes")}
        (self.folder / "inventory.yml").write_text(yaml.safe_dump({"all": {"vars": variables, "children": groups}}))

    def play(self, *options: str) -> str:
        """Run site.yml; return what it printed."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("ANSIBLE_", "CAIRN_"))}
        settings = {"CONFIG": ANSIBLE / "ansible.cfg", "HOME": self.folder / "ansible", "NOCOLOR": "1", "FORCE_COLOR": "0"}
        environment = {**kept, **{f"ANSIBLE_{name}": str(value) for name, value in settings.items()}}
        command = [PLAYBOOK, "-i", self.folder / "inventory.yml", ANSIBLE / "site.yml", *options]
        done = self.host.in_admin(*command, check=False, env=environment, timeout=900, cwd=ANSIBLE, umask=STRICT_UMASK)
        assert done.returncode == 0, f"== site.yml\n{tail(done.stdout)}\n{tail(done.stderr)}\n{self.host.symptoms()}"
        return done.stdout

    def cairn(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run the command line with the administrator's certificate."""
        pki = self.folder / "pki"
        identity = {"CAIRN_CA": pki / "ca.crt", "CAIRN_CERT": pki / "admin.crt", "CAIRN_KEY": pki / "admin.key"}
        environment = {**os.environ, **{name: str(path) for name, path in identity.items()}}
        environment |= {"CAIRN_ENDPOINT": f"{HOST_ADDRESS}:7443", "CAIRN_CONFIG": str(self.folder / "none.toml")}
        return self.host.in_admin(BINARIES / "cairn", *arguments, env=environment, check=check, timeout=120)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("ansible")
    with DebianHost.running("node1", folder / "host", debian_packages()) as host:
        cluster = Cluster(host, folder)
        run(ANSIBLE / "bundle", folder / "bundle.tar", umask=STRICT_UMASK)
        cluster.write_inventory()
        (folder / "first.log").write_text(cluster.play("-v"))
        yield cluster
    shutil.rmtree(folder, ignore_errors=True)


def test_the_services_run(cluster: Cluster) -> None:
    units = ["etcd", "cairn-controller", "libvirtd", "cairn-agent"]
    assert cluster.host.ssh("systemctl", "is-active", *units).stdout.split() == ["active"] * len(units)
    assert cluster.host.ssh("systemctl", "is-enabled", *units).stdout.split() == ["enabled"] * len(units)


def test_the_node_is_ready(cluster: Cluster) -> None:
    def ready() -> bool:
        listed = cluster.cairn("node", "list", "-o", "json", check=False)
        return listed.returncode == 0 and [
            (node["name"], node.get("status", {}).get("state")) for node in json.loads(listed.stdout)
        ] == [("node1", "STATE_READY")]

    wait_until("node1 to be ready", ready, 60)


def test_again_changes_nothing(cluster: Cluster) -> None:
    recap = cluster.play().rpartition("PLAY RECAP")[2]
    assert re.findall(r"changed=(\d+)", recap) == ["0", "0"], recap
    assert re.findall(r"failed=(\d+)", recap) == ["0", "0"], recap


def test_check_mode_changes_nothing(cluster: Cluster) -> None:
    recap = cluster.play("--check").rpartition("PLAY RECAP")[2]
    assert re.findall(r"changed=(\d+)", recap) == ["0", "0"], recap


def test_no_secret_is_readable_by_others_or_was_logged(cluster: Cluster) -> None:
    private = cluster.host.ssh("find", "/etc", "-name", "'*.key'", "-perm", "/o=r").stdout
    assert private == ""
    # A join token is base64url of JSON with an id first.
    journal = cluster.host.ssh("journalctl", "--no-pager", "-o", "cat").stdout
    for log in ((cluster.folder / "first.log").read_text(), journal):
        assert len(log) > 1000
        assert "PRIVATE KEY" not in log
        assert not re.search(r"eyJpZCI6[\w-]{40}", log)


def test_nothing_listens_without_tls(cluster: Cluster) -> None:
    """Every listening port but SSH answers no plaintext HTTP."""
    listening = cluster.host.ssh("ss", "-Hltn").stdout
    ports = {int(line.split()[3].rpartition(":")[2]) for line in listening.splitlines()}
    assert {2379, 2380, 7443, 7444, 7446} <= ports
    for port in sorted(ports - {22}):
        answer = cluster.host.in_admin(
            "curl", "-s", "-m", "3", "-o", "/dev/null", "-w", "%{http_code}", f"http://{HOST_ADDRESS}:{port}/", check=False
        ).stdout
        # 400: "client sent an HTTP request to an HTTPS server".
        assert answer in ("000", "400"), f"port {port} answered {answer}"


@pytest.mark.parametrize(("unit", "user"), [("etcd", "etcd"), ("cairn-controller", "cairn"), ("cairn-agent", "root")])
def test_the_services_are_fenced(cluster: Cluster, unit: str, user: str) -> None:
    pid = cluster.host.ssh("systemctl", "show", "-p", "MainPID", "--value", unit).stdout.strip()
    status = cluster.host.ssh("cat", f"/proc/{pid}/status").stdout
    fields = {key: value.split() for key, _, value in (line.partition(":") for line in status.splitlines())}
    assert fields["NoNewPrivs"] == ["1"]
    assert fields["Seccomp"] == ["2"]
    assert cluster.host.ssh("stat", "-c", "%U", f"/proc/{pid}").stdout.strip() == user
    bounding = int(fields["CapBnd"][0], 16)
    # CAP_SYS_MODULE, CAP_SYS_RAWIO, CAP_SYS_BOOT, CAP_SYS_TIME: nobody's.
    assert not bounding & (1 << 16 | 1 << 17 | 1 << 22 | 1 << 25)
    assert (bounding == 0) == (user != "root")


def test_services_come_back_after_a_crash(cluster: Cluster) -> None:
    for unit in ("cairn-controller", "cairn-agent"):
        before = cluster.host.ssh("systemctl", "show", "-p", "MainPID", "--value", unit).stdout
        cluster.host.ssh("systemctl", "kill", "-s", "KILL", unit)

        def again(unit: str = unit, before: str = before) -> bool:
            now = cluster.host.ssh("systemctl", "show", "-p", "MainPID", "--value", unit).stdout
            return (
                now not in (before, "0\n")
                and cluster.host.ssh("systemctl", "is-active", unit, check=False).stdout == "active\n"
            )

        wait_until(f"{unit} to be back", again, 30)
    test_the_node_is_ready(cluster)


def test_lint() -> None:
    lint = BINARIES / "ansible-lint"
    if not lint.exists():
        pytest.skip("ansible-lint is not installed (the extra `ansible`)")
    environment = {**os.environ, "PATH": f"{BINARIES}:{os.environ['PATH']}", "NO_COLOR": "1"}
    run(lint, "--offline", "-q", cwd=ANSIBLE, env=environment)
