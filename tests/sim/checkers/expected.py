"""At rest each controller that is there is expected, and none of them is missed."""

from __future__ import annotations

from collections.abc import Iterator

from tests.sim.asked import Asked
from tests.sim.checkers.base import Checker
from tests.sim.cloud import Cloud


class Expected(Checker):
    """Compares sessions with who is expected."""

    def settled(self, cloud: Cloud, asked: Asked) -> Iterator[str]:
        """All are there by then."""
        members = cloud.all("controller_member")
        for name in cloud.all("controller"):
            if name not in members:
                yield f"controller {name} is there and not expected"
            elif members[name].HasField("missing_time"):
                yield f"controller {name} is there and told as missing"
