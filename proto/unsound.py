"""What is wrong with bytes that are not the message they should be: which field, and why. For what a caller is told.

The parser only says that they are wrong. Wire format: https://protobuf.dev/programming-guides/encoding (a tag is number << 3
| type; 0 varint, 1 eight bytes, 2 length and bytes, 5 four bytes). Looked at only after parsing has failed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from google.protobuf.descriptor import Descriptor, FieldDescriptor

VARINT_BYTES_MAX: Final = 10
# As deep as the parser goes.
DEPTH_MAX: Final = 100
_SIZES: Final = {1: 8, 5: 4}
_TRUNCATED: Final = "the message ends in the middle of it"


@dataclass(frozen=True, slots=True)
class Unsound:
    """What came in place of a message. field: its path, empty when it cannot be told."""

    field: str
    say: str


class _Found(Exception):
    def __init__(self, field: str, say: str) -> None:
        super().__init__(say)
        self.what = Unsound(field, say)


def unsound(descriptor: Descriptor, content: bytes) -> Unsound:
    """Return the first thing that is wrong with bytes the parser has refused."""
    try:
        _message(descriptor, memoryview(content), "", 0)
    except _Found as found:
        return found.what
    return Unsound("", f"these bytes are no {descriptor.name}")


def _message(descriptor: Descriptor, content: memoryview, path: str, depth: int) -> None:
    position = 0
    while position < len(content):
        tag, position = _varint(content, position, path)
        field, wire = descriptor.fields_by_number.get(tag >> 3), tag & 7
        here = ".".join(filter(None, (path, field.name if field is not None else ""))) or path
        if not tag >> 3 or wire not in (0, 1, 2, 5):
            raise _Found(path, f"there is no field {tag >> 3} of type {wire} in a {descriptor.name}")
        if wire == 0:
            _, position = _varint(content, position, here)
            continue
        size = _SIZES.get(wire, 0)
        if wire == 2:
            size, position = _varint(content, position, here)
        if position + size > len(content):
            raise _Found(here, _TRUNCATED)
        if wire == 2 and field is not None:
            _bytes(field, content[position : position + size], here, depth)
        position += size


def _bytes(field: FieldDescriptor, content: memoryview, path: str, depth: int) -> None:
    if field.message_type is not None:
        if depth >= DEPTH_MAX:
            raise _Found(path, f"is nested more than {DEPTH_MAX} deep")
        _message(field.message_type, content, path, depth + 1)
    elif field.type == FieldDescriptor.TYPE_STRING:
        try:
            bytes(content).decode()
        except UnicodeDecodeError as error:
            raise _Found(path, f"is not UTF-8: byte {error.start} of {len(content)} begins no character") from error


def _varint(content: memoryview, position: int, path: str) -> tuple[int, int]:
    """Return a number and the position after it."""
    value = 0
    for index in range(VARINT_BYTES_MAX):
        if position >= len(content):
            raise _Found(path, _TRUNCATED)
        byte = content[position]
        position += 1
        value |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            return value, position
    raise _Found(path, f"a number is longer than {VARINT_BYTES_MAX} bytes")
