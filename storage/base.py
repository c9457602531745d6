"""Storage: volumes and images on this node. The nouns, and one example walked.

A *pool* is where a driver keeps bytes: this node's own, or one that other nodes reach too. An *image* is immutable content,
named by the digest of its bytes as uploaded. A *volume* is a block device for a guest: empty, or a copy of an image. Volumes
are observed by the ids somebody wants to know of: what else is in a pool that others use is none of a node's business.

    await images.put(digest, size, ImageFormat.IMAGE_FORMAT_QCOW2, chunks)   # verified while written; wrong digest: refused
    await driver.create(DesiredVolume(id="vol-1", size_bytes=20 << 30, image_digest=digest, …))
    await driver.observe(["vol-1", "vol-2"])                                 # [Volume(id="vol-1", size_bytes=…)]
    (await driver.attachment("vol-1")).path                                  # what the hypervisor opens
    await driver.delete("vol-1")

Every method is idempotent. Half-done work of a killed process is invisible (temporary names) and swept by `recover`.
Drivers: local.py (qcow2 files), rbd.py (Ceph), fake.py and fake_shared.py; tests/conformance/test_storage.py runs on all. A
node has one per type of volume: drivers.py.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

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


class Superseded(StorageError):
    """Another node administers the volume since (a newer generation): nothing was done. Permanent."""

    def __init__(self, say: str) -> None:
        super().__init__(say, retryable=False)


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
    # Digest of the image on this node that it needs as long as it is there; empty: none.
    image_digest: str = ""


@dataclass(frozen=True, slots=True)
class Image:
    """An image as observed. size_bytes: of the file as uploaded; virtual_size_bytes: the disk a guest sees.

    virtual_size_bytes 0: it is damaged; listed so that it is seen and can be removed, refused where it is used, and put anew.
    """

    digest: str
    size_bytes: int
    virtual_size_bytes: int
    format: ImageFormat.ValueType

    @property
    def is_sound(self) -> bool:
        """Whether volumes can be made of it, as far as its head tells."""
        return self.virtual_size_bytes > 0


@dataclass(frozen=True, slots=True)
class Network:
    """How the hypervisor reaches a volume that is no file here."""

    # As QEMU names it: "rbd".
    protocol: str
    # host:port of servers; none: those of the hypervisor's own configuration.
    hosts: tuple[str, ...] = ()
    # Who it is there, and the UUID of the hypervisor's secret that proves it; empty: nobody in particular.
    user: str = ""
    secret: str = ""
    # Its client's configuration file; empty: where that looks by itself.
    config: str = ""


@dataclass(frozen=True, slots=True)
class Attachment:
    """How the hypervisor opens a volume. format: qcow2 or raw; network None: `path` is a file, else its name there."""

    path: str
    format: str
    network: Network | None = None


class VolumeDriver(Protocol):
    """One way to keep volumes. Its name is the `type` in VolumeSpec.

    Where other nodes reach the pool, two of them may believe that a volume is theirs to make, grow and delete. The generation
    tells whose word is newer (0: nobody else's can be): what an older one still does must raise Superseded and change nothing,
    also after the volume was deleted.
    """

    name: str

    async def facts(self) -> StoragePool:
        """Return total, used and free bytes, as the pool itself says."""
        ...

    async def observe(self, ids: Collection[str]) -> Sequence[Volume]:
        """Return those of these volumes that are there, sorted by id."""
        ...

    async def create(self, volume: DesiredVolume) -> None:
        """Make it. Raises PoolFull, NoSuchImage, Superseded, StorageError (size smaller than the image: permanent)."""
        ...

    async def resize(self, id: str, size_bytes: int, *, generation: int = 0) -> None:
        """Grow it; shrinking is refused (permanent). Raises Superseded."""
        ...

    async def delete(self, id: str, *, generation: int = 0) -> None:
        """Remove it; absent: no error. Raises Superseded."""
        ...

    async def attachment(self, id: str) -> Attachment:
        """Return how to open it. StorageError when absent."""
        ...

    async def recover(self) -> None:
        """Sweep what a killed predecessor left half-done. Called once at start."""
        ...


@runtime_checkable
class OwnPool(Protocol):
    """What a driver offers besides whose pool is this node's own: whatever is in it concerns this node, wanted or not."""

    async def list(self) -> Sequence[Volume]:
        """Return all our volumes in the pool, sorted by id."""
        ...


@runtime_checkable
class Claiming(Protocol):
    """What a driver offers besides whose pool several nodes reach: who may open a volume there, and who may no more.

    A claim is a number that grows with each guest that a volume is given to (VmDisk.open_generation). The pool remembers the
    newest, for ever, so that who is late is refused. A guest's claim is shown before its process opens a volume, and once more
    before it executes: `shut_out` either comes after the second, and finds the process, or before it, and that one is refused.
    """

    async def open(self, id: str, claim: int) -> None:
        """Show a claim. Raises Superseded when a newer one was shown, or this one was shut out; StorageError when absent."""
        ...

    async def shut_out(self, id: str, claim: int, *, generation: int = 0) -> None:
        """Refuse claims up to this one from now on, and have whoever has the volume open read and write nothing of it any more.

        Returns once that is so of all of them; StorageError: it may not be so of some. Absent: refused all the same. Where a
        newer claim was shown nothing is done: the guest that has the volume now is another one. Raises Superseded by
        `generation`, as other acts.
        """
        ...


@runtime_checkable
class Sweeping(Protocol):
    """What a driver offers besides in whose pool things are left that no single act would find."""

    async def sweep(self) -> None:
        """Remove what nobody needs; safe at any time, and called every so often. StorageError: some of it is still there."""
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
