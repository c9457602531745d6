"""No transaction is ever larger than one commit takes, whatever comes together: parts, reports, erasures, decisions."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from datetime import datetime

from cairn.controller.events import RECORDS, bytes_of, tell
from cairn.controller.model.happening import EventSpec
from cairn.controller.node_reports import MESSAGE_BYTES_MAX, Reports
from cairn.controller.node_session import Session
from cairn.controller.reconcilers.base import Outcome
from cairn.controller.reconcilers.garbage import Garbage
from cairn.controller.reconcilers.placement import Placements
from cairn.controller.store.base import OPERATIONS_MAX, TXN_BYTES_MAX, Gathering, Put, Txn, View
from cairn.controller.store.cache import Cache
from cairn.controller.store.memory import MemoryStore
from cairn.proto import kinds
from cairn.proto.errors import Invalid
from cairn.proto.seams import SystemClock, SystemIds
from cairn.proto.v1.agent_pb2 import AgentEvent, Hello, Report, VmReport
from cairn.proto.v1.node_pb2 import NodeFacts
from cairn.proto.v1.volume_pb2 import Purge, Volume
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.unit.cloud_kit import GIB, NOW, Cloud
from tests.unit.sync_kit import N1, Agent, agent, world
from tests.unit.test_garbage import left
from tests.unit.test_runtime import Leases, Marker, running

SIZES = st.one_of(st.integers(0, 2000), st.integers(0, 400_000))


def part(keys: Iterable[tuple[int, int]]) -> Txn:
    """Creates, puts and deletes, of keys that others may touch too."""
    txn = Txn("test")
    for number, size in keys:
        key = f"/test/{number}"
        if number % 3:
            txn.checks[key] = number % 2
        if number % 5 == 0:
            txn.deletes.add(key)
        else:
            txn.puts[key] = Put(bytes(size))
        txn.writers[key] = "test"
    return txn


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.lists(st.tuples(st.integers(0, 300), SIZES), max_size=60), st.integers(0, 3)), max_size=20))
def test_what_was_gathered_fits(parts: list[tuple[list[tuple[int, int]], int]]) -> None:
    gathering, taken = Gathering(Txn("test")), list[EventSpec]()
    for keys, events in parts:
        specs = [EventSpec("i-00000000", "vm", "prj-default0", "Told", "m" * 400)] * events
        if gathering.add(part(keys), puts=RECORDS * events, put_bytes=bytes_of(specs)):
            taken += specs
    tell(gathering.txn, taken, now=NOW, ids=SystemIds(), lease=1)
    gathering.txn.check_limits(OPERATIONS_MAX)


def test_a_part_that_fits_alone_is_taken_first() -> None:
    most = part((number * 3 + 1, 10) for number in range(OPERATIONS_MAX))
    assert Gathering(Txn("test")).add(most)
    assert Gathering(Txn("test")).add(part([(1, TXN_BYTES_MAX - 200)]))
    assert not Gathering(Txn("test")).add(part([(1, TXN_BYTES_MAX)]))


HISTORY = st.lists(
    st.one_of(
        st.tuples(st.just("report"), st.integers(0, 400), st.sampled_from([0, 10, 1000, 100_000, MESSAGE_BYTES_MAX + 1])),
        st.tuples(st.just("gone"), st.integers(0, 400), st.just(0)),
        st.tuples(st.just("event"), st.integers(0, 400), st.sampled_from([10, 5000, 200_000])),
        st.tuples(st.just("facts"), st.integers(0, 3), st.sampled_from([10, 200_000, MESSAGE_BYTES_MAX + 1])),
    ),
    max_size=400,
)


def took(reports: Reports, what: str, number: int, size: int) -> bool:
    """Have one message taken in."""
    if what == "report":
        accelerators = "x" * size
        state = VmReport.STATE_RUNNING if number % 2 else VmReport.STATE_FAILED
        said = VmReport(state=state, accelerator=accelerators, say="s" * 3000, error=f"e{size}")
        return reports.report(Report(key=f"vm/i-{number:08}", vm=said))
    if what == "gone":
        reports.forget(f"vm/i-{number:08}")
        return True
    if what == "event":
        return reports.event(AgentEvent(object=f"vm/i-{number:08}", reason="Told", message="m" * size))
    return reports.facts(NodeFacts(hostname="h" * size, memory_bytes=number))


AWAY = [
    [("report", number, 10) for number in range(60)],
    [*(("gone", number, 0) for number in range(60)), *(("report", 100 + number, 10) for number in range(60))],
]


@settings(max_examples=12, deadline=None)
@example(AWAY, False)
@given(st.lists(HISTORY, min_size=1, max_size=2), st.booleans())
def test_reports_of_any_size_are_written(histories: list[list[tuple[str, int, int]]], many: bool) -> None:
    async def play() -> None:
        store = MemoryStore()
        cache = Cache(store)
        following = asyncio.create_task(cache.run())
        await cache.ready.wait()
        session = Session(store, SystemClock(), Hello(node=N1), "c1")
        await cache.wait_for(await session.open(None, cache.view))
        known = {f"vm/i-{number:08}" for number in range(401)}
        reports = Reports(cache, store, SystemClock(), SystemIds(), Leases(store), session, known)
        writing = asyncio.create_task(reports.run())
        for history in histories:
            for what, number, size in history:
                took(reports, what, number, size)
            if many:
                assert all(took(reports, "report", number, 9000) for number in range(200))
            async with asyncio.timeout(20):
                while reports.pending and not writing.done():
                    await asyncio.sleep(0.001)
            assert not writing.done(), "a transaction was refused"
        for task in (writing, following):
            task.cancel()
        await asyncio.gather(writing, following, return_exceptions=True)
        await session.close(revoke=True)
        await store.close()

    asyncio.run(play())


async def test_a_node_that_started_many_and_lost_many_while_it_was_away() -> None:
    async with world() as at:
        facts = at.cloud.edit(kinds.NODE_FACTS, N1)
        facts.memory_bytes, facts.cpu.threads, facts.pools[0].total_bytes = 512 * GIB, 256, 1024 * GIB
        at.cloud.put(kinds.NODE_FACTS, N1, facts)
        started = [at.cloud.vm(f"s{number}", node=N1) for number in range(60)]
        erased = [at.cloud.vm(f"e{number}", node=N1) for number in range(60)]
        await at.decided()
        for vm in erased:
            at.cloud.report(N1, f"vm/{vm}", state=VmReport.STATE_RUNNING)
        await at.copy()
        for vm in erased:
            at.cloud.delete(kinds.VM, vm)
        await at.copy()
        here = agent(at)
        await at.until(lambda: here.bookmarks)
        for vm in started:
            here.report(f"vm/{vm}", vm=VmReport(state=VmReport.STATE_RUNNING))
        await at.until(lambda: here.error or all(at.observed(N1, f"vm/{vm}") for vm in started))
        await at.until(lambda: here.error or not any(at.observed(N1, f"vm/{vm}") for vm in erased))
        assert here.error is None
        assert sum(reason == "Started" for _, reason in at.events()) == len(started)
        await here.break_off()


async def test_facts_that_are_too_large_are_refused_by_name() -> None:
    async with world() as at:
        here = Agent(at.services[0], N1)
        here.hello(facts=NodeFacts(hostname="h" * (MESSAGE_BYTES_MAX + 1)))
        error = await here.connect().ended()
        assert isinstance(error, Invalid)
        assert "hello.facts: 256 KiB long" in str(error)


def test_a_vm_with_more_parts_than_a_transaction_takes_is_erased_in_several() -> None:
    cloud = Cloud()
    vm = cloud.vm("web", subnet=cloud.subnet("blue", cloud.vpc("v")))
    for number in range(90):
        cloud.volume(f"v{number}", vm=vm, own=True)
    cloud.delete_vm(vm, purge=True)
    garbage, sizes = Garbage(), list[int]()
    while cloud.view.get(kinds.VM, vm) is not None:
        outcome = cloud.decide(garbage, f"vm/{vm}")
        assert outcome.txn is not None
        outcome.txn.check_limits(OPERATIONS_MAX)
        sizes.append(outcome.txn.size)
    assert len(sizes) > 2
    cloud.settle((Placements(), garbage))
    assert [key for key in left(cloud) if not key.startswith(("port", "address"))] == []


class Heavy(Marker):
    """Writes much for each key, and far too much for one."""

    def reconcile(self, view: View, key: str, now: datetime) -> Outcome:
        outcome = super().reconcile(view, key, now)
        if outcome.txn is None:
            return outcome
        size = 2_000_000 if key == "vol-huge" else 200_000
        txn = Txn(self.name).create(kinds.PURGE, key, Purge(id=key + "x" * size))
        said = EventSpec(key, "", "", "Marked", "m" * 100_000)
        return Outcome(txn, outcome.say, events=(said,))


async def test_groups_count_bytes_and_what_never_fits_harms_no_other() -> None:
    async with running(Heavy()) as at:
        txn = Txn("api")
        for id in ("vol-huge", *(f"vol-{number:08}" for number in range(12))):
            txn.put(kinds.VOLUME, id, Volume(id=id))
        await at.cache.wait_for(await at.store.commit(txn))
        await at.until(lambda: at.cache.view.count(kinds.PURGE) >= 12)
        assert at.cache.view.get(kinds.PURGE, "vol-huge") is None
        assert at.metric("cairn_reconcile_errors_total")
