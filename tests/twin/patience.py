"""The referee for a real cloud, whose servers and store cannot be looked at in the same instant.

In the simulation a picture of a host and the store's revision belong together. Here a picture is taken while the store goes on:
a sentence about both may be about two moments that never were one. So:

* A sentence about revisions alone, or about one host alone (its ledger against what is on it, or what it was a look ago),
  counts at once: each is consistent in itself.
* A sentence about a host and records, or about several hosts, is a suspicion. It counts when the next picture of that host
  says it again, and no revision in between made it untrue. The next picture is begun only after the store's revision of the
  suspicion was seen, so then what it tells of really was there while the records really said otherwise.
* A VM on two nodes counts at once: eyes.py tells of it only if both processes live at the same instant.

Which it is needs no list: a sentence about one host's change is said once, one about a state is said again of the same picture.
Rejected: to leave checkers out, or to teach each of them to wait; they stay those of the simulation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from cairn.controller.store.base import Batch, Txn

from tests.sim.checkers.base import Checker, Violation
from tests.sim.cloud import Host
from tests.sim.referee import Referee

AT_ONCE = ("one_node",)
Suspicion = tuple[Checker, str]


class PatientReferee(Referee):
    """`fail` is told of each violation, however many there are."""

    def __init__(self, checkers: list[Checker], fail: Callable[[Violation], None]) -> None:
        super().__init__(checkers, fail)
        self._suspicions: dict[str, list[Suspicion]] = {}

    def batch(self, batch: Batch, txn: Txn | None) -> None:
        """Take a revision in. Who wrote it and what was checked nobody tells; hosts are judged by their next pictures."""
        changes = [(change.key, change.value) for change in batch.changes]
        hosts, self.cloud.hosts = self.cloud.hosts, {id: Host(id, host.name) for id, host in self.cloud.hosts.items()}
        try:
            commit = self.cloud.commit(batch.revision, changes)
            self._ask(lambda checker: checker.committed(self.cloud, commit))
        finally:
            self.cloud.hosts = hosts
        for node, suspicions in self._suspicions.items():
            self._suspicions[node] = [each for each in suspicions if self._still(node, *each)]

    def host(self, host: Host, *, between: bool = False) -> None:
        """Judge a picture. between: nobody took it, it was inferred from the one that follows; it can confirm nothing."""
        node, before = host.node, self._suspicions.get(host.node, [])
        self.cloud.hosts[node] = host
        self.events += 1
        said = [(checker, text) for checker in self._checkers for text in checker.host_changed(self.cloud, node)]
        lasting = [each for each in said if self._still(node, *each)]
        for checker, text in said:
            confirmed = (checker, text) in before and not between
            if checker.name in AT_ONCE or (checker, text) not in lasting or confirmed:
                self._fail(Violation(checker.name, text))
        if not between:
            self._suspicions[node] = lasting

    def _still(self, node: str, checker: Checker, text: str) -> bool:
        return text in list(checker.host_changed(self.cloud, node))

    def _ask(self, look: Callable[[Checker], Iterator[str]]) -> None:
        self.events += 1
        for checker in self._checkers:
            for text in look(checker):
                self._fail(Violation(checker.name, text))
