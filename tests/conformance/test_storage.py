"""What every storage driver does, on the fakes, on qcow2 files and on a real Ceph."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from cairn.storage.base import BadImage, Claiming, NoSuchImage, OwnPool, PoolFull, StorageError, Superseded
from cairn.storage.fake import FakePool
from cairn.storage.fake_shared import SharedPool

from tests.conformance.storage_kit import (
    MIB,
    QCOW2,
    RAW,
    CephPlace,
    World,
    chunked,
    collect,
    digest_of,
    fake_world,
    local_world,
    make_qcow2,
    needs_qemu,
    put,
    shared_world,
    volume,
)

pytestmark = needs_qemu


@pytest.fixture(params=["fake", "local", "shared", "rbd"])
async def world(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[World]:
    if request.param == "rbd":
        place: CephPlace = request.getfixturevalue("ceph_place")
        yield place.world()
        await place.close()
    elif request.param == "shared":
        yield shared_world(SharedPool("tank"), FakePool())
    else:
        yield fake_world(FakePool()) if request.param == "fake" else local_world(tmp_path / "pool")


async def held(world: World, *numbers: int) -> list[str]:
    return [each.id for each in await world.volumes.observe([volume(number).id for number in numbers])]


async def test_put_then_get_serves_the_same_bytes(world: World, tmp_path: Path) -> None:
    content = make_qcow2(tmp_path)
    digest = await put(world.images, content)
    assert await collect(world.images.get(digest)) == content
    assert await collect(world.images.get(digest, offset=len(content) - 7)) == content[-7:]
    (image,) = await world.again().images.list()
    assert (image.digest, image.size_bytes, image.virtual_size_bytes, image.format) == (digest, len(content), 8 * MIB, QCOW2)


async def test_raw_image(world: World) -> None:
    digest = await put(world.images, bytes(2 * MIB), RAW)
    (image,) = await world.images.list()
    assert (image.virtual_size_bytes, image.format) == (2 * MIB, RAW)
    await world.volumes.create(volume(1, 2 * MIB, digest))


async def test_put_again_reads_no_chunk(world: World, tmp_path: Path) -> None:
    content = make_qcow2(tmp_path)
    digest = await put(world.images, content)

    async def never() -> AsyncIterator[bytes]:
        pytest.fail("a chunk was read")
        yield b""

    image = await world.images.put(digest, len(content), QCOW2, never())
    assert image.digest == digest


async def test_concurrent_puts_of_one_image_store_it_once(world: World, tmp_path: Path) -> None:
    content = make_qcow2(tmp_path)
    await asyncio.gather(*(put(world.images, content) for _ in range(4)))
    assert [image.size_bytes for image in await world.images.list()] == [len(content)]


@pytest.mark.parametrize(
    ("spoil", "format", "why"),
    [
        (lambda content: content[: 100 << 10], QCOW2, "truncated"),
        (lambda content: content[:20], QCOW2, "truncated"),
        (lambda _: b"<!doctype html>" * 100, QCOW2, "not a qcow2"),
        (lambda _: b"<!doctype html>" * 100, RAW, "not a disk image"),
        (lambda content: content, RAW, "it is a qcow2"),
        (lambda _: b"", RAW, "not a disk image"),
    ],
)
async def test_bad_images_are_refused_and_leave_nothing(world: World, tmp_path: Path, spoil, format, why: str) -> None:
    with pytest.raises(BadImage, match=why) as refused:
        await put(world.images, spoil(make_qcow2(tmp_path)), format)
    assert not refused.value.retryable
    assert await world.images.list() == []
    assert await world.images.partial_bytes(digest_of(spoil(make_qcow2(tmp_path)))) == 0


async def test_images_that_need_other_files_are_refused(world: World, tmp_path: Path) -> None:
    make_qcow2(tmp_path)
    (tmp_path / "image.qcow2").rename(tmp_path / "base.qcow2")
    child = make_qcow2(tmp_path, more=("-b", "base.qcow2", "-F", "qcow2"))
    with pytest.raises(BadImage, match="backing file"):
        await put(world.images, child)
    with pytest.raises(BadImage, match="another file"):
        await put(world.images, make_qcow2(tmp_path, more=("-o", f"data_file={tmp_path}/data.raw")))


async def test_a_wrong_digest_is_refused_and_leaves_nothing(world: World, tmp_path: Path) -> None:
    content = make_qcow2(tmp_path)
    wrong = digest_of(b"something else")
    with pytest.raises(BadImage, match="digest"):
        await world.images.put(wrong, len(content), QCOW2, chunked(content))
    assert await world.images.list() == []
    assert await world.images.partial_bytes(wrong) == 0


async def test_more_bytes_than_announced_are_refused(world: World, tmp_path: Path) -> None:
    content = make_qcow2(tmp_path)
    with pytest.raises(BadImage, match="announced"):
        await world.images.put(digest_of(content), len(content) - 1, QCOW2, chunked(content))


async def test_a_broken_put_goes_on_where_it_ended(world: World, tmp_path: Path) -> None:
    content = make_qcow2(tmp_path)
    digest, half = digest_of(content), len(content) // 2

    async def broken() -> AsyncIterator[bytes]:
        yield content[:half]
        raise ConnectionError("the line went dead")

    with pytest.raises(ConnectionError):
        await world.images.put(digest, len(content), QCOW2, broken())
    assert await world.images.list() == []
    again = world.again()
    assert await again.images.partial_bytes(digest) == half
    await again.images.sweep([digest])
    assert await again.images.partial_bytes(digest) == half
    await put(again.images, content, offset=half)
    assert await collect(again.images.get(digest)) == content
    assert await again.images.partial_bytes(digest) == 0


async def test_halves_nobody_wants_are_swept_but_not_from_under_a_put(world: World, tmp_path: Path) -> None:
    content = make_qcow2(tmp_path)
    digest, half = digest_of(content), len(content) // 2
    swept: list[int] = []

    async def broken() -> AsyncIterator[bytes]:
        yield content[:half]
        await world.images.sweep([])
        swept.append(await world.images.partial_bytes(digest))
        raise ConnectionError("the line went dead")

    with pytest.raises(ConnectionError):
        await world.images.put(digest, len(content), QCOW2, broken())
    assert swept == [half]
    assert await world.images.partial_bytes(digest) == half
    await world.images.sweep([])
    assert await world.images.partial_bytes(digest) == 0


async def test_a_put_that_ends_early_is_kept_and_may_start_over(world: World, tmp_path: Path) -> None:
    content = make_qcow2(tmp_path)
    digest = digest_of(content)
    with pytest.raises(StorageError, match="ended after 1000 of") as short:
        await world.images.put(digest, len(content), QCOW2, chunked(content[:1000]))
    assert short.value.retryable
    with pytest.raises(StorageError, match="cannot go on at byte 2000"):
        await world.images.put(digest, len(content), QCOW2, chunked(content[2000:]), offset=2000)
    await put(world.images, content)
    assert await collect(world.images.get(digest)) == content


async def test_rubbish_kept_from_an_unfinished_put_is_found(world: World, tmp_path: Path) -> None:
    content = make_qcow2(tmp_path)
    digest = digest_of(content)
    with pytest.raises(StorageError):
        await world.images.put(digest, len(content), QCOW2, chunked(b"x" * 4096))
    with pytest.raises(StorageError, match="starts over") as resumed:
        await put(world.images, content, offset=4096)
    assert resumed.value.retryable
    assert await world.images.partial_bytes(digest) == 0
    await put(world.images, content)


async def test_volume_life(world: World, tmp_path: Path) -> None:
    digest = await put(world.images, make_qcow2(tmp_path))
    await world.volumes.create(volume(1, 16 * MIB, digest))
    await world.volumes.create(volume(2, 32 * MIB))
    await world.volumes.create(volume(1, 16 * MIB, digest))
    first, second = await world.again().volumes.observe(["vol-00000002", "vol-00000001", "vol-00000003"])
    needs = digest if isinstance(world.volumes, OwnPool) else ""
    assert (first.id, first.size_bytes, first.image_digest) == ("vol-00000001", 16 * MIB, needs)
    assert (second.id, second.size_bytes, second.image_digest) == ("vol-00000002", 32 * MIB, "")
    assert 0 < first.used_bytes < 16 * MIB
    assert await held(world, 2) == ["vol-00000002"], "only what was asked for"
    assert await held(world) == []
    attachment = await world.volumes.attachment(first.id)
    assert (attachment.format, attachment.network is None) in (("qcow2", True), ("raw", False))
    await world.volumes.resize(first.id, 24 * MIB)
    await world.volumes.resize(first.id, 24 * MIB)
    assert (await world.volumes.observe([first.id]))[0].size_bytes == 24 * MIB
    with pytest.raises(StorageError, match="shrink") as shrunk:
        await world.volumes.resize(first.id, MIB)
    assert not shrunk.value.retryable
    for _ in range(2):
        await world.volumes.delete(first.id)
        await world.volumes.delete(second.id)
    assert await held(world, 1, 2) == []


async def test_volume_refusals(world: World, tmp_path: Path) -> None:
    digest = await put(world.images, make_qcow2(tmp_path))
    with pytest.raises(StorageError, match="smaller than its image") as small:
        await world.volumes.create(volume(1, 4 * MIB, digest))
    assert not small.value.retryable
    with pytest.raises(NoSuchImage):
        await world.volumes.create(volume(1, 4 * MIB, digest_of(b"unknown")))
    with pytest.raises(PoolFull, match="larger than"):
        await world.volumes.create(volume(1, 1 << 60))
    await world.volumes.create(volume(2))
    with pytest.raises(PoolFull, match="larger than"):
        await world.volumes.resize("vol-00000002", 1 << 60)
    with pytest.raises(StorageError, match="copy of"):
        await world.volumes.create(volume(2, 16 * MIB, digest))
    for call in (world.volumes.attachment("vol-99999999"), world.volumes.resize("vol-99999999", MIB)):
        with pytest.raises(StorageError, match="not here"):
            await call
    assert await held(world, 1, 2) == ["vol-00000002"]


async def test_what_is_in_a_pool_of_its_own_a_node_can_list(world: World) -> None:
    for number in (2, 1):
        await world.volumes.create(volume(number))
    if isinstance(world.volumes, OwnPool):
        assert [each.id for each in await world.volumes.list()] == ["vol-00000001", "vol-00000002"]
    else:
        assert (await world.volumes.facts()).name, "others use it too: it has a name they know it by"


async def test_in_a_shared_pool_the_newer_generation_wins(world: World) -> None:
    if isinstance(world.volumes, OwnPool):
        await world.volumes.create(volume(1))
        await world.volumes.resize(volume(1).id, 24 * MIB, generation=0)
        await world.volumes.delete(volume(1).id, generation=0)
        assert await held(world, 1) == [], "nobody else's can be newer"
        return
    old, new = volume(1), volume(1)
    old.generation, new.generation = 1, 2
    await world.volumes.create(old)
    await world.volumes.create(new)
    for call in (
        world.volumes.create(old),
        world.volumes.resize(old.id, 32 * MIB, generation=1),
        world.volumes.delete(old.id, generation=1),
    ):
        with pytest.raises(Superseded):
            await call
    assert [each.size_bytes for each in await world.volumes.observe([old.id])] == [16 * MIB]
    await world.volumes.delete(new.id, generation=2)
    with pytest.raises(Superseded):
        await world.again().volumes.create(old)
    assert await held(world, 1) == [], "one that was away when it was deleted makes it none again"


async def test_in_a_shared_pool_a_volume_is_opened_by_the_newest_claim(world: World) -> None:
    volumes, id = world.volumes, volume(1).id
    if not isinstance(volumes, Claiming):
        assert isinstance(volumes, OwnPool), "whoever opens what others reach is asked by which claim"
        return
    with pytest.raises(StorageError, match="not here"):
        await volumes.open(id, 1)
    await volumes.create(volume(1))
    await volumes.open(id, 3)
    await volumes.open(id, 3)
    with pytest.raises(Superseded, match="claim 2, newest 3"):
        await volumes.open(id, 2)
    await volumes.shut_out(id, 2)
    await volumes.open(id, 3)
    await volumes.shut_out(id, 3)
    await volumes.shut_out(id, 3)
    with pytest.raises(Superseded):
        await world.again().volumes.open(id, 3)
    await volumes.open(id, 4)
    await volumes.delete(id)
    again = world.again().volumes
    assert isinstance(again, Claiming)
    await again.shut_out(id, 4)
    await volumes.create(volume(1))
    with pytest.raises(Superseded):
        await volumes.open(id, 4)


async def test_who_administers_it_no_more_shuts_nobody_out(world: World) -> None:
    volumes, newer = world.volumes, volume(1)
    if not isinstance(volumes, Claiming):
        assert isinstance(volumes, OwnPool)
        return
    newer.generation = 2
    await volumes.create(newer)
    await volumes.open(newer.id, 1)
    with pytest.raises(Superseded):
        await volumes.shut_out(newer.id, 1, generation=1)
    await volumes.open(newer.id, 1)


@pytest.mark.parametrize("id", ["../images/x", "vol-1/../../x", "vol-ABCDEFGH", "vol-12345678\n", ""])
async def test_ids_never_lead_out_of_the_pool(world: World, id: str) -> None:
    desired = volume(1)
    desired.id = id
    for call in (
        world.volumes.create(desired),
        world.volumes.delete(id),
        world.volumes.attachment(id),
        world.volumes.observe([id]),
    ):
        with pytest.raises(StorageError, match="not a volume id"):
            await call
    for call in (world.images.delete(f"sha256:{id}"), collect(world.images.get(f"sha256:{id}"))):
        with pytest.raises(StorageError, match="not a digest"):
            await call


async def test_an_image_is_kept_while_a_volume_is_its_child(world: World, tmp_path: Path) -> None:
    digest = await put(world.images, make_qcow2(tmp_path))
    await world.volumes.create(volume(1, 8 * MIB, digest))
    if isinstance(world.volumes, OwnPool):
        with pytest.raises(StorageError, match="vol-00000001") as kept:
            await world.images.delete(digest)
        assert kept.value.retryable
        await world.volumes.delete("vol-00000001")
    for _ in range(2):
        await world.images.delete(digest)
    assert await world.images.list() == []
    with pytest.raises(NoSuchImage):
        await collect(world.images.get(digest))


async def test_create_against_delete_of_the_image_never_orphans_a_volume(world: World, tmp_path: Path) -> None:
    content = make_qcow2(tmp_path)
    for number in range(8):
        digest = await put(world.images, content)
        created, deleted = await asyncio.gather(
            world.volumes.create(volume(number, 8 * MIB, digest)), world.images.delete(digest), return_exceptions=True
        )
        if isinstance(world.volumes, OwnPool):
            assert bool(await world.images.list()) == (created is None), (created, deleted)
        assert isinstance(created, NoSuchImage | None)
        await world.volumes.delete(volume(number).id)


async def test_facts_tell_the_truth(world: World, tmp_path: Path) -> None:
    before = await world.volumes.facts()
    content = make_qcow2(tmp_path)
    await put(world.images, content)
    facts = await world.volumes.facts()
    assert facts.type == world.volumes.name
    await world.volumes.create(volume(1))
    facts = await world.volumes.facts()
    assert facts.total_bytes == before.total_bytes > facts.used_bytes > 0
    assert facts.free_bytes + facts.used_bytes <= facts.total_bytes
