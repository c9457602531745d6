"""List filters: a subset of AIP-160.

    filter      = comparison { ["AND"] comparison }
    comparison  = path op value          op: = != < <= > >= :
    path        = field { "." field }    the last part may be a key of a map: labels.env

Strings: `=` takes a trailing or leading `*`; `:` means "contains" (for a map or list: has; `labels.env:*` asks for presence).
Enums are named with or without their prefix (RUNNING, STATE_RUNNING). Times are RFC 3339. The filter is checked against the
message's descriptor first, so a misspelt field is refused, never silently false. Not in the subset: OR, NOT, parentheses,
functions; asking for them is refused with the reason.
"""

from __future__ import annotations

import difflib
import operator
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

from cairn.proto.errors import Invalid
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

Predicate = Callable[[Message], bool]
LENGTH_MAX: Final = 2048
# Fields that are made when an object is projected; all others are shown as they are stored.
PROJECTED: Final = frozenset({"status", "reconciling", "revision", "etag", "plan"})
_TOKEN: Final = re.compile(
    r"""\s*(?:(?P<op><=|>=|!=|=|<|>|:)|"(?P<quoted>(?:[^"\\]|\\.)*)"|(?P<word>[^\s<>=!:"()]+)|(?P<bad>.))"""
)
_ORDER: Final[dict[str, Callable[[Any, Any], bool]]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_INTEGERS: Final = frozenset(
    {
        FieldDescriptor.TYPE_INT32, FieldDescriptor.TYPE_INT64, FieldDescriptor.TYPE_UINT32, FieldDescriptor.TYPE_UINT64,
        FieldDescriptor.TYPE_SINT32, FieldDescriptor.TYPE_SINT64, FieldDescriptor.TYPE_FIXED32, FieldDescriptor.TYPE_FIXED64,
    }
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Comparison:
    """One parsed comparison: path, operator, value as written."""

    path: str
    op: str
    value: str


def parse(text: str) -> list[Comparison]:
    """Return the comparisons of a filter; Invalid("filter", ...) when it is not in the subset."""
    if len(text) > LENGTH_MAX:
        raise Invalid("filter", f"{len(text)} characters long, at most {LENGTH_MAX} are allowed")
    tokens = [(match.lastgroup or "", match[match.lastgroup or 0]) for match in _TOKEN.finditer(text.strip())]
    result: list[Comparison] = []
    position = 0
    while position < len(tokens):
        kind, word = tokens[position]
        if kind == "word" and word == "AND" and result:
            position += 1
            continue
        if kind == "bad" or word in {"OR", "NOT"} or word.startswith("-"):
            raise Invalid("filter", f"{word!r} is not supported: give comparisons joined with AND")
        following = tokens[position + 1 : position + 3]
        if kind != "word" or len(following) < 2 or following[0][0] != "op" or following[1][0] not in {"word", "quoted"}:
            raise Invalid("filter", f"near {word!r}: expected FIELD OP VALUE, for example status.state=RUNNING")
        value = following[1][1]
        if following[1][0] == "quoted":
            value = re.sub(r"\\(.)", r"\1", value)
        # A word stops at ":", so times arrive in pieces: 2026-01-02T03:04:05Z.
        position += 3
        while following[1][0] == "word" and [kind for kind, _ in tokens[position : position + 2]] == ["op", "word"]:
            if tokens[position][1] != ":" or not re.fullmatch(r"\d{4}-\d\d-\d\dT[\d:]*", value):
                break
            value += ":" + tokens[position + 1][1]
            position += 2
        result.append(Comparison(word, following[0][1], value))
    return result


def predicate(text: str, descriptor: Descriptor) -> Predicate:
    """Return a function that tells whether a message passes; the empty filter passes all."""
    return _all_of([_compile(comparison, descriptor) for comparison in parse(text)])


def predicates(text: str, descriptor: Descriptor) -> tuple[Predicate, Predicate]:
    """Return the same in two: what can be asked of a record as it is stored, and what only of the projected object."""
    stored: list[Predicate] = []
    projected: list[Predicate] = []
    for comparison in parse(text):
        tests = projected if comparison.path.partition(".")[0] in PROJECTED else stored
        tests.append(_compile(comparison, descriptor))
    return _all_of(stored), _all_of(projected)


def _all_of(tests: list[Predicate]) -> Predicate:
    return lambda message: all(test(message) for test in tests)


def paths(text: str) -> list[str]:
    """Return the paths that a filter compares."""
    return [comparison.path for comparison in parse(text)]


def mentions(text: str, path: str) -> bool:
    """Tell whether a filter compares that path."""
    return any(comparison.path == path for comparison in parse(text))


def pinned(text: str, path: str = "id") -> str:
    """Return the only id, or value of another field, that can pass a filter; empty: several can."""
    values = (each.value for each in parse(text) if (each.path, each.op) == (path, "=") and "*" not in each.value)
    return next(values, "")


def _compile(comparison: Comparison, descriptor: Descriptor) -> Predicate:
    """Resolve the path once; the rest is attribute access per message."""
    steps: list[str] = []
    parts = comparison.path.split(".")
    here: Descriptor | None = descriptor
    for position, part in enumerate(parts):
        field = here.fields_by_name.get(part) if here is not None else None
        if field is None:
            raise Invalid("filter", _no_field(comparison.path, descriptor))
        rest = parts[position + 1 :]
        if _is_map(field):
            return _map_test(comparison, [*steps, part], ".".join(rest))
        if field.is_repeated:
            if rest:
                raise Invalid("filter", f"{comparison.path!r} goes into a list: compare the list itself with ':'")
            return _list_test(comparison, [*steps, part], field)
        if not rest:
            return _scalar_test(comparison, [*steps, part], field)
        steps.append(part)
        here = field.message_type
    raise Invalid("filter", _no_field(comparison.path, descriptor))


def _no_field(path: str, descriptor: Descriptor) -> str:
    """Say that there is no such field, and which ones come near: the same last name elsewhere, else what looks like it."""
    paths = list(_paths(descriptor))
    last = path.rpartition(".")[2]
    near = [each for each in paths if each.rpartition(".")[2] == last] or difflib.get_close_matches(path, paths, 3, 0.6)
    hint = f"did you mean {' or '.join(near[:3])}?" if near else f"some there are: {', '.join(paths[:8])}"
    return f"there is no field {path!r} in {descriptor.name}: {hint}"


def _paths(descriptor: Descriptor, prefix: str = "", depth: int = 3) -> Iterator[str]:
    """Yield the paths a filter can name, the shallow ones first."""
    deeper: list[tuple[str, Descriptor]] = []
    for field in descriptor.fields:
        path = f"{prefix}{field.name}"
        if field.message_type is None or _is_map(field) or field.message_type.full_name == Timestamp.DESCRIPTOR.full_name:
            yield path
        elif not field.is_repeated and depth > 1:
            deeper.append((path, field.message_type))
    for path, message in deeper:
        yield from _paths(message, f"{path}.", depth - 1)


def _is_map(field: FieldDescriptor) -> bool:
    return field.message_type is not None and field.message_type.GetOptions().map_entry


def _at(message: Message, steps: list[str]) -> Any:
    value: Any = message
    for step in steps:
        value = getattr(value, step)
    return value


def _map_test(comparison: Comparison, steps: list[str], key: str) -> Predicate:
    if not key:
        if comparison.op != ":":
            raise Invalid("filter", f"compare a key of {comparison.path!r}, for example {comparison.path}.env=test")
        return lambda message: comparison.value in _at(message, steps)
    if comparison.op == ":" and comparison.value == "*":
        return lambda message: key in _at(message, steps)
    matches = _string_match(comparison)
    absent = comparison.op == "!="
    return lambda message: matches(held[key]) if key in (held := _at(message, steps)) else absent


def _list_test(comparison: Comparison, steps: list[str], field: FieldDescriptor) -> Predicate:
    if comparison.op != ":" or field.type != FieldDescriptor.TYPE_STRING:
        raise Invalid("filter", f"{comparison.path!r} is a list: only {comparison.path}:VALUE is supported")
    return lambda message: comparison.value in _at(message, steps)


def _scalar_test(comparison: Comparison, steps: list[str], field: FieldDescriptor) -> Predicate:
    if field.type == FieldDescriptor.TYPE_STRING:
        matches = _string_match(comparison)
        return lambda message: matches(_at(message, steps))
    if field.message_type is not None:
        if field.message_type.full_name != Timestamp.DESCRIPTOR.full_name:
            raise Invalid("filter", f"{comparison.path!r} is a message: compare one of its fields")
        return _time_test(comparison, steps, field.name)
    if field.type == FieldDescriptor.TYPE_BYTES:
        raise Invalid("filter", f"{comparison.path!r} is bytes, which are not compared")
    wanted = _typed(comparison, field)
    compare = {"=": operator.eq, ":": operator.eq, "!=": operator.ne, **_ORDER}[comparison.op]
    return lambda message: compare(_at(message, steps), wanted)


def _time_test(comparison: Comparison, steps: list[str], name: str) -> Predicate:
    if comparison.op == ":" and comparison.value == "*":
        return lambda message: bool(_at(message, steps[:-1]).HasField(name))
    wanted = Timestamp()
    try:
        wanted.FromJsonString(comparison.value)
    except ValueError as error:
        raise Invalid("filter", f"{comparison.value!r} is not an RFC 3339 time such as 2026-01-02T03:04:05Z") from error
    nanoseconds = wanted.ToNanoseconds()
    compare = {"=": operator.eq, ":": operator.eq, "!=": operator.ne, **_ORDER}[comparison.op]
    return lambda message: bool(compare(_at(message, steps).ToNanoseconds(), nanoseconds))


def _typed(comparison: Comparison, field: FieldDescriptor) -> object:
    """Return the value as the field's type."""
    text = comparison.value
    if field.enum_type is not None:
        names = field.enum_type.values_by_name
        for name, value in names.items():
            if name == text or (name.endswith("_" + text) and name.removesuffix("_" + text) in _prefixes(list(names))):
                return value.number
        raise Invalid("filter", f"{text!r} is not a value of {comparison.path}: {', '.join(_short(list(names)))}")
    if field.type == FieldDescriptor.TYPE_BOOL:
        if text not in {"true", "false"}:
            raise Invalid("filter", f"{comparison.path} is true or false, not {text!r}")
        return text == "true"
    try:
        return int(text) if field.type in _INTEGERS else float(text)
    except ValueError as error:
        raise Invalid("filter", f"{text!r} is not a number, as {comparison.path} is") from error


def _prefixes(names: list[str]) -> set[str]:
    """Return the prefix the enum's zero value shows: STATE_UNSPECIFIED -> STATE."""
    return {name.removesuffix("_UNSPECIFIED") for name in names if name.endswith("_UNSPECIFIED")}


def _short(names: list[str]) -> list[str]:
    """Return an enum's values as people write them: RUNNING of STATE_RUNNING. The zero value is never asked for."""
    prefixes = _prefixes(names)
    shown = [name for name in names if not name.endswith("_UNSPECIFIED")]
    return [next((name.removeprefix(f"{each}_") for each in prefixes if name.startswith(f"{each}_")), name) for name in shown]


def _string_match(comparison: Comparison) -> Callable[[str], bool]:
    wanted = comparison.value
    if comparison.op == ":":
        return lambda held: wanted in held
    if comparison.op in _ORDER:
        compare = _ORDER[comparison.op]
        return lambda held: compare(held, wanted)
    pattern = re.compile(".*".join(re.escape(part) for part in wanted.split("*")), re.DOTALL)
    if comparison.op == "=":
        return lambda held: bool(pattern.fullmatch(held))
    return lambda held: not pattern.fullmatch(held)
