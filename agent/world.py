"""What is on this node, as last observed: domains, volumes, images, networks, files of guests.

Parts, each read anew only when it may have changed (`mark`): after an event of its driver, before and after we act on it, and
all of them at a full scan. Several who need a part at the same time share one reading. Of guests only those are looked at that
may have changed, when that is known (`mark_guest`): listing them costs what there is of them.

Of volumes those are looked at that an object of this node is about (`want`), wherever they are; what else is in this node's own
pools is a part of its own. A type of volume that cannot be looked at hides nothing of the others: who needs one of it asks
`require` first.
"""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from typing import Any, Final

from cairn.agent.guestfiles import GuestFiles
from cairn.agent.hypervisor.base import Domain, Hypervisor, HypervisorError
from cairn.net.base import Dataplane, Observed
from cairn.proto.ids import LOCAL_POOL
from cairn.proto.log import logger
from cairn.proto.v1.agent_pb2 import Desired, VmDisk
from cairn.storage.base import Attachment, Claiming, Image, ImageStore, StorageError, Volume
from cairn.storage.drivers import Drivers

# One failed reading is no silence: a daemon that is restarted is away for some seconds.
SILENT_AFTER_S: Final = 10.0
SAY_MAX: Final = 300


class Part(enum.Enum):
    """One source of observation."""

    DOMAINS = "domains"
    # Those that are wanted; and all that are in this node's own pools.
    VOLUMES = "volumes"
    POOLS = "pools"
    IMAGES = "images"
    NETWORKS = "networks"
    FILES = "files"


class World:
    """The observation. Readings raise what the driver raises; what was read before stays."""

    def __init__(
        self, hypervisor: Hypervisor, drivers: Drivers, images: ImageStore, dataplane: Dataplane, files: GuestFiles
    ) -> None:
        self._drivers = drivers
        self._read: dict[Part, Callable[[], Awaitable[Any]]] = {
            Part.DOMAINS: self._look_at_guests,
            Part.VOLUMES: self._look,
            Part.POOLS: drivers.list_own,
            Part.IMAGES: images.list,
            Part.NETWORKS: dataplane.observe,
            Part.FILES: files.list,
        }
        self._hypervisor = hypervisor
        self._marked = dict.fromkeys(Part, 1)
        self._seen = dict.fromkeys(Part, 0)
        self._locks = {part: asyncio.Lock() for part in Part}
        # Guests that may have changed since domains were read; None: any of them.
        self._stirred: set[str] | None = None
        self._attachments: dict[str, Attachment] = {}
        # Key of an object -> the volumes it is about, with their types; and all of them.
        self._wants: dict[str, Mapping[str, str]] = {}
        self._wanted: dict[str, str] = {}
        self._troubles: dict[str, StorageError] = {}
        # Since when the hypervisor could not tell of its domains, on the event loop's clock, and what it said first.
        self._silence: tuple[float, str] | None = None
        self.domains: dict[str, Domain] = {}
        self.volumes: dict[str, Volume] = {}
        self.pooled: dict[str, Volume] = {}
        self.images: dict[str, Image] = {}
        self.networks = Observed()
        self.files: set[str] = set()

    def mark(self, *parts: Part) -> None:
        """Say that parts may have changed; none named: all."""
        for part in parts or Part:
            self._marked[part] += 1
            if part is Part.DOMAINS:
                self._stirred = None

    def mark_guest(self, id: str) -> None:
        """Say that one guest may have changed, and no other."""
        self._marked[Part.DOMAINS] += 1
        if self._stirred is not None:
            self._stirred.add(id)

    def is_fresh(self, *parts: Part) -> bool:
        """Whether nothing was marked since these parts were read."""
        return all(self._seen[part] == self._marked[part] for part in parts)

    async def refresh(self, *parts: Part) -> None:
        """Read those of the parts that are marked, beside each other."""
        stale = [part for part in parts if self._seen[part] < self._marked[part]]
        if len(stale) == 1:
            await self._refresh(stale[0])
        elif stale:
            outcomes = await asyncio.gather(*map(self._refresh, stale), return_exceptions=True)
            for error in outcomes:
                if error is not None:
                    raise error

    def want(self, key: str, object: Desired | None) -> None:
        """Say which object a key stands for now; None: none. From now on the volumes it is about are looked at."""
        before, wants = self._wants.pop(key, {}), _volumes_of(object)
        if wants:
            self._wants[key] = wants
        if wants != before:
            self._wanted = {id: type for wants in self._wants.values() for id, type in wants.items()}
        if wants.keys() - before.keys():
            self.mark(Part.VOLUMES)

    def require(self, *types: str) -> None:
        """Raise StorageError when volumes of one of these types (none: any) could not be looked at; they will be again."""
        for type, error in self._troubles.items():
            if not types or type in {each or LOCAL_POOL for each in types}:
                self.mark(Part.VOLUMES)
                raise StorageError(f"volumes of type {type} cannot be looked at: {error}") from error

    def hypervisor_silent(self) -> str:
        """Return why the hypervisor has not answered for a while; empty: it does. The words stay the same while that lasts."""
        if self._silence is None or asyncio.get_running_loop().time() - self._silence[0] < SILENT_AFTER_S:
            return ""
        return self._silence[1]

    async def attachment(self, volume: str) -> Attachment:
        """Return how the hypervisor opens a volume that is there."""
        if volume not in self._attachments:
            self._attachments[volume] = await self._drivers.of(self._wanted.get(volume, "")).attachment(volume)
        return self._attachments[volume]

    async def show_claims(self, disks: Iterable[VmDisk]) -> None:
        """Ask the pools of shared disks whether they may be opened. StorageError, Superseded: one may not."""
        for disk in disks:
            driver = self._drivers.of(disk.type)
            if disk.open_generation and isinstance(driver, Claiming):
                await driver.open(disk.volume, disk.open_generation)

    def mark_openers(self, volumes: Collection[str]) -> None:
        """Have those guests looked at anew that had one of these volumes, on or off: not all that happens is heard of."""
        for domain in self.domains.values():
            if not set(domain.volumes).isdisjoint(volumes):
                self.mark_guest(domain.id)

    async def _look(self) -> dict[str, Volume]:
        """Look at what is wanted; of a type that cannot be looked at, what was seen before stays."""
        wanted = dict(self._wanted)
        found, self._troubles = await self._drivers.observe(wanted)
        for type, error in self._troubles.items():
            logger("world").warning("volumes_unseen", type=type, error=str(error))
        stays = {id for id, type in wanted.items() if (type or LOCAL_POOL) in self._troubles and id in self.volumes}
        return found | {id: self.volumes[id] for id in sorted(stays)}

    async def _look_at_guests(self) -> dict[str, Domain]:
        """Look at those that may have changed, or at all of them."""
        stirred, self._stirred = self._stirred, set()
        try:
            if stirred is None:
                return {domain.id: domain for domain in await self._hypervisor.list()}
            found = {domain.id: domain for domain in await self._hypervisor.look(stirred)}
        except BaseException:
            self._stirred = None
            raise
        return {id: domain for id, domain in self.domains.items() if id not in stirred} | found

    async def _refresh(self, part: Part) -> None:
        async with self._locks[part]:
            if self._seen[part] < self._marked[part]:
                await self._read_anew(part)

    async def _read_anew(self, part: Part) -> None:
        marked = self._marked[part]
        try:
            found = await self._read[part]()
        except HypervisorError as error:
            if part is Part.DOMAINS and self._silence is None:
                self._silence = asyncio.get_running_loop().time(), str(error)[:SAY_MAX]
            raise
        match part:
            case Part.DOMAINS:
                self.domains = found
                self._silence = None
            case Part.VOLUMES:
                self.volumes = found
                self._attachments = {id: each for id, each in self._attachments.items() if id in self.volumes}
            case Part.POOLS:
                self.pooled = {volume.id: volume for volume in found}
            case Part.IMAGES:
                self.images = {image.digest: image for image in found}
            case Part.NETWORKS:
                self.networks = found
            case Part.FILES:
                self.files = found
        self._seen[part] = marked


def _volumes_of(object: Desired | None) -> dict[str, str]:
    """Return the volumes an object is about, with their types."""
    kind = object.WhichOneof("object") if object is not None else None
    if object is not None and kind == "volume":
        return {object.volume.id: object.volume.type}
    return {disk.volume: disk.type for disk in object.vm.disks} if object is not None and kind == "vm" else {}
