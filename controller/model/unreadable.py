"""Records that cannot be decoded: which they are, and what may be done about one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeVar

from cairn.controller.store.base import Txn, Unreadable, View
from cairn.proto import kinds
from cairn.proto.kinds import Kind
from google.protobuf.message import Message

M = TypeVar("M", bound=Message)


def all_unreadable(view: View) -> Iterator[tuple[Kind[Any], str, Unreadable]]:
    """Yield (kind, id, what is known of it) of each, in order."""
    if view.harmed:
        for kind in kinds.ALL:
            for id, found in sorted(view.unreadable(kind).items()):
                yield kind, id, found


def newest_revision(view: View, kind: Kind[M], id: str) -> int:
    """Return the revision of a record, readable or not: for who writes it anew from what it knows without it."""
    found = view.unreadable(kind).get(id)
    return view.revision_of(kind, id) if found is None else found.revision


def touched(view: View, txn: Txn) -> list[str]:
    """Return the records ("vm/i-...") a transaction stands on or writes that cannot be decoded: the store would refuse it."""
    if not view.harmed:
        return []
    keys = txn.checks.keys() | txn.puts.keys() | txn.deletes
    found = (kinds.split(key) for key in sorted(keys))
    return [f"{kind.name}/{id}" for kind, id in found if id in view.unreadable(kind)]
