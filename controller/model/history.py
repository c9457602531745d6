"""The history of the store as usage: revision after revision, or, where there is a gap, what is there compared with what was.

    history = History(cursor, meter)
    history.take(batch, now_us, most)        # False: there is more in it than fits one commit; the rest after that
    for object in history.compare(found, ...): ...

The cursor says how far it was counted; it moves with what is counted, and both are stored together (controller/usage_books.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from cairn.controller.model.meter import At, Meter
from cairn.controller.model.restored import CLUSTER_ID
from cairn.controller.store.base import Batch, Change
from cairn.controller.store.usage import COUNTED, Counted, guest_of, is_counted
from cairn.proto import kinds
from cairn.proto.v1.agent_pb2 import VmReport
from cairn.proto.v1.cluster_pb2 import Cluster
from cairn.proto.v1.usage_pb2 import UsageClock, UsageCursor
from google.protobuf.message import DecodeError

CLUSTER_KEY: Final = kinds.CLUSTER.key(CLUSTER_ID)
CLOCK_KEY: Final = kinds.USAGE_CLOCK.key("self")
_USAGE: Final = tuple(
    kind.prefix
    for kind in (
        kinds.USAGE_CLOCK, kinds.USAGE_CURSOR, kinds.USAGE_OPEN, kinds.USAGE_DAY, kinds.USAGE_MONTH, kinds.USAGE_GAP,
    )
)  # fmt: skip


def concerns(key: str) -> bool:
    """Tell whether a change of a key's record is one to look at."""
    return is_counted(key) or key in (CLUSTER_KEY, CLOCK_KEY)


def is_usage(key: str) -> bool:
    """Tell whether a record is metering's own."""
    return key.startswith(_USAGE)


@dataclass(slots=True)
class Found:
    """What there is at a revision: by object what it counts with and when it was made; by VM and node what is reported."""

    counted: dict[str, tuple[Counted, int]] = field(default_factory=dict)
    reports: dict[str, dict[str, VmReport]] = field(default_factory=dict)
    # Objects and guests ("vm/<id>") of which a record cannot be read: nothing is said of them.
    unreadable: set[str] = field(default_factory=set)

    def take(self, key: str, value: bytes) -> None:
        """Take a record in."""
        kind, id = kinds.split(key)
        guest = guest_of(id) if kind is kinds.OBSERVED else None
        if kind.name not in COUNTED and guest is None:
            return
        object = f"{kinds.VM.name}/{guest[1]}" if guest is not None else f"{kind.name}/{id}"
        try:
            message: Any = kind.message.FromString(value)
        except DecodeError:
            self.unreadable.add(object)
            return
        if guest is not None:
            self.reports.setdefault(guest[1], {})[guest[0]] = message.report.vm
        else:
            self.counted[object] = COUNTED[kind.name](message), message.create_time.ToMicroseconds()


@dataclass(frozen=True, slots=True)
class Stretch:
    """What was not followed: from when until when; revision: of what is there now. same: it is the same store's history."""

    begin_us: int
    end_us: int
    revision: int
    same: bool = True

    def within(self, us: int) -> int:
        """Return a moment if it lies within, else the end."""
        return us if self.begin_us <= us <= self.end_us else self.end_us


class History:
    """See the module. Both are changed in place."""

    def __init__(self, cursor: UsageCursor, meter: Meter) -> None:
        self.cursor, self.meter = cursor, meter

    def take(self, batch: Batch, now_us: int, cost_max: int) -> bool:
        """Count what changed with a revision; False: there is more in it, and the cursor says where to go on.

        now_us: when changes were that do not say so themselves.
        """
        cursor = self.cursor
        first = cursor.changes if batch.revision == cursor.revision + 1 else 0
        changes = sorted((each for each in batch.changes if is_counted(each.key)), key=lambda each: each.key)
        for change in batch.changes:
            if change.key == CLUSTER_KEY and change.value is not None:
                self._cluster(batch.revision, change.value)
        at = self._at(batch, now_us)
        for number, change in enumerate(changes[first:], first):
            if self.meter.cost >= cost_max:
                cursor.revision, cursor.changes = batch.revision - 1, number
                return False
            self._change(change, at)
        if changes:
            # Should one of the two clocks be fast, a gap begins too early rather than too late.
            cursor.time_us = min(at.us, now_us)
        cursor.revision, cursor.changes = batch.revision, 0
        return True

    def _at(self, batch: Batch, now_us: int) -> At:
        if self.cursor.restore_us:
            return At(self.cursor.restore_us, batch.revision)
        for change in batch.changes:
            if change.key == CLOCK_KEY and change.value is not None:
                return At(UsageClock.FromString(change.value).time.ToMicroseconds(), batch.revision)
        return At(now_us, batch.revision, exact=False)

    def _cluster(self, revision: int, value: bytes) -> None:
        try:
            cluster = Cluster.FromString(value)
        except DecodeError:
            # As with others: what it said before goes on.
            return
        self.belongs(cluster, revision)

    def belongs(self, cluster: Cluster, revision: int) -> None:
        """Take note of the cluster's record, as it is from a revision on."""
        cursor = self.cursor
        cursor.epoch, cursor.cluster_revision = cluster.epoch, revision
        cursor.cluster_create_time.CopyFrom(cluster.create_time)
        cursor.restore_us = cluster.restore.begin_time.ToMicroseconds() if cluster.HasField("restore") else 0

    def _change(self, change: Change, at: At) -> None:
        kind, id = kinds.split(change.key)
        try:
            message: Any = None if change.value is None else kind.message.FromString(change.value)
        except DecodeError:
            # Nobody's word: what was before goes on.
            return
        if (guest := guest_of(id) if kind is kinds.OBSERVED else None) is not None:
            report = message.report.vm if message is not None else None
            self.meter.report(*guest, report, at, taken=bool(self.cursor.restore_us))
        else:
            self.meter.record(f"{kind.name}/{id}", COUNTED[kind.name](message) if message is not None else None, at)

    def begin(self, found: Found, at: At) -> Iterator[str]:
        """Begin to count what is there; yield each object."""
        for object, (counted, _) in sorted(found.counted.items()):
            self.meter.record(object, counted, at)
            for node, report in sorted(found.reports.get(_vm(object), {}).items()):
                self.meter.report(node, _vm(object), report, at)
            yield object

    def compare(self, found: Found, stretch: Stretch) -> Iterator[str]:
        """Make what is open as it is found; yield each object that was looked at."""
        before = At(stretch.begin_us, stretch.revision, exact=False)
        for object in sorted({*self.meter.opens, *found.counted} - found.unreadable):
            if object not in found.counted:
                self.meter.record(object, None, before)
            else:
                self._compare(object, found, stretch, before)
            yield object

    def _compare(self, object: str, found: Found, stretch: Stretch, before: At) -> None:
        counted, create_us = found.counted[object]
        open = self.meter.opens.get(object)
        if open is not None and open.next_revision and not stretch.same:
            # Of another history: whatever is reported next has seen it.
            open.next_revision = 1
        since_us = stretch.end_us if open is not None else stretch.within(create_us)
        self.meter.record(object, counted, At(since_us, stretch.revision, exact=False))
        reports = found.reports.get(_vm(object), {})
        ran = [guest.node for guest in open.guests] if open is not None else []
        for node in sorted({*ran, *reports}):
            report = reports.get(node)
            runs = report is not None and report.state == VmReport.STATE_RUNNING
            at = before
            if report is not None and runs:
                us = stretch.end_us if node in ran else stretch.within(report.start_time.ToMicroseconds())
                at = At(us, stretch.revision, exact=False)
            self.meter.report(node, _vm(object), report, at, taken=report is None)


def _vm(object: str) -> str:
    return object.removeprefix(f"{kinds.VM.name}/")
