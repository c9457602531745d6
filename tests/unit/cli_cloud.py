"""A stand-in for the controllers: real servers over mutual TLS in a thread, objects in a dict, scripted answers."""

from __future__ import annotations

import asyncio
import re
import threading
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import grpc
import grpc.aio
import structlog
from cairn.proto import log, pki
from cairn.proto.errors import AlreadyExists, Moved, NotFound
from cairn.proto.rpc import FileCredentials, GrpcTransport
from cairn.proto.seams import SystemClock, SystemIds
from cairn.proto.v1 import (  # noqa: F401 - their services are looked up by name
    cluster_pb2,
    event_pb2,
    image_pb2,
    job_pb2,
    node_pb2,
    port_pb2,
    project_pb2,
    quota_pb2,
    subnet_pb2,
    vm_pb2,
    volume_pb2,
    vpc_pb2,
)
from google.protobuf import descriptor_pool, message_factory

NOUNS: Final = (
    "vm", "vpc", "subnet", "port", "volume", "image", "node", "job", "event", "project", "quota", "price_list",
)  # fmt: skip
BORN: Final = datetime(2026, 1, 1, tzinfo=UTC)
Script = Callable[[Any], Any]


@dataclass
class Call:
    """A call that was received."""

    method: str
    request: Any


def snake(text: str) -> str:
    """Return a method's noun as fields are called: PriceLists, price_lists."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", text).lower()


class Cloud:
    """See the module. Everything runs in the thread's loop; use `do` from a test."""

    def __init__(self, folder: Path, servers: int = 1) -> None:
        self.folder, self.calls = folder, list[Call]()
        self.objects: dict[str, dict[str, Any]] = {noun: {} for noun in NOUNS}
        self.scripts: dict[str, list[Script]] = defaultdict(list)
        self.after_create: dict[str, Callable[[Any], Coroutine[Any, Any, None]]] = {}
        self.after_upload: Callable[[Any], Coroutine[Any, Any, None]] | None = None
        self.answers: dict[str, Any] = {}
        self.revision, self.page_size_max = 10, 1000
        self.uploaded = b""
        self.unknown: list[cluster_pb2.UnknownObject] = []
        self.sockets = [folder / f"c{number}.sock" for number in range(1, servers + 1)]
        self.servers: dict[int, grpc.aio.Server] = {}
        self._history: list[tuple[int, str, Any, bool]] = []
        self._watchers: set[asyncio.Event] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        pki.init_cluster(
            folder, "test", controllers={"c1": ["127.0.0.1"]}, etcd_members={}, clock=SystemClock(), ids=SystemIds()
        )
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)

    # --- used by tests -----------------------------------------------------------------------------------------------

    def start(self) -> None:
        log.configure("error")
        self._thread.start()
        for index in range(len(self.sockets)):
            self.do(self.serve(index))

    def close(self) -> None:
        for index in list(self.servers):
            self.do(self.kill(index))
        self.do(self._end())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(10)
        self.loop.close()
        structlog.reset_defaults()

    def do(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(30)

    def wait(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Run a command's coroutine; it has a time limit of its own."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result()

    @property
    def environment(self) -> dict[str, str]:
        return {
            "CAIRN_CONFIG": str(self.folder / "none.toml"),
            "CAIRN_ENDPOINT": ",".join(f"unix:{path}" for path in self.sockets),
            "CAIRN_CA": str(self.folder / "ca.crt"),
            "CAIRN_CERT": str(self.folder / "admin.crt"),
            "CAIRN_KEY": str(self.folder / "admin.key"),
            "NO_COLOR": "1",
            "COLUMNS": "100",
        }

    def requests(self, method: str) -> list[Any]:
        return [call.request for call in self.calls if call.method == method]

    # --- the world ---------------------------------------------------------------------------------------------------

    def put(self, noun: str, message: Any) -> Any:
        """Store an object and tell watchers; call it in the loop."""
        self.revision += 1
        message.etag = str(message.revision)
        self.objects[noun][message.id] = message
        copy = type(message)()
        copy.CopyFrom(message)
        self._tell(noun, copy, False)
        return message

    def remove(self, noun: str, id: str) -> None:
        self.revision += 1
        self._tell(noun, self.objects[noun].pop(id), True)

    def _tell(self, noun: str, message: Any, deleted: bool) -> None:
        self._history.append((self.revision, noun, message, deleted))
        for watcher in self._watchers:
            watcher.set()

    async def add(self, noun: str, message: Any) -> Any:
        """Store an object as if it had been created; for tests' beginnings."""
        if "create_time" in message.DESCRIPTOR.fields_by_name and not message.HasField("create_time"):
            message.create_time.FromDatetime(BORN)
        if "revision" not in message.DESCRIPTOR.fields_by_name:
            self.objects[noun][message.id] = message
            return message
        message.revision = message.revision or self.revision + 1
        return self.put(noun, message)

    async def advance(self, noun: str, id: str, state: str, say: str, **status: Any) -> None:
        """Let the world change an object's status."""
        message = self.objects[noun][id]
        message.status.state = message.status.State.Value(f"STATE_{state}")
        message.status.say = say
        message.reconciling = state in ("PENDING", "STARTING", "STOPPING", "CREATING", "UPLOADING", "VERIFYING", "DELETING")
        for name, value in status.items():
            setattr(message.status, name, value)
        self.put(noun, message)

    # --- servers -----------------------------------------------------------------------------------------------------

    async def serve(self, index: int) -> None:
        folder = self.folder
        transport = GrpcTransport(
            FileCredentials(folder / "ca.crt", folder / "controller-c1.crt", folder / "controller-c1.key")
        )
        server = transport.server()
        server.add_generic_rpc_handlers((Handlers(self),))
        await transport.listen(server, f"unix:{self.sockets[index]}")
        await server.start()
        self.servers[index] = server

    async def kill(self, index: int) -> None:
        await self.servers.pop(index).stop(0)
        self.sockets[index].unlink(missing_ok=True)

    async def _end(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # --- answers -----------------------------------------------------------------------------------------------------

    async def answer(self, method: str, request: Any, context: Any) -> Any:
        kept = type(request)()
        kept.CopyFrom(request)
        self.calls.append(Call(method, kept))
        if self.scripts[method]:
            scripted = self.scripts[method].pop(0)(request)
            return await scripted if asyncio.iscoroutine(scripted) else scripted
        request_id = getattr(request, "request_id", "")
        if request_id in self.answers:
            return self.answers[request_id]
        verb = next(verb for verb in ("Create", "Get", "List", "Update", "Delete", "") if method.startswith(verb))
        result = await getattr(self, f"_{verb.lower() or 'other'}")(method, request)
        if request_id:
            self.answers[request_id] = result
        return result

    async def _create(self, method: str, request: Any) -> Any:
        noun = snake(method.removeprefix("Create"))
        message = getattr(request, noun)
        if any(each.name == message.name for each in self.objects[noun].values()):
            raise AlreadyExists(noun, message.name)
        message.id = f"{noun}-{len(self.objects[noun]) + 1:08d}"
        message.create_time.FromDatetime(BORN)
        message.revision = self.revision + 1
        self.put(noun, message)
        answer = type(message)()
        answer.CopyFrom(message)
        if hook := self.after_create.get(noun):
            task = asyncio.create_task(hook(message))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        return answer

    def find(self, noun: str, name: str) -> Any:
        for message in self.objects[noun].values():
            if name in (message.id, message.name):
                return message
        raise NotFound(noun, name)

    async def _get(self, method: str, request: Any) -> Any:
        return self.find(snake(method.removeprefix("Get")), request.id)

    async def _list(self, method: str, request: Any) -> Any:
        plural = snake(method.removeprefix("List"))
        noun = plural.removesuffix("s")
        start = int(request.page_token or 0)
        end = start + min(request.page_size or 100, self.page_size_max)
        everything = list(self.objects[noun].values())
        response = message_factory.GetMessageClass(
            descriptor_pool.Default().FindMessageTypeByName(f"cairn.v1.{method}Response")
        )(revision=self.revision, next_page_token=str(end) if end < len(everything) else "")
        getattr(response, plural).extend(everything[start:end])
        return response

    async def _update(self, method: str, request: Any) -> Any:
        noun = snake(method.removeprefix("Update"))
        given = getattr(request, noun)
        held = self.find(noun, given.id)
        if given.etag != held.etag:
            raise Moved(f"{noun} {held.name!r} has changed")
        held.spec.CopyFrom(given.spec)
        held.ClearField("labels")
        held.labels.update(given.labels)
        held.revision = self.revision + 1
        return self.put(noun, held)

    async def _delete(self, method: str, request: Any) -> Any:
        noun = snake(method.removeprefix("Delete"))
        message = self.find(noun, request.id)
        self.remove(noun, message.id)
        return message

    async def _other(self, method: str, request: Any) -> Any:
        raise AssertionError(f"nothing scripted for {method}")

    async def watch(self, method: str, request: Any, response: Any) -> AsyncIterator[Any]:
        self.calls.append(Call(method, request))
        if self.scripts[method]:
            self.scripts[method].pop(0)(request)
        noun = snake(method.removeprefix("Watch")).removesuffix("s")
        only = re.fullmatch(r'id = "(.*)"', request.filter)
        wake = asyncio.Event()
        self._watchers.add(wake)
        seen = request.after_revision or self.revision
        try:
            if not request.after_revision:
                for message in list(self.objects[noun].values()):
                    if not only or only[1] == message.id:
                        yield response(type=1, revision=seen, **{noun: message})
                yield response(type=3, revision=seen)
            while True:
                for revision, kind, message, deleted in list(self._history):
                    if revision > seen and kind == noun and (not only or only[1] == message.id):
                        yield response(type=2 if deleted else 1, revision=revision, **{noun: message})
                    seen = max(seen, revision)
                await wake.wait()
                wake.clear()
        finally:
            self._watchers.discard(wake)

    async def verify_audits(self, request: Any) -> AsyncIterator[Any]:
        """Tell what the next script returns: messages, or what a controller refuses by or ends with."""
        self.calls.append(Call("VerifyAudits", request))
        for each in self.scripts["VerifyAudits"].pop(0)(request):
            if isinstance(each, Exception):
                raise each
            yield each

    async def list_unknown(self, request: Any, response: Any) -> AsyncIterator[Any]:
        self.calls.append(Call("ListUnknown", request))
        yield response(objects=[each for each in self.unknown if request.node in ("", each.node, each.node_name)])

    async def console(self, requests: AsyncIterator[Any], response: Any) -> AsyncIterator[Any]:
        first = await anext(aiter(requests))
        vm = self.find("vm", first.id)
        yield response(data=f"login on {vm.name}\r\n".encode())
        async for request in requests:
            yield response(data=b"<" + request.data + b">")
            if b"boom" in request.data:
                raise NotFound("vm", vm.name, "the console is gone")

    async def upload(self, requests: AsyncIterator[Any], response: Any) -> Any:
        first = await anext(aiter(requests))
        self.calls.append(Call("UploadImage", first))
        received = [request.chunk async for request in requests]
        if self.scripts["UploadImage"]:
            self.scripts["UploadImage"].pop(0)(first)
        self.uploaded = b"".join(received)
        if self.after_upload:
            await self.after_upload(first)
        else:
            await self.advance("image", first.image, "AVAILABLE", "ready on n1, n2", virtual_size_bytes=1 << 26)
        return response(image=self.objects["image"][first.image])


class Handlers(grpc.GenericRpcHandler):  # type: ignore[type-arg]
    """Finds methods of every service by their descriptors."""

    def __init__(self, cloud: Cloud) -> None:
        self._cloud = cloud

    def service(self, details: Any) -> Any:
        _, service, method = details.method.split("/")
        found = descriptor_pool.Default().FindServiceByName(service).methods_by_name[method]
        request = message_factory.GetMessageClass(found.input_type)
        response = message_factory.GetMessageClass(found.output_type)
        codecs = {"request_deserializer": request.FromString, "response_serializer": response.SerializeToString}
        if method == "ConsoleVm":
            return grpc.stream_stream_rpc_method_handler(lambda it, _: self._cloud.console(it, response), **codecs)
        if method == "UploadImage":
            return grpc.stream_unary_rpc_method_handler(lambda it, _: self._cloud.upload(it, response), **codecs)
        if method == "VerifyAudits":
            return grpc.unary_stream_rpc_method_handler(lambda r, _: self._cloud.verify_audits(r), **codecs)
        if method == "ListUnknown":
            return grpc.unary_stream_rpc_method_handler(lambda r, _: self._cloud.list_unknown(r, response), **codecs)
        if method.startswith("Watch"):
            return grpc.unary_stream_rpc_method_handler(lambda r, _: self._cloud.watch(method, r, response), **codecs)
        return grpc.unary_unary_rpc_method_handler(lambda r, c: self._cloud.answer(method, r, c), **codecs)
