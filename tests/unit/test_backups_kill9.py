"""A process that writes, removes and sweeps in a folder is killed by the system again and again; and the folder goes away."""

from __future__ import annotations

import asyncio
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cairn.proto.seams import SystemIds
from cairn.storage.backups.directory import DirectoryStore
from cairn.storage.backups.fake import FakeStore
from cairn.storage.backups.removal import remove, sweep
from cairn.storage.backups.repository import create, opened
from cairn.storage.backups.restoring import restore
from cairn.storage.backups.store import StoreError

from tests.conformance.backup_kit import MIB, VOLUME, Disk, Series, Volume, fake_repository, sound

ROUNDS = 12


def content_of(number: int) -> bytes:
    """What the disk holds at a backup: whoever reads it later knows without having been there."""
    return b"".join(random.Random(f"{min(number, cluster * 3)} {cluster}").randbytes(1 << 16) for cluster in range(24))


async def work(folder: Path) -> None:
    """Back up, remove and sweep for ever: what the child does."""
    repository = await opened(DirectoryStore(folder, SystemIds()), SystemIds())
    while True:
        backups = (await repository.catalogue(VOLUME)).of(VOLUME)
        series = Series(repository, Disk(bytearray(content_of(0))))
        number = max((int(each.id.removeprefix("bak-")) for each in backups), default=0)
        series.held = {f"bak-{each:04d}": b"" for each in range(1, number + 1)}
        series.disk = Disk(bytearray(content_of(number + 1)))
        series.disk.write(0, bytes(series.disk.content))
        await series.take(is_full=number % 3 == 0)
        if number % 3 == 2:
            await remove(repository, VOLUME, [f"bak-{number - 2:04d}"], "n1")
            await sweep(repository, "n1")
        print(number + 1, flush=True)


async def test_killed_by_the_system_at_any_moment_all_there_is_can_be_restored(tmp_path: Path) -> None:
    folder, draw, done = tmp_path / "backups", random.Random(9), 0
    folder.mkdir()
    repository = await create(DirectoryStore(folder, SystemIds()), SystemIds())
    for _ in range(ROUNDS):
        child = await asyncio.to_thread(
            subprocess.Popen, [sys.executable, "-m", "tests.unit.test_backups_kill9", str(folder)], stdout=subprocess.PIPE
        )
        assert child.stdout is not None
        # It has come up when it has made one; then it is killed at any moment.
        assert await asyncio.to_thread(child.stdout.readline)
        end = time.monotonic() + draw.random() * 0.3
        while time.monotonic() < end:
            await asyncio.sleep(0.001)
        child.kill()
        child.communicate()
        catalogue = await repository.catalogue()
        assert not catalogue.unreadable
        for backup in catalogue.backups:
            target = Volume.of(backup.manifest.volume.size_bytes)
            await restore(repository, catalogue, backup, target)
            assert bytes(target.content) == content_of(int(backup.id.removeprefix("bak-")))
        await sound(repository)
        done = max(done, len(catalogue.backups))
    assert done > 2
    await sweep(repository, "n1")
    await sound(repository)


async def test_a_folder_that_goes_away_half_way_is_told_and_found_again(tmp_path: Path) -> None:
    folder, away = tmp_path / "backups", tmp_path / "unmounted"
    folder.mkdir()
    repository = await create(DirectoryStore(folder, SystemIds()), SystemIds())
    repository.store.pause_s = 0.01
    series = Series(repository, Disk.of(2 * MIB))
    series.disk.write(0, random.Random(1).randbytes(2 * MIB))
    changed = list(series.disk.changed)
    reading = series.disk.read

    async def read(offset: int, length: int) -> bytes:
        if offset > MIB and folder.exists():
            folder.rename(away)
        return await reading(offset, length)

    series.disk.read = read  # type: ignore[method-assign]
    with pytest.raises(StoreError, match=r"is it mounted\?") as failed:
        await series.take()
    assert failed.value.retryable
    assert not folder.exists()
    away.rename(folder)
    series.disk.read, series.disk.changed = reading, changed  # type: ignore[method-assign]
    made = await series.take(again=True)
    assert made.kept_parts > 0
    await series.check("bak-0001")
    await sound(repository)


async def test_a_catalogue_of_many_is_read_without_their_parts() -> None:
    store = FakeStore()
    series = Series(await fake_repository(store), Disk.of(2 * MIB))
    for _ in range(20):
        series.disk.write(0, b"x" * MIB)
        await series.take()
    before = store.got_bytes
    assert len(await series.backups()) == 20
    assert store.got_bytes - before < 20 * 4096


if __name__ == "__main__":
    asyncio.run(work(Path(sys.argv[1])))
