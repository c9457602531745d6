"""A volume is open in at most one guest, only of a VM it was attached to, and is not taken away or changed under it.

While it is open only the guest's own process makes it larger.
"""

from __future__ import annotations

from collections.abc import Iterator

from tests.sim.checkers.base import Checker
from tests.sim.cloud import Cloud, Commit


class OneAttachment(Checker):
    """Keeps which VM each volume was ever attached to, and each node's volumes as they were."""

    def __init__(self) -> None:
        self._attached: set[tuple[str, str]] = set()
        self._sizes: dict[str, dict[str, int]] = {}
        self._open: dict[str, set[tuple[str, str]]] = {}
        self._shared: dict[str, int] = {}
        # What guests saw at most of volumes in the shared pool.
        self._seen: dict[str, int] = {}

    def committed(self, cloud: Cloud, commit: Commit) -> Iterator[str]:
        """Learn who is attached to whom."""
        for change in commit.changes:
            if change.kind == "volume" and change.after is not None and change.after.spec.vm:
                self._attached.add((change.id, change.after.spec.vm))
        yield from ()

    def pool_changed(self, cloud: Cloud) -> Iterator[str]:
        """Nothing is taken from the shared pool that a guest anywhere has open; nothing there shrinks.

        But a guest's process that looks anew may cut what the pool grew just then: what no guest has seen yet.
        """
        for node, held in self._open.items():
            for volume, id in sorted(held):
                if volume in self._shared and volume not in cloud.shared:
                    yield f"volume {volume} was taken from the shared pool while {id} on {cloud.name_of(node)} has it open"
        for volume, size in cloud.shared.items():
            looked = any(host.looked.get(volume) == size for host in cloud.hosts.values())
            if size < self._shared.get(volume, 0) and not (looked and size >= self._seen.get(volume, 0)):
                yield f"volume {volume} in the shared pool shrank from {self._shared[volume]} to {size}"
        self._shared = dict(cloud.shared)

    def host_changed(self, cloud: Cloud, node: str) -> Iterator[str]:
        """Look at the volumes the node's guests have open."""
        host = cloud.hosts[node]
        holders = {
            volume: id for other in cloud.hosts.values() for id, guest in other.guests.items() for volume in guest.volumes
        }
        before, now = self._open.get(node, set()), set[tuple[str, str]]()
        for id, guest in host.guests.items():
            for volume, seen in guest.seen.items():
                self._seen[volume] = max(seen, self._seen.get(volume, 0))
            for volume in guest.volumes:
                now.add((volume, id))
                if holders[volume] != id:
                    yield f"volume {volume} is open in {id} and in {holders[volume]}"
                if (volume, id) not in self._attached:
                    yield f"volume {volume} is open in {id}, to which it was never attached"
        sizes = self._sizes.get(node, {})
        for volume, id in sorted(before & now):
            if volume in cloud.shared:
                continue
            if host.grown is None or (volume in host.volumes and host.volumes[volume] == host.grown.get(volume)):
                continue
            if volume in sizes and host.volumes.get(volume) != sizes[volume]:
                yield f"volume {volume} was {sizes[volume]} bytes, is {host.volumes.get(volume)}, and {id} has it open"
        self._open[node], self._sizes[node] = now, dict(host.volumes)
