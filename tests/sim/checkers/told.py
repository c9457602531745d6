"""What happened to an object is found by the object, as long as it is remembered at all: an event and its reference are one."""

from __future__ import annotations

from collections.abc import Iterator

from tests.sim.checkers.base import Checker
from tests.sim.cloud import Cloud, Commit


class Told(Checker):
    """Compares events with references, in each revision that changes one of both."""

    def committed(self, cloud: Cloud, commit: Commit) -> Iterator[str]:
        """Look at both sides."""
        for change in commit.changes:
            if change.kind == "event":
                event = change.after if change.after is not None else change.before
                found = cloud.get("event_of", f"{event.object}/{event.id}")
                if event.object and (found is None) != (change.after is None):
                    yield f"{change.key} {'is not found by' if found is None else 'is gone, and still found by'} {event.object}"
            if change.kind == "event_of" and change.after is not None and cloud.get("event", change.after.event) is None:
                yield f"{change.key} leads to no event"
