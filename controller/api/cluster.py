"""The cluster as a whole, in one answer."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from typing import Any, Final

from cairn.controller import restore
from cairn.controller.api import damage, knowledge
from cairn.controller.api.authorise import caller_of
from cairn.controller.api.core import Core
from cairn.controller.api.mutation import Act
from cairn.controller.api.selection import Turns
from cairn.controller.api.status import clock_time
from cairn.controller.api.vm_status import runs
from cairn.controller.backup import backup
from cairn.controller.model.nodes import connected, hypervisor_silent, node_name
from cairn.controller.model.permits import Caller, Verb, permits
from cairn.controller.model.restored import CLUSTER_ID
from cairn.controller.model.unreadable import all_unreadable
from cairn.controller.model.where import where
from cairn.controller.store.base import Conflict, Indeterminate, Txn, View
from cairn.controller.store.etcd_refusals import NOSPACE, REMEDY
from cairn.controller.words import NAMES_MAX, names, several
from cairn.proto import kinds, log
from cairn.proto.errors import BadState, Denied, Invalid, NotFound, Refused, TryAgain
from cairn.proto.v1 import cluster_pb2, cluster_pb2_grpc
from cairn.proto.v1.backup_pb2 import (
    BackupClusterRequest,
    BackupClusterResponse,
    RestoreClusterRequest,
    RestoreClusterResponse,
    RestoreResult,
)
from cairn.proto.v1.cluster_pb2 import (
    AdoptImageRequest,
    AdoptVmRequest,
    AdoptVolumeRequest,
    CheckClusterRequest,
    CheckClusterResponse,
    ForgetUnknownRequest,
    ForgetUnknownResponse,
    GetClusterStatusResponse,
    ListUnknownRequest,
    ListUnknownResponse,
    MissingController,
    RetireControllerRequest,
    RetireControllerResponse,
)
from cairn.proto.v1.image_pb2 import Image
from cairn.proto.v1.vm_pb2 import Vm
from cairn.proto.v1.volume_pb2 import Volume

_log = log.logger("api")
ATTEMPTS_MAX: Final = 8
RESTORED: Final = "restored; nodes connect again by themselves, and what they know besides is listed by `cairn cluster adopt`"


class ClusterService(cluster_pb2_grpc.ClusterServiceServicer):
    """ClusterService of proto/v1/cluster.proto. All of it works also while nobody may decide anything (standing.py)."""

    def __init__(self, core: Core) -> None:
        self._core = core

    def _permitted(self, context: Any, verb: Verb, doing: str) -> Caller:
        """Return who calls, if he may do that to the cluster. Raises Denied, Unauthenticated."""
        caller = caller_of(context)
        if not permits(self._core.cache.view, caller, verb, self._core.standing.cluster()):
            raise Denied(f"{caller.kind} {caller.id!r} may not {doing}")
        return caller

    async def GetClusterStatus(
        self, request: cluster_pb2.GetClusterStatusRequest, context: Any
    ) -> cluster_pb2.GetClusterStatusResponse:
        """Return how everything is."""
        view, standing = self._core.cache.view, self._core.standing
        caller = self._permitted(context, Verb.SEE, "see the cluster's status")
        answer = GetClusterStatusResponse(revision=view.revision)
        cluster = standing.cluster()
        answer.name, answer.epoch = cluster.name, cluster.epoch
        if cluster.HasField("restored"):
            answer.restored.CopyFrom(cluster.restored)
        if cluster.HasField("restore"):
            answer.restore.CopyFrom(cluster.restore)
        for node, held in sorted(standing.ahead.items()):
            answer.nodes_ahead.add(node=node, name=node_name(view, node), epoch=held.epoch, revision=held.revision)
        answer.controllers.extend(sorted(view.all(kinds.CONTROLLER), key=lambda session: session.name))
        answer.controllers_missing.extend(missing_controllers(view))
        answer.unreadable = sum(1 for _ in all_unreadable(view))
        await _count(view, caller, answer)
        for member in await self._core.store.members():
            answer.members.add(
                endpoint=member.endpoint,
                healthy=member.healthy,
                leader=member.leader,
                size_bytes=member.size_bytes,
                version=member.version,
                used_bytes=member.used_bytes,
                quota_bytes=member.quota_bytes,
                learner=member.learner,
                alarms=member.alarms,
                say=member.say,
            )
        why = standing.why_not()
        answer.healthy = why is None and not troubles_of(answer)
        answer.say = why.say if why is not None else sentence(answer)
        return answer

    async def BackupCluster(self, request: BackupClusterRequest, context: Any) -> AsyncIterator[BackupClusterResponse]:
        """Stream a backup as the bytes of its file."""
        caller = self._permitted(context, Verb.BACKUP, "back the cluster up")
        await self._noted(caller, "BackupCluster")
        async with aclosing(backup(self._core.store, self._core.clock, self._core.version)) as chunks:
            async for chunk in chunks:
                yield BackupClusterResponse(chunk=chunk)

    async def RestoreCluster(
        self, requests: AsyncIterator[RestoreClusterRequest], context: Any
    ) -> AsyncIterator[RestoreClusterResponse]:
        """Put a backup in the place of all records, or say what that would change."""
        caller = self._permitted(context, Verb.RESTORE, "restore the cluster")
        first = await anext(aiter(requests), None)
        if first is None or first.WhichOneof("part") != "options":
            raise Invalid("options", "the first message must say what is to be done")
        taken = await restore.read(_chunks(requests))
        attempt = restore.Restore(self._core.unfenced, self._core.clock, taken, caller.id)
        plan = await attempt.plan()
        yield RestoreClusterResponse(plan=plan)
        if first.options.validate_only:
            return
        if first.options.cluster != plan.cluster:
            say = f"this cluster's name is {plan.cluster!r}, not {first.options.cluster!r}: nothing was restored"
            raise Invalid("options.cluster", say)
        async with aclosing(attempt.run()) as progress:
            async for each in progress:
                yield RestoreClusterResponse(progress=each)
        revision = await self._core.unfenced.revision()
        if self._core.standing.went_back is None:
            await self._core.mutations.freshen()
        await self._noted(caller, "RestoreCluster")
        yield RestoreClusterResponse(result=RestoreResult(epoch=attempt.epoch, revision=revision, say=RESTORED))

    async def _noted(self, caller: Caller, method: str) -> None:
        """Put on record what must be possible when nothing can be written: who needs it may have nothing else left."""
        cluster = self._core.standing.cluster()
        try:
            await self._core.mutations.note(caller, Act(method, f"{kinds.CLUSTER.name}/{CLUSTER_ID}", cluster.name))
        except Refused as error:
            _log.error("not_on_record", method=method, actor=caller.id, error=str(error))

    async def CheckCluster(self, request: CheckClusterRequest, context: Any) -> AsyncIterator[CheckClusterResponse]:
        """Stream what is wrong with the records as a whole."""
        self._permitted(context, Verb.SEE, "check the cluster")
        await self._core.mutations.freshen()
        async with aclosing(damage.checked(self._core.cache.view)) as answers:
            async for answer in answers:
                yield answer

    async def ListUnknown(self, request: ListUnknownRequest, context: Any) -> AsyncIterator[ListUnknownResponse]:
        """Stream what nodes know better than the records."""
        view = await self._core.mutations.freshen()
        for answer in knowledge.listed(view, caller_of(context), request.node):
            yield answer

    async def AdoptVm(self, request: AdoptVmRequest, context: Any) -> Vm:
        """Make the records say of a VM what its node says."""
        return await self._core.mutations.run(
            request, caller_of(context), lambda view, caller: knowledge.adopt_vm(view, caller, self._core, request)
        )

    async def AdoptVolume(self, request: AdoptVolumeRequest, context: Any) -> Volume:
        """The same of a volume."""
        return await self._core.mutations.run(
            request, caller_of(context), lambda view, caller: knowledge.adopt_volume(view, caller, self._core, request)
        )

    async def AdoptImage(self, request: AdoptImageRequest, context: Any) -> Image:
        """The same of an image."""
        return await self._core.mutations.run(
            request, caller_of(context), lambda view, caller: knowledge.adopt_image(view, caller, self._core, request)
        )

    async def RetireController(self, request: RetireControllerRequest, context: Any) -> RetireControllerResponse:
        """Expect a controller no longer."""
        await retire(self._core, self._permitted(context, Verb.RETIRE, "retire a controller"), request.name)
        return RetireControllerResponse()

    async def ForgetUnknown(self, request: ForgetUnknownRequest, context: Any) -> ForgetUnknownResponse:
        """Let a node remove what no record speaks of."""
        return ForgetUnknownResponse(title=await knowledge.forget(self._core, caller_of(context), request))


async def _chunks(requests: AsyncIterator[RestoreClusterRequest]) -> AsyncIterator[bytes]:
    async for request in requests:
        yield request.chunk


def missing_controllers(view: View) -> Iterator[MissingController]:
    """Yield those that are expected and not there, by name. Just gone: without a time."""
    for member in sorted(view.all(kinds.CONTROLLER_MEMBER), key=lambda member: member.name):
        if view.get(kinds.CONTROLLER, member.name) is not None:
            continue
        missing = MissingController(name=member.name, endpoints=member.endpoints, version=member.version)
        if member.HasField("missing_time"):
            missing.since_time.CopyFrom(member.missing_time)
        yield missing


async def retire(core: Core, caller: Caller, name: str) -> None:
    """Remove the record that makes a controller expected. Raises NotFound, BadState while it runs, TryAgain."""
    for _ in range(ATTEMPTS_MAX):
        view = await core.mutations.freshen()
        if view.get(kinds.CONTROLLER, name) is not None:
            say = f"controller {name!r} is running: stop it first, on its server: systemctl disable --now cairn-controller"
            raise BadState("controller", name, say)
        revision = view.revision_of(kinds.CONTROLLER_MEMBER, name)
        if not revision:
            if name in view.unreadable(kinds.CONTROLLER_MEMBER):
                raise TryAgain(f"the record of controller {name!r} cannot be read; `cairn cluster fsck` lists what is damaged")
            raise NotFound("controller", name)
        txn = Txn("api").check(kinds.CONTROLLER_MEMBER, name, revision).check(kinds.CONTROLLER, name, 0)
        txn.delete(kinds.CONTROLLER_MEMBER, name).delete(kinds.CONTROLLER_LAST, name)
        act = Act("RetireController", f"{kinds.CONTROLLER_MEMBER.name}/{name}", name)
        try:
            await core.cache.wait_for(await core.mutations.write(view, caller, txn, act))
        except (Conflict, Indeterminate):
            continue
        return
    raise TryAgain("the controller comes and goes; try again")


async def _count(view: View, caller: Caller, answer: GetClusterStatusResponse) -> None:
    """Count what the caller may see, by the records alone: projecting all VMs of a large cloud would take seconds."""
    turns, down, silent = Turns(), set[str](), list[str]()
    for node in view.pinned(kinds.NODE, list(view.ids(kinds.NODE))):
        if not permits(view, caller, Verb.SEE, node.message):
            continue
        if connected(view, node.message.id):
            answer.nodes_ready += 1
            if hypervisor_silent(view, node.message.id):
                answer.nodes_degraded += 1
                silent.append(node.message.name)
        elif view.get(kinds.NODE_FACTS, node.message.id) is not None:
            answer.nodes_down += 1
            down.add(node.message.id)
    for vm in view.pinned(kinds.VM, list(view.ids(kinds.VM))):
        if turns.over:
            await turns.next()
        if vm.message.HasField("delete_time") or not permits(view, caller, Verb.SEE, vm.message):
            continue
        answer.vms += 1
        answer.vms_running += runs(view, vm.message)
        answer.vms_unknown += where(view, vm.message.id).owner in down
    answer.nodes_down_names.extend(sorted(node_name(view, node) for node in down)[:NAMES_MAX])
    answer.nodes_degraded_names.extend(sorted(silent)[:NAMES_MAX])
    answer.unknown = sum(len(each.objects) for each in knowledge.listed(view, caller))


def _store_troubles(answer: GetClusterStatusResponse) -> list[str]:
    """Return what is wrong with the store, each kind once, with what to do."""
    full = [member.endpoint for member in answer.members if NOSPACE in member.alarms]
    troubles = [f"store member {member.endpoint}: {member.say}" for member in answer.members if not member.healthy]
    if full:
        troubles.append(f"the store is full, nothing can be changed; {REMEDY}")
    return troubles


def troubles_of(answer: GetClusterStatusResponse) -> list[str]:
    """Return what is wrong, what matters most first; nothing: all is well."""
    troubles = []
    if answer.nodes_ahead:
        ahead = ", ".join(node.name for node in answer.nodes_ahead)
        say = f"the store is older than what {ahead} was told: it went back without a restore, and tells those nothing"
        troubles.append(f"{say}; `cairn cluster restore FILE` with the newest backup makes them believe it again")
    troubles += _store_troubles(answer)
    for missing in answer.controllers_missing:
        since = f" since {clock_time(missing.since_time)}" if missing.HasField("since_time") else ""
        look = "see `systemctl status cairn-controller` there"
        troubles.append(f"controller {missing.name} is missing{since}: {look}, or `cairn cluster retire {missing.name}`")
    if answer.unreadable:
        troubles.append(f"{several(answer.unreadable, 'record')} cannot be read: `cairn cluster fsck` lists them")
    if answer.nodes_down:
        many = "does not answer; its guests" if answer.nodes_down == 1 else "do not answer; their guests"
        look = "see `systemctl status cairn-agent` there"
        troubles.append(f"{names(answer.nodes_down_names, answer.nodes_down)} {many} may be running: {look}")
    if answer.nodes_degraded:
        whose = names(answer.nodes_degraded_names, answer.nodes_degraded)
        look = "see `systemctl status libvirtd` there"
        troubles.append(f"the hypervisor does not answer on {whose}, where no new VM goes: {look}")
    if answer.unknown:
        troubles.append(
            f"nodes know {several(answer.unknown, 'thing')} better than the records: `cairn cluster adopt` lists them"
        )
    if not answer.nodes_ready:
        troubles.append("no node is ready")
    return troubles


def sentence(answer: GetClusterStatusResponse) -> str:
    """Return what matters most, first what is wrong."""
    if troubles := troubles_of(answer):
        return "; ".join(troubles)
    return f"healthy: {several(answer.nodes_ready, 'node')} ready, {answer.vms_running} of {several(answer.vms, 'VM')} running"
