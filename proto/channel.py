"""A channel over several targets and changing certificates, made of plain gRPC channels.

gRPC tries the addresses of one target in order, but one target cannot mix unix sockets, addresses and names, and its
certificates are fixed. So each call picks: the connections of the current certificates, and among their targets the first that
is connected, else the first that has not just failed. Calls under way stay on the connection they began on; connections of
old certificates are closed when their last call ends.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

import grpc
import grpc.aio

M = TypeVar("M")


class _Connections(Generic[M]):
    """The channels of one set of certificates."""

    def __init__(self, material: M, channels: list[grpc.aio.Channel]) -> None:
        self.material, self.channels = material, channels
        self.calls = 0
        self.callables: dict[tuple[str, int, str], Any] = {}

    def pick(self) -> int:
        """Return the index of the channel a call should go to now, and let the others connect."""
        if len(self.channels) == 1:
            return 0
        states = [channel.get_state(try_to_connect=True) for channel in self.channels]
        if grpc.ChannelConnectivity.READY in states:
            return states.index(grpc.ChannelConnectivity.READY)
        alive = [i for i, state in enumerate(states) if state is not grpc.ChannelConnectivity.TRANSIENT_FAILURE]
        return alive[0] if alive else 0


class FailoverChannel(grpc.aio.Channel, Generic[M]):
    """See the module. `material` is asked at each call; `dial(material, target)` makes a plain channel."""

    def __init__(self, targets: Sequence[str], material: Callable[[], M], dial: Callable[[M, str], grpc.aio.Channel]) -> None:
        self._targets, self._material, self._dial = tuple(targets), material, dial
        self._now = self._connect(material())
        self._old: set[_Connections[M]] = set()
        self._closing: set[asyncio.Task[None]] = set()

    def reload(self) -> None:
        """Take up changed certificates now instead of at the next call."""
        material = self._material()
        if material is self._now.material:
            return
        old, self._now = self._now, self._connect(material)
        self._old.add(old)
        self._retire(old)

    def _connect(self, material: M) -> _Connections[M]:
        return _Connections(material, [self._dial(material, target) for target in self._targets])

    def _retire(self, old: _Connections[M]) -> None:
        if old.calls or old not in self._old:
            return
        self._old.discard(old)
        task = asyncio.get_running_loop().create_task(_close(old, None))
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    def begin(self, shape: str, method: str, serializers: dict[str, Any], arguments: Any, keywords: dict[str, Any]) -> Any:
        """Start a call on the connection to use now."""
        self.reload()
        connections = self._now
        index = connections.pick()
        key = (shape, index, method)
        if key not in connections.callables:
            connections.callables[key] = getattr(connections.channels[index], shape)(method, **serializers)
        call = connections.callables[key](*arguments, **keywords)
        connections.calls += 1

        def ended(_call: object) -> None:
            connections.calls -= 1
            self._retire(connections)

        call.add_done_callback(ended)
        return call

    async def close(self, grace: float | None = None) -> None:
        """Close every connection."""
        old, self._old = self._old, set()
        for connections in (self._now, *old):
            await _close(connections, grace)
        await asyncio.gather(*self._closing)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        """Return the state of the best connection."""
        states = [channel.get_state(try_to_connect) for channel in self._now.channels]
        order = (
            grpc.ChannelConnectivity.READY,
            grpc.ChannelConnectivity.CONNECTING,
            grpc.ChannelConnectivity.IDLE,
            grpc.ChannelConnectivity.TRANSIENT_FAILURE,
            grpc.ChannelConnectivity.SHUTDOWN,
        )
        return min(states, key=order.index)

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        """Return when get_state() is another one."""
        while self.get_state() is last_observed_state:
            waits = [
                asyncio.ensure_future(channel.wait_for_state_change(channel.get_state())) for channel in self._now.channels
            ]
            try:
                await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for wait in waits:
                    wait.cancel()

    async def channel_ready(self) -> None:
        """Return when some endpoint answers."""
        while (state := self.get_state(try_to_connect=True)) is not grpc.ChannelConnectivity.READY:
            await self.wait_for_state_change(state)

    def unary_unary(self, method: str, *serializers: Any, **keywords: Any) -> Any:
        """Return a callable for the method."""
        return self._callable(_UnaryUnary, "unary_unary", method, serializers, keywords)

    def unary_stream(self, method: str, *serializers: Any, **keywords: Any) -> Any:
        """Return a callable for the method."""
        return self._callable(_UnaryStream, "unary_stream", method, serializers, keywords)

    def stream_unary(self, method: str, *serializers: Any, **keywords: Any) -> Any:
        """Return a callable for the method."""
        return self._callable(_StreamUnary, "stream_unary", method, serializers, keywords)

    def stream_stream(self, method: str, *serializers: Any, **keywords: Any) -> Any:
        """Return a callable for the method."""
        return self._callable(_StreamStream, "stream_stream", method, serializers, keywords)

    def _callable(self, kind: Any, shape: str, method: str, serializers: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
        names = ("request_serializer", "response_deserializer", "_registered_method")
        given = {**dict(zip(names, serializers, strict=False)), **keywords}
        return kind(self, shape, method, given)


class _Callable:
    """A method of a FailoverChannel: each call picks its connection."""

    def __init__(self, channel: FailoverChannel[Any], shape: str, method: str, serializers: dict[str, Any]) -> None:
        self._channel, self._shape, self._method, self._serializers = channel, shape, method, serializers

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        return self._channel.begin(self._shape, self._method, self._serializers, arguments, keywords)


class _UnaryUnary(_Callable, grpc.aio.UnaryUnaryMultiCallable):  # type: ignore[type-arg]
    pass


class _UnaryStream(_Callable, grpc.aio.UnaryStreamMultiCallable):  # type: ignore[type-arg]
    pass


class _StreamUnary(_Callable, grpc.aio.StreamUnaryMultiCallable):  # type: ignore[type-arg]
    pass


class _StreamStream(_Callable, grpc.aio.StreamStreamMultiCallable):  # type: ignore[type-arg]
    pass


async def _close(connections: _Connections[Any], grace: float | None) -> None:
    for channel in connections.channels:
        await channel.close(grace)
