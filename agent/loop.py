"""The node's loop: whoever knows that something may have changed wakes a key; each key is observed, planned, applied, reported.

Keys are those of the desired objects; "net" stands for all networking, "images" for removing images, "unknown" for telling what
is here without being desired. They are woken by accepted
changes, by events of the drivers, by reports others depend on (a volume becomes ready: its guest goes on), by retries, and by a
periodic scan of everything. All take the same path, so a lost event costs time, never correctness.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Final

from cairn.agent import networks, unknown
from cairn.agent.guests import DriverError, Guests
from cairn.agent.hypervisor.base import Hypervisor
from cairn.agent.images import Images
from cairn.agent.ledger import Ledger
from cairn.agent.networks import Networks
from cairn.agent.reports import Reports
from cairn.agent.unknown import Unknowns
from cairn.agent.volumes import Volumes
from cairn.agent.work import Again, KeyedWork
from cairn.agent.world import Part, World
from cairn.net.base import Dataplane
from cairn.proto.log import logger
from cairn.proto.seams import Ids
from cairn.proto.v1.agent_pb2 import Desired

SCAN_EVERY_S: Final = 30.0
AT_ONCE_MAX: Final = 8
PULLS_AT_ONCE_MAX: Final = 2
IMAGES: Final = "images"
LISTEN_AGAIN_S: Final = 1.0
# After an event of a guest, what is unknown is looked for: not while the guest starts.
UNKNOWN_AFTER_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class Units:
    """Who serves which keys."""

    guests: Guests
    volumes: Volumes
    images: Images
    networks: Networks
    unknowns: Unknowns


class NodeLoop:
    """Wakes and handles keys until cancelled."""

    def __init__(
        self,
        units: Units,
        world: World,
        ledger: Ledger,
        reports: Reports,
        hypervisor: Hypervisor,
        dataplane: Dataplane,
        ids: Ids,
    ) -> None:
        self._units, self._world, self._ledger, self._reports = units, world, ledger, reports
        self._hypervisor, self._dataplane = hypervisor, dataplane
        self.work = KeyedWork(self._handle, ids, at_once_max=AT_ONCE_MAX)
        self.pulls = KeyedWork(self._handle, ids, at_once_max=PULLS_AT_ONCE_MAX)
        # Key -> keys of the objects that need it; and the other way round.
        self._users: dict[str, set[str]] = {}
        self._needs: dict[str, set[str]] = {}
        self.handled = 0
        self.failed = 0
        self.handling_s = 0.0
        reports.listener = self._reported
        units.unknowns.forgotten = self.accepted
        units.networks.again = partial(self.work.wake_after, networks.KEY)

    async def run(self) -> None:
        """Serve what the ledger holds and all that comes, until cancelled."""
        self.accepted({*self._ledger.desired, *self._ledger.unknown})
        async with asyncio.TaskGroup() as group:
            group.create_task(self.work.run(), name="work")
            group.create_task(self.pulls.run(), name="pulls")
            group.create_task(self._hear_hypervisor(), name="hypervisor events")
            group.create_task(self._hear_dataplane(), name="dataplane events")
            group.create_task(self._scan_for_ever(), name="scan")

    @property
    def is_idle(self) -> bool:
        """Nothing is due, nothing is handled now."""
        return self.work.is_idle and self.pulls.is_idle

    def accepted(self, keys: Iterable[str]) -> None:
        """Take up keys that changed in the ledger."""
        keys = sorted(set(keys))
        self._units.networks.accept(keys)
        for key in keys:
            object = self._ledger.object(key)
            if key.startswith(("vm/", "volume/")):
                self._world.want(key, object if object is not None else self._ledger.last(key))
            self._set_needs(key, _needs(object) if object is not None else set())
            if object is None:
                self._reports.forget(key)
            self._wake(key, fresh=True)
        self.work.wake(unknown.KEY, fresh=True)

    def _wake(self, key: str, *, fresh: bool = False) -> None:
        kind = key.partition("/")[0]
        if kind in ("network", "subnets", "port", "forward", "peer"):
            self.work.wake(networks.KEY, fresh=fresh)
        elif kind == "image":
            self.pulls.wake(key, fresh=fresh)
            if key not in self._ledger.desired:
                self.work.wake(IMAGES)
        else:
            self.work.wake(key, fresh=fresh)
            if kind == "vm" and fresh:
                # DHCP and metadata speak of guests, too.
                self.work.wake(networks.KEY)

    async def _handle(self, key: str) -> Again:
        """Handle one key; a failure is told in the object's report by its unit, and tried again."""
        started_s = asyncio.get_running_loop().time()
        self.handled += 1
        try:
            return await self._settle(key)
        except DriverError as error:
            self.failed += 1
            retryable = getattr(error, "retryable", True)
            logger("loop").warning("failed", key=key, error=str(error), retryable=retryable)
            return Again(failed=True, retryable=retryable)
        except Exception as error:  # noqa: BLE001 - the boundary: a fault of ours in one object must not stop the others
            self.failed += 1
            logger("loop").error("fault", key=key, exc_info=error)
            self._reports.event(key, "AgentFault", f"a fault in the agent: {error!r}", warning=True)
            return Again(failed=True, retryable=False)
        finally:
            self.handling_s += asyncio.get_running_loop().time() - started_s

    async def _settle(self, key: str) -> Again:
        if not self._ledger.synced:
            return Again()
        kind = key.partition("/")[0]
        if kind == networks.KEY:
            return await self._units.networks.settle()
        if kind == "vm":
            return await self._units.guests.settle(key)
        if kind == "volume":
            return await self._units.volumes.settle(key)
        if kind == "image":
            return await self._units.images.settle(key)
        if kind == unknown.KEY:
            return await self._units.unknowns.settle()
        if kind == IMAGES:
            return await self._units.images.collect()
        logger("loop").warning("unknown_key", key=key)
        return Again()

    # --- what depends on what ----------------------------------------------------------------------------------------------

    def _reported(self, key: str) -> None:
        for user in sorted(self._users.get(key, ())):
            self._wake(user)
        if key.startswith("vm/"):
            self._wake_volumes_in_use()

    def _wake_volumes_in_use(self) -> None:
        for key in sorted(self._units.volumes.in_use):
            self._wake(key)

    def _set_needs(self, key: str, needs: set[str]) -> None:
        for gone in self._needs.get(key, set()) - needs:
            users = self._users[gone]
            users.discard(key)
            if not users:
                del self._users[gone]
        for need in needs:
            self._users.setdefault(need, set()).add(key)
        if needs:
            self._needs[key] = needs
        else:
            self._needs.pop(key, None)

    # --- who wakes ---------------------------------------------------------------------------------------------------------

    async def _hear_hypervisor(self) -> None:
        while True:
            try:
                async for event in self._hypervisor.events():
                    if event.id:
                        self._world.mark_guest(event.id)
                        self.work.wake(f"vm/{event.id}")
                        self.work.wake_after(unknown.KEY, UNKNOWN_AFTER_S)
                    else:
                        self._world.mark(Part.DOMAINS)
                        self._scan()
                    self._wake_volumes_in_use()
            except DriverError as error:
                logger("loop").warning("events_lost", source="hypervisor", error=str(error))
            await asyncio.sleep(LISTEN_AGAIN_S)
            self._world.mark(Part.DOMAINS)
            self._scan()

    async def _hear_dataplane(self) -> None:
        while True:
            try:
                async for key in self._dataplane.events():
                    if not self._units.networks.is_starting(key):
                        self._world.mark(Part.NETWORKS)
                        self.work.wake(networks.KEY)
            except DriverError as error:
                logger("loop").warning("events_lost", source="dataplane", error=str(error))
            await asyncio.sleep(LISTEN_AGAIN_S)
            self._world.mark(Part.NETWORKS)
            self.work.wake(networks.KEY)

    async def _scan_for_ever(self) -> None:
        while True:
            try:
                await self._world.refresh(Part.DOMAINS, Part.VOLUMES, Part.FILES)
            except DriverError as error:
                logger("loop").warning("scan_failed", error=str(error))
            self._scan()
            await asyncio.sleep(SCAN_EVERY_S)
            self._world.mark()

    def _scan(self) -> None:
        """Wake all that is wanted, and who looks for what is there without being wanted."""
        for key in self._ledger.desired:
            self._wake(key)
        self.work.wake(networks.KEY)
        self.work.wake(IMAGES)
        self.work.wake(unknown.KEY)


def _needs(object: Desired) -> set[str]:
    """Return the keys an object waits for."""
    match object.WhichOneof("object"):
        case "vm":
            disks = {f"volume/{disk.volume}" for disk in object.vm.disks}
            return disks | {f"port/{nic.port}" for nic in object.vm.nics}
        case "volume":
            return {f"image/{object.volume.image}"} if object.volume.image else set()
        case _:
            return set()
