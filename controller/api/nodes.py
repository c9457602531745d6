"""Nodes: servers that carry VMs. The tokens with which new ones join are in join_tokens.py.

A node leaves only empty, so that nothing of a user's goes with it: what was placed on it, and images whose only copy it holds,
keep it. Whoever places something checks the node's revision, so the two steps of erasure.py leave no gap. Its record, name
and number go at once; what was claimed and reported of it is removed by placement.py and garbage.py, and images get another
keeper from jobs/keepers.py, when they see the record gone. Rejected: removing a lost node by force (its guests may be running:
that takes a fence proof first).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any, Final

from cairn.controller.api import nouns, resolution
from cairn.controller.api.authorise import caller_of
from cairn.controller.api.core import Core
from cairn.controller.api.decision import Decided
from cairn.controller.api.enrolment import index_claim
from cairn.controller.api.erasure import Erasure
from cairn.controller.api.join_tokens import JoinTokens
from cairn.controller.api.masks import UpdateRules
from cairn.controller.api.objects import updated
from cairn.controller.jobs.keepers import lone
from cairn.controller.model.permits import Caller, name_for
from cairn.controller.model.where import vms_on, volumes_on
from cairn.controller.store.base import Record, Txn, View
from cairn.controller.words import NAMES_MAX, names, several
from cairn.proto import kinds
from cairn.proto.errors import BadState, Invalid
from cairn.proto.v1 import node_pb2, node_pb2_grpc
from cairn.proto.v1.node_pb2 import JoinToken, Node

RULES = UpdateRules(
    mutable=("name", "labels", "spec.cordoned", "spec.cpu_overcommit", "spec.memory_share"), immutable=("spec.index",)
)
CPU_OVERCOMMIT_MAX: Final = 64.0


class NodeService(node_pb2_grpc.NodeServiceServicer):
    """NodeService of proto/v1/node.proto."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._erasure: Erasure[Node] = Erasure(core, nouns.NODE, in_use, release)
        self._tokens = JoinTokens(core)

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
        """Make a one-time token."""
        return await self._tokens.create(caller_of(context), request)

    async def ListJoinTokens(self, request: node_pb2.ListJoinTokensRequest, context: Any) -> node_pb2.ListJoinTokensResponse:
        """Return a page of them."""
        return await self._tokens.list(caller_of(context), request)

    async def DeleteJoinToken(self, request: node_pb2.DeleteJoinTokenRequest, context: Any) -> JoinToken:
        """Take one back."""
        return await self._tokens.delete(caller_of(context), request)


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
