"""AgentService: an agent's stream from hello to its end, against a real cache and store."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from typing import Any, cast

import pytest
from cairn.controller import node_session, sync
from cairn.controller.node_reports import Reports
from cairn.controller.node_session import Session
from cairn.controller.store.base import Txn, View
from cairn.proto import kinds
from cairn.proto.errors import BadState, Denied, Invalid, NotFound, TryAgain, Unauthenticated
from cairn.proto.v1.agent_pb2 import (
    AgentEvent,
    Heartbeat,
    Hello,
    ImageReport,
    SyncRequest,
    Version,
    VmReport,
)
from cairn.proto.v1.node_pb2 import NodeFacts

from tests.unit.cloud_kit import events_of
from tests.unit.sync_kit import N1, N2, Agent, Context, agent, world


async def test_snapshot_then_deltas() -> None:
    async with world() as at:
        subnet = at.cloud.subnet("blue", at.cloud.vpc("v"))
        first = at.cloud.vm("a", subnet=subnet, node=N1)
        await at.decided()
        here = agent(at)
        await at.until(lambda: here.bookmarks)
        kinds_sent = [response.WhichOneof("message") for response in here.received]
        assert kinds_sent[0] == "snapshot_begin"
        assert kinds_sent[-1] == "bookmark"
        assert here.received[-1].bookmark.snapshot_end
        assert here.objects == at.expected(N1)
        assert f"vm/{first}" in here.objects
        before = len(here.received)
        at.cloud.vm("b", subnet=subnet, node=N2)
        await at.decided()
        await at.until(lambda: here.objects == at.expected(N1) and "forward/rtr-0000000v/nic-0000000b" in here.objects)
        touched = {response.upsert.key for response in here.received[before:] if response.HasField("upsert")}
        assert touched == {"forward/rtr-0000000v/nic-0000000b", f"peer/rtr-0000000v/{N2}"}, (
            "only what concerns it, only what changed"
        )
        assert here.versions == sorted(here.versions)
        await here.break_off()


async def test_an_agent_is_sent_what_it_says_it_knows() -> None:
    async with world() as at:
        at.cloud.vm("a", node=N1)
        await at.decided()
        here = Agent(at.services[0], N1)
        here.hello(knows=["desired:volume", "volume:local"])
        here.connect()
        await at.until(lambda: here.bookmarks)
        assert list(here.objects) == ["volume/vol-0000000a"]
        session = at.cache.view.get(kinds.NODE_SESSION, N1)
        assert session is not None
        assert list(session.capabilities) == ["desired:volume", "volume:local"]
        await here.break_off()


async def test_an_agent_of_before_is_sent_messages_it_knows() -> None:
    """One object a message, and the peers of a network in it."""
    async with world() as at:
        subnet = at.cloud.subnet("blue", at.cloud.vpc("v"))
        at.cloud.vm("a", subnet=subnet, node=N1)
        at.cloud.vm("b", subnet=subnet, node=N2)
        await at.decided()
        old, new = Agent(at.services[0], N1), Agent(at.services[0], N2)
        old.hello(knows=())
        new.hello()
        for each in (old, new):
            each.connect()
        await at.until(lambda: old.bookmarks and new.bookmarks)
        whole = [response.WhichOneof("message") for response in old.whole]
        assert set(whole) == {"snapshot_begin", "upsert", "bookmark"}
        assert [peer.node for peer in old.objects["network/rtr-0000000v"].network.peers] == [N2]
        assert not [key for key in old.objects if key.startswith("peer/")]
        assert len(new.whole) == 3, "all in one message, between the beginning and the end"
        assert (f"peer/rtr-0000000v/{N1}" in new.objects, len(new.objects["network/rtr-0000000v"].network.peers)) == (True, 0)
        facts = at.cloud.edit(kinds.NODE_FACTS, N2)
        facts.vtep = "192.0.2.77"
        at.cloud.put(kinds.NODE_FACTS, N2, facts)
        await at.copy()
        await at.until(lambda: old.objects["network/rtr-0000000v"].network.peers[0].vtep == "192.0.2.77")
        for each in (old, new):
            await each.break_off()


async def test_a_delete_is_sent_and_what_was_reported_goes() -> None:
    async with world() as at:
        vm = at.cloud.vm("a", node=N1)
        await at.decided()
        here = agent(at)
        await at.until(lambda: here.bookmarks)
        here.report(f"vm/{vm}", vm=VmReport(state=VmReport.STATE_RUNNING))
        await at.until(lambda: at.observed(N1, f"vm/{vm}"))
        at.cloud.delete_vm(vm)
        await at.copy()
        await at.until(lambda: here.objects[f"vm/{vm}"].vm.absent)
        at.cloud.delete(kinds.VM, vm)
        await at.copy()
        await at.until(lambda: f"vm/{vm}" not in here.objects)
        await at.until(lambda: at.observed(N1, f"vm/{vm}") is None)
        await here.break_off()


async def test_reports_are_written_once_and_told() -> None:
    async with world() as at:
        vm = at.cloud.vm("a", node=N1)
        await at.decided()
        here = agent(at)
        await at.until(lambda: here.bookmarks)
        key = f"vm/{vm}"
        for state, exit in [
            (VmReport.STATE_PREPARING, VmReport.EXIT_UNSPECIFIED),
            (VmReport.STATE_RUNNING, VmReport.EXIT_UNSPECIFIED),
            (VmReport.STATE_STOPPED, VmReport.EXIT_GUEST),
            (VmReport.STATE_RUNNING, VmReport.EXIT_UNSPECIFIED),
            (VmReport.STATE_PREPARING, VmReport.EXIT_CRASHED),
            (VmReport.STATE_FAILED, VmReport.EXIT_UNSPECIFIED),
        ]:
            said = VmReport(state=state, exit=exit, say="so")
            here.report(key, vm=said)
            await at.until(lambda said=said: (seen := at.observed(N1, key)) is not None and seen.vm == said)
        told = [reason for object, reason in at.events() if object == vm]
        assert told == ["Started", "Exited", "Started", "Crashed", "Failed"]
        revision = at.cache.view.revision
        here.report(key, version=Version(epoch=1, revision=99), vm=said)
        here.send(SyncRequest(event=AgentEvent(object=key, reason="Odd", message="odd", warning=True)))
        await at.until(lambda: (vm, "Odd") in at.events())
        assert at.cache.view.revision == revision + 1, "what is known is not written again"
        here.send(SyncRequest(event=AgentEvent(reason="DiskSlow", message="slow", warning=True)))
        await at.until(lambda: (N1, "DiskSlow") in at.events())
        named = [event.object_name for event in events_of(at.store.backend) if event.object == N1]
        assert named == ["n1"], "people know it by its name"
        await here.break_off()


async def test_a_node_speaks_only_of_what_it_was_told_to_hold() -> None:
    async with world() as at:
        vm = at.cloud.vm("a", node=N2)
        await at.decided()
        here = agent(at)
        await at.until(lambda: here.bookmarks)
        here.report(f"vm/{vm}", vm=VmReport(state=VmReport.STATE_RUNNING))
        here.report("nonsense")
        here.send(SyncRequest(heartbeat=Heartbeat()))
        await at.until(lambda: here.bookmarks == 2)
        assert at.observed(N1, f"vm/{vm}") is None
        assert at.observed(N2, f"vm/{vm}") is None
        assert at.registry.get_sample_value("cairn_sync_refused_total", {"why": "report"}) == 2
        await here.break_off()


@pytest.mark.parametrize(
    ("certificate", "error"),
    [
        (f"cairn://node/{N2}", Denied),
        ("cairn://user/admin", Denied),
        ("cairn://controller/c1", Denied),
        ("https://elsewhere", Unauthenticated),
    ],
)
async def test_another_identity_is_refused(certificate: str, error: type[Exception]) -> None:
    async with world() as at:
        liar = Agent(at.services[0], N1, certificate=certificate)
        liar.hello()
        assert isinstance(await liar.connect().ended(), error)
        assert at.cache.view.get(kinds.NODE_SESSION, N1) is None


async def test_bad_first_messages() -> None:
    async with world() as at:
        impatient = Agent(at.services[0], N1)
        impatient.send(SyncRequest(heartbeat=Heartbeat()))
        assert isinstance(await impatient.connect().ended(), Invalid)
        stranger = Agent(at.services[0], "node-00000xyz")
        stranger.hello()
        assert isinstance(await stranger.connect().ended(), NotFound)
        ahead = Agent(at.services[0], N1)
        ahead.hello(epoch=2)
        assert isinstance(await ahead.connect().ended(), BadState)
        twice = agent(at)
        await at.until(lambda: twice.bookmarks)
        twice.hello()
        assert isinstance(await twice.ended(), Invalid)


async def test_waits_until_it_knows_what_the_agent_holds() -> None:
    async with world() as at:
        for name in ("one", "two"):
            at.cloud.image(name)
        changes = [(kind, id, at.cloud.view.get(kind, id)) for kind, id in at.cloud.take()]
        for kind, id, record in changes:
            newest = await at.store.commit(Txn(kind.writer).put(kind, id, record))
        here = Agent(at.services[0], N1)
        here.hello(held=newest)
        here.connect()
        await at.until(lambda: here.bookmarks)
        assert here.error is None
        assert at.cache.view.revision >= newest
        await here.break_off()


async def test_session_comes_and_goes() -> None:
    async with world() as at:
        facts = NodeFacts(arch="x86_64", hostname="n1")
        here = Agent(at.services[0], N1)
        here.hello(facts=facts)
        here.connect()
        await at.until(lambda: here.bookmarks)
        session = at.cache.view.get(kinds.NODE_SESSION, N1)
        assert session is not None
        assert (session.controller, session.endpoint, session.boot_id) == ("c0", f"{N1}:7446", "b")
        assert at.cache.view.get(kinds.NODE_FACTS, N1) == facts
        assert at.registry.get_sample_value("cairn_agents_connected") == 1
        facts.hostname = "other"
        here.send(SyncRequest(facts=facts))
        await at.until(lambda: at.cache.view.get(kinds.NODE_FACTS, N1) == facts)
        here.bye()
        assert isinstance(await here.ended(), TryAgain)
        await at.until(lambda: at.cache.view.get(kinds.NODE_SESSION, N1) is None)
        assert at.registry.get_sample_value("cairn_agents_connected") == 0


async def test_a_broken_connection_leaves_the_session_to_run_out() -> None:
    async with world() as at:
        here = agent(at)
        await at.until(lambda: here.bookmarks)
        await here.break_off()
        assert at.cache.view.get(kinds.NODE_SESSION, N1) is not None
        again = agent(at)
        await at.until(lambda: again.bookmarks)
        await again.break_off()


async def test_a_node_that_is_removed_is_told_so_and_not_let_in_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node_session, "TTL_S", 3600.0)
    async with world(services=2) as at:
        here = agent(at)
        await at.until(lambda: here.bookmarks)
        objects = dict(here.objects)
        at.cloud.delete(kinds.NODE, N1)
        await at.copy()
        told = await here.ended()
        assert isinstance(told, NotFound)
        assert "is not part of this cluster" in told.say
        assert here.objects == objects, "it is not told to let go of anything"
        await at.until(lambda: at.cache.view.get(kinds.NODE_SESSION, N1) is None)
        assert isinstance(await agent(at, service=1).ended(), NotFound)
        assert at.cache.view.get(kinds.NODE_SESSION, N1) is None


async def test_a_node_removed_between_hello_and_session_is_not_connected(monkeypatch: pytest.MonkeyPatch) -> None:
    async with world() as at:
        opened = Session.open

        async def removed_meanwhile(session: Session, facts: NodeFacts | None, view: View) -> int:
            await at.store.commit(Txn("api").delete(kinds.NODE, N1))
            return await opened(session, facts, view)

        monkeypatch.setattr(Session, "open", removed_meanwhile)
        here = agent(at)
        assert isinstance(await here.ended(), NotFound)
        assert not here.received
        await at.until(lambda: at.cache.view.get(kinds.NODE_SESSION, N1) is None)


async def test_silence_ends_the_session() -> None:
    async with world(silence_s=0.2) as at:
        here = agent(at)
        error = await here.ended()
        assert isinstance(error, TryAgain)
        assert "nothing heard" in str(error)
        await at.until(lambda: at.cache.view.get(kinds.NODE_SESSION, N1) is None)


async def test_silence_ends_the_session_also_of_a_stream_that_is_stuck_in_a_write(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody asks it for more: what it sent last never went out. The node is gone all the same."""
    monkeypatch.setattr(sync, "END_S", 0.1)
    async with world(silence_s=0.2) as at:
        stream = at.services[0].Sync(hellos(N1), cast("Any", Context(f"cairn://node/{N1}")))
        await anext(stream)
        assert at.cache.view.get(kinds.NODE_SESSION, N1) is not None
        await at.until(lambda: at.cache.view.get(kinds.NODE_SESSION, N1) is None)
        await stream.aclose()


@pytest.fixture
def stubborn(monkeypatch: pytest.MonkeyPatch) -> Iterator[asyncio.Event]:
    """Have a part of each stream not end by being cancelled, but when this is set."""
    done = asyncio.Event()

    async def goes_on(_reports: Reports) -> None:
        while not done.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await done.wait()

    monkeypatch.setattr(Reports, "run", goes_on)
    yield done
    done.set()


async def test_a_part_that_does_not_end_keeps_no_session(monkeypatch: pytest.MonkeyPatch, stubborn: asyncio.Event) -> None:
    monkeypatch.setattr(sync, "END_S", 0.1)
    async with world(silence_s=0.2) as at:
        here = agent(at)
        assert isinstance(await here.ended(), TryAgain)
        await at.until(lambda: at.cache.view.get(kinds.NODE_SESSION, N1) is None)
        stubborn.set()


async def test_who_is_cancelled_while_a_stream_ends_leaves_no_session(
    monkeypatch: pytest.MonkeyPatch, stubborn: asyncio.Event
) -> None:
    """The agent is silent, so the stream ends; meanwhile its connection breaks, too."""
    monkeypatch.setattr(node_session, "TTL_S", 0.3)
    async with world() as at:
        here = agent(at)
        await at.until(lambda: at.cache.view.get(kinds.NODE_SESSION, N1) is not None)
        await here.break_off(times=2)
        stubborn.set()
        await at.until(lambda: at.cache.view.get(kinds.NODE_SESSION, N1) is None)


@pytest.mark.parametrize("service", [0, 1])
async def test_the_newer_stream_takes_over(service: int) -> None:
    async with world(services=2) as at:
        vm = at.cloud.vm("a", node=N1)
        await at.decided()
        old = agent(at)
        await at.until(lambda: old.bookmarks)
        new = agent(at, service=service)
        assert isinstance(await old.ended(), TryAgain)
        await at.until(lambda: new.bookmarks)
        session = at.cache.view.get(kinds.NODE_SESSION, N1)
        assert session is not None
        assert session.controller == f"c{service}"
        new.report(f"vm/{vm}", vm=VmReport(state=VmReport.STATE_RUNNING))
        await at.until(lambda: at.observed(N1, f"vm/{vm}"))
        await new.break_off()


async def test_stale_reports_go_with_the_snapshot() -> None:
    async with world() as at:
        image = at.cloud.image("old")
        await at.copy()
        at.cloud.report(N1, f"image/{image}", state=ImageReport.STATE_READY)
        await at.copy()
        here = agent(at)
        await at.until(lambda: here.bookmarks)
        assert here.objects[f"image/{image}"].image.absent, "it goes on an explicit word"
        here.report(f"image/{image}", image=ImageReport(state=ImageReport.STATE_ABSENT))
        await at.until(lambda: at.observed(N1, f"image/{image}") is None)
        await here.break_off()


async def test_what_an_older_agent_cannot_be_told_its_successor_is() -> None:
    """It was told, put back to a release that does not know the word, and would have kept the bytes for ever."""
    async with world() as at:
        image = at.cloud.image("old")
        await at.copy()
        at.cloud.report(N1, f"image/{image}", state=ImageReport.STATE_READY)
        await at.copy()
        older = Agent(at.services[0], N1)
        older.hello(knows=())
        older.connect()
        await at.until(lambda: older.bookmarks)
        assert f"image/{image}" not in older.objects

        def state() -> int | None:
            seen = at.observed(N1, f"image/{image}")
            return seen.image.state if seen is not None else None

        await at.until(lambda: state() == ImageReport.STATE_UNSPECIFIED)
        await older.break_off()
        newer = agent(at)
        await at.until(lambda: newer.bookmarks)
        assert newer.objects[f"image/{image}"].image.absent
        newer.report(f"image/{image}", image=ImageReport(state=ImageReport.STATE_ABSENT))
        await at.until(lambda: state() is None)
        await newer.break_off()


async def test_a_slow_agent_gets_the_newest_only() -> None:
    async with world() as at:
        vm = at.cloud.vm("a", node=N1)
        await at.decided()
        stream = at.services[0].Sync(hellos(N1), cast("Any", Context(f"cairn://node/{N1}")))
        first = [await anext(stream) for _ in range(4)]
        assert first[-1].bookmark.snapshot_end
        for generation in range(1, 51):
            record = at.cloud.edit(kinds.VM, vm)
            record.spec.power_generation = generation
            at.cloud.put(kinds.VM, vm, record)
            await at.copy()
        upsert, bookmark = await anext(stream), await anext(stream)
        assert upsert.upsert.object.vm.power_generation == 50
        assert bookmark.HasField("bookmark")
        await stream.aclose()


async def hellos(node: str) -> AsyncIterator[SyncRequest]:
    yield SyncRequest(hello=Hello(node=node, endpoint=f"{node}:7446"))
    await asyncio.Event().wait()
