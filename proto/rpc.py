"""How processes reach each other: gRPC over mutual TLS, on TCP and on unix sockets. The real `seams.Transport`.

    transport = GrpcTransport(FileCredentials(ca, cert, key))
    stub = VmServiceStub(transport.channel(["10.0.0.1:7443", "10.0.0.2:7443"], server_name=CONTROLLER_SERVER_NAME))
    server = transport.server(); address = await transport.listen(server, "unix:/run/cairn/controller.sock")

Invariants: nothing is ever sent in plaintext; a server learns who calls from the certificate alone (`peer_identity`); an error
reaches the caller as a google.rpc.Status with a sentence, never as a traceback. Certificates are read again when their
files change: servers for each new connection, channels for each new call, so rotation needs no restart. TLS 1.2 is the
least gRPC speaks. gRPC's pick_first tries the endpoints in order and goes on to the next when one dies; round_robin was
rejected because a long-lived stream gains nothing and every client would hold connections to all controllers.
"""

from __future__ import annotations

import asyncio
import os
import socket
import stat
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar, cast

import grpc
import grpc.aio
from cairn.proto import pki
from cairn.proto.channel import FailoverChannel
from cairn.proto.errors import STATUS_DETAILS_KEY, Invalid, Refused, Unauthenticated, status_of
from cairn.proto.log import logger
from cairn.proto.pki import Identity
from cairn.proto.seams import Ids, SystemIds, Transport
from cairn.proto.unsound import Unsound, unsound
from google.protobuf import descriptor_pool
from google.protobuf.message import DecodeError, Message
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

T = TypeVar("T")
# What another controller may answer otherwise.
PASSING: Final = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED})
MESSAGE_BYTES_MAX: Final = 4 << 20
KEEPALIVE_TIME_S: Final = 10.0
KEEPALIVE_TIMEOUT_S: Final = 3.0
SOCKET_MODE: Final = 0o660
# sun_path of unix(7) is 108 bytes with its closing zero.
SOCKET_PATH_BYTES_MAX: Final = 107

_OPTIONS: Final = (
    ("grpc.max_send_message_length", MESSAGE_BYTES_MAX),
    ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
    ("grpc.keepalive_time_ms", int(KEEPALIVE_TIME_S * 1000)),
    ("grpc.keepalive_timeout_ms", int(KEEPALIVE_TIMEOUT_S * 1000)),
    ("grpc.http2.max_pings_without_data", 0),
)
_CHANNEL_OPTIONS: Final = (
    *_OPTIONS,
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.min_reconnect_backoff_ms", 2_000),
    ("grpc.max_reconnect_backoff_ms", 3_000),
    ("grpc.enable_http_proxy", 0),
    # Two channels with other certificates must not share a connection.
    ("grpc.use_local_subchannel_pool", 1),
)
_SERVER_OPTIONS: Final = (
    *_OPTIONS,
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    # A second server on a port in use must fail, not share it.
    ("grpc.so_reuseport", 0),
)


@dataclass(frozen=True, slots=True)
class Material:
    """What TLS needs: the CA to trust, and our own certificate and key unless we have none (enrolment, or a token).

    token: sent along with each call, to where no certificate is asked for.
    """

    ca_pem: bytes
    pair: pki.Pair | None
    token: str = ""


class Credentials(Protocol):
    """Where TLS material comes from; asked for each connection."""

    def material(self) -> Material:
        """Return the material to use now; the same object as long as nothing changed."""
        ...


class StaticCredentials:
    """Material that never changes, for example a join token's CA."""

    def __init__(self, ca_pem: bytes, pair: pki.Pair | None = None, *, token: str = "") -> None:
        self._material = Material(ca_pem, pair, token)

    def material(self) -> Material:
        """Return it."""
        return self._material


class FileCredentials:
    """Material in files, read again when they change. While the files do not fit together the last good set is kept.

    token: of a file with an API token, instead of a certificate and its key.
    """

    def __init__(
        self, ca: Path | str, cert: Path | str | None = None, key: Path | str | None = None, *, token: Path | None = None
    ) -> None:
        self._ca, self._cert, self._key = Path(ca), Path(cert) if cert else None, Path(key) if key else None
        self._token = token
        self._seen: tuple[object, ...] = ()
        self._material: Material | None = None

    def material(self) -> Material:
        """Return the current material; PkiError or OSError only when there has never been a usable set."""
        seen = tuple(self._stamp(path) for path in (self._ca, self._cert, self._key, self._token))
        if self._material is None:
            self._material = self._read()
        elif seen != self._seen:
            try:
                self._material = self._read()
            except (OSError, pki.PkiError) as error:
                logger("rpc").warning("certificates_unusable", error=str(error), kept="the last good ones")
        self._seen = seen
        return self._material

    def _read(self) -> Material:
        ca_pem = self._ca.read_bytes()
        pki.parse_cert(ca_pem, str(self._ca))
        pair = pki.load_pair(self._cert, self._key) if self._cert and self._key else None
        return Material(ca_pem, pair, pki.read_token(self._token) if self._token else "")

    @staticmethod
    def _stamp(path: Path | None) -> object:
        with suppress(OSError):
            if path is not None:
                found = path.stat()
                return (found.st_ino, found.st_mtime_ns, found.st_size)
        return None


class GrpcTransport:
    """`seams.Transport` on grpc.aio. One per process: its identity is its credentials."""

    def __init__(self, credentials: Credentials, *, ids: Ids | None = None) -> None:
        self._credentials = credentials
        self._ids = ids or SystemIds()

    def channel(self, endpoints: Sequence[str], *, server_name: str) -> grpc.aio.Channel:
        """Return a channel to whichever of the endpoints answers.

        Endpoints: "host:port", "[v6]:port" or "unix:/path", mixed as you like; ValueError for anything else. server_name must
        be in the certificate of whoever answers.
        """
        targets = targets_of(endpoints)
        options = (
            *_CHANNEL_OPTIONS,
            ("grpc.ssl_target_name_override", server_name),
            ("grpc.default_authority", server_name),
        )

        def dial(material: Material, target: str) -> grpc.aio.Channel:
            return grpc.aio.secure_channel(target, _channel_credentials(material), options)

        return FailoverChannel(targets, self._credentials.material, dial)

    def server(self, *, interceptors: Sequence[Any] = ()) -> grpc.aio.Server:
        """Return a server without ports; errors are answered as ErrorInterceptor says."""
        return grpc.aio.server(interceptors=[ErrorInterceptor(self._ids), *interceptors], options=_SERVER_OPTIONS)

    async def listen(self, server: grpc.aio.Server, address: str, *, mutual: bool = True) -> str:
        """Bind "host:port" (port 0: any) or "unix:/path" (mode 0660), return the bound address; OSError when in use."""
        credentials = self._server_credentials(mutual)
        if address.startswith("unix:"):
            path = Path(address.removeprefix("unix:"))
            _clear_socket(path)
            mask = os.umask(0o777 & ~SOCKET_MODE)
            try:
                server.add_secure_port(f"unix:{path}", credentials)
            except RuntimeError as error:
                raise OSError(f"cannot listen on {address}") from error
            finally:
                os.umask(mask)
            return f"unix:{path}"
        host, port = split_endpoint(address)
        try:
            bound = server.add_secure_port(_joined(host, port), credentials)
        except RuntimeError as error:
            raise OSError(f"cannot listen on {address}: is the port in use, or the address not this host's?") from error
        return _joined(host, bound)

    def _server_credentials(self, mutual: bool) -> grpc.ServerCredentials:
        current = self._credentials.material()
        known = [current]

        def changed() -> grpc.ServerCertificateConfiguration | None:
            # Called by gRPC before every handshake; None: no change.
            material = self._credentials.material()
            if material is known[0]:
                return None
            known[0] = material
            return _server_configuration(material, mutual)

        fetch = cast("Callable[[], grpc.ServerCertificateConfiguration]", changed)
        return grpc.dynamic_ssl_server_credentials(_server_configuration(current, mutual), fetch, mutual)


async def ask_in_turn(transport: Transport, endpoints: Sequence[str], ask: Callable[[grpc.aio.Channel], Awaitable[T]]) -> T:
    """Return what the first controller answers that can: one may be up and unable, as not each holds the key that signs.

    Raises what the last one answered, or an AioRpcError that is not PASSING at once; ValueError without endpoints.
    """
    for left, endpoint in zip(range(len(endpoints) - 1, -1, -1), endpoints, strict=True):
        channel = transport.channel([endpoint], server_name=pki.CONTROLLER_SERVER_NAME)
        try:
            return await ask(channel)
        except grpc.aio.AioRpcError as error:
            if not left or error.code() not in PASSING:
                raise
        finally:
            await channel.close(None)
    raise ValueError("there is nobody to ask")


def _channel_credentials(material: Material) -> grpc.ChannelCredentials:
    pair = material.pair
    tls = grpc.ssl_channel_credentials(material.ca_pem, pair.key_pem if pair else None, pair.cert_pem if pair else None)
    if not material.token:
        return tls
    return grpc.composite_channel_credentials(tls, grpc.access_token_call_credentials(material.token))


def _server_configuration(material: Material, mutual: bool) -> grpc.ServerCertificateConfiguration:
    if material.pair is None:
        raise pki.PkiError("a server needs a certificate and its key")
    pairs = [(material.pair.key_pem, material.pair.cert_pem)]
    return grpc.ssl_server_certificate_configuration(pairs, material.ca_pem if mutual else None)


def _clear_socket(path: Path) -> None:
    """Remove a socket nobody listens on any more; OSError when somebody does, or the path is something else or too long."""
    if len(os.fsencode(path)) > SOCKET_PATH_BYTES_MAX:
        raise OSError(f"cannot listen on {path}: a socket's path has at most {SOCKET_PATH_BYTES_MAX} bytes")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise OSError(f"cannot listen on {path}: it exists and is no socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        if probe.connect_ex(os.fspath(path)) == 0:
            raise OSError(f"cannot listen on {path}: another process does")
    path.unlink(missing_ok=True)


# --- addresses -----------------------------------------------------------------------------------------------------------


def split_endpoint(endpoint: str) -> tuple[str, int]:
    """Return (host, port) of "host:port" or "[v6]:port"; ValueError otherwise."""
    host, colon, port = endpoint.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not host or not port.isascii() or not port.isdigit() or int(port) > 65_535:
        raise ValueError(f"not an endpoint: {endpoint!r}; expected host:port or unix:/path")
    return host, int(port)


def targets_of(endpoints: Sequence[str]) -> list[str]:
    """Return gRPC targets for endpoints: addresses of one family share a target, which tries them in order."""
    groups: dict[str, list[str]] = {}
    for endpoint in endpoints:
        if endpoint.startswith("unix:"):
            path = endpoint.removeprefix("unix:").removeprefix("//")
            if not path.startswith("/") or "," in path:
                raise ValueError(f"not an endpoint: {endpoint!r}; a socket's path is absolute and has no comma")
            groups.setdefault("unix:", []).append(path)
            continue
        host, port = split_endpoint(endpoint)
        try:
            version = ip_address(host).version
        except ValueError:
            groups.setdefault(f"dns:///{_joined(host, port)}", [""])
        else:
            groups.setdefault(f"ipv{version}:", []).append(_joined(host, port))
    if not groups:
        raise ValueError("no endpoint given")
    return [scheme + ",".join(dict.fromkeys(addresses)) for scheme, addresses in groups.items()]


def _joined(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


# --- who calls, how long, and what went wrong -----------------------------------------------------------------------------


def alternative_names(context: grpc.aio.ServicerContext[Any, Any]) -> list[str]:
    """Return the alternative names in the client's certificate: its URI, and what it is certified to serve as."""
    names = context.auth_context().get("x509_subject_alternative_name", ())
    return [name.decode("utf-8", "replace") for name in names]


def peer_identity(context: grpc.aio.ServicerContext[Any, Any]) -> Identity:
    """Return who calls, from the URI in the client certificate; raises Unauthenticated when there is none."""
    try:
        return pki.identity_in(alternative_names(context))
    except pki.PkiError as error:
        raise Unauthenticated(f"who calls is unknown: {error}") from error


def time_left_s(context: grpc.aio.ServicerContext[Any, Any], most_s: float) -> float:
    """Return how long a handler may take: until the caller's deadline, at most `most_s`."""
    left = cast("float | None", context.time_remaining())
    return most_s if left is None else max(0.0, min(left, most_s))


# How long a refusal waits for a client that is still sending.
READ_ON_S: Final = 2.0


class ErrorInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]
    """Turns what a handler raises into a status.

    Refused: its code, sentence and details. Bytes that are no such message: INVALID_ARGUMENT with the field. A failed onward
    call: that call's status. Anything else: INTERNAL with a short id that is in the log too. CancelledError passes.
    """

    def __init__(self, ids: Ids) -> None:
        self._ids = ids
        # By method: what answers it is the same for every call.
        self._wrapped: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any]]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any]:
        """Wrap the method's behaviour."""
        method = str(handler_call_details.method)
        if (known := self._wrapped.get(method)) is not None:
            return known
        handler = cast("Any", await continuation(handler_call_details))
        if handler is None:
            return cast("grpc.RpcMethodHandler[Any, Any]", None)
        wrapped = self._wrapped[method] = self._wrap(method, handler)
        return wrapped

    def _wrap(self, method: str, handler: Any) -> grpc.RpcMethodHandler[Any, Any]:
        """Return a handler whose failures are statuses."""
        in_stream, out_stream = bool(handler.request_streaming), bool(handler.response_streaming)
        attribute, make = _SHAPES[in_stream, out_stream]
        behaviour = getattr(handler, attribute)
        behaviour = _sound(method, behaviour, in_stream=in_stream, out_stream=out_stream)
        wrapped = self._streaming(method, behaviour) if out_stream else self._unary(method, behaviour, in_stream=in_stream)
        return cast(
            "grpc.RpcMethodHandler[Any, Any]",
            make(
                wrapped,
                request_deserializer=_tolerant(method, handler.request_deserializer),
                response_serializer=handler.response_serializer,
            ),
        )

    def _unary(self, method: str, behaviour: Any, *, in_stream: bool) -> Any:
        async def call(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
            try:
                return await behaviour(request, context)
            except grpc.aio.AbortError:
                raise
            except Exception as error:  # noqa: BLE001 - the boundary: every failure becomes a status
                if in_stream:
                    await _read_on(request)
                await self._answer(method, context, error)

        return call

    def _streaming(self, method: str, behaviour: Any) -> Any:
        async def call(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> AsyncIterator[Any]:
            try:
                result = behaviour(request, context)
                if hasattr(result, "__aiter__"):
                    async with aclosing(result):
                        async for message in result:
                            yield message
                else:
                    await result
            except grpc.aio.AbortError:
                raise
            except Exception as error:  # noqa: BLE001 - the boundary: every failure becomes a status
                await self._answer(method, context, error)

        return call

    async def _answer(self, method: str, context: grpc.aio.ServicerContext[Any, Any], error: Exception) -> None:
        if isinstance(error, Refused):
            status = error.status()
            await context.abort(error.code, error.say, ((STATUS_DETAILS_KEY, status.SerializeToString()),))
        if isinstance(error, grpc.aio.AioRpcError) and error.code() not in _OPAQUE:
            status = status_of(error)
            await context.abort(error.code(), status.message, ((STATUS_DETAILS_KEY, status.SerializeToString()),))
        incident = self._ids.new("err")
        logger("rpc").error("call_failed", method=method, incident=incident, exc_info=error)
        await context.abort(grpc.StatusCode.INTERNAL, f"an error on our side; the controller's log has more under {incident}")


def _tolerant(method: str, parse: Callable[[bytes], Any] | None) -> Callable[[bytes], Any] | None:
    """Return a parser that returns what is wrong with bytes that are no message; what gRPC would say of them helps nobody."""
    if parse is None:
        return None

    def tolerant(content: bytes) -> Any:
        try:
            return parse(content)
        except DecodeError:
            asked = descriptor_pool.Default().FindMethodByName(method.strip("/").replace("/", "."))
            return unsound(asked.input_type, content)

    return tolerant


def _sound(method: str, behaviour: Any, *, in_stream: bool, out_stream: bool) -> Any:
    """Return a behaviour that refuses what `_tolerant` could not parse, wherever in a stream it comes."""

    def checked(request: Any) -> Any:
        if isinstance(request, Unsound):
            logger("rpc").info("request_unsound", method=method, field=request.field, why=request.say)
            raise Invalid(request.field or "request", request.say)
        return request

    async def each(requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
        async for request in requests:
            yield checked(request)

    def asked(request: Any) -> Any:
        return each(request) if in_stream else checked(request)

    if out_stream:
        return lambda request, context: behaviour(asked(request), context)

    async def call(request: Any, context: Any) -> Any:
        return await behaviour(asked(request), context)

    return call


async def _read_on(requests: AsyncIterator[Any]) -> None:
    """Take for a while what a client still sends, to no use.

    A client of grpc.aio whose write fails because the call has ended forgets the status that came with the end and shows
    INTERNAL instead (grpc/grpc issue 36066): a refusal waits until the client has sent all, or for READ_ON_S.
    """
    try:
        async with asyncio.timeout(READ_ON_S):
            async for _ in requests:
                await asyncio.sleep(0)
    except (TimeoutError, grpc.aio.BaseError, grpc.aio.UsageError) as error:
        logger("rpc").debug("stopped_reading", error=repr(error))


_OPAQUE: Final = frozenset({grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.CANCELLED})
_SHAPES: Final[dict[tuple[bool, bool], tuple[str, Any]]] = {
    (False, False): ("unary_unary", grpc.unary_unary_rpc_method_handler),
    (False, True): ("unary_stream", grpc.unary_stream_rpc_method_handler),
    (True, False): ("stream_unary", grpc.stream_unary_rpc_method_handler),
    (True, True): ("stream_stream", grpc.stream_stream_rpc_method_handler),
}


async def add_health_and_reflection(server: grpc.aio.Server, services: Sequence[str]) -> Any:
    """Serve grpc.health.v1 (all given services SERVING) and reflection; return the health servicer, to change what it says.

    services: full names, for example "cairn.v1.VmService".
    """
    servicer = health.aio.HealthServicer()  # type: ignore[attr-defined]
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    for name in services:
        await servicer.set(name, health_pb2.HealthCheckResponse.SERVING)
    reflection.enable_server_reflection([*services, health.SERVICE_NAME], server)
    return servicer


def status_details(error: grpc.aio.AioRpcError, message: type[Message]) -> list[Message]:
    """Return the details of one type a failed call carried, for example error_details_pb2.BadRequest."""
    found = []
    for packed in status_of(error).details:
        detail = message()
        if packed.Unpack(detail):
            found.append(detail)
    return found
