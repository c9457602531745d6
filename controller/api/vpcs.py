"""VPCs: address spaces of their own."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from cairn.controller.api import nouns, shared_names, sharing, validation
from cairn.controller.api.authorise import caller_of
from cairn.controller.api.core import Core
from cairn.controller.api.decision import Decided
from cairn.controller.api.erasure import Erasure
from cairn.controller.api.masks import UpdateRules
from cairn.controller.api.objects import begin, updated
from cairn.controller.api.vnis import claim_vni, release_vni
from cairn.controller.model.permits import Caller, name_for
from cairn.controller.store.base import Record, Txn, View
from cairn.controller.words import several
from cairn.proto import kinds
from cairn.proto.errors import BadState
from cairn.proto.v1 import vpc_pb2, vpc_pb2_grpc
from cairn.proto.v1.vpc_pb2 import Vpc

RULES = UpdateRules(mutable=("name", "labels"), immutable=("spec.cidr", "spec.cidr_v6", "spec.vni"))


class VpcService(vpc_pb2_grpc.VpcServiceServicer):
    """VpcService of proto/v1/vpc.proto."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._erasure: Erasure[Vpc] = Erasure(core, nouns.VPC, in_use, release)

    async def CreateVpc(self, request: vpc_pb2.CreateVpcRequest, context: Any) -> Vpc:
        """Make a VPC."""

        def decide(view: View, caller: Caller) -> Decided[Vpc]:
            decided, vpc = begin(view, caller, self._core, nouns.VPC, request.vpc)
            sharing.refuse_sharing(request.vpc.spec, "vpc")
            validation.not_yet("vpc.spec.cidr_v6", request.vpc.spec.cidr_v6)
            vpc.spec.cidr = str(validation.vpc_cidr("vpc.spec.cidr", request.vpc.spec.cidr))
            vpc.spec.vni = claim_vni(decided.txn, view, vpc.id)
            decided.txn.create(kinds.VPC, vpc.id, vpc)
            return decided

        return await self._core.mutations.run(request, caller_of(context), decide)

    async def GetVpc(self, request: vpc_pb2.GetVpcRequest, context: Any) -> Vpc:
        """Return one."""
        return await self._core.listings.get(caller_of(context), nouns.VPC, request)

    async def ListVpcs(self, request: vpc_pb2.ListVpcsRequest, context: Any) -> vpc_pb2.ListVpcsResponse:
        """Return a page."""
        return await self._core.listings.list(caller_of(context), nouns.VPC, request, vpc_pb2.ListVpcsResponse)

    async def UpdateVpc(self, request: vpc_pb2.UpdateVpcRequest, context: Any) -> Vpc:
        """Change labels."""

        def decide(view: View, caller: Caller) -> Decided[Vpc]:
            decided, _, _ = updated(view, caller, self._core, nouns.VPC, request, RULES)
            return decided

        return await shared_names.run(self._core, request, caller_of(context), decide)

    async def ShareVpc(self, request: vpc_pb2.ShareVpcRequest, context: Any) -> Vpc:
        """Say with whom it is shared."""

        def decide(view: View, caller: Caller) -> Decided[Vpc]:
            return sharing.share(view, caller, self._core, nouns.VPC, request)

        return await shared_names.run(self._core, request, caller_of(context), decide)

    async def DeleteVpc(self, request: vpc_pb2.DeleteVpcRequest, context: Any) -> Vpc:
        """Remove one that has no subnet."""
        return await self._erasure.run(request, caller_of(context))

    async def WatchVpcs(self, request: vpc_pb2.WatchVpcsRequest, context: Any) -> AsyncIterator[vpc_pb2.WatchVpcsResponse]:
        """Follow them."""
        async for response in self._core.watches.watch(caller_of(context), nouns.VPC, request, vpc_pb2.WatchVpcsResponse):
            yield response


def in_use(view: View, caller: Caller, record: Record[Vpc]) -> None:
    """Refuse while it has subnets. Raises BadState."""
    subnets = view.by(kinds.SUBNET, "vpc", record.message.id)
    if subnets:
        name, example = record.message.name, name_for(view, caller, kinds.SUBNET, subnets[0])
        say = f"VPC {name!r} still has {several(len(subnets), 'subnet')}, for example {example!r}: delete them first"
        raise BadState("vpc", name, say)


def release(txn: Txn, view: View, record: Record[Vpc]) -> None:
    """Give back its name and VNI."""
    vpc = record.message
    shared_names.release_names(txn, view, nouns.VPC, vpc)
    release_vni(txn, view, vpc.spec.vni, vpc.id)
