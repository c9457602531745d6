"""net/resolver.py: whom it asks, what it believes, and what it does not let one guest take."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import dns.flags
import dns.message
import dns.rcode
import dns.rrset
import pytest
from cairn.net import resolver
from cairn.net.questions import Query, Zone, judged
from cairn.net.resolver import Bounds, Forwarder, NodeServers

ZONE = Zone("", "", lambda _: [], lambda _: "")
Answers = Callable[[dns.message.Message], list[bytes]]


def query(name: str = "example.org.", *, udp: bool = True) -> Query:
    found = judged(dns.message.make_query(name, "A").to_wire(), ZONE, udp=udp)
    assert isinstance(found, Query)
    return found


def right(asked: dns.message.Message, address: str = "198.51.100.7") -> bytes:
    answer = dns.message.make_response(asked)
    answer.answer.append(dns.rrset.from_text(asked.question[0].name, 60, "IN", "A", address))
    return bytes(answer.to_wire())


def refusal(asked: dns.message.Message) -> bytes:
    answer = dns.message.make_response(asked)
    answer.set_rcode(dns.rcode.REFUSED)
    return bytes(answer.to_wire())


class Upstream(asyncio.DatagramProtocol):
    """A resolver that says what it is told to say."""

    def __init__(self, answers: Answers) -> None:
        self.answers, self.asked = answers, list[dns.message.Message]()
        self.ports: list[int] = []

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        self.asked.append(dns.message.from_wire(data))
        self.ports.append(addr[1])
        for answer in self.answers(self.asked[-1]):
            self.transport.sendto(answer, addr)


@asynccontextmanager
async def upstream(address: str, answers: Answers, port: int) -> AsyncIterator[Upstream]:
    transport, made = await asyncio.get_running_loop().create_datagram_endpoint(
        lambda: Upstream(answers), local_addr=(address, port)
    )
    try:
        yield made
    finally:
        transport.close()
        # Its socket is closed on the loop's next round.
        await asyncio.sleep(0)


@pytest.fixture
def port(monkeypatch: pytest.MonkeyPatch) -> int:
    """A port that is free at the addresses these tests use."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.53.1", 0))
        found = int(probe.getsockname()[1])
    monkeypatch.setattr(resolver, "PORT", found)
    return found


ONE, TWO = "127.0.53.1", "127.0.53.2"


def told(wire: bytes) -> tuple[int, list[str]]:
    message = dns.message.from_wire(wire)
    return message.rcode(), [str(record) for rrset in message.answer for record in rrset]


async def test_the_next_is_asked_when_one_is_silent_or_refuses(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resolver, "_TRY_S", 0.3)
    async with upstream(TWO, lambda asked: [right(asked)], port) as second:
        # Nobody listens at the first: an error at once.
        assert told(await Forwarder(lambda: (ONE, TWO)).answer(query())) == (0, ["198.51.100.7"])
        for answers in (lambda _: [], lambda asked: [refusal(asked)]):
            async with upstream(ONE, answers, port) as first:
                assert told(await Forwarder(lambda: (ONE, TWO)).answer(query())) == (0, ["198.51.100.7"])
                assert len(first.asked) == 1
        assert len(second.asked) == 3


async def test_nobody_to_ask_is_a_failure_and_a_refusal_is_told(port: int) -> None:
    assert told(await Forwarder(lambda: ()).answer(query())) == (dns.rcode.SERVFAIL, [])
    assert told(await Forwarder(lambda: (ONE,)).answer(query())) == (dns.rcode.SERVFAIL, [])
    assert told(await Forwarder(lambda: ("no address",)).answer(query())) == (dns.rcode.SERVFAIL, [])
    async with upstream(ONE, lambda asked: [refusal(asked)], port):
        assert told(await Forwarder(lambda: (ONE,)).answer(query())) == (dns.rcode.REFUSED, [])


async def test_what_was_not_asked_for_is_passed_over(port: int) -> None:
    def lies(asked: dns.message.Message) -> list[bytes]:
        other = dns.message.make_query("example.com.", "A", id=asked.id)
        guess = dns.message.make_query("example.org.", "A", id=asked.id ^ 1)
        return [
            b"",
            b"noise",
            right(other, "203.0.113.1"),
            right(guess, "203.0.113.2"),
            right(asked),
            right(asked, "203.0.113.3"),
        ]

    async with upstream(ONE, lies, port):
        assert told(await Forwarder(lambda: (ONE,)).answer(query())) == (0, ["198.51.100.7"])


async def test_who_was_not_asked_is_not_heard(port: int) -> None:
    """An answer with the right id and question, to the right port, from elsewhere."""
    loop, heard = asyncio.get_running_loop(), list[bytes]()
    async with upstream(ONE, lambda _: [], port) as asked, upstream(TWO, lambda _: [], port) as liar:
        task = loop.create_task(Forwarder(lambda: (ONE,)).answer(query()))
        while not asked.asked:
            await asyncio.sleep(0)
        liar.transport.sendto(right(asked.asked[0], "203.0.113.9"), ("127.0.0.1", asked.ports[0]))
        asked.transport.sendto(right(asked.asked[0]), ("127.0.0.1", asked.ports[0]))
        heard.append(await task)
    assert told(heard[0]) == (0, ["198.51.100.7"])


async def test_each_question_has_a_port_and_an_id_of_its_own(port: int) -> None:
    async with upstream(ONE, lambda asked: [right(asked)], port) as made:
        for _ in range(12):
            await Forwarder(lambda: (ONE,)).answer(query())
    assert len(set(made.ports)) > 6
    assert len({asked.id for asked in made.asked}) > 6


async def test_who_asked_over_tcp_has_it_asked_over_tcp(port: int) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        size = int.from_bytes(await reader.readexactly(2), "big")
        answer = right(dns.message.from_wire(await reader.readexactly(size)))
        writer.write(len(answer).to_bytes(2, "big") + answer)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, ONE, port)
    assert told(await Forwarder(lambda: (ONE,)).answer(query(udp=False))) == (0, ["198.51.100.7"])
    server.close()


def test_the_nodes_resolvers_are_read_again_when_they_change(tmp_path: Path) -> None:
    path = tmp_path / "resolv.conf"
    servers = NodeServers(path)
    assert servers() == ()
    path.write_text("# by hand\nsearch example.org\nnameserver 192.0.2.1\nnameserver\noptions edns0\nnameserver 2001:db8::1\n")
    assert servers() == ("192.0.2.1", "2001:db8::1")
    path.write_text("nameserver dns.example.org\nnameserver fe80::1%eth0\n")
    assert servers() == ("fe80::1%eth0",), "a name would be looked up, by the loop"
    path.write_text("".join(f"nameserver 192.0.2.{n}\n" for n in range(9)))
    assert servers() == ("192.0.2.0", "192.0.2.1", "192.0.2.2")
    path.unlink()
    assert servers() == ()


def test_a_guest_asks_so_much_and_others_are_not_the_worse_for_it() -> None:
    bounds, greedy, other = Bounds(), ("rtr-1", "10.1.1.2"), ("rtr-1", "10.1.1.3")
    asked = sum(bounds.may_ask(greedy, 1000.0) for _ in range(5000))
    assert asked == resolver.RATE_BURST
    assert bounds.may_ask(other, 1000.0)
    assert sum(bounds.may_ask(greedy, 1000.5) for _ in range(5000)) == resolver.RATE / 2
    bounds.forget("rtr-1")
    assert bounds.may_ask(greedy, 1000.5)


def test_allowances_of_those_who_came_once_are_forgotten() -> None:
    bounds = Bounds()
    for number in range(5000):
        assert bounds.may_ask(("rtr-1", f"10.0.{number >> 8}.{number & 255}"), 1000.0 + number)
    assert len(bounds._tokens) <= resolver._ALLOWANCES_MAX + 1


def test_all_guests_together_ask_so_much() -> None:
    bounds = Bounds()
    asked = sum(bounds.may_ask(("rtr-1", f"10.1.1.{guest}"), 5000.0) for _ in range(200) for guest in range(30))
    assert asked == resolver.RATE_TOTAL_BURST
    assert not bounds.may_ask(("rtr-2", "10.1.1.2"), 5000.0)
    assert bounds.may_ask(("rtr-2", "10.1.1.2"), 5000.1)


def test_so_many_wait_and_no_more() -> None:
    bounds, entered = Bounds(), list[Any]()
    for guest in range(20):
        for _ in range(resolver.WAITING_MAX + 5):
            context = bounds.waiting(("rtr-1", f"10.1.1.{guest}"))
            entered.append((context, context.__enter__()))
    allowed = [may for _, may in entered]
    assert sum(allowed[: resolver.WAITING_MAX + 5]) == resolver.WAITING_MAX
    assert sum(allowed) < resolver.WAITING_TOTAL_MAX + 1
    for context, _ in entered:
        with suppress(StopIteration):
            context.__exit__(None, None, None)
    with bounds.waiting(("rtr-1", "10.1.1.0")) as may:
        assert may


class Talkative(Forwarder):
    """Has much to say to each question."""

    def __init__(self) -> None:
        super().__init__(lambda: ())

    async def answer(self, query: Query) -> bytes:
        return bytes(60_000)


@asynccontextmanager
async def serving(forwarder: Forwarder) -> AsyncIterator[tuple[resolver.Resolver, int, list[asyncio.StreamWriter]]]:
    """A resolver on this machine, its TCP port, and the connections it has had."""
    udp, tcp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM), socket.socket()
    for own in (udp, tcp):
        own.setblocking(False)
        own.bind(("127.0.0.1", 0))
    tcp.listen()
    had = list[asyncio.StreamWriter]()

    class Watched(resolver.Resolver):
        async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            had.append(writer)
            await super()._connected(reader, writer)

    made = Watched("rtr-1", (udp, tcp), lambda _: ZONE, forwarder, Bounds())
    await made.start()
    try:
        yield made, int(tcp.getsockname()[1]), had
    finally:
        made.close()


async def greedy_guest(port: int) -> socket.socket:
    """A guest that asks for megabytes over one connection and reads none of it."""
    guest, asked = socket.socket(), dns.message.make_query("example.org.", "TXT").to_wire()
    guest.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    guest.setblocking(False)
    await asyncio.get_running_loop().sock_connect(guest, ("127.0.0.1", port))
    await asyncio.get_running_loop().sock_sendall(guest, (len(asked).to_bytes(2, "big") + asked) * 100)
    return guest


async def test_a_guest_that_asks_over_tcp_and_never_reads_leaves_no_connection_behind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Closing alone would wait for it as long as it likes: a descriptor each, until the agent has none left."""
    monkeypatch.setattr(resolver, "_IDLE_S", 0.3)
    async with serving(Talkative()) as (_, port, had):
        guest = await greedy_guest(port)
        async with asyncio.timeout(10):
            while not had or had[0].transport.get_extra_info("socket").fileno() >= 0:
                await asyncio.sleep(0.01)
        guest.close()


async def test_no_guest_keeps_a_network_that_is_gone_by_not_reading() -> None:
    async with serving(Talkative()) as (_, port, had):
        guest = await greedy_guest(port)
        async with asyncio.timeout(10):
            while not had or not had[0].transport.get_write_buffer_size():
                await asyncio.sleep(0.01)
    async with asyncio.timeout(5):
        while had[0].transport.get_extra_info("socket").fileno() >= 0:
            await asyncio.sleep(0.01)
    guest.close()
