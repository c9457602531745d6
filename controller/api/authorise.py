"""Who calls, and which methods may be called at all: users all of the API; nodes only their stream and their certificate;
controllers all. What a caller may do to which record is asked where the record is looked up: controller/model/permits.py.

Who calls is said by the caller's certificate (proto/rpc.py: peer_identity), or, where none is asked for, by the API token he
sends along (bearer.py), and by nothing else. Two services are without either: for enrolment the join token is the proof, for
logging in what an identity provider says (logins.py).
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import replace
from typing import Any, Final

from cairn.controller.api.bearer import SAY, Bearers, sent, source_of, stands
from cairn.controller.api.decision import Views
from cairn.controller.model.permits import Caller, permits_anywhere
from cairn.controller.model.veil import Veil, sees_all
from cairn.controller.store.base import View
from cairn.proto.errors import Denied, Invalid, Unauthenticated
from cairn.proto.rpc import alternative_names, peer_identity
from cairn.proto.seams import Clock

PACKAGE: Final = "/cairn.v1."
# In a call's metadata: the id of the request that it is a part of, for the audit alone.
CAUSE: Final = "cairn-cause"
_REQUEST_ID: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
# Methods without a caller's certificate.
OPEN: Final = frozenset(
    {"/cairn.v1.EnrolmentService/JoinNode", "/cairn.v1.LoginService/ShowLogins", "/cairn.v1.LoginService/Login"}
)
# What nodes may call; everything else of ours is for users and controllers.
NODES_ONLY: Final = frozenset({"/cairn.v1.AgentService/Sync"})
# For whoever has a certificate; a token is not made into one.
EVERYONE: Final = frozenset({"/cairn.v1.IdentityService/RenewCertificate"})


class Admitted:
    """A call's context, and who was found to call: what the methods behind the gate are given."""

    def __init__(self, context: Any, caller: Caller) -> None:
        self.context, self.caller = context, caller

    def __getattr__(self, name: str) -> Any:
        return getattr(self.context, name)


def caller_of(context: Any) -> Caller:
    """Return who calls. Raises Unauthenticated."""
    if isinstance(context, Admitted):
        return context.caller
    identity = peer_identity(context)
    return Caller(identity.kind, identity.id)


class Admission:
    """Lets callers in: who they are, and whether they may ask at all."""

    def __init__(self, views: Views, freshen: Callable[[], Awaitable[View]], clock: Clock) -> None:
        self._views, self._freshen, self._clock = views, freshen, clock
        self._bearers = Bearers(views, freshen, clock)

    async def who(self, method: str, context: Any) -> Caller | None:
        """Return who calls, None for open methods. Raises Denied, Unauthenticated, TryAgain.

        method: "/package.Service/Method".
        """
        if method in OPEN:
            return None
        text = sent(context.invocation_metadata())
        if text is None:
            caller = caller_of(context)
        elif alternative_names(context):
            raise Unauthenticated("a certificate and a token came with this call: one of them says who calls")
        else:
            caller = await self._bearers.recognise(text, context.peer())
        _refuse_method(caller, method)
        return replace(caller, address=source_of(context.peer()), cause=_cause(context.invocation_metadata()))

    async def refuse_unless(self, caller: Caller, permission: str) -> None:
        """Refuse who may not do that to anything. Raises Denied, Unauthenticated, TryAgain.

        A refusal is believed only on a view as fresh as the store: what was given a moment ago elsewhere counts.
        """
        if self._may(self._views.view, caller, permission):
            return
        view = await self._freshen()
        if not stands(view, caller, self._clock.now()):
            raise Unauthenticated(SAY)
        if not self._may(view, caller, permission):
            by = f" by token {caller.token}" if caller.token else ""
            say = f"{caller.kind} {caller.id!r} may not do that to anything{by}: no role bound to it has {permission}"
            raise Denied(say)

    def veil(self, caller: Caller) -> Veil | None:
        """Return what is between a caller and what he is answered; None: nothing."""
        view = self._views.view
        return None if sees_all(view, caller) else Veil(view, caller)

    def _may(self, view: View, caller: Caller, permission: str) -> bool:
        return stands(view, caller, self._clock.now()) and permits_anywhere(view, caller, permission)


def _refuse_method(caller: Caller, method: str) -> None:
    """Refuse what is for other kinds of callers. Raises Denied."""
    if caller.kind == "controller" or (method in EVERYONE and not caller.token) or not method.startswith(PACKAGE):
        return
    if caller.kind == "node" and method in NODES_ONLY:
        return
    if caller.kind == "user" and method not in NODES_ONLY | EVERYONE:
        return
    raise Denied(f"{caller.kind} {caller.id!r} may not call {method.rpartition('/')[2]}")


def _cause(metadata: Iterable[Any] | None) -> str:
    """Return the request that a call says it is a part of. Raises Invalid."""
    said = next((str(value) for key, value in metadata or () if key == CAUSE), "")
    if said and not _REQUEST_ID.fullmatch(said):
        raise Invalid(CAUSE, "must be the id of a request: a UUID in lower case")
    return said
