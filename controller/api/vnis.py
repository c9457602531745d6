"""VXLAN network identifiers (RFC 7348: 24 bits): one per subnet and one per VPC for its transit, never shared."""

from __future__ import annotations

from typing import Final

from cairn.controller.store.base import Txn, View
from cairn.proto import kinds
from cairn.proto.errors import Exhausted
from cairn.proto.v1.vpc_pb2 import VniClaim

# Lower ones are left to what else may tunnel on the same underlay.
VNI_MIN: Final = 4096
VNI_MAX: Final = 2**24 - 1


def vni_key(vni: int) -> str:
    """Return the id of a claim: decimal, 8 digits, so that ids sort as numbers."""
    return f"{vni:08d}"


def claim_vni(txn: Txn, view: View, holder: str) -> int:
    """Claim the lowest free identifier for an object. Raises Exhausted. Two who choose the same conflict, one decides again."""
    taken = {int(id) for id in view.ids(kinds.VNI)}
    # Guests that no record speaks of use some: their networks are to be made again with them.
    taken |= {int(vni) for vni in view.values(kinds.UNKNOWN, "vni")}
    vni = next((vni for vni in range(VNI_MIN, VNI_MAX + 1) if vni not in taken), None)
    if vni is None:
        raise Exhausted("vni", f"all {VNI_MAX - VNI_MIN + 1} VXLAN identifiers are in use: delete a subnet or VPC")
    txn.create(kinds.VNI, vni_key(vni), VniClaim(vni=vni, holder=holder))
    return vni


def release_vni(txn: Txn, view: View, vni: int, holder: str) -> None:
    """Give an identifier back, when this object holds it."""
    key = vni_key(vni)
    claim = view.get(kinds.VNI, key)
    if claim is not None and claim.holder == holder:
        # Checked: who takes it in the same commit stands on that.
        txn.check(kinds.VNI, key, view.revision_of(kinds.VNI, key)).delete(kinds.VNI, key)
