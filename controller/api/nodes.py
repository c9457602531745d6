"""Nodes: servers that carry VMs; and the tokens with which new ones join.

A node leaves only empty, so that nothing of a user's goes with it: what was placed on it, and images whose only copy it holds,
keep it. Whoever places something checks the node's revision, so the two steps of erasure.py leave no gap. Its record, name
and number go at once; what was claimed and reported of it is removed by placement.py and garbage.py, and images get another
keeper from jobs/keepers.py, when they see the record gone. Rejected: removing a lost node by force (its guests may be running:
that takes a fence proof first).
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import AsyncIterator, Sequence
from datetime import timedelta
from typing import Any, Final

from cairn.controller.api import nouns, resolution, validation
from cairn.controller.api.authorise import caller_of
from cairn.controller.api.core import Core
from cairn.controller.api.decision import Decided
from cairn.controller.api.enrolment import SHA256_BYTES, index_claim
from cairn.controller.api.erasure import Erasure
from cairn.controller.api.masks import UpdateRules
from cairn.controller.api.mutation import Act, request_key
from cairn.controller.api.objects import updated
from cairn.controller.jobs.keepers import lone
from cairn.controller.model.permits import Caller, Verb, name_for, permits
from cairn.controller.model.where import vms_on, volumes_on
from cairn.controller.store.base import Conflict, Indeterminate, Record, Txn, View
from cairn.controller.words import NAMES_MAX, names, several
from cairn.proto import kinds, log
from cairn.proto.errors import AlreadyExists, BadState, Denied, Invalid, TryAgain
from cairn.proto.pki import TokenContent
from cairn.proto.seams import timestamp
from cairn.proto.v1 import node_pb2, node_pb2_grpc
from cairn.proto.v1.node_pb2 import JoinToken, Node

_log = log.logger("api")
RULES = UpdateRules(
    mutable=("name", "labels", "spec.cordoned", "spec.cpu_overcommit", "spec.memory_share"), immutable=("spec.index",)
)
TOKEN_TTL_S_DEFAULT: Final = 3600
TOKEN_TTL_S_MAX: Final = 604_800
SECRET_BYTES: Final = 32
# Secrets of one token: the newest of so many repeated calls.
SECRETS_MAX: Final = 8
CPU_OVERCOMMIT_MAX: Final = 64.0


class NodeService(node_pb2_grpc.NodeServiceServicer):
    """NodeService of proto/v1/node.proto."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._erasure: Erasure[Node] = Erasure(core, nouns.NODE, in_use, release)

    async def GetNode(self, request: node_pb2.GetNodeRequest, context: Any) -> Node:
        """Return one."""
        return await self._core.listings.get(caller_of(context), nouns.NODE, request)

    async def ListNodes(self, request: node_pb2.ListNodesRequest, context: Any) -> node_pb2.ListNodesResponse:
        """Return a page."""
        return await self._core.listings.list(caller_of(context), nouns.NODE, request, node_pb2.ListNodesResponse)

    async def UpdateNode(self, request: node_pb2.UpdateNodeRequest, context: Any) -> Node:
        """Cordon, label, change overcommit."""

        def decide(view: View, caller: Caller) -> Decided[Node]:
            decided, _, _ = updated(view, caller, self._core, nouns.NODE, request, RULES, amend)
            return decided

        return await self._core.mutations.run(request, caller_of(context), decide)

    async def DeleteNode(self, request: node_pb2.DeleteNodeRequest, context: Any) -> Node:
        """Let one leave that holds nothing."""
        return await self._erasure.run(request, caller_of(context))

    async def WatchNodes(self, request: node_pb2.WatchNodesRequest, context: Any) -> AsyncIterator[node_pb2.WatchNodesResponse]:
        """Follow them."""
        async for response in self._core.watches.watch(caller_of(context), nouns.NODE, request, node_pb2.WatchNodesResponse):
            yield response

    async def CreateJoinToken(self, request: node_pb2.CreateJoinTokenRequest, context: Any) -> node_pb2.CreateJoinTokenResponse:
        """Make a one-time token. Only the hash of its secret is stored, so a repeated call adds a secret to the same token.

        Each answer is good, whichever of them came last: the first call may be carried out after the second was answered.
        """
        caller = caller_of(context)
        if request.request_id:
            validation.request_id(request.request_id)
        if request.ttl_s > TOKEN_TTL_S_MAX:
            raise Invalid("ttl_s", f"{request.ttl_s} is more than {TOKEN_TTL_S_MAX} (a week)")
        if request.node_name:
            validation.name("node_name", request.node_name)
        endpoints = self._core.enrolment_endpoints()
        if not endpoints:
            raise TryAgain("no controller with an enrolment address is known yet; try again")
        secret = base64.urlsafe_b64encode(self._core.ids.secret(SECRET_BYTES)).decode().rstrip("=")
        # The token's id follows from the request's, so that a repeat finds it; without one it is a new token.
        digest = hashlib.sha256(request_key(caller, request.request_id or self._core.ids.uuid()).encode()).hexdigest()
        token = JoinToken(id=f"{kinds.JOIN_TOKEN.id_prefix}-{digest[:8]}", node_name=request.node_name)
        token.secret_sha256 = hashlib.sha256(secret.encode()).digest()
        now = self._core.clock.now()
        token.create_time.CopyFrom(timestamp(now))
        token.expire_time.CopyFrom(timestamp(now + timedelta(seconds=request.ttl_s or TOKEN_TTL_S_DEFAULT)))
        await self._store(caller, token, request.request_id)
        _log.info("join token made", token_id=token.id, node_name=token.node_name, actor=caller.id)
        content = TokenContent(token.id, secret, tuple(endpoints), self._core.ca_pem)
        return node_pb2.CreateJoinTokenResponse(token=content.encode(), expire_time=token.expire_time)

    async def _store(self, caller: Caller, token: JoinToken, request_id: str) -> None:
        """Write a token; one of the same id is renewed unless it was used. Raises Denied, Invalid, BadState, TryAgain."""
        view = await self._core.mutations.freshen()
        if not permits(view, caller, Verb.CREATE, token):
            raise Denied(f"{caller.kind} {caller.id!r} may not make join tokens")
        held = view.get(kinds.JOIN_TOKEN, token.id)
        if held is not None and held.node_name != token.node_name:
            raise Invalid("request_id", "was used for a token of another node; take a new one")
        if held is not None and held.used_by:
            raise BadState("join_token", token.id, f"this token was used by {held.used_by}: make a new one")
        if token.node_name and view.get(kinds.NAME, f"{nouns.CLUSTER_WIDE}/node/{token.node_name}") is not None:
            raise AlreadyExists("node", token.node_name)
        if held is not None:
            known = held.secret_sha256[-(SECRETS_MAX - 1) * SHA256_BYTES :]
            token.secret_sha256 = known + token.secret_sha256
        txn = Txn("api").check(kinds.JOIN_TOKEN, token.id, view.revision_of(kinds.JOIN_TOKEN, token.id))
        act = Act("CreateJoinToken", f"{kinds.JOIN_TOKEN.name}/{token.id}", token.node_name, request_id=request_id)
        try:
            await self._core.mutations.write(view, caller, txn.put(kinds.JOIN_TOKEN, token.id, token), act)
        except (Conflict, Indeterminate) as error:
            raise TryAgain("the token could not be stored for sure; try again") from error


def amend(_view: View, _caller: Caller, _txn: Txn, new: Node, _record: Record[Any]) -> None:
    """Check an updated node. Raises Invalid."""
    if new.spec.HasField("cpu_overcommit") and not 1.0 <= new.spec.cpu_overcommit <= CPU_OVERCOMMIT_MAX:
        raise Invalid("node.spec.cpu_overcommit", f"{new.spec.cpu_overcommit:g} is not between 1 and {CPU_OVERCOMMIT_MAX:g}")
    if new.spec.HasField("memory_share") and not 0.1 <= new.spec.memory_share <= 1.0:
        raise Invalid("node.spec.memory_share", f"{new.spec.memory_share:g} is not between 0.1 and 1")


def in_use(view: View, caller: Caller, record: Record[Node]) -> None:
    """Refuse while something is on it. Raises BadState."""
    node = record.message
    held, ways = list[str](), list[str]()
    for placed, kind, title in ((vms_on, kinds.VM, "VM"), (volumes_on, kinds.VOLUME, "volume")):
        # Of what is erased, placement.py is about to remove the place.
        ids = [id for id in placed(view, node.id) if view.get(kind, id) is not None]
        if ids:
            held.append(f"{several(len(ids), title)} ({_named(view, caller, kind, ids)})")
    if held:
        ways.append("delete what is on it (what is deleted keeps its disks for a while, unless with --purge)")
    images = lone(view, node.id)
    if images:
        held.append(f"{several(len(images), 'image')} no other node keeps ready ({_named(view, caller, kinds.IMAGE, images)})")
        ways.append(f"`cairn node cordon {node.name}` has imported images copied to another node with room")
    if held:
        raise BadState("node", node.name, f"node {node.name!r} still has {' and '.join(held)}: {'; '.join(ways)}")


def _named(view: View, caller: Caller, kind: Any, ids: Sequence[str]) -> str:
    return names([name_for(view, caller, kind, id) for id in ids[:NAMES_MAX]], len(ids))


def release(txn: Txn, view: View, record: Record[Node]) -> None:
    """Give back its name and its number."""
    node = record.message
    resolution.release(txn, view, nouns.NODE, "", node.name, node.id)
    key = index_claim(node.spec.index)
    held = view.get(kinds.NAME, key)
    if held is not None and held.id == node.id:
        txn.check(kinds.NAME, key, view.revision_of(kinds.NAME, key)).delete(kinds.NAME, key)
