"""A VM runs on at most one node: no two processes of one guest, executing or not."""

from __future__ import annotations

from collections.abc import Iterator

from tests.sim.checkers.base import Checker
from tests.sim.cloud import Cloud


class OneNode(Checker):
    """Looks at every host whenever the guests of one changed."""

    def host_changed(self, cloud: Cloud, node: str) -> Iterator[str]:
        """Look for the node's guests elsewhere."""
        for id in cloud.hosts[node].guests:
            for other, host in cloud.hosts.items():
                if other != node and id in host.guests:
                    yield f"VM {id} has a process on {cloud.name_of(node)} and on {host.name}"
