"""The last administrator stays: no change of users, bindings or roles may leave a cluster that had one with none.

The first administrator's certificate would still open the door (model/authority.py); it is for emergencies, not for every day.
"""

from __future__ import annotations

from collections.abc import Iterator

from cairn.controller.model.roles import ADMINISTRATOR, builtin_id
from cairn.controller.store.base import Txn, View
from cairn.proto import kinds
from cairn.proto.errors import BadState
from cairn.proto.v1.binding_pb2 import Subject


def administrators(view: View) -> Iterator[tuple[str, str]]:
    """Yield (binding, user) of everybody who is let in and has all permissions everywhere."""
    for id in view.by(kinds.BINDING, "role", builtin_id(ADMINISTRATOR)):
        binding = view.get(kinds.BINDING, id)
        if binding is None or binding.project or binding.spec.object:
            continue
        for user in _meant(view, binding.spec.subject):
            found = view.get(kinds.USER, user)
            if found is not None and not found.spec.disabled:
                yield id, user


def _meant(view: View, subject: Subject) -> list[str]:
    if subject.HasField("user"):
        return [subject.user]
    return view.by(kinds.USER, "group", subject.group) if subject.HasField("group") else sorted(view.ids(kinds.USER))


def keep_one(view: View, txn: Txn, what: str) -> None:
    """Refuse to remove the last administrator; else have the transaction stand on one that stays. Raises BadState."""
    if next(administrators(view), None) is None:
        return
    stays = next(administrators(view.fork(txn)), None)
    if stays is None:
        raise BadState("binding", ADMINISTRATOR, f"{what} is the last administrator: have another one first")
    for kind, id in zip((kinds.BINDING, kinds.USER), stays, strict=True):
        if kind.key(id) not in txn.puts:
            # Two who remove each other at the same moment would both be right.
            txn.check(kind, id, view.revision_of(kind, id))
