"""Logging in at a real OpenID provider: a person at a browser, one with a device code, and a client that has no certificate.

The command runs on a server of the lab, as on anybody's machine: it knows a controller's address and the cloud's CA, no more.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from cairn.net import namespace

from tests.lab.hosts import Host, wait_until
from tests.lab.lab import BINARIES, Lab
from tests.openid.install import NotInstallable
from tests.openid.person import Person
from tests.openid.provider import Provider, running

ACCOUNTS: Mapping[str, Mapping[str, object]] = {
    "alice": {"groups": ["/ops"], "preferred_username": "Alice@corp.example"},
    "bob": {"groups": [], "sub": "b-1"},
}
LOGIN_S = 60.0


class Desk:
    """Somebody's machine: a home of its own, on one of the lab's servers."""

    def __init__(self, lab: Lab, host: Host, home: Path) -> None:
        self._lab, self._host, self.home = lab, host, home
        self.endpoint = f"{host.address}:7444"
        home.mkdir(parents=True)

    def argv(self, *arguments: str) -> list[str]:
        return self._host.enter(str(BINARIES / "cairn"), *arguments)

    @property
    def environment(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("CAIRN_")}
        return {**kept, "CAIRN_CONFIG": str(self.home / "config.toml"), "NO_COLOR": "1", "COLUMNS": "100"}

    def cairn(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        argv = self.argv(*arguments)
        return subprocess.run(argv, capture_output=True, text=True, check=False, env=self.environment, timeout=LOGIN_S)

    def log_in(self, *options: str, at: Callable[[str], object]) -> str:
        """Run `cairn login`, have a person go to the address it says; return all it said."""
        said = self.home / "said"
        with said.open("w") as out:
            process = subprocess.Popen(
                self.argv("login", "--no-browser", *options), stdout=out, stderr=out, env=self.environment, text=True
            )
            try:
                wait_until(
                    "an address to log in at", lambda: _address(said) or process.poll() is not None, LOGIN_S, every_s=0.05
                )
                if address := _address(said):
                    with namespace.opened(namespace.FOLDER / self._host.namespace) as handle, namespace.entered(handle):
                        at(address)
                process.wait(LOGIN_S)
            finally:
                if process.poll() is None:
                    process.kill()
                    process.wait()
        return said.read_text()


def _address(said: Path) -> str:
    found = re.search(r"^https://\S+$", said.read_text(), re.MULTILINE)
    return found[0] if found is not None else ""


@pytest.fixture(scope="module")
def provider(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Provider]:
    try:
        with running(tmp_path_factory.mktemp("idp"), ACCOUNTS, namespaces=[host.namespace for host in lab.control]) as provider:
            yield provider
    except NotInstallable as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def trusted(lab: Lab, provider: Provider, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    ca = tmp_path_factory.mktemp("ca") / "idp.crt"
    ca.write_bytes(provider.ca_pem)
    lab.cairn(
        "idp", "create", "corp", "--issuer", provider.issuer, "--client-id", provider.client_id, "--ca", str(ca),
        "--create-users", "--scope", "profile", "--scope", "groups", "--group", "/ops=ops",
    )  # fmt: skip
    lab.cairn("role", "bind", "operator", "--group", "ops", "--cluster")
    yield "corp"
    for user in ("alice", "bob"):
        lab.cairn("user", "delete", user, check=False)
    lab.cairn("idp", "delete", "corp")


def desk(lab: Lab, home: Path) -> Desk:
    return Desk(lab, lab.control[0], home)


def test_a_person_logs_in_by_a_browser_and_out(lab: Lab, provider: Provider, trusted: str, tmp_path: Path) -> None:
    hers = desk(lab, tmp_path / "hers")
    person = Person(provider, "alice")
    said = hers.log_in(hers.endpoint, "--ca", str(lab.pki / "ca.crt"), at=person.visit)
    assert "logged in as alice, in ops until " in said, said
    token = hers.home / "default.token"
    assert token.stat().st_mode & 0o777 == 0o600
    me = hers.cairn("whoami")
    assert me.returncode == 0, me.stderr
    assert me.stderr.startswith("alice, by API token alice-")
    assert "operator" in me.stdout
    nodes = hers.cairn("node", "list", "-o", "name")
    assert nodes.stdout.split() == [host.name for host in lab.hosts]
    refused = hers.cairn("vpc", "create", "hers", "--cidr", "10.9.0.0/16")
    assert (refused.returncode, "may not" in refused.stderr) == (1, True), refused.stderr
    found = lab.json("audit", "list", "--who", "alice", "--method", "Login")
    assert [each["caller"] for each in found] == ["login"]
    out = hers.cairn("logout")
    assert (out.returncode, token.exists()) == (0, False), out.stderr
    assert hers.cairn("node", "list").returncode != 0
    assert "out" not in (tmp_path / "hers" / "config.toml").read_text()


def test_a_device_logs_in_and_disabling_the_provider_ends_it(
    lab: Lab, provider: Provider, trusted: str, tmp_path: Path
) -> None:
    his = desk(lab, tmp_path / "his")
    said = his.log_in(his.endpoint, "--ca", str(lab.pki / "ca.crt"), "--device", at=Person(provider, "bob").approve)
    assert "logged in as bob until " in said, said
    lab.cairn("role", "bind", "viewer", "--user", "bob", "--cluster")
    assert his.cairn("vpc", "list").returncode == 0
    lab.cairn("idp", "disable", trusted)
    over = his.cairn("vpc", "list")
    assert (over.returncode, "the token is not accepted" in over.stderr) == (1, True), over.stderr
    none = his.log_in("--device", at=Person(provider, "bob").approve)
    assert "there is no identity provider to log in by" in none
    lab.cairn("idp", "enable", trusted)
    assert his.cairn("vpc", "list").returncode == 0


def test_who_refuses_at_the_provider_is_not_logged_in(lab: Lab, provider: Provider, trusted: str, tmp_path: Path) -> None:
    hers = desk(lab, tmp_path / "hers")
    said = hers.log_in(hers.endpoint, "--ca", str(lab.pki / "ca.crt"), at=Person(provider, "alice").deny)
    assert f"{provider.issuer} refuses: " in said, said
    assert sorted(each.name for each in hers.home.iterdir()) == ["said"]


def test_keys_that_the_provider_changes_count_at_once(lab: Lab, provider: Provider, trusted: str, tmp_path: Path) -> None:
    hers = desk(lab, tmp_path / "hers")
    ca = ["--ca", str(lab.pki / "ca.crt")]
    hers.log_in(hers.endpoint, *ca, at=Person(provider, "alice").visit)
    provider.rotate()
    tries: list[Any] = []

    def logged_in() -> bool:
        # A controller that has asked for keys within ten seconds does not do so again.
        tries.append(hers.log_in(at=Person(provider, "alice").visit))
        return "logged in as alice" in tries[-1]

    wait_until("the new keys to be known", logged_in, 30.0, every_s=1.0)


def test_a_provider_that_is_gone_is_named(lab: Lab, provider: Provider, trusted: str, tmp_path: Path) -> None:
    hers = desk(lab, tmp_path / "hers")
    provider.stop()
    try:
        said = hers.log_in(hers.endpoint, "--ca", str(lab.pki / "ca.crt"), at=Person(provider, "alice").visit)
        assert f"cannot talk to {provider.issuer}" in said, said
    finally:
        provider.start()
