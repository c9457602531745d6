"""Whose a claimed name is, by the records themselves: what garbage collection and fsck ask of each claim.

    is_held(view, NameClaim(kind="vm", project="prj-red", name="web", id="i-1234abcd"))   # while that VM is called web there

A claim is given back by whoever renames, unlinks or deletes; but not where the claim itself could not be read at that moment,
which must not keep him from it. Then it is found here.
"""

from __future__ import annotations

from hashlib import sha256
from typing import Any, Final

from cairn.controller.model.lifetime import put_away
from cairn.controller.model.sharing import SHAREABLE, places
from cairn.controller.store.base import View
from cairn.proto import kinds
from cairn.proto.kinds import AnyKind
from cairn.proto.subjects import login_key
from cairn.proto.v1.cluster_pb2 import NameClaim
from cairn.proto.v1.user_pb2 import UserLogin

# Stands for the project of what is of none.
CLUSTER_WIDE: Final = "-"
# Claims that are called otherwise than the kind of who holds them.
LOGIN: Final = "login"
NODE_INDEX: Final = "node-index"
_HOLDERS: Final[dict[str, AnyKind]] = {LOGIN: kinds.USER, NODE_INDEX: kinds.NODE}
# Deleted, they can be brought back, and have no name until then; of others a time of deletion says that it has begun.
_PUT_AWAY: Final[tuple[AnyKind, ...]] = (kinds.VM, kinds.VOLUME)
_DIGITS: Final = 32


def login_name(login: UserLogin) -> str:
    """Return what the claim that keeps a subject one user's is called."""
    return sha256(login_key(login).encode()).hexdigest()[:_DIGITS]


def index_name(index: int) -> str:
    """Return what the claim that keeps a node's number unique is called."""
    return f"{index:05d}"


def holder_kind(claim: NameClaim) -> AnyKind | None:
    """Return of which kind a claim's holder is; None: this release knows no such claim."""
    return _HOLDERS.get(claim.kind) or kinds.BY_NAME.get(claim.kind)


def is_held(view: View, claim: NameClaim) -> bool:
    """Tell whether a claim's holder has what is claimed; also True where nobody can tell."""
    kind = holder_kind(claim)
    if kind is None or claim.id in view.unreadable(kind):
        return True
    holder: Any = view.get(kind, claim.id)
    if holder is None:
        return False
    if claim.kind == LOGIN:
        return bool(holder.spec.HasField("login")) and login_name(holder.spec.login) == claim.name
    if claim.kind == NODE_INDEX:
        return index_name(holder.spec.index) == claim.name
    if holder.name != claim.name or (kind in _PUT_AWAY and put_away(view, holder)):
        return False
    return kind not in SHAREABLE or claim.project in (holder.project, *places(holder))
