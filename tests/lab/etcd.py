"""etcd members: the command line of one, and a cluster of them on loopback addresses for tests.

    argv = member_argv("n1", {"n1": "172.31.0.11", "n2": ...}, Path("/var/lib/cairn/etcd"), Path("/etc/cairn/pki"))

    with Cluster(folder) as cluster:
        store = EtcdStore(cluster.endpoints, cluster.credentials())
        cluster.members[0].kill(); cluster.members[0].start()

The certificate folder holds etcd-ca.crt, etcd.crt and etcd.key; clients and peers must show a certificate of that CA.
"""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cairn.proto import pki
from cairn.proto.rpc import FileCredentials
from cairn.proto.seams import SystemClock, SystemIds

from tests.lab.hosts import Child, LabError, Running, wait_until

ETCD = "/usr/bin/etcd"
CLIENT_PORT = 2379
PEER_PORT = 2380


def member_argv(
    name: str,
    members: Mapping[str, str],
    data: Path,
    certificates: Path,
    *,
    client_port: int = CLIENT_PORT,
    peer_port: int = PEER_PORT,
) -> list[str]:
    """The command line of one member. members: name -> address of all; every start of a member uses the same line."""
    client, peer = (f"https://{members[name]}:{port}" for port in (client_port, peer_port))
    return [
        ETCD,
        "--name", name,
        "--data-dir", str(data),
        "--listen-client-urls", client,
        "--advertise-client-urls", client,
        "--listen-peer-urls", peer,
        "--initial-advertise-peer-urls", peer,
        "--initial-cluster", ",".join(f"{each}=https://{address}:{peer_port}" for each, address in members.items()),
        "--initial-cluster-token", "cairn",
        "--initial-cluster-state", "new",
        "--client-cert-auth",
        "--trusted-ca-file", str(certificates / "etcd-ca.crt"),
        "--cert-file", str(certificates / "etcd.crt"),
        "--key-file", str(certificates / "etcd.key"),
        "--peer-client-cert-auth",
        "--peer-trusted-ca-file", str(certificates / "etcd-ca.crt"),
        "--peer-cert-file", str(certificates / "etcd.crt"),
        "--peer-key-file", str(certificates / "etcd.key"),
        "--heartbeat-interval", "100",
        "--election-timeout", "1000",
        "--pre-vote",
        "--snapshot-count", "10000",
        "--auto-compaction-mode", "revision",
        "--auto-compaction-retention", "100000",
        "--experimental-watch-progress-notify-interval", "5s",
        "--logger", "zap",
        "--log-level", "warn",
        "--log-outputs", "stderr",
    ]  # fmt: skip


@dataclass
class Member(Child):
    """One member as a child process of the test."""

    name: str
    endpoint: str

    def listens(self) -> bool:
        """Whether it takes connections; LabError when it has ended."""
        if not self.pid:
            raise LabError(f"etcd {self.name} ended: {self.log.read_text()[-500:]}")
        host, _, port = self.endpoint.rpartition(":")
        with socket.socket() as probe:
            probe.settimeout(1)
            return probe.connect_ex((host, int(port))) == 0


class Cluster(Running):
    """Members on 127.0.0.11 and up, with a CA of their own, everything below one folder."""

    def __init__(self, folder: Path, count: int = 3, *, quota_bytes: int = 0) -> None:
        self.folder = folder
        addresses = {f"m{index}": f"127.0.0.{10 + index}" for index in range(1, count + 1)}
        client_port, peer_port = free_ports(list(addresses.values()))
        self.authority = pki.Authority.create("etcd", SystemClock(), SystemIds())
        self.members = []
        for name, address in addresses.items():
            place = folder / name
            self._certify(place, pki.Identity("etcd", name), "etcd", ["127.0.0.1", address])
            argv = member_argv(name, addresses, place / "data", place, client_port=client_port, peer_port=peer_port)
            if quota_bytes:
                argv += ["--quota-backend-bytes", str(quota_bytes)]
            self.members.append(Member(argv, place / "log", name, f"{address}:{client_port}"))
        self._certify(folder / "client", pki.Identity("controller", "test"), "client", [])

    @property
    def endpoints(self) -> list[str]:
        return [member.endpoint for member in self.members]

    def credentials(self) -> FileCredentials:
        """What a controller would use."""
        place = self.folder / "client"
        return FileCredentials(place / "etcd-ca.crt", place / "client.crt", place / "client.key")

    def _certify(self, place: Path, identity: pki.Identity, name: str, hosts: list[str]) -> None:
        pki.write_public(place / "etcd-ca.crt", self.authority.cert_pem)
        pki.install_pair(place / f"{name}.crt", place / f"{name}.key", self.authority.issue(identity, hosts=hosts))

    def begin(self) -> None:
        """Start every member."""
        for member in self.members:
            member.start()
        for member in self.members:
            wait_until(f"etcd {member.name} to listen", member.listens)

    def stop(self) -> None:
        """End every member and remove their data."""
        for member in self.members:
            member.kill()
        shutil.rmtree(self.folder)


def free_ports(addresses: list[str]) -> tuple[int, int]:
    """Two ports free on every one of the addresses."""
    found: list[int] = []
    while len(found) < 2:
        with socket.socket() as first:
            first.bind((addresses[0], 0))
            port = first.getsockname()[1]
            if port not in found and all(_is_free(address, port) for address in addresses[1:]):
                found.append(port)
    return found[0], found[1]


def _is_free(address: str, port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind((address, port))
        except OSError:
            return False
    return True


def available() -> bool:
    """Whether this machine has etcd."""
    return os.access(ETCD, os.X_OK)
