"""What those who may not see nodes are told: the same, without what is physical.

Which node something is on, what others have there, how much room is left: facts of the cluster, for those who may see nodes in
all of it. Fields that the .proto calls physical are cleared; in sentences nodes are called "a node"; why a VM fits nowhere is
said without saying by how much. So are counts of, and projects of others that something is shared with, for those who may
not see them. Done to answers and refusals as they leave (controller/api/interceptor.py), so that no method can forget it.
Rejected: projections that know who looks (each of fifty sentences is a place to forget it).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final, TypeVar

from cairn.controller.model.authority import Authority
from cairn.controller.model.permits import Caller, authority_of, is_root, sees_project
from cairn.controller.model.roles import PERMISSIONS
from cairn.controller.model.where import explained, reason, where
from cairn.controller.store.base import View
from cairn.proto import kinds
from cairn.proto.ids import LOCAL_POOL
from cairn.proto.kinds import AnyKind
from cairn.proto.v1 import access_pb2
from cairn.proto.v1.audit_pb2 import Audit
from cairn.proto.v1.common_pb2 import Decision
from cairn.proto.v1.event_pb2 import Event
from cairn.proto.v1.project_pb2 import Project, Sharing
from cairn.proto.v1.vm_pb2 import Vm
from cairn.proto.v1.volume_pb2 import VolumeStatus
from google.protobuf.descriptor import Descriptor
from google.protobuf.message import Message

M = TypeVar("M", bound=Message)

SEES_NODES: Final = "node.see"
_SEES_ALL: Final = frozenset(each for each in PERMISSIONS if each.endswith(".see"))
_SENTENCES: Final = frozenset({"say", "message", "error", "details"})
_WORD: Final = re.compile(r"[\w-]+")
_A_NODE: Final = "a node"
_SEVERAL: Final = re.compile(rf"(?:node )?{_A_NODE}(?P<more>(?:, | and |, and )(?:node )?{_A_NODE})*")
_INDEX: Final = re.compile(r"\[\d+\]")
_SHARED: Final = "sharing.projects"
_PLACED: Final = f"placed on {_A_NODE}"
# Events whose sentence is a decision's.
_PLACING: Final = {
    "Placed": _PLACED,
    "CannotPlace": "no node fits it now",
    "Resized": "resized",
    "CannotResize": "its node has no room for that now",
}
# What a project says of how much is in it: field -> permission to see those.
_COUNTS: Final = {"vms": "vm.see", "volumes": "volume.see", "images": "image.see", "vpcs": "vpc.see"}


@dataclass(frozen=True, slots=True)
class Parts:
    """Of one type of message: fields to clear, those that are sentences, lists of them, and parts of messages in it, by field.

    special: what is done to such a message besides.
    """

    physical: tuple[str, ...]
    sentences: tuple[str, ...]
    several: tuple[str, ...]
    one_inner: tuple[tuple[str, Parts], ...]
    inner: tuple[tuple[str, Parts], ...]
    special: Callable[[Veil, Any], None] | None

    @property
    def matter(self) -> bool:
        """Tell whether anything in it is looked at."""
        return bool(self.physical or self.sentences or self.several or self.one_inner or self.inner or self.special)


@lru_cache(maxsize=512)
def parts_of(descriptor: Descriptor) -> Parts:
    """Return what of a type of message is looked at."""
    physical = [field.name for field in descriptor.fields if _is_physical(field)]
    texts = [f for f in descriptor.fields if f.type == f.TYPE_STRING and f.name in _SENTENCES and not _is_physical(f)]
    inner = [
        (field, parts)
        for field in descriptor.fields
        if field.message_type is not None
        and not _is_physical(field)
        and not field.message_type.GetOptions().map_entry
        and (parts := parts_of(field.message_type)).matter
    ]
    return Parts(
        tuple(physical),
        tuple(field.name for field in texts if not field.is_repeated),
        tuple(field.name for field in texts if field.is_repeated),
        tuple((field.name, parts) for field, parts in inner if not field.is_repeated),
        tuple((field.name, parts) for field, parts in inner if field.is_repeated),
        _BY_TYPE.get(descriptor.full_name),
    )


def _is_physical(field: Any) -> bool:
    return bool(field.GetOptions().Extensions[access_pb2.physical])


def covered(descriptor: Descriptor, path: str) -> bool:
    """Tell whether what a path leads to is changed for those who may not see nodes. Unknown paths are not."""
    for name in path.split("."):
        field = descriptor.fields_by_name.get(name)
        if field is None:
            return False
        if _is_physical(field) or name in _SENTENCES or (descriptor, name) == (VolumeStatus.DESCRIPTOR, "pool"):
            return True
        if field.message_type is None:
            return False
        descriptor = field.message_type
    return False


def sees_all(view: View, caller: Caller) -> bool:
    """Tell whether a caller is shown everything as it is."""
    return caller.kind != "user" or is_root(caller) or authority_of(view, caller).everywhere >= _SEES_ALL


def sees_nodes(view: View, caller: Caller) -> bool:
    """Tell whether a caller is told of machines."""
    return caller.kind != "user" or is_root(caller) or SEES_NODES in authority_of(view, caller).everywhere


class Veil:
    """One caller's, on one picture."""

    def __init__(self, view: View, caller: Caller) -> None:
        self._view, self._caller = view, caller
        self._of: Authority = authority_of(view, caller)
        self._nodes = sees_nodes(view, caller)
        self._told: dict[str, str] = {}
        self._names: frozenset[str] = view.recall("names of nodes", (kinds.NODE,), lambda: _names(view))

    def over(self, message: M) -> M:
        """Return a message as its caller is shown it."""
        shown = type(message)()
        shown.CopyFrom(message)
        self._cover(shown, parts_of(shown.DESCRIPTOR))
        return shown

    def sentence(self, text: str) -> str:
        """Return a sentence without names of nodes. Many are said of one object after the other."""
        if self._nodes:
            return text
        told = self._told.get(text)
        if told is None:
            told = self._told[text] = self._reworded(text)
        return told

    def _reworded(self, text: str) -> str:
        if self._names.isdisjoint(_WORD.findall(text)):
            return text
        without = _WORD.sub(lambda found: _A_NODE if found[0] in self._names else found[0], text)
        return _SEVERAL.sub(lambda found: "several nodes" if found["more"] else _A_NODE, without)

    def _cover(self, message: Any, parts: Parts) -> None:
        if parts.special is not None:
            parts.special(self, message)
        for name in parts.physical if not self._nodes else ():
            message.ClearField(name)
        for name in parts.sentences:
            text = getattr(message, name)
            if text and (without := self.sentence(text)) != text:
                setattr(message, name, without)
        for name in parts.several:
            texts = getattr(message, name)
            texts[:] = [self.sentence(each) for each in texts]
        for name, inner in parts.one_inner:
            if message.HasField(name):
                self._cover(getattr(message, name), inner)
        for name, inner in parts.inner:
            for each in getattr(message, name):
                self._cover(each, inner)

    def _vm(self, vm: Vm) -> None:
        """Why it is where it is, or nowhere, tells what others have."""
        why = "" if self._nodes else reason(self._view, vm.id)
        if not why:
            return
        placed = bool(where(self._view, vm.id).owner)
        plain = _PLACED if placed else plainly(explained(self._view, vm.id, None) or Decision())
        vm.status.say = vm.status.say.replace(why, plain)
        for condition in vm.status.conditions:
            condition.message = condition.message.replace(why, plain)

    def _decision(self, decision: Decision) -> None:
        if not self._nodes:
            decision.say = plainly(decision)
            decision.ClearField("considered")
            for each in decision.filters:
                each.ClearField("refused")

    def _event(self, event: Event) -> None:
        if not self._nodes and event.reason in _PLACING:
            event.message = _PLACING[event.reason]

    def _volume(self, status: VolumeStatus) -> None:
        if not self._nodes and status.pool.startswith(f"{LOCAL_POOL}/"):
            status.pool = LOCAL_POOL

    def _project(self, project: Any) -> None:
        for field, permission in _COUNTS.items():
            if not self._of.allows(permission, project.id, ""):
                project.status.ClearField(field)

    def _audit(self, audit: Audit) -> None:
        """What was changed of nodes, and with whom of others something was shared, is not told field by field either."""
        told = Audit()
        told.changes.extend(each for each in audit.changes if not self._hides(each.object or audit.object, each.field))
        audit.ClearField("changes")
        audit.changes.extend(told.changes)

    def _hides(self, object: str, field: str) -> bool:
        kind: AnyKind | None = kinds.BY_NAME.get(object.partition("/")[0])
        path = _INDEX.sub("", field)
        if kind is None or path.startswith(_SHARED):
            return True
        return not self._nodes and covered(kind.message.DESCRIPTOR, path)

    def _sharing(self, sharing: Sharing) -> None:
        """Whom else something is shared with, others need not know."""
        sharing.projects[:] = [id for id in sharing.projects if sees_project(self._view, self._caller, id)]


def plainly(decision: Decision) -> str:
    """Return why a VM is where it is, or nowhere, in a sentence that tells nothing of any node."""
    if decision.node:
        return _PLACED
    lacking = [each.name for each in decision.filters if each.refused]
    return "no node fits it now" + (f": {', '.join(lacking)}" if lacking else "")


def _names(view: View) -> frozenset[str]:
    return frozenset(_called(view.all(kinds.NODE)))


def _called(nodes: Iterable[Any]) -> Iterable[str]:
    for node in nodes:
        yield node.id
        yield node.name


_BY_TYPE: Final[dict[str, Any]] = {
    Vm.DESCRIPTOR.full_name: Veil._vm,
    Decision.DESCRIPTOR.full_name: Veil._decision,
    Event.DESCRIPTOR.full_name: Veil._event,
    VolumeStatus.DESCRIPTOR.full_name: Veil._volume,
    Project.DESCRIPTOR.full_name: Veil._project,
    Sharing.DESCRIPTOR.full_name: Veil._sharing,
    Audit.DESCRIPTOR.full_name: Veil._audit,
}
