"""What is of a project is of one that is there; and a name means one thing in it, of its own or of what is shared into it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tests.sim.checkers.base import Checker
from tests.sim.cloud import Cloud, Commit

_SHAREABLE = ("image", "vpc")
_OWNED = (*_SHAREABLE, "vm", "volume", "subnet", "port")
# With all projects.
_ALL = "*"


class Projects(Checker):
    """Looks at what a commit made, renamed or shared, and at projects it removed."""

    def committed(self, cloud: Cloud, commit: Commit) -> Iterator[str]:
        """Look."""
        for change in commit.changes:
            if change.kind == "project" and change.after is None:
                yield from _left(cloud, change.id)
            if change.after is None:
                continue
            if change.kind in _OWNED and cloud.get("project", change.after.project) is None:
                yield f"{change.key} is of project {change.after.project}, which is not there"
            if change.kind in _SHAREABLE:
                yield from _called(cloud, change.kind, change.after)


def _left(cloud: Cloud, project: str) -> Iterator[str]:
    for kind in _OWNED:
        for id, record in cloud.all(kind).items():
            if record.project == project:
                yield f"project {project} was removed with {kind}/{id} in it"
            if kind in _SHAREABLE and project in record.spec.sharing.projects:
                yield f"project {project} was removed with {kind}/{id} shared with it"


def _called(cloud: Cloud, kind: str, record: Any) -> Iterator[str]:
    here = _places(record)
    for id, other in cloud.all(kind).items():
        if id == record.id or other.name != record.name:
            continue
        there = _places(other)
        both = here & there or (_ALL in here and there) or (_ALL in there and here)
        if both:
            yield f"{kind} {record.id} and {id} are both called {record.name} in project {', '.join(sorted(both))}"


def _places(record: Any) -> set[str]:
    sharing = record.spec.sharing
    return {record.project, *sharing.projects, *((_ALL,) if sharing.all else ())}
