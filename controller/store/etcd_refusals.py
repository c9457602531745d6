"""What etcd means by a refusal: which of the store's errors it is, and whether anything can have happened.

Source of the texts: etcd's api/v3rpc/rpctypes. A name that is not known here is in doubt for a write and passing for a read.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Final

import grpc
import grpc.aio
from cairn.controller.store.base import Corrupt, Forbidden, Full, MemberStatus, Overloaded, Unavailable
from cairn.controller.words import size

_KINDS: Final[tuple[tuple[str, type[Unavailable]], ...]] = (
    ("etcdserver: mvcc: database space exceeded", Full),
    ("etcdserver: corrupt cluster", Corrupt),
    ("etcdserver: too many requests", Overloaded),
)
_FORBIDDEN_CODES: Final = frozenset({grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.UNAUTHENTICATED})
# Refused before anything was proposed, besides those above. A learner serves nothing but what it holds itself.
_REFUSED: Final = (
    "etcdserver: no leader",
    "etcdserver: not capable",
    "etcdserver: rpc not supported for learner",
    "raft proposal dropped",
)
# Trying again at once changes nothing: somebody has to do something first.
LASTING: Final = (Full, Corrupt, Forbidden)
_TOO_LARGE: Final = ("etcdserver: request is too large", "etcdserver: too many operations", "grpc: received message larger")
_ALARM: Final = re.compile(r"memberID:(\d+) alarm:([A-Z]+)")
NOSPACE: Final = "NOSPACE"
REMEDY: Final = (
    "to make room: `etcdctl compact`, `etcdctl defrag`, `etcdctl alarm disarm` "
    '(docs/operations/troubleshooting.md, "The store is full")'
)


def kind_of(error: grpc.aio.AioRpcError) -> type[Unavailable]:
    """Return which error of the store a failed call is."""
    details = error.details() or ""
    if error.code() in _FORBIDDEN_CODES:
        return Forbidden
    return next((kind for phrase, kind in _KINDS if details.startswith(phrase)), Unavailable)


def refused(error: grpc.aio.AioRpcError) -> bool:
    """Tell whether the failure is known to have had no effect."""
    return kind_of(error) is not Unavailable or (error.details() or "").startswith(_REFUSED)


def too_large(error: grpc.aio.AioRpcError) -> bool:
    """Tell whether the request was refused for its size, unread or unproposed."""
    return (error.details() or "").startswith(_TOO_LARGE)


def told(error: grpc.aio.AioRpcError) -> str:
    """Return the failure as a phrase."""
    return f"{error.code().name}: {error.details()}"


def says(error: grpc.aio.AioRpcError, phrase: str) -> bool:
    """Tell whether etcd's text holds a phrase."""
    return phrase in (error.details() or "")


def alarms_of(member: int, errors: Iterable[str]) -> tuple[str, ...]:
    """Return the alarms one member has raised; errors: of a Status, which tells those of all members."""
    found = (alarm for text in errors for alarm in _ALARM.findall(text))
    return tuple(sorted({kind for id, kind in found if int(id) == member}))


def where_full(members: Sequence[MemberStatus]) -> str:
    """Return which members are full, how full, and what to do."""
    full = [member for member in members if NOSPACE in member.alarms]
    places = ", ".join(f"{NOSPACE} on member {member.endpoint}, {sizes(member)}" for member in full)
    return f"{places or NOSPACE}; {REMEDY}"


def sizes(member: MemberStatus) -> str:
    """Return how large a member's file is, of how much, and how much of it is in use."""
    quota = f" of {size(member.quota_bytes)}" if member.quota_bytes else ""
    return f"{size(member.size_bytes)}{quota} ({size(member.used_bytes)} in use)"
