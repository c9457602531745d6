"""Peers: who is alive, whose key it is, and what happens when a lease is lost."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from cairn.controller import peers
from cairn.controller.peers import Peers, winner
from cairn.controller.store.base import Txn
from cairn.controller.store.cache import Cache
from cairn.controller.store.memory import MemoryBackend, MemoryStore
from cairn.proto import kinds
from cairn.proto.seams import SystemClock
from cairn.proto.v1.cluster_pb2 import ControllerSession

KEYS = [f"i-{number:08}" for number in range(3000)]


def test_shares_are_even_and_only_the_leavers_share_moves() -> None:
    three = {key: winner(["a", "b", "c"], key) for key in KEYS}
    shares = Counter(three.values())
    assert all(800 < shares[name] < 1200 for name in "abc")
    two = {key: winner(["c", "a"], key) for key in KEYS}
    assert all(two[key] == three[key] for key in KEYS if three[key] != "b")
    assert set(two.values()) == {"a", "c"}
    assert winner([], "x") == ""


class Controller:
    """Store client, cache and peers of one controller."""

    def __init__(self, backend: MemoryBackend, name: str) -> None:
        self.store = MemoryStore(backend)
        self.cache = Cache(self.store)
        self.peers = Peers(name, [f"{name}:7443"], self.store, self.cache, SystemClock(), cluster="test")
        self.tasks = [asyncio.create_task(self.cache.run()), asyncio.create_task(self.peers.run())]

    async def sees(self, names: list[str]) -> None:
        async with asyncio.timeout(20):
            while self.peers.alive() != names:
                await asyncio.sleep(0.01)

    async def stop(self) -> None:
        for task in reversed(self.tasks):
            task.cancel()
            await asyncio.wait([task])
        await self.store.close()


@asynccontextmanager
async def controllers(*names: str) -> AsyncIterator[list[Controller]]:
    backend = MemoryBackend()
    running = [Controller(backend, name) for name in names]
    try:
        for each in running:
            await each.sees(sorted(names))
        yield running
    finally:
        for each in running:
            await each.stop()


async def test_every_key_belongs_to_exactly_one_of_those_alive() -> None:
    async with controllers("a", "b", "c") as running:
        for key in KEYS[:200]:
            assert [each.peers.mine(key) for each in running].count(True) == 1
        await running[1].stop()
        for each in (running[0], running[2]):
            await each.sees(["a", "c"])
        for key in KEYS[:200]:
            assert [each.peers.mine(key) for each in (running[0], running[2])].count(True) == 1


async def test_the_cluster_is_founded_once() -> None:
    async with controllers("a", "b", "c") as running:
        assert {each.peers.epoch for each in running} == {1}
        record = running[0].cache.view.record(kinds.CLUSTER, "self")
        assert record is not None
        assert record.mod_revision == record.create_revision
        assert record.message.name == "test"


async def test_a_lost_lease_is_replaced() -> None:
    async with controllers("a", "b") as running:
        peer = running[0]
        (item,) = (await peer.store.read(kinds.CONTROLLER.key("a")))[0]
        peer.store.backend.revoke(item.lease)
        await running[1].sees(["b"])
        assert all(running[1].peers.mine(key) for key in KEYS[:50])
        await running[1].sees(["a", "b"])
        assert peer.peers.registered.is_set()
        (again,) = (await peer.store.read(kinds.CONTROLLER.key("a")))[0]
        assert again.lease != item.lease


async def test_a_record_that_a_late_commit_put_under_a_dead_lease_is_written_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "LOOK_S", 0.05)
    async with controllers("a", "b") as (here, there):
        record = here.cache.view.get(kinds.CONTROLLER, "a")
        assert record is not None
        lease = await here.store.lease(60)
        await here.store.commit(Txn("peers").put(kinds.CONTROLLER, "a", record, lease=lease.id))
        await lease.close()
        await there.sees(["b"])
        await there.sees(["a", "b"])


async def test_a_controller_whose_name_another_took_writes_nothing_until_that_has_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "LOOK_S", 0.05)
    monkeypatch.setattr(peers, "RETRY_S", 0.05)
    async with controllers("a", "b") as (here, there):
        other = ControllerSession(name="a", endpoints=["elsewhere:7443"])
        held = await there.store.lease(60)
        seen = here.cache.view.revision_of(kinds.CONTROLLER, "a")
        txn = Txn("peers").check(kinds.CONTROLLER, "a", seen).put(kinds.CONTROLLER, "a", other, lease=held.id)
        taken = await there.store.commit(txn)
        looks, newest = list[int](), here.store.revision

        async def counted() -> int:
            looks.append(await newest())
            return looks[-1]

        here.store.revision = counted  # type: ignore[method-assign]
        async with asyncio.timeout(20):
            while len(looks) < 4:
                await asyncio.sleep(0.01)
        assert not here.peers.registered.is_set()
        assert here.cache.view.revision_of(kinds.CONTROLLER, "a") == taken
        await held.close()
        await there.sees(["b"])
        await there.sees(["a", "b"])
        again = there.cache.view.get(kinds.CONTROLLER, "a")
        assert again is not None
        assert again.endpoints == ["a:7443"]


async def test_a_controller_whose_name_another_process_took_stays_away_when_that_has_gone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The other may be on its way back: two that take turns would be one name with two minds."""
    monkeypatch.setattr(peers, "LOOK_S", 0.05)
    monkeypatch.setattr(peers, "RETRY_S", 0.05)
    async with controllers("a", "b") as (here, there):
        (item,) = (await there.store.read(kinds.CONTROLLER.key("a")))[0]
        successor = Controller(here.store.backend, "a")
        async with asyncio.timeout(20):
            await successor.peers.registered.wait()
            here.store.backend.revoke(item.lease)
            await successor.stop()
            await there.sees(["b"])
            looks, newest = list[int](), here.store.revision

            async def counted() -> int:
                looks.append(await newest())
                return looks[-1]

            here.store.revision = counted  # type: ignore[method-assign]
            while len(looks) < 4:
                await asyncio.sleep(0.01)
        assert not here.peers.registered.is_set()
        assert there.peers.alive() == ["b"]
