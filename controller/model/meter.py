"""What objects count with now, and what they counted with until now: a function of what changed, in the order of revisions.

    meter = Meter(opens)                                        # as they are stored
    meter.record("vm/i-1", counted, At(us, revision))           # a record was written; None: it went
    meter.report("node-1", "i-1", report, At(us, revision))     # a node said something of a guest; None: it takes that back
    meter.take()                                                # pieces closed since; meter.touched: whose open record differs

A piece ends where the next one begins, so that those of an object add up to its life, whatever clocks said: a moment before
the one before counts as that. Of a VM that runs the sizes are those it was started with: what is asked for later counts from
its next start on. Times are whole microseconds since 1970.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from cairn.controller.store.usage import Counted
from cairn.proto import kinds
from cairn.proto.v1.agent_pb2 import VmReport
from cairn.proto.v1.usage_pb2 import UsageGuest, UsageOpen

_VM: Final = f"{kinds.VM.name}/"


@dataclass(frozen=True, slots=True)
class At:
    """When something changed. exact: that is known to the second."""

    us: int
    revision: int
    exact: bool = True


@dataclass(frozen=True, slots=True)
class Piece:
    """A time in which an object had the same. inexact: an end of it is not known to the second."""

    object: str
    project: str
    name: str
    type: str
    begin_us: int
    end_us: int
    running: bool = False
    inexact: bool = False
    cpus: int = 0
    memory_bytes: int = 0
    size_bytes: int = 0

    @property
    def us(self) -> int:
        """How long it is."""
        return self.end_us - self.begin_us


def piece_of(open: UsageOpen, end_us: int, *, inexact: bool = False) -> Piece:
    """Return what an object counted with from when it is open until a moment, none before that."""
    runs = bool(open.guests)
    return Piece(
        open.object,
        open.project,
        open.name,
        open.type,
        open.since_us,
        max(open.since_us, end_us),
        running=runs,
        inexact=open.inexact or inexact,
        cpus=open.cpus if runs else 0,
        memory_bytes=open.memory_bytes if runs else 0,
        size_bytes=open.size_bytes,
    )


class Meter:
    """See the module. opens: by object; changed in place."""

    def __init__(self, opens: Iterable[UsageOpen] = ()) -> None:
        self.opens = {each.object: each for each in opens}
        # Objects whose open record differs from what is stored, in the order in which they came to.
        self.touched: dict[str, None] = {}
        self._pieces: list[Piece] = []

    def take(self) -> list[Piece]:
        """Return what was closed since the last time."""
        taken, self._pieces = self._pieces, []
        return taken

    @property
    def cost(self) -> int:
        """At most how many records are to be written: an open one for each that differs, a day's for each piece."""
        return len(self.touched) + len(self._pieces)

    def record(self, object: str, counted: Counted | None, at: At) -> None:
        """A record is as it counts now; None: it is gone."""
        open = self.opens.get(object)
        if counted is None:
            if open is not None:
                self._close(open, at)
                del self.opens[object]
        elif open is None:
            open = self.opens[object] = UsageOpen(object=object, since_us=at.us, inexact=not at.exact)
            _set(open, counted)
            self.touched[object] = None
        else:
            self._change(open, counted, at)

    def _change(self, open: UsageOpen, counted: Counted, at: At) -> None:
        lives = bool(open.guests or open.cut)
        if lives and (counted.cpus, counted.memory_bytes) != _power(open):
            asked = open.next_cpus, open.next_memory_bytes
            if not open.next_revision or asked != (counted.cpus, counted.memory_bytes):
                open.next_revision, open.next_cpus, open.next_memory_bytes = at.revision, counted.cpus, counted.memory_bytes
                self.touched[open.object] = None
        elif open.next_revision:
            _clear_next(open)
            self.touched[open.object] = None
        sizes = counted.project, counted.type, counted.size_bytes
        if sizes != (open.project, open.type, open.size_bytes):
            self._close(open, at)
        elif counted.name == open.name and (lives or (counted.cpus, counted.memory_bytes) == _power(open)):
            return
        running = _power(open) if lives else None
        _set(open, counted)
        if running is not None:
            open.cpus, open.memory_bytes = running
        self.touched[open.object] = None

    def report(self, node: str, vm: str, report: VmReport | None, at: At, *, taken: bool = False) -> None:
        """A node said that of a guest; None: it says nothing any more. taken: a restore took it back, and not the node."""
        open = self.opens.get(_VM + vm)
        if open is None:
            return
        guest = _on(open.guests, node)
        if report is not None and report.state == VmReport.STATE_RUNNING:
            self._runs(open, node, report, at)
        elif guest is not None:
            self._close(open, at)
            open.guests.remove(guest)
            if taken:
                open.cut.append(guest)
            elif not open.guests:
                _take_next(open)
        elif report is not None and (cut := _on(open.cut, node)) is not None:
            open.cut.remove(cut)
            if not open.guests:
                _take_next(open)
            self.touched[open.object] = None

    def _runs(self, open: UsageOpen, node: str, report: VmReport, at: At) -> None:
        start_us = report.start_time.ToMicroseconds() if report.HasField("start_time") else 0
        guest, cut = _on(open.guests, node), _on(open.cut, node)
        if guest is None and cut is not None and start_us and cut.start_us == start_us and not open.guests:
            # It ran while nobody said so: nothing was closed since.
            open.guests.add(node=node, start_us=start_us)
            del open.cut[:]
            self.touched[open.object] = None
        elif guest is None:
            self._close(open, at)
            if not open.guests:
                _take_next(open)
            open.guests.add(node=node, start_us=start_us)
        elif open.next_revision and (guest.start_us != start_us or report.spec_revision >= open.next_revision):
            self._close(open, at)
            guest.start_us = start_us
            _take_next(open)
        elif guest.start_us != start_us:
            # When the one before ended nobody said.
            if not at.exact:
                self._close(open, at)
            guest.start_us = start_us
            self.touched[open.object] = None

    def _close(self, open: UsageOpen, at: At) -> None:
        """End what an object counted with; it goes on from there."""
        piece = piece_of(open, at.us, inexact=not at.exact)
        if piece.us:
            self._pieces.append(piece)
            open.inexact = not at.exact
        open.since_us = piece.end_us
        open.inexact = open.inexact or not at.exact
        del open.cut[:]
        self.touched[open.object] = None


def _set(open: UsageOpen, counted: Counted) -> None:
    open.project, open.name, open.type = counted.project, counted.name, counted.type
    open.cpus, open.memory_bytes, open.size_bytes = counted.cpus, counted.memory_bytes, counted.size_bytes


def _power(open: UsageOpen) -> tuple[int, int]:
    return open.cpus, open.memory_bytes


def _take_next(open: UsageOpen) -> None:
    """It was started anew, or will be: what was asked for meanwhile counts from then on."""
    if open.next_revision:
        open.cpus, open.memory_bytes = open.next_cpus, open.next_memory_bytes
        _clear_next(open)


def _clear_next(open: UsageOpen) -> None:
    open.next_revision = open.next_cpus = open.next_memory_bytes = 0


def _on(guests: Iterable[UsageGuest], node: str) -> UsageGuest | None:
    return next((each for each in guests if each.node == node), None)
