"""Subnets: layer-2 segments of a VPC."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from cairn.controller.api import nouns, resolution, validation
from cairn.controller.api.authorise import caller_of
from cairn.controller.api.core import Core
from cairn.controller.api.decision import Decided
from cairn.controller.api.erasure import Erasure
from cairn.controller.api.masks import UpdateRules
from cairn.controller.api.objects import begin, looked_up, updated
from cairn.controller.api.vnis import claim_vni, release_vni
from cairn.controller.model.owners import owner
from cairn.controller.model.permits import Caller, name_for, visible
from cairn.controller.store.base import Record, Txn, View
from cairn.controller.words import several
from cairn.proto import kinds
from cairn.proto.errors import BadState
from cairn.proto.v1 import subnet_pb2, subnet_pb2_grpc
from cairn.proto.v1.subnet_pb2 import Subnet

RULES = UpdateRules(mutable=("name", "labels"), immutable=("spec.vpc", "spec.cidr", "spec.cidr_v6", "spec.vni"))


class SubnetService(subnet_pb2_grpc.SubnetServiceServicer):
    """SubnetService of proto/v1/subnet.proto."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._erasure: Erasure[Subnet] = Erasure(core, nouns.SUBNET, in_use, release)

    async def CreateSubnet(self, request: subnet_pb2.CreateSubnetRequest, context: Any) -> Subnet:
        """Make a subnet."""
        return await self._core.mutations.run(
            request, caller_of(context), lambda view, caller: self._create(view, caller, request.subnet)
        )

    def _create(self, view: View, caller: Caller, given: Subnet) -> Decided[Subnet]:
        decided, subnet = begin(view, caller, self._core, nouns.SUBNET, given)
        vpc = looked_up(view, caller, nouns.VPC, subnet.project, given.spec.vpc, "subnet.spec.vpc")
        # One that cannot be read may be in this VPC.
        resolution.refuse_unknown(view, nouns.SUBNET, view.unreadable(kinds.SUBNET))
        siblings = {
            found.name: found.spec.cidr
            for id in view.by(kinds.SUBNET, "vpc", vpc.id)
            if (found := view.get(kinds.SUBNET, id)) is not None
        }
        validation.not_yet("subnet.spec.cidr_v6", given.spec.cidr_v6)
        cidr = validation.subnet_cidr("subnet.spec.cidr", given.spec.cidr, vpc.spec.cidr, siblings)
        subnet.spec.vpc, subnet.spec.cidr = vpc.id, str(cidr)
        subnet.spec.vni = claim_vni(decided.txn, view, subnet.id)
        # Writing the VPC makes two overlapping subnets conflict that are asked for at the same moment.
        decided.txn.check(kinds.VPC, vpc.id, view.revision_of(kinds.VPC, vpc.id)).put(kinds.VPC, vpc.id, vpc)
        decided.txn.create(kinds.SUBNET, subnet.id, subnet)
        return decided

    async def GetSubnet(self, request: subnet_pb2.GetSubnetRequest, context: Any) -> Subnet:
        """Return one."""
        return await self._core.listings.get(caller_of(context), nouns.SUBNET, request)

    async def ListSubnets(self, request: subnet_pb2.ListSubnetsRequest, context: Any) -> subnet_pb2.ListSubnetsResponse:
        """Return a page."""
        return await self._core.listings.list(caller_of(context), nouns.SUBNET, request, subnet_pb2.ListSubnetsResponse)

    async def UpdateSubnet(self, request: subnet_pb2.UpdateSubnetRequest, context: Any) -> Subnet:
        """Change labels."""

        def decide(view: View, caller: Caller) -> Decided[Subnet]:
            decided, _, _ = updated(view, caller, self._core, nouns.SUBNET, request, RULES)
            return decided

        return await self._core.mutations.run(request, caller_of(context), decide)

    async def DeleteSubnet(self, request: subnet_pb2.DeleteSubnetRequest, context: Any) -> Subnet:
        """Remove one that has no port."""
        return await self._erasure.run(request, caller_of(context))

    async def WatchSubnets(
        self, request: subnet_pb2.WatchSubnetsRequest, context: Any
    ) -> AsyncIterator[subnet_pb2.WatchSubnetsResponse]:
        """Follow them."""
        async for response in self._core.watches.watch(
            caller_of(context), nouns.SUBNET, request, subnet_pb2.WatchSubnetsResponse
        ):
            yield response


def in_use(view: View, caller: Caller, record: Record[Subnet]) -> None:
    """Refuse while it has ports. Raises BadState."""
    subnet = record.message
    ports = view.by(kinds.PORT, "subnet", subnet.id)
    if not ports:
        return
    first = view.get(kinds.PORT, ports[0])
    whose = owner(view, first) if first is not None else None
    vm = visible(view, caller, whose.kind, whose.id) if whose is not None and whose.kind is not None else None
    what, how = f"port {name_for(view, caller, kinds.PORT, ports[0])}", "delete it first"
    if vm is not None and vm.HasField("delete_time"):
        what, how = f"VM {vm.name!r}, which is deleted but not erased", f"`cairn vm delete {vm.id} --purge` erases it now"
    elif vm is not None:
        what, how = f"VM {vm.name!r}", "delete it first"
    say = f"subnet {subnet.name!r} still has {several(len(ports), 'port')}, for example of {what}: {how}"
    raise BadState("subnet", subnet.name, say)


def release(txn: Txn, view: View, record: Record[Subnet]) -> None:
    """Give back its name and VNI."""
    subnet = record.message
    resolution.release(txn, view, nouns.SUBNET, subnet.project, subnet.name, subnet.id)
    release_vni(txn, view, subnet.spec.vni, subnet.id)
