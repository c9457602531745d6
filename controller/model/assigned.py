"""Work that is no VM's, and the node that does it: what reconcilers/assignments.py decided."""

from __future__ import annotations

from typing import Final

from cairn.controller.store.base import View
from cairn.proto import kinds
from cairn.proto.v1.node_pb2 import Assignment

# To administer (make, grow, erase) a volume of a shared pool.
VOLUME_WORK: Final = kinds.VOLUME.name


def work_key(kind: str, id: str) -> str:
    """Return the id of an assignment."""
    return f"{kind}/{id}"


def assignment(view: View, kind: str, id: str) -> Assignment | None:
    """Return who does some work, or None when nobody does yet."""
    return view.get(kinds.ASSIGNMENT, work_key(kind, id))


def assigned_to(view: View, node: str, kind: str) -> list[str]:
    """Return what a node has of a kind of work, by the ids of what it is about, sorted."""
    found = (key.partition("/") for key in view.by(kinds.ASSIGNMENT, "node", node))
    return [id for its_kind, _, id in found if its_kind == kind]
