"""One etcd member and one controller, each a process of its own as on a server: what the benchmarks of the API talk to.

with Site.made() as site:
    async with site.store() as store: ...          # write records behind the controller's back
    with site.controller() as process:
        async with site.channel() as channel: ...  # an administrator's, once the controller answers
"""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
import subprocess
import tempfile
import urllib.request
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Self

import grpc.aio
from cairn.controller.store.etcd import EtcdStore
from cairn.proto import pki
from cairn.proto.pki import CONTROLLER_SERVER_NAME, Authority, Identity
from cairn.proto.rpc import GrpcTransport, StaticCredentials
from cairn.proto.seams import SystemClock, SystemIds
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.lab.etcd import Cluster
from tests.lab.hosts import ROOT
from tests.lab.lab import BINARIES, toml

READY_S = 300.0
STOP_S = 20.0


class Site:
    """Certificates, etcd and a configuration below one folder."""

    def __init__(self, folder: Path, etcd: Cluster) -> None:
        self.folder, self.etcd = folder, etcd
        self.authority = Authority.create("bench", SystemClock(), SystemIds())
        pki.write_public(folder / "ca.crt", self.authority.cert_pem)
        pair = self.authority.issue(Identity("controller", "c1"), hosts=["127.0.0.1"])
        pki.install_pair(folder / "c1.crt", folder / "c1.key", pair)
        client = etcd.folder / "client"
        self.config = folder / "controller.toml"
        self.metrics_address = f"127.0.0.1:{_free_port()}"
        options = {
            "name": "c1", "listen": [f"unix:{self.socket}"], "advertise": "127.0.0.1:7443", "log_level": "warning",
            "etcd_endpoints": etcd.endpoints, "etcd_ca": str(client / "etcd-ca.crt"),
            "etcd_cert": str(client / "client.crt"), "etcd_key": str(client / "client.key"),
            "metrics_listen": self.metrics_address,
            "ca": str(folder / "ca.crt"), "cert": str(folder / "c1.crt"), "key": str(folder / "c1.key"),
        }  # fmt: skip
        self.config.write_text(toml(**options))

    @classmethod
    @contextmanager
    def made(cls) -> Iterator[Self]:
        """Make one with a fresh etcd; it leaves nothing behind."""
        ROOT.mkdir(mode=0o700, exist_ok=True)
        with (
            tempfile.TemporaryDirectory(prefix=f"cb{os.getpid()}", dir=ROOT) as folder,
            Cluster(Path(folder) / "etcd", 1) as etcd,
        ):
            yield cls(Path(folder), etcd)

    @property
    def socket(self) -> Path:
        return self.folder / "c1.sock"

    @asynccontextmanager
    async def store(self) -> AsyncIterator[EtcdStore]:
        """Open a store of the benchmark's own."""
        store = EtcdStore(self.etcd.endpoints, self.etcd.credentials())
        try:
            yield store
        finally:
            await store.close()

    @contextmanager
    def controller(self) -> Iterator[subprocess.Popen[bytes]]:
        """Run `cairn-controller`; it ends with the block."""
        argv = ["setpriv", "--pdeathsig", "KILL", "--", str(BINARIES / "cairn-controller"), "--config", str(self.config)]
        process = subprocess.Popen(argv, stdin=subprocess.DEVNULL)
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def metrics(self) -> dict[str, float]:
        """The controller's metrics now: sample as written -> value."""
        user = self.authority.issue(Identity("user", "admin"))
        pki.install_pair(self.folder / "user.crt", self.folder / "user.key", user)
        context = ssl.create_default_context(cafile=str(self.folder / "ca.crt"))
        context.load_cert_chain(self.folder / "user.crt", self.folder / "user.key")
        with urllib.request.urlopen(f"https://{self.metrics_address}/metrics", context=context, timeout=30) as answer:
            lines = answer.read().decode().splitlines()
        return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines if not line.startswith("#"))}

    @asynccontextmanager
    async def channel(self) -> AsyncIterator[grpc.aio.Channel]:
        """Open a channel to the controller; waits until it answers."""
        transport = GrpcTransport(StaticCredentials(self.authority.cert_pem, self.authority.issue(Identity("user", "admin"))))
        async with transport.channel([f"unix:{self.socket}"], server_name=CONTROLLER_SERVER_NAME) as channel:
            await _serving(channel)
            yield channel


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


async def _serving(channel: grpc.aio.Channel) -> None:
    stub = health_pb2_grpc.HealthStub(channel)
    async with asyncio.timeout(READY_S):
        while True:
            try:
                answer = await stub.Check(health_pb2.HealthCheckRequest(), timeout=5)
                if answer.status == health_pb2.HealthCheckResponse.SERVING:
                    return
            except grpc.aio.AioRpcError as error:
                if error.code() not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
                    raise
            await asyncio.sleep(0.05)


def cpu_s(pid: int) -> float:
    """CPU a process has used, in user and kernel mode: utime and stime of proc(5)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def rss_mib(pid: int) -> float:
    """Resident memory of a process: VmRSS of proc(5)."""
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return int(fields["VmRSS"].split()[0]) / 1024
