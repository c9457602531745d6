"""Volumes of this node, one at a time: made, grown, removed, through storage/plan.py.

User data is safe: a volume is removed only when the controller says `absent`, and not while a guest has it open. One that
nobody mentions is left alone and told as unknown (unknown.py). One that was here and is gone (a pool that is not mounted, a
file somebody deleted) is never made again, empty or from its image, behind its owner's back: it is told as lost until it is
here again. That it was here is a note in the ledger; of one that another node administered before, the controller says so.

Its type decides who makes it (storage/drivers.py); a type this node does not know is told as failed, and nothing is done.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from typing import Final

from cairn.agent.exclusive import Exclusive
from cairn.agent.hypervisor.base import Hypervisor, HypervisorError
from cairn.agent.ledger import Ledger
from cairn.agent.reports import Reports
from cairn.agent.work import Again
from cairn.agent.world import Part, World
from cairn.proto.v1.agent_pb2 import DesiredVolume, ImageReport, Report, VolumeReport
from cairn.storage.base import Claiming, StorageError, Volume, VolumeDriver
from cairn.storage.drivers import Drivers
from cairn.storage.plan import Action, CreateVolume, DeleteVolume, GrowVolume, plan

LOST: Final = "was here and is gone: is its pool mounted? Bring its file back, or delete it; it is not made again by itself"
LOOK_AGAIN_S: Final = 10.0
# Name in a volume's note.
_HERE: Final = "here"


class Volumes:
    """Observe, plan, apply, report for a volume."""

    def __init__(
        self,
        drivers: Drivers,
        hypervisor: Hypervisor,
        world: World,
        ledger: Ledger,
        reports: Reports,
        exclusive: Exclusive,
    ) -> None:
        self._drivers, self._hypervisor, self._exclusive = drivers, hypervisor, exclusive
        self._world, self._ledger, self._reports = world, ledger, reports
        # Keys that wait for a guest to let go.
        self.in_use: set[str] = set()
        # Key -> the newest claim that was shut out.
        self._shut: dict[str, int] = {}
        # Key -> the generation by which the pool was told to delete it.
        self._deleted: dict[str, int] = {}

    async def settle(self, key: str) -> Again:
        """Make a volume what it should be; StorageError or HypervisorError when that failed."""
        object = self._ledger.object(key)
        self.in_use.discard(key)
        if object is None or object.volume.elsewhere:
            self._shut.pop(key, None)
            self._deleted.pop(key, None)
            return Again()
        desired = object.volume
        try:
            driver = self._drivers.of(desired.type)
        except StorageError as error:
            self._report(key, VolumeReport(state=VolumeReport.STATE_FAILED, say=str(error), error=str(error)))
            return Again()
        await self._world.refresh(Part.VOLUMES, Part.IMAGES, Part.DOMAINS)
        self._world.require(desired.type)
        await self._shut_out(key, desired, driver)
        held = self._world.volumes.get(desired.id)
        if desired.absent and held is not None and await self._ledger.yield_to(key):
            # It was to be removed before a restore, and is still here: the restored record lets it live.
            object = self._ledger.object(key) or object
            desired = object.volume
        image = self._world.images.get(desired.image_digest)
        actions = plan([], [desired], [image] if image else [], [held] if held else [])
        if held is None and desired.absent and self._deleted.get(key) == desired.generation:
            actions = []
        if held is None and not desired.absent and (desired.made or self._was_here(key)):
            self._report(key, VolumeReport(state=VolumeReport.STATE_FAILED, say=LOST, error=LOST))
            return Again(after_s=LOOK_AGAIN_S)
        async with self._alone(desired.id, actions):
            if self._ledger.object(key) != object:
                # It was told something else meanwhile, which has woken this key.
                return Again()
            if held is not None and any(self._is_held_from_removal(action) for action in actions):
                self.in_use.add(key)
                self._say_ready(key, held, "removed once no guest has it open")
                return Again()
            await self._act(key, desired, held, driver, actions)
        if desired.absent:
            self._deleted[key] = desired.generation
        await self._world.refresh(Part.VOLUMES)
        self._world.require(desired.type)
        await self._conclude(key, desired)
        return Again()

    async def _shut_out(self, key: str, desired: DesiredVolume, driver: VolumeDriver) -> None:
        """Shut out who opened it by an older claim, if that is asked for; StorageError: some may have it still."""
        if desired.shut_out > self._shut.get(key, 0) and isinstance(driver, Claiming):
            await driver.shut_out(desired.id, desired.shut_out, generation=desired.generation)
            self._shut[key] = desired.shut_out

    @asynccontextmanager
    async def _alone(self, id: str, actions: Sequence[Action]) -> AsyncGenerator[None]:
        """Let no guest begin to open a volume that is grown or removed; who has it open by now is seen."""
        if not any(isinstance(action, GrowVolume | DeleteVolume) for action in actions):
            yield
            return
        async with self._exclusive.hold({id}):
            self._world.mark_openers({id})
            await self._world.refresh(Part.DOMAINS)
            yield

    async def _act(
        self, key: str, desired: DesiredVolume, held: Volume | None, driver: VolumeDriver, actions: Sequence[Action]
    ) -> None:
        """Do what was planned, and say it; StorageError or HypervisorError when that failed. held: as it was seen then."""
        try:
            for action in actions:
                if not isinstance(action, CreateVolume | GrowVolume | DeleteVolume):
                    continue
                if isinstance(action, CreateVolume):
                    self._report(key, VolumeReport(state=VolumeReport.STATE_CREATING, say="being made"))
                await self._apply(action, driver, desired.generation)
        except StorageError as error:
            if held is not None and error.retryable and not desired.absent:
                self._say_ready(key, held, "growing it failed; trying again", error=str(error))
                raise
            state = VolumeReport.STATE_CREATING if error.retryable else VolumeReport.STATE_FAILED
            say = f"{error}; trying again" if error.retryable else str(error)
            self._report(key, VolumeReport(state=state, say=say, error=str(error)))
            raise
        except HypervisorError as error:
            if held is not None:
                self._say_ready(key, held, "growing it failed; trying again", error=str(error))
            raise

    def _was_here(self, key: str) -> bool:
        return bool(self._ledger.note(key).get(_HERE))

    async def _apply(self, action: CreateVolume | GrowVolume | DeleteVolume, driver: VolumeDriver, generation: int) -> None:
        try:
            match action:
                case CreateVolume():
                    await driver.create(action.volume)
                case GrowVolume():
                    await self._grow(action, driver, generation)
                case DeleteVolume():
                    await self._ledger.write_note(f"volume/{action.id}", None)
                    await driver.delete(action.id, generation=generation)
        finally:
            self._world.mark(Part.VOLUMES, Part.POOLS)

    async def _grow(self, action: GrowVolume, driver: VolumeDriver, generation: int) -> None:
        """Grow it; one of this node that a guest has open by that guest's process, which alone may change it then."""
        holders = [domain.id for domain in self._world.domains.values() if action.id in domain.open_volumes]
        if holders and not generation:
            await self._hypervisor.grow_disk(holders[0], action.id, action.size_bytes)
        else:
            await driver.resize(action.id, action.size_bytes, generation=generation)

    def _is_held_from_removal(self, action: Action) -> bool:
        """Whether a guest has a volume that is to be removed, or is about to start with it."""
        domains = self._world.domains.values()
        return isinstance(action, DeleteVolume) and any(action.id in domain.volumes for domain in domains)

    def _say_ready(self, key: str, held: Volume, say: str, *, error: str = "") -> None:
        body = VolumeReport(state=VolumeReport.STATE_READY, say=say, error=error)
        body.size_bytes, body.used_bytes = held.size_bytes, held.used_bytes
        self._report(key, body)

    async def _conclude(self, key: str, desired: DesiredVolume) -> None:
        held = self._world.volumes.get(desired.id)
        if held is not None:
            if key in self._ledger.desired and not desired.absent:
                await self._ledger.write_note(key, {_HERE: True})
            used_bytes = self._used_bytes(key, held)
            body = VolumeReport(state=VolumeReport.STATE_READY, size_bytes=held.size_bytes, used_bytes=used_bytes)
        elif desired.absent:
            body = VolumeReport(state=VolumeReport.STATE_ABSENT, say="removed")
        else:
            body = VolumeReport(state=VolumeReport.STATE_CREATING, say=f"waits for its image: {self._image_say(desired)}")
        self._report(key, body)

    def _used_bytes(self, key: str, held: Volume) -> int:
        """Return what it takes, as reported before unless it changed by more than a percent of its size: no chatter."""
        before = self._reports.latest(key)
        if before is not None and abs(before.volume.used_bytes - held.used_bytes) * 100 <= held.size_bytes:
            return before.volume.used_bytes or held.used_bytes
        return held.used_bytes

    def _image_say(self, desired: DesiredVolume) -> str:
        report = self._reports.latest(f"image/{desired.image}")
        if report is None:
            return f"nobody told this node to hold image {desired.image}"
        return report.image.error if report.image.state == ImageReport.STATE_FAILED else report.image.say

    def _report(self, key: str, body: VolumeReport) -> None:
        held = self._ledger.desired.get(key)
        if held is not None:
            # Of what is asked for now: what was done before is of no use to anybody.
            body.shut_out = min(self._shut.get(key, 0), held.object.volume.shut_out)
            self._reports.put(Report(key=key, version=held.version, volume=body))
