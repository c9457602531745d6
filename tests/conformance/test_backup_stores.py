"""Every store of backups does the same: in memory, in a folder, and S3 by a real radosgw over TLS."""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import stat
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from threading import Event

import pytest
from cairn.proto.seams import SystemIds
from cairn.storage.backups import directory
from cairn.storage.backups.directory import DirectoryStore
from cairn.storage.backups.fake import FakeStore
from cairn.storage.backups.repository import create
from cairn.storage.backups.s3 import Bucket, Credentials, S3Store
from cairn.storage.backups.store import CHUNK_BYTES, Gone, Object, ObjectStore, StoreError, StoreFull, check_name, fetch

from tests.conformance.backup_kit import MIB, Disk, Series, sound
from tests.lab.radosgw import RadosGateway

_numbers = itertools.count(1)


@dataclass
class World:
    """A store, and how to fill it up so that nothing more goes in, and back."""

    store: ObjectStore
    fill: Callable[[], None] | None = None


@pytest.fixture(params=["fake", "directory", "s3"])
async def world(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[World]:
    if request.param == "fake":
        fake = FakeStore()
        world = World(fake, lambda: setattr(fake, "capacity_bytes", 0))
    elif request.param == "directory":
        (tmp_path / "backups").mkdir()
        world = World(DirectoryStore(tmp_path / "backups", SystemIds()))
    else:
        # Not in a thread: a process that it makes would end with that.
        gateway: RadosGateway = request.getfixturevalue("radosgw")
        name = f"backups-{next(_numbers)}"
        bucket = await asyncio.to_thread(gateway.make_bucket, name, "cloud-1/")
        world = World(S3Store(bucket, gateway.credentials), lambda: gateway.limit(name, 0))
    yield world
    await world.store.close()


async def names(store: ObjectStore, prefix: str = "") -> list[str]:
    return [each.name async for each in store.list(prefix)]


async def test_what_is_put_is_there_whole(world: World) -> None:
    store = world.store
    content = os.urandom(3 * MIB + 17)
    await store.put("volumes/vol-1/bak-1/part.000", content)
    assert await fetch(store, "volumes/vol-1/bak-1/part.000", len(content)) == content
    assert [each async for each in store.list("")] == [Object("volumes/vol-1/bak-1/part.000", len(content))]
    assert all([len(chunk) <= CHUNK_BYTES async for chunk in store.get("volumes/vol-1/bak-1/part.000")])
    await store.put("volumes/vol-1/bak-1/part.000", b"other")
    assert await fetch(store, "volumes/vol-1/bak-1/part.000", 100) == b"other"


async def test_an_empty_object_is_one(world: World) -> None:
    await world.store.put("a/mark", b"")
    assert await fetch(world.store, "a/mark", 10) == b""
    assert [each async for each in world.store.list("a/")] == [Object("a/mark", 0)]


@pytest.mark.parametrize(
    ("offset", "length", "wanted"),
    [(0, 4, b"0123"), (3, 4, b"3456"), (3, None, b"3456789"), (8, 100, b"89"), (10, 5, b""), (11, None, b"")],
)
async def test_ranges(world: World, offset: int, length: int | None, wanted: bytes) -> None:
    await world.store.put("ten", b"0123456789")
    assert b"".join([chunk async for chunk in world.store.get("ten", offset=offset, length=length)]) == wanted


async def test_absent_is_told_and_removing_it_is_no_error(world: World) -> None:
    await world.store.delete("not/there")
    with pytest.raises(Gone, match="not/there") as failed:
        await fetch(world.store, "not/there", 10)
    assert not failed.value.retryable
    assert await names(world.store) == []
    await world.store.put("a/b/c", b"1")
    await world.store.delete("a/b/c")
    await world.store.delete("a/b/c")
    assert await names(world.store, "a/") == []
    with pytest.raises(Gone):
        await fetch(world.store, "a/b/c", 10)


async def test_lists_are_sorted_and_by_prefix(world: World) -> None:
    wanted = sorted(["a", "a-b/c", "a/b", "a/b.c/d", "a/b/c", "a/bc", "ab", "b/0", "B/0", "b/00"])
    for name in wanted:
        if name not in ("a", "a/b"):
            await world.store.put(name, name.encode())
    # A folder cannot be a file's name as well; nobody needs that.
    wanted = [name for name in wanted if name not in ("a", "a/b")]
    assert await names(world.store) == wanted
    for prefix in ("a/", "a/b", "a/b/", "b/0", "nothing/", "a-"):
        assert await names(world.store, prefix) == [name for name in wanted if name.startswith(prefix)]


async def test_long_lists_come_whole(world: World) -> None:
    wanted = [f"many/{number:04d}" for number in range(1203)]
    for start in range(0, len(wanted), 50):
        await asyncio.gather(*(world.store.put(name, b"x") for name in wanted[start : start + 50]))
    assert await names(world.store, "many/") == wanted


@pytest.mark.parametrize("name", ["", "/a", "../a", "a/../b", "a//b", "a/", ".hidden", "a/.b", "a\0b", "a b", "ä", "x" * 300])
async def test_names_that_are_no_names_are_refused(world: World, name: str) -> None:
    with pytest.raises(ValueError, match="no name of an object"):
        await world.store.put(name, b"")
    with pytest.raises(ValueError, match="no name of an object"):
        await fetch(world.store, name, 10)
    with pytest.raises(ValueError, match="no name of an object"):
        await world.store.delete(name)
    with pytest.raises(ValueError, match="no name of an object"):
        check_name(name)


async def test_what_is_larger_than_it_may_be_is_not_read(world: World) -> None:
    await world.store.put("large", bytes(3 * MIB))
    with pytest.raises(StoreError, match=r"large in .* has more than the 100 bytes") as failed:
        await fetch(world.store, "large", 100)
    assert not failed.value.retryable


async def test_many_at_once(world: World) -> None:
    contents = {f"at-once/{number}": os.urandom(200_000) for number in range(12)}
    await asyncio.gather(*(world.store.put(name, content) for name, content in contents.items()))
    got = await asyncio.gather(*(fetch(world.store, name, 1 << 20) for name in contents))
    assert got == list(contents.values())


async def test_full_is_told_apart(world: World) -> None:
    if world.fill is None:
        pytest.skip("a full folder is in test_a_folder_that_is_full")
    await world.store.put("before", b"1")
    await asyncio.to_thread(world.fill)
    with pytest.raises(StoreFull) as failed:
        await world.store.put("after", b"2")
    assert failed.value.retryable
    assert await names(world.store) == ["before"]
    await world.store.delete("before")


async def test_a_chain_is_kept_verified_and_restored(world: World) -> None:
    repository = await create(world.store, SystemIds())
    series = Series(repository, Disk.of(3 * MIB + 512))
    for number in range(3):
        series.disk.write(number * 700_000, os.urandom(400_000))
        await series.take()
    for id in series.held:
        await series.check(id)
    verification = await sound(repository)
    assert verification.backups == 3
    again = await create(world.store, SystemIds())
    assert again.id == repository.id


# --- A folder ---------------------------------------------------------------------------------------------------------


async def test_a_folder_that_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = DirectoryStore(tmp_path, SystemIds())

    def full(path: Path, content: bytes, mode: int, temporary: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(directory, "replace_file", full)
    with pytest.raises(StoreFull, match="could not write a in directory"):
        await store.put("a", b"1")


async def test_a_folder_that_is_not_mounted_is_not_written_beneath(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path / "mnt", SystemIds())
    with pytest.raises(StoreError, match="is it mounted"):
        await store.put("a/b", b"1")
    with pytest.raises(StoreError, match="is it mounted"):
        await names(store)
    assert not (tmp_path / "mnt").exists()


async def test_half_written_files_are_no_objects_and_are_swept(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path, SystemIds())
    await store.put("a/b", b"1")
    fresh, left = tmp_path / "a/.writing-00000001", tmp_path / "a/.writing-00000002"
    fresh.write_bytes(b"half")
    left.write_bytes(b"half")
    day_before = fresh.stat().st_mtime - directory.LEFT_S - 60
    os.utime(left, (day_before, day_before))
    assert await names(store) == ["a/b"]
    await store.sweep()
    assert fresh.exists(), "somebody may be writing it"
    assert not left.exists()
    assert await names(store) == ["a/b"]


async def test_files_of_a_folder_are_its_owners_alone(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path, SystemIds())
    await store.put("a/b", b"1")
    assert stat.S_IMODE((tmp_path / "a/b").stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o700


async def test_links_in_a_folder_lead_nowhere(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("of the host")
    store = DirectoryStore(tmp_path / "backups", SystemIds())
    (tmp_path / "backups").mkdir()
    (tmp_path / "backups" / "link").symlink_to(tmp_path / "secret")
    assert await names(store) == []
    with pytest.raises(StoreError):
        await fetch(store, "link", 100)


async def test_a_folder_that_hangs_fails_in_time_and_at_once_when_many_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, hung = DirectoryStore(tmp_path, SystemIds(), answer_s=0.2), Event()
    await store.put("a", b"1")
    reading = directory._read

    def read(path: Path, offset: int, length: int) -> bytes:
        hung.wait(60)
        return reading(path, offset, length)

    monkeypatch.setattr(directory, "_read", read)
    asked = [asyncio.create_task(fetch(store, "a", 0)) for _ in range(directory.THREADS_MAX)]
    said = await asyncio.gather(*asked, return_exceptions=True)
    assert all(isinstance(each, StoreError) and each.retryable and "no answer for" in str(each) for each in said)
    with pytest.raises(StoreError, match="16 calls before it have not been answered yet"):
        await fetch(store, "a", 1)
    hung.set()
    while store._hung:
        await asyncio.sleep(0.01)
    assert await fetch(store, "a", 1) == b"1"


# --- S3 ---------------------------------------------------------------------------------------------------------------


async def test_a_server_of_a_ca_that_is_not_trusted_is_refused(radosgw: RadosGateway) -> None:
    store = S3Store(Bucket(radosgw.endpoint, "backups"), radosgw.credentials)
    with pytest.raises(StoreError, match="certificate verify failed"):
        await store.put("a", b"1")
    await store.close()


async def test_wrong_credentials_are_permanent_and_no_secret_is_told(
    radosgw: RadosGateway, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    secret = "a-secret-nobody-may-see"
    credentials = Credentials(radosgw.credentials.access_key, secret)
    store = S3Store(Bucket(radosgw.endpoint, "backups", ca=radosgw.ca), credentials)
    with pytest.raises(StoreError) as failed:
        await store.put("a", b"1")
    assert not failed.value.retryable
    await store.close()
    told = [repr(credentials), repr(store), str(failed.value), repr(vars(store)), store.title, caplog.text]
    assert not any(secret in each for each in told)


async def test_a_bucket_that_is_not_there_is_told(radosgw: RadosGateway) -> None:
    store = S3Store(Bucket(radosgw.endpoint, "nobodys", ca=radosgw.ca), radosgw.credentials)
    with pytest.raises(StoreError, match="NoSuchBucket") as failed:
        await store.put("a", b"1")
    assert not failed.value.retryable
    assert not isinstance(failed.value, Gone)
    await store.close()


async def test_a_server_that_is_gone_is_retryable_and_found_again(radosgw: RadosGateway) -> None:
    bucket = await asyncio.to_thread(radosgw.make_bucket, "comes-and-goes")
    store = S3Store(bucket, radosgw.credentials)
    await store.put("a", b"1")
    radosgw.daemon.kill()
    try:
        with pytest.raises(StoreError) as failed:
            await fetch(store, "a", 10)
        assert failed.value.retryable
    finally:
        radosgw.daemon.start()
        await asyncio.to_thread(radosgw.wait)
    assert await fetch(store, "a", 10) == b"1"
    await store.close()
