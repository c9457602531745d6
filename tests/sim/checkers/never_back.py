"""What only grows never goes back: what a node's ledger durably holds, whole and per key; revisions, epoch, generations, sizes.
Nor does who was superseded: a stream or a controller whose record another one's has replaced never writes its own again.

Over crashes and power losses, too: the position a node has ever accepted is the least it holds from then on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final

from tests.sim.checkers.base import Checker
from tests.sim.cloud import Changed, Cloud, Commit, Position

# Kind -> what of it never shrinks while the record is there.
_GROWS: Final[dict[str, Callable[[Any], tuple[tuple[str, Any], ...]]]] = {
    "vm": lambda vm: (
        ("power generation", vm.spec.power_generation),
        ("reboot generation", vm.spec.reboot_generation),
    ),
    "volume": lambda volume: (("size", volume.spec.size_bytes),),
    "volume_placement": lambda place: (("size", place.disk_bytes),),
    "cluster": lambda cluster: (("epoch", cluster.epoch),),
    "observed": lambda observed: (("version", (observed.report.version.epoch, observed.report.version.revision)),),
}
_SESSIONS: Final = ("node_session", "controller")


class NeverBack(Checker):
    """Keeps the furthest positions seen."""

    def __init__(self) -> None:
        # Epoch and revision of the store: a restored one has a new epoch.
        self._at: Position = (0, 0)
        self._held: dict[str, Position] = {}
        self._keys: dict[tuple[str, str], Position] = {}
        self._sizes: dict[tuple[str, str], int] = {}
        # Key of a session -> those that were replaced, as bytes.
        self._superseded: dict[str, set[bytes]] = {}
        self._last: dict[str, bytes] = {}

    def committed(self, cloud: Cloud, commit: Commit) -> Iterator[str]:
        """Revisions, and what records count."""
        cluster = cloud.get("cluster", "self")
        at = cluster.epoch if cluster is not None else 0, commit.revision
        if at <= self._at:
            yield f"revision {commit.revision} came after {self._at[1]}, both of epoch {at[0]}"
        self._at = at
        for change in commit.changes:
            if change.kind in _GROWS and change.before is not None and change.after is not None:
                grows = _GROWS[change.kind]
                for (what, before), (_, after) in zip(grows(change.before), grows(change.after), strict=True):
                    if after < before:
                        yield f"the {what} of {change.key} went back from {before} to {after}"
            elif change.kind in _SESSIONS:
                yield from self._replaced(change)

    def _replaced(self, change: Changed) -> Iterator[str]:
        after = change.after and change.after.SerializeToString(deterministic=True)
        if after is None:
            return
        last, over = self._last.get(change.key), self._superseded.setdefault(change.key, set())
        if after in over:
            yield f"{change.key} was taken back by who had been superseded"
        if last is not None and last != after:
            # Also one that ran out before the next came.
            over.add(last)
        self._last[change.key] = after

    def accepted(self, cloud: Cloud, node: str) -> Iterator[str]:
        """Look at a ledger."""
        host = cloud.hosts[node]
        if host.held < self._held.get(node, (0, 0)):
            yield f"the ledger of {host.name} went back from {self._held[node]} to {host.held}"
        self._held[node] = host.held
        for key, at in host.ledger.items():
            if at < self._keys.get((node, key), (0, 0)):
                yield f"{key} in the ledger of {host.name} went back from {self._keys[node, key]} to {at}"
            self._keys[node, key] = at

    def host_changed(self, cloud: Cloud, node: str) -> Iterator[str]:
        """The ledger as it is after whatever happened; volumes do not shrink."""
        yield from self.accepted(cloud, node)
        for id, size in cloud.hosts[node].volumes.items():
            if size < self._sizes.get((node, id), 0):
                yield f"volume {id} on {cloud.name_of(node)} shrank from {self._sizes[node, id]} to {size}"
            self._sizes[node, id] = size
