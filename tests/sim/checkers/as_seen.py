"""At rest a guest sees all of its volumes; and only who administers a volume in the shared pool makes it larger.

A guest's process that is to look anew gives the volume the size it is told. So its node is told of none that the volume has not
had, and the process of none that it has not now.
"""

from __future__ import annotations

from collections.abc import Iterator

from tests.sim.asked import Asked
from tests.sim.checkers.base import Checker
from tests.sim.cloud import Cloud


class AsSeen(Checker):
    """Compares guests' disks with pools; keeps how large each volume in the shared pool has been."""

    def __init__(self) -> None:
        self._had: dict[str, int] = {}

    def pool_changed(self, cloud: Cloud) -> Iterator[str]:
        """Learn how large they are."""
        for volume, size in cloud.shared.items():
            self._had[volume] = max(size, self._had.get(volume, 0))
        yield from ()

    def accepted(self, cloud: Cloud, node: str) -> Iterator[str]:
        """No node is told of more than was there; of what is gone its ledger may speak still."""
        for volume, size in cloud.hosts[node].told.items():
            had = max(self._had.get(volume, 0), cloud.shared.get(volume, size))
            if size > had:
                yield f"{cloud.name_of(node)} is told that volume {volume} has {size} bytes, and it had {had}"

    def host_changed(self, cloud: Cloud, node: str) -> Iterator[str]:
        """No guest's process is about to make a volume larger than it is in the shared pool."""
        for volume, size in cloud.hosts[node].looked.items():
            if size > cloud.shared.get(volume, size):
                yield f"volume {volume} has {cloud.shared[volume]} bytes, and its guest on {cloud.name_of(node)} is told {size}"

    def settled(self, cloud: Cloud, asked: Asked) -> Iterator[str]:
        """Each volume is as large as there is room claimed for it, and so its guest sees it."""
        for host in cloud.hosts.values():
            for guest in host.guests.values():
                for volume, seen in guest.seen.items() if guest.executing else ():
                    has = cloud.shared.get(volume, host.volumes.get(volume))
                    if seen != has:
                        yield f"{guest.id} on {host.name} sees {seen} bytes of volume {volume}, which has {has}"
        for volume, size in cloud.shared.items():
            place = cloud.get("volume_placement", volume)
            if place is not None and size < place.disk_bytes:
                yield f"volume {volume} has {size} bytes in the shared pool, and is to have {place.disk_bytes}"
