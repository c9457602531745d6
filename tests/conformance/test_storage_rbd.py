"""The RBD driver on a real Ceph: what the suite of all drivers cannot ask. Bytes by QEMU, killed workers, a silent cluster."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import signal
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cairn.proto.seams import SystemClock, SystemIds
from cairn.storage.base import Claiming, PoolFull, StorageError, Sweeping
from cairn.storage.local import LocalImages
from cairn.storage.rbd import RbdVolumes
from cairn.storage.rbd_pool import Place, RbdError, RbdPool, Silent
from cairn.storage.rbd_record import Record

from tests.conformance.storage_kit import MIB, RAW, CephPlace, World, make_qcow2, needs_qemu, put, run, volume
from tests.lab.ceph import Ceph
from tests.lab.hosts import wait_until

pytestmark = needs_qemu
ID = "vol-00000001"


@pytest.fixture
async def place(ceph_place: CephPlace) -> AsyncIterator[CephPlace]:
    yield ceph_place
    await ceph_place.close()


async def target(place: Place, world: World, id: str = ID) -> str:
    """QEMU's options for what a volume's attachment names."""
    attachment = await world.volumes.attachment(id)
    assert attachment.format == "raw"
    pool, namespace, image = attachment.path.split("/")
    return f"driver=rbd,pool={pool},namespace={namespace},image={image},conf={place.conf},user={place.user}"


async def qemu_io(place: Place, world: World, *commands: str, id: str = ID) -> None:
    options = [part for command in commands for part in ("-c", command)]
    said = await asyncio.to_thread(run, "qemu-io", "--image-opts", *options, await target(place, world, id))
    assert "verification failed" not in said


@contextmanager
def opened(options: str) -> Iterator[None]:
    """A process that has a volume open to write, as a guest's has."""
    process = subprocess.Popen(
        ["qemu-io", "--image-opts", options], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        # Its answer says that it has opened it.
        process.stdin.write(b"write 0 512\n")
        process.stdin.flush()
        wait_until("it to be open", lambda: b"wrote" in os.read(process.stdout.fileno(), 1000))
        yield
        # One that is killed is believed to be there for half a minute more.
        process.communicate(b"quit\n", timeout=20)
    finally:
        process.kill()
        process.wait()


async def test_a_copy_shows_its_image_and_is_its_own(place: CephPlace, tmp_path: Path) -> None:
    world = place.world()
    digest = await put(world.images, make_qcow2(tmp_path, pattern=0x5A))
    for number in (1, 2):
        await world.volumes.create(volume(number, 16 * MIB, digest))
    await qemu_io(place.place, world, "read -P 0x5a 0 1M", "read -P 0 1M 15M", "write -P 7 0 4096")
    await qemu_io(place.place, world, "read -P 0x5a 0 1M", id="vol-00000002")
    await qemu_io(place.place, world, "read -P 7 0 4096", "read -P 0x5a 4096 4096")
    (copied,) = await place.pools[0].names("image.")
    with pytest.raises(StorageError, match="2 images were cloned from it"):
        await place.pools[0].remove(copied)
    await world.volumes.resize(ID, 32 * MIB)
    await qemu_io(place.place, world, "read -P 0 16M 16M", "write -P 9 31M 1M")


async def test_another_node_needs_no_file_of_the_image(place: CephPlace, tmp_path: Path) -> None:
    n1, n2 = place.world("n1"), place.world("n2")
    digest = await put(n1.images, bytes([3]) * MIB, RAW)
    await n1.volumes.create(volume(1, 2 * MIB, digest))
    await n2.volumes.create(volume(2, 2 * MIB, digest))
    await qemu_io(place.place, n2, "read -P 3 0 1M", id="vol-00000002")


async def test_two_nodes_copy_an_image_once(place: CephPlace, tmp_path: Path) -> None:
    content = make_qcow2(tmp_path)
    worlds = [place.world("n1"), place.world("n2")]
    digests = [await put(world.images, content) for world in worlds]
    await asyncio.gather(*(world.volumes.create(volume(n, 16 * MIB, digests[0])) for n, world in enumerate(worlds, 1)))
    assert len(await place.pools[0].names("image.")) == 1


class Later(SystemClock):
    """So many hours ahead."""

    hours = 0

    def now(self) -> datetime:
        return super().now() + timedelta(hours=self.hours)


async def test_a_copy_goes_a_day_after_the_last_that_was_made_of_it(place: CephPlace, tmp_path: Path) -> None:
    clock = Later()
    world = place.world("n1", clock)
    volumes, (pool,) = world.volumes, place.pools
    assert isinstance(volumes, Sweeping)
    digest = await put(world.images, make_qcow2(tmp_path))
    await world.volumes.create(volume(1, 16 * MIB, digest))
    (copy,) = await pool.names("image.")
    clock.hours = 30
    await volumes.sweep()
    assert await pool.names("image.") == [copy], "a volume is a clone of it"
    await world.volumes.create(volume(2, 16 * MIB, digest))
    for number in (1, 2):
        await world.volumes.delete(volume(number).id)
    await volumes.sweep()
    assert await pool.names("image.") == [copy], "it was used just now"
    clock.hours = 60
    await volumes.sweep()
    assert await pool.names("") == []
    await world.volumes.create(volume(3, 16 * MIB, digest))
    await qemu_io(place.place, world, "read -P 0x5a 0 1M", id="vol-00000003")


async def test_a_copy_that_was_removed_by_hand_is_made_again(place: CephPlace, tmp_path: Path) -> None:
    world = place.world()
    (pool,) = place.pools
    digest = await put(world.images, make_qcow2(tmp_path))
    await world.volumes.create(volume(1, 16 * MIB, digest))
    await world.volumes.delete(ID)
    (copy,) = await pool.names("image.")
    await pool.remove(copy)
    with pytest.raises(StorageError):
        await world.volumes.create(volume(1, 16 * MIB, digest))
    await world.volumes.create(volume(1, 16 * MIB, digest))
    await qemu_io(place.place, world, "read -P 0x5a 0 1M")


async def test_what_is_open_is_not_removed(place: CephPlace) -> None:
    world = place.world()
    await world.volumes.create(volume(1))
    with opened(await target(place.place, world)):
        with pytest.raises(StorageError, match="open elsewhere"):
            await world.volumes.delete(ID)
        (left,) = await world.volumes.observe([ID])
        assert left.size_bytes == 0, "its data is there still, and nobody opens it any more"
        with pytest.raises(StorageError, match="not here"):
            await world.volumes.attachment(ID)
    assert len(await place.pools[0].names(ID)) == 1
    await world.volumes.delete(ID)
    assert (await world.volumes.observe([ID]), await place.pools[0].names(ID)) == ([], [])


async def test_who_is_shut_out_writes_nothing_more(ceph: Ceph, place: CephPlace) -> None:
    """By QEMU itself, which is connected and knows of nothing; who is given the volume then opens and writes it at once."""
    world = place.world()
    assert isinstance(world.volumes, Claiming)
    await world.volumes.create(volume(1))
    await world.volumes.open(ID, 1)
    options = await target(place.place, world)
    with subprocess.Popen(
        ["qemu-io", "--image-opts", options], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(b"write -P 0x11 0 1M\n")
            process.stdin.flush()
            said = os.read(process.stdout.fileno(), 1000)
            wait_until("it to be open", lambda: b"wrote" in said or b"wrote" in os.read(process.stdout.fileno(), 1000))
            await world.volumes.shut_out(ID, 1)
            await world.volumes.open(ID, 2)
            await qemu_io(place.place, world, "write -P 0x22 0 1M")
            out, _ = process.communicate(b"write -P 0x33 0 1M\nquit\n", timeout=60)
            assert b"write failed" in out, out
        finally:
            process.kill()
    await qemu_io(place.place, world, "read -P 0x22 0 1M")
    ends = [datetime.fromisoformat(each["until"][:19]).replace(tzinfo=UTC) for each in ceph.ask("osd", "blocklist", "ls")]
    assert max(ends) > SystemClock().now() + timedelta(days=4 * 365), "for longer than whoever it is lives"


@pytest.mark.parametrize("after_s", [0.0, 0.02, 0.04, 0.08, 0.12, 0.2, 0.3])
async def test_a_killed_worker_costs_the_call_and_nothing_else(place: CephPlace, tmp_path: Path, after_s: float) -> None:
    world = place.world()
    (pool,) = place.pools
    await pool.room()
    digest = await put(world.images, make_qcow2(tmp_path))
    steps = [
        lambda: world.volumes.create(volume(1, 16 * MIB, digest)),
        lambda: world.volumes.resize(ID, 32 * MIB),
        lambda: world.volumes.delete(ID),
    ]
    for step in steps:
        doing = asyncio.create_task(step())
        await asyncio.wait({doing}, timeout=after_s)
        killed = pool.pid
        os.kill(killed, signal.SIGKILL)
        with suppress(Silent):
            await doing
        while pool.pid == killed:
            await asyncio.sleep(0.01)
        await _insist(step)
        await _nothing_is_forgotten(pool)
    assert await pool.names("vol-") == []
    again = world.again().volumes
    assert isinstance(again, Sweeping)
    await _insist(again.sweep)
    assert len(await pool.names("image.")) == 1, "those of copies that were not finished are swept"


async def _insist(step: Callable[[], Awaitable[Any]], also: int = 0) -> None:
    """Do it again until it is done: what a killed process had open is believed to be so for a while."""
    async with asyncio.timeout(60):
        while True:
            try:
                await step()
                return
            except (RbdError, Silent) as error:
                if isinstance(error, RbdError) and error.errno not in (errno.EBUSY, also):
                    raise
                await asyncio.sleep(0.1)


async def _nothing_is_forgotten(pool: RbdPool) -> None:
    held = Record.read(await pool.read(f"cairn.volume.{ID}"), "it")
    assert set(await pool.names("vol-")) <= {held.image, *held.left}


async def test_the_cluster_takes_nothing_more_of_a_killed_worker(ceph: Ceph, place: CephPlace) -> None:
    pool = RbdPool(place.place, retry_s=0.1)
    place.pools.append(pool)
    await pool.room()
    address, killed = pool.address, pool.pid
    os.kill(killed, signal.SIGKILL)
    while pool.pid == killed:
        await asyncio.sleep(0.01)
    await pool.room()
    assert address in {each["addr"] for each in ceph.ask("osd", "blocklist", "ls")}
    killed = pool.pid
    ceph.ask("osd", "blocklist", "add", pool.address, "60")
    await _insist(lambda: pool.swap("cairn.test", None, "x"), also=errno.ESHUTDOWN)
    assert pool.pid != killed, "one that is shut out itself is replaced"


async def test_a_full_pool_refuses_and_can_be_emptied(ceph: Ceph, place: CephPlace) -> None:
    world = place.world()
    await world.volumes.create(volume(1))
    ceph.ask("osd", "pool", "set-quota", place.place.pool, "max_objects", "1")
    try:
        await asyncio.to_thread(wait_until, "the pool to be full", lambda: "full" in str(ceph.ask("health", "detail")), 60)
        with pytest.raises(PoolFull):
            await world.volumes.create(volume(2))
        await world.volumes.delete(ID)
        assert await world.volumes.observe([ID]) == []
    finally:
        ceph.ask("osd", "pool", "set-quota", place.place.pool, "max_objects", "0")
    await asyncio.to_thread(wait_until, "there to be room", lambda: "full" not in str(ceph.ask("health", "detail")), 60)
    await world.volumes.create(volume(2))


async def test_a_worker_that_ends_within_a_line_is_an_answer_that_is_not_known(place: CephPlace) -> None:
    for says in ('printf \'{"id": 1, "res\'', "echo nonsense; exec sleep 60"):
        pool = RbdPool(place.place, python=("sh", "-c", f"read line; {says}"))
        place.pools.append(pool)
        with pytest.raises(Silent, match="ended"):
            await pool.room()


async def test_a_worker_that_hangs_is_ended(place: CephPlace) -> None:
    pool = RbdPool(place.place, silence_s=1.0, retry_s=0.1)
    place.pools.append(pool)
    await pool.room()
    os.kill(pool.pid, signal.SIGSTOP)
    with pytest.raises(Silent, match="did not answer for 1 s"):
        await pool.room()
    await _insist(pool.room)


async def test_a_cluster_that_is_silent_is_told_and_comes_back(ceph: Ceph, place: CephPlace, tmp_path: Path) -> None:
    pool = RbdPool(place.place, silence_s=2.0, retry_s=0.1)
    place.pools.append(pool)
    volumes = RbdVolumes(pool, LocalImages(tmp_path / "images"), SystemIds(), SystemClock(), node="n1")
    await volumes.create(volume(1))
    ceph.osds[0].kill(signal.SIGSTOP)
    try:
        with pytest.raises(Silent, match="is its cluster up"):
            await volumes.resize(ID, 32 * MIB)
        began = asyncio.get_running_loop().time()
        with pytest.raises(Silent, match="is its cluster up"):
            await volumes.observe([ID])
        assert asyncio.get_running_loop().time() - began < 1, "nothing else waits for it meanwhile"
    finally:
        ceph.osds[0].kill(signal.SIGCONT)
    await _insist(lambda: volumes.resize(ID, 32 * MIB))
    assert [each.size_bytes for each in await volumes.observe([ID])] == [32 * MIB]


@pytest.mark.parametrize(
    ("wrong", "say"),
    [
        ({"pool": "nosuch"}, "nosuch"),
        ({"user": "nobody"}, "error"),
        ({"conf": "/nonexistent/ceph.conf"}, "/nonexistent/ceph.conf: No such file"),
    ],
)
async def test_what_is_wrong_with_a_place_is_said(place: CephPlace, wrong: dict[str, str], say: str) -> None:
    pool = RbdPool(replace(place.place, **wrong), silence_s=20.0)
    place.pools.append(pool)
    with pytest.raises(StorageError, match=say):
        await pool.read("cairn.volume.vol-00000001")


async def test_a_record_that_is_none_of_ours_is_left_alone(place: CephPlace) -> None:
    world = place.world()
    assert await place.pools[0].swap(f"cairn.volume.{ID}", None, "[]")
    await world.volumes.create(volume(2))
    bad, good = await world.volumes.observe([ID, "vol-00000002"])
    assert (bad.size_bytes, good.size_bytes) == (0, 16 * MIB), "it is seen, and hides no other"
    for call in (world.volumes.create(volume(1)), world.volumes.delete(ID), world.volumes.attachment(ID)):
        with pytest.raises(StorageError, match="no record of ours") as refused:
            await call
        assert not refused.value.retryable


async def test_what_a_newer_release_keeps_in_a_record_stays_there(place: CephPlace) -> None:
    world, object = place.world(), f"cairn.volume.{ID}"
    (pool,) = place.pools
    await world.volumes.create(volume(1))
    text = await pool.read(object)
    assert text is not None
    assert await pool.swap(object, text, json.dumps({**json.loads(text), "key_id": "k1"}))
    newer = volume(1)
    newer.generation = 5
    await world.volumes.create(newer)
    await world.volumes.resize(ID, 32 * MIB, generation=6)
    assert json.loads(await pool.read(object) or "") | {"generation": 6, "key_id": "k1"} == json.loads(
        await pool.read(object) or ""
    )
    await world.volumes.delete(ID, generation=6)
    assert json.loads(await pool.read(object) or "")["key_id"] == "k1"


async def test_the_key_is_in_nobodys_command_line(ceph: Ceph, place: CephPlace) -> None:
    pool = RbdPool(place.place)
    place.pools.append(pool)
    await pool.room()
    key = next(line.split(" = ")[1] for line in (ceph.folder / "cairn.keyring").read_text().splitlines() if "key = " in line)
    assert len(key) > 30
    for file in ("cmdline", "environ"):
        assert key.encode() not in Path(f"/proc/{pool.pid}/{file}").read_bytes()
