"""Frames on this kernel: two nodes on an underlay, two VPCs with the same addresses, guests with real IP stacks."""

from __future__ import annotations

import asyncio
import socket
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from cairn.net import namespace

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

BLUE, GREEN, OTHER = id_of("vxnet", 1), id_of("vxnet", 2), id_of("vxnet", 3)
ONE = Vpc(1, {BLUE: "10.0.1.0/24", GREEN: "10.0.2.0/24"}, 5000)
TWO = Vpc(2, {OTHER: "10.0.1.0/24"}, 6000)
A = Card(11, ONE.id, BLUE, "10.0.1.11/24", 1)
NEIGHBOUR = Card(12, ONE.id, BLUE, "10.0.1.12/24", 1)
ROUTED = Card(13, ONE.id, GREEN, "10.0.2.13/24", 1)
FAR = Card(21, ONE.id, BLUE, "10.0.1.21/24", 2)
FAR_ROUTED = Card(22, ONE.id, GREEN, "10.0.2.22/24", 2)
TWIN = Card(31, TWO.id, OTHER, "10.0.1.11/24", 1)
FAR_TWIN = Card(32, TWO.id, OTHER, "10.0.1.21/24", 2)
CARDS = [A, NEIGHBOUR, ROUTED, FAR, FAR_ROUTED, TWIN, FAR_TWIN]
MARKER = b"this one may pass"
ETH_P_ALL = 3


@dataclass
class Cloud:
    prefix: str
    nodes: list[RealNode]

    def guest(self, card: Card) -> str:
        return self.nodes[0].guest(card)

    def ping(self, card: Card, address: str, *options: str) -> bool:
        argv = ("ip", "netns", "exec", self.guest(card), "ping", "-c1", "-W1", *options, address)
        return run(*argv, check=False).returncode == 0

    def sniff(self, name: str, device: str = "") -> socket.socket:
        with namespace.opened(namespace.FOLDER / name) as handle, namespace.entered(handle):
            sniffer = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
        if device:
            sniffer.bind((device, ETH_P_ALL))
        sniffer.settimeout(10)
        return sniffer


async def program(nodes: list[RealNode]) -> None:
    addresses = {node.index: node.address for node in nodes}
    for node in nodes:
        dataplane = node.dataplane()
        try:
            await settle(dataplane, wanted_on(node.index, addresses, [ONE, TWO], CARDS))
        finally:
            await dataplane.close()


@pytest.fixture(scope="module")
def cloud() -> Iterator[Cloud]:
    prefix = fresh_prefix()
    with real_nodes(prefix, 2) as nodes:
        for card in CARDS:
            nodes[card.node - 1].start_guest(card)
        asyncio.run(program(nodes))
        yield Cloud(prefix, nodes)


@pytest.mark.parametrize(
    ("source", "address"),
    [
        pytest.param(A, "10.0.1.12", id="same-node-same-subnet"),
        pytest.param(A, "10.0.2.13", id="same-node-routed"),
        pytest.param(A, "10.0.1.21", id="other-node-same-subnet"),
        pytest.param(A, "10.0.2.22", id="other-node-routed"),
        pytest.param(FAR_ROUTED, "10.0.1.11", id="other-node-routed-back"),
        pytest.param(A, "10.0.1.1", id="gateway"),
        pytest.param(A, "10.0.2.1", id="gateway-of-another-subnet"),
        pytest.param(TWIN, "10.0.1.21", id="second-vpc-same-addresses"),
    ],
)
def test_guests_reach(cloud: Cloud, source: Card, address: str) -> None:
    assert cloud.ping(source, address)


def test_full_size_packets_cross_nodes_unfragmented(cloud: Cloud) -> None:
    assert cloud.ping(A, "10.0.1.21", "-Mdo", "-s1422")
    assert cloud.ping(A, "10.0.2.22", "-Mdo", "-s1422")
    assert not cloud.ping(A, "10.0.2.22", "-Mdo", "-s1423")


def test_every_node_answers_with_the_same_gateway_mac(cloud: Cloud) -> None:
    seen = set()
    for card in (A, FAR, TWIN):
        assert cloud.ping(card, "10.0.1.1")
        seen.add(run("ip", "-n", cloud.guest(card), "neigh", "show", "10.0.1.1").stdout.split()[4])
    assert seen == {"02:00:5e:00:00:01"}


def listener_in(cloud: Cloud, card: Card) -> socket.socket:
    with namespace.opened(namespace.FOLDER / cloud.guest(card)) as handle, namespace.entered(handle):
        server = socket.create_server(("0.0.0.0", 4000))
    server.settimeout(10)
    return server


def test_each_vpc_reaches_its_own_guest_of_an_address_both_use(cloud: Cloud) -> None:
    listeners = [listener_in(cloud, card) for card in (FAR, FAR_TWIN)]
    try:
        for source, listener in zip((A, TWIN), listeners, strict=True):
            with namespace.opened(namespace.FOLDER / cloud.guest(source)) as handle, namespace.entered(handle):
                client = socket.create_connection(("10.0.1.21", 4000), timeout=10)
            with client:
                client.sendall(source.id.encode())
                accepted, _ = listener.accept()
                with accepted:
                    assert accepted.recv(100) == source.id.encode()
    finally:
        for listener in listeners:
            listener.close()


def test_vpcs_and_nodes_do_not_reach_each_other(cloud: Cloud) -> None:
    assert not cloud.ping(TWIN, "10.0.2.13"), "the other VPC's subnet"
    assert not cloud.ping(TWIN, "10.0.1.12"), "the other VPC's guest"
    assert not cloud.ping(A, cloud.nodes[0].address), "the node itself"
    assert not cloud.ping(A, "169.254.0.2"), "the other node's transit address"


def frame(
    card: Card, target: Card, *, mac: str = "", address: str = "", sport: int = 4000, payload: bytes = b"forged"
) -> bytes:
    """A UDP packet from card to target, or one that lies about where it is from."""
    source = socket.inet_aton(address or card.port().addresses[0])
    udp = struct.pack("!HHHH", sport, 4001, 8 + len(payload), 0) + payload
    to = socket.inet_aton(target.port().addresses[0])
    header = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(udp), 0, 0, 64, 17, 0) + source + to
    total = sum(struct.unpack("!10H", header))
    total = (total & 0xFFFF) + (total >> 16)
    header = header[:10] + struct.pack("!H", ~total & 0xFFFF) + header[12:]
    return octets(target.mac) + octets(mac or card.mac) + b"\x08\x00" + header + udp


def octets(mac: str) -> bytes:
    return bytes.fromhex(mac.replace(":", ""))


def arp(card: Card, target: Card, *, address: str, mac: str = "", operation: int = 2) -> bytes:
    body = struct.pack("!HHBBH", 1, 0x0800, 6, 4, operation) + octets(mac or card.mac) + socket.inet_aton(address)
    body += octets(target.mac) + socket.inet_aton(target.port().addresses[0])
    return octets(target.mac) + octets(card.mac) + b"\x08\x06" + body


LIES = {
    "another address": frame(A, NEIGHBOUR, address="10.0.1.99"),
    "another guest's address": frame(A, NEIGHBOUR, address="10.0.1.21"),
    "another MAC": frame(A, NEIGHBOUR, mac="2a:00:00:00:99:99"),
    "another guest's MAC and address": frame(A, NEIGHBOUR, mac=FAR.mac, address="10.0.1.21"),
    "an ARP reply for another address": arp(A, NEIGHBOUR, address="10.0.1.21"),
    "an ARP reply as the gateway": arp(A, NEIGHBOUR, address="10.0.1.1"),
    "an ARP reply naming another MAC": arp(A, NEIGHBOUR, address="10.0.1.11", mac="2a:00:00:00:99:99"),
    "a DHCP server": frame(A, NEIGHBOUR, sport=67),
    "IPv6": octets(NEIGHBOUR.mac) + octets(A.mac) + b"\x86\xdd" + b"\x60" + bytes(59),
    "a VLAN tag": octets(NEIGHBOUR.mac) + octets(A.mac) + b"\x81\x00\x00\x05\x08\x00" + frame(A, NEIGHBOUR)[14:],
}


@pytest.mark.parametrize("lie", LIES)
def test_a_guest_cannot_pretend(cloud: Cloud, lie: str) -> None:
    """The forged frame goes first, an honest one second: only the second arrives."""
    sniffer = cloud.sniff(cloud.guest(NEIGHBOUR), "eth0")
    sender = cloud.sniff(cloud.guest(A), "eth0")
    with sniffer, sender:
        for data in (LIES[lie], frame(A, NEIGHBOUR, payload=MARKER)):
            sender.send(data)
        while True:
            seen = sniffer.recv(2000)
            if seen[6:12] in (octets(A.mac), octets("2a:00:00:00:99:99"), octets(FAR.mac)):
                assert MARKER in seen, f"{lie} went through: {seen.hex()}"
                return


def test_nothing_is_broadcast_on_the_underlay(cloud: Cloud) -> None:
    """ARP is answered on the node; frames to nobody go nowhere."""
    with cloud.sniff(f"{cloud.prefix}u") as sniffer:
        for card in (A, TWIN, FAR_ROUTED):
            run("ip", "-n", cloud.guest(card), "neigh", "flush", "all")
        assert not cloud.ping(A, "10.0.1.77")
        run("ip", "netns", "exec", cloud.guest(A), "ping", "-b", "-c1", "-W1", "10.0.1.255", check=False)
        assert cloud.ping(TWIN, "10.0.1.21")
        assert cloud.ping(FAR_ROUTED, "10.0.1.11")
        tunnelled = list(captured(sniffer))
    assert tunnelled, "the pings crossed the underlay"
    loud = [data.hex() for data in tunnelled if data[0] & 1]
    assert loud == []


def captured(sniffer: socket.socket) -> Iterator[bytes]:
    """Inner Ethernet frames of what was captured so far (RFC 7348)."""
    sniffer.setblocking(False)
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            data = sniffer.recv(4000)
        except BlockingIOError:
            return
        if data[12:14] == b"\x08\x00" and data[23] == 17 and struct.unpack("!H", data[36:38])[0] == 4789:
            yield data[50:]


def test_a_tap_nobody_bound_is_mute(cloud: Cloud) -> None:
    """In the namespace and even in the bridge, a TAP without a port sends nothing."""
    stranger = Card(41, ONE.id, BLUE, "10.0.1.41/24", 1)
    node = cloud.nodes[0]
    node.start_guest(stranger)
    try:
        inside = node.vpc_prefix + ONE.id.rpartition("-")[2]
        run("ip", "-n", node.name, "link", "set", stranger.tap, "netns", inside)
        run("ip", "-n", inside, "link", "set", stranger.tap, "master", "br-" + BLUE.rpartition("-")[2], "up")
        assert not cloud.ping(stranger, "10.0.1.1")
        assert not cloud.ping(stranger, "10.0.1.12")
    finally:
        node.stop_guest(stranger)
