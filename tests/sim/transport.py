"""`seams.Transport` over the simulated network: channels and servers that the product uses as it uses gRPC's."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Sequence
from functools import partial
from typing import Any

import grpc
import grpc.aio
from cairn.proto.pki import Identity
from cairn.proto.rpc import ErrorInterceptor
from cairn.proto.seams import Ids

from tests.sim.calls import ClientCall, Code, Details, ServerCall, Status
from tests.sim.network import CONNECT_S, Connection, Network


class SimServer(grpc.aio.Server):
    """Runs real servicers; `listen` of the transport gives it addresses."""

    def __init__(self, network: Network, host: str, identity: Identity, interceptors: Sequence[Any]) -> None:
        self.host, self.identity, self.mutual = host, identity, True
        self.context = contextvars.copy_context()
        self.calls: dict[ServerCall, None] = {}
        self.addresses: list[str] = []
        self._network, self._interceptors = network, list(interceptors)
        self._generic: list[Any] = []
        self._methods: dict[str, Any] = {}
        self._stopped = asyncio.Event()

    def add_generic_rpc_handlers(self, generic_rpc_handlers: Sequence[Any]) -> None:
        """Take a service."""
        self._generic += generic_rpc_handlers

    def add_registered_method_handlers(self, service_name: str, method_handlers: dict[str, Any]) -> None:
        """Take methods."""
        for name, handler in method_handlers.items():
            self._methods[f"/{service_name}/{name}"] = handler

    def add_insecure_port(self, address: str) -> int:
        """Refuse."""
        raise RuntimeError("nothing is served in plaintext")

    def add_secure_port(self, address: str, server_credentials: Any) -> int:
        """Refuse: the transport binds."""
        raise RuntimeError("use Transport.listen")

    async def handler(self, details: Details) -> Any:
        """Return the handler of a method, wrapped by all interceptors."""

        async def find(details: Details) -> Any:
            found = self._methods.get(details.method)
            for generic in self._generic:
                found = found or generic.service(details)
            return found

        continuation: Any = find
        for interceptor in reversed(self._interceptors):
            continuation = partial(interceptor.intercept_service, continuation)
        return await continuation(details)

    async def start(self) -> None:
        """Accept calls."""
        for address in self.addresses:
            self._network.listeners[address] = self

    async def stop(self, grace: float | None) -> None:
        """Accept no more, give calls under way some time, then end them."""
        for address in self.addresses:
            self._network.listeners.pop(address, None)
        try:
            async with asyncio.timeout(grace or 0.0):
                while self.calls:
                    await asyncio.sleep(0.01)
        except TimeoutError:
            for call in list(self.calls):
                call.cancel()
        for connection in [each for each in self._network.connections.values() if each.listener is self]:
            connection.fail(1, "the server stops")
        self._stopped.set()

    async def wait_for_termination(self, timeout: float | None = None) -> bool:
        """Wait for stop."""
        await self._stopped.wait()
        return True


class _Method:
    """A method of a channel: call it."""

    def __init__(self, channel: SimChannel, method: str, codecs: tuple[Any, Any], shape: tuple[bool, bool]) -> None:
        self._channel, self._method, self._codecs, self._shape = channel, method, codecs, shape

    def __call__(self, requests: Any = None, *, timeout: float | None = None, **_more: Any) -> ClientCall:
        """Begin a call."""
        call = ClientCall(self._channel, self._method, self._codecs, self._shape, timeout)
        if requests is not None:
            call.feed(requests if self._shape[0] else [requests])
        return call


class SimChannel(grpc.aio.Channel):
    """Connects to the first of its endpoints that answers, when there is something to call."""

    def __init__(
        self,
        network: Network,
        host: str,
        identity: Identity,
        endpoints: Sequence[str],
        server_name: str,
        metadata: tuple[Any, ...] = (),
    ) -> None:
        self._network, self._host, self._identity, self.metadata = network, host, identity, metadata
        self._endpoints, self._server_name = list(endpoints), server_name
        self._connection: Connection | None = None
        self._connecting: asyncio.Task[Connection] | None = None
        self.calls: dict[ClientCall, None] = {}

    def sends(self, method: str, data: bytes) -> bytes:
        """Return what a process of this one's release sends."""
        return self._network.releases.asks(self._host, method, data)

    def unary_unary(self, method: str, *codecs: Any, **more: Any) -> Any:
        """Return a callable."""
        return _Method(self, method, _codecs(codecs, more), (False, False))

    def unary_stream(self, method: str, *codecs: Any, **more: Any) -> Any:
        """Return a callable."""
        return _Method(self, method, _codecs(codecs, more), (False, True))

    def stream_unary(self, method: str, *codecs: Any, **more: Any) -> Any:
        """Return a callable."""
        return _Method(self, method, _codecs(codecs, more), (True, False))

    def stream_stream(self, method: str, *codecs: Any, **more: Any) -> Any:
        """Return a callable."""
        return _Method(self, method, _codecs(codecs, more), (True, True))

    async def connection(self) -> Connection:
        """Return a connection that stands as far as this side knows. Raises AioRpcError."""
        if self._connection is not None and self._connection.open[0]:
            return self._connection
        if self._connecting is None or self._connecting.done():
            self._connecting = asyncio.get_running_loop().create_task(self._connect(), name="connect")
        return await asyncio.shield(self._connecting)

    async def _connect(self) -> Connection:
        network, failures = self._network, []
        for endpoint in self._endpoints:
            host = endpoint.rpartition(":")[0]
            await asyncio.sleep(network.delay_s())
            if network.blocked(self._host, host) or network.blocked(host, self._host):
                await asyncio.sleep(CONNECT_S)
                failures.append(f"{endpoint}: no answer")
                continue
            listener = network.listeners.get(endpoint)
            if listener is None:
                failures.append(f"{endpoint}: connection refused")
                continue
            if self._server_name not in listener.identity.server_names():
                failures.append(f"{endpoint}: the certificate is not that of {self._server_name}")
                continue
            if why := network.refuses(host) or network.refuses(self._host):
                failures.append(f"{endpoint}: {why}")
                continue
            self._connection = Connection(network, self._host, host, self._identity, listener)
            network.connections[self._connection.number] = self._connection
            return self._connection
        # The next try starts with another endpoint, so that a silent one costs its time once.
        self._endpoints = [*self._endpoints[1:], *self._endpoints[:1]]
        raise Status(Code.UNAVAILABLE, "; ".join(failures)).error()

    async def close(self, grace: float | None = None) -> None:
        """End everything."""
        for call in list(self.calls):
            call.cancel()
        if self._connecting is not None:
            self._connecting.cancel()
        if self._connection is not None:
            self._connection.fail(0, "closed")

    async def __aenter__(self) -> SimChannel:
        return self

    async def __aexit__(self, *_error: object) -> None:
        await self.close()

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        """Return whether it is connected."""
        connected = self._connection is not None and self._connection.open[0]
        return grpc.ChannelConnectivity.READY if connected else grpc.ChannelConnectivity.IDLE

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        """Wait."""
        while self.get_state() is last_observed_state:
            await asyncio.sleep(0.1)

    async def channel_ready(self) -> None:
        """Connect."""
        await self.connection()


class SimTransport:
    """`seams.Transport` of one process: its host's name and its certificate's identity; token: what it shows besides."""

    def __init__(self, network: Network, host: str, identity: Identity, ids: Ids, token: str = "") -> None:
        self._network, self._host, self._identity, self._ids = network, host, identity, ids
        self._metadata = (("authorization", f"Bearer {token}"),) if token else ()

    def channel(self, endpoints: Sequence[str], *, server_name: str) -> Any:
        """Return a channel to whichever answers."""
        return SimChannel(self._network, self._host, self._identity, endpoints, server_name, self._metadata)

    def server(self, *, interceptors: Sequence[Any] = ()) -> Any:
        """Return a server without addresses."""
        return SimServer(self._network, self._host, self._identity, [ErrorInterceptor(self._ids), *interceptors])

    async def listen(self, server: Any, address: str, *, mutual: bool = True) -> str:
        """Give a server an address. Raises OSError."""
        if address in self._network.listeners:
            raise OSError(f"cannot listen on {address}: another process does")
        server.mutual = mutual
        server.addresses.append(address)
        return address


def _codecs(given: Sequence[Any], more: dict[str, Any]) -> tuple[Any, Any]:
    names = ("request_serializer", "response_deserializer")
    both = {**dict(zip(names, given, strict=False)), **more}
    return both["request_serializer"], both["response_deserializer"]
