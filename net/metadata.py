"""Instance metadata over HTTP at 169.254.169.254: EC2's layout and NoCloud's, read-only.

Who asks is known by the listening socket (one per VPC namespace) and the source address within it, which the packet rules
tie to the guest's TAP. A guest sees its own data only; everything else is 404.

    /latest/meta-data/...   one value per file, folders list their entries (EC2; dated versions are the same)
    /latest/user-data       as given
    /nocloud/meta-data, user-data, network-config, vendor-data    for cloud-init's `ds=nocloud;s=http://169.254.169.254/nocloud/`

HTTP/1.1 (RFC 9112), the part that GET and HEAD without a body need. A guest is not trusted: header size, time, requests per
connection, connections and requests a second per guest are limited, and a connection that is over is gone, also when the guest
never reads what it asked for. Requests that came through a proxy (X-Forwarded-For) are refused, as on
EC2: they are usually made on behalf of somebody else.
"""

from __future__ import annotations

import asyncio
import json
import socket
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final

from cairn.net.base import NetError
from cairn.proto.addresses import addresses_of, first_ipv4, is_ipv6
from cairn.proto.v1.agent_pb2 import DesiredPort, DesiredSubnet, DesiredVm

PORT: Final = 80
_VERSIONS: Final = ("1.0", "2009-04-04", "2016-09-02", "2021-03-23", "latest")
_HEADER_BYTES_MAX: Final = 8192
_REQUESTS_MAX: Final = 100
_CONNECTIONS_MAX: Final = 16
_TIMEOUT_S: Final = 10.0
# Requests a second of one guest, and how many at once: cloud-init makes some dozens when it begins.
_RATE: Final = 20.0
_BURST: Final = 200.0
# Guests whose budget is remembered though it is whole again.
_BUDGETS_MAX: Final = 1024

Tree = Mapping[str, "Tree | bytes"]


@dataclass(frozen=True, slots=True)
class Guest:
    """Who asks: the VM, the port it asks through, all its ports, and their subnets by id."""

    vm: DesiredVm
    port: DesiredPort
    ports: Mapping[str, DesiredPort]
    subnets: Mapping[str, DesiredSubnet]


def tree(guest: Guest) -> Tree:
    """Return everything a guest may read, as folders and files. Pure."""
    versions: dict[str, Tree | bytes] = {}
    version: dict[str, Tree | bytes] = {"meta-data": _ec2(guest)}
    nocloud: dict[str, Tree | bytes] = {
        "meta-data": _document(_nocloud(guest)),
        "network-config": _document(_network_config(guest)),
        "user-data": guest.vm.user_data or b"#cloud-config\n" + _document(_cloud_config(guest.vm)),
        "vendor-data": b"",
    }
    if guest.vm.user_data:
        version["user-data"] = guest.vm.user_data
    versions.update(dict.fromkeys(_VERSIONS, version))
    return {**versions, "nocloud": nocloud}


def _document(value: object) -> bytes:
    """JSON is YAML, and has one spelling."""
    return json.dumps(value, indent=1, sort_keys=True).encode() + b"\n"


def _hostname(vm: DesiredVm) -> str:
    return vm.hostname or vm.name


def _ec2(guest: Guest) -> Tree:
    vm, hostname = guest.vm, _hostname(guest.vm).encode()
    result: dict[str, Tree | bytes] = {
        "instance-id": vm.id.encode(),
        "hostname": hostname,
        "local-hostname": hostname,
        "local-ipv4": first_ipv4(guest.port.addresses).encode(),
        "mac": guest.port.mac.encode(),
        "network": {"interfaces": {"macs": {nic.mac: _card(guest, n) for n, nic in enumerate(vm.nics)}}},
    }
    if vm.ssh_keys:
        names = {f"{n}": {"openssh-key": key.encode()} for n, key in enumerate(vm.ssh_keys)}
        result["public-keys"] = names
    return result


def _card(guest: Guest, number: int) -> Tree:
    nic = guest.vm.nics[number]
    port, subnet = guest.ports.get(nic.port), guest.subnets.get(nic.subnet)
    return {
        "device-number": str(number).encode(),
        "interface-id": nic.port.encode(),
        "local-ipv4s": "\n".join(each for each in addresses_of(nic) if not is_ipv6(each)).encode(),
        "mac": nic.mac.encode(),
        "subnet-id": nic.subnet.encode(),
        "subnet-ipv4-cidr-block": subnet.cidr.encode() if subnet is not None else b"",
        "vpc-id": port.vpc.encode() if port is not None else b"",
    }


def _nocloud(guest: Guest) -> dict[str, object]:
    result: dict[str, object] = {"instance-id": guest.vm.id, "local-hostname": _hostname(guest.vm)}
    if guest.vm.ssh_keys:
        result["public-keys"] = list(guest.vm.ssh_keys)
    return result


def _cloud_config(vm: DesiredVm) -> dict[str, object]:
    result: dict[str, object] = {"hostname": _hostname(vm)}
    if vm.ssh_keys:
        result["ssh_authorized_keys"] = list(vm.ssh_keys)
    return result


def _network_config(guest: Guest) -> dict[str, object]:
    cards = {
        f"eth{number}": {"match": {"macaddress": nic.mac}, "set-name": f"eth{number}", "dhcp4": True, "mtu": nic.mtu}
        for number, nic in enumerate(guest.vm.nics)
    }
    return {"version": 2, "ethernets": cards}


def find(root: Tree, path: str) -> bytes | None:
    """Return a file's content or a folder's listing; None: not there. A trailing slash matters to nobody."""
    here: Tree | bytes = root
    parts = [part for part in path.split("/") if part]
    for part in parts:
        if isinstance(here, bytes) or part not in here:
            return None
        here = here[part]
    if isinstance(here, bytes):
        return here
    if parts[-1:] == ["public-keys"]:
        # EC2 lists keys as "<number>=<name>".
        return "\n".join(f"{number}=key-{number}" for number in here).encode()
    return "\n".join(name if isinstance(value, bytes) else f"{name}/" for name, value in sorted(here.items())).encode()


class BadRequest(ValueError):
    """A request we do not answer otherwise; carries the status."""

    def __init__(self, status: HTTPStatus) -> None:
        super().__init__(status.phrase)
        self.status = status


@dataclass(frozen=True, slots=True)
class HttpRequest:
    """Method, path and whether the connection stays open after it."""

    method: str
    path: str
    keep_alive: bool


def parse_request(head: bytes) -> HttpRequest:
    """Return the request whose head (up to the empty line) this is; BadRequest with the status to answer."""
    try:
        first, *lines = head.decode("ascii").rstrip("\r\n").split("\r\n")
        method, target, version = first.split(" ")
    except ValueError as error:
        raise BadRequest(HTTPStatus.BAD_REQUEST) from error
    headers = {}
    for line in lines:
        name, colon, value = line.partition(":")
        if not colon or not name or name != name.strip():
            raise BadRequest(HTTPStatus.BAD_REQUEST)
        headers[name.lower()] = value.strip().lower()
    if version not in ("HTTP/1.0", "HTTP/1.1") or not target.startswith("/"):
        raise BadRequest(HTTPStatus.BAD_REQUEST)
    if version == "HTTP/1.1" and "host" not in headers:
        raise BadRequest(HTTPStatus.BAD_REQUEST)
    if "x-forwarded-for" in headers:
        raise BadRequest(HTTPStatus.FORBIDDEN)
    if method not in ("GET", "HEAD"):
        raise BadRequest(HTTPStatus.METHOD_NOT_ALLOWED)
    if headers.get("content-length", "0") != "0" or "transfer-encoding" in headers:
        raise BadRequest(HTTPStatus.BAD_REQUEST)
    connection = headers.get("connection", "")
    keep = "close" not in connection if version == "HTTP/1.1" else "keep-alive" in connection
    return HttpRequest(method, target.partition("?")[0], keep)


def _response(status: HTTPStatus, body: bytes, *, keep_alive: bool, head_only: bool = False) -> bytes:
    headers = (
        f"HTTP/1.1 {status.value} {status.phrase}\r\nServer: cairn\r\nContent-Type: text/plain\r\n"
        f"Content-Length: {len(body)}\r\nConnection: {'keep-alive' if keep_alive else 'close'}\r\n\r\n"
    )
    return headers.encode() + (b"" if head_only else body)


class Budgets:
    """How much each guest may still ask for: a token bucket each."""

    def __init__(self, rate: float = _RATE, burst: float = _BURST) -> None:
        self._rate, self._burst = rate, burst
        # Source -> (tokens, as of when).
        self._left: dict[str, tuple[float, float]] = {}

    def __len__(self) -> int:
        return len(self._left)

    def take(self, source: str, now_s: float) -> bool:
        """Take one; False: there is none left."""
        if len(self._left) > _BUDGETS_MAX:
            self._left = {each: held for each, held in self._left.items() if self._now(held, now_s) < self._burst}
        tokens = self._now(self._left.get(source, (self._burst, now_s)), now_s)
        self._left[source] = (max(0.0, tokens - 1), now_s)
        return tokens >= 1

    def _now(self, held: tuple[float, float], now_s: float) -> float:
        tokens, since_s = held
        return min(self._burst, tokens + (now_s - since_s) * self._rate)


class MetadataServer:
    """Serves one VPC's guests. guest_of: source address -> Guest, or None."""

    def __init__(self, guest_of: Callable[[str], Guest | None]) -> None:
        self._guest_of = guest_of
        self._connections: Counter[str] = Counter()
        self._budgets = Budgets()

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection to its end."""
        peer = writer.get_extra_info("peername")
        if peer is None:
            # It has gone already.
            writer.transport.abort()
            return
        source = str(peer[0])
        self._connections[source] += 1
        try:
            if self._connections[source] <= _CONNECTIONS_MAX:
                await self._converse(reader, writer, source)
            writer.close()
            async with asyncio.timeout(_TIMEOUT_S):
                await writer.wait_closed()
        except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            # The guest went away, dawdled or talked nonsense: it gets nothing more.
            return
        finally:
            # Closing would wait for ever for a guest that does not read; nothing happens to one that is closed.
            writer.transport.abort()
            self._connections[source] -= 1
            if not self._connections[source]:
                del self._connections[source]

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, source: str) -> None:
        for _ in range(_REQUESTS_MAX):
            async with asyncio.timeout(_TIMEOUT_S):
                head = await reader.readuntil(b"\r\n\r\n")
                keep_alive = False
                try:
                    if not self._budgets.take(source, asyncio.get_running_loop().time()):
                        raise BadRequest(HTTPStatus.TOO_MANY_REQUESTS)
                    request = parse_request(head)
                    keep_alive = request.keep_alive
                    response = self._answer(request, source)
                except BadRequest as error:
                    response = _response(error.status, b"", keep_alive=False)
                writer.write(response)
                await writer.drain()
            if not keep_alive:
                return

    def _answer(self, request: HttpRequest, source: str) -> bytes:
        guest = self._guest_of(source)
        found = find(tree(guest), request.path) if guest is not None else None
        status = HTTPStatus.OK if found is not None else HTTPStatus.NOT_FOUND
        body = found if found is not None else b"not found\n"
        return _response(status, body, keep_alive=request.keep_alive, head_only=request.method == "HEAD")


async def serve(listener: socket.socket, server: MetadataServer) -> asyncio.Server:
    """Start serving on a bound socket."""
    try:
        return await asyncio.start_server(server.handle, sock=listener, limit=_HEADER_BYTES_MAX)
    except OSError as error:
        raise NetError(f"serve metadata: {error}") from error
