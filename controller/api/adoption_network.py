"""Networks that nodes have and the store does not know: made again with the VM that has a card there (docs/decisions/0034).

A node tells with a guest of the networks of its cards: identifiers, addresses, and the VPC's name, as guests are called by it.
A subnet's name no node knows: it goes by its id. What was given to somebody else since the restore is a refusal that names him:
nothing that somebody has by now is taken from him.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from cairn.controller.api import nouns, validation
from cairn.controller.api.nouns import Noun
from cairn.controller.api.vnis import VNI_MAX, VNI_MIN, vni_key
from cairn.controller.store.base import Txn, View
from cairn.proto import kinds
from cairn.proto.errors import BadState, Invalid
from cairn.proto.ids import GUEST_DOMAIN
from cairn.proto.v1.agent_pb2 import DesiredNetwork, DesiredSubnet
from cairn.proto.v1.subnet_pb2 import Subnet
from cairn.proto.v1.vpc_pb2 import VniClaim, Vpc
from google.protobuf.timestamp_pb2 import Timestamp

# Claims a name for an object: (noun, project, wanted, id) -> the name it got.
Name = Callable[[Noun[Any], str, str, str], str]


class AdoptedNetworks:
    """The networks that come with one VM. txn: of "api"."""

    def __init__(self, txn: Txn, view: View, told: Iterable[DesiredNetwork], name: Name, now: Timestamp) -> None:
        """told: as the VM's node told of it."""
        self._txn, self._view, self._name, self._now = txn, view, name, now
        self._told = {subnet.id: (network, subnet) for network in told for subnet in network.subnets}
        self._vpcs: dict[str, Vpc] = {}
        self._subnets: dict[str, Subnet] = {}

    def subnet(self, vm: str, project: str, id: str) -> Subnet:
        """Return the subnet of a card, made again with its VPC where the store lacks it. vm: its name. Raises BadState."""
        record = self._view.record(kinds.SUBNET, id)
        if record is not None and not record.message.HasField("delete_time"):
            self._txn.check(kinds.SUBNET, id, record.mod_revision)
            return record.message
        if id in self._subnets:
            return self._subnets[id]
        if record is not None or id not in self._told:
            say = f"it has a card in subnet {id}, which is not there, and its node does not know how that was made"
            raise BadState("vm", vm, f"{say}: have the VM removed with `cairn node forget`, and make a new one of its volumes")
        network, given = self._told[id]
        vpc = self._vpc(vm, project, network)
        self._subnets[id] = self._made(vm, vpc, given)
        return self._subnets[id]

    def _vpc(self, vm: str, project: str, given: DesiredNetwork) -> Vpc:
        """Return a VPC, made again where the store does not know it."""
        id = given.vpc
        if id in self._vpcs:
            return self._vpcs[id]
        record = self._view.record(kinds.VPC, id)
        if record is not None:
            # Written, so that its subnets cannot come to overlap at this moment.
            self._txn.check(kinds.VPC, id, record.mod_revision).put(kinds.VPC, id, record.message)
            self._vpcs[id] = record.message
            return record.message
        vpc = Vpc(id=id, project=project, create_time=self._now, update_time=self._now)
        vpc.spec.cidr = self._valid(vm, lambda: str(validation.vpc_cidr("vpc.spec.cidr", given.cidr)))
        vpc.spec.vni = self._vni(vm, given.transit_vni, f"VPC {id}", id)
        called = given.domain.removesuffix(f".{GUEST_DOMAIN}")
        vpc.name = self._name(nouns.VPC, project, called if validation.NAME.fullmatch(called) else id, id)
        self._txn.create(kinds.VPC, id, vpc)
        self._vpcs[id] = vpc
        return vpc

    def _made(self, vm: str, vpc: Vpc, given: DesiredSubnet) -> Subnet:
        known = (self._view.get(kinds.SUBNET, each) for each in self._view.by(kinds.SUBNET, "vpc", vpc.id))
        siblings = {each.name: each.spec.cidr for each in (*known, *self._subnets.values()) if each and each.spec.vpc == vpc.id}
        cidr = self._valid(vm, lambda: validation.subnet_cidr(f"subnet {given.id}", given.cidr, vpc.spec.cidr, siblings))
        subnet = Subnet(id=given.id, project=vpc.project, create_time=self._now, update_time=self._now)
        subnet.spec.vpc, subnet.spec.cidr = vpc.id, str(cidr)
        subnet.spec.vni = self._vni(vm, given.vni, f"subnet {given.id}", given.id)
        subnet.name = self._name(nouns.SUBNET, subnet.project, given.id, given.id)
        self._txn.create(kinds.SUBNET, given.id, subnet)
        return subnet

    def _vni(self, vm: str, vni: int, what: str, holder: str) -> int:
        """Claim the identifier that guests' frames carry, and no other. Raises BadState: another network has it by now."""
        if not VNI_MIN <= vni <= VNI_MAX:
            raise BadState("vm", vm, f"its {what} had VNI {vni}, which is not between {VNI_MIN} and {VNI_MAX}")
        key = vni_key(vni)
        held = self._view.get(kinds.VNI, key)
        if held is not None and held.holder != holder:
            raise BadState(
                "vm", vm, f"its {what} had VNI {vni}, which is that of {self._called(held.holder)} by now: delete that"
            )
        claim = VniClaim(vni=vni, holder=holder)
        self._txn.check(kinds.VNI, key, self._view.revision_of(kinds.VNI, key)).put(kinds.VNI, key, claim)
        return vni

    def _called(self, id: str) -> str:
        for noun in (nouns.VPC, nouns.SUBNET):
            record: Any = self._view.get(noun.kind, id)
            if record is not None:
                return f"{noun.title} {record.name!r}"
        return id

    def _valid(self, vm: str, check: Callable[[], Any]) -> Any:
        try:
            return check()
        except Invalid as error:
            say = f"its network cannot be made again: {error}"
            raise BadState("vm", vm, f"{say}; delete what was made in its place, or have the VM removed") from error
