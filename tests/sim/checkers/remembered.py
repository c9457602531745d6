"""What is kept for a while is kept for that long, and then it goes: request records, events, plans, finished jobs, join tokens,
and what was deleted and not brought back.

How long is what the messages' comments promise. Clocks are wrong, by minutes; a lease serves whatever is written in an hour;
and the store's new leader gives every lease its whole time again. So it may be some time longer, and never for ever.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from tests.sim.asked import Asked
from tests.sim.checkers.base import Checker
from tests.sim.cloud import Cloud, Commit
from tests.sim.rules import deleted

# By how much clocks may be wrong together, and how long what is due may take.
MARGIN: Final = timedelta(minutes=45)
_DAY: Final = timedelta(hours=24)
# Written under one lease for so long.
_SHARED: Final = timedelta(hours=1)
# Kind -> when it may go at the earliest, by the record; those that a lease ends.
_LEASED: Final[dict[str, Callable[[Any], datetime]]] = {
    "request": lambda record: _time(record.create_time) + _DAY,
    "event": lambda record: _time(record.event_time) + _DAY,
    "plan": lambda record: _time(record.expire_time),
}
# Those that somebody removes.
_REMOVED: Final[dict[str, Callable[[Any], datetime | None]]] = {
    "job_state": lambda record: _time(record.end_time) + _DAY if record.done else None,
    "join_token": lambda record: _time(record.expire_time) + _DAY,
    "api_token": lambda record: _time(record.spec.expire_time) + _DAY,
    "vm": lambda record: _time(record.purge_time) if deleted(record) else None,
    "volume": lambda record: _time(record.purge_time) if deleted(record) else None,
}


class Remembered(Checker):
    """Looks at what goes, and at rest at what is still there."""

    def committed(self, cloud: Cloud, commit: Commit) -> Iterator[str]:
        """No lease has ended early."""
        if cloud.clock is None or commit.writers is None or commit.writers:
            return
        for change in commit.changes:
            if change.kind in ("request", "event") and change.after is None:
                until = _LEASED[change.kind](change.before)
                if cloud.clock() < until - 3 * MARGIN:
                    yield f"{change.key} was to be kept until {until}, and is forgotten at {cloud.clock()}"

    def settled(self, cloud: Cloud, asked: Asked) -> Iterator[str]:
        """Nothing has outlived its time."""
        if cloud.clock is None:
            return
        now = cloud.clock()
        for kind, ends in _LEASED.items():
            for id, record in cloud.all(kind).items():
                until = ends(record)
                if cloud.leases_began is not None:
                    until = max(until, cloud.leases_began + _DAY)
                if now > until + _SHARED + MARGIN:
                    yield f"{kind}/{id} was to be kept until {until}, and is there at {now}"
        for kind, due in _REMOVED.items():
            for id, record in cloud.all(kind).items():
                gone = due(record)
                if gone is not None and now > gone + MARGIN:
                    yield f"{kind}/{id} was to go at {gone}, and is there at {now}"


def _time(stamp: Any) -> datetime:
    time: datetime = stamp.ToDatetime(UTC)
    return time
