"""HostService: what others may ask this node for. Controllers: all of it; other nodes: bytes of images.

Who calls is in its certificate. Bytes are taken only for an image this node was told to hold, and verified by the store.
"""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from typing import Any, Final, cast

from cairn.agent import console
from cairn.agent.hypervisor.base import Hypervisor
from cairn.agent.images import Images
from cairn.agent.ledger import Ledger
from cairn.proto.errors import BadState, Denied, Exhausted, Invalid, NotFound, TryAgain
from cairn.proto.log import logger
from cairn.proto.pki import Identity
from cairn.proto.v1.agent_pb2 import (
    ConsoleRequest,
    ConsoleResponse,
    DesiredImage,
    GetBlobRequest,
    GetBlobResponse,
    PutBlobRequest,
    PutBlobResponse,
)
from cairn.proto.v1.agent_pb2_grpc import HostServiceServicer
from cairn.storage.base import BadImage, ImageStore, NoSuchImage, PoolFull, StorageError

CHUNK_BYTES_MAX: Final = 2 << 20
DIGEST: Final = re.compile("sha256:[0-9a-f]{64}")
# No image is larger.
OFFSET_MAX: Final = 1 << 50
# Somebody who uploads and says nothing for this long is given up: others may have the same bytes to send.
SILENCE_S: Final = 300.0
# Images one caller reads at once.
READERS_MAX: Final = 16


class HostServer(HostServiceServicer):
    """The servicer. `identify` returns who calls (rpc.peer_identity, unless simulated)."""

    def __init__(
        self,
        identify: Callable[[Any], Identity],
        store: ImageStore,
        images: Images,
        ledger: Ledger,
        hypervisor: Hypervisor,
    ) -> None:
        self._identify, self._store, self._images = identify, store, images
        self._ledger, self._hypervisor = ledger, hypervisor
        # Who reads how many images at this moment.
        self._readers: Counter[str] = Counter()

    async def GetBlob(self, request: GetBlobRequest, context: Any) -> AsyncIterator[GetBlobResponse]:
        """Send an image's bytes from an offset."""
        caller = self._admit(context, "controller", "node")
        if not DIGEST.fullmatch(request.digest):
            raise Invalid("digest", "is not sha256: and 64 hex digits")
        if not 0 <= request.offset <= OFFSET_MAX:
            raise Invalid("offset", f"is not in 0..{OFFSET_MAX}")
        if self._readers[caller.uri] >= READERS_MAX:
            # Each holds a file and a chunk, however slowly it reads.
            raise TryAgain(f"{caller.uri} reads {READERS_MAX} images here already")
        self._readers[caller.uri] += 1
        try:
            async with aclosing(cast("Any", self._store.get(request.digest, request.offset))) as chunks:
                async for chunk in chunks:
                    yield GetBlobResponse(chunk=chunk)
        except NoSuchImage as error:
            raise NotFound("image", request.digest, str(error)) from error
        except StorageError as error:
            raise TryAgain(str(error)) from error
        finally:
            self._readers[caller.uri] -= 1
            if not self._readers[caller.uri]:
                del self._readers[caller.uri]

    async def PutBlob(self, request_iterator: AsyncIterator[PutBlobRequest], context: Any) -> PutBlobResponse:
        """Take an image's bytes."""
        self._admit(context, "controller")
        first = await anext(request_iterator, None)
        if first is None or first.WhichOneof("part") != "begin":
            raise Invalid("begin", "the first message says which image")
        begin = first.begin
        key = f"image/{begin.image}"
        object = self._ledger.object(key)
        if object is None or object.image.absent or not self._ledger.synced:
            raise BadState("image", begin.image, f"this node was not told (yet) to hold image {begin.image}")
        desired = object.image
        if (begin.digest, begin.size_bytes) != (desired.digest, desired.size_bytes):
            raise Invalid("begin.digest", f"not the digest and size of image {begin.image}")
        return await self._put(key, desired, request_iterator)

    async def Console(self, request_iterator: AsyncIterator[ConsoleRequest], context: Any) -> AsyncIterator[ConsoleResponse]:
        """Relay a guest's serial console."""
        self._admit(context, "controller")
        async for response in console.relay(self._hypervisor, request_iterator):
            yield response

    async def _put(self, key: str, desired: DesiredImage, requests: AsyncIterator[PutBlobRequest]) -> PutBlobResponse:
        try:
            image = await self._images.receive(key, desired, _bytes(requests))
        except BadImage as error:
            raise Invalid("image", str(error)) from error
        except PoolFull as error:
            raise Exhausted("disk", str(error)) from error
        except StorageError as error:
            raise TryAgain(str(error)) from error
        logger("server").info("image_received", key=key, size_bytes=image.size_bytes)
        return PutBlobResponse(virtual_size_bytes=image.virtual_size_bytes, format=image.format)

    def _admit(self, context: Any, *kinds: str) -> Identity:
        caller = self._identify(context)
        if caller.kind not in kinds:
            raise Denied(f"a {caller.kind} may not do this on a node")
        return caller


async def _bytes(requests: AsyncIterator[PutBlobRequest]) -> AsyncIterator[bytes]:
    while (request := await _next(requests)) is not None:
        if request.WhichOneof("part") != "chunk":
            raise Invalid("chunk", "only chunks may follow the first message")
        if len(request.chunk) > CHUNK_BYTES_MAX:
            raise Invalid("chunk", f"at most {CHUNK_BYTES_MAX} bytes")
        yield request.chunk


async def _next(requests: AsyncIterator[PutBlobRequest]) -> PutBlobRequest | None:
    """Return what comes next; None: nothing. StorageError when nothing came for long: what did come is kept."""
    try:
        async with asyncio.timeout(SILENCE_S):
            return await anext(requests, None)
    except TimeoutError as error:
        raise StorageError(f"nothing came for {SILENCE_S:.0f} s; the upload can be repeated, and goes on there") from error
