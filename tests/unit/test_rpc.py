"""The transport: mutual TLS on TCP and unix sockets, who calls, rotation without restart, errors as statuses."""

from __future__ import annotations

import asyncio
import socket
import stat
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from cairn.proto import pki, rpc
from cairn.proto.errors import Invalid, NotFound, TryAgain, status_of
from cairn.proto.pki import CONTROLLER_SERVER_NAME, Authority, Identity
from cairn.proto.rpc import FileCredentials, GrpcTransport, StaticCredentials
from cairn.proto.seams import SystemClock, SystemIds
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc


class EarlierClock:
    """The machine's clock, some days ago."""

    def __init__(self, days: int) -> None:
        self._days = days

    def now(self) -> datetime:
        return SystemClock().now() - timedelta(days=self._days)


@pytest.fixture(scope="module")
def ca() -> Authority:
    return Authority.create("cairn test", SystemClock(), SystemIds())


def credentials(ca: Authority, identity: Identity) -> StaticCredentials:
    return StaticCredentials(ca.cert_pem, ca.issue(identity))


ADMIN = Identity("user", "admin")
CONTROLLER = Identity("controller", "c1")


async def whoami(_request: bytes, context: Any) -> bytes:
    return rpc.peer_identity(context).uri.encode()


async def refuse(_request: bytes, _context: Any) -> bytes:
    raise Invalid("spec.cpus", "0 is not in 1..64")


async def crash(_request: bytes, _context: Any) -> bytes:
    raise KeyError("password=hunter2")


async def relay(_request: bytes, context: Any) -> bytes:
    raise grpc.aio.AioRpcError(grpc.StatusCode.UNAVAILABLE, grpc.aio.Metadata(), grpc.aio.Metadata(), "the node is away")


async def count(_request: bytes, _context: Any) -> AsyncIterator[bytes]:
    for number in range(3):
        yield str(number).encode()
    raise NotFound("vm", "web")


async def write(request: bytes, context: Any) -> None:
    await context.write(request)
    raise TryAgain("later")


async def swallow(requests: AsyncIterator[bytes], _context: Any) -> bytes:
    return str(sum([len(each) async for each in requests])).encode()


async def echo(requests: AsyncIterator[bytes], _context: Any) -> AsyncIterator[bytes]:
    async for each in requests:
        yield each


HANDLERS = {
    "WhoAmI": grpc.unary_unary_rpc_method_handler(whoami),
    "Refuse": grpc.unary_unary_rpc_method_handler(refuse),
    "Crash": grpc.unary_unary_rpc_method_handler(crash),
    "Relay": grpc.unary_unary_rpc_method_handler(relay),
    "Count": grpc.unary_stream_rpc_method_handler(count),
    "Write": grpc.unary_stream_rpc_method_handler(write),
    "Swallow": grpc.stream_unary_rpc_method_handler(swallow),
    "Echo": grpc.stream_stream_rpc_method_handler(echo),
}
Serve = Callable[..., Awaitable[str]]


@pytest.fixture
async def serve() -> AsyncIterator[Serve]:
    """Start servers; all are stopped at the end."""
    async with AsyncExitStack() as stack:

        async def start(source: rpc.Credentials, address: str = "127.0.0.1:0", *, mutual: bool = True) -> str:
            transport = GrpcTransport(source)
            server = transport.server()
            server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("t.T", HANDLERS),))
            await rpc.add_health_and_reflection(server, ["t.T"])
            bound = await transport.listen(server, address, mutual=mutual)
            await server.start()
            stack.push_async_callback(server.stop, 0)
            return bound

        yield start


async def ask(source: rpc.Credentials, *endpoints: str, name: str = CONTROLLER_SERVER_NAME, method: str = "WhoAmI") -> str:
    async with GrpcTransport(source).channel(endpoints, server_name=name) as channel:
        return str((await channel.unary_unary(f"/t.T/{method}")(b"", timeout=10)).decode())


async def refusal(*arguments: Any, **keywords: Any) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await ask(*arguments, **keywords)
    return caught.value


async def test_identity_travels_in_the_certificate(ca: Authority, serve: Serve, tmp_path: Path) -> None:
    server = credentials(ca, CONTROLLER)
    for address in ("127.0.0.1:0", f"unix:{tmp_path}/c.sock"):
        bound = await serve(server, address)
        assert await ask(credentials(ca, ADMIN), bound) == "cairn://user/admin"
    assert stat.S_IMODE((tmp_path / "c.sock").stat().st_mode) == 0o660


async def test_wrong_certificates_do_not_get_in(ca: Authority, serve: Serve) -> None:
    bound = await serve(credentials(ca, CONTROLLER))
    stranger = Authority.create("cairn test", SystemClock(), SystemIds())
    old = Authority(ca.cert, ca.key, EarlierClock(100), SystemIds())
    wrong = [
        StaticCredentials(ca.cert_pem, stranger.issue(ADMIN)),
        StaticCredentials(stranger.cert_pem, ca.issue(ADMIN)),
        StaticCredentials(ca.cert_pem, old.issue(ADMIN)),
        StaticCredentials(ca.cert_pem),
    ]
    for source in wrong:
        assert (await refusal(source, bound)).code() is grpc.StatusCode.UNAVAILABLE
    assert await ask(credentials(ca, ADMIN), bound) == ADMIN.uri


async def test_a_node_cannot_pass_for_a_controller_or_another_node(ca: Authority, serve: Serve) -> None:
    bound = await serve(credentials(ca, Identity("node", "node-0000aaaa")))
    assert (await refusal(credentials(ca, ADMIN), bound)).code() is grpc.StatusCode.UNAVAILABLE
    other = pki.node_server_name("node-0000bbbb")
    assert (await refusal(credentials(ca, ADMIN), bound, name=other)).code() is grpc.StatusCode.UNAVAILABLE
    assert await ask(credentials(ca, ADMIN), bound, name=pki.node_server_name("node-0000aaaa")) == ADMIN.uri


async def test_enrolment_needs_no_client_certificate_but_knows_nobody(ca: Authority, serve: Serve) -> None:
    bound = await serve(credentials(ca, CONTROLLER), mutual=False)
    error = await refusal(StaticCredentials(ca.cert_pem), bound)
    assert error.code() is grpc.StatusCode.UNAUTHENTICATED
    # A certificate offered on this port is not checked against the CA, so it must not count.
    error = await refusal(credentials(ca, ADMIN), bound)
    assert error.code() is grpc.StatusCode.UNAUTHENTICATED


async def test_plaintext_is_not_answered(ca: Authority, serve: Serve) -> None:
    bound = await serve(credentials(ca, CONTROLLER))
    async with grpc.aio.insecure_channel(bound) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await channel.unary_unary("/t.T/WhoAmI")(b"", timeout=10)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_rotation_is_taken_up_by_a_live_server_and_channel(ca: Authority, serve: Serve, tmp_path: Path) -> None:
    def files(name: str, identity: Identity) -> tuple[Path, Path, Path]:
        paths = (tmp_path / "ca.crt", tmp_path / f"{name}.crt", tmp_path / f"{name}.key")
        pki.write_public(paths[0], ca.cert_pem)
        pki.install_pair(paths[1], paths[2], ca.issue(identity))
        return paths

    server_files, client_files = files("server", CONTROLLER), files("client", ADMIN)
    bound = await serve(FileCredentials(*server_files))
    channel = GrpcTransport(FileCredentials(*client_files)).channel([bound], server_name=CONTROLLER_SERVER_NAME)
    who = channel.unary_unary("/t.T/WhoAmI")
    stream = channel.stream_stream("/t.T/Echo")()
    await stream.write(b"before")
    assert await stream.read() == b"before"
    assert await who(b"") == b"cairn://user/admin"
    # The key alone is new: a pair that does not fit is not used.
    pki.write_private(client_files[2], ca.issue(ADMIN).key_pem)
    assert await who(b"") == b"cairn://user/admin"
    pki.install_pair(client_files[1], client_files[2], ca.issue(Identity("user", "renewed")))
    assert await who(b"") == b"cairn://user/renewed"
    await stream.write(b"after")
    assert await stream.read() == b"after"
    pki.install_pair(server_files[1], server_files[2], ca.issue(Identity("node", "node-0000abcd")))
    assert await ask(FileCredentials(*client_files), bound, name="node-0000abcd.node.cairn") == "cairn://user/renewed"
    await stream.done_writing()
    assert await stream.read() is grpc.aio.EOF
    await channel.close()


async def test_a_new_ca_is_taken_up_by_a_live_server(ca: Authority, serve: Serve, tmp_path: Path) -> None:
    other = Authority.create("cairn next", SystemClock(), SystemIds())
    pki.write_public(tmp_path / "ca.crt", ca.cert_pem)
    pki.install_pair(tmp_path / "s.crt", tmp_path / "s.key", ca.issue(CONTROLLER))
    bound = await serve(FileCredentials(tmp_path / "ca.crt", tmp_path / "s.crt", tmp_path / "s.key"))
    newcomer = StaticCredentials(ca.cert_pem, other.issue(ADMIN))
    assert (await refusal(newcomer, bound)).code() is grpc.StatusCode.UNAVAILABLE
    pki.write_public(tmp_path / "ca.crt", ca.cert_pem + other.cert_pem)
    assert await ask(newcomer, bound) == ADMIN.uri
    assert await ask(credentials(ca, ADMIN), bound) == ADMIN.uri


@pytest.mark.parametrize("live", [0, 1, 2])
async def test_a_channel_finds_the_endpoint_that_answers(ca: Authority, serve: Serve, tmp_path: Path, live: int) -> None:
    endpoints = [f"unix:{tmp_path}/{number}.sock" for number in range(3)]
    await serve(credentials(ca, CONTROLLER), endpoints[live])
    assert await ask(credentials(ca, ADMIN), *endpoints) == ADMIN.uri


async def test_a_channel_mixes_sockets_names_and_addresses(ca: Authority, serve: Serve, tmp_path: Path) -> None:
    bound = await serve(credentials(ca, CONTROLLER))
    port = bound.rpartition(":")[2]
    endpoints = [f"unix:{tmp_path}/none.sock", f"localhost:{port}"]
    async with GrpcTransport(credentials(ca, ADMIN)).channel(endpoints, server_name=CONTROLLER_SERVER_NAME) as channel:
        await asyncio.wait_for(channel.channel_ready(), 10)
        assert await channel.unary_unary("/t.T/WhoAmI")(b"", timeout=10) == ADMIN.uri.encode()


async def test_stale_sockets_are_replaced_and_live_ones_are_not(ca: Authority, serve: Serve, tmp_path: Path) -> None:
    path = tmp_path / "c.sock"
    await serve(credentials(ca, CONTROLLER), f"unix:{path}")
    with pytest.raises(OSError, match="another process"):
        await serve(credentials(ca, CONTROLLER), f"unix:{path}")
    assert await ask(credentials(ca, ADMIN), f"unix:{path}") == ADMIN.uri
    stale = tmp_path / "stale.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(stale))
    await serve(credentials(ca, CONTROLLER), f"unix:{stale}")
    assert await ask(credentials(ca, ADMIN), f"unix:{stale}") == ADMIN.uri
    (tmp_path / "file").write_text("precious")
    with pytest.raises(OSError, match="no socket"):
        await serve(credentials(ca, CONTROLLER), f"unix:{tmp_path}/file")
    with pytest.raises(OSError, match="at most 107 bytes"):
        await serve(credentials(ca, CONTROLLER), f"unix:{tmp_path}/{'x' * 100}")


async def test_a_port_in_use_is_refused(ca: Authority, serve: Serve) -> None:
    bound = await serve(credentials(ca, CONTROLLER))
    with pytest.raises(OSError, match="in use"):
        await serve(credentials(ca, CONTROLLER), bound)


async def test_refusals_carry_their_details(ca: Authority, serve: Serve) -> None:
    bound = await serve(credentials(ca, CONTROLLER))
    error = await refusal(credentials(ca, ADMIN), bound, method="Refuse")
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    (bad,) = rpc.status_details(error, error_details_pb2.BadRequest)
    assert bad.field_violations[0].field == "spec.cpus"
    assert status_of(error).message == "spec.cpus: 0 is not in 1..64"


async def test_a_crash_tells_the_caller_nothing_but_an_id(ca: Authority, serve: Serve) -> None:
    bound = await serve(credentials(ca, CONTROLLER))
    error = await refusal(credentials(ca, ADMIN), bound, method="Crash")
    assert error.code() is grpc.StatusCode.INTERNAL
    assert "hunter2" not in str(error.details())
    assert "err-" in str(error.details())


async def test_a_failed_onward_call_keeps_its_status(ca: Authority, serve: Serve) -> None:
    bound = await serve(credentials(ca, CONTROLLER))
    error = await refusal(credentials(ca, ADMIN), bound, method="Relay")
    assert (error.code(), error.details()) == (grpc.StatusCode.UNAVAILABLE, "the node is away")


async def test_streams_of_every_shape(ca: Authority, serve: Serve) -> None:
    bound = await serve(credentials(ca, CONTROLLER))

    async def numbers() -> AsyncIterator[bytes]:
        for _ in range(5):
            yield b"12"

    async with GrpcTransport(credentials(ca, ADMIN)).channel([bound], server_name=CONTROLLER_SERVER_NAME) as channel:
        counted = channel.unary_stream("/t.T/Count")(b"", timeout=10)
        assert [await counted.read() for _ in range(3)] == [b"0", b"1", b"2"]
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await counted.read()
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND
        assert rpc.status_details(caught.value, error_details_pb2.ResourceInfo)
        call = channel.unary_stream("/t.T/Write")(b"x", timeout=10)
        assert await call.read() == b"x"
        assert await call.code() is grpc.StatusCode.UNAVAILABLE
        assert await channel.stream_unary("/t.T/Swallow")(numbers(), timeout=10) == b"10"
        assert [each async for each in channel.stream_stream("/t.T/Echo")(numbers(), timeout=10)] == [b"12"] * 5


async def test_messages_over_the_limit_are_refused(ca: Authority, serve: Serve) -> None:
    bound = await serve(credentials(ca, CONTROLLER))
    async with GrpcTransport(credentials(ca, ADMIN)).channel([bound], server_name=CONTROLLER_SERVER_NAME) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await channel.unary_unary("/t.T/WhoAmI")(b"x" * (rpc.MESSAGE_BYTES_MAX + 1), timeout=10)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_health_is_served(ca: Authority, serve: Serve) -> None:
    bound = await serve(credentials(ca, CONTROLLER))
    async with GrpcTransport(credentials(ca, ADMIN)).channel([bound], server_name=CONTROLLER_SERVER_NAME) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        answer = await stub.Check(health_pb2.HealthCheckRequest(service="t.T"), timeout=10)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
        watch = stub.Watch(health_pb2.HealthCheckRequest(service="t.T"), timeout=10)
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
        watch.cancel()


@pytest.mark.parametrize("endpoint", ["", "host", "host:", ":1", "host:x", "host:70000", "unix:relative", "unix:/a,b"])
def test_bad_endpoints_are_named(endpoint: str) -> None:
    with pytest.raises(ValueError, match="not an endpoint"):
        rpc.targets_of([endpoint])


def test_endpoints_become_few_targets() -> None:
    given = ["10.0.0.1:1", "unix:/a", "10.0.0.2:1", "[::1]:2", "unix:///b", "n1.example:3", "10.0.0.1:1"]
    assert rpc.targets_of(given) == [
        "ipv4:10.0.0.1:1,10.0.0.2:1",
        "unix:/a,/b",
        "ipv6:[::1]:2",
        "dns:///n1.example:3",
    ]
