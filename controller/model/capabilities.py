"""What a node's agent knows, and so what it may be sent and what may be placed there."""

from __future__ import annotations

from collections.abc import Iterable

from cairn.controller.model.nodes import node_name
from cairn.controller.store.base import View
from cairn.proto import kinds
from cairn.proto.capabilities import BEFORE_CAPABILITIES, needed, volume_type
from cairn.proto.v1.agent_pb2 import Desired


def capabilities(view: View, node: str) -> frozenset[str]:
    """Return what a connected node's agent knows; one that says nothing is of an older release. Not connected: none."""
    session = view.get(kinds.NODE_SESSION, node)
    if session is None:
        return frozenset()
    return frozenset(session.capabilities) or BEFORE_CAPABILITIES


def knows(view: View, node: str, capability: str) -> bool:
    """Tell whether a connected node's agent knows something."""
    return capability in capabilities(view, node)


def vm_needs(view: View, vm: str) -> frozenset[str]:
    """Return what the agent of a VM's node must know because of its volumes."""
    volumes = (view.get(kinds.VOLUME, id) for id in view.by(kinds.VOLUME, "vm", vm))
    return frozenset(volume_type(volume.spec.type) for volume in volumes if volume is not None)


def unknown_there(view: View, node: str, needs: Iterable[str]) -> str:
    """Return why a connected node cannot be told something, as a sentence; empty: it can, or is not connected."""
    session = view.get(kinds.NODE_SESSION, node)
    missing = sorted(set(needs) - capabilities(view, node)) if session is not None else []
    if session is None or not missing:
        return ""
    release = f" (release {session.agent_version})" if session.agent_version else ""
    return f"the agent of {node_name(view, node)}{release} does not know {', '.join(missing)}: upgrade it"


def lacking(view: View, node: str, object: Desired) -> list[str]:
    """Return what a connected node's agent would have to know to be sent an object, and does not; not connected: nothing.

    Nothing is sent to a node that is not connected; what its agent knows is told when it connects.
    """
    if view.get(kinds.NODE_SESSION, node) is None:
        return []
    return sorted(needed(object) - capabilities(view, node))
