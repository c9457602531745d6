"""While a reconciler's commit is in flight the next is decided on top of it; when it fails, so does what stood on it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import pytest
from cairn.controller.gathered import Group
from cairn.controller.reconcilers.base import Outcome
from cairn.controller.store.base import OPERATIONS_MAX, Txn, View
from cairn.controller.store.memory import MemoryStore
from cairn.proto import kinds
from cairn.proto.kinds import AnyKind
from cairn.proto.v1.cluster_pb2 import Cluster
from cairn.proto.v1.volume_pb2 import PoolClaims, Volume, VolumePlacement

from tests.unit.test_runtime import Marker, Running, running

ALL = "local/node-00000001"
FIRST, SECOND, OTHERS = "vol-00000001", "vol-00000002", "vol-00000009"


def count(txn: Txn, volume: str, before: PoolClaims | None, revision: int) -> Txn:
    txn.create(kinds.VOLUME_PLACEMENT, volume, VolumePlacement(volume=volume))
    after = PoolClaims(disk_bytes=1 + (before.disk_bytes if before is not None else 0))
    return txn.check(kinds.POOL_CLAIMS, ALL, revision).put(kinds.POOL_CLAIMS, ALL, after)


@dataclass
class Counter(Marker):
    """Counts all volumes in one record, so that each decision stands on the one before."""

    name: str = "placement"
    writes: Sequence[AnyKind] = (kinds.VOLUME_PLACEMENT, kinds.POOL_CLAIMS)

    def reconcile(self, view: View, key: str, now: datetime) -> Outcome:
        self.looked.append(key)
        if view.get(kinds.VOLUME_PLACEMENT, key) is not None:
            return Outcome(None, "counted")
        before = view.get(kinds.POOL_CLAIMS, ALL)
        txn = count(Txn(self.name), key, before, view.revision_of(kinds.POOL_CLAIMS, ALL))
        return Outcome(txn, f"{key} is counted")


async def counted(at: Running, number: int) -> None:
    await at.until(lambda: at.cache.view.count(kinds.VOLUME_PLACEMENT) == number and at.runtime.idle)
    claims = at.cache.view.get(kinds.POOL_CLAIMS, ALL)
    assert claims is not None
    assert claims.disk_bytes == number


async def first_in_flight(at: Running, marker: Marker) -> None:
    """Hold the first volume's commit until the second is decided."""
    at.store.gate.clear()
    await at.volume(FIRST)
    await at.until(lambda: at.store.sent == 1)
    await at.volume(SECOND)
    await at.until(lambda: SECOND in marker.looked)


async def test_the_next_is_decided_while_one_is_in_flight_and_stands_on_it() -> None:
    counter = Counter()
    async with running(counter) as at:
        await first_in_flight(at, counter)
        for _ in range(50):
            await asyncio.sleep(0)
        assert at.store.sent == 1, "what stands on a commit is sent when that has happened"
        at.store.gate.set()
        await counted(at, 2)
        assert len(at.store.commits) == 2
        assert at.metric("cairn_conflicts_total", "placement") == 0


@pytest.mark.parametrize("fault", ["conflict", "unavailable", "lost request", "lost answer", "lease"])
async def test_what_stood_on_a_commit_that_failed_is_decided_again(fault: str) -> None:
    counter = Counter()
    async with running(counter) as at:
        at.store.faults = [fault]
        await first_in_flight(at, counter)
        at.store.gate.set()
        await counted(at, 2)
        assert counter.looked.count(SECOND) >= 2
        assert at.metric("cairn_conflicts_total", "placement") == (fault == "conflict"), "nothing was sent that could not be"


async def test_what_another_writes_between_two_flights_is_not_written_over() -> None:
    counter = Counter()
    async with running(counter) as at:
        others = MemoryStore(at.store.backend)

        async def overtake() -> None:
            items, _ = await others.read(kinds.POOL_CLAIMS.key(ALL))
            await others.commit(count(Txn("placement"), OTHERS, PoolClaims.FromString(items[0].value), items[0].mod_revision))

        await first_in_flight(at, counter)
        at.store.between = overtake
        at.store.gate.set()
        await counted(at, 3)
        assert at.metric("cairn_conflicts_total", "placement") == 1


async def test_what_was_decided_before_a_restore_is_not_sent_after_it() -> None:
    """A restore that began and ended while an answer was on its way has changed the cluster's record twice."""
    counter = Counter()
    async with running(counter) as at:
        others = MemoryStore(at.store.backend)

        async def restore() -> None:
            under_way = Cluster(name="blue", epoch=2)
            under_way.restore.SetInParent()
            for cluster in (under_way, Cluster(name="blue", epoch=2)):
                revision = await others.commit(Txn("peers").put(kinds.CLUSTER, "self", cluster))
            await at.cache.wait_for(revision)

        await first_in_flight(at, counter)
        at.store.between = restore
        at.store.gate.set()
        await counted(at, 2)
        assert at.store.sent == 2, "what was decided before was never sent"
        assert at.metric("cairn_conflicts_total", "placement") == 1, "it was decided again"


class OneRoom(Counter):
    """Counts one volume only: for the others there is no room."""

    def reconcile(self, view: View, key: str, now: datetime) -> Outcome:
        if view.get(kinds.VOLUME, key) is None or view.get(kinds.POOL_CLAIMS, ALL) is not None:
            self.looked.append(key)
            return Outcome(None, "no room")
        return super().reconcile(view, key, now)


@pytest.mark.parametrize("together", [False, True])
async def test_who_found_no_room_beside_a_commit_that_fails_is_looked_at_again(together: bool) -> None:
    """The first has taken the room, so nothing is to be done for the second; but then the first is not to be any more."""
    rooms = OneRoom()
    async with running(rooms) as at:
        others, volume = MemoryStore(at.store.backend), Volume()
        at.store.faults = ["conflict"]
        if together:
            at.store.gate.clear()
            both = Txn("api").create(kinds.VOLUME, FIRST, volume).create(kinds.VOLUME, SECOND, volume)
            await others.commit(both)
            await at.until(lambda: at.store.sent == 1)
        else:
            await first_in_flight(at, rooms)
        await at.cache.wait_for(await others.commit(Txn("garbage").delete(kinds.VOLUME, FIRST)))
        at.store.gate.set()
        await at.until(lambda: at.cache.view.get(kinds.VOLUME_PLACEMENT, SECOND) is not None)


def test_a_group_is_full_when_another_decision_like_its_largest_does_not_fit() -> None:
    group, taken = Group("placement", 0), 0
    while not group.full(1000):
        txn = Txn("placement")
        for part in range(10):
            txn.put(kinds.VOLUME_PLACEMENT, f"vol-{taken}-{part}", VolumePlacement())
        assert group.add(f"vol-{taken}", txn, Outcome(txn))
        taken += 1
    assert OPERATIONS_MAX - 10 < group.txn.size <= OPERATIONS_MAX


def test_a_group_that_refused_a_decision_takes_no_other() -> None:
    group, large = Group("placement", 0), Txn("placement")
    small = Txn("placement").put(kinds.VOLUME_PLACEMENT, "vol-0", VolumePlacement())
    for part in range(OPERATIONS_MAX):
        large.put(kinds.POOL_CLAIMS, f"pool-{part}", PoolClaims())
    assert group.add("vol-0", small, Outcome(small))
    assert not group.full(64)
    assert not group.add("large", large, Outcome(large))
    assert group.full(64), "or it would be decided about again and again"
