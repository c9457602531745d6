"""Joining with a one-time token, renewal, and the relays to agents: uploads and consoles."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from cairn.controller.store.base import Txn
from cairn.proto import kinds
from cairn.proto.pki import Identity, TokenContent, identity_of, make_csr
from cairn.proto.v1 import agent_pb2_grpc
from cairn.proto.v1.agent_pb2 import (
    ConsoleRequest,
    ConsoleResponse,
    ImageReport,
    PutBlobRequest,
    PutBlobResponse,
    Report,
)
from cairn.proto.v1.audit_pb2 import ListAuditsRequest
from cairn.proto.v1.binding_pb2 import DeleteBindingRequest
from cairn.proto.v1.cluster_pb2 import GetClusterStatusRequest, JoinNodeRequest, RenewCertificateRequest
from cairn.proto.v1.image_pb2 import CreateImageRequest, ImageContent, UploadImageRequest
from cairn.proto.v1.node_pb2 import (
    CreateJoinTokenRequest,
    DeleteJoinTokenRequest,
    GetNodeRequest,
    ListJoinTokensRequest,
    NodeStatus,
)
from cairn.proto.v1.vm_pb2 import ConsoleVmRequest

from tests.conformance.api_stores import made_store
from tests.conformance.api_world import World, image, world_on

DENIED = grpc.StatusCode.PERMISSION_DENIED


@pytest.fixture
async def world(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[World]:
    async with made_store(request) as store, world_on(store, tmp_path) as world:
        await world.controller("c1", "10.0.0.1:7443")
        yield world


async def code_of(call: Any) -> grpc.StatusCode:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value.code()


async def token(world: World, **fields: Any) -> str:
    answer = await world.api.nodes.CreateJoinToken(CreateJoinTokenRequest(**fields))
    return str(answer.token)


async def test_a_server_joins_once(world: World) -> None:
    secret = await token(world)
    assert TokenContent.decode(secret).endpoints == (world.enrolment,)
    stranger = world.stubs(None, world.enrolment)
    csr = make_csr("n1")
    request = JoinNodeRequest(token=secret, node_name="n1", csr_pem=csr.cert_pem)
    joined = await stranger.enrolment.JoinNode(request)
    assert identity_of(joined.certificate_pem) == Identity("node", joined.node)
    assert list(joined.controllers) == ["10.0.0.1:7443"]
    node = await world.api.nodes.GetNode(GetNodeRequest(id="n1"))
    assert (node.id, node.spec.index, node.status.state) == (joined.node, 1, NodeStatus.STATE_JOINING)
    # The answer was lost: the same key asks again and is the same node.
    assert (await stranger.enrolment.JoinNode(request)).node == joined.node
    # Another key with the same token is not.
    request.csr_pem = make_csr("n1").cert_pem
    assert await code_of(stranger.enrolment.JoinNode(request)) is DENIED
    assert await world.count(kinds.NODE) == 1


async def test_tokens_are_listed_without_what_makes_them_good_and_taken_back(world: World) -> None:
    good, used = await token(world, node_name="n9"), await token(world)
    stranger = world.stubs(None, world.enrolment)
    joined = await stranger.enrolment.JoinNode(JoinNodeRequest(token=used, node_name="n1", csr_pem=make_csr("n1").cert_pem))
    listed = {each.id: each for each in (await world.api.nodes.ListJoinTokens(ListJoinTokensRequest())).join_tokens}
    first, second = (listed[TokenContent.decode(each).id] for each in (good, used))
    assert (first.node_name, first.used_by, second.used_by, second.used_by_name) == ("n9", "", joined.node, "n1")
    assert not any(each.secret_sha256 or each.used_key_sha256 for each in listed.values())
    pages = [page async for page in pages_of(world, 1)]
    assert [[each.id for each in page] for page in pages] == [[id] for id in sorted(listed)]
    shown = await world.api.nodes.DeleteJoinToken(DeleteJoinTokenRequest(id=first.id))
    assert (shown.id, shown.secret_sha256) == (first.id, b"")
    late = JoinNodeRequest(token=good, node_name="n9", csr_pem=make_csr("n9").cert_pem)
    assert await code_of(stranger.enrolment.JoinNode(late)) is DENIED
    again = world.api.nodes.DeleteJoinToken(DeleteJoinTokenRequest(id=first.id))
    assert await code_of(again) is grpc.StatusCode.NOT_FOUND
    with pytest.raises(grpc.aio.AioRpcError, match="n1 has joined with it") as refused:
        await world.api.nodes.DeleteJoinToken(DeleteJoinTokenRequest(id=second.id))
    assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert await world.count(kinds.JOIN_TOKEN) == 1


async def pages_of(world: World, size: int) -> AsyncIterator[Any]:
    page_token = ""
    while True:
        page = await world.api.nodes.ListJoinTokens(ListJoinTokensRequest(page_size=size, page_token=page_token))
        yield page.join_tokens
        page_token = page.next_page_token
        if not page_token:
            return


async def test_a_token_that_is_taken_back_and_used_at_the_same_moment_is_one_of_both(world: World) -> None:
    for number in range(10):
        secret = await token(world)
        request = JoinNodeRequest(token=secret, node_name=f"n{number}", csr_pem=make_csr("n").cert_pem)
        calls = (
            world.stubs(None, world.enrolment).enrolment.JoinNode(request),
            world.api.nodes.DeleteJoinToken(DeleteJoinTokenRequest(id=TokenContent.decode(secret).id)),
        )
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        assert len([each for each in outcomes if isinstance(each, grpc.aio.AioRpcError)]) == 1, outcomes


async def test_each_answer_to_a_repeated_request_lets_in_and_only_one_server(world: World) -> None:
    stranger = world.stubs(None, world.enrolment)
    request_id = "00000000-0000-4000-8000-00000000000a"
    answers = [await token(world, node_name="n1", request_id=request_id) for _ in range(3)]
    assert len(set(answers)) == 3
    request = JoinNodeRequest(token=answers[0], node_name="n1", csr_pem=make_csr("n1").cert_pem)
    joined = await stranger.enrolment.JoinNode(request)
    for other in answers[1:]:
        again = JoinNodeRequest(token=other, node_name="n1", csr_pem=make_csr("n1").cert_pem)
        assert await code_of(stranger.enrolment.JoinNode(again)) is DENIED
    assert (await stranger.enrolment.JoinNode(request)).node == joined.node


async def test_tokens_that_do_not_let_in(world: World) -> None:
    stranger = world.stubs(None, world.enrolment)

    def join(secret: str, name: str = "n1", csr: bytes = b"") -> Any:
        csr = csr or make_csr(name).cert_pem
        return stranger.enrolment.JoinNode(JoinNodeRequest(token=secret, node_name=name, csr_pem=csr))

    good = await token(world, node_name="n7")
    assert await code_of(join(good, "n8")) is DENIED
    content = TokenContent.decode(good)
    forged = TokenContent(content.id, "x" * 43, content.endpoints, content.ca_pem).encode()
    assert await code_of(join(forged, "n7")) is DENIED
    assert await code_of(join(good[:40], "n7")) is grpc.StatusCode.INVALID_ARGUMENT
    assert await code_of(join(good, "n7", b"not a csr")) is grpc.StatusCode.INVALID_ARGUMENT
    assert await code_of(join(good, "N7")) is grpc.StatusCode.INVALID_ARGUMENT
    short = await token(world, ttl_s=60)
    world.clock.ahead = timedelta(seconds=61)
    assert await code_of(join(short)) is DENIED
    assert await world.count(kinds.NODE) == 0


async def test_many_servers_join_at_once_with_numbers_of_their_own(world: World) -> None:
    stranger = world.stubs(None, world.enrolment)

    async def join(name: str) -> str:
        request = JoinNodeRequest(token=await token(world), node_name=name, csr_pem=make_csr(name).cert_pem)
        return str((await stranger.enrolment.JoinNode(request)).node)

    nodes = await asyncio.gather(*(join(f"n{number}") for number in range(8)))
    assert len(set(nodes)) == 8
    assert sorted(node.spec.index for node in world.cache.view.all(kinds.NODE)) == list(range(1, 9))


async def test_only_enrolment_is_open_without_a_certificate_or_token(world: World) -> None:
    from cairn.proto.v1.vm_pb2 import ListVmsRequest

    stranger = world.stubs(None, world.enrolment)
    assert await code_of(stranger.vms.ListVms(ListVmsRequest())) is grpc.StatusCode.UNAUTHENTICATED
    assert await code_of(world.stubs(None).vms.ListVms(ListVmsRequest(), timeout=5)) is grpc.StatusCode.UNAVAILABLE


async def test_the_hash_is_stored_and_not_the_secret(world: World) -> None:
    content = TokenContent.decode(await token(world))
    items, _ = await world.store.read(kinds.ROOT)
    assert not [item.key for item in items if content.secret.encode() in item.value]


async def test_a_certificate_is_renewed_for_its_holder_only(world: World) -> None:
    node = await world.node("n1")
    csr = make_csr("admin").cert_pem
    answer = await world.stubs(Identity("node", node)).identity.RenewCertificate(RenewCertificateRequest(csr_pem=csr))
    assert identity_of(answer.certificate_pem) == Identity("node", node)
    gone = world.stubs(Identity("node", "node-00000000"))
    assert await code_of(gone.identity.RenewCertificate(RenewCertificateRequest(csr_pem=csr))) is DENIED
    bad = world.api.identity.RenewCertificate(RenewCertificateRequest(csr_pem=b"x"))
    assert await code_of(bad) is grpc.StatusCode.INVALID_ARGUMENT


async def test_the_status_of_the_cluster(world: World) -> None:
    status = await world.api.cluster.GetClusterStatus(GetClusterStatusRequest())
    assert status.say == "no node is ready"
    await world.node("n1")
    status = await world.api.cluster.GetClusterStatus(GetClusterStatusRequest())
    assert (status.nodes_ready, [session.name for session in status.controllers]) == (1, ["c1"])
    assert status.say.startswith("healthy")


class FakeHost(agent_pb2_grpc.HostServiceServicer):
    """An agent that collects what it is sent and echoes what is typed."""

    def __init__(self) -> None:
        self.received = b""

    async def PutBlob(self, request_iterator: AsyncIterator[PutBlobRequest], context: Any) -> PutBlobResponse:
        async for request in request_iterator:
            self.received += request.chunk
        return PutBlobResponse(virtual_size_bytes=1)

    async def Console(self, request_iterator: AsyncIterator[ConsoleRequest], context: Any) -> AsyncIterator[ConsoleResponse]:
        async for request in request_iterator:
            yield ConsoleResponse(data=request.vm.encode() + b"> " + request.data)


async def host(world: World, node: str) -> tuple[FakeHost, grpc.aio.Server]:
    servicer = FakeHost()
    transport = world.transport(Identity("node", node))
    server = transport.server()
    agent_pb2_grpc.add_HostServiceServicer_to_server(servicer, server)
    endpoint = await transport.listen(server, "127.0.0.1:0")
    await server.start()
    await world.connect(node, endpoint)
    return servicer, server


async def test_an_upload_reaches_the_chosen_node_and_ends_early_when_held(world: World) -> None:
    node = await world.node("n1")
    agent, server = await host(world, node)
    made = await world.api.images.CreateImage(CreateImageRequest(image=image()))
    await world.commit(Txn("jobs").put(kinds.IMAGE_CONTENT, made.id, ImageContent(image=made.id, nodes=[node])))
    await world.report(node, f"image/{made.id}", Report(image=ImageReport(state=ImageReport.STATE_FETCHING)))

    async def parts() -> AsyncIterator[UploadImageRequest]:
        yield UploadImageRequest(image="demo")
        for _ in range(3):
            yield UploadImageRequest(chunk=b"abc")

    answer = await world.api.images.UploadImage(parts())
    assert agent.received == b"abcabcabc"
    assert answer.image.id == made.id
    assert answer.job
    await world.report(node, f"image/{made.id}", Report(image=ImageReport(state=ImageReport.STATE_READY)))
    await world.api.images.UploadImage(parts())
    assert agent.received == b"abcabcabc"
    await server.stop(0)


async def test_a_console_is_relayed_both_ways(world: World) -> None:
    await world.image()
    await world.network()
    node = await world.node("n1")
    _, server = await host(world, node)
    made = await world.vm()
    call = world.api.vms.ConsoleVm()
    await call.write(ConsoleVmRequest(id="web"))
    assert await code_of(call.read()) is grpc.StatusCode.FAILED_PRECONDITION
    await world.reconcile()
    call = world.api.vms.ConsoleVm()
    await call.write(ConsoleVmRequest(id="web", data=b"ls"))
    assert (await call.read()).data == made.id.encode() + b"> ls"
    await call.write(ConsoleVmRequest(data=b"exit"))
    assert (await call.read()).data == b"> exit"
    call.cancel()
    opened = (await world.api.audits.ListAudits(ListAuditsRequest(method="ConsoleVm"))).audits
    assert [(each.who, each.object, each.object_name) for each in opened] == [("admin", f"vm/{made.id}", "web")]
    await server.stop(0)


async def test_a_console_ends_when_its_caller_may_have_it_no_longer(world: World) -> None:
    """Also when he may have that of another VM still, and nothing is printed."""
    await world.image()
    await world.network()
    node = await world.node("n1")
    _, server = await host(world, node)
    web, db = await world.vm("web"), await world.vm("db")
    await world.reconcile()
    bob = await world.user("bob", "viewer", project="default")
    await world.bind("member", "default", object=f"vm/{db.id}", user="bob")
    bound = await world.bind("member", "default", object=f"vm/{web.id}", user="bob")
    call = bob.vms.ConsoleVm()
    await call.write(ConsoleVmRequest(id="web", data=b"ls"))
    assert (await call.read()).data == web.id.encode() + b"> ls"
    await world.api.bindings.DeleteBinding(DeleteBindingRequest(id=bound.id))
    async with asyncio.timeout(20):
        assert await code_of(call.read()) is DENIED
    await server.stop(0)
