"""What a checker is: it looks at what happened from outside, and says what must not be.

A checker knows the vocabulary (records are proto messages) and nothing of the product's code. It is told of every event:

    committed(cloud, commit)    the store has a new revision; `cloud` shows it already
    host_changed(cloud, node)   something on a node changed: guests, volumes, networks, files; cloud.hosts[node] shows it
    pool_changed(cloud)         something in the shared pool changed; cloud.shared shows it
    accepted(cloud, node)       a node's ledger became durable
    line(cloud, text)           a line of the trace: everything any process logged, sent events and faults
    settled(cloud, asked)       faults stopped, the cloud came to rest: now everything must be as asked; asked again and again
    listed(cloud, who, kind, objects)   at rest, a controller listed the objects of a kind
    resting(cloud, on)          on: from now on nothing may change, whoever is restarted; off: no more
    emptied(cloud)              all VMs and volumes were deleted: nothing of them may be left
    bared(cloud)                networks and images were deleted too: only the cloud itself is left

Each yields sentences; one sentence fails the story. State of its own is allowed: a story has its own instances. A checker
costs what changed, not what there is, except at rest.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from tests.sim.asked import Asked
from tests.sim.cloud import Cloud, Commit


class Violation(AssertionError):
    """Something that must never be. `checker` says whose sentence it is."""

    def __init__(self, checker: str, text: str) -> None:
        super().__init__(f"{checker}: {text}")
        self.checker = checker


class Checker:
    """Does nothing: override what concerns it."""

    @property
    def name(self) -> str:
        """Return the name of its file."""
        return type(self).__module__.rpartition(".")[2]

    def committed(self, cloud: Cloud, commit: Commit) -> Iterator[str]:
        yield from ()

    def host_changed(self, cloud: Cloud, node: str) -> Iterator[str]:
        yield from ()

    def pool_changed(self, cloud: Cloud) -> Iterator[str]:
        yield from ()

    def accepted(self, cloud: Cloud, node: str) -> Iterator[str]:
        yield from ()

    def line(self, cloud: Cloud, text: str) -> Iterator[str]:
        yield from ()

    def settled(self, cloud: Cloud, asked: Asked) -> Iterator[str]:
        yield from ()

    def listed(self, cloud: Cloud, who: str, kind: str, objects: Sequence[Any]) -> Iterator[str]:
        yield from ()

    def resting(self, cloud: Cloud, on: bool) -> Iterator[str]:
        yield from ()

    def emptied(self, cloud: Cloud) -> Iterator[str]:
        yield from ()

    def bared(self, cloud: Cloud) -> Iterator[str]:
        yield from ()
