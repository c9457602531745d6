"""Backups: the file, what is in it, and a restore that is killed anywhere and repeated."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from cairn.controller import restore
from cairn.controller.backup import backup
from cairn.controller.model.restored import CLUSTER_ID
from cairn.controller.standing import CLUSTER_KEY, FencedStore, Standing
from cairn.controller.store.base import Conflict, Indeterminate, Put, Txn, Unavailable
from cairn.controller.store.cache import Cache
from cairn.controller.store.memory import MemoryBackend, MemoryStore
from cairn.proto import kinds
from cairn.proto.backup import MAGIC, PART_BYTES, Damaged, Reader, Writer
from cairn.proto.errors import BadState, Invalid, TryAgain
from cairn.proto.seams import SystemClock, timestamp
from cairn.proto.v1.agent_pb2 import Observed
from cairn.proto.v1.backup_pb2 import BackupHeader, BackupRecord
from cairn.proto.v1.cluster_pb2 import Cluster, ControllerSession, RequestRecord
from cairn.proto.v1.event_pb2 import Event
from cairn.proto.v1.node_pb2 import JoinToken
from cairn.proto.v1.vm_pb2 import Placement, Vm
from hypothesis import given
from hypothesis import strategies as st

CLOCK = SystemClock()


# --- the file ----------------------------------------------------------------------------------------------------------------


def file_of(records: dict[tuple[str, str], bytes]) -> bytes:
    header = BackupHeader(cluster="blue", epoch=3, revision=17)
    for kind in sorted({kind for kind, _ in records}):
        header.counts.add(kind=kind, count=sum(each == kind for each, _ in records))
    ordered = sorted(records.items(), key=lambda each: "/".join(each[0]))
    writer = Writer()
    content = writer.begin(header)
    content += b"".join(writer.records(BackupRecord(kind=kind, id=id, value=value) for (kind, id), value in ordered))
    return content + writer.end()


def read(content: bytes, step: int = 1 << 20) -> dict[tuple[str, str], bytes]:
    reader, found = Reader(), {}
    for at in range(0, len(content), step):
        for part in reader.feed(content[at : at + step]):
            found.update({(record.kind, record.id): record.value for record in part.records.records})
    reader.finish()
    return found


NAMES = st.tuples(st.sampled_from(["vm", "volume", "volume_placement", "zz_new"]), st.text("abc/-0", min_size=1, max_size=8))


@given(st.dictionaries(NAMES, st.binary(max_size=40), max_size=20), st.integers(1, 50))
def test_a_file_says_what_was_written_in_whatever_pieces_it_comes(records: Any, step: int) -> None:
    assert read(file_of(records), step) == records


@given(st.data())
def test_a_file_that_was_cut_or_changed_is_refused(data: st.DataObject) -> None:
    content = file_of({("vm", f"i-{n}"): b"value %d" % n for n in range(5)})
    at = data.draw(st.integers(0, len(content) - 1))
    damaged = content[:at]
    if data.draw(st.booleans()):
        damaged += bytes([content[at] ^ data.draw(st.integers(1, 255))]) + content[at + 1 :]
    with pytest.raises(Damaged):
        read(damaged)
    with pytest.raises(Damaged):
        read(content + b"x")


def test_parts_are_bounded_and_foreign_files_are_told() -> None:
    records = {("vm", f"i-{n:04}"): bytes(3000) for n in range(400)}
    writer = Writer()
    parts = list(writer.records(BackupRecord(kind=kind, id=id, value=value) for (kind, id), value in records.items()))
    assert len(parts) > 3
    assert max(map(len, parts)) <= PART_BYTES + 10
    for foreign, say in ((b"PK\x03\x04 some archive", "not a backup"), (b"cairn-backup 9\n", "format"), (b"", "not a backup")):
        with pytest.raises(Damaged, match=say):
            read(foreign)
    assert MAGIC.endswith(b"\n")


# --- making one --------------------------------------------------------------------------------------------------------------


def put(store: MemoryStore, kind: Any, id: str, message: Any, lease: int = 0) -> None:
    store.backend.apply(Txn(kind.writer).put(kind, id, message, lease=lease))


async def filled(vms: int = 3) -> MemoryStore:
    """A store with some of everything: kept, leased, reported, and of a kind this release does not know."""
    store = MemoryStore(MemoryBackend())
    put(store, kinds.CLUSTER, CLUSTER_ID, Cluster(name="blue", epoch=1))
    for number in range(vms):
        put(store, kinds.VM, f"i-{number:08}", Vm(id=f"i-{number:08}", name=f"vm{number}"))
        put(store, kinds.PLACEMENT, f"i-{number:08}", Placement(vm=f"i-{number:08}", node="node-1"))
    put(store, kinds.OBSERVED, "node-1/vm/i-00000000", Observed(node="node-1", key="vm/i-00000000"))
    lease = store.backend.grant(3600)[0]
    put(store, kinds.REQUEST, "r", RequestRecord(request_id="r"), lease)
    put(store, kinds.EVENT, "ev-1", Event(id="ev-1"), lease)
    put(store, kinds.CONTROLLER, "c1", ControllerSession(name="c1"), lease)
    store.backend.apply(Txn("tomorrow", puts={f"{kinds.ROOT}novelty/1": Put(b"\xff\xfe not a message")}))
    return store


def kept(store: MemoryStore) -> dict[str, bytes]:
    """What a backup is about, but for the cluster's own record."""
    found = {}
    for item in store.backend.scan(kinds.ROOT, "", 0, 0):
        kind = kinds.BY_NAME.get(item.key[len(kinds.ROOT) :].partition("/")[0])
        if not item.lease and (kind is None or kind.kept) and item.key != CLUSTER_KEY:
            found[item.key] = item.value
    return found


async def taken(store: MemoryStore) -> bytes:
    return b"".join([chunk async for chunk in backup(store, CLOCK, "1.2.3")])


async def parsed(content: bytes) -> restore.Backup:
    async def chunks() -> AsyncIterator[bytes]:
        for at in range(0, len(content), 1000):
            yield content[at : at + 1000]

    return await restore.read(chunks())


async def restored(store: Any, content: bytes) -> None:
    async for _ in restore.Restore(store, CLOCK, await parsed(content), "alice").run():
        continue


async def test_a_backup_holds_what_only_the_store_knows_of_one_revision() -> None:
    store = await filled(vms=500)
    chunks = backup(store, CLOCK, "1.2.3")
    content = await anext(chunks)
    put(store, kinds.VM, "i-99999999", Vm(id="i-99999999", name="late"))
    async for chunk in chunks:
        content += chunk
    found = await parsed(content)
    assert found.header.cluster == "blue"
    assert {each.kind: each.count for each in found.header.counts} == {"cluster": 1, "novelty": 1, "placement": 500, "vm": 500}
    assert f"{kinds.ROOT}vm/i-99999999" not in found.records
    assert {key: value for key, value in kept(store).items() if "9999" not in key} == {
        key: value for key, value in found.records.items() if key != CLUSTER_KEY
    }


async def test_every_kind_is_kept_or_said_again_by_others() -> None:
    """A new kind that is leased or reported must say so, or a restore would bring the dead back."""
    not_kept = {kind.name for kind in kinds.ALL if not kind.kept}
    assert {"request", "plan", "observed", "node_session", "controller", "event"} <= not_kept
    assert {"vm", "volume", "placement", "node_claims", "name", "address", "cluster"}.isdisjoint(not_kept)


# --- restoring ---------------------------------------------------------------------------------------------------------------


async def changed() -> tuple[MemoryStore, bytes]:
    """A store with a backup of before: one VM since, one gone since, one changed, one deleted."""
    store = await filled()
    content = await taken(store)
    put(store, kinds.VM, "i-new", Vm(id="i-new", name="new"))
    store.backend.apply(Txn("garbage").delete(kinds.VM, "i-00000000"))
    put(store, kinds.VM, "i-00000001", Vm(id="i-00000001", name="vm1", delete_time=timestamp(CLOCK.now())))
    put(store, kinds.OBSERVED, "node-1/vm/i-new", Observed(node="node-1", key="vm/i-new"))
    return store, content


def cluster_of(store: MemoryStore) -> Cluster:
    item = store.backend.find(CLUSTER_KEY)
    assert item is not None
    return Cluster.FromString(item.value)


async def test_a_plan_says_what_comes_goes_and_changes_and_changes_nothing() -> None:
    store, content = await changed()
    before = store.backend.revision
    plan = await restore.Restore(store, CLOCK, await parsed(content), "alice").plan()
    assert store.backend.revision == before
    (vms,) = [each for each in plan.kinds if each.kind == "vm"]
    assert (vms.added, vms.removed, vms.changed, vms.same) == (1, 1, 1, 1)
    assert [each.name for each in plan.unknown] == ["new"]
    assert sorted(each.name for each in plan.returning) == ["vm0", "vm1"]


@pytest.mark.parametrize("empty", [False, True])
async def test_afterwards_the_store_is_the_backup_with_a_higher_epoch(empty: bool) -> None:
    old, content = await changed()
    store = MemoryStore(MemoryBackend()) if empty else old
    wanted = (await parsed(content)).records
    await restored(store, content)
    assert kept(store) == {key: value for key, value in wanted.items() if key != CLUSTER_KEY}
    after = cluster_of(store)
    assert after.epoch > 1
    assert after.name == "blue"
    assert not after.HasField("restore")
    assert after.restored.actor == "alice"
    left = {item.key[len(kinds.ROOT) :].partition("/")[0] for item in store.backend.scan(kinds.ROOT, "", 0, 0) if item.lease}
    assert left == (set() if empty else {"controller", "event"})
    epoch = after.epoch
    await restored(store, content)
    assert cluster_of(store).epoch > epoch


async def test_no_join_token_comes_back() -> None:
    """It is good once: brought back, it would be good once more, for whoever finds it."""
    store = await filled()
    for id in ("jt-used", "jt-back"):
        put(store, kinds.JOIN_TOKEN, id, JoinToken(id=id))
    content = await taken(store)
    put(store, kinds.JOIN_TOKEN, "jt-used", JoinToken(id="jt-used", used_by="node-1"))
    store.backend.apply(Txn("api").delete(kinds.JOIN_TOKEN, "jt-back"))
    older = {("join_token", "jt-back"): JoinToken(id="jt-back").SerializeToString()}
    cluster = {("cluster", CLUSTER_ID): Cluster(name="blue", epoch=1).SerializeToString()}
    for each in (content, file_of(older | cluster)):
        await restored(store, each)
        assert not [item for item in store.backend.scan(kinds.JOIN_TOKEN.prefix, "", 0, 0) if "/join_token/" in item.key]


class Dying(MemoryStore):
    """Ends whoever uses it at one of its commits: before it, after it, or without an answer."""

    def __init__(self, backend: MemoryBackend, at: int, how: str) -> None:
        super().__init__(backend)
        self.left, self.how = at, how

    async def commit(self, txn: Txn) -> int:
        self.left -= 1
        if self.left:
            return await super().commit(txn)
        if self.how == "before":
            raise asyncio.CancelledError
        revision = await super().commit(txn)
        if self.how == "after":
            raise asyncio.CancelledError
        if self.how == "in doubt":
            raise Indeterminate("the answer was lost")
        return revision


@pytest.mark.parametrize("how", ["before", "after", "in doubt"])
async def test_a_restore_killed_at_any_commit_is_finished_by_repeating_it(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(restore, "WRITES_MAX", 2)
    monkeypatch.setattr(restore, "RETRY_S", 0.0)
    for at in range(1, 50):
        old, content = await changed()
        dying = Dying(old.backend, at, how)
        try:
            await restored(dying, content)
        except asyncio.CancelledError:
            began = at > 1 or how == "after"
            finished = not cluster_of(old).HasField("restore") and cluster_of(old).HasField("restored")
            assert cluster_of(old).HasField("restore") == (began and not finished)
        if dying.left > 0:
            break
        await restored(old, content)
        assert kept(old) == {k: v for k, v in (await parsed(content)).records.items() if k != CLUSTER_KEY}
        assert not cluster_of(old).HasField("restore")
    assert at > 3


async def test_the_second_of_two_restores_takes_over() -> None:
    store, content = await changed()
    put(store, kinds.VM, "i-new2", Vm(id="i-new2", name="new2"))
    running = restore.Restore(store, CLOCK, await parsed(content), "alice").run()
    await anext(running)
    await restored(store, content)
    with pytest.raises(BadState, match="taken over"):
        await anext(running)
    assert kept(store) == {k: v for k, v in (await parsed(content)).records.items() if k != CLUSTER_KEY}


async def test_writes_are_bounded_in_number_and_bytes() -> None:
    found = restore.Difference(
        puts={f"{kinds.ROOT}vm/{n:04}": bytes(40_000) for n in range(500)}, deletes=[f"{kinds.ROOT}vm/x{n}" for n in range(250)]
    )
    txns = list(restore.transactions(found))
    for txn in txns:
        txn.check_limits()
    assert sum(len(txn.puts) for txn in txns) == 500
    assert sum(len(txn.deletes) for txn in txns) == 250


async def test_a_damaged_file_changes_nothing() -> None:
    store, content = await changed()
    before = store.backend.revision
    with pytest.raises(Invalid, match="cut"):
        await restored(store, content[:-1])
    assert store.backend.revision == before


# --- everybody else meanwhile ------------------------------------------------------------------------------------------------


class Picture:
    """A controller's cache on a store."""

    def __init__(self, store: MemoryStore) -> None:
        self.cache = Cache(store)
        self.standing = Standing(self.cache)
        self.store = FencedStore(store, self.cache, self.standing, CLOCK)

    async def __aenter__(self) -> Picture:
        self._task = asyncio.create_task(self.cache.run())
        await self.cache.ready.wait()
        return self

    async def __aexit__(self, *_error: object) -> None:
        self._task.cancel()
        await asyncio.wait([self._task])


async def test_what_was_decided_before_a_restore_is_not_committed_after_it() -> None:
    store, content = await changed()
    async with Picture(store) as other:
        decided = Txn("placement").check(
            kinds.PLACEMENT, "i-00000002", other.cache.view.revision_of(kinds.PLACEMENT, "i-00000002")
        )
        decided.put(kinds.PLACEMENT, "i-00000002", Placement(vm="i-00000002", node="node-9"))
        attempt = restore.Restore(store, CLOCK, await parsed(content), "alice")
        running = attempt.run()
        await anext(running)
        # Its view does not show the restore yet: the store itself refuses.
        with pytest.raises((Conflict, Unavailable)):
            await other.store.commit(decided)
        await other.cache.wait_for(await store.revision())
        assert isinstance(other.standing.why_not(), TryAgain)
        with pytest.raises(Unavailable, match="being restored"):
            await other.store.commit(decided)
        async for _ in running:
            continue
        with pytest.raises((Conflict, Unavailable)):
            await other.store.commit(decided)
        await other.cache.wait_for(await store.revision())
        assert other.standing.why_not() is None
        await other.store.commit(decided)


async def test_a_store_that_goes_back_under_a_controller_stops_it() -> None:
    store = await filled()
    async with Picture(store) as here:
        await here.store.revision()
        assert here.standing.why_not() is None
        older = await filled(vms=1)
        store.backend.revision = older.backend.revision
        await here.store.revision()
        assert isinstance(here.standing.why_not(), BadState)
        assert "cairn cluster restore" in str(here.standing.why_not())
        with pytest.raises(Unavailable, match="went back"):
            await here.store.commit(Txn("api").put(kinds.VM, "i-1", Vm(id="i-1")))


async def test_no_backup_is_taken_of_a_half_restored_store() -> None:
    store, content = await changed()
    running = restore.Restore(store, CLOCK, await parsed(content), "alice").run()
    await anext(running)
    with pytest.raises(BadState, match="under way"):
        await taken(store)
    await running.aclose()
