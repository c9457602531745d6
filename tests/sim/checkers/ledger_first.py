"""Nothing is made on a node before its ledger durably says so: whoever is killed then knows what he has begun.

A guest's configuration, process and files, and a volume: while it says so. Networks are programmed in passes, and what is no
longer wanted when a pass ends goes with the next: of those the ledger must have known at some time.
"""

from __future__ import annotations

from collections.abc import Iterator

from tests.sim.checkers.base import Checker
from tests.sim.cloud import Cloud, Host

_PASSING = ("network", "port", "forward")


class LedgerFirst(Checker):
    """Keeps what was on each node; what is new must be in its ledger."""

    def __init__(self) -> None:
        self._there: dict[str, set[str]] = {}
        self._known: dict[str, set[str]] = {}

    def accepted(self, cloud: Cloud, node: str) -> Iterator[str]:
        """Learn what a ledger ever said."""
        self._known.setdefault(node, set()).update(cloud.hosts[node].ledger)
        yield from ()

    def host_changed(self, cloud: Cloud, node: str) -> Iterator[str]:
        """Look at what is new."""
        host, before = cloud.hosts[node], self._there.get(node, set())
        now = set(_things(host))
        for key in sorted(now - before):
            passing = key.partition("/")[0] in _PASSING and key in self._known.get(node, ())
            if key not in host.ledger and not passing:
                yield f"{key} is on {host.name}, and its ledger does not know it"
        self._there[node] = now


def _things(host: Host) -> Iterator[str]:
    yield from (f"vm/{id}" for id in host.defined | host.guests.keys() | host.files)
    yield from (f"volume/{id}" for id in host.volumes)
    yield from (f"network/{id}" for id in host.ports)
    yield from (f"port/{port}" for ports in host.ports.values() for port in ports)
    yield from (f"forward/{vpc}/{port}" for vpc, ports in host.forwards.items() for port in ports)
