"""Sync, host service and identity over real mutual TLS, against controllers played by the test."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import grpc
import grpc.aio
import pytest
from cairn.agent import sync
from cairn.agent.app import Agent
from cairn.agent.config import Config
from cairn.agent.guestfiles import FakeGuestFiles
from cairn.agent.hypervisor.fake import FakeHypervisor
from cairn.agent.identity import Membership
from cairn.agent.reports import Reports
from cairn.net.fake import FakeDataplane, FakeGuestServices
from cairn.proto.pki import Authority, Identity
from cairn.proto.rpc import GrpcTransport, StaticCredentials, peer_identity
from cairn.proto.seams import SystemClock, SystemIds
from cairn.proto.v1.agent_pb2 import (
    AgentEvent,
    BlobSource,
    Bookmark,
    ConsoleRequest,
    Desired,
    GetBlobRequest,
    ImageReport,
    PutBlobBegin,
    PutBlobRequest,
    Report,
    SnapshotBegin,
    SyncRequest,
    SyncResponse,
    Upsert,
    Version,
    VmReport,
)
from cairn.proto.v1.agent_pb2_grpc import AgentServiceServicer, HostServiceStub, add_AgentServiceServicer_to_server
from cairn.storage.fake import FakeImages, FakeVolumes
from structlog.testing import capture_logs

from tests.unit.agent_kit import CONTENT, DIGEST, Machine, NoInventory, image, until, vm_objects

VM = "i-00000001"


@pytest.fixture(scope="module")
def ca() -> Authority:
    return Authority.create("cairn test", SystemClock(), SystemIds())


def transport(ca: Authority, kind: str, id: str) -> GrpcTransport:
    return GrpcTransport(StaticCredentials(ca.cert_pem, ca.issue(Identity(kind, id), hosts=["127.0.0.1"])))


@dataclass
class Controller(AgentServiceServicer):
    """Streams what the test puts into `objects`; keeps what it was told."""

    objects: dict[str, Desired]
    version: Version = field(default_factory=lambda: Version(epoch=1, revision=10))
    deaf: bool = False
    hellos: list[SyncRequest] = field(default_factory=list)
    reports: dict[str, Report] = field(default_factory=dict)
    told: list[str] = field(default_factory=list)
    callers: set[str] = field(default_factory=set)
    beats: int = 0
    events: list[AgentEvent] = field(default_factory=list)
    outbox: asyncio.Queue[SyncResponse | None] = field(default_factory=asyncio.Queue)

    async def Sync(self, request_iterator: Any, context: Any) -> AsyncIterator[SyncResponse]:
        self.callers.add(peer_identity(context).uri)
        self.outbox = asyncio.Queue()
        reading = asyncio.create_task(self._read(request_iterator))
        try:
            while not self.hellos:
                await asyncio.sleep(0.01)
            yield SyncResponse(snapshot_begin=SnapshotBegin(version=self.version))
            for key, object in self.objects.items():
                yield SyncResponse(upsert=Upsert(key=key, version=self.version, object=object))
            yield SyncResponse(bookmark=Bookmark(version=self.version, snapshot_end=True))
            while (message := await self.outbox.get()) is not None:
                yield message
        finally:
            reading.cancel()

    async def _read(self, requests: Any) -> None:
        async for request in requests:
            match request.WhichOneof("message"):
                case "hello":
                    self.hellos.append(request)
                case "report":
                    self.reports[request.report.key] = request.report
                    self.told.append(request.report.key)
                case "event":
                    self.events.append(request.event)
                case "heartbeat" if not self.deaf:
                    self.beats += 1
                    await self.outbox.put(SyncResponse(bookmark=Bookmark(version=self.version)))

    async def put(self, key: str, object: Desired) -> None:
        self.version = Version(epoch=self.version.epoch, revision=self.version.revision + 1)
        self.objects[key] = object
        await self.outbox.put(SyncResponse(upsert=Upsert(key=key, version=self.version, object=object)))

    def state(self, vm: str = VM) -> int:
        report = self.reports.get(f"vm/{vm}")
        return report.vm.state if report is not None else 0


@asynccontextmanager
async def serving(ca: Authority, servicer: Any, add: Any, *, mutual: bool = True) -> AsyncIterator[str]:
    hub = transport(ca, "controller", "c1")
    server = hub.server()
    add(servicer, server)
    address = await hub.listen(server, "127.0.0.1:0", mutual=mutual)
    await server.start()
    try:
        yield address
    finally:
        await server.stop(None)


@asynccontextmanager
async def agent_of(
    ca: Authority, machine: Machine, controllers: list[str], node: str = "node-00000001"
) -> AsyncIterator[Agent]:
    clock = SystemClock()
    agent = Agent(
        Config(name="n1", listen="127.0.0.1:0", underlay_mtu=1500),
        transport(ca, "node", node),
        clock,
        SystemIds(),
        machine.disk,
        FakeHypervisor(machine.host, clock, machine.knobs),
        [FakeVolumes(machine.pool)],
        FakeImages(machine.pool),
        FakeDataplane(machine.net),
        FakeGuestServices(),
        NoInventory(),
        membership=Membership(node, tuple(controllers)),
        files=FakeGuestFiles(machine.files),
        boot_id="boot",
    )
    await agent.start()
    try:
        yield agent
    finally:
        await agent.stop()


@asynccontextmanager
async def host(ca: Authority, agent: Agent, kind: str, id: str) -> AsyncIterator[Any]:
    channel = transport(ca, kind, id).channel([agent.endpoint], server_name=f"{agent.membership.node}.node.cairn")
    try:
        yield HostServiceStub(channel)
    finally:
        await channel.close(None)


async def test_a_stream_from_hello_to_running(ca: Authority) -> None:
    machine = Machine()
    machine.hold_image()
    controller = Controller(vm_objects())
    async with (
        serving(ca, controller, add_AgentServiceServicer_to_server) as address,
        agent_of(ca, machine, [address]) as agent,
    ):
        await until("running", lambda: controller.state() == VmReport.STATE_RUNNING, 20)
        hello = controller.hellos[0].hello
        assert (hello.node, hello.boot_id, hello.endpoint) == ("node-00000001", "boot", agent.endpoint)
        assert hello.facts.hypervisor.accelerator == "tcg"
        assert [pool.type for pool in hello.facts.pools] == ["local"]
        assert controller.callers == {"cairn://node/node-00000001"}
        await controller.put("vm/i-00000001", vm_objects(spec_revision=9)["vm/i-00000001"])
        await until("taken up", lambda: controller.reports["vm/i-00000001"].vm.spec_revision == 9, 20)
        assert controller.reports["vm/i-00000001"].version.revision == 11
        assert machine.host.boots == [VM]
        # The controller goes and comes back: everything is said once more, held tells where we are.
        controller.told.clear()
        await controller.outbox.put(None)
        await until("a second hello", lambda: len(controller.hellos) == 2, 20)
        assert controller.hellos[1].hello.held.revision == 11
        await until("all said again", lambda: set(controller.told) >= {"vm/i-00000001", "volume/vol-00000001"}, 20)


async def test_a_stale_controller_is_not_believed_and_another_one_is(ca: Authority) -> None:
    machine = Machine()
    machine.hold_image()
    stale, fresh = Controller({}, Version(epoch=1, revision=3)), Controller(vm_objects())
    async with (
        serving(ca, fresh, add_AgentServiceServicer_to_server) as first,
        serving(ca, stale, add_AgentServiceServicer_to_server) as second,
        agent_of(ca, machine, [first]) as agent,
    ):
        await until("running", lambda: fresh.state() == VmReport.STATE_RUNNING, 20)
        await agent.stop()
        async with agent_of(ca, machine, [second]) as again:
            await until("the stale one was asked, and asked again", lambda: len(stale.hellos) > 1, 20)
            assert not again.sync.synced.is_set()
            assert machine.running() == {VM}
        async with agent_of(ca, machine, [second, first]) as again:
            await until("the fresh one is followed", lambda: again.sync.synced.is_set(), 20)
            assert machine.running() == {VM}
            assert again.ledger.held == (1, 10)


async def test_half_of_a_snapshot_changes_nothing(ca: Authority) -> None:
    class Broken(Controller):
        async def Sync(self, request_iterator: Any, context: Any) -> AsyncIterator[SyncResponse]:
            self.hellos.append(await anext(request_iterator))
            yield SyncResponse(snapshot_begin=SnapshotBegin(version=self.version))
            for key, object in self.objects.items():
                yield SyncResponse(upsert=Upsert(key=key, version=self.version, object=object))

    machine = Machine()
    machine.hold_image()
    controller = Broken(vm_objects())
    async with (
        serving(ca, controller, add_AgentServiceServicer_to_server) as address,
        agent_of(ca, machine, [address]) as agent,
    ):
        await until("two attempts", lambda: len(controller.hellos) >= 2, 20)
        assert not agent.ledger.desired
        assert not agent.ledger.synced
        assert not machine.host.guests


async def test_a_silent_stream_is_left(ca: Authority, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sync, "HEARTBEAT_S", 0.1)
    monkeypatch.setattr(sync, "SILENCE_S", 0.6)
    controller = Controller({}, deaf=True)
    async with (
        serving(ca, controller, add_AgentServiceServicer_to_server) as address,
        agent_of(ca, Machine(), [address]),
    ):
        await until("a second stream", lambda: len(controller.hellos) >= 2, 20)


async def test_a_fault_while_sending_ends_the_stream_and_not_the_agent(ca: Authority, monkeypatch: pytest.MonkeyPatch) -> None:
    """gRPC cancels the call, and with it whoever reads it: nobody ends quietly of that."""
    monkeypatch.setattr(sync, "HEARTBEAT_S", 0.1)
    controller, take, faults = Controller({}), Reports.take, ["once"]

    def failing(self: Reports) -> Any:
        if faults:
            raise ValueError(faults.pop())
        return take(self)

    async with (
        serving(ca, controller, add_AgentServiceServicer_to_server) as address,
        agent_of(ca, Machine(), [address]),
    ):
        await until("the first stream", lambda: len(controller.hellos) == 1, 20)
        monkeypatch.setattr(Reports, "take", failing)
        await until("a second stream", lambda: len(controller.hellos) >= 2, 20)


async def test_a_removed_node_keeps_what_it_has_says_so_and_asks_again(ca: Authority, monkeypatch: pytest.MonkeyPatch) -> None:
    class Estranged(Controller):
        async def Sync(self, request_iterator: Any, context: Any) -> AsyncIterator[SyncResponse]:
            if not self.objects:
                self.hellos.append(await anext(request_iterator))
                await context.abort(grpc.StatusCode.NOT_FOUND, "node node-00000001 is not part of this cluster: join it again")
            async for response in super().Sync(request_iterator, context):
                yield response

    monkeypatch.setattr(sync, "REMOVED_S", 0.3)
    machine = Machine()
    machine.hold_image()
    controller = Estranged(vm_objects())
    async with (
        serving(ca, controller, add_AgentServiceServicer_to_server) as address,
        agent_of(ca, machine, [address]) as agent,
    ):
        await until("running", lambda: controller.state() == VmReport.STATE_RUNNING, 20)
        with capture_logs() as logs:
            controller.objects = {}
            await controller.outbox.put(None)
            await until("it has been told", lambda: len(controller.hellos) >= 2, 20)
            monkeypatch.setattr(sync, "BACKOFF_S", 3600.0)
            monkeypatch.setattr(sync, "BACKOFF_S_MAX", 3600.0)
            await until("it has asked again, at its own pace", lambda: len(controller.hellos) >= 4, 20)
        said = [str(entry["reason"]) for entry in logs if entry["event"] == "disconnected"]
        assert any("not part of this cluster" in reason and "nothing on this machine is touched" in reason for reason in said)
        assert machine.running() == {VM}
        assert agent.ledger.object(f"vm/{VM}") is not None


async def test_an_image_is_pulled_from_another_node_and_goes_on_where_it_broke(ca: Authority) -> None:
    source_machine, machine = Machine(), Machine()
    source_machine.hold_image()
    async with agent_of(ca, source_machine, ["127.0.0.1:1"], "node-0000000s") as source:
        desired = image()
        desired.sources.append(BlobSource(node="node-0000000x", endpoint="127.0.0.1:1"))
        desired.sources.append(BlobSource(node="node-0000000s", endpoint=source.endpoint))
        machine.pool.partials[DIGEST] = bytearray(CONTENT[: 700 << 10])
        controller = Controller({"image/img-00000001": Desired(image=desired)})
        async with (
            serving(ca, controller, add_AgentServiceServicer_to_server) as address,
            agent_of(ca, machine, [address]),
        ):
            await until("held", lambda: DIGEST in machine.pool.images, 30)

            def ready() -> bool:
                report = controller.reports.get("image/img-00000001")
                return report is not None and report.image.state == ImageReport.STATE_READY

            await until("told", ready, 20)
            assert machine.pool.images[DIGEST][1] == CONTENT


async def upload(stub: Any, content: bytes, **more: Any) -> Any:
    call = stub.PutBlob()
    begin = {"image": "img-00000001", "digest": DIGEST, "size_bytes": len(CONTENT), **more}
    # A write that fails says less than the status of the call.
    with suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
        await call.write(PutBlobRequest(begin=PutBlobBegin(**begin)))
        for start in range(0, len(content), 256 << 10):
            await call.write(PutBlobRequest(chunk=content[start : start + (256 << 10)]))
        await call.done_writing()
    return await call


async def test_uploads_are_for_controllers_of_wanted_images_with_the_right_bytes(ca: Authority) -> None:
    machine = Machine()
    controller = Controller({"image/img-00000001": Desired(image=image())})
    async with (
        serving(ca, controller, add_AgentServiceServicer_to_server) as address,
        agent_of(ca, machine, [address]) as agent,
        host(ca, agent, "node", "node-00000009") as node,
        host(ca, agent, "controller", "c1") as hub,
        host(ca, agent, "user", "admin") as user,
    ):
        await until("synced", agent.sync.synced.is_set, 20)
        for stub, content, more, code in [
            (node, CONTENT, {}, grpc.StatusCode.PERMISSION_DENIED),
            (user, CONTENT, {}, grpc.StatusCode.PERMISSION_DENIED),
            (hub, CONTENT, {"image": "img-0000000z"}, grpc.StatusCode.FAILED_PRECONDITION),
            (hub, CONTENT, {"size_bytes": 5}, grpc.StatusCode.INVALID_ARGUMENT),
            (hub, b"\x5b" * len(CONTENT), {}, grpc.StatusCode.INVALID_ARGUMENT),
            (hub, CONTENT[:1000], {}, grpc.StatusCode.UNAVAILABLE),
        ]:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await upload(stub, content, **more)
            assert caught.value.code() == code, caught.value.details()
            assert not machine.pool.images
        answer = await upload(hub, CONTENT)
        assert answer.virtual_size_bytes == len(CONTENT)
        assert (await upload(hub, CONTENT)) == answer, "again: the same answer"
        call = node.GetBlob(GetBlobRequest(digest=DIGEST, offset=1000))
        assert b"".join([each.chunk async for each in call]) == CONTENT[1000:]
        call = hub.GetBlob(GetBlobRequest(digest="sha256:" + "0" * 64))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await anext(aiter(call))
        assert caught.value.code() == grpc.StatusCode.NOT_FOUND


async def test_the_console_of_a_guest(ca: Authority) -> None:
    machine = Machine()
    machine.hold_image()
    controller = Controller(vm_objects())
    async with (
        serving(ca, controller, add_AgentServiceServicer_to_server) as address,
        agent_of(ca, machine, [address]) as agent,
        host(ca, agent, "controller", "c1") as hub,
        host(ca, agent, "node", "node-00000009") as node,
    ):
        await until("running", lambda: controller.state() == VmReport.STATE_RUNNING, 20)

        async def typed(vm: str, *lines: bytes) -> AsyncIterator[ConsoleRequest]:
            yield ConsoleRequest(vm=vm)
            for line in lines:
                yield ConsoleRequest(data=line)
            await asyncio.Event().wait()

        said = b""
        call = hub.Console(typed(VM, b"echo hel", b"lo there\n"))
        async with asyncio.timeout(20):
            async for response in call:
                said += response.data
                if b"\nhello there" in said:
                    break
        call.cancel()
        for stub, vm, code in [
            (node, VM, grpc.StatusCode.PERMISSION_DENIED),
            (hub, "i-0000000z", grpc.StatusCode.NOT_FOUND),
            (hub, "", grpc.StatusCode.INVALID_ARGUMENT),
        ]:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                async for _ in stub.Console(typed(vm)):
                    pass
            assert caught.value.code() == code
