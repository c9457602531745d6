"""Many nodes in one process, each a real agent on fake drivers: the servers of a simulated cloud.

    python -m cairn.agent.fleet --folder FOLDER       # a node for every line of standard input; ends with it

A line is JSON: {"number": 7, "name": "n7", "token": "..."}. The node joins as any server does (a key made in FOLDER/n7, a
one-time token, a certificate) or finds that it has joined, and runs an `Agent` until the process ends. Only the machine is made
up: guests, volumes, networks and hardware are the shipped fakes. Their disks are memory, so nodes of a fleet that is started
anew come back empty, as servers with new disks would: they keep their identity, forget their ledger, and are told again.

Why many to a process: a process each costs 70 MiB and half a second of start; as a task, a node costs a quarter of a MiB.
Nodes share nothing but the loop and the bytes of equal images.
"""

from __future__ import annotations

import asyncio
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Self

import click
import structlog
from cairn.agent import identity
from cairn.agent.app import Agent
from cairn.agent.config import Config
from cairn.agent.guestfiles import FakeGuestFiles
from cairn.agent.hypervisor.fake import FACTS, FakeHost, FakeHypervisor
from cairn.agent.identity import Files, JoinError, Membership, Renewal
from cairn.agent.ledger import NAME as LEDGER
from cairn.hardware.fake import FakeInventory, Model, model_of
from cairn.net.fake import FakeDataplane, FakeGuestServices, FakeNetHost
from cairn.proto import lifeline, log
from cairn.proto.pki import PkiError
from cairn.proto.rpc import FileCredentials, GrpcTransport, StaticCredentials
from cairn.proto.seams import SystemClock, SystemDisk, SystemIds
from cairn.proto.v1.node_pb2 import HypervisorFacts
from cairn.storage.fake import FakeImages, FakePool, FakeVolumes

JOIN_AT_ONCE_MAX: Final = 4
UNDERLAY_MTU: Final = 9000
# How long the made-up hardware takes for things.
HYPERVISOR_S: Final = 0.02
DATAPLANE_S: Final = 0.005
BOOT_S: Final = 2.0
SHUTDOWN_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class Order:
    """A node to run. token: a secret, empty when it has joined already."""

    number: int
    name: str
    token: str = field(default="", repr=False)

    @classmethod
    def parse(cls, line: str) -> Self:
        """Read a line; ValueError when it is none."""
        try:
            document = json.loads(line)
            return cls(int(document["number"]), str(document["name"]), str(document["token"]))
        except (KeyError, TypeError) as error:
            raise ValueError(f"not a node: it lacks {error}") from error

    @property
    def vtep(self) -> str:
        """Underlay address: in 198.18.0.0/15, which is for tests of devices (RFC 2544) and reaches nothing."""
        return f"198.18.{self.number >> 8}.{self.number & 0xFF}"


class UnsyncedDisk(SystemDisk):
    """A file written outlives its process without a sync; only a power cut takes it, and this whole cloud with it.

    So no thread is needed either, of which each node would have one.
    """

    async def replace(self, name: str, content: bytes) -> None:
        """Write atomically."""
        self._replace(name, content)

    async def append(self, name: str, content: bytes) -> None:
        """Add at the end."""
        self._append(name, content)

    def _sync(self, handle: int) -> None:
        """Do nothing."""


class Machine:
    """What is a node's own and outlives its agent: disk, guests, networks."""

    def __init__(self, model: Model, neighbours: list[FakePool]) -> None:
        self.pool = FakePool(capacity_bytes=model.disk_gib << 30, neighbours=neighbours)
        neighbours.append(self.pool)
        self.net = FakeNetHost()
        facts = HypervisorFacts()
        facts.CopyFrom(FACTS)
        facts.accelerator, facts.cpu_mode, facts.archs[:] = "kvm", "host-passthrough", [model.arch]
        self.host = FakeHost(facts=facts, taps=self.net.taps, boot_s=BOOT_S, shutdown_s=SHUTDOWN_S)
        self.host.size_at, self.host.on_grow = self.pool.size_at, self.pool.grow
        self.files: dict[str, bytes] = {}


async def run(folder: Path) -> None:
    """Run a node for every order; what breaks one ends all. ExceptionGroup of JoinError, PkiError, OSError, ValueError."""
    fleet, nodes = Fleet(folder), list[asyncio.Task[None]]()
    async with asyncio.TaskGroup() as group:
        await lifeline.follow(lambda line: nodes.append(group.create_task(fleet.live(Order.parse(line)))))
        for node in nodes:
            node.cancel()


class Fleet:
    """What the nodes of one process share."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._clock, self._ids = SystemClock(), SystemIds()
        self._joining = asyncio.Semaphore(JOIN_AT_ONCE_MAX)
        self._pools: list[FakePool] = []

    async def live(self, order: Order) -> None:
        """Join, and be a node until cancelled."""
        structlog.contextvars.bind_contextvars(node_name=order.name)
        files = Files(self._folder / order.name / "pki")
        async with self._joining:
            membership = await identity.join(files, order.name, order.token, _trusting)
        transport = GrpcTransport(FileCredentials(files.ca, files.cert, files.key), ids=self._ids)
        agent = self._agent(order, membership, transport)
        renewal = Renewal(files, transport, self._clock, membership.controllers)
        renewing = asyncio.create_task(renewal.run())
        try:
            await agent.start()
            await agent.wait()
        finally:
            renewing.cancel()
            await agent.stop()

    def _agent(self, order: Order, membership: Membership, transport: GrpcTransport) -> Agent:
        model = model_of(order.number)
        machine, folder = Machine(model, self._pools), self._folder / order.name
        ledger = UnsyncedDisk(folder / "ledger")
        (ledger.root / LEDGER).unlink(missing_ok=True)
        config = Config(
            name=order.name,
            listen="127.0.0.1:0",
            vtep=order.vtep,
            underlay_mtu=UNDERLAY_MTU,
            state_dir=str(folder),
            pki_dir=str(folder / "pki"),
            hypervisor="fake",
        )
        return Agent(
            config,
            transport,
            self._clock,
            self._ids,
            ledger,
            FakeHypervisor(machine.host, self._clock, latency_s=HYPERVISOR_S),
            [FakeVolumes(machine.pool)],
            FakeImages(machine.pool),
            FakeDataplane(machine.net, latency_s=DATAPLANE_S),
            FakeGuestServices(),
            FakeInventory(model, order.name, order.number),
            membership=membership,
            files=FakeGuestFiles(machine.files),
            boot_id=self._ids.uuid(),
        )


def _trusting(ca_pem: bytes) -> GrpcTransport:
    return GrpcTransport(StaticCredentials(ca_pem))


@click.command()
@click.option("--folder", required=True, type=click.Path(path_type=Path, file_okay=False), help="What nodes keep.")
def main(folder: Path) -> None:
    """Run simulated nodes until standard input ends."""
    os.umask(0o077)
    log.configure("warning")
    failed: list[str] = []
    try:
        asyncio.run(run(folder))
    except* (JoinError, PkiError, OSError, ValueError) as errors:
        failed = [str(error) for error in errors.exceptions]
    if failed:
        raise click.ClickException("; ".join(failed))


if __name__ == "__main__":
    main()
