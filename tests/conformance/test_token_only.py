"""A client that has a token and the cluster's CA, and no certificate of its own, against a controller's own process."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cairn.controller.api.bearer import SAY
from cairn.proto import pki
from cairn.proto.seams import SystemClock, SystemIds

CAIRN = [sys.executable, "-c", "from cairn.controller.cli.main import main; main()"]
START_S = 60.0


class Cloud:
    """A controller in a process, and the command line in others. Everything is below one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.certified, self.open = f"127.0.0.1:{_free_port()}", f"127.0.0.1:{_free_port()}"
        pki.init_cluster(
            folder, "test", controllers={"c1": ["127.0.0.1"]}, etcd_members={}, clock=SystemClock(), ids=SystemIds()
        )
        self.said = folder / "said"
        command = [
            "-m",
            "cairn.controller.standalone",
            "--pki",
            folder,
            "--listen",
            self.certified,
            "--enrol-listen",
            self.open,
        ]
        with self.said.open("wb") as said:
            self.process = subprocess.Popen([sys.executable, *command], stdin=subprocess.PIPE, stdout=said, stderr=said)

    def run(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("CAIRN_")}
        base = {"CAIRN_CONFIG": str(self.folder / "none.toml"), "CAIRN_CA": str(self.folder / "ca.crt"), "COLUMNS": "100"}
        ran = [*CAIRN, *arguments]
        return subprocess.run(ran, capture_output=True, text=True, check=False, timeout=60, env={**kept, **base, **environment})

    def admin(self, *arguments: str) -> str:
        """Run a command that must succeed, as the first administrator."""
        cert, key = str(self.folder / "admin.crt"), str(self.folder / "admin.key")
        ran = self.run(*arguments, CAIRN_ENDPOINT=self.certified, CAIRN_CERT=cert, CAIRN_KEY=key)
        assert ran.returncode == 0, ran.stdout + ran.stderr + self.said.read_text()
        return ran.stdout

    def by_token(self, file: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a command with nothing but a token and the CA."""
        return self.run(*arguments, CAIRN_ENDPOINT=self.open, CAIRN_TOKEN_FILE=str(file))


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cloud]:
    cloud = Cloud(tmp_path_factory.mktemp("cloud"))
    try:
        end = time.monotonic() + START_S
        while cloud.run("cluster", "status", CAIRN_ENDPOINT=cloud.certified, **_admin(cloud)).returncode != 0:
            assert cloud.process.poll() is None, cloud.said.read_text()
            assert time.monotonic() < end, cloud.said.read_text()
        yield cloud
    finally:
        cloud.process.terminate()
        cloud.process.wait(30)
        assert cloud.process.stdin is not None
        cloud.process.stdin.close()


def _admin(cloud: Cloud) -> dict[str, str]:
    return {"CAIRN_CERT": str(cloud.folder / "admin.crt"), "CAIRN_KEY": str(cloud.folder / "admin.key")}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def test_a_day_of_a_program_with_a_token(cloud: Cloud) -> None:
    held = cloud.folder / "token"
    cloud.admin("user", "create", "ci", "--service")
    cloud.admin("role", "bind", "member", "--user", "ci", "--project", "default")
    cloud.admin("token", "create", "ci-1", "--user", "ci", "--ttl", "1h", "--from", "127.0.0.0/8", "--out", str(held))
    assert held.stat().st_mode & 0o777 == 0o600
    text = held.read_text().strip()
    me = cloud.by_token(held, "auth", "whoami")
    assert (me.returncode, "ci, by API token ci-1: 1 binding" in me.stderr) == (0, True), me.stderr
    made = cloud.by_token(held, "vpc", "create", "demo", "--cidr", "10.1.0.0/16")
    assert made.returncode == 0, made.stderr
    denied = cloud.by_token(held, "user", "create", "eve")
    assert (denied.returncode, "may not" in denied.stderr) == (1, True), denied.stderr
    listed = cloud.by_token(held, "token", "list")
    assert (listed.returncode, "ci-1" in listed.stdout, text.split("_")[2] in listed.stdout) == (0, True, False)
    shown = cloud.by_token(held, "token", "show", "ci-1").stdout
    assert "127.0.0.0/8" in shown
    assert text[-20:] not in shown
    made = cloud.by_token(held, "key", "create", "gateway").stderr
    assert "is narrowed" in made, "a token for some addresses makes none that is good from all"
    id, secret = cloud.admin("key", "create", "gateway", "--user", "ci").split()
    assert (id[:4], len(secret)) == ("tok-", 43)
    assert id in cloud.admin("key", "list")
    assert "access key" in cloud.admin("token", "list")
    cloud.admin("key", "delete", "gateway")
    assert id not in cloud.admin("key", "list")
    # It takes itself back.
    assert cloud.by_token(held, "token", "delete", "ci-1").returncode == 0
    gone = cloud.by_token(held, "vpc", "list")
    assert (gone.returncode, SAY in gone.stderr) == (1, True), gone.stderr
    for said in (cloud.said.read_text(), me.stderr, denied.stderr, gone.stderr):
        assert text[-20:] not in said


def test_the_port_of_certificates_takes_no_one_without(cloud: Cloud) -> None:
    held = cloud.folder / "nothing"
    held.write_text("cairn_tok-00000000_" + "A" * 43)
    ran = cloud.run("vpc", "list", "--timeout", "2s", CAIRN_ENDPOINT=cloud.certified, CAIRN_TOKEN_FILE=str(held))
    assert (ran.returncode, "tokens are taken at another port" in ran.stderr) == (5, True), ran.stderr
    both = cloud.run("vpc", "list", CAIRN_ENDPOINT=cloud.open, CAIRN_TOKEN_FILE=str(held), **_admin(cloud))
    assert (both.returncode, "one of them" in both.stderr) == (2, True), both.stderr


def test_another_ca_is_not_believed(cloud: Cloud, tmp_path: Path) -> None:
    """A token is shown to nobody but a controller of this cluster."""
    ca = tmp_path / "ca.crt"
    ca.write_bytes(pki.Authority.create("other", SystemClock(), SystemIds()).cert_pem)
    held = cloud.folder / "nothing"
    held.write_text("cairn_tok-00000000_" + "A" * 43)
    asked = {"CAIRN_ENDPOINT": cloud.open, "CAIRN_TOKEN_FILE": str(held), "CAIRN_CA": str(ca)}
    assert cloud.run("vpc", "list", "--timeout", "2s", **asked).returncode == 5


@pytest.mark.parametrize("held", ["", "two words", "zwölf", "a\nb"])
def test_a_file_that_holds_no_token_is_said_without_its_content(cloud: Cloud, tmp_path: Path, held: str) -> None:
    file = tmp_path / "token"
    file.write_text(held)
    ran = cloud.run("vpc", "list", "--token-file", str(file), CAIRN_ENDPOINT=cloud.open)
    assert (ran.returncode, "does not hold one token" in ran.stderr) == (2, True), ran.stderr
    assert not held or held not in ran.stderr
