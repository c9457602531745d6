"""Images this node must hold: pulled from other nodes' agents, or waited for until a controller uploads them.

A pull goes on where it ended, from whichever source answers; the store verifies the bytes before anybody can use them. One
that is damaged here is pulled anew; a source whose bytes are not right is passed over.
Bytes go only when the image was said to be `absent` and nothing else here is made of them: what nobody mentions is told as
unknown (unknown.py). Halves of what nobody wants are swept: they are nobody's image yet.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, Final

import grpc
import grpc.aio
from cairn.agent.ledger import Ledger
from cairn.agent.reports import Reports
from cairn.agent.work import Again
from cairn.agent.world import Part, World
from cairn.proto.log import logger
from cairn.proto.seams import Transport
from cairn.proto.v1.agent_pb2 import BlobSource, DesiredImage, GetBlobRequest, ImageReport, Report
from cairn.proto.v1.agent_pb2_grpc import HostServiceStub
from cairn.storage.base import BadImage, Image, ImageStore, StorageError
from cairn.storage.plan import DeleteImage, plan

# A source that sends nothing for this long is given up.
CHUNK_TIMEOUT_S: Final = 20.0
PROGRESS_EVERY_S: Final = 1.0
REMOVE_AGAIN_S: Final = 10.0


class Images:
    """Observe, plan, apply, report for an image."""

    def __init__(self, store: ImageStore, world: World, ledger: Ledger, reports: Reports, transport: Transport) -> None:
        self._store, self._world, self._ledger, self._reports = store, world, ledger, reports
        self._transport = transport
        self._collecting = asyncio.Lock()

    async def settle(self, key: str) -> Again:
        """Get an image that is not here; StorageError when no source gave it."""
        desired = self._desired(key)
        if desired is None:
            return Again()
        if desired.absent:
            return await self._remove(key, desired)
        await self._world.refresh(Part.IMAGES)
        if not self._is_held(desired.digest) and desired.sources:
            await self._pull(key, desired)
        await self._conclude(key, desired)
        return Again()

    async def receive(self, key: str, desired: DesiredImage, chunks: AsyncIterator[bytes], *, offset: int = 0) -> Image:
        """Store bytes as they come, telling how far it is; see ImageStore.put."""
        try:
            image = await self._store.put(
                desired.digest, desired.size_bytes, desired.format, self._counted(key, chunks, offset), offset=offset
            )
        except StorageError as error:
            state = ImageReport.STATE_FETCHING if error.retryable else ImageReport.STATE_FAILED
            held_bytes = await self._store.partial_bytes(desired.digest)
            self._tell(key, ImageReport(state=state, say="trying again", error=str(error), held_bytes=held_bytes))
            raise
        finally:
            self._world.mark(Part.IMAGES)
        self._tell(key, _ready(image))
        return image

    def _tell(self, key: str, body: ImageReport) -> None:
        """Report what came of bytes; of an image that is to be absent by now another says how far that is."""
        desired = self._desired(key)
        if desired is not None and not desired.absent:
            self._report(key, body)

    async def _remove(self, key: str, desired: DesiredImage) -> Again:
        """Remove an image that must not be here; tell what still keeps its bytes."""
        kept = await self._collect()
        await self._world.refresh(Part.IMAGES, Part.VOLUMES)
        others = [each.id for each in self._images() if each.digest == desired.digest and not each.absent]
        copies = [each.id for each in self._world.volumes.values() if each.image_digest == desired.digest]
        image = self._world.images.get(desired.digest)
        if image is not None and not others:
            # What it is is told, too: whoever has to take it up after a restore knows it from nobody else.
            body = _ready(image)
            body.error = kept.get(desired.digest, "")
            body.say = body.error or (f"kept while {', '.join(copies)} is a copy of it" if copies else "being removed")
            self._report(key, body)
            return Again(after_s=REMOVE_AGAIN_S)
        self._report(key, ImageReport(state=ImageReport.STATE_ABSENT, say="removed"))
        return Again()

    def _is_held(self, digest: str) -> bool:
        image = self._world.images.get(digest)
        return image is not None and image.is_sound

    def _images(self) -> list[DesiredImage]:
        """Return the images that are desired here, or were last: what is unknown stays."""
        held = (*self._ledger.desired.values(), *self._ledger.unknown.values())
        return [each.object.image for each in held if each.object.HasField("image")]

    async def collect(self, _key: str = "") -> Again:
        """Remove images that must be absent, unless a volume is a copy of them, and halves of what nobody wants."""
        await self._collect()
        return Again()

    async def _collect(self) -> dict[str, str]:
        """Do that; return the digests that could not be removed, and why: one that cannot keeps none of the others."""
        kept: dict[str, str] = {}
        if not (self._ledger.synced and self._ledger.trusted):
            return kept
        async with self._collecting:
            await self._world.refresh(Part.IMAGES, Part.VOLUMES)
            images = self._images()
            volumes = [each.object.volume for each in self._ledger.desired.values() if each.object.HasField("volume")]
            for action in plan(images, volumes, self._world.images.values(), self._world.volumes.values()):
                if isinstance(action, DeleteImage):
                    self._world.mark(Part.IMAGES)
                    try:
                        await self._store.delete(action.digest)
                    except StorageError as error:
                        kept[action.digest] = str(error)
                        logger("images").warning("not_removed", digest=action.digest, error=str(error))
                    self._world.mark(Part.IMAGES)
            wanted = {each.digest for each in images if not each.absent}
            await self._store.sweep(wanted | {each.image_digest for each in volumes})
        return kept

    async def _pull(self, key: str, desired: DesiredImage) -> None:
        failures, bad = [], list[BadImage]()
        for source in desired.sources:
            try:
                await self._pull_from(key, desired, source)
                return
            except BadImage as error:
                # Its copy may be damaged, and the next one's not.
                bad.append(error)
                failures.append(f"{source.endpoint}: {error}")
            except (grpc.aio.AioRpcError, TimeoutError) as error:
                failures.append(f"{source.endpoint}: {_reason(error)}")
                logger("images").warning("pull_failed", key=key, source=source.endpoint, error=_reason(error))
        if bad and len(bad) == len(desired.sources):
            raise bad[0]
        say = f"image {desired.id} could not be fetched from {'; '.join(failures)}"
        self._report(key, ImageReport(state=ImageReport.STATE_FETCHING, say="trying again", error=say))
        raise StorageError(say)

    async def _pull_from(self, key: str, desired: DesiredImage, source: BlobSource) -> None:
        offset = await self._store.partial_bytes(desired.digest)
        channel = self._transport.channel([source.endpoint], server_name=f"{source.node}.node.cairn")
        try:
            request = GetBlobRequest(digest=desired.digest, offset=offset)
            await self.receive(key, desired, _chunks(HostServiceStub(channel), request), offset=offset)
        finally:
            await channel.close(None)

    async def _counted(self, key: str, chunks: AsyncIterator[bytes], offset: int) -> AsyncIterator[bytes]:
        loop, held_bytes = asyncio.get_running_loop(), offset
        next_s = loop.time()
        async for chunk in chunks:
            held_bytes += len(chunk)
            if loop.time() >= next_s:
                next_s = loop.time() + PROGRESS_EVERY_S
                desired = self._desired(key)
                if desired is None or desired.absent:
                    raise StorageError(f"{key} is not wanted here any more", retryable=False)
                share = 100 * held_bytes // max(desired.size_bytes, 1)
                say = f"being fetched ({share} %)"
                self._report(key, ImageReport(state=ImageReport.STATE_FETCHING, say=say, held_bytes=held_bytes))
            yield chunk

    async def _conclude(self, key: str, desired: DesiredImage) -> None:
        await self._world.refresh(Part.IMAGES)
        image = self._world.images.get(desired.digest)
        if image is not None and image.is_sound:
            self._report(key, _ready(image))
            return
        held_bytes = await self._store.partial_bytes(desired.digest)
        say = "waits for its upload" if image is None else "its file is damaged; waits for a node that has it, or its upload"
        self._report(key, ImageReport(state=ImageReport.STATE_FETCHING, say=say, held_bytes=held_bytes))

    def _desired(self, key: str) -> DesiredImage | None:
        object = self._ledger.object(key)
        return object.image if object is not None else None

    def _report(self, key: str, body: ImageReport) -> None:
        held = self._ledger.desired.get(key)
        if held is not None:
            self._reports.put(Report(key=key, version=held.version, image=body))


async def _chunks(stub: HostServiceStub, request: GetBlobRequest) -> AsyncIterator[bytes]:
    call: Any = stub.GetBlob(request)
    responses = aiter(call)
    try:
        while True:
            async with asyncio.timeout(CHUNK_TIMEOUT_S):
                response = await anext(responses, None)
            if response is None:
                return
            yield response.chunk
    finally:
        call.cancel()


def _ready(image: Image) -> ImageReport:
    return ImageReport(
        state=ImageReport.STATE_READY,
        say="held",
        held_bytes=image.size_bytes,
        virtual_size_bytes=image.virtual_size_bytes,
        format=image.format,
    )


def _reason(error: grpc.aio.AioRpcError | TimeoutError) -> str:
    if isinstance(error, TimeoutError):
        return f"sent nothing for {CHUNK_TIMEOUT_S:.0f} s"
    return error.details() or error.code().name
