"""DHCP for guests (RFC 2131; options of RFC 2132 and 3442): the control plane decides addresses, this only tells them.

The codec is pure: bytes -> Request -> bytes. There is no lease state and nothing is ever offered that is not the port's own: a
client is known by its MAC, which the packet rules tie to its TAP, so the answer is the same whenever and however often it asks.
Answers always go in a frame to the client's own MAC, also those whose IP destination is 255.255.255.255 (clients that set the
broadcast flag): nothing is flooded in a subnet. A UDP socket cannot do that, so answers leave through a packet socket.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network
from typing import Final

from cairn.net.base import NetError
from cairn.proto.addresses import first_ipv4
from cairn.proto.ids import METADATA_ADDRESS
from cairn.proto.v1.agent_pb2 import DesiredNetwork, DesiredPort, DesiredSubnet

DISCOVER, OFFER, REQUEST, DECLINE, ACK, NAK, RELEASE, INFORM = range(1, 9)
SERVER_PORT, CLIENT_PORT = 67, 68
LEASE_S: Final = 86_400
_COOKIE: Final = b"\x63\x82\x53\x63"
_FIXED: Final = struct.Struct("!BBBBIHH4s4s4s4s16s192x")
_BOOTP_BYTES_MIN: Final = 300
_DATAGRAM_BYTES_MAX: Final = 1500
_BURST: Final = 32
_ANY: Final = "0.0.0.0"  # noqa: S104 - "this host" in a DHCP packet, nothing is bound to it
_BROADCAST_FLAG: Final = 0x8000
_ETH_P_IP: Final = 0x0800


class Malformed(ValueError):
    """Not a DHCP request."""


@dataclass(frozen=True, slots=True)
class Request:
    """What a client asked."""

    kind: int
    transaction: int
    mac: str
    broadcast: bool = False
    seconds: int = 0
    client: str = _ANY
    relay: str = _ANY
    requested: str = ""
    server: str = ""
    client_id: bytes = b""


@dataclass(frozen=True, slots=True)
class Lease:
    """What a port is told. server and gateway are the same address: the subnet's gateway."""

    address: str
    network: str
    gateway: str
    mtu: int
    hostname: str = ""
    # Resolvers, and the domain in which a single label is looked for.
    dns: tuple[str, ...] = ()
    domain: str = ""
    lease_s: int = LEASE_S
    # The default route and the way to the metadata go over this card.
    primary: bool = True
    # Networks that are behind this card's gateway though it is not the primary one.
    routes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Reply:
    """A message back and the IP address it goes to."""

    kind: int
    to: str
    payload: bytes = field(repr=False)


def parse(data: bytes) -> Request:
    """Return the request in a UDP payload; Malformed when it is none."""
    if len(data) < _FIXED.size + 4 or data[_FIXED.size : _FIXED.size + 4] != _COOKIE:
        raise Malformed("too short, or no magic cookie")
    operation, hardware, length, _, transaction, seconds, flags, client, _, _, relay, chaddr = _FIXED.unpack_from(data)
    if (operation, hardware, length) != (1, 1, 6):
        raise Malformed("not a request from an Ethernet card")
    options = dict(_options(data[_FIXED.size + 4 :]))
    kind = options.get(53, b"")
    if len(kind) != 1 or not DISCOVER <= kind[0] <= INFORM:
        raise Malformed("no message type")
    return Request(
        kind=kind[0],
        transaction=transaction,
        mac=chaddr[:6].hex(":"),
        broadcast=bool(flags & _BROADCAST_FLAG),
        seconds=seconds,
        client=socket.inet_ntoa(client),
        relay=socket.inet_ntoa(relay),
        requested=_address(options.get(50, b"")),
        server=_address(options.get(54, b"")),
        client_id=options.get(61, b""),
    )


def _options(data: bytes) -> Iterator[tuple[int, bytes]]:
    offset = 0
    while offset < len(data) and data[offset] != 255:
        if data[offset] == 0:
            offset += 1
            continue
        if offset + 2 > len(data) or offset + 2 + data[offset + 1] > len(data):
            raise Malformed("an option runs over the end")
        yield data[offset], data[offset + 2 : offset + 2 + data[offset + 1]]
        offset += 2 + data[offset + 1]


def _address(value: bytes) -> str:
    return socket.inet_ntoa(value) if len(value) == 4 else ""


def answer(request: Request, lease: Lease) -> Reply | None:
    """Return what to say, or None for silence (RFC 2131, section 4.3)."""
    if request.relay != _ANY:
        return None
    if request.kind == DISCOVER:
        return _reply(request, lease, OFFER)
    if request.kind == INFORM:
        return _reply(request, lease, ACK)
    if request.kind != REQUEST:
        return None
    if request.server and request.server != lease.gateway:
        return None
    claimed = request.requested or request.client
    return _reply(request, lease, ACK if claimed == lease.address else NAK)


def _reply(request: Request, lease: Lease, kind: int) -> Reply:
    inform = request.kind == INFORM
    given = _ANY if kind == NAK or inform else lease.address
    client = _ANY if kind == NAK else request.client
    fixed = struct.pack(
        "!BBBBIHH4s4s4s4s16s192x", 2, 1, 6, 0, request.transaction, 0, _BROADCAST_FLAG if request.broadcast else 0,
        socket.inet_aton(client), socket.inet_aton(given), b"", b"", bytes.fromhex(request.mac.replace(":", "")),
    )  # fmt: skip
    options = [(53, bytes([kind])), (54, socket.inet_aton(lease.gateway))]
    if request.client_id:
        options.append((61, request.client_id))
    if kind != NAK:
        options += _parameters(lease, with_times=not inform)
    body = b"".join(bytes([code, len(value)]) + value for code, value in options) + b"\xff"
    payload = (fixed + _COOKIE + body).ljust(_BOOTP_BYTES_MIN, b"\0")
    if kind == NAK:
        to = "255.255.255.255"
    elif request.client != _ANY:
        to = request.client
    else:
        to = "255.255.255.255" if request.broadcast else lease.address
    return Reply(kind, to, payload)


def _parameters(lease: Lease, *, with_times: bool) -> list[tuple[int, bytes]]:
    network = IPv4Network(lease.network)
    gateway = socket.inet_aton(lease.gateway)
    options = [(1, network.netmask.packed), (28, network.broadcast_address.packed)]
    if lease.primary:
        options.append((3, gateway))
    if with_times:
        options.append((51, struct.pack("!I", lease.lease_s)))
    if lease.dns:
        options.append((6, b"".join(socket.inet_aton(server) for server in lease.dns)))
    if lease.domain:
        # RFC 3397: the search list as names in a message; one name needs no compression.
        labels = [label.encode() for label in lease.domain.split(".")]
        options.append((15, lease.domain.encode()))
        options.append((119, b"".join(bytes([len(label)]) + label for label in labels) + b"\0"))
    if lease.hostname:
        options.append((12, lease.hostname.encode()[:63]))
    options.append((26, struct.pack("!H", lease.mtu)))
    # Classless routes replace option 3 for clients that know them, so the default route is repeated here (RFC 3442).
    behind = [*([f"{METADATA_ADDRESS}/32", "0.0.0.0/0"] if lease.primary else []), *lease.routes]
    if behind:
        options.append((121, b"".join(_route(IPv4Network(each), gateway) for each in behind)))
    return options


def _route(network: IPv4Network, gateway: bytes) -> bytes:
    """Return a classless route: prefix length, its significant octets, the gateway (RFC 3442)."""
    return bytes([network.prefixlen]) + network.network_address.packed[: -(-network.prefixlen // 8)] + gateway


def _checksum(data: bytes) -> int:
    """Internet checksum (RFC 1071)."""
    padded = data + b"\0" * (len(data) % 2)
    total = sum(int(word) for word in struct.unpack(f"!{len(padded) // 2}H", padded))
    total = (total & 0xFFFF) + (total >> 16)
    return ~(total + (total >> 16)) & 0xFFFF


def packet(source: str, reply: Reply) -> bytes:
    """Return the IPv4 packet that carries a reply (RFC 791, RFC 768)."""
    addresses = socket.inet_aton(source) + socket.inet_aton(reply.to)
    length = 8 + len(reply.payload)
    datagram = struct.pack("!HHHH", SERVER_PORT, CLIENT_PORT, length, 0) + reply.payload
    checksum = _checksum(addresses + struct.pack("!HH", socket.IPPROTO_UDP, length) + datagram) or 0xFFFF
    datagram = datagram[:6] + struct.pack("!H", checksum) + datagram[8:]
    header = struct.pack("!BBHHHBBH", 0x45, 0, 20 + length, 0, 0, 64, socket.IPPROTO_UDP, 0) + addresses
    return header[:10] + struct.pack("!H", _checksum(header)) + header[12:] + datagram


def listen(device: str) -> tuple[socket.socket, socket.socket]:
    """Return (receiving, sending) sockets on a bridge of the namespace the calling thread is in."""
    receiving = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        receiving.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, device.encode())
        receiving.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        receiving.bind((_ANY, SERVER_PORT))
        # Protocol 0: it sends only.
        sending = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC, 0)
    except OSError:
        receiving.close()
        raise
    return receiving, sending


class DhcpServer:
    """Answers on one subnet's bridge. lease_of: MAC -> Lease, or None for a client that is not ours to answer."""

    def __init__(
        self, device: str, sockets: tuple[socket.socket, socket.socket], lease_of: Callable[[str], Lease | None]
    ) -> None:
        self.device = device
        self._receiving, self._sending = sockets
        self._lease_of = lease_of

    def fileno(self) -> int:
        """Return the descriptor to wait on."""
        return self._receiving.fileno()

    def serve(self) -> None:
        """Answer what waits, at most a burst. NetError: the bridge is gone."""
        for _ in range(_BURST):
            try:
                data = self._receiving.recv(_DATAGRAM_BYTES_MAX)
            except BlockingIOError:
                return
            except OSError as error:
                raise NetError(f"receive DHCP on {self.device}: {error}") from error
            self._serve_one(data)

    def _serve_one(self, data: bytes) -> None:
        try:
            request = parse(data)
        except Malformed:
            # A guest may send anything; nobody is told.
            return
        lease = self._lease_of(request.mac)
        reply = answer(request, lease) if lease is not None else None
        if lease is None or reply is None:
            return
        mac = bytes.fromhex(request.mac.replace(":", ""))
        try:
            self._sending.sendto(packet(lease.gateway, reply), (self.device, _ETH_P_IP, 0, 0, mac))
        except BlockingIOError:
            # The queue is full: the client asks again.
            return
        except OSError as error:
            if error.errno == errno.ENOBUFS:
                # The same in the kernel's words; whose queue it is must not end the answers to all others.
                return
            raise NetError(f"answer DHCP on {self.device}: {error}") from error

    def close(self) -> None:
        """Close both sockets."""
        self._receiving.close()
        self._sending.close()


def lease_for(port: DesiredPort, subnet: DesiredSubnet, network: DesiredNetwork, first: str) -> Lease:
    """Return the lease of a port; ValueError when an address is not one.

    first: VPC of its guest's first card; empty: this is it. Only the first card has the default route and the resolver (its
    gateway, net/resolver.py): with two of them, the card that came up last would win. A card in another VPC has the way to it.
    """
    primary = not first
    routes = (network.cidr,) if first and first != network.vpc and network.cidr else ()
    address, cidr, gateway = IPv4Address(first_ipv4(port.addresses)), IPv4Network(subnet.cidr), IPv4Address(subnet.gateway)
    return Lease(
        str(address),
        str(cidr),
        str(gateway),
        network.mtu,
        port.hostname,
        dns=(str(gateway),) if primary else (),
        domain=network.domain if primary else "",
        primary=primary,
        routes=routes,
    )
