"""Whose is it? The one answer to whom a port belongs. Everybody asks here; nobody assumes that it is a VM's.

    owner(view, port)                Belongs(kinds.VM, "i-0000001a", "web"), or None: nobody's, it only reserves an address
    vm_of(port)                      the VM whose card it is, or "": it is nobody's, or somebody else's
    ports_of(view, kinds.VM, id)     what goes with that VM

A port is where its owner is, goes with it, and cannot be deleted without it. Owners are VMs today; a new kind of owner is an
entry of `OWNERS` and says in model/seats.py where its ports are.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from cairn.controller.store.base import View
from cairn.proto import kinds
from cairn.proto.kinds import AnyKind
from cairn.proto.owners import VM, owner_of
from cairn.proto.v1.port_pb2 import Port

# Kind in a port's record -> kind of record its owner has.
OWNERS: Final[dict[str, AnyKind]] = {VM: kinds.VM}
# How users are told of an owner of that kind.
_TITLES: Final = {VM: "VM"}


class Belongs(NamedTuple):
    """Whose a port is. kind None: of a kind that a newer release knows. name: empty when its record is not there."""

    kind: AnyKind | None
    id: str
    name: str
    title: str


def owner(view: View, port: Port) -> Belongs | None:
    """Return whose a port is; None: nobody's."""
    found = owner_of(port)
    if not found.id:
        return None
    kind = OWNERS.get(found.kind)
    record = view.get(kind, found.id) if kind is not None else None
    return Belongs(kind, found.id, record.name if record is not None else "", _TITLES.get(found.kind, found.kind))


def vm_of(port: Port) -> str:
    """Return the id of the VM whose card it is; empty: no VM's."""
    found = owner_of(port)
    return found.id if found.kind == VM else ""


def hostname_of(view: View, port: str) -> str:
    """Return what the guest behind a card is called in its VPC; "": nothing."""
    record = view.get(kinds.PORT, port)
    vm = view.get(kinds.VM, vm_of(record)) if record is not None else None
    return vm.name if vm is not None else ""


def ports_of(view: View, kind: AnyKind, id: str) -> list[str]:
    """Return the ids of the ports of an owner, sorted."""
    return view.by(kinds.PORT, "owner", f"{kind.name}/{id}")
