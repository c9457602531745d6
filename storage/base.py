"""Storage: volumes and images on this node. The nouns, and one example walked.

A *pool* is where a driver keeps bytes. An *image* is immutable content, named by the digest of its bytes as uploaded. A
*volume* is a block device for a guest: empty, or a copy-on-write child of an image.

    await images.put(digest, size, ImageFormat.IMAGE_FORMAT_QCOW2, chunks)   # verified while written; wrong digest: refused
    await driver.create(DesiredVolume(id="vol-1", size_bytes=20 << 30, image_digest=digest, …))
    (await driver.attachment("vol-1")).path                                  # what the hypervisor opens
    await driver.delete("vol-1")

Every method is idempotent. Half-done work of a killed process is invisible (temporary names) and swept by `recover`.
Drivers: local.py (qcow2 files) and fake.py; tests/conformance/test_storage.py runs on both.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection
from dataclasses import dataclass
from typing import Protocol

from cairn.proto.v1.agent_pb2 import DesiredVolume
from cairn.proto.v1.image_pb2 import ImageFormat
from cairn.proto.v1.node_pb2 import StoragePool


class StorageError(Exception):
    """What was attempted on what, and why it failed."""

    def __init__(self, say: str, *, retryable: bool = True) -> None:
        super().__init__(say)
        self.retryable = retryable


class PoolFull(StorageError):
    """Not enough free bytes; nothing was left behind. Names wanted and free."""


class BadImage(StorageError):
    """The bytes are not what was promised (digest, size, format). Permanent; nothing was kept."""

    def __init__(self, say: str) -> None:
        super().__init__(say, retryable=False)


class NoSuchImage(StorageError):
    """The image is not held here (yet)."""


def starts_over(error: BadImage, offset: int) -> StorageError:
    """Return what a put that went on at `offset` raises for bad bytes.

    They may be the part kept from before (a power cut tears files), so they are no reason to give the image up: nothing is
    kept, and the next put starts over.
    """
    return StorageError(f"{error}; it was resumed at byte {offset}, so it starts over")


@dataclass(frozen=True, slots=True)
class Volume:
    """A volume as observed. size_bytes 0: it is damaged; listed so that it is seen, refused where it is used."""

    id: str
    size_bytes: int
    # Bytes it takes in the pool.
    used_bytes: int
    # Digest of the image it is a child of; empty: none.
    image_digest: str = ""


@dataclass(frozen=True, slots=True)
class Image:
    """An image as observed. size_bytes: of the file as uploaded; virtual_size_bytes: the disk a guest sees."""

    digest: str
    size_bytes: int
    virtual_size_bytes: int
    format: ImageFormat.ValueType


@dataclass(frozen=True, slots=True)
class Attachment:
    """How the hypervisor opens a volume. format: qcow2 or raw."""

    path: str
    format: str


class VolumeDriver(Protocol):
    """One way to keep volumes. Its name is the `type` in VolumeSpec."""

    name: str

    async def facts(self) -> StoragePool:
        """Return total, used and free bytes, as the file system says."""
        ...

    async def list(self) -> list[Volume]:
        """Return all our volumes in the pool."""
        ...

    async def create(self, volume: DesiredVolume) -> None:
        """Make it. Raises PoolFull, NoSuchImage, StorageError (size smaller than the image: permanent)."""
        ...

    async def resize(self, id: str, size_bytes: int) -> None:
        """Grow it; shrinking is refused (permanent)."""
        ...

    async def delete(self, id: str) -> None:
        """Remove it; absent: no error."""
        ...

    async def attachment(self, id: str) -> Attachment:
        """Return how to open it. StorageError when absent."""
        ...

    async def recover(self) -> None:
        """Sweep what a killed predecessor left half-done. Called once at start."""
        ...


class ImageStore(Protocol):
    """Immutable content by digest."""

    async def list(self) -> list[Image]:
        """Return what is held, complete and verified."""
        ...

    async def put(
        self, digest: str, size_bytes: int, format: ImageFormat.ValueType, chunks: AsyncIterator[bytes], *, offset: int = 0
    ) -> Image:
        """Store the bytes; held already: the chunks are not read.

        The chunks start at `offset` of the file: 0 starts over, partial_bytes(digest) goes on where an earlier put ended;
        past what is kept: StorageError. Chunks that end early or fail keep what came (StorageError, or their own error).
        Raises BadImage, PoolFull; both keep nothing. Bad bytes after an offset: see starts_over.
        """
        ...

    def get(self, digest: str, offset: int = 0) -> AsyncIterator[bytes]:
        """Yield the bytes as uploaded, at most 1 MiB at a time. Raises NoSuchImage."""
        ...

    async def partial_bytes(self, digest: str) -> int:
        """Return how many bytes of an unfinished put are kept for resuming; 0: none."""
        ...

    async def sweep(self, keep: Collection[str]) -> None:
        """Drop what is kept of unfinished puts, but for these digests and what is being put now."""
        ...

    async def delete(self, digest: str) -> None:
        """Remove it; absent: no error; StorageError (retryable) while a volume is its child."""
        ...
