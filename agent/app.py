"""The agent's composition root: the only file that chooses drivers of real nodes. `cairn-agent run` and `cairn-agent join`.

`Agent` is the whole of it but for what touches the machine: given drivers, a transport, a clock and a disk, it runs in any
process, also many of them on virtual time. Dropping it harms no guest; the next one finds everything in the ledger and on
the host.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import click
import grpc.aio
from cairn.agent import config as configuration
from cairn.agent import identity
from cairn.agent.config import Config, ConfigError
from cairn.agent.exclusive import Exclusive
from cairn.agent.facts import Facts, agent_version
from cairn.agent.guestfiles import GuestFiles, GuestFolders
from cairn.agent.guests import Guests
from cairn.agent.hypervisor.base import Hypervisor
from cairn.agent.identity import Files, JoinError, Membership, Renewal
from cairn.agent.images import Images
from cairn.agent.journal import SLOW_S
from cairn.agent.ledger import Ledger
from cairn.agent.loop import NodeLoop, Units
from cairn.agent.metrics import MetricsServer
from cairn.agent.networks import Networks
from cairn.agent.reports import Reports
from cairn.agent.server import HostServer
from cairn.agent.sync import SyncClient
from cairn.agent.unknown import Unknowns
from cairn.agent.volumes import Volumes
from cairn.agent.world import World
from cairn.hardware.base import Inventory
from cairn.net.base import Dataplane, GuestServices
from cairn.proto import capabilities, log
from cairn.proto.pki import Identity, PkiError
from cairn.proto.rpc import FileCredentials, GrpcTransport, StaticCredentials, add_health_and_reflection, peer_identity
from cairn.proto.seams import Clock, Disk, Ids, SystemClock, SystemDisk, SystemIds, Transport
from cairn.proto.v1.agent_pb2 import Hello
from cairn.proto.v1.agent_pb2_grpc import add_HostServiceServicer_to_server
from cairn.storage.base import ImageStore, StorageError, VolumeDriver
from cairn.storage.drivers import Drivers
from cairn.storage.owner import Owner
from cairn.storage.rbd_pool import Place, RbdPool

# The first facts should be in the hello, but a dead hypervisor must not keep the node silent.
FACTS_TIMEOUT_S = 30.0
# How often console logs are looked at.
TRIM_S = 60.0
SWEEP_S = 3600.0
SERVICE = "cairn.v1.HostService"


class Agent:
    """One node's agent. `start` returns when it serves; it works until `stop`."""

    def __init__(
        self,
        config: Config,
        transport: Transport,
        clock: Clock,
        ids: Ids,
        disk: Disk,
        hypervisor: Hypervisor,
        volumes: Sequence[VolumeDriver],
        images: ImageStore,
        dataplane: Dataplane,
        services: GuestServices,
        inventory: Inventory,
        *,
        membership: Membership,
        files: GuestFiles | None = None,
        boot_id: str = "",
        identify: Callable[[Any], Identity] = peer_identity,
        extend: Callable[[grpc.aio.Server], Awaitable[Any]] | None = None,
        version: str = "",
    ) -> None:
        self._version = version or agent_version()
        state = config.state_path
        self._files = files = files or GuestFolders(state / "seeds", state / "console", guests_owner(config))
        self.membership, self._config, self._transport = membership, config, transport
        self.drivers, self._extend = Drivers(volumes), extend
        self.ledger, exclusive = Ledger(disk), Exclusive()
        self.reports = Reports(clock)
        self.ledger.watch(self._tell_slow_disk)
        self.world = World(hypervisor, self.drivers, images, dataplane, files)
        self.networks = Networks(dataplane, services, self.world, self.ledger, self.reports)
        self.guests = Guests(
            hypervisor,
            files,
            self.world,
            self.networks,
            self.ledger,
            self.reports,
            exclusive,
            permitted=lambda: self.sync.synced.is_set(),
        )
        volume_unit = Volumes(self.drivers, hypervisor, self.world, self.ledger, self.reports, exclusive)
        self.images = Images(images, self.world, self.ledger, self.reports, transport)
        unknowns = Unknowns(self.world, self.ledger, self.reports)
        units = Units(self.guests, volume_unit, self.images, self.networks, unknowns)
        self.loop = NodeLoop(units, self.world, self.ledger, self.reports, hypervisor, dataplane, ids)
        self.facts = Facts(
            inventory,
            hypervisor,
            self.drivers,
            self.reports,
            silent=self.world.hypervisor_silent,
            vtep=config.tunnel_address,
            underlay_mtu=config.underlay_mtu,
            version=self._version,
        )
        self._boot_id, self._endpoint = boot_id, config.endpoint
        self.sync = SyncClient(
            transport,
            ids,
            self.ledger,
            self.reports,
            controllers=config.controllers or membership.controllers,
            hello=self._hello,
            accepted=self.loop.accepted,
        )
        self._servicer = HostServer(identify, images, self.images, self.ledger, hypervisor)
        self._server: grpc.aio.Server | None = None
        self._running_on: asyncio.AbstractEventLoop | None = None
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def endpoint(self) -> str:
        """Where others reach this agent: host:port."""
        return self._endpoint

    def now_s(self) -> float:
        """Return the time of the loop it runs on, also for other threads."""
        return self._running_on.time() if self._running_on is not None else 0.0

    async def start(self) -> None:
        """Load the ledger, serve, and begin to work. OSError when the ledger or the port cannot be had."""
        self._running_on = asyncio.get_running_loop()
        await self.ledger.load()
        for error in await self.drivers.recover():
            log.logger("agent").warning("recover_failed", error=str(error))
        self._server = self._transport.server()
        add_HostServiceServicer_to_server(self._servicer, self._server)
        if self._extend is not None:
            await self._extend(self._server)
        bound = await self._transport.listen(self._server, self._config.listen)
        self._endpoint = self._config.advertise or bound
        await self._server.start()
        self._spawn(self.loop.run(), "loop")
        self._spawn(self._talk(), "talk")
        self._spawn(self._trim_for_ever(), "trim")
        log.logger("agent").info("started", node=self.membership.node, endpoint=self._endpoint, held=self.ledger.held)

    def _tell_slow_disk(self) -> None:
        say = (
            f"its disk has been writing the ledger for {SLOW_S:.0f} s: what it is told meanwhile is acted on after"
            " that; guests that run are not affected, unless their disks are there too"
        )
        self.reports.event("", "DiskSlow", say, warning=True)

    async def wait(self) -> None:
        """Return when it was stopped; raise what broke it."""
        if self._tasks:
            done, _ = await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                with suppress(asyncio.CancelledError):
                    task.result()

    async def stop(self) -> None:
        """Stop working and serving; guests run on. The drivers stay open: they belong to who made them."""
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.ledger.close()
        if self._server is not None:
            await self._server.stop(None)
            self._server = None

    async def _talk(self) -> None:
        """Tell controllers about this node, once it knows itself."""
        try:
            async with asyncio.timeout(FACTS_TIMEOUT_S):
                await self.facts.refresh()
        except TimeoutError:
            log.logger("agent").warning("facts_late", after_s=FACTS_TIMEOUT_S)
        async with asyncio.TaskGroup() as group:
            group.create_task(self.facts.run(), name="facts")
            group.create_task(self.sync.run(), name="sync")

    async def _trim_for_ever(self) -> None:
        """Bound what guests' files grow to, and have removed what killed processes left in pools."""
        sweep_in_s = TRIM_S
        while True:
            await asyncio.sleep(TRIM_S)
            sweep_in_s -= TRIM_S
            if sweep_in_s <= 0:
                errors = await self.drivers.sweep()
                for each in errors:
                    log.logger("agent").warning("sweep_failed", error=str(each))
                # Sooner again when something could not be.
                sweep_in_s = TRIM_S if errors else SWEEP_S
            try:
                await self._files.trim()
            except StorageError as error:
                log.logger("agent").warning("trim_failed", error=str(error))

    def _hello(self) -> Hello:
        return Hello(
            node=self.membership.node,
            boot_id=self._boot_id,
            agent_version=self._version,
            endpoint=self._endpoint,
            facts=self.reports.facts,
            capabilities=capabilities.of_agent(self.drivers.types),
        )

    def _spawn(self, work: Coroutine[Any, Any, None], name: str) -> None:
        self._tasks.append(asyncio.create_task(work, name=name))


# --- the process -----------------------------------------------------------------------------------------------------------


async def serve(config: Config, membership: Membership, boot_id: str) -> None:
    """Run an agent with this machine's drivers until SIGTERM or SIGINT."""
    clock, ids, files = SystemClock(), SystemIds(), Files(config.pki_path)
    transport = GrpcTransport(FileCredentials(files.ca, files.cert, files.key), ids=ids)
    ceph = _ceph_pool(config)
    hypervisor, dataplane, services = _host_drivers(config, clock, ceph)
    volumes, images, inventory = _machine(config, ids, clock, ceph)
    agent = Agent(
        config,
        transport,
        clock,
        ids,
        SystemDisk(config.state_path / "ledger"),
        hypervisor,
        volumes,
        images,
        dataplane,
        services,
        inventory,
        membership=membership,
        boot_id=boot_id,
        extend=lambda server: add_health_and_reflection(server, [SERVICE]),
    )
    renewal = Renewal(files, transport, clock, config.controllers or membership.controllers)
    try:
        await agent.start()
        await _until_signal(agent, renewal, config, files)
    finally:
        await agent.stop()
        await services.close()
        await dataplane.close()
        await hypervisor.close()
        if ceph is not None:
            await ceph.close()


async def _until_signal(agent: Agent, renewal: Renewal, config: Config, files: Files) -> None:
    metrics = MetricsServer(agent, config.metrics_listen, files) if config.metrics_listen else None
    renewal.on_renewed = metrics.reload if metrics is not None else None
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    parts = [asyncio.ensure_future(work) for work in (agent.wait(), renewal.run(), stop.wait())]
    try:
        done, _ = await asyncio.wait(parts, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in parts:
            task.cancel()
        await asyncio.gather(*parts, return_exceptions=True)
        if metrics is not None:
            metrics.close()


def _ceph_pool(config: Config) -> RbdPool | None:
    """Return the way to the pool of a Ceph cluster that this node has, if any."""
    if not config.rbd_pool:
        return None
    pool, _, namespace = config.rbd_pool.partition("/")
    return RbdPool(Place(config.rbd_conf, config.rbd_user, pool, namespace))


def _host_drivers(config: Config, clock: Clock, ceph: RbdPool | None) -> tuple[Hypervisor, Dataplane, GuestServices]:
    """Return the drivers of guests and networks. Imported here: a simulation has neither libvirt nor netlink."""
    if config.hypervisor == "fake":
        from cairn.agent.hypervisor.fake import FakeHost, FakeHypervisor
        from cairn.net.fake import FakeDataplane, FakeGuestServices, FakeNetHost

        net = FakeNetHost()
        return FakeHypervisor(FakeHost(taps=net.taps), clock), FakeDataplane(net), FakeGuestServices()
    from cairn.agent.hypervisor.libvirt import LibvirtHypervisor
    from cairn.net.netlink import NetlinkDataplane
    from cairn.net.services import NodeGuestServices

    keys = {ceph.place.network: ceph.key} if ceph is not None else {}
    return LibvirtHypervisor(clock, config.hypervisor_uri, keys=keys), NetlinkDataplane(), NodeGuestServices()


def _machine(
    config: Config, ids: Ids, clock: Clock, ceph: RbdPool | None
) -> tuple[Sequence[VolumeDriver], ImageStore, Inventory]:
    """Return storage and inventory of this machine."""
    from cairn.hardware.inventory.linux import LinuxInventory
    from cairn.storage.local import LocalImages, LocalVolumes
    from cairn.storage.rbd import RbdVolumes

    owner = guests_owner(config)
    for folder in (config.state_path, config.pool_path):
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        owner.enter(folder)
    images = LocalImages(config.pool_path, owner)
    volumes: list[VolumeDriver] = [LocalVolumes(config.pool_path, owner)]
    if ceph is not None:
        volumes.append(RbdVolumes(ceph, images, ids, clock, node=config.name))
    return volumes, images, LinuxInventory()


def guests_owner(config: Config) -> Owner:
    """Return whose guests' processes are. Raises ConfigError."""
    try:
        return Owner.named(config.guest_user)
    except StorageError as error:
        raise ConfigError(f"guest_user: {error}") from error


def find_underlay_mtu(vtep: str) -> int:
    """Return the MTU of the interface that has an address; ConfigError when none has."""
    from pyroute2 import IPRoute

    with IPRoute() as ip:
        for address in ip.get_addr(address=vtep):
            for link in ip.get_links(address["index"]):
                return int(link.get_attr("IFLA_MTU"))
    raise ConfigError(f"no interface has the address {vtep}: set vtep to this node's underlay address")


def _lock(config: Config) -> IO[str]:
    """Keep a second agent off this node's state, for as long as the file is open."""
    config.state_path.mkdir(parents=True, exist_ok=True, mode=0o700)
    file = (config.state_path / "agent.lock").open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise ConfigError(f"another agent runs on {config.state_path}") from error
    return file


@click.group()
def main() -> None:
    """Carry guests on this node, as the controllers say."""


@main.command()
@click.option("--config", "path", required=True, type=click.Path(path_type=Path, dir_okay=False), help="TOML file.")
def run(path: Path) -> None:
    """Run the agent."""
    os.umask(0o077)
    try:
        config = configuration.load(path)
        log.configure(config.log_level)
        membership = identity.load(Files(config.pki_path))
        if membership is None:
            raise ConfigError(f"this node has not joined: cairn-agent join --config {path} --token-file FILE")
        config = replace(config, underlay_mtu=config.underlay_mtu or find_underlay_mtu(config.tunnel_address))
        boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        with _lock(config):
            asyncio.run(serve(config, membership, boot_id))
    except (ConfigError, PkiError, OSError) as error:
        raise click.ClickException(str(error)) from error


@main.command()
@click.option("--config", "path", required=True, type=click.Path(path_type=Path, dir_okay=False), help="TOML file.")
@click.option("--token-file", "source", required=True, help="File with the join token; - is standard input.")
def join(path: Path, source: str) -> None:
    """Make this server a node: a key made here, a certificate from the controllers."""
    os.umask(0o077)
    try:
        config = configuration.load(path)
        log.configure(config.log_level)
        files = Files(config.pki_path)
        if (joined := identity.load(files)) is not None:
            click.echo(f"joined already as {joined.node}")
            return
        token = sys.stdin.read() if source == "-" else Path(source).read_text()
        membership = asyncio.run(identity.join(files, config.name, token, _trusting))
    except (ConfigError, JoinError, PkiError, OSError) as error:
        raise click.ClickException(str(error)) from error
    click.echo(f"joined as {membership.node}")


def _trusting(ca_pem: bytes) -> GrpcTransport:
    return GrpcTransport(StaticCredentials(ca_pem))


if __name__ == "__main__":
    main()
