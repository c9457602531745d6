"""DHCP and metadata as a guest sees them, on this kernel: from an address-less card to a page of metadata."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from ipaddress import IPv4Interface
from pathlib import Path
from typing import Any

import pytest
from cairn.net import dhcp, namespace
from cairn.net.base import Wanted
from cairn.net.services import NodeGuestServices
from cairn.proto.v1.agent_pb2 import DesiredVm

from tests.conformance.net_kit import (
    Card,
    RealNode,
    Vpc,
    fresh_prefix,
    id_of,
    missing,
    real_nodes,
    run,
    settle,
    wanted_on,
)

pytestmark = [pytest.mark.root, pytest.mark.skipif(bool(missing()), reason=missing())]

BLUE, OTHER = id_of("vxnet", 1), id_of("vxnet", 2)
ONE = Vpc(1, {BLUE: "10.0.1.0/24"}, 5000)
TWO = Vpc(2, {OTHER: "10.0.1.0/24"}, 6000)
A = Card(11, ONE.id, BLUE, "10.0.1.11/24", 1)
TWIN = Card(31, TWO.id, OTHER, "10.0.1.11/24", 1)
NODES = {1: "172.31.0.1"}


def vm_of(card: Card) -> DesiredVm:
    vm = DesiredVm(id=card.port().vm, name=f"guest-{card.number}", hostname=f"guest-{card.number}", user_data=b"#!/bin/sh\n")
    vm.ssh_keys.append("ssh-ed25519 AAAA somebody")
    vm.nics.add(port=card.id, tap=card.tap, mac=card.mac, mtu=1450, subnet=card.subnet, addresses=card.port().addresses)
    return vm


@dataclass
class Site:
    node: RealNode
    dataplane: Any
    services: NodeGuestServices
    wanted: Wanted
    vms: dict[str, DesiredVm]

    async def inside(self, card: Card, job: Callable[[], Any]) -> Any:
        """Run a blocking job as the guest, beside the services."""

        def enter() -> Any:
            with namespace.opened(namespace.FOLDER / self.node.guest(card)) as handle, namespace.entered(handle):
                return job()

        return await asyncio.to_thread(enter)


@asynccontextmanager
async def site(resolv_conf: Path = Path("/dev/null")) -> AsyncIterator[Site]:
    with real_nodes(fresh_prefix(), 1) as (node,):
        wanted = wanted_on(1, NODES, [ONE, TWO], [A, TWIN])
        dataplane, services = node.dataplane(), NodeGuestServices(prefix=node.vpc_prefix, resolv_conf=resolv_conf)
        for card in (A, TWIN):
            node.start_guest(card)
        try:
            await settle(dataplane, wanted)
            yield Site(node, dataplane, services, wanted, {card.port().vm: vm_of(card) for card in (A, TWIN)})
        finally:
            await services.close()
            await dataplane.close()


def ask(card: Card, kind: int, *, broadcast: bool, requested: str = "", server: str = "") -> bytes:
    """A DHCP message as a client without an address sends it: the IP packet."""
    flags = 0x8000 if broadcast else 0
    fixed = struct.pack("!BBBBIHH16s16s192x", 1, 1, 6, 0, 0xC0FFEE, 0, flags, b"", bytes.fromhex(card.mac.replace(":", "")))
    options = bytes([53, 1, kind])
    options += bytes([50, 4]) + socket.inet_aton(requested) if requested else b""
    options += bytes([54, 4]) + socket.inet_aton(server) if server else b""
    payload = fixed + b"\x63\x82\x53\x63" + options + b"\xff"
    packet = dhcp.packet("0.0.0.0", dhcp.Reply(kind, "255.255.255.255", payload))
    return packet[:20] + struct.pack("!HHHH", 68, 67, 8 + len(payload), 0) + payload


def exchange(message: bytes) -> tuple[str, dict[int, bytes]]:
    """Send it from eth0, return (offered address, options) of the reply; {} when none comes."""
    card = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(0x0800))
    with card:
        card.bind(("eth0", 0x0800))
        card.settimeout(0.5)
        for _ in range(6):
            card.sendto(message, ("eth0", 0x0800, 0, 0, b"\xff" * 6))
            try:
                while True:
                    packet = card.recv(2000)
                    if packet[9] == 17 and packet[20:24] == struct.pack("!HH", 67, 68):
                        options, body = {}, packet[28 + 240 :]
                        while body[0] != 255:
                            options[body[0]], body = body[2 : 2 + body[1]], body[2 + body[1] :]
                        return socket.inet_ntoa(packet[28 + 16 : 28 + 20]), options
            except TimeoutError:
                continue
    return "", {}


def fetch(path: str, method: str = "GET", headers: str = "") -> tuple[int, bytes]:
    with socket.create_connection(("169.254.169.254", 80), timeout=10) as connection:
        connection.sendall(f"{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{headers}\r\n".encode())
        answer = b""
        while part := connection.recv(4096):
            answer += part
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), body


def unconfigure(node: RealNode, card: Card) -> None:
    run("ip", "-n", node.guest(card), "addr", "flush", "dev", "eth0")


@pytest.mark.parametrize("broadcast", [False, True], ids=["unicast", "broadcast"])
async def test_an_address_less_guest_is_told_everything(broadcast: bool) -> None:
    async with site() as here:
        unconfigure(here.node, A)
        await here.services.update(here.wanted, here.vms)
        offered, options = await here.inside(A, lambda: exchange(ask(A, dhcp.DISCOVER, broadcast=broadcast)))
        assert (offered, options[53]) == ("10.0.1.11", bytes([dhcp.OFFER]))
        request = ask(A, dhcp.REQUEST, broadcast=broadcast, requested=offered, server="10.0.1.1")
        given, options = await here.inside(A, lambda: exchange(request))
        assert (given, options[53]) == ("10.0.1.11", bytes([dhcp.ACK]))
        assert options[1] == socket.inet_aton("255.255.255.0")
        assert options[3] == socket.inet_aton("10.0.1.1")
        assert options[6] == socket.inet_aton("10.0.1.1")
        assert options[12] == b"guest-11"
        assert options[26] == struct.pack("!H", 1450)
        assert options[51] == struct.pack("!I", 86_400)
        gateway = socket.inet_aton("10.0.1.1")
        assert options[121] == bytes([32, 169, 254, 169, 254]) + gateway + bytes([0]) + gateway
        wrong = ask(A, dhcp.REQUEST, broadcast=broadcast, requested="10.0.1.99")
        assert (await here.inside(A, lambda: exchange(wrong)))[1][53] == bytes([dhcp.NAK])


async def test_metadata_is_each_guests_own_also_when_addresses_are_the_same() -> None:
    async with site() as here:
        await here.services.update(here.wanted, here.vms)
        for card in (A, TWIN):
            status, body = await here.inside(card, lambda: fetch("/latest/meta-data/instance-id"))
            assert (status, body.decode()) == (200, card.port().vm)
        assert await here.inside(A, lambda: fetch("/latest/user-data")) == (200, b"#!/bin/sh\n")
        assert (await here.inside(A, lambda: fetch("/latest/meta-data/nothing")))[0] == 404
        assert (await here.inside(A, lambda: fetch("/latest/", "PUT")))[0] == 405
        assert (await here.inside(A, lambda: fetch("/latest/", headers="X-Forwarded-For: 1.2.3.4\r\n")))[0] == 403


async def test_a_guest_nobody_knows_gets_404_and_no_lease() -> None:
    async with site() as here:
        await here.services.update(Wanted(networks=here.wanted.networks), {})
        assert (await here.inside(A, lambda: fetch("/latest/meta-data/instance-id")))[0] == 404
        unconfigure(here.node, A)
        assert await here.inside(A, lambda: exchange(ask(A, dhcp.DISCOVER, broadcast=True))) == ("", {})


async def test_services_follow_a_namespace_that_is_made_later_and_again() -> None:
    async with site() as here:
        for card in (A, TWIN):
            here.node.stop_guest(card)
        await settle(here.dataplane, Wanted())
        await here.services.update(here.wanted, here.vms)
        for _ in range(2):
            here.node.start_guest(A)
            await settle(here.dataplane, here.wanted)
            unconfigure(here.node, A)
            assert (await here.inside(A, lambda: exchange(ask(A, dhcp.DISCOVER, broadcast=False))))[0] == "10.0.1.11"
            here.node.stop_guest(A)
            await settle(here.dataplane, Wanted())
            await here.services.update(here.wanted, here.vms)


async def test_what_is_no_longer_wanted_is_no_longer_served() -> None:
    async with site() as here:
        await here.services.update(here.wanted, here.vms)
        assert (await here.inside(A, lambda: fetch("/latest/")))[0] == 200
        await here.services.update(Wanted(), {})
        with pytest.raises(ConnectionRefusedError):
            await here.inside(A, lambda: fetch("/latest/"))
        assert IPv4Interface(A.address).network == IPv4Interface(TWIN.address).network
