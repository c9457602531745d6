"""Who may call which method: every method, by every kind of identity, in one table. What a caller may do to which object is
test_api_permits.py's.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

import grpc
import pytest
from cairn.controller.api.authorise import Admission
from cairn.controller.store.cache import Cache
from cairn.controller.store.memory import MemoryStore
from cairn.proto.errors import Denied, Unauthenticated
from cairn.proto.permissions import METHODS
from cairn.proto.pki import CONTROLLER_SERVER_NAME, Authority, Identity
from cairn.proto.rpc import GrpcTransport, StaticCredentials
from cairn.proto.seams import SystemClock
from google.protobuf.message_factory import GetMessageClass

from tests.conformance.api_world import World, world_on
from tests.conformance.test_api_permits import Method, methods

CALL_S = 5.0
GATE: Final = frozenset({grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.UNAUTHENTICATED})
NOT_CONNECTED: Final = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED})
USER, CONTROLLER, NODE = Identity("user", "admin"), Identity("controller", "c2"), Identity("node", "node-0000000a")
ETCD = Identity("etcd", "e1")


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with world_on(MemoryStore(), tmp_path) as world:
        yield world


def channel(world: World, authority: Authority, identity: Identity | None) -> grpc.aio.Channel:
    pair = authority.issue(identity) if identity is not None else None
    transport = GrpcTransport(StaticCredentials(world.authority.cert_pem, pair))
    return transport.channel([world.address], server_name=CONTROLLER_SERVER_NAME)


async def code(channel: grpc.aio.Channel, method: Method) -> grpc.StatusCode:
    """Call with nothing in the request; return the status: of who is let in, that of the empty request."""
    request: Any = GetMessageClass(method.descriptor.input_type)()
    incoming, outgoing = method.descriptor.client_streaming, method.descriptor.server_streaming
    shape = {(False, False): "unary_unary", (False, True): "unary_stream", (True, False): "stream_unary"}
    make = getattr(channel, shape.get((incoming, outgoing), "stream_stream"))
    call = make(method.path, request_serializer=type(request).SerializeToString, response_deserializer=bytes)
    begun = call(iter([request]) if incoming else request, timeout=CALL_S)
    try:
        if outgoing:
            await begun.read()
            begun.cancel()
        else:
            await begun
    except grpc.aio.AioRpcError as error:
        return error.code()
    return grpc.StatusCode.OK


def may_call(identity: Identity, method: Method) -> bool:
    """The rule once more, in the words of the documentation: users and controllers all of this API, nodes only renewal."""
    if METHODS[method.path] == "auth.ask":
        return identity.kind == "user"
    return identity.kind in ("user", "controller") or (identity.kind == "node" and method.name == "RenewCertificate")


@pytest.mark.parametrize("identity", [USER, CONTROLLER, NODE, ETCD], ids=lambda identity: identity.kind)
async def test_who_is_let_in_where(world: World, identity: Identity) -> None:
    wrong = []
    async with channel(world, world.authority, identity) as mine:
        for method in methods():
            said = await code(mine, method)
            # A node that is not part of the cluster is let in to renew, and then refused for that.
            stranger = identity == NODE and method.name == "RenewCertificate"
            if (said in GATE) == may_call(identity, method) and not stranger:
                wrong.append(f"{method.name}: {said.name}")
    assert not wrong, wrong


@pytest.mark.parametrize("identity", [None, USER, CONTROLLER, NODE], ids=str)
async def test_who_has_no_certificate_of_this_cluster_reaches_nothing(world: World, identity: Identity | None) -> None:
    elsewhere = Authority.create("elsewhere", world.clock, world.ids)
    async with channel(world, elsewhere, identity) as foreign:
        for method in methods()[:3]:
            assert await code(foreign, method) in NOT_CONNECTED


class Context:
    """What the gate asks of a call: the names in the certificate of its peer, and where that is."""

    def __init__(self, *names: str) -> None:
        self._names = [name.encode() for name in names]

    def auth_context(self) -> dict[str, list[bytes]]:
        return {"x509_subject_alternative_name": self._names}

    def invocation_metadata(self) -> tuple[Any, ...]:
        return ()

    def peer(self) -> str:
        return "unix:"


async def who(method: str, context: Context) -> Any:
    """Ask the gate, of which nothing is asked here but what the certificate says."""
    cache = Cache(MemoryStore())

    async def freshen() -> Any:
        return cache.view

    return await Admission(cache, freshen, SystemClock()).who(method, context)


@pytest.mark.parametrize(
    ("method", "kinds"),
    [
        ("/cairn.v1.AgentService/Sync", {"node", "controller"}),
        ("/cairn.v1.IdentityService/RenewCertificate", {"node", "controller", "user", "etcd"}),
        ("/cairn.v1.EnrolmentService/JoinNode", {"node", "controller", "user", "etcd", "none"}),
        ("/cairn.v1.VmService/ListVms", {"controller", "user"}),
        ("/cairn.v1.NoService/NoMethod", {"controller", "user"}),
        ("/grpc.health.v1.Health/Check", {"node", "controller", "user", "etcd"}),
    ],
)
@pytest.mark.parametrize("kind", ["node", "controller", "user", "etcd", "none"])
async def test_the_gate(method: str, kinds: set[str], kind: str) -> None:
    context = Context(*([] if kind == "none" else [f"cairn://{kind}/x"]))
    if kind in kinds:
        await who(method, context)
        return
    with pytest.raises(Unauthenticated if kind == "none" else Denied):
        await who(method, context)


@pytest.mark.parametrize(
    "names", [["cairn://user/"], ["cairn://root/x"], ["http://user/x"], ["cairn://user/a/b"], ["x"], ["cairn://system/jobs"]]
)
async def test_what_is_no_identity_is_nobody(names: list[str]) -> None:
    """Also a part of the controller, which no certificate says of anybody."""
    with pytest.raises(Unauthenticated):
        await who("/cairn.v1.VmService/ListVms", Context(*names))
