"""Restored without Cairn, by the commands of docs/operations/storage.md as they stand there; and what an incremental moves."""

from __future__ import annotations

import os
import random
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from cairn.proto.seams import SystemIds
from cairn.storage.backups.directory import DirectoryStore
from cairn.storage.backups.layout import Extent
from cairn.storage.backups.repository import Repository, create, opened
from cairn.storage.backups.restoring import restore
from cairn.storage.backups.writing import Wanted, back_up
from cairn.storage.base import Sweeping

from tests.conformance.backup_kit import CLUSTER, MIB, START, VOLUME, Disk, Series, SparseFile, facts, sound
from tests.conformance.storage_kit import needs_qemu, run

GUIDE = Path(__file__).parents[2] / "docs/operations/storage.md"
needs_age = pytest.mark.skipif(not (shutil.which("age") and shutil.which("age-keygen")), reason="no age")
needs_jq = pytest.mark.skipif(not shutil.which("jq"), reason="no jq")


def commands() -> tuple[str, str, str]:
    """The blocks of the guide: what is there, restore it, restore what is encrypted."""
    section = GUIDE.read_text().partition("### Restoring by hand")[2].partition("\n## ")[0]
    listing, plain, sealed = re.findall(r"^```\n(.*?)^```$", section, re.DOTALL | re.MULTILINE)
    return listing, plain, sealed


def by_hand(folder: Path, script: str, **variables: str) -> str:
    """Run a block in a folder, its examples' values replaced by ours."""
    for name, value in variables.items():
        script = re.sub(rf"^{name}=.*$", f"{name}={value!r}", script, flags=re.MULTILINE)
        if not re.search(rf"^{name}=", script, re.MULTILINE):
            script = f"{name}={value!r}\n{script}"
    done = subprocess.run(
        ["bash", "-e", "-o", "pipefail", "-c", script], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


async def repository_in(folder: Path) -> Repository:
    folder.mkdir()
    return await create(DirectoryStore(folder, SystemIds()), SystemIds())


async def five(repository: Repository, recipients: tuple[str, ...] = ()) -> Series:
    """A chain of five over a disk that is no multiple of a cluster, with clusters that were cleared."""
    series = Series(repository, Disk.of(3 * MIB + 1536), recipients=recipients)
    draw = random.Random(5)
    for number in range(5):
        series.disk.write(draw.randrange(2 * MIB), draw.randbytes(600_000))
        series.disk.zero(number * 3 * CLUSTER, 2 * CLUSTER + 100)
        await series.take()
    return series


@needs_qemu
@needs_jq
async def test_a_chain_of_five_is_restored_by_hand(tmp_path: Path) -> None:
    series = await five(await repository_in(tmp_path / "backups"))
    listing, plain, _ = commands()
    where = {"repository": str(tmp_path / "backups"), "volume": VOLUME}
    said = [line.split("\t") for line in by_hand(tmp_path, listing, **where).splitlines()]
    assert [(each[1], each[2]) for each in said] == [
        (f"bak-{number:04d}", "full" if number == 1 else f"bak-{number - 1:04d}") for number in range(1, 6)
    ]
    for number, id in enumerate(series.held, 1):
        (folder := tmp_path / id).mkdir()
        by_hand(folder, plain, chain=" ".join(each[1] for each in said[:number]), **where)
        assert (folder / "disk.raw").read_bytes() == series.held[id]
        await series.check(id)


@needs_qemu
@needs_jq
async def test_by_hand_a_damaged_part_is_refused(tmp_path: Path) -> None:
    await five(await repository_in(tmp_path / "backups"))
    part = next((tmp_path / "backups").glob("volumes/*/bak-0003/*.qcow2.000001.*"))
    content = part.read_bytes()
    part.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(AssertionError, match="computed checksum did NOT match"):
        by_hand(
            tmp_path, commands()[1], repository=str(tmp_path / "backups"), volume=VOLUME, chain="bak-0001 bak-0002 bak-0003"
        )


@needs_qemu
@needs_jq
@needs_age
async def test_what_is_encrypted_is_restored_by_hand(tmp_path: Path) -> None:
    run("age-keygen", "-o", tmp_path / "key.txt")
    public = run("age-keygen", "-y", tmp_path / "key.txt").strip()
    series = await five(await repository_in(tmp_path / "backups"), (public,))
    where = {"repository": str(tmp_path / "backups"), "volume": VOLUME}
    by_hand(tmp_path, commands()[2], chain=" ".join(series.held), **where)
    assert (tmp_path / "disk.raw").read_bytes() == series.held["bak-0005"]


def holes_of(path: Path) -> list[Extent]:
    """Where a sparse file has data."""
    found: list[Extent] = []
    with path.open("rb") as file:
        at, size = 0, path.stat().st_size
        while at < size:
            try:
                start = os.lseek(file.fileno(), at, os.SEEK_DATA)
            except OSError:
                break
            at = os.lseek(file.fileno(), start, os.SEEK_HOLE)
            found.append(Extent(start, at - start))
    return found


@needs_qemu
@needs_jq
async def test_64_mib_changed_of_4_gib_move_less_than_80_and_an_empty_cluster_restores_it(tmp_path: Path) -> None:
    draw, size = random.Random(64), 4 << 30
    disk = tmp_path / "disk.raw"
    disk.touch()
    os.truncate(disk, size)
    source = SparseFile(disk)
    for _ in range(96):
        await source.write(draw.randrange(size // MIB) * MIB, draw.randbytes(MIB))
    repository = await repository_in(tmp_path / "backups")
    source.told = holes_of(disk)
    await back_up(repository, Wanted("bak-1", facts(size), START), source, "n1")
    changed = [Extent(each * MIB, MIB) for each in draw.sample(range(size // MIB), 64)]
    for each in changed:
        await source.write(each.offset, draw.randbytes(MIB))
    source.told, before = changed, repository.store.sent_bytes + repository.store.received_bytes
    made = await back_up(repository, Wanted("bak-2", facts(size), START, parent="bak-1"), source, "n1")
    moved = repository.store.sent_bytes + repository.store.received_bytes - before
    print(f"moved {moved / MIB:.2f} MiB")
    assert 64 * MIB < moved < 80 * MIB
    assert made.sent_parts == 3

    # Another cluster knows where the repository is, and nothing else.
    elsewhere = await opened(DirectoryStore(tmp_path / "backups", SystemIds()), SystemIds())
    catalogue = await elsewhere.catalogue()
    latest = catalogue.backups[-1]
    assert latest.manifest.volume == facts(size)
    restored = tmp_path / "restored.raw"
    restored.touch()
    os.truncate(restored, latest.manifest.volume.size_bytes)
    done = await restore(elsewhere, catalogue, latest, SparseFile(restored))
    assert done.written_bytes < 200 * MIB
    run("qemu-img", "compare", "-f", "raw", "-F", "raw", disk, restored)
    assert restored.stat().st_blocks * 512 < 200 * MIB, "holes stay holes"
    await sound(elsewhere)

    (tmp_path / "hand").mkdir()
    where = {"repository": str(tmp_path / "backups"), "volume": VOLUME}
    by_hand(tmp_path / "hand", commands()[1], chain="bak-1 bak-2", **where)
    run("qemu-img", "compare", "-f", "raw", "-F", "raw", disk, tmp_path / "hand/disk.raw")
    assert isinstance(elsewhere.store.inner, Sweeping)
