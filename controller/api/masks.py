"""Update masks (AIP-134, AIP-161): which fields of what is given replace those of what is there.

    copied(new, given, ["labels.env", "spec.cpus"], RULES, "vm.")

A path goes as deep as messages do; into a map it goes by key ("labels.env", "spec.node_selector.disk"), into a list not at all.
What is named and not set is cleared. A rule for a field is one for all that is in it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from cairn.proto.errors import Invalid
from google.protobuf.descriptor import Descriptor, FieldDescriptor


@dataclass(frozen=True, slots=True)
class UpdateRules:
    """Which paths an update may name: those it may change, and those that can never be changed."""

    mutable: Sequence[str]
    immutable: Sequence[str]


def copied(new: Any, given: Any, paths: Sequence[str], rules: UpdateRules, prefix: str) -> None:
    """Copy the fields of a mask into `new`. prefix: of the paths, in what is said of them. Raises Invalid."""
    for path in _expanded(given, paths):
        covered = _covered(path, rules.mutable) or _covered(path, rules.immutable)
        if not covered or not _is_path(given.DESCRIPTOR, path.split(".")):
            raise _unknown(path, rules)
        _assign(new, given, path, rules, prefix)


def _expanded(given: Any, paths: Sequence[str]) -> Iterator[str]:
    """Yield single fields: of an empty mask or "*" what is set (AIP-134), of "spec" what is set in it."""
    for path in paths or ["*"]:
        if path == "*" and given.labels:
            yield "labels"
        if path in ("*", "spec"):
            yield from (f"spec.{field.name}" for field, _ in given.spec.ListFields())
        else:
            yield path


def _covered(path: str, rules: Sequence[str]) -> bool:
    return any(path == rule or path.startswith(f"{rule}.") for rule in rules)


def _unknown(path: str, rules: UpdateRules) -> Invalid:
    return Invalid("update_mask", f"{path!r} is not a field that can be set; these are: {', '.join(rules.mutable)}")


def _assign(new: Any, given: Any, path: str, rules: UpdateRules, prefix: str) -> None:
    """Copy one field. An immutable one that would change is refused by name."""
    owner, target, parts = given, new, path.split(".")
    for position, name in enumerate(parts):
        rest = ".".join(parts[position + 1 :])
        if not rest or _is_map(owner.DESCRIPTOR.fields_by_name[name]):
            break
        if not owner.HasField(name) and not target.HasField(name):
            return
        owner, target = getattr(owner, name), getattr(target, name)
    if not _covered(path, rules.mutable):
        if getattr(owner, name) != getattr(target, name):
            raise Invalid(prefix + path, f"cannot be changed after creation; these can: {', '.join(rules.mutable)}")
    elif rest:
        _assign_key(getattr(target, name), getattr(owner, name), rest)
    else:
        _assign_field(target, owner, name)


def _is_path(descriptor: Descriptor, parts: Sequence[str]) -> bool:
    field = descriptor.fields_by_name.get(parts[0])
    if field is None or len(parts) == 1 or _is_map(field):
        return field is not None
    return field.message_type is not None and not field.is_repeated and _is_path(field.message_type, parts[1:])


def _is_map(field: FieldDescriptor) -> bool:
    return field.message_type is not None and field.message_type.GetOptions().map_entry


def _assign_key(target: Any, given: Any, key: str) -> None:
    """Copy one entry of a map of strings."""
    if key in given:
        target[key] = given[key]
    else:
        target.pop(key, None)


def _assign_field(target: Any, given: Any, name: str) -> None:
    """Copy one field of any kind, with its presence."""
    bare: Any = type(given)()
    bare.CopyFrom(given)
    for field, _ in given.ListFields():
        if field.name != name:
            bare.ClearField(field.name)
    target.ClearField(name)
    target.MergeFrom(bare)
