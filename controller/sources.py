"""Which nodes can be asked for an image: a few for each that lacks it, and who is told another few when one comes or goes.

    sources = Sources()
    sources.keep({"node-1"})              # the nodes that keep it for all
    sources.add("node-2")                 # it holds it and can be reached
    sources.of("node-7")                  # ["node-1", "node-2"]: its keepers first, then others
    sources.told("node-2", lacking)       # those of some nodes that are told of it: no others' lists change with it

Each asker begins elsewhere among the keepers, and elsewhere among the others, who stand on a ring at the hashes of their ids.
So a node that comes or goes changes the lists of those few before it on the ring, not everybody's. Where many keep it, keepers
are as others. Rejected: the nearest few by a hash of each pair (all that hold it had to be looked at for all that lack it,
whenever one more held it).
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Collection, Iterable, Iterator
from functools import lru_cache
from typing import Final

from cairn.controller.model.nodes import hash_of

SOURCES_MAX: Final = 8
# Where a node stands. The same few thousand are asked for again and again.
_at = lru_cache(maxsize=16384)(hash_of)


class Sources:
    """See the module. Those of one image."""

    def __init__(self) -> None:
        self._keeping: Collection[str] = ()
        # Of those that keep it, and of all others, (hash, node) of each that can be asked, in order.
        self._keepers: list[tuple[int, str]] = []
        self._others: list[tuple[int, str]] = []
        self._nodes: set[str] = set()

    def __contains__(self, node: str) -> bool:
        return node in self._nodes

    def __len__(self) -> int:
        return len(self._nodes)

    def keep(self, keeping: Collection[str]) -> None:
        """Say which nodes keep it for all: whoever lacks it may be told otherwise now."""
        self._keeping = keeping if len(keeping) <= SOURCES_MAX else ()
        ring = sorted((_at(node), node) for node in self._nodes)
        self._keepers = [each for each in ring if each[1] in self._keeping]
        self._others = [each for each in ring if each[1] not in self._keeping]

    def add(self, node: str) -> None:
        """It can be asked from now on."""
        if node not in self._nodes:
            self._nodes.add(node)
            insort(self._among(node), (_at(node), node))

    def remove(self, node: str) -> None:
        """It cannot be asked any more."""
        if node in self._nodes:
            self._nodes.discard(node)
            self._among(node).remove((_at(node), node))

    def of(self, asker: str) -> list[str]:
        """Return the nodes that one is told of, in the order in which it is to ask them."""
        place = _at(asker)
        first = place % len(self._keepers) if self._keepers else 0
        found = [node for node in _round(self._keepers, first) if node != asker][:SOURCES_MAX]
        for node in _round(self._others, bisect_left(self._others, (place, ""))):
            if len(found) == SOURCES_MAX:
                break
            if node != asker:
                found.append(node)
        return found

    def told(self, node: str, askers: Iterable[str]) -> Iterator[str]:
        """Yield those askers that are told of a node; of a keeper, or of one of few, all. It can be asked, they cannot."""
        places = max(0, SOURCES_MAX - len(self._keepers))
        if node in self._keeping or len(self._others) <= places:
            yield from askers
            return
        if not places:
            return
        # From behind the one that fills the last place of those who stand before it, up to the node.
        last = bisect_left(self._others, (_at(node), node))
        after, until = self._others[last - places][0], self._others[last][0]
        for asker in askers:
            place = _at(asker)
            if after < place <= until if after < until else place > after or place <= until:
                yield asker

    def _among(self, node: str) -> list[tuple[int, str]]:
        return self._keepers if node in self._keeping else self._others


def _round(ring: list[tuple[int, str]], first: int) -> Iterator[str]:
    """Yield all of a ring, from one on."""
    for step in range(len(ring)):
        yield ring[(first + step) % len(ring)][1]
