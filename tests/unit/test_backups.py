"""Backups and restores over chains: every restore point byte by byte, whatever was written between, and by QEMU as well."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from cairn.storage.backups.fake import FakeStore
from cairn.storage.backups.layout import Extent, Layout, Read, Reader, runs_of
from cairn.storage.backups.writing import NeedsFull, Wanted, back_up
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conformance.backup_kit import CLUSTER, KIB, MIB, START, VOLUME, Disk, Series, facts, fake_repository, sound
from tests.conformance.storage_kit import needs_qemu, run

SIZES = (512, CLUSTER - 512, CLUSTER, 3 * MIB + 512, 40 * CLUSTER, 9 * MIB + 4608)


def joined(store: FakeStore, folder: Path) -> None:
    """Put the files of all backups into a folder, as one would by hand."""
    for name, content in sorted(store.objects.items()):
        if ".qcow2." in name:
            file = name.rpartition("/")[2].partition(".qcow2.")[0]
            with (folder / f"{file}.qcow2").open("ab") as out:
                out.write(content)


@needs_qemu
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("seed", range(4))
async def test_each_of_a_chain_is_restored_and_is_what_qemu_reads(size: int, seed: int, tmp_path: Path) -> None:
    draw, store = random.Random(f"{seed} {size}"), FakeStore()
    series = Series(await fake_repository(store), Disk.of(size))
    for number in range(5):
        series.disk.scribble(draw)
        if number == 3:
            series.disk.grow(size + draw.choice((512, CLUSTER, 5 * MIB)))
            series.disk.scribble(draw)
        await series.take()
    joined(store, tmp_path)
    for id, held in series.held.items():
        await series.check(id)
        run("qemu-img", "check", "-q", "-f", "qcow2", tmp_path / f"{id}.qcow2")
        run("qemu-img", "convert", "-f", "qcow2", "-O", "raw", tmp_path / f"{id}.qcow2", tmp_path / "disk.raw")
        assert (tmp_path / "disk.raw").read_bytes() == held
    await sound(series.repository)


@settings(max_examples=60)
@given(st.integers(0, 1 << 32), st.integers(1, 3 * 640), st.integers(1, 7))
async def test_any_writes_over_any_chain(seed: int, sectors: int, length: int) -> None:
    draw = random.Random(seed)
    series = Series(await fake_repository(), Disk.of(512 * sectors))
    for _ in range(length):
        series.disk.scribble(draw)
        await series.take(is_full=draw.random() < 0.2)
    for id in series.held:
        await series.check(id)


@needs_qemu
async def test_a_disk_of_several_tables_and_counts(tmp_path: Path) -> None:
    """Writes far apart on a disk of 5 TiB: several second-level tables, two clusters of the first level."""
    size = 5 << 40
    extents = [Extent(0, 512), Extent(600 * MIB, 3 * CLUSTER), Extent(size - 512, 512), Extent(2 << 40, 8 * MIB)]
    layout = Layout(size, runs_of(extents, size, is_full=True))
    path = tmp_path / "large.qcow2"
    with path.open("wb") as file:
        for piece in layout.pieces(0, layout.file_bytes):
            file.write(piece if isinstance(piece, bytes) else b"\x5a" * piece.length)
    assert path.stat().st_size == layout.file_bytes
    run("qemu-img", "check", "-q", "-f", "qcow2", path)
    said = run("qemu-io", "-f", "qcow2", "-c", f"read -P 0x5a {2 << 40} 8M", "-c", "read -P 0 512K 599M", path)
    assert "verification failed" not in said
    reader = Reader(size, layout.file_bytes, "")
    content = path.read_bytes()
    for at in range(0, len(content), 100_000):
        reader.feed(content[at : at + 100_000])
    assert reader.layout is not None
    assert reader.layout.runs == layout.runs
    assert all(isinstance(each, bytes | Read) for each in layout.pieces(1, 70_001))


async def test_what_reads_as_zeros_takes_no_room() -> None:
    store = FakeStore()
    series = Series(await fake_repository(store), Disk.of(64 * MIB))
    series.disk.write(0, b"\1" * (8 * MIB))
    await series.take()
    before = store.put_bytes
    series.disk.zero(0, 8 * MIB)
    await series.take()
    assert store.put_bytes - before < 512 * KIB
    await series.check("bak-0002")


@pytest.mark.parametrize(
    ("extents", "data", "zeros"),
    [
        ([Extent(10, 20)], [(0, 1)], []),
        ([Extent(CLUSTER - 1, 2)], [(0, 2)], []),
        ([Extent(0, 3 * CLUSTER, True)], [], [(0, 3)]),
        ([Extent(100, 3 * CLUSTER - 200, True)], [(0, 1), (2, 3)], [(1, 2)]),
        ([Extent(100, 50, True)], [(0, 1)], []),
        ([Extent(0, 3 * CLUSTER, True), Extent(CLUSTER + 5, 1)], [(1, 2)], [(0, 1), (2, 3)]),
        ([Extent(0, 100, True), Extent(100, CLUSTER - 100, True)], [], [(0, 1)]),
        ([Extent(3 * CLUSTER, 1536, True)], [], [(3, 4)]),
        ([Extent(3 * CLUSTER, 512, True)], [(3, 4)], []),
    ],
)
def test_clusters_of_which_a_part_is_cleared_are_read(
    extents: list[Extent], data: list[tuple[int, int]], zeros: list[tuple[int, int]]
) -> None:
    runs = runs_of(extents, 3 * CLUSTER + 1536, is_full=False)
    assert [(run.first, run.end) for run in runs if run.is_data] == data
    assert [(run.first, run.end) for run in runs if not run.is_data] == zeros


async def test_an_incremental_needs_its_parent_whole() -> None:
    store = FakeStore()
    series = Series(await fake_repository(store), Disk.of(MIB))
    series.disk.write(0, b"\1" * MIB)
    await series.take()

    async def incremental(parent: str, size: int = MIB) -> None:
        wanted = Wanted("bak-next", facts(size), START, parent=parent)
        await back_up(series.repository, wanted, Disk.of(size), "n1")

    with pytest.raises(NeedsFull, match=r"a full backup of vol-00000001 is needed: there is no backup bak-0009"):
        await incremental("bak-0009")
    with pytest.raises(NeedsFull, match="it is smaller than backup bak-0001 is"):
        await incremental("bak-0001", MIB // 2)
    lost = next(name for name in store.objects if ".qcow2.000002." in name)
    del store.objects[lost]
    with pytest.raises(NeedsFull, match=rf"backup bak-0001 is damaged: volumes/{VOLUME}/bak-0001/\S* is missing"):
        await incremental("bak-0001")


async def test_why_it_is_a_full_one_is_kept() -> None:
    repository = await fake_repository()
    why = "the bitmap of vda was lost: QEMU was killed"
    made = await back_up(repository, Wanted("bak-1", facts(MIB), START, full_because=why), Disk.of(MIB), "n1")
    (found,) = (await repository.catalogue()).backups
    assert found == made.backup
    assert found.manifest.full_because == why
    assert found.manifest.volume == facts(MIB)


async def test_the_same_backup_asked_again_is_the_one_that_is_there() -> None:
    store = FakeStore()
    series = Series(await fake_repository(store), Disk.of(MIB))
    series.disk.write(0, b"\1" * 1000)
    made = await series.take()
    sent = store.put_bytes
    again = await series.take(again=True)
    assert again.backup == made.backup
    assert store.put_bytes - sent < KIB, "only its claim was written"
