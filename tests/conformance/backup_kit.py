"""What the suites of backups share: disks that remember what was written, volumes that are restored to, small parts."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cairn.proto.seams import SystemIds
from cairn.storage.backups.encryption import Identities
from cairn.storage.backups.fake import FakeStore
from cairn.storage.backups.layout import Extent
from cairn.storage.backups.manifest import VolumeFacts
from cairn.storage.backups.repository import Backup, Repository, create
from cairn.storage.backups.restoring import Restored, restore
from cairn.storage.backups.verification import Verification
from cairn.storage.backups.writing import Made, Wanted, back_up

KIB = 1 << 10
MIB = 1 << 20
CLUSTER = 64 * KIB
# Small, so that small disks have several.
PART = 4 * CLUSTER
VOLUME = "vol-00000001"
START = datetime(2026, 11, 1, 12, tzinfo=UTC)


@dataclass
class Disk:
    """A disk in memory that tells what was written since it was asked last. Itself a Source, as long as nobody writes."""

    content: bytearray
    changed: list[Extent] = field(default_factory=list)
    reads: int = 0

    @classmethod
    def of(cls, size: int) -> Disk:
        return cls(bytearray(size))

    @property
    def size(self) -> int:
        return len(self.content)

    def write(self, offset: int, data: bytes) -> None:
        self.content[offset : offset + len(data)] = data
        self.changed.append(Extent(offset, len(data)))

    def zero(self, offset: int, length: int) -> None:
        self.content[offset : offset + length] = bytes(length)
        self.changed = [each for each in self.changed if not offset <= each.offset <= each.end <= offset + length]
        self.changed.append(Extent(offset, length, is_zero=True))

    def grow(self, size: int) -> None:
        self.content += bytes(size - self.size)

    def scribble(self, draw: random.Random) -> None:
        """Write and clear at random: whole clusters, parts of them, and across them."""
        for _ in range(draw.randint(0, 6)):
            offset = draw.randrange(self.size)
            length = min(draw.choice((1, 511, 4096, CLUSTER, 3 * CLUSTER + 17, 10 * CLUSTER)), self.size - offset)
            if draw.random() < 0.3:
                offset -= offset % draw.choice((1, CLUSTER))
                self.zero(offset, length)
            else:
                self.write(offset, draw.randbytes(length))

    async def extents(self) -> Sequence[Extent]:
        return list(self.changed)

    async def read(self, offset: int, length: int) -> bytes:
        self.reads += 1
        return bytes(self.content[offset : offset + length])


@dataclass
class Volume:
    """What is restored to; full of rubbish, so that whoever forgets to write is found."""

    content: bytearray

    @classmethod
    def of(cls, size: int) -> Volume:
        return cls(bytearray(b"\xee" * size))

    async def write(self, offset: int, content: bytes) -> None:
        assert offset + len(content) <= len(self.content)
        self.content[offset : offset + len(content)] = content

    async def zero(self, offset: int, length: int) -> None:
        assert length > 0
        assert offset + length <= len(self.content)
        self.content[offset : offset + length] = bytes(length)


@dataclass
class SparseFile:
    """A file as a source and as a target: holes stay holes."""

    path: Path
    told: Sequence[Extent] = ()

    async def extents(self) -> Sequence[Extent]:
        return self.told

    async def read(self, offset: int, length: int) -> bytes:
        with self.path.open("rb") as file:
            file.seek(offset)
            return file.read(length)

    async def write(self, offset: int, content: bytes) -> None:
        with self.path.open("r+b") as file:
            file.seek(offset)
            file.write(content)

    async def zero(self, offset: int, length: int) -> None:
        """It is new."""


def facts(size: int, volume: str = VOLUME) -> VolumeFacts:
    return VolumeFacts(volume, size, name="data", project="shop", image="sha256:00", arch="x86_64", labels={"tier": "gold"})


async def fake_repository(store: FakeStore | None = None) -> Repository:
    return await create(store or FakeStore(), SystemIds())


@dataclass
class Series:
    """Backups of one disk, one after the other; what the disk held at each is remembered."""

    repository: Repository
    disk: Disk
    volume: str = VOLUME
    recipients: tuple[str, ...] = ()
    held: dict[str, bytes] = field(default_factory=dict)
    last: str = ""

    async def take(self, *, is_full: bool = False, token: str = "n1", point: str = "", again: bool = False) -> Made:
        """Back up what changed since the last one. again: another try of the one before."""
        number = len(self.held) + (0 if again and self.last else 1)
        id = f"bak-{number:04d}"
        parent = "" if is_full or number == 1 else f"bak-{number - 1:04d}"
        self.last, self.held[id] = id, bytes(self.disk.content)
        if is_full:
            self.disk.changed = [Extent(0, self.disk.size)]
        wanted = Wanted(
            *(id, facts(self.disk.size, self.volume), START + timedelta(days=number), point, parent),
            recipients=self.recipients,
        )
        made = await back_up(self.repository, wanted, self.disk, token, part_bytes=PART)
        self.disk.changed = []
        return made

    async def check(self, id: str, identities: Identities | None = None) -> Restored:
        """Restore one, and compare it byte by byte."""
        catalogue = await self.repository.catalogue(self.volume)
        backup = catalogue.find(self.volume, id)
        target = Volume.of(backup.manifest.volume.size_bytes)
        restored = await restore(self.repository, catalogue, backup, target, identities)
        assert bytes(target.content) == self.held[id], id
        return restored

    async def backups(self) -> list[Backup]:
        return (await self.repository.catalogue(self.volume)).of(self.volume)


async def sound(repository: Repository, volume: str = "") -> Verification:
    """Verify, and expect that nothing is wrong."""
    verification = Verification(repository, volume)
    await verification.run()
    assert not verification.findings
    return verification
