"""The resolver guests find at their gateway's port 53: answers in a VPC's namespace, asks others from the node's own.

What is answered is net/questions.py's to say; here are sockets and bounds. Who asks is known by the socket (one pair per VPC
namespace) and the source address within it, which the packet rules tie to the guest's TAP; anybody else gets nothing. A guest
is not trusted: questions a second, questions that wait for others, connections, their length and their time are limited, each
per guest, and what waits also for all guests of the node together.

A question is asked of the node's resolvers (resolv.conf(5)) from a socket of its own, connected to the one that is asked: its
port is the kernel's to draw, nobody else's packets reach it, and what has not the question and its id is no answer.
net/questions.py, and with it dnspython, is loaded when the first guest asks: 1.4 MiB that a node without guests does not need.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Final

from cairn.net.base import NetError

if TYPE_CHECKING:
    from cairn.net.questions import Query, Zone
    from dns.message import Message

PORT: Final = 53
_BURST: Final = 32
_BACKLOG: Final = 64
_DATAGRAM_BYTES_MAX: Final = 65_535
# Of one guest, and of all of a node: questions a second, and as many at once after a silence. One is about a quarter of a
# millisecond of the agent's loop, which has other things to do.
RATE: Final = 100.0
RATE_BURST: Final = 300.0
RATE_TOTAL: Final = 1000.0
RATE_TOTAL_BURST: Final = 2000.0
# Questions that wait for the node's resolvers: of one guest, of all.
WAITING_MAX: Final = 32
WAITING_TOTAL_MAX: Final = 256
CONNECTIONS_MAX: Final = 8
_QUESTIONS_MAX: Final = 100
_IDLE_S: Final = 10.0
# resolv.conf(5) says at most three servers.
_SERVERS_MAX: Final = 3
# Guests whose allowance is remembered though it is whole again.
_ALLOWANCES_MAX: Final = 1024
_TRY_S: Final = 2.0
_TRIES_MAX: Final = 3
# Packets looked at while one answer is waited for.
_LOOKS_MAX: Final = 16
_IP_PKTINFO: Final = 8
_PKTINFO: Final = struct.Struct("=I4s4s")
_LENGTH: Final = struct.Struct("!H")


class NodeServers:
    """The node's resolvers: the `nameserver` lines of a file, read again when it has changed."""

    def __init__(self, path: Path = Path("/etc/resolv.conf")) -> None:
        self._path = path
        self._stamp: tuple[int, int, int] | None = None
        self._found: tuple[str, ...] = ()

    def __call__(self) -> tuple[str, ...]:
        """Return their addresses, the first to be asked first; none: there is no file, or none is named in it."""
        try:
            seen = self._path.stat()
            stamp = (seen.st_ino, seen.st_mtime_ns, seen.st_size)
            if stamp != self._stamp:
                self._found, self._stamp = _servers(self._path.read_text(errors="replace")), stamp
        except OSError:
            self._found, self._stamp = (), None
        return self._found


def _servers(text: str) -> tuple[str, ...]:
    words = (line.split() for line in text.splitlines())
    named = (line[1] for line in words if len(line) >= 2 and line[0] == "nameserver")
    return tuple(each for each in named if _is_address(each))[:_SERVERS_MAX]


def _is_address(text: str) -> bool:
    """Whether it is an address: a name would have to be looked up first, and all of the agent would wait for that."""
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


class Bounds:
    """What guests may take of the node, over all its networks. A guest is (VPC, address)."""

    def __init__(self) -> None:
        self._tokens: dict[tuple[str, str], tuple[float, float]] = {}
        self._tokens_of_all = (RATE_TOTAL_BURST, 0.0)
        self._waiting: Counter[tuple[str, str]] = Counter()
        self._connected: Counter[tuple[str, str]] = Counter()

    def may_ask(self, guest: tuple[str, str], now_s: float) -> bool:
        """Take one question's worth of a guest's allowance; False: it has none left."""
        if len(self._tokens) > _ALLOWANCES_MAX:
            held = self._tokens.items()
            self._tokens = {who: each for who, each in held if _refilled(each, now_s, RATE, RATE_BURST) < RATE_BURST}
        own = _refilled(self._tokens.get(guest, (RATE_BURST, now_s)), now_s, RATE, RATE_BURST)
        of_all = _refilled(self._tokens_of_all, now_s, RATE_TOTAL, RATE_TOTAL_BURST)
        may = own >= 1.0 and of_all >= 1.0
        # What is refused costs the others nothing.
        self._tokens[guest], self._tokens_of_all = (own - may, now_s), (of_all - may, now_s)
        return may

    @contextmanager
    def waiting(self, guest: tuple[str, str]) -> Iterator[bool]:
        """Count a question that waits; False: it is one too many."""
        may = self._waiting[guest] < WAITING_MAX and self._waiting.total() < WAITING_TOTAL_MAX
        with _counted(self._waiting, guest):
            yield may

    @contextmanager
    def connected(self, guest: tuple[str, str]) -> Iterator[bool]:
        """Count a connection; False: it is one too many."""
        may = self._connected[guest] < CONNECTIONS_MAX
        with _counted(self._connected, guest):
            yield may

    def forget(self, vpc: str) -> None:
        """Forget the allowances of a network that is gone."""
        self._tokens = {guest: held for guest, held in self._tokens.items() if guest[0] != vpc}


def _refilled(held: tuple[float, float], now_s: float, rate: float, burst: float) -> float:
    tokens, then_s = held
    return min(burst, tokens + (now_s - then_s) * rate)


@contextmanager
def _counted(counter: Counter[tuple[str, str]], guest: tuple[str, str]) -> Iterator[None]:
    counter[guest] += 1
    try:
        yield
    finally:
        counter[guest] -= 1
        if not counter[guest]:
            del counter[guest]


class Forwarder:
    """Asks the node's resolvers, one after the other."""

    def __init__(self, servers: Callable[[], tuple[str, ...]]) -> None:
        self._servers = servers

    async def answer(self, query: Query) -> bytes:
        """Return what to tell the guest."""
        from dns.rcode import REFUSED, SERVFAIL

        worst: Message | None = None
        for server in (self._servers() * _TRIES_MAX)[:_TRIES_MAX]:
            try:
                async with asyncio.timeout(_TRY_S):
                    found = await (_ask(server, query) if query.udp else _ask_tcp(server, query))
            except (OSError, TimeoutError, EOFError, ValueError):
                # Silent, unreachable, or no address: the next one.
                continue
            if found.rcode() not in (SERVFAIL, REFUSED):
                return query.reply(found)
            worst = found
        return query.failed() if worst is None else query.reply(worst)


async def _ask(server: str, query: Query) -> Message:
    """Ask over UDP. Raises OSError; EOFError: nothing it sent was an answer."""
    loop = asyncio.get_running_loop()
    family = socket.AF_INET6 if ":" in server else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC) as own:
        own.connect((server, PORT))
        await loop.sock_sendall(own, query.sent.to_wire())
        for _ in range(_LOOKS_MAX):
            found = query.answered(await loop.sock_recv(own, _DATAGRAM_BYTES_MAX))
            if found is not None:
                return found
    raise EOFError(f"{server} sent {_LOOKS_MAX} packets, and no answer")


async def _ask_tcp(server: str, query: Query) -> Message:
    """Ask over TCP. Raises OSError, EOFError."""
    reader, writer = await asyncio.open_connection(server, PORT)
    try:
        wire = query.sent.to_wire()
        writer.write(_LENGTH.pack(len(wire)) + wire)
        await writer.drain()
        (length,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
        found = query.answered(await reader.readexactly(length))
    finally:
        writer.close()
    if found is None:
        raise EOFError(f"{server} sent something else than an answer")
    return found


def listen() -> tuple[socket.socket, socket.socket]:
    """Return (UDP, TCP) sockets of the namespace the calling thread is in."""
    opened: list[socket.socket] = []
    try:
        for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM):
            own = socket.socket(socket.AF_INET, kind | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
            opened.append(own)
            own.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            own.bind(("0.0.0.0", PORT))  # noqa: S104 - in a VPC's namespace; packet rules let guests' bridges in alone
        # Answers come from the address that was asked: a subnet's gateway, of which there may be several.
        opened[0].setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)
        opened[1].listen(_BACKLOG)
    except OSError:
        for own in opened:
            own.close()
        raise
    return opened[0], opened[1]


class Resolver:
    """Answers the guests of one VPC. zone_of: source address -> what it may ask of, or None: no guest of this VPC."""

    def __init__(
        self, vpc: str, sockets: tuple[socket.socket, socket.socket], zone_of: Callable[[str], Zone | None],
        forwarder: Forwarder, bounds: Bounds,
    ) -> None:  # fmt: skip
        self._vpc = vpc
        self._udp, self._listener = sockets
        self._zone_of, self._forwarder, self._bounds = zone_of, forwarder, bounds
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Begin to answer. NetError."""
        try:
            self._server = await asyncio.start_server(self._connected, sock=self._listener, limit=_DATAGRAM_BYTES_MAX)
        except OSError as error:
            self._udp.close()
            self._listener.close()
            raise NetError(f"serve names: {error}") from error
        asyncio.get_running_loop().add_reader(self._udp.fileno(), self._readable)

    def close(self) -> None:
        """Answer no more."""
        asyncio.get_running_loop().remove_reader(self._udp.fileno())
        self._udp.close()
        if self._server is not None:
            self._server.close()
        for task in list(self._tasks):
            task.cancel()
        self._bounds.forget(self._vpc)

    def _readable(self) -> None:
        """Take what waits, at most a burst: others on this loop have their turn too."""
        for _ in range(_BURST):
            try:
                data, notes, _, source = self._udp.recvmsg(_DATAGRAM_BYTES_MAX, socket.CMSG_SPACE(_PKTINFO.size))
            except OSError:
                # Nothing more; or an error of a packet sent before, which is nobody's.
                return
            asked = next((note for level, kind, note in notes if (level, kind) == (socket.IPPROTO_IP, _IP_PKTINFO)), b"")
            if len(asked) == _PKTINFO.size:
                self._packet(data, source, _PKTINFO.unpack(asked)[1])

    def _packet(self, data: bytes, source: tuple[str, int], asked: bytes) -> None:
        zone = self._admitted(source[0])
        if zone is None:
            return
        from cairn.net.questions import judged

        answer = judged(data, zone, udp=True)
        if isinstance(answer, bytes):
            self._send(answer, source, asked)
        elif answer is not None:
            task = asyncio.get_running_loop().create_task(self._pass_on(answer, source, asked), name="name asked elsewhere")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def _admitted(self, address: str) -> Zone | None:
        """Return what a guest may ask of; None: it is none of this VPC's, or asks too much."""
        zone = self._zone_of(address)
        if zone is None or not self._bounds.may_ask((self._vpc, address), asyncio.get_running_loop().time()):
            return None
        return zone

    async def _pass_on(self, query: Query, source: tuple[str, int], asked: bytes) -> None:
        self._send(await self._elsewhere(query, source[0]), source, asked)

    async def _elsewhere(self, query: Query, address: str) -> bytes:
        with self._bounds.waiting((self._vpc, address)) as may:
            return await self._forwarder.answer(query) if may else query.failed()

    def _send(self, answer: bytes, source: tuple[str, int], asked: bytes) -> None:
        note = (socket.IPPROTO_IP, _IP_PKTINFO, _PKTINFO.pack(0, asked, bytes(4)))
        try:
            self._udp.sendmsg([answer], [note], 0, source)
        except OSError:
            # Its queue is full, or it or its subnet is gone: it asks again, or it does not.
            return

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection to its end."""
        peer = writer.get_extra_info("peername")
        if peer is None:
            # It has gone already.
            writer.transport.abort()
            return
        address = str(peer[0])
        if (task := asyncio.current_task()) is not None:
            # Ended with the network: its socket would keep the namespace.
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        try:
            with self._bounds.connected((self._vpc, address)) as may:
                if may:
                    await self._converse(reader, writer, address)
                writer.close()
                async with asyncio.timeout(_IDLE_S):
                    await writer.wait_closed()
        except (OSError, asyncio.IncompleteReadError):
            # The guest went away, dawdled or talked nonsense: it gets nothing more.
            return
        finally:
            # Closing would wait for ever for a guest that does not read; nothing happens to one that is closed.
            writer.transport.abort()

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, address: str) -> None:
        for _ in range(_QUESTIONS_MAX):
            async with asyncio.timeout(_IDLE_S):
                (length,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
                zone = self._admitted(address)
                if zone is None:
                    return
                from cairn.net.questions import QUERY_BYTES_MAX, judged

                if length > QUERY_BYTES_MAX:
                    return
                answer = judged(await reader.readexactly(length), zone, udp=False)
            if answer is None:
                return
            if not isinstance(answer, bytes):
                answer = await self._elsewhere(answer, address)
            async with asyncio.timeout(_IDLE_S):
                writer.write(_LENGTH.pack(len(answer)) + answer)
                await writer.drain()
