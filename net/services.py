"""DHCP, names and metadata for every network on this node, from one event loop: sockets opened inside the VPCs' namespaces.

Invariant: what is answered follows from the last `update` alone. Namespaces come and go beside us (the dataplane makes them),
so the sockets are checked against what is there: soon while one is missing, else now and then, by inode of the namespace and
index of the bridge; a socket of a namespace that was removed is closed, or it would keep that namespace alive.
One process for all was chosen over a dnsmasq per subnet: 5 MB and a process less each, and no files to keep in step.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

from cairn.net import dhcp, metadata, namespace, naming, resolver
from cairn.net.base import NetError, Wanted
from cairn.net.names import Named, Names
from cairn.proto.ids import METADATA_ADDRESS
from cairn.proto.log import logger
from cairn.proto.v1.agent_pb2 import DesiredPort, DesiredSubnet, DesiredVm

if TYPE_CHECKING:
    from cairn.net.questions import Zone

T = TypeVar("T")
_MISSING_POLL_S: Final = 0.25
_CHECK_S: Final = 5.0
_BACKLOG: Final = 128
_IP_FREEBIND: Final = 15


@dataclass(frozen=True, slots=True)
class _Place:
    """A namespace as it is now: its inode, and the index of each wanted bridge that is there."""

    inode: int
    bridges: Mapping[str, int]


@dataclass(slots=True)
class _Site:
    """What we serve in one namespace."""

    inode: int
    web: asyncio.Server
    names: resolver.Resolver
    dhcp: dict[str, tuple[int, dhcp.DhcpServer]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Facts:
    """What is to be told, indexed for answering."""

    wanted: Wanted = field(default_factory=Wanted)
    vms: Mapping[str, DesiredVm] = field(default_factory=dict)
    by_mac: Mapping[tuple[str, str], DesiredPort] = field(default_factory=dict)
    by_address: Mapping[tuple[str, str], DesiredPort] = field(default_factory=dict)
    subnets: Mapping[str, DesiredSubnet] = field(default_factory=dict)


class NodeGuestServices:
    """GuestServices in the kernel's namespaces. prefix: as NetlinkDataplane's; resolv_conf: names the node's resolvers."""

    def __init__(self, *, prefix: str = naming.NAMESPACE_PREFIX, resolv_conf: Path = Path("/etc/resolv.conf")) -> None:
        self._prefix = prefix
        self._forwarder = resolver.Forwarder(resolver.NodeServers(resolv_conf))
        self._bounds = resolver.Bounds()
        self._facts = _Facts()
        self._names = Names()
        self._sites: dict[str, _Site] = {}
        self._threads = namespace.Threads(1)
        self._turn = asyncio.Lock()
        self._keeper: asyncio.Task[None] | None = None
        self._missing = False
        self._wake = asyncio.Event()
        self._log = logger("guest-services")

    async def update(self, wanted: Wanted, vms: Mapping[str, object]) -> None:
        """Serve exactly these from now on; where a namespace is not there yet, as soon as it is."""
        known = {id: vm for id, vm in vms.items() if isinstance(vm, DesiredVm)}
        ports = wanted.ports.values()
        self._facts = _Facts(
            wanted=wanted,
            vms=known,
            by_mac={(port.subnet, port.mac): port for port in ports},
            by_address={(port.vpc, address): port for port in ports for address in port.addresses},
            subnets={subnet.id: subnet for network in wanted.networks.values() for subnet in network.subnets},
        )
        await self._refresh()
        self._wake.set()
        if self._keeper is None:
            self._keeper = asyncio.create_task(self._keep(), name="guest-services")

    def named(self, key: str, card: Named | None) -> None:
        """Answer for what a card is called from now on."""
        self._names.put(key, card)

    async def close(self) -> None:
        """Stop serving."""
        if self._keeper is not None:
            self._keeper.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._keeper
        for vpc in list(self._sites):
            self._leave(vpc)
        await self._threads.close()

    async def _keep(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_MISSING_POLL_S if self._missing else _CHECK_S):
                    await self._wake.wait()
                    self._wake.clear()
                    continue
            await self._refresh()

    async def _refresh(self) -> None:
        """Make the sockets match what is wanted and what is there."""
        async with self._turn:
            missing = False
            networks = self._facts.wanted.networks
            for vpc in set(self._sites) - set(networks):
                self._leave(vpc)
            for vpc, network in sorted(networks.items()):
                subnets = [subnet.id for subnet in network.subnets]
                try:
                    missing |= not await self._visit(vpc, subnets)
                except (OSError, NetError) as error:
                    missing = True
                    self._log.warning("guest services not started", vpc=vpc, error=str(error))
            self._missing = missing

    async def _visit(self, vpc: str, subnets: list[str]) -> bool:
        """Serve one VPC as far as it is there; whether all of it is."""
        name = self._prefix + naming.suffix(vpc)
        place = await self._threads.run(name, partial(_look, name, subnets))
        site = self._sites.get(vpc)
        if site is not None and (place is None or place.inode != site.inode):
            self._leave(vpc)
            site = None
        if place is None:
            return False
        if site is None:
            site = self._sites[vpc] = await self._settle(vpc, name, place.inode)
        for subnet, (index, _) in list(site.dhcp.items()):
            if place.bridges.get(subnet) != index:
                self._stop_dhcp(site, subnet)
        for subnet in set(place.bridges) - set(site.dhcp):
            await self._start_dhcp(vpc, name, subnet, place.bridges[subnet])
        return set(place.bridges) == set(subnets)

    async def _settle(self, vpc: str, name: str, inode: int) -> _Site:
        """Begin to serve what is served once for a VPC."""
        listener = await self._threads.run(name, partial(_inside, name, _listen))
        web = await metadata.serve(listener, metadata.MetadataServer(partial(self._guest_at, vpc)))
        try:
            sockets = await self._threads.run(name, partial(_inside, name, resolver.listen))
            names = resolver.Resolver(vpc, sockets, partial(self._zone_for, vpc), self._forwarder, self._bounds)
            await names.start()
        except (OSError, NetError):
            web.close()
            raise
        return _Site(inode, web, names)

    async def _start_dhcp(self, vpc: str, name: str, subnet: str, index: int) -> None:
        bridge = naming.bridge_of(subnet)
        sockets = await self._threads.run(name, partial(_inside, name, partial(dhcp.listen, bridge)))
        server = dhcp.DhcpServer(bridge, sockets, partial(self._lease_of, vpc, subnet))
        self._sites[vpc].dhcp[subnet] = (index, server)
        asyncio.get_running_loop().add_reader(server.fileno(), self._serve_dhcp, vpc, subnet)

    def _serve_dhcp(self, vpc: str, subnet: str) -> None:
        site = self._sites[vpc]
        try:
            site.dhcp[subnet][1].serve()
        except NetError as error:
            # Its bridge vanished; opened again when there is one.
            self._log.warning("dhcp stopped", vpc=vpc, subnet=subnet, error=str(error))
            self._stop_dhcp(site, subnet)

    def _stop_dhcp(self, site: _Site, subnet: str) -> None:
        _, server = site.dhcp.pop(subnet)
        asyncio.get_running_loop().remove_reader(server.fileno())
        server.close()

    def _leave(self, vpc: str) -> None:
        site = self._sites.pop(vpc)
        for subnet in list(site.dhcp):
            self._stop_dhcp(site, subnet)
        site.web.close()
        site.names.close()

    def _lease_of(self, vpc: str, subnet_id: str, mac: str) -> dhcp.Lease | None:
        port, subnet = self._facts.by_mac.get((subnet_id, mac)), self._facts.subnets.get(subnet_id)
        network = self._facts.wanted.networks.get(vpc)
        if port is None or subnet is None or network is None:
            return None
        try:
            return dhcp.lease_for(port, subnet, network, self._first_vpc(port))
        except ValueError as error:
            # A card without an IPv4 address, say: whoever asks for it must not end the answers to all others.
            self._log.debug("no lease", port=port.id, error=str(error))
            return None

    def _first_vpc(self, port: DesiredPort) -> str:
        """Return the VPC of its guest's first card; empty when this is it, or nothing is known of the guest."""
        vm = self._facts.vms.get(port.vm)
        if vm is None or not vm.nics or vm.nics[0].port == port.id:
            return ""
        first = self._facts.wanted.ports.get(vm.nics[0].port)
        return first.vpc if first is not None else port.vpc

    def _zone_for(self, vpc: str, address: str) -> Zone | None:
        """Return what a guest may ask the resolver of; None: it is none here."""
        network = self._facts.wanted.networks.get(vpc)
        if network is None or (vpc, address) not in self._facts.by_address:
            return None
        from cairn.net.questions import Zone

        names = self._names
        return Zone(network.domain, network.cidr, partial(names.addresses, vpc), partial(names.hostname, vpc))

    def _guest_at(self, vpc: str, address: str) -> metadata.Guest | None:
        port = self._facts.by_address.get((vpc, address))
        vm = self._facts.vms.get(port.vm) if port is not None else None
        if port is None or vm is None:
            return None
        return metadata.Guest(vm, port, self._facts.wanted.ports, self._facts.subnets)


def _inside(name: str, job: Callable[[], T]) -> T:
    with namespace.opened(namespace.FOLDER / name) as handle, namespace.entered(handle):
        return job()


def _look(name: str, subnets: list[str]) -> _Place | None:
    """Return what is there of a namespace; None when it is not."""
    if not namespace.exists(name):
        return None
    with namespace.opened(namespace.FOLDER / name) as handle, namespace.entered(handle):
        indexes = {device: index for index, device in socket.if_nameindex()}
        bridges = {subnet: naming.bridge_of(subnet) for subnet in subnets}
        found = {subnet: indexes[bridge] for subnet, bridge in bridges.items() if bridge in indexes}
        return _Place(os.fstat(handle).st_ino, found)


def _listen() -> socket.socket:
    """Return the metadata socket of the namespace the calling thread is in; its address need not be there yet."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.IPPROTO_IP, _IP_FREEBIND, 1)
        listener.bind((METADATA_ADDRESS, metadata.PORT))
        listener.listen(_BACKLOG)
    except OSError:
        listener.close()
        raise
    return listener
