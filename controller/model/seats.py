"""Where ports are, and how the nodes they are on reach each other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from cairn.controller.model.absence import removed
from cairn.controller.model.owners import vm_of
from cairn.controller.model.where import where
from cairn.controller.store.base import View
from cairn.proto import kinds
from cairn.proto.addresses import addresses_of


class Seat(NamedTuple):
    """Where a port is."""

    vpc: str
    node: str


@dataclass(frozen=True, slots=True)
class Transit:
    """How other nodes reach a node's guests; index 0 or no vtep: they cannot."""

    index: int
    vtep: str
    mtu: int


def seat_of(view: View, port: str) -> Seat | None:
    """Return where a port is: of a VM's card, on the VM's node, once it has an address, until the VM was removed there."""
    record, binding = view.get(kinds.PORT, port), view.get(kinds.PORT_BINDING, port)
    if record is None or binding is None or not addresses_of(binding):
        return None
    card_of = vm_of(record)
    vm, node = view.get(kinds.VM, card_of), where(view, card_of).runs_on
    if vm is None or not node:
        return None
    if vm.HasField("delete_time") and removed(view, vm, node):
        return None
    return Seat(binding.vpc or record.spec.vpc, node)


def transit_of(view: View, node: str) -> Transit:
    """Return how a node is reached."""
    record, facts = view.get(kinds.NODE, node), view.get(kinds.NODE_FACTS, node)
    if record is None or facts is None:
        return Transit(0, "", 0)
    return Transit(record.spec.index, facts.vtep, facts.underlay_mtu)
