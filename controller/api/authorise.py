"""Who calls, and which methods may be called at all: users all of the API; nodes only their stream and their certificate;
controllers all. What a caller may do to which record is asked where the record is looked up: controller/model/permits.py.

The identity comes from the caller's certificate and nothing else (proto/rpc.py: peer_identity). Enrolment is the one service
without one: there the join token is the proof.
"""

from __future__ import annotations

from typing import Any, Final

from cairn.controller.model.permits import Caller
from cairn.proto.errors import Denied
from cairn.proto.pki import Identity
from cairn.proto.rpc import peer_identity

PACKAGE: Final = "/cairn.v1."
# Methods without a caller's certificate.
OPEN: Final = frozenset({"/cairn.v1.EnrolmentService/JoinNode"})
# What nodes may call; everything else of ours is for users and controllers.
NODES_ONLY: Final = frozenset({"/cairn.v1.AgentService/Sync"})
EVERYONE: Final = frozenset({"/cairn.v1.IdentityService/RenewCertificate"})


def authorise(method: str, context: Any) -> Identity | None:
    """Return who calls, None for open methods. method: "/package.Service/Method". Raises Denied, Unauthenticated."""
    if method in OPEN:
        return None
    identity = peer_identity(context)
    if identity.kind == "controller" or method in EVERYONE or not method.startswith(PACKAGE):
        return identity
    if identity.kind == "node" and method in NODES_ONLY:
        return identity
    if identity.kind == "user" and method not in NODES_ONLY:
        return identity
    raise Denied(f"{identity.kind} {identity.id!r} may not call {method.rpartition('/')[2]}")


def caller_of(context: Any) -> Caller:
    """Return who calls. Raises Unauthenticated."""
    identity = peer_identity(context)
    return Caller(identity.kind, identity.id)
