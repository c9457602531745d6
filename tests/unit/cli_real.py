"""A whole cloud in a thread: the real controller on the memory store, real agents on fake drivers, real TLS on loopback."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog
from cairn.agent import identity
from cairn.agent.app import Agent
from cairn.agent.config import Config as AgentConfig
from cairn.agent.hypervisor.fake import FakeHost, FakeHypervisor
from cairn.controller.app import Controller
from cairn.controller.config import Config
from cairn.controller.store.memory import MemoryBackend, MemoryStore
from cairn.hardware.inventory.linux import LinuxInventory
from cairn.net.fake import FakeDataplane, FakeGuestServices, FakeNetHost
from cairn.proto import kinds, log, pki
from cairn.proto.rpc import FileCredentials, GrpcTransport, StaticCredentials
from cairn.proto.sealing import Seals
from cairn.proto.seams import SystemClock, SystemDisk, SystemIds
from cairn.storage.fake import FakeImages, FakePool, FakeVolumes

START_S = 30.0


@dataclass
class Node:
    """One server's agent and what its fake drivers work on."""

    agent: Agent
    host: FakeHost
    pool: FakePool


class RealCloud:
    """See the module. Used like the stand-in: `environment`, `wait`, `do`."""

    def __init__(self, folder: Path, controllers: int = 1) -> None:
        self.folder, self.count = folder, controllers
        names = [f"c{number}" for number in range(1, controllers + 1)]
        pki.init_cluster(
            folder, "test", controllers={name: ["127.0.0.1"] for name in names}, etcd_members={}, clock=SystemClock(),
            ids=SystemIds(),
        )  # fmt: skip
        self.backend = MemoryBackend()
        self.controllers: dict[str, Controller] = {}
        self.nodes: dict[str, Node] = {}
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)

    def start(self) -> None:
        log.configure("error")
        self._thread.start()
        for number in range(1, self.count + 1):
            self.do(self.serve(f"c{number}"))

    def close(self) -> None:
        for node in self.nodes.values():
            self.do(node.agent.stop())
        for name in list(self.controllers):
            self.do(self.kill(name))
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(10)
        self.loop.close()
        structlog.reset_defaults()

    def do(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(START_S)

    def wait(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result()

    def socket_of(self, name: str) -> Path:
        return self.folder / f"{name}.sock"

    @property
    def environment(self) -> dict[str, str]:
        sockets = [f"unix:{self.socket_of(f'c{number}')}" for number in range(1, self.count + 1)]
        return {
            "CAIRN_CONFIG": str(self.folder / "none.toml"),
            "CAIRN_ENDPOINT": ",".join(sockets),
            "CAIRN_CA": str(self.folder / "ca.crt"),
            "CAIRN_CERT": str(self.folder / "admin.crt"),
            "CAIRN_KEY": str(self.folder / "admin.key"),
            "NO_COLOR": "1",
            "COLUMNS": "100",
        }

    async def serve(self, name: str) -> None:
        """Start a controller and wait until it answers."""
        folder, clock, ids = self.folder, SystemClock(), SystemIds()
        files = [str(folder / each) for each in ("ca.crt", f"controller-{name}.crt", f"controller-{name}.key")]
        transport = GrpcTransport(FileCredentials(*files))
        port = await _free_port()
        config = Config(
            name=name, listen=(f"127.0.0.1:{port}", f"unix:{self.socket_of(name)}"), enrol_listen="127.0.0.1:0",
            etcd_endpoints=("none:1",), etcd_ca="", etcd_cert="", etcd_key="", ca=files[0], cert=files[1], key=files[2],
        )  # fmt: skip
        authority = pki.Authority.load(folder / "ca.crt", folder / "ca.key", clock, ids)
        controller = Controller(
            config,
            MemoryStore(self.backend),
            transport,
            clock,
            ids,
            authority=authority,
            ca_pem=authority.cert_pem,
            seals=Seals.load(folder / "secrets.key"),
        )
        await controller.start()
        self.controllers[name] = controller
        async with asyncio.timeout(START_S):
            await controller.ready.wait()

    async def kill(self, name: str) -> None:
        await self.controllers.pop(name).stop(0.0)
        self.socket_of(name).unlink(missing_ok=True)

    async def join(self, name: str, token: str) -> None:
        """Let a server join with a token and start its agent."""
        folder, ids = self.folder / name, SystemIds()
        files = identity.Files(folder / "pki")
        membership = await identity.join(files, name, token, lambda ca: GrpcTransport(StaticCredentials(ca)))
        config = AgentConfig(
            name=name,
            listen="127.0.0.1:0",
            underlay_mtu=1500,
            state_dir=str(folder),
            pki_dir=str(folder / "pki"),
            hypervisor="fake",
        )
        net, pool, clock = FakeNetHost(), FakePool(), SystemClock()
        host = FakeHost(taps=net.taps, size_at=pool.size_at, on_grow=pool.grow)
        agent = Agent(
            config, GrpcTransport(FileCredentials(files.ca, files.cert, files.key)), clock, ids, SystemDisk(folder / "ledger"),
            FakeHypervisor(host, clock), [FakeVolumes(pool)], FakeImages(pool), FakeDataplane(net), FakeGuestServices(),
            LinuxInventory(), membership=membership,
        )  # fmt: skip
        await agent.start()
        self.nodes[name] = Node(agent, host, pool)
        (controller, *_) = self.controllers.values()
        async with asyncio.timeout(START_S):
            while controller.cache.view.get(kinds.NODE_SESSION, membership.node) is None:
                await asyncio.sleep(0.02)


async def _free_port() -> int:
    server = await asyncio.start_server(lambda _reader, _writer: None, "127.0.0.1", 0)
    port: int = server.sockets[0].getsockname()[1]
    server.close()
    await server.wait_closed()
    return port
