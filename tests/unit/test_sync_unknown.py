"""AgentService and what nodes hold without being told: it is recorded, and goes on an explicit word."""

from __future__ import annotations

from cairn.controller.api import status
from cairn.controller.api.dependents import affected
from cairn.controller.model.damage import findings
from cairn.controller.reconcilers.garbage import Garbage
from cairn.controller.store.base import Txn
from cairn.controller.unknowns import absent
from cairn.proto import kinds
from cairn.proto.sealing import KEY_BYTES, Seals
from cairn.proto.v1.agent_pb2 import (
    Desired,
    DesiredVm,
    Erasure,
    SyncRequest,
    Unknown,
    UnknownKeys,
    VmReport,
)
from cairn.proto.v1.secret_pb2 import VmData

from tests.unit.cloud_kit import events_of
from tests.unit.sync_kit import N1, Agent, World, agent, world

KEY = "vm/i-gone0000"


def tell(here: Agent, *keys: str) -> None:
    for key in keys:
        desired = Desired(vm=DesiredVm(id=key[3:], name="web", project="prj-1", user_data=b"secret"))
        here.send(SyncRequest(unknown=Unknown(key=key, desired=desired, running=True, say="its guest runs")))
    here.send(SyncRequest(unknown_keys=UnknownKeys(keys=keys)))


def stored(at: World) -> dict[str, Unknown]:
    return {each.key: each for each in at.cache.view.all(kinds.UNKNOWN)}


async def test_it_is_recorded_with_an_event_until_it_is_gone() -> None:
    async with world() as at:
        at.services[0].seals = Seals([bytes(range(KEY_BYTES))])
        here = agent(at)
        await at.until(lambda: here.bookmarks)
        tell(here, KEY, "vm/i-more0000")
        await at.until(lambda: len(stored(at)) == 2)
        record = stored(at)[KEY]
        assert (record.node, record.running, record.desired.vm.name) == (N1, True, "web")
        assert b"secret" not in record.SerializeToString()
        data = VmData.FromString(at.services[0].seals.open(record.desired.vm.sealed))
        assert data.user_data == b"secret", "as it is in the secret of a VM"
        assert record.HasField("since_time")
        tell(here, KEY)
        await at.until(lambda: set(stored(at)) == {KEY})
        assert stored(at)[KEY] == record
        told = [event for event in events_of(at.store.backend) if event.reason == "Unknown"]
        assert sorted(event.object for event in told) == ["i-gone0000", "i-more0000"], "once each"
        assert all(event.warning and "`cairn node show n1`" in event.message for event in told)
        assert KEY not in here.objects, "nothing is said about it"


async def test_what_becomes_unknown_later_is_not_taken_for_gone() -> None:
    """The names that came before do not have it; the new ones come after it."""
    async with world() as at:
        here = agent(at)
        await at.until(lambda: here.bookmarks)
        tell(here)
        for number in range(3):
            key = f"vm/i-more000{number}"
            here.send(SyncRequest(unknown=Unknown(key=key, say="x" * 300_000)))
        here.send(SyncRequest(unknown_keys=UnknownKeys(keys=[f"vm/i-more000{number}" for number in range(3)])))
        await at.until(lambda: len(stored(at)) == 3)
        assert here.error is None


async def test_what_cannot_be_unknown_is_refused() -> None:
    async with world() as at:
        here = agent(at)
        await at.until(lambda: here.bookmarks)
        tell(here, "forward/rtr-1/nic-1", KEY)
        await at.until(lambda: stored(at))
        assert set(stored(at)) == {KEY}


async def test_an_explicit_word_is_sent_until_it_is_done() -> None:
    async with world() as at:
        here = agent(at)
        await at.until(lambda: here.bookmarks)
        tell(here, KEY)
        await at.until(lambda: stored(at))
        word = Erasure(key=KEY, node=N1, desired=absent(stored(at)[KEY]))
        await at.store.commit(Txn("api").create(kinds.ERASURE, f"{N1}/{KEY}", word))
        await at.until(lambda: KEY in here.objects)
        assert here.objects[KEY].vm == DesiredVm(id="i-gone0000", name="web", project="prj-1", absent=True)
        tell(here)
        await at.until(lambda: not stored(at))
        assert KEY in here.objects, "not yet done"
        here.report(KEY, vm=VmReport(state=VmReport.STATE_ABSENT))
        await at.until(lambda: at.observed(N1, KEY) is not None)
        outcome = Garbage().reconcile(at.cache.view, f"erasure/{N1}/{KEY}", at.services[0].clock.now())
        assert outcome.txn is not None
        await at.store.commit(outcome.txn)
        await at.until(lambda: KEY not in here.objects and at.observed(N1, KEY) is None)
        assert here.error is None


async def test_guests_that_a_node_does_not_let_go_of_are_told_by_the_node_and_by_the_check() -> None:
    async with world() as at:
        here = agent(at)
        await at.until(lambda: here.bookmarks)
        here.send(SyncRequest(unknown=Unknown(key=KEY, say="managed as before", doubted=True)))
        here.send(SyncRequest(unknown_keys=UnknownKeys(keys=[KEY])))
        await at.until(lambda: len(stored(at)) == 1)
        view = at.cache.view
        record = view.record(kinds.NODE, N1)
        assert record is not None
        shown = status.node(view, record)
        unmet = [each for each in shown.status.conditions if not each.status and each.type == "GuestsKnown"]
        assert [each.reason for each in unmet] == ["GuestsDoubted"]
        for text in (unmet[0].message, shown.status.say):
            assert "1 guest" in text
            assert "`cairn cluster adopt`" in text
        assert ("node", N1) in set(affected(view, kinds.UNKNOWN, f"{N1}/{KEY}")), "whoever watches the node is told"
        assert [each.object for each in findings(view) if each is not None and each.check == "doubted"] == [f"node/{N1}"]
        here.send(SyncRequest(unknown_keys=UnknownKeys()))
        await at.until(lambda: not stored(at))
        assert "GuestsKnown" not in {each.type for each in status.node(at.cache.view, record).status.conditions}
