"""Killed before and after each call to the store, in each operation: what is left can be restored, swept and gone on with."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from datetime import timedelta

import pytest
from cairn.proto.seams import SystemIds
from cairn.storage.backups.encryption import Identities
from cairn.storage.backups.fake import FakeStore
from cairn.storage.backups.removal import prune, remove, sweep
from cairn.storage.backups.repository import MARK, Repository, create
from cairn.storage.backups.retention import Policy
from pyrage import x25519

from tests.conformance.backup_kit import CLUSTER, MIB, START, VOLUME, Disk, Series, fake_repository, sound


class Killed(Exception):
    """The process is no more."""


@dataclass
class Killer:
    """From its n-th call on, a process reaches nothing any more."""

    at: int
    calls: int = 0
    is_dead: bool = False

    def __call__(self, method: str, name: str) -> None:
        self.calls += 1
        if self.is_dead or self.calls > self.at:
            self.is_dead = True
            raise Killed(f"{method} {name}")


def dies_after_parts(count: int) -> Callable[[str, str], None]:
    """Return what kills a process once it has put so many parts."""
    killer = Killer(1 << 30)
    parts: list[str] = []

    def look(method: str, name: str) -> None:
        killer(method, name)
        parts.extend([name] if method == "put done" and ".qcow2." in name else [])
        killer.is_dead = len(parts) >= count

    return look


async def at_each_step(
    before: FakeStore, act: Callable[[Repository], Awaitable[object]], after: Callable[[FakeStore], Awaitable[None]]
) -> int:
    """Do it on copies of a store, killed one step later each time; return how many steps it has."""
    for step in range(10_000):
        store = FakeStore(objects=dict(before.objects))
        repository = await fake_repository(store)
        store.before = killer = Killer(step)
        try:
            await act(repository)
        except Killed:
            store.before = None
            await after(store)
        else:
            assert not killer.is_dead
            return step
    raise AssertionError("it has no end")


def series_on(store: FakeStore, series: Series) -> Series:
    """The same disk and memory, on a copy of its repository."""
    return replace(series, repository=Repository(replace(series.repository.store, inner=store), series.repository.id))


async def three(store: FakeStore, recipients: tuple[str, ...] = ()) -> Series:
    """A full backup and two on top of it, and something new on the disk."""
    series = Series(await fake_repository(store), Disk.of(2 * MIB), recipients=recipients)
    for number in range(3):
        series.disk.write(number * 300_000, os.urandom(500_000))
        await series.take(point=f"p{number}")
    series.disk.write(MIB // 2, os.urandom(MIB + 512))
    return series


def strays(store: FakeStore, series: Series) -> list[str]:
    """What is there and was not before, of no backup."""
    ids = set(series.held)
    return [name for name in store.objects if name != MARK and not any(f"/{id}/" in name for id in ids)]


async def test_a_backup_goes_on_where_it_was_killed() -> None:
    before = FakeStore()
    series = await three(before)
    held = dict(series.held)
    changed = list(series.disk.changed)

    async def back_up(repository: Repository) -> None:
        series.disk.changed, series.held = list(changed), dict(held)
        await replace(series, repository=repository).take(point="p3")

    async def go_on(store: FakeStore) -> None:
        series.disk.changed, series.held = list(changed), dict(held)
        there = {name for name in store.objects if ".qcow2." in name}
        await sound((again := series_on(store, series)).repository)
        puts: list[str] = []
        store.before = lambda method, name: puts.append(name) if method == "put" else None
        await again.take(point="p3")
        assert not there & set(puts), "a part that was there was sent again"
        for id in again.held:
            await again.check(id)
        await sound(again.repository)

    assert await at_each_step(before, back_up, go_on) > 20


async def test_an_encrypted_backup_goes_on_where_it_was_killed() -> None:
    key = x25519.Identity.generate()
    before, identities = FakeStore(), Identities((key,))
    series = await three(before, (str(key.to_public()),))
    held, changed = dict(series.held), list(series.disk.changed)

    async def back_up(repository: Repository) -> None:
        series.disk.changed, series.held = list(changed), dict(held)
        await replace(series, repository=repository).take(point="p3")

    async def go_on(store: FakeStore) -> None:
        series.disk.changed, series.held = list(changed), dict(held)
        again = series_on(store, series)
        there = {name for name in store.objects if ".qcow2." in name and "bak-0004" in name}
        reads = series.disk.reads
        made = await again.take(point="p3")
        if made.sent_parts + made.kept_parts:
            assert made.kept_parts == len(there)
            assert made.sent_parts or series.disk.reads == reads, "what is there is not read again"
        await again.check("bak-0004", identities)
        await sweep(again.repository, "n1")
        await sound(again.repository)
        await again.check("bak-0004", identities)

    assert await at_each_step(before, back_up, go_on) > 20


async def test_encrypted_parts_of_another_moment_are_not_taken() -> None:
    key = x25519.Identity.generate()
    store = FakeStore()
    series = await three(store, (str(key.to_public()),))
    changed, held = list(series.disk.changed), dict(series.held)
    store.before = dies_after_parts(2)
    with pytest.raises(Killed):
        await series.take(point="p3")
    store.before = None
    there = [name for name in store.objects if "/bak-0004/bak-0004.qcow2." in name]
    assert there
    series.disk.changed, series.held = changed, held
    series.disk.content[MIB // 2 : MIB + CLUSTER] = os.urandom(MIB // 2 + CLUSTER)
    made = await series.take(point="another")
    assert made.kept_parts == 0
    await series.check("bak-0004", Identities((key,)))
    swept = await sweep(series.repository, "n1")
    assert swept.removed >= len(there)
    await series.check("bak-0004", Identities((key,)))
    await sound(series.repository)


async def test_what_a_killed_backup_left_is_swept_wherever_that_is_killed() -> None:
    before = FakeStore()
    series = await three(before)
    held = dict(series.held)
    before.before = dies_after_parts(2)
    with pytest.raises(Killed):
        await series.take()
    before.before, series.held = None, held
    assert strays(before, series)

    async def keep(repository: Repository) -> None:
        await sweep(repository, "n1", keep=["bak-0004"])

    async def kept(store: FakeStore) -> None:
        await sound(series_on(store, series).repository)

    await at_each_step(before, keep, kept)
    again = series_on(before, series)
    await sweep(again.repository, "n1", keep=["bak-0004"])
    assert any("/bak-0004/" in name for name in before.objects)

    async def swept(store: FakeStore) -> None:
        again = series_on(store, series)
        await sweep(again.repository, "n1")
        assert not strays(store, again)
        for id in held:
            await again.check(id)
        await sound(again.repository)

    async def sweeping(repository: Repository) -> None:
        await sweep(repository, "n1")

    assert await at_each_step(before, sweeping, swept) > 8


@pytest.mark.parametrize("ids", [["bak-0001"], ["bak-0002"], ["bak-0003"], ["bak-0001", "bak-0003"], ["bak-0002", "bak-0003"]])
async def test_a_removal_killed_at_any_step_leaves_what_can_be_restored(ids: list[str]) -> None:
    before = FakeStore()
    series = await three(before)

    async def removing(repository: Repository) -> None:
        await remove(repository, VOLUME, ids, "n1")

    async def restored(store: FakeStore) -> None:
        again = series_on(store, series)
        for each in await again.backups():
            await again.check(each.id)
        await sound(again.repository)
        await remove(again.repository, VOLUME, ids, "n1")
        await sweep(again.repository, "n1")
        left = await again.backups()
        assert [each.id for each in left if not each.is_hidden] == [id for id in series.held if id not in ids]
        for each in left:
            await again.check(each.id)
        gone = set(series.held) - {each.id for each in left}
        assert not [name for name in store.objects if any(f"/{id}/" in name for id in gone)]

    assert await at_each_step(before, removing, restored) > 5


async def test_pruning_killed_at_any_step_breaks_no_chain() -> None:
    before = FakeStore()
    series = await three(before)
    await series.take(is_full=True)
    series.disk.write(0, b"new")
    await series.take()
    now = START + timedelta(days=30)

    async def pruning(repository: Repository) -> None:
        await prune(repository, VOLUME, Policy(last=1), now, "n1")

    async def pruned(store: FakeStore) -> None:
        again = series_on(store, series)
        for each in await again.backups():
            await again.check(each.id)
        await sound(again.repository)
        await prune(again.repository, VOLUME, Policy(last=1), now, "n1")
        left = {each.id: each.is_hidden for each in await again.backups()}
        assert left == {"bak-0004": True, "bak-0005": False}

    assert await at_each_step(before, pruning, pruned) > 10


async def test_making_a_repository_is_killed_at_any_step() -> None:
    for step in range(20):
        store = FakeStore(before=Killer(step))
        try:
            await create(store, SystemIds())
        except Killed:
            store.before = None
            first = await create(store, SystemIds())
            assert (await create(store, SystemIds())).id == first.id
        else:
            assert step > 3
            return
    raise AssertionError("it has no end")
