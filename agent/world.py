"""What is on this node, as last observed: domains, volumes, images, networks, files of guests.

Five parts, each read anew only when it may have changed (`mark`): after an event of its driver, before and after we act on it,
and all of them at a full scan. Several who need a part at the same time share one reading.
"""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Awaitable, Callable
from typing import Any

from cairn.agent.guestfiles import GuestFiles
from cairn.agent.hypervisor.base import Domain, Hypervisor
from cairn.net.base import Dataplane, Observed
from cairn.storage.base import Attachment, Image, ImageStore, Volume, VolumeDriver


class Part(enum.Enum):
    """One source of observation."""

    DOMAINS = "domains"
    VOLUMES = "volumes"
    IMAGES = "images"
    NETWORKS = "networks"
    FILES = "files"


class World:
    """The observation. Readings raise what the driver raises; what was read before stays."""

    def __init__(
        self, hypervisor: Hypervisor, volumes: VolumeDriver, images: ImageStore, dataplane: Dataplane, files: GuestFiles
    ) -> None:
        self._volume_driver = volumes
        self._read: dict[Part, Callable[[], Awaitable[Any]]] = {
            Part.DOMAINS: hypervisor.list,
            Part.VOLUMES: volumes.list,
            Part.IMAGES: images.list,
            Part.NETWORKS: dataplane.observe,
            Part.FILES: files.list,
        }
        self._marked = dict.fromkeys(Part, 1)
        self._seen = dict.fromkeys(Part, 0)
        self._locks = {part: asyncio.Lock() for part in Part}
        self._attachments: dict[str, Attachment] = {}
        self.domains: dict[str, Domain] = {}
        self.volumes: dict[str, Volume] = {}
        self.images: dict[str, Image] = {}
        self.networks = Observed()
        self.files: set[str] = set()

    def mark(self, *parts: Part) -> None:
        """Say that parts may have changed; none named: all."""
        for part in parts or Part:
            self._marked[part] += 1

    def is_fresh(self, *parts: Part) -> bool:
        """Whether nothing was marked since these parts were read."""
        return all(self._seen[part] == self._marked[part] for part in parts)

    async def refresh(self, *parts: Part) -> None:
        """Read those of the parts that are marked."""
        for part in parts:
            if self._seen[part] < self._marked[part]:
                async with self._locks[part]:
                    if self._seen[part] < self._marked[part]:
                        await self._refresh(part)

    async def attachment(self, volume: str) -> Attachment:
        """Return how the hypervisor opens a volume that is here."""
        if volume not in self._attachments:
            self._attachments[volume] = await self._volume_driver.attachment(volume)
        return self._attachments[volume]

    async def _refresh(self, part: Part) -> None:
        marked = self._marked[part]
        found = await self._read[part]()
        match part:
            case Part.DOMAINS:
                self.domains = {domain.id: domain for domain in found}
            case Part.VOLUMES:
                self.volumes = {volume.id: volume for volume in found}
                self._attachments = {id: each for id, each in self._attachments.items() if id in self.volumes}
            case Part.IMAGES:
                self.images = {image.digest: image for image in found}
            case Part.NETWORKS:
                self.networks = found
            case Part.FILES:
                self.files = found
        self._seen[part] = marked
