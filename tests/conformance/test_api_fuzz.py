"""Whatever is sent to whatever method: refused with what is wrong, never an error on our side. Drawn from the descriptors."""

from __future__ import annotations

import asyncio
import gc
import random
import struct
import tracemalloc
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from cairn.controller.api import images
from cairn.controller.store.memory import MemoryStore
from cairn.proto.errors import status_of
from cairn.proto.kinds import ROOT
from cairn.proto.pki import Identity
from cairn.proto.rpc import status_details
from cairn.proto.v1.backup_pb2 import RestoreClusterRequest, RestoreOptions
from cairn.proto.v1.vm_pb2 import ListVmsRequest
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message_factory import GetMessageClass
from google.rpc import error_details_pb2

from tests.conformance.api_world import World, world_on
from tests.conformance.test_api_permits import Method, made, methods

SEED = 20
ROUNDS = 16
# Of memory, over half the rounds: a tenth of what their strings take.
HELD_BYTES_MAX = 1 << 20
# Longer than any answer takes: only watches and uploads that wait for more end so.
CALL_S = 0.5
# What a client may be told, whatever it sent.
NEVER = {grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.DATA_LOSS, grpc.StatusCode.UNIMPLEMENTED}
STRINGS = (
    "", "a", "web", "demo", "-", "default", "\0", "a\0b", "\u202e", "ß" * 300, "x" * 65_536, "../../x", "%s%n", "' OR 1=1 --",
)  # fmt: skip
FILTERS = (
    "name=web", "status.state=RUNNING", "a" * 2049, "status." * 200 + "x=1", "labels.a:*", "(", "name=", "create_time>1",
    'name="\\', "spec.cpus=1e999", "a=b AND" * 100, "revision=" + "9" * 400,
)  # fmt: skip
NUMBERS = (0, 1, -1, 2**31 - 1, -(2**31), 2**63 - 1, -(2**63), 2**32 - 1, 2**64 - 1)


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with world_on(MemoryStore(), tmp_path) as world:
        await world.furnish()
        yield world


class Drawn:
    """Draws messages of any type: fields left out, usual, and absurd."""

    def __init__(self, seed: int, known: list[str]) -> None:
        self.draw, self._known = random.Random(seed), known

    def message(self, descriptor: Any, depth: int = 0) -> Any:
        message: Any = GetMessageClass(descriptor)()
        for field in descriptor.fields:
            if self.draw.random() < (0.5 if depth < 4 else 0.9):
                continue
            try:
                self._fill(message, field, depth)
            except (ValueError, TypeError):
                # Out of the type's range: it could not be sent.
                continue
        return message

    def _fill(self, message: Any, field: Any, depth: int) -> None:
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            value = field.message_type.fields_by_name["value"]
            if value.message_type is None:
                getattr(message, field.name)[self.string()] = self.scalar(value)
        elif field.is_repeated:
            for _ in range(self.draw.choice((1, 2, 40))):
                if field.message_type is None:
                    getattr(message, field.name).append(self.scalar(field))
                elif depth < 3:
                    getattr(message, field.name).append(self.message(field.message_type, depth + 1))
        elif field.message_type is not None:
            getattr(message, field.name).CopyFrom(self.message(field.message_type, depth + 1))
        else:
            setattr(message, field.name, self.scalar(field))

    def scalar(self, field: Any) -> Any:
        if field.type == FieldDescriptor.TYPE_STRING:
            return self.draw.choice(FILTERS) if field.name == "filter" and self.draw.random() < 0.8 else self.string()
        if field.type == FieldDescriptor.TYPE_BYTES:
            return self.draw.randbytes(self.draw.choice((0, 1, 300, 65_537)))
        if field.type == FieldDescriptor.TYPE_BOOL:
            return self.draw.random() < 0.5
        if field.type in (FieldDescriptor.TYPE_DOUBLE, FieldDescriptor.TYPE_FLOAT):
            return self.draw.choice((0.0, -1.5, float("inf"), float("nan"), 1e308))
        return self.draw.choice(NUMBERS)

    def string(self) -> str:
        return self.draw.choice((*STRINGS, *self._known))

    def broken(self, content: bytes) -> bytes:
        """Cut it off, change a byte, put something before or after it."""
        at = self.draw.randrange(len(content) + 1)
        match self.draw.randrange(4):
            case 0:
                return content[:at]
            case 1:
                return content[:at] + self.draw.randbytes(1) + content[at + 1 :]
            case 2:
                return self.draw.randbytes(self.draw.choice((1, 7, 64))) + content
            case _:
                # Field 1, which is a string or a message in most of ours: two bytes that are no UTF-8.
                return content + b"\x0a\x02\xff\xfe"


async def told(channel: grpc.aio.Channel, method: Method, content: bytes) -> grpc.aio.AioRpcError | None:
    """Send bytes; return the refusal. Of a stream the first answer is enough."""
    incoming, outgoing = method.descriptor.client_streaming, method.descriptor.server_streaming
    shape = {(False, False): "unary_unary", (False, True): "unary_stream", (True, False): "stream_unary"}
    make = getattr(channel, shape.get((incoming, outgoing), "stream_stream"))
    call = make(method.path, request_serializer=bytes, response_deserializer=bytes)
    begun = call(iter([content]) if incoming else content, timeout=CALL_S)
    try:
        if outgoing:
            await begun.read()
            begun.cancel()
        else:
            await begun
    except grpc.aio.AioRpcError as error:
        return error
    return None


def wrong(method: Method, error: grpc.aio.AioRpcError | None) -> str:
    """Say what is wrong with an answer; "" when nothing is."""
    if error is None:
        return ""
    say = f"{method.name}: {error.code().name} {error.details()}"
    if error.code() in NEVER or any(word in str(error.details()) for word in ("<class", "Traceback", "google.protobuf", " 0x")):
        return say
    if error.code() is grpc.StatusCode.INVALID_ARGUMENT and not status_details(error, error_details_pb2.BadRequest):
        return f"{say}: which field?"
    return ""


async def test_no_request_is_an_error_on_our_side(
    world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(images, "RECEIVER_WAIT_S", 0.0)
    # The channel remembers how each method's requests are serialised: here they are bytes.
    channel = world.stubs(Identity("user", "admin")).channel
    drawn, found = Drawn(SEED, list((await made(world)).values())), list[str]()
    held: list[int] = []
    tracemalloc.start()
    for number in range(ROUNDS):
        if number in (ROUNDS // 2, ROUNDS - 1):
            gc.collect()
            held.append(tracemalloc.get_traced_memory()[0])
        for method in methods():
            content = drawn.message(method.descriptor.input_type).SerializeToString()
            if number % 2:
                content = drawn.broken(content)
            found.append(wrong(method, await told(channel, method, content)))
    tracemalloc.stop()
    assert held[1] - held[0] < HELD_BYTES_MAX, "something is kept of requests that made nothing"
    assert not list(filter(None, found)), "\n".join(filter(None, found))
    logged = capsys.readouterr().out
    assert "call_failed" not in logged
    assert "Traceback" not in logged
    # It still answers, and what is stored can be read.
    items, _ = await world.store.read(ROOT)
    assert items
    assert (await world.api.vms.ListVms(ListVmsRequest())).revision


def by_name(name: str) -> Method:
    return next(method for method in methods() if method.name == name)


def field(number: int, content: bytes) -> bytes:
    """A field of bytes, a string or a message, on the wire."""
    return bytes([number << 3 | 2]) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    out = b""
    while value > 0x7F:
        out, value = out + bytes([value & 0x7F | 0x80]), value >> 7
    return out + bytes([value])


@pytest.mark.parametrize(
    ("name", "content", "path", "say"),
    [
        ("GetVm", field(1, b"\xff"), "id", "is not UTF-8: byte 0 of 1"),
        ("GetVm", field(1, b"ok\xc3"), "id", "is not UTF-8: byte 2 of 3"),
        ("GetVm", field(1, b"web")[:-1], "id", "the message ends in the middle of it"),
        ("CreateVm", field(1, field(2, b"web\xfe")), "vm.name", "is not UTF-8"),
        ("CreateVm", field(1, field(4, field(1, b"\xff"))), "vm.labels.key", "is not UTF-8"),
        ("ListVms", b"\x80" * 11, "request", "a number is longer than 10 bytes"),
        ("ListVms", b"\x0f", "request", "there is no field 1 of type 7 in a ListVmsRequest"),
        ("ListVms", struct.pack("<B", 0x08), "project", "the message ends in the middle of it"),
        ("WatchVms", field(1, b"\xff"), "project", "is not UTF-8"),
        ("ConsoleVm", field(1, b"\xff"), "id", "is not UTF-8"),
        ("UploadImage", field(1, b"\xff"), "image", "is not UTF-8"),
    ],
)
async def test_what_is_no_message_is_told_by_its_field(world: World, name: str, content: bytes, path: str, say: str) -> None:
    error = await told(world.api.channel, by_name(name), content)
    assert error is not None
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert say in str(error.details())
    (bad,) = status_details(error, error_details_pb2.BadRequest)
    assert isinstance(bad, error_details_pb2.BadRequest)
    assert [violation.field for violation in bad.field_violations] == [path]
    assert status_of(error).message == error.details()


async def test_a_stream_that_goes_bad_later_is_refused_too(world: World) -> None:
    channel = world.stubs(Identity("user", "admin")).channel
    path = by_name("RestoreCluster").path
    call = channel.stream_stream(path, request_serializer=bytes, response_deserializer=bytes)()
    options = RestoreClusterRequest(options=RestoreOptions(validate_only=True))
    await call.write(options.SerializeToString())
    await call.write(field(2, b"chunk")[:-1])
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async with asyncio.timeout(10):
            await call.read()
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "the message ends in the middle of it" in str(caught.value.details())
