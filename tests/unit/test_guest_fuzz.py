"""What guests may send to the node's services: 20,000 packets, 20,000 requests of nonsense, guests that never read or end.

Nothing is raised, nothing stops, nothing grows, and who behaves is answered as ever.
"""

from __future__ import annotations

import asyncio
import errno
import random
import socket
import struct
import tracemalloc
from collections.abc import Iterator
from typing import Any

import pytest
from cairn.net import dhcp, metadata
from cairn.net.services import NodeGuestServices

from tests.unit.test_dhcp import LEASE, MAC, message
from tests.unit.test_net_metadata import guest

PACKETS = REQUESTS = 20_000
GROWTH_BYTES_MAX = 1 << 20
GOOD = b"GET /latest/meta-data/instance-id HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"


def mutated(rng: random.Random, data: bytes) -> bytes:
    """A message with some bytes changed, cut out, doubled, or made up."""
    content = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        at = rng.randrange(len(content) + 1)
        match rng.randrange(5):
            case 0:
                content[at : at + 1] = bytes([rng.randrange(256)])
            case 1:
                del content[at : at + rng.choice((1, 4, 200))]
            case 2:
                content[at:at] = rng.randbytes(rng.choice((1, 3, 255)))
            case 3:
                content[at:at] = content[at : at + rng.choice((2, 60))]
            case _:
                content[at : at + 2] = struct.pack("!BB", rng.choice((50, 53, 54, 61, 82, 255)), rng.choice((0, 1, 4, 255)))
    return bytes(content[:1500])


# --- DHCP ----------------------------------------------------------------------------------------------------------------


class Wire:
    """Both sockets of a DHCP server."""

    def __init__(self, packets: Iterator[bytes]) -> None:
        self._packets, self.sent, self.error = packets, list[tuple[bytes, Any]](), None

    def recv(self, _size: int) -> bytes:
        for data in self._packets:
            return data
        raise BlockingIOError

    def sendto(self, data: bytes, to: Any) -> None:
        if self.error is not None:
            raise self.error
        self.sent.append((data, to))


def dhcp_packets(seed: int) -> Iterator[bytes]:
    rng = random.Random(seed)
    kinds = [message(kind, options=bytes([61, 3, 1, 2, 3])) for kind in range(1, 9)]
    for _ in range(PACKETS):
        yield mutated(rng, rng.choice(kinds)) if rng.random() < 0.9 else rng.randbytes(rng.randrange(600))


def serve_all(wire: Any) -> None:
    server = dhcp.DhcpServer("br-x", (wire, wire), lambda mac: LEASE if mac == MAC else None)
    for _ in range(PACKETS // 32 + 1):
        server.serve()


def test_twenty_thousand_packets_of_nonsense_stop_no_dhcp() -> None:
    wire: Any = Wire(dhcp_packets(1))
    serve_all(wire)
    assert 1000 < len(wire.sent) < PACKETS, "what is still a request is answered, the rest is not"
    client = bytes.fromhex(MAC.replace(":", ""))
    assert {to[-1] for _, to in wire.sent} == {client}, "and to its own card only"
    assert max(len(data) for data, _ in wire.sent) <= 1000


def test_nonsense_leaves_nothing_behind() -> None:
    serve_all(Wire(dhcp_packets(2)))
    wire: Any = Wire(dhcp_packets(3))
    wire.sendto = lambda _data, _to: None
    tracemalloc.start()
    serve_all(wire)
    grown, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert grown < GROWTH_BYTES_MAX


def test_a_full_queue_is_no_end_of_the_service() -> None:
    wire: Any = Wire(iter([message(dhcp.DISCOVER), message(dhcp.DISCOVER)]))
    server = dhcp.DhcpServer("br-x", (wire, wire), lambda _mac: LEASE)
    wire.error = OSError(errno.ENOBUFS, "No buffer space available")
    server.serve()
    wire.error = OSError(errno.ENODEV, "No such device")
    wire._packets = iter([message(dhcp.DISCOVER)])
    with pytest.raises(dhcp.NetError):
        server.serve()


def test_a_card_that_has_no_lease_ends_nobody_elses() -> None:
    """The record of one card is not what it should be: its questions are not answered, and nothing is raised."""
    known = guest()
    network = dhcp.DesiredNetwork(vpc="rtr-00000001", mtu=1450)
    services = NodeGuestServices()
    port = known.port
    port.addresses[:] = ["not an address"]
    services._facts = services._facts.__class__(
        wanted=type(services._facts.wanted)(networks={network.vpc: network}, ports={port.id: port}),
        by_mac={(port.subnet, port.mac): port},
        subnets=dict(known.subnets),
    )
    assert services._lease_of(network.vpc, port.subnet, port.mac) is None
    port.addresses[:] = ["10.0.1.11"]
    assert services._lease_of(network.vpc, port.subnet, port.mac) is not None


# --- metadata ------------------------------------------------------------------------------------------------------------


class Peer:
    """The other end of a connection, in memory."""

    def __init__(self) -> None:
        self.sent, self.transport, self.aborted = bytearray(), self, False

    def get_extra_info(self, _name: str) -> tuple[str, int]:
        return ("127.0.0.1", 1)

    def write(self, data: bytes) -> None:
        self.sent += data

    async def drain(self) -> None:
        await asyncio.sleep(0)

    def close(self) -> None:
        """Nothing to do."""

    async def wait_closed(self) -> None:
        await asyncio.sleep(0)

    def abort(self) -> None:
        self.aborted = True


async def answer_to(server: metadata.MetadataServer, data: bytes) -> bytes:
    reader, peer = asyncio.StreamReader(limit=metadata._HEADER_BYTES_MAX), Peer()
    reader.feed_data(data)
    reader.feed_eof()
    await server.handle(reader, peer)  # type: ignore[arg-type]
    assert peer.aborted, "the connection is over"
    return bytes(peer.sent)


def unlimited() -> metadata.MetadataServer:
    server = metadata.MetadataServer(lambda _source: guest(user_data=b"secret"))
    server._budgets = metadata.Budgets(rate=1e9, burst=1e9)
    return server


async def test_twenty_thousand_requests_of_nonsense_stop_no_metadata() -> None:
    rng, server, statuses = random.Random(4), unlimited(), dict[bytes, int]()
    seeds = [
        GOOD,
        b"GET /nocloud/user-data HTTP/1.0\r\n\r\n",
        b"HEAD / HTTP/1.1\r\nHost: x\r\n\r\n" * 3,
        b"GET /" + b"a/" * 2000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 18446744073709551616\r\n\r\n" + b"x" * 9000,
    ]
    for number in range(REQUESTS):
        data = mutated(rng, rng.choice(seeds)) if rng.random() < 0.9 else rng.randbytes(rng.randrange(300))
        answer = await answer_to(server, data)
        status = answer.split(b" ", 2)[1] if answer else b""
        statuses[status] = statuses.get(status, 0) + 1
        if number == REQUESTS // 10:
            tracemalloc.start()
    grown, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert grown < GROWTH_BYTES_MAX
    assert set(statuses) <= {b"", b"200", b"400", b"403", b"404", b"405"}, "nothing is an error of ours"
    assert min(statuses[each] for each in (b"", b"200", b"400", b"404", b"405")) > 20
    assert not server._connections
    assert b"i-00000001" in await answer_to(server, GOOD)


async def test_a_guest_that_asks_too_often_waits_and_others_do_not() -> None:
    budgets = metadata.Budgets(rate=10, burst=5)
    assert [budgets.take("a", 0.0) for _ in range(7)] == [True] * 5 + [False] * 2
    assert budgets.take("b", 0.0)
    assert [budgets.take("a", 0.25) for _ in range(3)] == [True, True, False]
    server = metadata.MetadataServer(lambda _source: guest())
    server._budgets = metadata.Budgets(rate=0.001, burst=2)
    assert [(await answer_to(server, GOOD)).split()[1] for _ in range(3)] == [b"200", b"200", b"429"]


def test_budgets_of_those_who_came_once_are_forgotten() -> None:
    budgets = metadata.Budgets(rate=10, burst=5)
    for number in range(5000):
        assert budgets.take(f"10.0.{number >> 8}.{number & 255}", float(number))
    assert len(budgets) <= metadata._BUDGETS_MAX + 1


@pytest.fixture
async def web(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A real server, whose guests are 127.0.0.x, with something large to tell; connections as it has them."""
    monkeypatch.setattr(metadata, "_TIMEOUT_S", 0.5)
    server = metadata.MetadataServer(lambda _source: guest(user_data=b"x" * (4 << 20)))
    listener = await asyncio.start_server(server.handle, "0.0.0.0", 0, limit=metadata._HEADER_BYTES_MAX)
    async with listener:
        yield server, listener.sockets[0].getsockname()[1]


async def connect(port: int, source: str, **options: Any) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection("127.0.0.1", port, local_addr=(source, 0), **options)


async def test_a_guest_that_says_nothing_harms_nobody_else(web: Any) -> None:
    """Slow loris: its connections over the limit end at once, the others in their time; a neighbour is answered meanwhile."""
    server, port = web
    loris = [await connect(port, "127.0.0.2") for _ in range(60)]
    for _, writer in loris:
        writer.write(b"GET / HT")
    reader, writer = await connect(port, "127.0.0.3")
    writer.write(GOOD)
    assert b"i-00000001" in await asyncio.wait_for(reader.read(), 5)
    writer.close()
    assert server._connections["127.0.0.2"] <= metadata._CONNECTIONS_MAX + 1
    ended = await asyncio.wait_for(asyncio.gather(*(_rest(each) for each, _ in loris)), 10)
    assert set(ended) == {b""}
    for _, writer in loris:
        writer.close()
    async with asyncio.timeout(5):
        while server._connections:
            await asyncio.sleep(0.01)


async def _rest(reader: asyncio.StreamReader) -> bytes:
    try:
        return await reader.read()
    except ConnectionError:
        return b""


async def test_a_guest_that_never_reads_leaves_nothing_behind(web: Any) -> None:
    """Closing alone would keep its megabytes for as long as it keeps the connection."""
    server, port = web
    greedy = socket.socket()
    greedy.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    greedy.setblocking(False)
    greedy.bind(("127.0.0.4", 0))
    await asyncio.get_running_loop().sock_connect(greedy, ("127.0.0.1", port))
    await asyncio.get_running_loop().sock_sendall(greedy, GOOD.replace(b"meta-data/instance-id", b"user-data"))
    async with asyncio.timeout(10):
        while "127.0.0.4" not in server._connections:
            await asyncio.sleep(0.01)
        while server._connections:
            await asyncio.sleep(0.01)
    assert await asyncio.to_thread(_drained, greedy) < 4 << 20, "the whole was kept for it"
    greedy.close()


def _drained(taken: socket.socket) -> int:
    """Read what was on its way; return how much it was."""
    taken.settimeout(5)
    total = 0
    try:
        while data := taken.recv(1 << 16):
            total += len(data)
    except ConnectionResetError:
        return total
    return total
