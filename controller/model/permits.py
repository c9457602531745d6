"""Who may do what to which record: one question, asked by every read, list, watch and change of the API.

    permits(view, caller, Verb.SEE, vm)        may alice see that VM?
    permits(view, caller, Verb.CREATE, made)   the record as it is going to be

A pure function of the picture, so that a decision and the right to it are of one moment, and a refusal can be explained,
planned and simulated like everything else. Users may do what bindings of roles give them (authority.py); nodes what concerns
themselves; who holds a join token may join by it; controllers and their own parts (Caller.system) all; anybody else nothing.

What a caller may not see does not exist for him: it is NOT_FOUND when he names it, and is in no list, watch, count or sentence
he gets. What he may see but not change is PERMISSION_DENIED (controller/api/resolution.py).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from enum import StrEnum
from functools import lru_cache
from typing import Any, Final, Self, TypeVar

from cairn.controller.model import sharing
from cairn.controller.model.authority import Authority, authority, is_lesser, token_of, user_called
from cairn.controller.store.base import View
from cairn.proto import kinds
from cairn.proto.kinds import AnyKind, Kind
from cairn.proto.subjects import ROOT
from cairn.proto.v1.api_token_pb2 import ApiToken
from cairn.proto.v1.node_pb2 import JoinToken, Node
from cairn.proto.v1.project_pb2 import Project
from google.protobuf.descriptor import Descriptor
from google.protobuf.message import Message

M = TypeVar("M", bound=Message)


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls. kind: of certificates "user", "node", "controller" (proto/pki.py: Identity); "join_token"; "login"; "system".

    token: id of the API token that a user asks by; empty: he has a certificate. address: where he asks from, if that is known;
    cause: the request that his is a part of, as he says. Nothing is decided by these two.
    """

    kind: str
    id: str
    token: str = ""
    address: str = field(default="", compare=False)
    cause: str = field(default="", compare=False)

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
    SHARE = "share"
    UPLOAD = "upload"
    CANCEL = "cancel"
    JOIN = "join"
    RENEW = "renew"
    BACKUP = "backup"
    RESTORE = "restore"
    ADOPT = "adopt"
    FORGET = "forget"
    RETIRE = "retire"
    ASK = "ask"
    LOGIN = "login"
    READ = "read"
    VERIFY = "verify"


_UNRESTRICTED: Final = frozenset({"controller", "system"})
# Who may do that to anything may do it to all: what roles there are, and what users are called, whoever binds them must find.
_OF_ALL: Final = frozenset({"role.see", "role.use", "user.use"})
# What every user may: ask about himself, have his certificate renewed, and have tokens of his own.
OWN: Final = frozenset({"auth.ask", "cluster.renew", *(f"api_token.{verb}" for verb in ("see", "create", "update", "delete"))})
# No token makes a certificate. One that gives less than its user has leaves of that himself, and of tokens itself.
_OWN_BY_LESSER_TOKEN: Final = frozenset({"auth.ask", "api_token.see", "api_token.delete"})
_OWN_BY_TOKEN: Final = OWN - {"cluster.renew"}
_OF_ITSELF: Final = frozenset({Verb.SEE, Verb.RENEW})
# Whom a provider vouches for is made a token, and shown it.
_BY_LOGIN: Final = frozenset({Verb.LOGIN, Verb.SEE})


def permits(view: View, caller: Caller, verb: Verb, record: Message) -> bool:
    """Tell whether a caller may do that. record: as stored, or as it is going to be."""
    if caller.kind in _UNRESTRICTED:
        return True
    if caller.kind == "user":
        return _permits_user(view, caller, verb, record)
    if caller.kind == "node":
        return verb in _OF_ITSELF and isinstance(record, Node) and record.id == caller.id
    if caller.kind == "join_token":
        return verb is Verb.JOIN and isinstance(record, JoinToken) and record.id == caller.id
    if caller.kind == "login":
        return verb in _BY_LOGIN and isinstance(record, ApiToken) and record.spec.HasField("login")
    return False


def permission_of(verb: Verb, record: Message) -> str:
    """Return the name of doing that to such a record, for example "vm.create": what methods name in their .proto."""
    return _permission(verb, record.DESCRIPTOR)


@lru_cache(maxsize=1024)
def _permission(verb: Verb, descriptor: Descriptor) -> str:
    return f"{_snake(descriptor.name)}.{verb}"


@lru_cache(maxsize=256)
def _snake(name: str) -> str:
    return re.sub("(?<!^)(?=[A-Z])", "_", name).lower()


def noun_of(record: Message) -> str:
    """Return what permissions call such a record."""
    return _snake(record.DESCRIPTOR.name)


def authority_of(view: View, caller: Caller) -> Authority:
    """Return what a user may do, by what he asks with."""
    return authority(view, caller.id, caller.token)


def is_root(caller: Caller) -> bool:
    """Tell whether it is the first administrator by its certificate, who may do everything."""
    return caller.id == ROOT and not caller.token


def has_own(view: View, caller: Caller, permission: str) -> bool:
    """Tell whether that is a user's own to do, about himself and what is his."""
    if not caller.token:
        return permission in OWN and user_called(view, caller.id) is not None
    token = token_of(view, caller.id, caller.token)
    return token is not None and permission in (_OWN_BY_LESSER_TOKEN if is_lesser(token) else _OWN_BY_TOKEN)


def _is_his(view: View, caller: Caller, record: Any) -> bool:
    """Tell whether what is asked about is the user's own: a token of his; what is nobody's in particular is everybody's."""
    if not isinstance(record, ApiToken):
        return True
    user, token = user_called(view, caller.id), token_of(view, caller.id, caller.token) if caller.token else None
    if token is not None and is_lesser(token):
        return record.id == token.id
    return user is not None and record.spec.user == user.id


def _permits_user(view: View, caller: Caller, verb: Verb, record: Any) -> bool:
    if is_root(caller):
        return True
    of, permission = authority_of(view, caller), permission_of(verb, record)
    # Asked of every record of a list: what is asked first costs least.
    if permission in of.everywhere or permission in of.in_project.get(project_of(record), ()):
        return True
    if of.of_object and permission in of.of_object.get(object_key(record), ()):
        return True
    if permission in _OF_ALL and of.anywhere(permission):
        return True
    if isinstance(record, Project) and verb is Verb.SEE:
        # Whoever has anything in it may call it by its name.
        return any(each.project == record.id for each in of.grants)
    if through(view, of, permission, record):
        return True
    return has_own(view, caller, permission) and _is_his(view, caller, record)


def through(view: View, of: Authority, permission: str, record: Message) -> str:
    """Return the project by which somebody has what is shared with it; empty: there is none."""
    found = sharing.source(view, record) if permission in sharing.PERMISSIONS else None
    if found is None:
        return ""
    _, _, shared = found
    return next((each for each, held in of.in_project.items() if permission in held and sharing.reaches(shared, each)), "")


def witnesses(view: View, caller: Caller, verb: Verb, record: Message) -> tuple[tuple[AnyKind, str], ...]:
    """Return records that a user's right to do that follows from: as they are now, it is his. Empty: it follows from none."""
    if caller.kind != "user" or is_root(caller):
        return ()
    by = _asked_by(view, caller)
    of, permission = authority_of(view, caller), permission_of(verb, record)
    reasons = of.reasons(permission, project_of(record), object_key(record))
    if not reasons and (project := through(view, of, permission, record)):
        found = sharing.source(view, record)
        reasons, by = of.reasons(permission, project, ""), (*by, found[:2]) if found is not None else by
    for each in reasons[:1]:
        return ((kinds.BINDING, each.binding), (kinds.ROLE, each.role), (kinds.USER, each.user), *by)
    user = user_called(view, caller.id)
    return ((kinds.USER, user.id), *by) if user is not None else by


def _asked_by(view: View, caller: Caller) -> tuple[tuple[AnyKind, str], ...]:
    """Return records that what a user asks by follows from."""
    if not caller.token:
        return ()
    token = view.get(kinds.API_TOKEN, caller.token)
    provider = token.spec.login.provider if token is not None else ""
    return ((kinds.API_TOKEN, caller.token), *([(kinds.IDENTITY_PROVIDER, provider)] if provider else []))


def project_of(record: Any) -> str:
    """Return the id of the project that a record is of; empty: of none. A project is of itself."""
    return str(record.id if isinstance(record, Project) else getattr(record, "project", ""))


def object_key(record: Any) -> str:
    """Return what a binding to one object names it: "vm/i-..."."""
    return f"{noun_of(record)}/{getattr(record, 'id', '')}"


def permits_anywhere(view: View, caller: Caller, permission: str) -> bool:
    """Tell whether a user may do that to anything; others are asked of each record alone."""
    if caller.kind != "user" or is_root(caller):
        return True
    return has_own(view, caller, permission) or authority_of(view, caller).anywhere(permission)


def may_act(view: View, caller: Caller) -> bool:
    """Tell whether a caller may do anything that is refused for the state of things: others leave nothing behind."""
    return caller.kind in _UNRESTRICTED or (caller.kind == "user" and bool(authority_of(view, caller).grants))


def visible(view: View, caller: Caller, kind: Kind[M], id: str) -> M | None:
    """Return a record the caller may see; None: it is not there, or not for him. For sentences that tell of other objects."""
    found = view.get(kind, id)
    return found if found is not None and permits(view, caller, Verb.SEE, found) else None


def sees_project(view: View, caller: Caller, id: str) -> bool:
    """Tell whether the project of an id is one that the caller may see, also while its record cannot be read."""
    found = view.get(kinds.PROJECT, id)
    return permits(view, caller, Verb.SEE, found if found is not None else Project(id=id))


def name_for(view: View, caller: Caller, kind: Kind[Any], id: str) -> str:
    """Return what a sentence to the caller calls an object: its name, the id when it is gone, "another's" when not his."""
    found: Any = view.get(kind, id)
    if found is None:
        return id
    return (found.name or id) if permits(view, caller, Verb.SEE, found) else "another's"
