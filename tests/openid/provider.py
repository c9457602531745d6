"""A real OpenID provider as a child process, below one folder, with a certificate authority of its own.

    with running(folder, {"alice": {"groups": ["/ops"]}}) as provider:
        ...  # provider.issuer, provider.client_id, provider.ca_pem: what a client is told
        Person(provider, "alice").visit(url)

It listens on loopback alone. In a lab the controllers have loopbacks of their own: `namespaces` names those on which it shall
be found as well, at the same address, so that one issuer is right for all.

provider.mjs says what it offers. An account's entries are claims; its `sub` and `preferred_username` are its name unless it
says otherwise. What a knob changes is in force when its method returns.
"""

from __future__ import annotations

import json
import socket
import ssl
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
from cairn.net import namespace as net_namespace
from cairn.proto import pki
from cairn.proto.seams import SystemClock, SystemIds

from tests.lab.hosts import LabError, wait_until
from tests.openid.install import HERE, installed, node

Accounts = Mapping[str, Mapping[str, object]]


@dataclass
class Provider:
    """One provider. Stopped and started again it has its port and keys, but knows no session and no code."""

    folder: Path
    settings: dict[str, Any]
    algorithm: str
    authority: pki.Authority
    namespaces: Sequence[str] = ()
    client_id: str = "cairn"
    other_client_id: str = "other"
    issuer: str = ""
    knobs: str = ""
    process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    @property
    def ca_pem(self) -> bytes:
        """What its clients must trust."""
        return self.authority.cert_pem

    def trust(self) -> ssl.SSLContext:
        """Return a context that trusts this provider and nobody else."""
        return ssl.create_default_context(cadata=self.ca_pem.decode())

    def start(self) -> None:
        """Run it until it answers."""
        ready = self.folder / "ready"
        ready.unlink(missing_ok=True)
        folder = installed()
        with ExitStack() as stack:
            listeners = [stack.enter_context(_listener(self._port))]
            port = listeners[0].getsockname()[1]
            self.issuer = f"https://127.0.0.1:{port}"
            for name in self.namespaces:
                handle = stack.enter_context(net_namespace.opened(net_namespace.FOLDER / name))
                with net_namespace.entered(handle):
                    listeners.append(stack.enter_context(_listener(port)))
            self._run([listener.fileno() for listener in listeners], folder)
        wait_until("the OpenID provider to listen", lambda: self._lives() and ready.is_file())
        self.knobs = json.loads(ready.read_text())["knobs"]

    @property
    def _port(self) -> int:
        return (httpx2.URL(self.issuer).port or 0) if self.issuer else 0

    def _run(self, listeners: list[int], modules: Path) -> None:
        config = {
            **{name: str(self.folder / name) for name in ("cert", "key", "keys", "ready")},
            "issuer": self.issuer,
            "listeners": listeners,
            "algorithm": self.algorithm,
            "clients": [self.client_id, self.other_client_id],
            "settings": self.settings,
        }
        place = self.folder / "config.json"
        place.write_text(json.dumps(config))
        # setpriv: killed when the test run is, not left behind.
        argv = ["setpriv", "--pdeathsig", "KILL", "--", str(node()), str(HERE / "provider.mjs"), str(place)]
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                argv, cwd=modules, stdin=subprocess.DEVNULL, stdout=log, stderr=log, pass_fds=listeners
            )
        (self.folder / "pid").write_text(str(self.process.pid))

    def stop(self) -> None:
        """End it: from now on connections are refused."""
        if self.process is not None:
            self.process.terminate()
            self.process.wait(timeout=20)
            self.process = None

    def rotate(self) -> None:
        """Sign with a new key; nobody publishes the old one any more."""
        self._turn("/rotate", {})

    def slow(self, delay_s: float, path: str = "/") -> None:
        """Answer requests only after so long, those whose path begins so; 0 ends it."""
        self._set(delay_s=delay_s, delayed=path)

    def set_groups(self, account: str, groups: list[str]) -> None:
        """Let the next ID token of the account name these groups."""
        self._set(accounts={**self.settings["accounts"], account: {**self.settings["accounts"][account], "groups": groups}})

    def set_lifetime(self, id_token_lifetime_s: int) -> None:
        """Let ID tokens made from now on end after so long."""
        self._set(id_token_lifetime_s=id_token_lifetime_s)

    def times_asked(self, path: str) -> int:
        """How often it was asked for a path, for example "/jwks", since its start."""
        return int(self._counts().get(path, 0))

    def _lives(self) -> bool:
        if self.process is None or self.process.poll() is not None:
            raise LabError(f"the OpenID provider ended: {(self.folder / 'log').read_text()[-1000:]}")
        return True

    def _set(self, **changed: object) -> None:
        self.settings.update(changed)
        self._turn("/settings", changed)

    def _turn(self, knob: str, content: object) -> None:
        httpx2.post(self.knobs + knob, json=content, trust_env=False, timeout=20).raise_for_status()

    def _counts(self) -> dict[str, int]:
        counts: dict[str, int] = httpx2.get(self.knobs + "/counts", trust_env=False, timeout=20).raise_for_status().json()
        return counts


def _listener(port: int) -> socket.socket:
    """Listen on the loopback of this thread's network namespace; the socket stays there, whoever accepts from it."""
    return socket.create_server(("127.0.0.1", port))


@contextmanager
def running(
    folder: Path,
    accounts: Accounts,
    *,
    namespaces: Sequence[str] = (),
    id_token_lifetime_s: int = 3600,
    device_interval_s: int = 1,
    algorithm: str = "RS256",
) -> Iterator[Provider]:
    """Give a running provider; its process ends with the block. NotInstallable when this machine cannot have one."""
    folder.mkdir(parents=True, exist_ok=True)
    authority = pki.Authority.create("openid", SystemClock(), SystemIds())
    pair = authority.issue(pki.Identity("etcd", "openid"), hosts=list(pki.LOOPBACK))
    pki.install_pair(folder / "cert", folder / "key", pair)
    settings = {
        "accounts": {name: dict(claims) for name, claims in accounts.items()},
        "id_token_lifetime_s": id_token_lifetime_s,
        "device_interval_s": device_interval_s,
        "delay_s": 0,
        "delayed": "/",
    }
    provider = Provider(folder, settings, algorithm, authority, namespaces)
    try:
        provider.start()
        yield provider
    finally:
        provider.stop()
