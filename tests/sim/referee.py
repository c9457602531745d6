"""Shows every event to every checker, and stops the story at the first sentence one of them says."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from cairn.controller.store.base import Batch, Txn
from cairn.proto import kinds

from tests.sim.asked import Asked
from tests.sim.checkers.base import Checker, Violation
from tests.sim.cloud import Cloud, Host


class Referee:
    """Keeps the picture of the cloud and the checkers. fail: is given the violation, at most once."""

    def __init__(self, checkers: Sequence[Checker], fail: Callable[[Violation], None]) -> None:
        self.cloud = Cloud()
        self.asked = Asked()
        self.events = 0
        self._checkers, self._fail = checkers, fail
        self._failed = self._suspended = False

    def suspend(self) -> None:
        """The records begin anew from something older: until an operator has dealt with that, no rule speaks of what is."""
        self._suspended = True

    def begin_anew(self, checkers: Sequence[Checker], revision: int, records: Sequence[tuple[str, bytes | None]]) -> None:
        """From now on it is a history of its own, which begins with these records."""
        self._checkers, self._suspended = checkers, False
        self.cloud.records = {kind.name: {} for kind in kinds.ALL}
        commit = self.cloud.commit(revision, records, whole=True)
        self._ask(lambda checker: checker.committed(self.cloud, commit))

    def batch(self, batch: Batch, txn: Txn | None) -> None:
        """The store has a new revision; txn: what wrote it, if a transaction did."""
        changes = [(change.key, change.value) for change in batch.changes]
        writers: Mapping[str, str] = txn.writers if txn is not None else {}
        commit = self.cloud.commit(batch.revision, changes, writers, txn.checks if txn is not None else ())
        self._ask(lambda checker: checker.committed(self.cloud, commit))

    def host(self, host: Host) -> None:
        """Something on a node changed."""
        self.cloud.hosts[host.node] = host
        self._ask(lambda checker: checker.host_changed(self.cloud, host.node))

    def pool(self, volumes: Mapping[str, int]) -> None:
        """Something in the shared pool changed: volume id -> size in bytes."""
        self.cloud.shared = dict(volumes)
        self._ask(lambda checker: checker.pool_changed(self.cloud))

    def ledger(self, host: Host) -> None:
        """A node's ledger became durable."""
        self.cloud.hosts[host.node] = host
        self._ask(lambda checker: checker.accepted(self.cloud, host.node))

    def line(self, text: str) -> None:
        """Something was logged."""
        self._ask(lambda checker: checker.line(self.cloud, text))

    def settled(self) -> None:
        """Faults have stopped and the cloud is at rest. Raises Violation."""
        self._raise(lambda checker: checker.settled(self.cloud, self.asked))

    def listed(self, who: str, kind: str, objects: Sequence[Any]) -> list[str]:
        """A controller was asked for all objects of a kind, at rest. Return what checkers say to its answer."""
        said = ((each.name, each.listed(self.cloud, who, kind, objects)) for each in self._checkers)
        return [f"{name}: {text}" for name, texts in said for text in texts]

    def resting(self, on: bool) -> None:
        """From now on nothing may change; off: it may again. Raises Violation."""
        self._raise(lambda checker: checker.resting(self.cloud, on))

    def bared(self) -> None:
        """Networks and images were deleted too. Raises Violation."""
        self._raise(lambda checker: checker.bared(self.cloud))

    def emptied(self) -> None:
        """Everything was deleted. Raises Violation."""
        self._raise(lambda checker: checker.emptied(self.cloud))

    def unsettled(self) -> list[str]:
        """Return what checkers would say if the cloud were said to be at rest now."""
        return [f"{checker.name}: {text}" for checker in self._checkers for text in checker.settled(self.cloud, self.asked)]

    def unbared(self) -> list[str]:
        """Return what checkers would say if only the cloud itself were said to be left now."""
        return [f"{checker.name}: {text}" for checker in self._checkers for text in checker.bared(self.cloud)]

    def unemptied(self) -> list[str]:
        """Return what checkers would say if everything were said to be gone now."""
        return [f"{checker.name}: {text}" for checker in self._checkers for text in checker.emptied(self.cloud)]

    def _ask(self, look: Callable[[Checker], Iterator[str]]) -> None:
        self.events += 1
        if self._failed or self._suspended:
            return
        for checker in self._checkers:
            for text in look(checker):
                self._failed = True
                self._fail(Violation(checker.name, text))
                return

    def _raise(self, look: Callable[[Checker], Iterator[str]]) -> None:
        for checker in self._checkers:
            said: list[Any] = list(look(checker))
            if said:
                raise Violation(checker.name, "; ".join(said[:5]))
