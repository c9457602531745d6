"""net/dhcp.py: the codec, and what is said to whom (RFC 2131, section 4.3)."""

from __future__ import annotations

import socket
import struct

import pytest
from cairn.net import dhcp
from cairn.proto.v1.agent_pb2 import DesiredNetwork, DesiredPort, DesiredSubnet
from hypothesis import given
from hypothesis import strategies as st

LEASE = dhcp.Lease("10.0.1.11", "10.0.1.0/24", "10.0.1.1", 1450, hostname="web")
MAC = "2a:00:00:00:00:01"


def message(kind: int, *, options: bytes = b"", flags: int = 0, client: str = "0.0.0.0", relay: str = "0.0.0.0") -> bytes:
    fixed = struct.pack(
        "!BBBBIHH4s8x4s16s192x", 1, 1, 6, 0, 7, 3, flags, socket.inet_aton(client), socket.inet_aton(relay),
        bytes.fromhex(MAC.replace(":", "")),
    )  # fmt: skip
    return fixed + b"\x63\x82\x53\x63" + bytes([53, 1, kind]) + options + b"\xff"


def address_option(code: int, address: str) -> bytes:
    return bytes([code, 4]) + socket.inet_aton(address)


def answered(data: bytes, lease: dhcp.Lease = LEASE) -> tuple[int, str] | None:
    reply = dhcp.answer(dhcp.parse(data), lease)
    return (reply.kind, reply.to) if reply else None


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        pytest.param(message(dhcp.DISCOVER), (dhcp.OFFER, "10.0.1.11"), id="discover"),
        pytest.param(message(dhcp.DISCOVER, flags=0x8000), (dhcp.OFFER, "255.255.255.255"), id="discover-broadcast"),
        pytest.param(
            message(dhcp.REQUEST, options=address_option(54, "10.0.1.1") + address_option(50, "10.0.1.11")),
            (dhcp.ACK, "10.0.1.11"), id="selecting",
        ),
        pytest.param(
            message(dhcp.REQUEST, options=address_option(54, "10.0.1.9") + address_option(50, "10.0.1.11")),
            None, id="selecting-another-server",
        ),
        pytest.param(
            message(dhcp.REQUEST, options=address_option(50, "10.0.1.11")), (dhcp.ACK, "10.0.1.11"), id="reboot"
        ),
        pytest.param(
            message(dhcp.REQUEST, options=address_option(50, "10.0.9.9")), (dhcp.NAK, "255.255.255.255"), id="moved-subnet"
        ),
        pytest.param(message(dhcp.REQUEST, client="10.0.1.11"), (dhcp.ACK, "10.0.1.11"), id="renewing"),
        pytest.param(message(dhcp.REQUEST, client="10.0.1.12"), (dhcp.NAK, "255.255.255.255"), id="renewing-wrong"),
        pytest.param(message(dhcp.REQUEST), (dhcp.NAK, "255.255.255.255"), id="request-naming-nothing"),
        pytest.param(message(dhcp.INFORM, client="10.0.1.11"), (dhcp.ACK, "10.0.1.11"), id="inform"),
        pytest.param(message(dhcp.RELEASE), None, id="release"),
        pytest.param(message(dhcp.DECLINE), None, id="decline"),
        pytest.param(message(dhcp.DISCOVER, relay="10.0.9.1"), None, id="through-a-relay"),
    ],
)  # fmt: skip
def test_what_is_answered(data: bytes, expected: tuple[int, str] | None) -> None:
    assert answered(data) == expected


def options_of(reply: dhcp.Reply | None) -> dict[int, bytes]:
    assert reply is not None
    return dict(dhcp._options(reply.payload[240:]))


def test_a_lease_says_everything_once() -> None:
    reply = dhcp.answer(dhcp.parse(message(dhcp.DISCOVER, options=bytes([61, 2, 1, 9]))), LEASE)
    options = options_of(reply)
    assert reply is not None
    assert len(reply.payload) >= 300
    assert reply.payload[16:20] == socket.inet_aton("10.0.1.11")
    assert reply.payload[4:8] == struct.pack("!I", 7)
    assert sorted(options) == [1, 3, 12, 26, 28, 51, 53, 54, 61, 121]
    assert options[61] == bytes([1, 9])


def test_an_inform_gets_parameters_but_no_lease() -> None:
    reply = dhcp.answer(dhcp.parse(message(dhcp.INFORM, client="10.0.1.11")), LEASE)
    assert reply is not None
    assert reply.payload[16:20] == bytes(4)
    assert 51 not in options_of(reply)
    assert 26 in options_of(reply)


def test_a_refusal_tells_nothing() -> None:
    reply = dhcp.answer(dhcp.parse(message(dhcp.REQUEST, client="10.0.1.12")), LEASE)
    assert reply is not None
    assert reply.payload[12:20] == bytes(8)
    assert sorted(options_of(reply)) == [53, 54]


def test_the_packet_is_a_valid_udp_datagram() -> None:
    data = dhcp.packet("10.0.1.1", dhcp.Reply(dhcp.ACK, "255.255.255.255", b"odd"))
    assert struct.unpack("!H", data[2:4])[0] == len(data) == 31
    assert data[20:24] == struct.pack("!HH", 67, 68)
    assert dhcp._checksum(data[:20]) == 0
    pseudo = data[12:20] + struct.pack("!HH", 17, len(data) - 20)
    assert dhcp._checksum(pseudo + data[20:]) == 0


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"", id="empty"),
        pytest.param(message(1)[:239], id="cut-short"),
        pytest.param(b"\x02" + message(1)[1:], id="a-reply"),
        pytest.param(message(1).replace(b"\x63\x82", b"\0\0"), id="no-cookie"),
        pytest.param(message(1)[:240] + b"\x35\x09\x01", id="option-runs-over"),
        pytest.param(message(1)[:240] + b"\xff", id="no-type"),
        pytest.param(message(99), id="unknown-type"),
    ],
)
def test_nonsense_is_refused(data: bytes) -> None:
    with pytest.raises(dhcp.Malformed):
        dhcp.parse(data)


@given(st.binary(max_size=600), st.integers(0, 300))
def test_no_bytes_break_it(noise: bytes, at: int) -> None:
    data = message(dhcp.DISCOVER)
    data = data[:at] + noise + data[at + len(noise) :]
    try:
        request = dhcp.parse(data)
    except dhcp.Malformed:
        return
    reply = dhcp.answer(request, LEASE)
    assert reply is None or dhcp.packet("10.0.1.1", reply)


def test_only_the_first_card_has_the_default_route() -> None:
    """Two default routes, and the card that came up last would win; the way to another VPC goes over its own card."""
    gateway = socket.inet_aton("10.2.1.1")
    port = DesiredPort(id="nic-2", addresses=["10.2.1.7"], hostname="web")
    subnet, network = (
        DesiredSubnet(cidr="10.2.1.0/24", gateway="10.2.1.1"),
        DesiredNetwork(vpc="rtr-2", cidr="10.2.0.0/16", mtu=1450, domain="home.cairn.internal"),
    )

    def told(first: str) -> dict[int, bytes]:
        lease = dhcp.lease_for(port, subnet, network, first)
        return options_of(dhcp.answer(dhcp.parse(message(dhcp.DISCOVER)), lease))

    alone, same, other = told(""), told("rtr-2"), told("rtr-1")
    assert (alone[3], alone[6]) == (gateway, gateway)
    assert (alone[15], alone[119]) == (b"home.cairn.internal", b"\x04home\x05cairn\x08internal\0")
    for second in (same, other):
        assert not {3, 6, 15, 119} & second.keys()
    assert 121 not in same
    assert other[121] == bytes([16, 10, 2]) + gateway
