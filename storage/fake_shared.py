"""Volumes in a pool that several nodes reach, in memory: a shipped driver, with the knobs of fake.py.

tank = SharedPool("tank")
n1, n2 = FakeSharedVolumes(tank, FakePool()), FakeSharedVolumes(tank, FakePool())    # drivers of two nodes
await n1.create(DesiredVolume(id="vol-00000001", size_bytes=1 << 30, generation=1))
await n2.attachment("vol-00000001")                                                  # a guest there can open it
await n1.delete("vol-00000001", generation=1)                                        # Superseded, once n2 acted as 2

The node's own FakePool has the faults of its calls and the images that volumes start as copies of. A copy is whole: it needs
no image afterwards. What the pool remembers of generations outlives its volumes: a node that was away makes none again.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, MutableMapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from cairn.proto.v1.agent_pb2 import DesiredVolume
from cairn.proto.v1.node_pb2 import StoragePool
from cairn.storage.base import Attachment, Network, NoSuchImage, PoolFull, StorageError, Superseded, Volume
from cairn.storage.fake import EMPTY_VOLUME_BYTES, FakePool
from cairn.storage.pool import require_volume_id
from cairn.storage.qcow2 import whole_sectors

TYPE: Final = "fake-shared"


@dataclass(eq=False)
class Connection:
    """Somebody who has a volume open, until it is shut out."""

    is_out: bool = False


@dataclass
class SharedPool:
    """The truth: what the pool holds, whichever nodes live."""

    name: str
    capacity_bytes: int = 100 << 30
    volumes: MutableMapping[str, Volume] = field(default_factory=dict)
    # Volume -> the image it was made of, and the newest generation in whose name anything was done to it, also if it is gone.
    origins: dict[str, str] = field(default_factory=dict)
    generations: dict[str, int] = field(default_factory=dict)
    # Volume -> the newest claim to open it that was shown, the newest that was shut out, and who has it open or had.
    opened: dict[str, int] = field(default_factory=dict)
    refused: dict[str, int] = field(default_factory=dict)
    connections: dict[str, list[Connection]] = field(default_factory=dict)

    # Told when somebody was shut out.
    told: Callable[[], None] = lambda: None

    def connect(self, path: str) -> Connection:
        """Open a volume by its path (Attachment); what it is opened for is not the pool's to judge."""
        made = Connection()
        self.connections.setdefault(path.rpartition("/")[2], []).append(made)
        return made

    def admit(self, id: str, generation: int) -> None:
        """Take note of who acts. Superseded when another one has acted since."""
        newest = self.generations.get(id, 0)
        if generation < newest:
            raise Superseded(f"volume {id} is administered by another node: generation {newest}, this is {generation}")
        self.generations[id] = generation

    def size_at(self, path: str) -> int:
        """Return what a process finds that opens a volume at its path (an Attachment's); 0: it is none of this pool."""
        held = self.volumes.get(path.removeprefix(f"{self.name}/"))
        return held.size_bytes if held is not None else 0

    def set_size(self, path: str, size_bytes: int) -> None:
        """A running guest's process looks anew, and so gives what it has open this size: as QEMU does, also a smaller one."""
        id = path.removeprefix(f"{self.name}/")
        if (held := self.volumes.get(id)) is not None:
            self.volumes[id] = replace(held, size_bytes=whole_sectors(size_bytes))


class FakeSharedVolumes:
    """One node's way to a shared pool; implements VolumeDriver."""

    name = TYPE

    def __init__(self, pool: SharedPool, node: FakePool) -> None:
        self._pool, self._node = pool, node

    async def facts(self) -> StoragePool:
        """Return total, used and free bytes of the pool."""
        await self._node.enter("facts")
        total, used = self._pool.capacity_bytes, sum(volume.used_bytes for volume in self._pool.volumes.values())
        return StoragePool(type=TYPE, name=self._pool.name, total_bytes=total, used_bytes=used, free_bytes=max(0, total - used))

    async def observe(self, ids: Collection[str]) -> Sequence[Volume]:
        """Return those of these volumes that are there."""
        for id in ids:
            require_volume_id(id)
        await self._node.enter("observe")
        return [self._pool.volumes[id] for id in sorted(ids) if id in self._pool.volumes]

    async def create(self, volume: DesiredVolume) -> None:
        """Make it (see VolumeDriver)."""
        require_volume_id(volume.id)
        if volume.size_bytes > self._pool.capacity_bytes:
            size = f"{volume.size_bytes} bytes is larger than the pool of {self._pool.capacity_bytes} bytes"
            raise PoolFull(f"volume {volume.id} of {size}")
        if volume.id not in self._pool.volumes:
            self._require_image(volume)
        await self._node.enter("create")
        self._pool.admit(volume.id, volume.generation)
        if volume.id in self._pool.volumes:
            if self._pool.origins.get(volume.id, "") != volume.image_digest:
                raise StorageError(f"volume {volume.id} is here already as a copy of something else", retryable=False)
            return
        self._require_image(volume)
        size_bytes = whole_sectors(volume.size_bytes)
        self._pool.origins[volume.id] = volume.image_digest
        self._pool.volumes[volume.id] = Volume(volume.id, size_bytes, EMPTY_VOLUME_BYTES)
        self._node.leave("create")

    async def resize(self, id: str, size_bytes: int, *, generation: int = 0) -> None:
        """Grow it; shrinking is refused."""
        require_volume_id(id)
        await self._node.enter("resize")
        self._pool.admit(id, generation)
        held = self._pool.volumes.get(id)
        if held is None:
            raise StorageError(f"volume {id} is not here, in pool {self._pool.name}, so it cannot grow to {size_bytes} bytes")
        wanted = whole_sectors(size_bytes)
        if wanted < held.size_bytes:
            raise StorageError(f"volume {id} has {held.size_bytes} bytes and cannot shrink to {size_bytes}", retryable=False)
        if wanted > self._pool.capacity_bytes:
            raise PoolFull(f"volume {id} of {wanted} bytes is larger than the pool of {self._pool.capacity_bytes} bytes")
        self._pool.volumes[id] = Volume(id, wanted, held.used_bytes)
        self._node.leave("resize")

    async def delete(self, id: str, *, generation: int = 0) -> None:
        """Remove it; absent: no error."""
        require_volume_id(id)
        await self._node.enter("delete")
        self._pool.admit(id, generation)
        self._pool.volumes.pop(id, None)
        self._node.leave("delete")

    async def attachment(self, id: str) -> Attachment:
        """Return how to open it."""
        require_volume_id(id)
        if id not in self._pool.volumes:
            raise StorageError(f"volume {id} is not here, in pool {self._pool.name}")
        return Attachment(f"{self._pool.name}/{id}", "raw", Network("fake"))

    async def open(self, id: str, claim: int) -> None:
        """Show a claim to open it (see Claiming)."""
        require_volume_id(id)
        await self._node.enter("open")
        opened, refused = self._pool.opened.get(id, 0), self._pool.refused.get(id, 0)
        if claim < opened or claim <= refused:
            newest = max(opened, refused)
            raise Superseded(f"volume {id} was given to another guest, or is to be: claim {claim}, newest {newest}")
        if id not in self._pool.volumes:
            raise StorageError(f"volume {id} is not here, in pool {self._pool.name}")
        self._pool.opened[id] = claim
        self._node.leave("open")

    async def shut_out(self, id: str, claim: int, *, generation: int = 0) -> None:
        """Refuse who comes with a claim up to this one, and shut out who has it open (see Claiming)."""
        require_volume_id(id)
        await self._node.enter("shut_out")
        self._pool.admit(id, generation)
        if self._pool.opened.get(id, 0) > claim:
            # Those were shut out before it was given to whoever has it now.
            return
        self._pool.refused[id] = max(self._pool.refused.get(id, 0), claim)
        for each in self._pool.connections.pop(id, []):
            each.is_out = True
        self._pool.told()
        self._node.leave("shut_out")

    async def recover(self) -> None:
        """Nothing is left half-done."""
        await self._node.enter("recover")

    def _require_image(self, volume: DesiredVolume) -> None:
        if not volume.image_digest:
            return
        held = self._node.images.get(volume.image_digest)
        if held is None:
            raise NoSuchImage(f"volume {volume.id} starts from image {volume.image_digest}, which is not held here (yet)")
        if volume.size_bytes < held[0].virtual_size_bytes:
            say = f"volume {volume.id} is smaller than its image's disk of {held[0].virtual_size_bytes} bytes"
            raise StorageError(say, retryable=False)
