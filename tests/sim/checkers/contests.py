"""What only one user can get, exactly one gets: not two, and not nobody."""

from __future__ import annotations

from collections.abc import Iterator

from tests.sim.asked import Asked
from tests.sim.checkers.base import Checker
from tests.sim.cloud import Cloud


class Contests(Checker):
    """Counts the winners once everybody was answered."""

    def settled(self, cloud: Cloud, asked: Asked) -> Iterator[str]:
        """Look at each contest."""
        yield from asked.undecided()
