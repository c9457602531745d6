"""Who may do what to which record: one question, asked by every read, list, watch and change of the API.

    permits(view, caller, Verb.SEE, vm)        may alice see that VM?
    permits(view, caller, Verb.CREATE, made)   the record as it is going to be

A pure function of the picture, so that a decision and the right to it are of one moment, and a refusal can be explained,
planned and simulated like everything else. Answers today: users and controllers may do all; nodes what concerns themselves;
who holds a join token may join by it; a controller's own parts (Caller.system) all; anybody else nothing. Users' roles in
projects have their place here and nowhere else.

What a caller may not see does not exist for him: it is NOT_FOUND when he names it, and is in no list, watch, count or sentence
he gets. What he may see but not change is PERMISSION_DENIED (controller/api/resolution.py).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final, Self, TypeVar

from cairn.controller.store.base import View
from cairn.proto.kinds import Kind
from cairn.proto.v1.node_pb2 import JoinToken, Node
from google.protobuf.message import Message

M = TypeVar("M", bound=Message)


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls. kind: of certificates "user", "node", "controller" (proto/pki.py: Identity); "join_token"; "system"."""

    kind: str
    id: str

    @classmethod
    def system(cls, component: str) -> Self:
        """Return a part of the controller itself, which acts for nobody. No certificate says that of anybody."""
        return cls("system", component)

    @property
    def uri(self) -> str:
        """Return what tells callers apart, for example "cairn://user/alice"."""
        return f"cairn://{self.kind}/{self.id}"


class Verb(StrEnum):
    """What is done to a record. The values are the first words of the methods' names, but for SEE and USE."""

    # Get, list, watch, explain.
    SEE = "see"
    # Make another object refer to it.
    USE = "use"
    CREATE = "create"
    UPDATE = "update"
    DELETE = "delete"
    UNDELETE = "undelete"
    START = "start"
    STOP = "stop"
    REBOOT = "reboot"
    CONSOLE = "console"
    UPLOAD = "upload"
    CANCEL = "cancel"
    JOIN = "join"
    RENEW = "renew"
    BACKUP = "backup"
    RESTORE = "restore"
    ADOPT = "adopt"
    FORGET = "forget"
    RETIRE = "retire"


_UNRESTRICTED: Final = frozenset({"user", "controller", "system"})
_OF_ITSELF: Final = frozenset({Verb.SEE, Verb.RENEW})


def permits(view: View, caller: Caller, verb: Verb, record: Message) -> bool:
    """Tell whether a caller may do that. record: as stored, or as it is going to be."""
    del view  # bindings of roles will be looked up in it
    if caller.kind in _UNRESTRICTED:
        return True
    if caller.kind == "node":
        return verb in _OF_ITSELF and isinstance(record, Node) and record.id == caller.id
    if caller.kind == "join_token":
        return verb is Verb.JOIN and isinstance(record, JoinToken) and record.id == caller.id
    return False


def permission_of(verb: Verb, record: Message) -> str:
    """Return the name of doing that to such a record, for example "vm.create": what methods name in their .proto."""
    noun = re.sub("(?<!^)(?=[A-Z])", "_", record.DESCRIPTOR.name).lower()
    return f"{noun}.{verb}"


def may_act(caller: Caller) -> bool:
    """Tell whether a caller may do anything that is refused for the state of things: others leave nothing behind."""
    return caller.kind in _UNRESTRICTED


def visible(view: View, caller: Caller, kind: Kind[M], id: str) -> M | None:
    """Return a record the caller may see; None: it is not there, or not for him. For sentences that tell of other objects."""
    found = view.get(kind, id)
    return found if found is not None and permits(view, caller, Verb.SEE, found) else None


def name_for(view: View, caller: Caller, kind: Kind[Any], id: str) -> str:
    """Return what a sentence to the caller calls an object: its name, the id when it is gone, "another's" when not his."""
    found: Any = view.get(kind, id)
    if found is None:
        return id
    return (found.name or id) if permits(view, caller, Verb.SEE, found) else "another's"
