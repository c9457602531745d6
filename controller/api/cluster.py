"""The cluster as a whole, in one answer."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

from cairn.controller.api import nouns
from cairn.controller.api.authorise import caller_of
from cairn.controller.api.core import Core
from cairn.controller.model.permits import Caller, Verb, permits
from cairn.controller.store.base import Membership, View
from cairn.controller.words import several
from cairn.proto import kinds
from cairn.proto.errors import Denied
from cairn.proto.v1 import cluster_pb2, cluster_pb2_grpc
from cairn.proto.v1.cluster_pb2 import Cluster, GetClusterStatusResponse
from cairn.proto.v1.node_pb2 import NodeStatus
from cairn.proto.v1.vm_pb2 import VmStatus


@runtime_checkable
class Membered(Membership, Protocol):
    """A store that can tell about its members, asked for at run time."""


class ClusterService(cluster_pb2_grpc.ClusterServiceServicer):
    """ClusterService of proto/v1/cluster.proto."""

    def __init__(self, core: Core) -> None:
        self._core = core

    async def GetClusterStatus(
        self, request: cluster_pb2.GetClusterStatusRequest, context: Any
    ) -> cluster_pb2.GetClusterStatusResponse:
        """Return how everything is."""
        view, caller = self._core.cache.view, caller_of(context)
        cluster = view.get(kinds.CLUSTER, "self")
        if not permits(view, caller, Verb.SEE, cluster or Cluster()):
            raise Denied(f"{caller.kind} {caller.id!r} may not see the cluster's status")
        answer = GetClusterStatusResponse(revision=view.revision)
        if cluster is not None:
            answer.name, answer.epoch = cluster.name, cluster.epoch
        answer.controllers.extend(sorted(view.all(kinds.CONTROLLER), key=lambda session: session.name))
        _count(view, caller, answer)
        if isinstance(self._core.store, Membered):
            for member in await self._core.store.members():
                answer.members.add(
                    endpoint=member.endpoint,
                    healthy=member.healthy,
                    leader=member.leader,
                    size_bytes=member.size_bytes,
                    version=member.version,
                )
        answer.say = sentence(answer)
        return answer


def _count(view: View, caller: Caller, answer: GetClusterStatusResponse) -> None:
    for id in view.ids(kinds.NODE):
        node = nouns.NODE.of(view, id)
        if node is None or not permits(view, caller, Verb.SEE, node):
            continue
        if node.status.state == NodeStatus.STATE_READY:
            answer.nodes_ready += 1
        elif node.status.state == NodeStatus.STATE_DOWN:
            answer.nodes_down += 1
    for id in view.ids(kinds.VM):
        vm = nouns.VM.of(view, id)
        if vm is None or vm.HasField("delete_time") or not permits(view, caller, Verb.SEE, vm):
            continue
        answer.vms += 1
        answer.vms_running += vm.status.state == VmStatus.STATE_RUNNING


def sentence(answer: GetClusterStatusResponse) -> str:
    """Return what matters most, first what is wrong."""
    troubles = []
    silent = [member.endpoint for member in answer.members if not member.healthy]
    if silent:
        troubles.append(f"store member {', '.join(silent)} does not answer")
    if answer.nodes_down:
        troubles.append(f"{several(answer.nodes_down, 'node')} down: not answering")
    if not answer.nodes_ready:
        troubles.append("no node is ready")
    if troubles:
        return "; ".join(troubles)
    return f"healthy: {several(answer.nodes_ready, 'node')} ready, {answer.vms_running} of {several(answer.vms, 'VM')} running"
