"""What a controller does by itself is committed with its record in the audit, or not done."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import pytest
from cairn.controller.api.chain import first_break
from cairn.controller.api.mutation import Act
from cairn.controller.gathered import Group
from cairn.controller.model.happening import ActSpec
from cairn.controller.model.permits import Caller
from cairn.controller.model.restored import CLUSTER_ID
from cairn.controller.outage import AuditFull
from cairn.controller.reconcilers.base import Outcome
from cairn.controller.store.base import OPERATIONS_MAX, Conflict, Item, Txn, View
from cairn.controller.store.memory import MemoryStore
from cairn.proto import kinds
from cairn.proto.kinds import AnyKind
from cairn.proto.v1.audit_pb2 import Audit
from cairn.proto.v1.cluster_pb2 import Cluster
from cairn.proto.v1.volume_pb2 import Purge

from tests.unit.test_runtime import Marker, Running, running

ONE, TWO, THREE = "vol-00000001", "vol-00000002", "vol-00000003"
ALL = (ONE, TWO, THREE)


@dataclass
class Eraser(Marker):
    """Erases every volume, and says so."""

    writes: Sequence[AnyKind] = (kinds.VOLUME,)

    def reconcile(self, view: View, key: str, now: datetime) -> Outcome:
        self.looked.append(key)
        record = view.record(kinds.VOLUME, key)
        if record is None:
            return Outcome(None, "gone")
        txn = Txn(self.name).check(kinds.VOLUME, key, record.mod_revision).delete(kinds.VOLUME, key)
        act = ActSpec("EraseVolume", f"volume/{key}", record.message.name, "p", f"cause of {key}")
        return Outcome(txn, f"{key} is erased", acts=(act,))


async def items(at: Running) -> Sequence[Item]:
    return (await at.store.read(kinds.AUDIT.prefix))[0]


async def audits(at: Running) -> list[Audit]:
    return [Audit.FromString(item.value) for item in await items(at)]


async def erased(at: Running, *ids: str) -> None:
    await at.cache.wait_for(await at.store.revision())
    await at.until(lambda: at.runtime.idle and not set(ids) & set(at.cache.view.ids(kinds.VOLUME)))


async def recorded_once(at: Running, *ids: str) -> None:
    found = await audits(at)
    assert sorted(each.object for each in found) == [f"volume/{id}" for id in ids]
    assert first_break("c1", 0, b"", await items(at)) == ""


async def test_it_is_committed_with_its_record_and_why() -> None:
    async with running(Eraser()) as at:
        at.store.gate.clear()
        await at.volume(ONE)
        await at.until(lambda: at.store.sent == 1)
        # Decided while the first is in flight: it follows that.
        await at.volume(TWO, THREE)
        at.store.gate.set()
        await erased(at, *ALL)
        await recorded_once(at, *ALL)
        for each in await audits(at):
            id = each.object.partition("/")[2]
            assert (each.caller, each.who, each.method, each.cause) == ("system", "garbage", "EraseVolume", f"cause of {id}")
            assert each.project == "p"
        for txn in at.store.commits:
            gone = {key for key in txn.deletes if key.startswith(kinds.VOLUME.prefix)}
            assert len(gone) == sum(key.startswith(kinds.AUDIT.prefix) for key in txn.puts), "both or neither"
            assert all(txn.writers[key] == "garbage" for key in gone), "who wrote it is who decided it"


@pytest.mark.parametrize("fault", ["conflict", "unavailable", "lease", "lost request", "lost answer"])
async def test_whatever_the_store_does_it_is_recorded_once(fault: str) -> None:
    async with running(Eraser()) as at:
        at.store.faults = [fault, "", fault]
        await at.volume(*ALL)
        await erased(at, *ALL)
        await recorded_once(at, *ALL)


async def test_a_head_that_was_moved_by_another_is_decided_about_anew() -> None:
    async with running(Eraser()) as at:
        await at.volume(ONE)
        await erased(at, ONE)
        await at.store.commit(Txn("test", deletes={kinds.AUDIT_HEAD.key("c1")}))
        sent = at.store.sent
        await at.volume(TWO)
        await erased(at, TWO)
        await recorded_once(at, ONE, TWO)
        assert at.store.sent <= sent + 3, "one conflict, and the head as it is then"


async def test_while_the_audit_is_closed_it_waits_and_all_else_goes_on() -> None:
    marker, eraser = Marker(), Eraser()
    async with running(eraser, marker) as at:
        full = AuditFull("audit", "the disk is full")
        at.mutations.closed = lambda: full
        await at.volume(*ALL)
        await at.marked(*ALL)
        assert at.cache.view.count(kinds.VOLUME) == 3
        assert await audits(at) == []
        assert len(eraser.looked) < 30, "each time it waits longer"
        at.mutations.closed = lambda: None
        await erased(at, *ALL)
        await recorded_once(at, *ALL)


async def test_what_waited_its_turn_over_a_restore_is_decided_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """The store would not know: who commits looks at the cluster's record as it is at that moment."""
    async with running(Eraser()) as at:
        others, restored = MemoryStore(at.store.backend), list[int]()
        commit = at.mutations.acts.commit

        async def waiting(txn: Txn, audits: Sequence[Audit]) -> int:
            if not restored:
                restored.append(await others.commit(Txn("peers").put(kinds.CLUSTER, CLUSTER_ID, Cluster(name="restored"))))
                await at.cache.wait_for(restored[0])
            return await commit(txn, audits)

        monkeypatch.setattr(at.mutations.acts, "commit", waiting)
        await at.volume(ONE)
        await erased(at, ONE)
        await recorded_once(at, ONE)
        assert at.metric("cairn_conflicts_total") == 1


async def test_who_ends_before_his_turn_does_nothing() -> None:
    async with running(Marker()) as at:
        at.store.gate.clear()
        first = at.mutations.acts.commit(Txn("garbage").put(kinds.PURGE, ONE, Purge(id=ONE)), [Audit()])
        second = at.mutations.acts.commit(Txn("garbage").put(kinds.PURGE, TWO, Purge(id=TWO)), [Audit()])
        tasks = [asyncio.create_task(each) for each in (first, second)]
        await at.until(lambda: at.store.sent == 1)
        tasks[1].cancel()
        await asyncio.wait([tasks[1]])
        at.store.gate.set()
        await at.marked(ONE)
        await at.until(tasks[0].done)
        assert list(at.cache.view.ids(kinds.PURGE)) == [ONE]


def test_a_group_keeps_room_for_records_and_the_end_of_their_chain() -> None:
    group, taken, outcome = Group("garbage", 0), 0, Outcome(acts=(ActSpec("EraseVolume", "volume/vol"),))
    while not group.full(1000):
        txn = Txn("garbage").check(kinds.VOLUME, f"vol-{taken}", 1).delete(kinds.VOLUME, f"vol-{taken}")
        if not group.add(f"vol-{taken}", txn, outcome, [Audit()], 100):
            break
        taken += 1
    # Each with its record, the head once.
    assert taken == (OPERATIONS_MAX - 1) // 2
    checked: Any = Group("garbage", 0)
    large = Txn("garbage")
    for part in range(OPERATIONS_MAX - 2):
        large.check(kinds.VOLUME, f"vol-{part}", 1)
    assert checked.add("large", large, outcome, [Audit()], 100), "the head and the cluster are checked besides"
    assert not checked.add("more", Txn("garbage").check(kinds.VOLUME, "vol-more", 1), Outcome())


async def test_what_the_api_wrote_and_waited_over_a_restore_is_decided_anew() -> None:
    async with running(Marker()) as at:
        others, view = MemoryStore(at.store.backend), at.cache.view
        at.store.gate.clear()
        first = asyncio.create_task(at.mutations.acts.commit(Txn("garbage").put(kinds.PURGE, ONE, Purge(id=ONE)), [Audit()]))
        await at.until(lambda: at.store.sent == 1)
        act = Act("ForgetUnknown", f"volume/{TWO}")
        txn = Txn("api").delete(kinds.JOIN_TOKEN, TWO)
        late = asyncio.create_task(at.mutations.write(view, Caller.system("x"), txn, act))
        await at.cache.wait_for(await others.commit(Txn("peers").put(kinds.CLUSTER, CLUSTER_ID, Cluster(name="restored"))))
        at.store.gate.set()
        with pytest.raises(Conflict):
            await late
        await first
