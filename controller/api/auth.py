"""Who am I, what may I do, and why: answered by the same function that every call is judged by."""

from __future__ import annotations

from typing import Any, Final

from cairn.controller.api import nouns, resolution, selection, validation
from cairn.controller.api.authorise import caller_of
from cairn.controller.api.core import Core
from cairn.controller.api.nouns import Noun
from cairn.controller.model.authority import login_groups, user_called
from cairn.controller.model.permits import (
    Caller,
    authority_of,
    has_own,
    name_for,
    object_key,
    permits_anywhere,
    project_of,
    through,
)
from cairn.controller.model.roles import BUILTIN, PERMISSIONS, expanded
from cairn.controller.store.base import View
from cairn.controller.words import several
from cairn.proto import kinds
from cairn.proto.errors import Denied, Invalid
from cairn.proto.subjects import ROOT
from cairn.proto.v1 import auth_pb2, auth_pb2_grpc
from cairn.proto.v1.binding_pb2 import Binding

_NOUNS: Final[dict[str, Noun[Any]]] = nouns.BY_KIND
# What is of projects; bindings may be to one, and a project is of itself.
_WITHIN: Final = frozenset({*(name for name, noun in _NOUNS.items() if not noun.cluster_wide), "binding", "project"})


class AuthService(auth_pb2_grpc.AuthServiceServicer):
    """AuthService of proto/v1/auth.proto."""

    def __init__(self, core: Core) -> None:
        self._core = core

    async def _asked(self, context: Any) -> tuple[View, Caller]:
        """Return a fresh view, and the user who asks. Raises Denied: others have nothing that could be told of."""
        view, caller = await self._core.mutations.freshen(), caller_of(context)
        if caller.kind != "user" or not permits_anywhere(view, caller, "auth.ask"):
            raise Denied(f"{caller.kind} {caller.id!r} is no user")
        return view, caller

    async def WhoAmI(self, request: auth_pb2.WhoAmIRequest, context: Any) -> auth_pb2.WhoAmIResponse:
        """Say who calls, and what is bound to him."""
        view, caller = await self._asked(context)
        answer = auth_pb2.WhoAmIResponse(name=caller.id)
        if caller.id == ROOT and not caller.token:
            answer.say = "the first administrator, by its certificate: may do everything"
            return answer
        user, token = user_called(view, caller.id), nouns.API_TOKEN.of(view, caller.token)
        if token is not None:
            answer.token.CopyFrom(token)
        if user is not None:
            answer.user = user.id
            logged_in = login_groups(view, token) if token is not None else ()
            answer.groups.extend(dict.fromkeys([*user.spec.groups, *logged_in]))
        answer.bindings.extend(_shown(view, [each.binding for each in authority_of(view, caller).grants]))
        answer.say = (
            f"{several(len(answer.bindings), 'binding')}" if user is not None else "no user of that name may do anything"
        )
        return answer

    async def CheckPermission(self, request: auth_pb2.CheckPermissionRequest, context: Any) -> auth_pb2.CheckPermissionResponse:
        """Say whether somebody may do something, and why."""
        view, caller = await self._asked(context)
        if request.permission not in PERMISSIONS:
            raise Invalid("permission", f"{request.permission!r} is none; they are noun.verb (docs/permissions.md lists all)")
        who = request.user or caller.id
        if request.user and request.user != caller.id:
            resolution.find(view, caller, nouns.USER, "", request.user, field="user")
        message, project, what = _about(view, caller, request)
        # Of himself it is asked by what he asks with: a token gives less than its user has.
        asked = caller if who == caller.id else Caller("user", who)
        of, root = authority_of(view, asked), who == ROOT and not asked.token
        answer = auth_pb2.CheckPermissionResponse()
        if root or has_own(view, asked, request.permission):
            answer.allowed = True
            why = "the first administrator may do everything" if root else "every user may, of what is his own"
            answer.say = f"{who} may {request.permission} {what}: {why}"
            return answer
        object = object_key(message) if message is not None else ""
        reasons = of.reasons(request.permission, project, object)
        if not reasons and message is not None and (shared := through(view, of, request.permission, message)):
            reasons = of.reasons(request.permission, shared, "")
            what = f"{what}, which is shared with project {name_for(view, caller, kinds.PROJECT, shared)}"
        ids = [each.binding for each in reasons]
        answer.bindings.extend(_shown(view, ids))
        answer.allowed = bool(ids)
        answer.say = _say(view, who, request.permission, what, answer.bindings)
        return answer


def _about(view: View, caller: Caller, request: auth_pb2.CheckPermissionRequest) -> tuple[Any, str, str]:
    """Return (record or None, project id, a phrase) of what is asked about. Raises Invalid, NotFound."""
    if request.object:
        kind, _, name = request.object.partition("/")
        validation.one_of("object", kind, sorted(_NOUNS))
        noun = _NOUNS[kind]
        project = "" if noun.cluster_wide else resolution.project_id(view, caller, request.project)
        message = resolution.find(view, caller, noun, project, name, field="object").message
        return message, project_of(message), f"{noun.title} {message.name or message.id}"
    # What is of no project is not his by a role in one.
    within = request.permission.partition(".")[0] in _WITHIN
    if request.project == selection.ALL_PROJECTS or not within:
        return None, "", "everywhere"
    project = resolution.project_id(view, caller, request.project)
    return None, project, f"in project {request.project or nouns.DEFAULT_PROJECT}"


def _shown(view: View, ids: list[str]) -> list[Binding]:
    return [shown for id in dict.fromkeys(ids) if (shown := nouns.BINDING.of(view, id)) is not None]


def _say(view: View, who: str, permission: str, what: str, bindings: Any) -> str:
    if bindings:
        first = bindings[0]
        more = f", and {len(bindings) - 1} more" if len(bindings) > 1 else ""
        return f"{who} may {permission} {what}: {first.status.say} ({first.name}{more})"
    if user_called(view, who) is None:
        return f"{who} may not {permission} {what}: there is no user of that name, or it is disabled"
    fitting = sorted(name for name, (_, patterns) in BUILTIN.items() if permission in expanded(patterns))
    return (
        f"{who} may not {permission} {what}: no role bound to it permits that; of those built in these do: {', '.join(fitting)}"
    )
