"""Both ends of a gRPC call over a simulated connection, with the semantics of grpc.aio that product code relies on."""

from __future__ import annotations

import asyncio
import contextvars
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Final

import grpc
import grpc.aio

from tests.sim.cost import METER
from tests.sim.forgetful import without_guests
from tests.sim.network import Connection

# Messages that may be under way unread, per direction, as HTTP/2 windows bound them.
WINDOW: Final = 16
END: Final = None
Code = grpc.StatusCode
# Bytes of one message, as proto/rpc.py tells gRPC on both sides.
MESSAGE_BYTES_MAX: Final = 4 << 20


@dataclass(frozen=True)
class Details:
    """What an interceptor learns of a call (grpc.HandlerCallDetails)."""

    method: str
    invocation_metadata: tuple[Any, ...] = ()


@dataclass(frozen=True)
class Status:
    """How a call ended."""

    code: grpc.StatusCode
    details: str = ""
    trailing: tuple[Any, ...] = ()

    @classmethod
    def too_large(cls, data: bytes) -> Status:
        """Return how a call ends one of whose messages is too large."""
        say = f"Sent message larger than max ({len(data)} vs. {MESSAGE_BYTES_MAX})"
        return cls(Code.RESOURCE_EXHAUSTED, say)

    def error(self) -> grpc.aio.AioRpcError:
        """Return it as the caller's exception."""
        empty = grpc.aio.Metadata()
        return grpc.aio.AioRpcError(self.code, empty, grpc.aio.Metadata(*self.trailing), details=self.details)


class TooLarge(Exception):
    """A message that gRPC does not send."""

    def __init__(self, data: bytes) -> None:
        super().__init__()
        self.data = data


class Flow:
    """One direction of a call: bytes with a window."""

    def __init__(self) -> None:
        self.room = WINDOW
        self._inbox: deque[bytes | None] = deque()
        self._some, self._space = asyncio.Event(), asyncio.Event()

    def push(self, message: bytes | None) -> None:
        """Arrived; END: there will be no more."""
        self._inbox.append(message)
        self._some.set()

    async def pull(self) -> bytes | None:
        """Wait for the next message."""
        while not self._inbox:
            self._some.clear()
            await self._some.wait()
        return self._inbox.popleft()

    def grant(self) -> None:
        """The other side has read one."""
        self.room += 1
        self._space.set()

    def open_wide(self) -> None:
        """Nobody reads any more: let writers go on to see that."""
        self.room = 1 << 30
        self._space.set()

    async def take_room(self) -> None:
        """Wait until one more message may be sent."""
        while self.room <= 0:
            self._space.clear()
            await self._space.wait()
        self.room -= 1


# --- the server's end ------------------------------------------------------------------------------------------------------


class Context:
    """What a servicer is given (grpc.aio.ServicerContext)."""

    def __init__(self, call: ServerCall, deadline_s: float | None, metadata: tuple[Any, ...]) -> None:
        self._call, self._deadline_s, self._metadata = call, deadline_s, metadata
        self.status: Status | None = None
        self._code, self._details, self._trailing = Code.OK, "", ()

    def auth_context(self) -> dict[str, list[bytes]]:
        """Return the names in the caller's certificate."""
        connection = self._call.connection
        if not connection.listener.mutual:
            return {}
        return {"x509_subject_alternative_name": [connection.caller.uri.encode()]}

    def time_remaining(self) -> float | None:
        """Return the time until the caller's deadline."""
        return None if self._deadline_s is None else max(0.0, self._deadline_s - asyncio.get_running_loop().time())

    async def abort(self, code: grpc.StatusCode, details: str = "", trailing_metadata: Sequence[Any] = ()) -> None:
        """End the call with a status."""
        self.status = Status(code, details, tuple(trailing_metadata))
        raise grpc.aio.AbortError("Locally aborted.")

    def invocation_metadata(self) -> tuple[Any, ...]:
        """Return what the caller sent along."""
        return self._metadata

    def peer(self) -> str:
        """Return where the caller is."""
        return self._call.connection.hosts[0]

    def cancelled(self) -> bool:
        """Tell whether nobody waits for the answer."""
        return self._call.over

    def set_code(self, code: grpc.StatusCode) -> None:
        """Choose the status."""
        self._code = code

    def set_details(self, details: str) -> None:
        """Choose the sentence."""
        self._details = details

    def final(self) -> Status:
        """Return the status of a handler that returned."""
        return Status(self._code, self._details, self._trailing)


class ServerCall:
    """A call as the server sees it: runs the handler in a task."""

    def __init__(self, connection: Connection, client: ClientCall, method: str, timeout_s: float | None, mute: bool) -> None:
        self.connection, self._client, self._method, self._mute = connection, client, method, mute
        loop = asyncio.get_running_loop()
        self.over = False
        connection.network.served += 1
        self.requests, self._responses = Flow(), Flow()
        self._context = Context(self, None if timeout_s is None else loop.time() + timeout_s, client.metadata)
        context: contextvars.Context = connection.listener.context.copy()
        connection.join(1, self)
        self._task = loop.create_task(self._serve(), name=f"serve {method.rpartition('/')[2]}", context=context)
        connection.listener.calls[self] = None
        if timeout_s is not None:
            self._timer = loop.call_later(timeout_s, self.cancel, context=context)

    def broken(self, why: str) -> None:
        """Nobody waits any more."""
        self.cancel()

    def cancel(self) -> None:
        """End the handler."""
        if not self.over:
            self.over = True
            self._task.cancel()

    def repeat(self, data: bytes) -> None:
        """Take a request that came before."""
        self.requests.push(data)
        self.requests.push(END)

    def granted(self) -> None:
        """The client has read a response."""
        self._responses.grant()

    def _send(self, deliver: Callable[[], None]) -> None:
        if not self._mute and not self.over:
            self.connection.send(1, deliver)

    async def _serve(self) -> None:
        try:
            status = await self._handle()
        except asyncio.CancelledError:
            if not self.over:
                self._finish(Status(Code.CANCELLED, "the server stops"))
            return
        finally:
            self.connection.leave(1, self)
            self.connection.listener.calls.pop(self, None)
        self._finish(status)

    def _finish(self, status: Status) -> None:
        client = self._client
        self._send(lambda: client.finish(status))
        self.over = True

    async def _handle(self) -> Status:
        context = self._context
        try:
            handler = await self.connection.listener.handler(Details(self._method))
            if handler is None:
                return Status(Code.UNIMPLEMENTED, f"no method {self._method}")
            requests = self._iterate(handler.request_deserializer)
            request: Any = requests if handler.request_streaming else await _only(requests)
            if handler.response_streaming:
                behaviour = handler.stream_stream or handler.unary_stream
                async with aclosing(behaviour(request, context)) as responses:
                    async for response in responses:
                        await self._respond(handler.response_serializer(response))
            else:
                behaviour = handler.stream_unary or handler.unary_unary
                await self._respond(handler.response_serializer(await behaviour(request, context)))
        except grpc.aio.AbortError:
            assert context.status is not None
            return context.status
        except TooLarge as error:
            return Status.too_large(error.data)
        except Exception as error:  # noqa: BLE001 - what gRPC does
            self.connection.network.loop.faults.append(f"{self._method} raised {error!r}")
            return Status(Code.UNKNOWN, f"Unexpected {type(error)}: {error}")
        return context.final()

    async def _respond(self, data: bytes) -> None:
        METER.message(data)
        connection = self.connection
        data = connection.network.releases.answers(connection, self._method, data)
        if connection.hosts[0] in connection.network.faults.forgotten and self._method.endswith("AgentService/Sync"):
            data = without_guests(data)
        if len(data) > MESSAGE_BYTES_MAX:
            raise TooLarge(data)
        await self._responses.take_room()
        client = self._client
        self._send(lambda: client.receive(data))

    async def _iterate(self, deserialize: Callable[[bytes], Any]) -> AsyncGenerator[Any, None]:
        while (data := await self.requests.pull()) is not END:
            self._send(self._client.granted)
            METER.message(data)
            yield deserialize(data)


async def _only(requests: AsyncGenerator[Any, None]) -> Any:
    """Return the one request of a call, and close what read it: left to be collected, it would end when Python pleases."""
    async with aclosing(requests):
        return await anext(requests)


def _like(listener: Any, other: Any) -> bool:
    """Tell whether what is meant for one can as well go to another."""
    return bool(listener.identity.kind == other.identity.kind and listener.mutual == other.mutual)


# --- the client's end --------------------------------------------------------------------------------------------------------


class ClientCall:
    """A call as the caller sees it: awaitable, or an async iterator; cancelled when whoever waits for it is."""

    def __init__(self, channel: Any, method: str, codecs: tuple[Any, Any], shape: tuple[bool, bool], timeout_s: float | None):
        loop = asyncio.get_running_loop()
        self._channel, self.method, self._timeout_s = channel, method, timeout_s
        # Of a call that was sent twice, both have it.
        self.metadata: tuple[Any, ...] = channel.metadata
        self._serialize, self._deserialize = codecs
        self._in_stream, self._out_stream = shape
        self._responses, self._requests = Flow(), Flow()
        self._status: Status | None = None
        self._ended = asyncio.Event()
        self._callbacks: list[Callable[[Any], None]] = []
        self._connection: Connection | None = None
        self._server: ServerCall | None = None
        self._connected: asyncio.Task[None] = loop.create_task(self._connect(), name=f"call {method.rpartition('/')[2]}")
        self._feeder: asyncio.Task[None] | None = None
        self._timer = loop.call_later(timeout_s, self._expire) if timeout_s is not None else None
        channel.calls[self] = None

    def feed(self, requests: Any) -> None:
        """Send what an iterator gives."""
        self._feeder = asyncio.get_running_loop().create_task(self._feed(requests), name=f"feed {self.method}")

    async def _feed(self, requests: Any) -> None:
        try:
            if hasattr(requests, "__aiter__"):
                async for request in requests:
                    await self.write(request)
            else:
                for request in requests:
                    await self.write(request)
            await self.done_writing()
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            return

    async def _connect(self) -> None:
        try:
            connection = await self._channel.connection()
        except grpc.aio.AioRpcError as error:
            self.finish(Status(error.code(), error.details() or ""))
            return
        if self._status is not None:
            return
        network = connection.network
        patient = self._timeout_s is not None or self.method.endswith("/Sync")
        mute = patient and network.strikes("silence", network.faults.silence)
        if mute:
            network.note(f"silence {connection} {self.method}")
        self._connection = connection
        connection.join(0, self)
        connection.send(0, lambda: self._arrive(connection, mute))

    def _arrive(self, connection: Connection, mute: bool) -> None:
        self._server = ServerCall(connection, self, self.method, self._timeout_s, mute)

    def _post(self, act: Callable[[ServerCall], None]) -> None:
        def deliver() -> None:
            if self._server is not None:
                act(self._server)

        if self._connection is not None:
            self._connection.send(0, deliver)

    # --- from the network -------------------------------------------------------------------------------------------------

    def receive(self, data: bytes) -> None:
        """A response has arrived."""
        self._responses.push(data)

    def granted(self) -> None:
        """The server has read a request."""
        self._requests.grant()

    def broken(self, why: str) -> None:
        """The connection is gone."""
        self.finish(Status(Code.UNAVAILABLE, why))

    def finish(self, status: Status) -> None:
        """The call is over."""
        if self._status is not None:
            return
        self._status = status
        self._responses.push(END)
        self._ended.set()
        self._requests.open_wide()
        for task in (self._feeder, self._connected):
            if task is not None and task is not asyncio.current_task():
                task.cancel()
        if self._timer is not None:
            self._timer.cancel()
        if self._connection is not None:
            self._connection.leave(0, self)
        self._channel.calls.pop(self, None)
        for callback in self._callbacks:
            callback(self)

    def _expire(self) -> None:
        self._post(ServerCall.cancel)
        self.finish(Status(Code.DEADLINE_EXCEEDED, "Deadline Exceeded"))

    # --- what callers use --------------------------------------------------------------------------------------------------

    def cancel(self) -> bool:
        """Give up."""
        if self._status is not None:
            return False
        self._post(ServerCall.cancel)
        self.finish(Status(Code.CANCELLED, "Locally cancelled by application!"))
        return True

    def done(self) -> bool:
        """Tell whether it is over."""
        return self._status is not None

    def cancelled(self) -> bool:
        """Tell whether it was given up."""
        return self._status is not None and self._status.code is Code.CANCELLED

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        """Call when over."""
        if self._status is not None:
            callback(self)
        else:
            self._callbacks.append(callback)

    async def code(self) -> grpc.StatusCode:
        """Wait for the status."""
        await self._ended.wait()
        assert self._status is not None
        return self._status.code

    async def write(self, request: Any) -> None:
        """Send a request of a stream."""
        if self._status is not None:
            raise asyncio.InvalidStateError("RPC already finished.")
        data = self._channel.sends(self.method, self._serialize(request))
        if len(data) > MESSAGE_BYTES_MAX:
            self.finish(Status.too_large(data))
            self._raise_if_done()
        await self._connected_now()
        await self._requests.take_room()
        self._raise_if_done()
        self._post(lambda server: server.requests.push(data))
        if getattr(request, "request_id", ""):
            self._perhaps_again(data)

    def _perhaps_again(self, data: bytes) -> None:
        """A proxy between may send the request a second time, to any controller, and keep the answer to itself."""
        connection, method = self._connection, self.method
        if connection is None or not connection.network.strikes("duplicate", connection.network.faults.duplicate):
            return
        network = connection.network

        def arrive() -> None:
            there = [each for each in network.listeners.values() if _like(each, connection.listener)]
            if there:
                network.note(f"once more {method}")
                again = Connection(network, *connection.hosts, connection.caller, network.random.choice(there))
                ServerCall(again, self, method, self._timeout_s, mute=True).repeat(data)

        network.once_more(arrive)

    async def done_writing(self) -> None:
        """Send no more."""
        await self._connected_now()
        self._raise_if_done()
        self._post(lambda server: server.requests.push(END))

    async def _connected_now(self) -> None:
        try:
            await asyncio.shield(self._connected)
        except asyncio.CancelledError:
            self._raise_if_over()
            self.cancel()
            raise

    def _raise_if_over(self) -> None:
        if self._status is not None and self._status.code is not Code.OK:
            raise self._status.error()

    def _raise_if_done(self) -> None:
        self._raise_if_over()
        if self._status is not None:
            raise asyncio.InvalidStateError("RPC already finished.")

    async def read(self) -> Any:
        """Wait for a response; grpc.aio.EOF at the end."""
        try:
            data = await self._responses.pull()
        except asyncio.CancelledError:
            self.cancel()
            raise
        if data is END:
            self._responses.push(END)
            assert self._status is not None
            if self._status.code is Code.CANCELLED:
                raise asyncio.CancelledError
            self._raise_if_over()
            return grpc.aio.EOF
        self._post(ServerCall.granted)
        return self._deserialize(data)

    async def __aiter__(self) -> AsyncIterator[Any]:
        while (message := await self.read()) is not grpc.aio.EOF:
            yield message

    def __await__(self) -> Any:
        return self._answer().__await__()

    async def _answer(self) -> Any:
        response = await self.read()
        assert response is not grpc.aio.EOF, "an OK call has an answer"
        await self.read()
        return response
