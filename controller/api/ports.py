"""Ports: network cards' places in subnets. A VM's are made and removed with it; others only reserve an address."""

from __future__ import annotations

from collections.abc import AsyncIterator
from ipaddress import IPv4Network
from typing import Any

from cairn.controller.api import nouns, resolution, validation
from cairn.controller.api.authorise import caller_of
from cairn.controller.api.core import Core
from cairn.controller.api.decision import Decided
from cairn.controller.api.masks import UpdateRules
from cairn.controller.api.objects import addressed, begin, looked_up, updated
from cairn.controller.model.owners import owner, vm_of
from cairn.controller.model.permits import Caller, Verb, name_for, visible
from cairn.controller.store.base import Txn, View
from cairn.proto import kinds
from cairn.proto.addresses import addresses_of, claim_key, set_addresses
from cairn.proto.errors import BadState, Exhausted, Invalid
from cairn.proto.ids import mac_of
from cairn.proto.owners import owner_of
from cairn.proto.v1 import port_pb2, port_pb2_grpc
from cairn.proto.v1.port_pb2 import Port
from cairn.proto.v1.subnet_pb2 import Subnet

RULES = UpdateRules(
    mutable=("name", "labels"),
    immutable=(
        "spec.vpc", "spec.subnet", "spec.vm", "spec.owner", "spec.address", "spec.addresses", "spec.mac",
    ),
)  # fmt: skip


class PortService(port_pb2_grpc.PortServiceServicer):
    """PortService of proto/v1/port.proto."""

    def __init__(self, core: Core) -> None:
        self._core = core

    async def CreatePort(self, request: port_pb2.CreatePortRequest, context: Any) -> Port:
        """Reserve an address."""
        return await self._core.mutations.run(
            request, caller_of(context), lambda view, caller: self._create(view, caller, request.port)
        )

    def _create(self, view: View, caller: Caller, given: Port) -> Decided[Port]:
        decided, port = begin(view, caller, self._core, nouns.PORT, given)
        if owner_of(given).id or owner_of(given).kind:
            field = "port.spec.owner" if given.spec.HasField("owner") else "port.spec.vm"
            raise Invalid(field, "a VM's ports are made with the VM")
        subnet = looked_up(view, caller, nouns.SUBNET, port.project, given.spec.subnet, "port.spec.subnet")
        fill(view, caller, decided.txn, port, subnet, validation.addresses("port.spec", given.spec))
        room(view, subnet, 1)
        decided.txn.create(kinds.PORT, port.id, port)
        return decided

    async def GetPort(self, request: port_pb2.GetPortRequest, context: Any) -> Port:
        """Return one."""
        return await self._core.listings.get(caller_of(context), nouns.PORT, request)

    async def ListPorts(self, request: port_pb2.ListPortsRequest, context: Any) -> port_pb2.ListPortsResponse:
        """Return a page."""
        return await self._core.listings.list(caller_of(context), nouns.PORT, request, port_pb2.ListPortsResponse)

    async def UpdatePort(self, request: port_pb2.UpdatePortRequest, context: Any) -> Port:
        """Change labels."""

        def decide(view: View, caller: Caller) -> Decided[Port]:
            decided, _, _ = updated(view, caller, self._core, nouns.PORT, request, RULES)
            return decided

        return await self._core.mutations.run(request, caller_of(context), decide)

    async def DeletePort(self, request: port_pb2.DeletePortRequest, context: Any) -> Port:
        """Give an address back."""
        return await self._core.mutations.run(
            request, caller_of(context), lambda view, caller: self._delete(view, caller, request)
        )

    @staticmethod
    def _delete(view: View, caller: Caller, request: port_pb2.DeletePortRequest) -> Decided[Port]:
        record = addressed(view, caller, nouns.PORT, request, verb=Verb.DELETE)
        port: Port = record.message
        resolution.check_etag("etag", record, request.etag, required=False, title="port")
        whose = owner(view, port)
        if whose is not None:
            name = name_for(view, caller, whose.kind, whose.id) if whose.kind is not None else whose.id
            of = f"is a card of VM {name!r}" if vm_of(port) else f"belongs to {whose.title} {name!r}"
            raise BadState("port", port.name, f"port {port.name!r} {of} and goes with it")
        txn = Txn("api").check(kinds.PORT, port.id, record.mod_revision).delete(kinds.PORT, port.id)
        resolution.release(txn, view, nouns.PORT, port.project, port.name, port.id)
        last = nouns.PORT.project(view, record)
        said = [("Deleted", f"port {port.name} was deleted")]
        return Decided(txn, nouns.PORT, port.id, port.name, port.project, erased=last, events=said)

    async def WatchPorts(self, request: port_pb2.WatchPortsRequest, context: Any) -> AsyncIterator[port_pb2.WatchPortsResponse]:
        """Follow them."""
        async for response in self._core.watches.watch(caller_of(context), nouns.PORT, request, port_pb2.WatchPortsResponse):
            yield response


def fill(view: View, caller: Caller, txn: Txn, port: Port, subnet: Subnet, asked: validation.Asked) -> None:
    """Complete a new port's spec and add the checks it depends on. Raises Invalid, BadState."""
    port.spec.subnet, port.spec.vpc, port.spec.mac = subnet.id, subnet.spec.vpc, mac_of(port.id)
    txn.check(kinds.SUBNET, subnet.id, view.revision_of(kinds.SUBNET, subnet.id))
    if subnet.project != port.project:
        # It may be shared no more at this moment.
        txn.check(kinds.VPC, subnet.spec.vpc, view.revision_of(kinds.VPC, subnet.spec.vpc))
    if not asked.address:
        return
    field, wanted = asked.field, str(validation.address(asked.field, asked.address, subnet.spec.cidr))
    key = claim_key(subnet.id, wanted)
    claim = view.get(kinds.ADDRESS, key)
    holder = claim.port if claim is not None else _asked_for(view, subnet, wanted)
    if holder:
        who = _called(view, caller, holder)
        raise BadState("address", wanted, f"{field}: {wanted} in subnet {subnet.name!r} is taken by {who}")
    # Writing the subnet makes two ports conflict that ask for one address at the same moment.
    txn.check(kinds.ADDRESS, key, 0).put(kinds.SUBNET, subnet.id, subnet)
    set_addresses(port.spec, (wanted,))


def _called(view: View, caller: Caller, id: str) -> str:
    """Return what a sentence to the caller calls a port: by whose it is, if he may know."""
    port = view.get(kinds.PORT, id)
    whose = owner(view, port) if port is not None else None
    seen = visible(view, caller, whose.kind, whose.id) if whose is not None and whose.kind is not None else None
    if whose is not None and seen is not None:
        return f"{whose.title} {seen.name!r}"
    return f"port {name_for(view, caller, kinds.PORT, id)}"


def _asked_for(view: View, subnet: Subnet, address: str) -> str:
    """Return the port that asks for an address and has not got it yet, or ""."""
    for id in view.by(kinds.PORT, "subnet", subnet.id):
        port = view.get(kinds.PORT, id)
        if port is not None and address in addresses_of(port.spec):
            return id
    return ""


def room(view: View, subnet: Subnet, wanted: int) -> None:
    """Refuse more ports than a subnet has addresses for. Raises Exhausted."""
    total = IPv4Network(subnet.spec.cidr).num_addresses - 3
    used = view.count_by(kinds.PORT, "subnet", subnet.id)
    if used + wanted > total:
        have = f"subnet {subnet.name!r} has {total - used} free of {total} addresses, {wanted} wanted"
        say = f"{have}: use a larger subnet or delete ports"
        raise Exhausted(f"subnet/{subnet.name}/addresses", say)
