"""What computation costs: a count of what a step of a process touched, the same on every machine and Python.

    with metered():
        ...                     # the product runs; METER.ns grows
    METER.take()                # nanoseconds since it was last taken

Counted are records that lists of the View and the store's answers hold, and bytes of messages and commits. Rejected: the time a
step really took (no story could be repeated), calls of Python (each release has others), single look-ups (how many there are
may depend on the order of a set). Small messages cost nothing: certificates have a length that depends on their keys.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from cairn.controller.store.view import Table

# On one core, about: a record of a list; one parsed and indexed; a byte serialised or parsed, for messages of this size on.
LOOK_NS: Final = 1_000
RECORD_NS: Final = 15_000
BYTE_NS: Final = 10
BYTES_MIN: Final = 4096


class Meter:
    """Nanoseconds of one core."""

    __slots__ = ("ns",)

    def __init__(self) -> None:
        self.ns = 0

    def take(self) -> int:
        """Return what was counted since, and begin anew."""
        ns, self.ns = self.ns, 0
        return ns

    def records(self, count: int) -> None:
        """So many records were read from the store."""
        self.ns += count * RECORD_NS

    def message(self, data: bytes) -> None:
        """A message was serialised or parsed."""
        if len(data) >= BYTES_MIN:
            self.ns += len(data) * BYTE_NS


METER: Final = Meter()


def _listing(read: Any) -> Any:
    def counted(self: Table, *args: Any) -> list[Any]:
        found: list[Any] = read(self, *args)
        METER.ns += LOOK_NS * (1 + len(found))
        return found

    return counted


def _passing(read: Any) -> Any:
    def counted(self: Table, *args: Any) -> Iterator[Any]:
        for each in read(self, *args):
            METER.ns += LOOK_NS
            yield each

    return counted


_COUNTED: Final = {"by": _listing, "all": _passing, "pinned": _passing}


@contextmanager
def metered() -> Iterator[None]:
    """Count while inside."""
    kept = {name: getattr(Table, name) for name in _COUNTED}
    try:
        for name, read in kept.items():
            setattr(Table, name, _COUNTED[name](read))
        METER.take()
        yield
    finally:
        for name, read in kept.items():
            setattr(Table, name, read)
