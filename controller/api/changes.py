"""What a transaction changed, field by field, as the audit keeps it: text, bounded, and nothing that is secret.

How far a job is, a record of its own, is told as the job's status.
Bytes are told by a digest: hashes of tokens, and what is sealed, are compared by it and known from it by nobody.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any, Final

from cairn.controller.api import nouns
from cairn.controller.store.base import Txn, View
from cairn.proto import kinds
from cairn.proto.kinds import AnyKind
from cairn.proto.v1.audit_pb2 import Audit
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

# Of one value, and of all changes of one record, in characters.
VALUE_MAX: Final = 200
CHANGES_CHARACTERS_MAX: Final = 4000
# Said by the audit record itself.
_SAID: Final = frozenset({"id", "update_time", "create_time"})
_TOLD: Final = frozenset(noun.kind for noun in nouns.ALL if noun.kind is not kinds.EVENT) | {
    kinds.JOIN_TOKEN, kinds.ERASURE, kinds.CONTROLLER_MEMBER,
}  # fmt: skip
_DIGEST_DIGITS: Final = 16


def digest(value: bytes) -> str:
    """Return what is told of bytes."""
    return f"sha256:{hashlib.sha256(value).hexdigest()[:_DIGEST_DIGITS]}" if value else ""


def fields(message: Message, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield (path, text) of each field that is set."""
    for field, value in message.ListFields():
        name = f"{prefix}{field.name}"
        if not prefix and field.name in _SAID:
            continue
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            yield from ((f"{name}.{key}", str(each)) for key, each in sorted(value.items()))
        elif field.is_repeated:
            for index, each in enumerate(value):
                yield from _field(field, each, f"{name}[{index}]")
        else:
            yield from _field(field, value, name)


def _field(field: FieldDescriptor, value: Any, name: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, Message):
        if hasattr(value, "ToJsonString"):
            yield name, value.ToJsonString()
        else:
            yield from fields(value, f"{name}.")
    elif field.enum_type is not None:
        known = field.enum_type.values_by_number.get(value)
        yield name, known.name if known is not None else str(value)
    else:
        yield name, digest(value) if isinstance(value, bytes) else str(value)


def tell(audit: Audit, view: View, txn: Txn) -> None:
    """Add what a transaction changes of objects and secrets; view: as it was before. What has no room is counted."""
    room = CHANGES_CHARACTERS_MAX
    for key in sorted(txn.puts.keys() | txn.deletes):
        kind, id = kinds.split(key)
        if kind not in _TOLD and kind not in (kinds.SECRET, kinds.JOB_STATE):
            continue
        put = txn.puts.get(key)
        object = "" if (named := object_of(kind, id)) == audit.object else named
        for field, before, after in _differences(kind, view.get(kind, id), put.value if put is not None else None):
            room -= len(object) + len(field) + len(before) + len(after)
            if room < 0:
                audit.changes_left += 1
            else:
                audit.changes.add(object=object, field=field, before=before, after=after)


def object_of(kind: AnyKind, id: str) -> str:
    """Return what a record is called in the audit: "<kind>/<id>"."""
    return f"{(kinds.JOB if kind is kinds.JOB_STATE else kind).name}/{id}"


def _differences(kind: AnyKind, old: Message | None, new: bytes | None) -> Iterator[tuple[str, str, str]]:
    """Yield (field, before, after) of each that differs."""
    if kind is kinds.SECRET:
        yield "", digest(old.SerializeToString(deterministic=True)) if old is not None else "", digest(new or b"")
        return
    prefix = "status." if kind is kinds.JOB_STATE else ""
    before = dict(fields(old, prefix)) if old is not None else {}
    after = dict(fields(kind.message.FromString(new), prefix)) if new is not None else {}
    for field in sorted(before.keys() | after.keys()):
        was, comes = before.get(field, ""), after.get(field, "")
        if was != comes:
            yield field, _bounded(was), _bounded(comes)


def _bounded(text: str) -> str:
    if len(text) <= VALUE_MAX:
        return text
    return f"{text[:VALUE_MAX]}... ({len(text)} characters, {digest(text.encode())})"
