"""A node does not let go of many guests at once: those it has no word about stay as they were told last (docs/decisions/0025).

Guests that are to be absent are none of these, and a restored store is believed: it knows less.
"""

from __future__ import annotations

from collections.abc import Iterator

from tests.sim.checkers.base import Checker
from tests.sim.cloud import Cloud, Host

# So many are too many.
MANY = 4


class LetGo(Checker):
    """Compares what each ledger says with what it said."""

    def __init__(self) -> None:
        self._before: dict[str, Host] = {}

    def accepted(self, cloud: Cloud, node: str) -> Iterator[str]:
        """Look at what a node does not manage any more."""
        host, before = cloud.hosts[node], self._before.get(node)
        self._before[node] = host
        if before is None or host.held[0] != before.held[0]:
            return
        gone = sorted(key for key, there in before.wanted.items() if there and key not in host.wanted)
        if len(gone) >= MANY:
            yield f"{host.name} has let go of {', '.join(gone)}, all at once and without a word"
