"""Images: creating one starts a job; its bytes are then streamed through any controller to the node the job chose."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any, Final, cast

import grpc.aio
from cairn.controller.api import nouns, resolution, shared_names, sharing, validation
from cairn.controller.api.authorise import caller_of
from cairn.controller.api.core import Core
from cairn.controller.api.decision import Decided
from cairn.controller.api.erasure import Erasure
from cairn.controller.api.masks import UpdateRules
from cairn.controller.api.objects import begin, updated
from cairn.controller.jobs.import_image import start
from cairn.controller.model.permits import Caller, Verb, name_for
from cairn.controller.store.base import Record, Txn, View
from cairn.controller.words import several
from cairn.proto import kinds
from cairn.proto.errors import BadState, Invalid, TryAgain
from cairn.proto.pki import node_server_name
from cairn.proto.v1 import agent_pb2, image_pb2, image_pb2_grpc
from cairn.proto.v1.agent_pb2 import Desired, DesiredImage, ImageReport, PutBlobBegin, PutBlobRequest
from cairn.proto.v1.agent_pb2_grpc import HostServiceStub
from cairn.proto.v1.image_pb2 import Image, UploadImageRequest, UploadImageResponse

RULES = UpdateRules(
    mutable=("name", "labels"),
    immutable=("spec.digest", "spec.size_bytes", "spec.format", "spec.arch", "spec.replicas"),
)
# How long an upload waits for a node to be ready to take it.
RECEIVER_WAIT_S: Final = 30.0
POLL_S: Final = 0.1


class ImageService(image_pb2_grpc.ImageServiceServicer):
    """ImageService of proto/v1/image.proto."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._erasure: Erasure[Image] = Erasure(core, nouns.IMAGE, in_use, release)

    async def CreateImage(self, request: image_pb2.CreateImageRequest, context: Any) -> Image:
        """Announce an image by its digest; its bytes follow with UploadImage."""
        return await self._core.mutations.run(
            request, caller_of(context), lambda view, caller: self._create(view, caller, request.image)
        )

    def _create(self, view: View, caller: Caller, given: Image) -> Decided[Image]:
        validation.image(given.spec)
        sharing.refuse_sharing(given.spec, "image")
        decided, image = begin(view, caller, self._core, nouns.IMAGE, given)
        image.spec.CopyFrom(given.spec)
        decided.txn.create(kinds.IMAGE, image.id, image)
        decided.txn.merge(start(image, self._core.ids.new(kinds.JOB.id_prefix), self._core.clock.now()))
        return decided

    async def GetImage(self, request: image_pb2.GetImageRequest, context: Any) -> Image:
        """Return one."""
        return await self._core.listings.get(caller_of(context), nouns.IMAGE, request)

    async def ListImages(self, request: image_pb2.ListImagesRequest, context: Any) -> image_pb2.ListImagesResponse:
        """Return a page."""
        return await self._core.listings.list(caller_of(context), nouns.IMAGE, request, image_pb2.ListImagesResponse)

    async def UpdateImage(self, request: image_pb2.UpdateImageRequest, context: Any) -> Image:
        """Change labels."""

        def decide(view: View, caller: Caller) -> Decided[Image]:
            decided, _, _ = updated(view, caller, self._core, nouns.IMAGE, request, RULES)
            return decided

        return await shared_names.run(self._core, request, caller_of(context), decide)

    async def ShareImage(self, request: image_pb2.ShareImageRequest, context: Any) -> Image:
        """Say with whom it is shared."""

        def decide(view: View, caller: Caller) -> Decided[Image]:
            return sharing.share(view, caller, self._core, nouns.IMAGE, request)

        return await shared_names.run(self._core, request, caller_of(context), decide)

    async def DeleteImage(self, request: image_pb2.DeleteImageRequest, context: Any) -> Image:
        """Remove one that no volume is a copy of."""
        return await self._erasure.run(request, caller_of(context))

    async def WatchImages(
        self, request: image_pb2.WatchImagesRequest, context: Any
    ) -> AsyncIterator[image_pb2.WatchImagesResponse]:
        """Follow them."""
        async for response in self._core.watches.watch(caller_of(context), nouns.IMAGE, request, image_pb2.WatchImagesResponse):
            yield response

    async def UploadImage(self, requests: AsyncIterator[UploadImageRequest], context: Any) -> UploadImageResponse:
        """Pass an image's bytes on to the node that takes them first. Held already: nothing is read. Broken off: repeat it."""
        first = await anext(aiter(requests), None)
        if first is None or first.WhichOneof("part") != "image":
            raise Invalid("image", "the first message must say which image")
        image: Image = (await self._find(caller_of(context), first)).message
        node, endpoint = await self._receiver(image.id)
        if endpoint:
            await self._relay(image, node, endpoint, requests)
        shown = nouns.IMAGE.of(self._core.cache.view, image.id)
        if shown is None:
            raise BadState("image", image.name, f"image {image.name!r} was deleted while it was uploaded")
        return UploadImageResponse(image=shown, job=shown.status.job)

    async def _find(self, caller: Caller, first: UploadImageRequest) -> Record[Any]:
        view = await self._core.mutations.freshen()
        project = resolution.project_id(view, caller, first.project)
        return resolution.live(view, caller, nouns.IMAGE, project, first.image, verb=Verb.UPLOAD, field="image")

    async def _receiver(self, image: str) -> tuple[str, str]:
        """Wait for a node that is ready to take the bytes; return its id and endpoint, empty when one holds them already.

        Raises TryAgain when there is none in time, BadState when the import has failed.
        """
        try:
            async with asyncio.timeout(RECEIVER_WAIT_S):
                while True:
                    view = self._core.cache.view
                    content = view.get(kinds.IMAGE_CONTENT, image)
                    if content is not None and content.failed:
                        raise BadState("image", image, f"the import has failed: {content.error}")
                    ready, receivers = receivers_of(view, image)
                    if ready:
                        return "", ""
                    if receivers:
                        return receivers[0]
                    await asyncio.sleep(POLL_S)
        except TimeoutError as error:
            shown = nouns.IMAGE.of(self._core.cache.view, image)
            say = shown.status.say if shown is not None else "it is gone"
            raise TryAgain(f"no node is ready to take image {image}: {say}") from error

    async def _relay(self, image: Image, node: str, endpoint: str, requests: AsyncIterator[UploadImageRequest]) -> None:
        """Stream the chunks to an agent. Raises TryAgain when it cannot be reached; its own refusals pass through."""

        spec = image.spec
        begin = PutBlobBegin(image=image.id, digest=spec.digest, size_bytes=spec.size_bytes, format=spec.format)
        async with self._core.transport.channel([endpoint], server_name=node_server_name(node)) as channel:
            # The generated types know only the form that takes an iterator.
            call = cast(Any, HostServiceStub(channel)).PutBlob()
            # An agent may refuse before it has read everything; a write that fails then says less than the call's own status.
            with suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
                await call.write(PutBlobRequest(begin=begin))
                async for request in requests:
                    await call.write(PutBlobRequest(chunk=request.chunk))
                await call.done_writing()
            await call


def receivers_of(view: View, image: str) -> tuple[bool, list[tuple[str, str]]]:
    """Return (some node holds the image, [(node id, agent endpoint)] of the chosen nodes that wait for its bytes)."""
    content = view.get(kinds.IMAGE_CONTENT, image)
    chosen = set(content.nodes) if content is not None else set()
    waiting: list[tuple[str, str]] = []
    ready = False
    for id in view.by(kinds.OBSERVED, "key", f"image/{image}"):
        observed = view.get(kinds.OBSERVED, id)
        session = view.get(kinds.NODE_SESSION, observed.node) if observed is not None else None
        if observed is None or session is None or view.get(kinds.NODE, observed.node) is None:
            continue
        if observed.report.image.state == ImageReport.STATE_READY:
            ready = True
        elif observed.node in chosen and observed.report.image.state == ImageReport.STATE_FETCHING:
            waiting.append((observed.node, session.endpoint))
    return ready, waiting


def in_use(view: View, caller: Caller, record: Record[Image]) -> None:
    """Refuse while a volume is a copy of it. Raises BadState."""
    image = record.message
    volumes = view.by(kinds.VOLUME, "image", image.id)
    if volumes:
        name = name_for(view, caller, kinds.VOLUME, volumes[0])
        say = f"image {image.name!r} is the origin of {several(len(volumes), 'volume')}, for example {name!r}"
        raise BadState("image", image.name, f"{say}: delete them first (a deleted VM keeps its disk for a while)")


def release(txn: Txn, view: View, record: Record[Image]) -> None:
    """Give back its name; leave the word that its bytes may go, for nodes that hold them and cannot be asked now."""
    image = record.message
    shared_names.release_names(txn, view, nouns.IMAGE, image)
    key = f"{kinds.IMAGE.name}/{image.id}"
    absent = Desired(image=DesiredImage(id=image.id, digest=image.spec.digest, absent=True))
    txn.create(kinds.ERASURE, f"-/{key}", agent_pb2.Erasure(key=key, desired=absent, create_time=image.delete_time))
