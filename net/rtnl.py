"""The few rtnetlink messages of the hot path, packed by hand (rtnetlink(7), linux/if_link.h, linux/neighbour.h).

Invariant: a socket belongs to the network namespace it was opened in, whichever thread uses it later. Requests are pipelined:
many messages per send, each acknowledged on its own, so one that fails does not stop the others.
Why not pyroute2 here: it is what makes our devices (net/netlink.py), but it takes 200 to 400 us to encode one message and a
second to parse a dump of 1,000 ports; forwarding entries come by the thousand and every agent start reads everything
(tests/bench/net.py has the ratio against `ip -batch`).
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Final

RTM_NEWLINK, RTM_DELLINK, RTM_GETLINK = 16, 17, 18
RTM_GETADDR = 22
RTM_NEWROUTE, RTM_DELROUTE, RTM_GETROUTE = 24, 25, 26
RTM_NEWNEIGH, RTM_DELNEIGH, RTM_GETNEIGH = 28, 29, 30
NLMSG_ERROR, NLMSG_DONE = 2, 3
NLM_F_REQUEST, NLM_F_ACK, NLM_F_DUMP = 0x1, 0x4, 0x300
NLM_F_REPLACE, NLM_F_CREATE = 0x100, 0x400
NLM_F_DUMP_INTR = 0x10
IFLA_ADDRESS, IFLA_IFNAME, IFLA_MTU, IFLA_MASTER, IFLA_LINKINFO, IFLA_IFALIAS = 1, 3, 4, 10, 18, 20
IFLA_NET_NS_FD, IFLA_GROUP, IFLA_EXT_MASK = 28, 27, 29
IFLA_INFO_KIND, IFLA_INFO_DATA, IFLA_INFO_SLAVE_KIND, IFLA_INFO_SLAVE_DATA = 1, 2, 4, 5
IFLA_VXLAN_ID, IFLA_VXLAN_LOCAL = 1, 4
RTEXT_FILTER_SKIP_STATS = 8
IFF_UP = 0x1
NDA_DST, NDA_LLADDR, NDA_MASTER = 1, 2, 9
RTA_DST, RTA_OIF, RTA_GATEWAY = 1, 4, 5
NTF_SELF, NTF_MASTER = 0x02, 0x04
NUD_NOARP, NUD_PERMANENT = 0x40, 0x80
RT_TABLE_MAIN = 254
AF_BRIDGE = 7
SO_RCVBUFFORCE, SOL_NETLINK, NETLINK_EXT_ACK, NETLINK_CAP_ACK = 33, 270, 11, 10
RTNLGRP_LINK_BIT = 1

# Bridge-port attributes we set (IFLA_BRPORT_*), each one byte.
LEARNING, UNICAST_FLOOD, PROXYARP, MCAST_FLOOD, BCAST_FLOOD, NEIGH_SUPPRESS = 8, 9, 10, 27, 30, 32
GUEST_PORT: Final = {LEARNING: 0, UNICAST_FLOOD: 0, PROXYARP: 1, MCAST_FLOOD: 0, BCAST_FLOOD: 0, NEIGH_SUPPRESS: 0}
TUNNEL_PORT: Final = {LEARNING: 0, UNICAST_FLOOD: 0, PROXYARP: 0, MCAST_FLOOD: 0, BCAST_FLOOD: 0, NEIGH_SUPPRESS: 1}

_HEADER = struct.Struct("=IHHII")
_IFINFO = struct.Struct("=BxHiII")
_NDMSG = struct.Struct("=BxxxiHBB")
_RTMSG = struct.Struct("=BBBBBBBBI")
_RECEIVE_BYTES = 1 << 18
_IN_FLIGHT_MAX = 128
_DUMP_TRIES = 5

Message = tuple[int, int, bytes]


@dataclass(frozen=True, slots=True)
class Link:
    """A device: what we need of it."""

    index: int
    name: str
    up: bool
    kind: str = ""
    mtu: int = 0
    master: int = 0
    address: str = ""
    alias: str = ""
    vxlan_id: int = 0
    vxlan_local: str = ""
    port_flags: dict[int, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Neighbour:
    """An entry of a neighbour or forwarding table. dst is "" where there is none; master is 0 for a device's own table."""

    index: int
    mac: str
    state: int
    flags: int
    dst: str = ""
    master: int = 0


@dataclass(frozen=True, slots=True)
class Address:
    """An IPv4 address of a device."""

    index: int
    address: str
    prefix_length: int


@dataclass(frozen=True, slots=True)
class Route:
    """An IPv4 route."""

    index: int
    dst: str
    prefix_length: int
    gateway: str
    protocol: int


def attribute(kind: int, data: bytes) -> bytes:
    """Return one padded attribute."""
    return struct.pack("=HH", 4 + len(data), kind) + data + b"\0" * (-len(data) % 4)


def attributes(data: bytes, offset: int, end: int) -> Iterator[tuple[int, bytes]]:
    """Yield (type without flag bits, value)."""
    while offset + 4 <= end:
        length, kind = struct.unpack_from("=HH", data, offset)
        if length < 4:
            return
        yield kind & 0x3FFF, data[offset + 4 : offset + length]
        offset += (length + 3) & ~3


def mac_bytes(mac: str) -> bytes:
    """Return the six bytes."""
    return bytes.fromhex(mac.replace(":", ""))


def _mac_text(data: bytes) -> str:
    return data.hex(":") if len(data) == 6 else ""


def _ipv4_text(data: bytes) -> str:
    return socket.inet_ntoa(data) if len(data) == 4 else ""


def set_link(index: int, *parts: bytes, up: bool | None = None) -> Message:
    """Return a message that changes a device; parts are attributes."""
    flags, change = (0, 0) if up is None else (IFF_UP if up else 0, IFF_UP)
    return RTM_NEWLINK, 0, _IFINFO.pack(0, 0, index, flags, change) + b"".join(parts)


def delete_link(index: int) -> Message:
    """Return a message that removes a device."""
    return RTM_DELLINK, 0, _IFINFO.pack(0, 0, index, 0, 0)


def delete_group(group: int) -> Message:
    """Return a message that removes all devices of a group at once (one grace period instead of one each)."""
    return RTM_DELLINK, 0, _IFINFO.pack(0, 0, 0, 0, 0) + attribute(IFLA_GROUP, struct.pack("=I", group))


def port_flags(index: int, flags: dict[int, int]) -> Message:
    """Return a message that sets bridge-port flags of an enslaved device."""
    data = b"".join(attribute(kind, bytes([value])) for kind, value in flags.items())
    info = attribute(IFLA_INFO_SLAVE_KIND, b"bridge") + attribute(IFLA_INFO_SLAVE_DATA, data)
    return set_link(index, attribute(IFLA_LINKINFO, info))


def bridge_fdb(index: int, mac: str, *, add: bool = True) -> Message:
    """Return a message for a static entry of the bridge that device belongs to: this MAC is behind this device."""
    body = _NDMSG.pack(AF_BRIDGE, index, NUD_NOARP if add else 0, NTF_MASTER, 0) + attribute(NDA_LLADDR, mac_bytes(mac))
    return (RTM_NEWNEIGH, NLM_F_CREATE | NLM_F_REPLACE, body) if add else (RTM_DELNEIGH, 0, body)


def tunnel_fdb(index: int, mac: str, vtep: str, *, add: bool = True) -> Message:
    """Return a message for an entry of a VXLAN device: this MAC is behind that VTEP.

    Replacing needs NUD_PERMANENT together with NUD_NOARP; NUD_NOARP alone is refused with EINVAL.
    """
    body = _NDMSG.pack(AF_BRIDGE, index, NUD_PERMANENT | NUD_NOARP, NTF_SELF, 0) + attribute(NDA_LLADDR, mac_bytes(mac))
    if vtep:
        body += attribute(NDA_DST, socket.inet_aton(vtep))
    return (RTM_NEWNEIGH, NLM_F_CREATE | NLM_F_REPLACE, body) if add else (RTM_DELNEIGH, 0, body)


def neighbour(index: int, address: str, mac: str, *, add: bool = True) -> Message:
    """Return a message for a permanent IPv4 neighbour."""
    body = _NDMSG.pack(socket.AF_INET, index, NUD_PERMANENT, 0, 0) + attribute(NDA_DST, socket.inet_aton(address))
    if add:
        return RTM_NEWNEIGH, NLM_F_CREATE | NLM_F_REPLACE, body + attribute(NDA_LLADDR, mac_bytes(mac))
    return RTM_DELNEIGH, 0, body


def host_route(index: int, address: str, gateway: str, protocol: int, *, add: bool = True) -> Message:
    """Return a message for a /32 route through a gateway on that device."""
    scope, kind = (0, 1) if add else (255, 0)
    body = _RTMSG.pack(socket.AF_INET, 32, 0, 0, RT_TABLE_MAIN, protocol, scope, kind, 0)
    body += attribute(RTA_DST, socket.inet_aton(address)) + attribute(RTA_OIF, struct.pack("=i", index))
    if gateway:
        body += attribute(RTA_GATEWAY, socket.inet_aton(gateway))
    return (RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE, body) if add else (RTM_DELROUTE, 0, body)


class Rtnl:
    """A blocking rtnetlink socket of the calling thread's current network namespace."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
        self._sequence = 0
        self._socket.setsockopt(SOL_NETLINK, NETLINK_CAP_ACK, 1)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        self._socket.settimeout(10.0)

    def __enter__(self) -> Rtnl:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def request(self, messages: Sequence[Message]) -> list[int]:
        """Send all, wait for all acknowledgements; return one errno each, 0 for success. OSError: the socket itself failed."""
        results: list[int] = []
        for start in range(0, len(messages), _IN_FLIGHT_MAX):
            results += self._exchange(messages[start : start + _IN_FLIGHT_MAX])
        return results

    def must(self, *messages: Message, missing_is_fine: bool = False) -> None:
        """Send all; raise OSError for the first that failed. missing_is_fine: what is to be removed may be gone."""
        fine = {0, errno.ENOENT, errno.ESRCH, errno.ENODEV} if missing_is_fine else {0}
        for number in self.request(messages):
            if number not in fine:
                raise OSError(number, os.strerror(number))

    def _exchange(self, messages: Sequence[Message]) -> list[int]:
        first = self._sequence + 1
        data = []
        for kind, flags, body in messages:
            self._sequence += 1
            length = _HEADER.size + len(body)
            data.append(_HEADER.pack(length, kind, flags | NLM_F_REQUEST | NLM_F_ACK, self._sequence, 0))
            data.append(body + b"\0" * (-length % 4))
        self._socket.send(b"".join(data))
        results = [-1] * len(messages)
        waiting = len(messages)
        while waiting:
            for kind, _, sequence, payload in self._receive():
                if kind == NLMSG_ERROR and 0 <= sequence - first < len(results) and results[sequence - first] < 0:
                    results[sequence - first] = -int(struct.unpack_from("=i", payload)[0])
                    waiting -= 1
        return results

    def _receive(self) -> Iterator[tuple[int, int, int, bytes]]:
        data = self._socket.recv(_RECEIVE_BYTES)
        offset = 0
        while offset + _HEADER.size <= len(data):
            length, kind, flags, sequence, _ = _HEADER.unpack_from(data, offset)
            yield kind, flags, sequence, data[offset + _HEADER.size : offset + length]
            offset += (length + 3) & ~3

    def _dump(self, kind: int, body: bytes) -> list[bytes]:
        for _ in range(_DUMP_TRIES):
            self._sequence += 1
            length = _HEADER.size + len(body)
            flags = NLM_F_REQUEST | NLM_F_DUMP
            self._socket.send(_HEADER.pack(length, kind, flags, self._sequence, 0) + body + b"\0" * (-length % 4))
            found, done, torn = [], False, False
            while not done:
                for answer, answer_flags, sequence, payload in self._receive():
                    if sequence != self._sequence:
                        continue
                    torn = torn or bool(answer_flags & NLM_F_DUMP_INTR)
                    if answer == NLMSG_ERROR:
                        number = -int(struct.unpack_from("=i", payload)[0])
                        raise OSError(number, os.strerror(number))
                    if answer == NLMSG_DONE:
                        done = True
                        break
                    found.append(payload)
            if not torn:
                return found
        raise OSError(errno.EINTR, "the table kept changing while it was read")

    def links(self) -> list[Link]:
        """Return all devices."""
        body = _IFINFO.pack(0, 0, 0, 0, 0) + attribute(IFLA_EXT_MASK, struct.pack("=I", RTEXT_FILTER_SKIP_STATS))
        return [parse_link(payload) for payload in self._dump(RTM_GETLINK, body)]

    def link(self, name: str) -> Link | None:
        """Return one device by name, or None."""
        self._sequence += 1
        body = _IFINFO.pack(0, 0, 0, 0, 0) + attribute(IFLA_IFNAME, name.encode() + b"\0")
        length = _HEADER.size + len(body)
        self._socket.send(_HEADER.pack(length, RTM_GETLINK, NLM_F_REQUEST, self._sequence, 0) + body)
        while True:
            for kind, _, sequence, payload in self._receive():
                if sequence != self._sequence:
                    continue
                if kind == RTM_NEWLINK:
                    return parse_link(payload)
                number = -int(struct.unpack_from("=i", payload)[0])
                if number == errno.ENODEV:
                    return None
                raise OSError(number, os.strerror(number))

    def addresses(self) -> list[Address]:
        """Return all IPv4 addresses."""
        found = []
        for payload in self._dump(RTM_GETADDR, struct.pack("=BBBBi", socket.AF_INET, 0, 0, 0, 0)):
            _, prefix_length, _, _, index = struct.unpack_from("=BBBBi", payload)
            values = dict(attributes(payload, 8, len(payload)))
            # IFA_LOCAL, else IFA_ADDRESS.
            found.append(Address(index, _ipv4_text(values.get(2, values.get(1, b""))), prefix_length))
        return found

    def neighbours(self, family: int) -> list[Neighbour]:
        """Return neighbours (AF_INET) or forwarding entries (AF_BRIDGE)."""
        found = []
        for payload in self._dump(RTM_GETNEIGH, _NDMSG.pack(family, 0, 0, 0, 0)):
            _, index, state, flags, _ = _NDMSG.unpack_from(payload)
            dst, mac, master = "", "", 0
            for kind, value in attributes(payload, _NDMSG.size, len(payload)):
                if kind == NDA_DST:
                    dst = _ipv4_text(value)
                elif kind == NDA_LLADDR:
                    mac = _mac_text(value)
                elif kind == NDA_MASTER:
                    master = struct.unpack("=I", value)[0]
            found.append(Neighbour(index, mac, state, flags, dst, master))
        return found

    def routes(self) -> list[Route]:
        """Return the IPv4 routes of the main table that leave through a device."""
        found = []
        for payload in self._dump(RTM_GETROUTE, _RTMSG.pack(socket.AF_INET, 0, 0, 0, 0, 0, 0, 0, 0)):
            _, prefix_length, _, _, table, protocol, _, _, _ = _RTMSG.unpack_from(payload)
            if table != RT_TABLE_MAIN:
                continue
            values = dict(attributes(payload, _RTMSG.size, len(payload)))
            index = struct.unpack("=i", values[RTA_OIF])[0] if RTA_OIF in values else 0
            dst, gateway = _ipv4_text(values.get(RTA_DST, b"")), _ipv4_text(values.get(RTA_GATEWAY, b""))
            found.append(Route(index, dst, prefix_length, gateway, protocol))
        return found


def parse_link(payload: bytes) -> Link:
    """Return the device a link message describes."""
    _, _, index, flags, _ = _IFINFO.unpack_from(payload)
    values: dict[int, bytes] = dict(attributes(payload, _IFINFO.size, len(payload)))
    info = values.get(IFLA_LINKINFO, b"")
    nested = dict(attributes(info, 0, len(info)))
    kind = nested.get(IFLA_INFO_KIND, b"").rstrip(b"\0").decode()
    data = nested.get(IFLA_INFO_DATA, b"") if kind == "vxlan" else b""
    tunnel = dict(attributes(data, 0, len(data)))
    slave = nested.get(IFLA_INFO_SLAVE_DATA, b"") if nested.get(IFLA_INFO_SLAVE_KIND, b"").startswith(b"bridge") else b""
    ports = {k: v[0] for k, v in attributes(slave, 0, len(slave)) if k in GUEST_PORT}
    return Link(
        index=index,
        name=values.get(IFLA_IFNAME, b"").rstrip(b"\0").decode(),
        up=bool(flags & IFF_UP),
        kind=kind,
        mtu=struct.unpack("=I", values[IFLA_MTU])[0] if IFLA_MTU in values else 0,
        master=struct.unpack("=I", values[IFLA_MASTER])[0] if IFLA_MASTER in values else 0,
        address=_mac_text(values.get(IFLA_ADDRESS, b"")),
        alias=values.get(IFLA_IFALIAS, b"").rstrip(b"\0").decode(errors="replace"),
        vxlan_id=struct.unpack("=I", tunnel[IFLA_VXLAN_ID])[0] if IFLA_VXLAN_ID in tunnel else 0,
        vxlan_local=_ipv4_text(tunnel.get(IFLA_VXLAN_LOCAL, b"")),
        port_flags=ports,
    )
