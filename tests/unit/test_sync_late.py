"""AgentService when a commit that was given up as in doubt arrives late, after newer ones."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from cairn.controller import node_session
from cairn.controller.node_session import Session
from cairn.controller.store.base import Conflict, Indeterminate, Txn
from cairn.controller.store.cache import Cache
from cairn.controller.store.view import LiveView
from cairn.proto import kinds
from cairn.proto.seams import SystemClock
from cairn.proto.v1.agent_pb2 import Hello, VmReport

from tests.unit.sync_kit import N1, TIMEOUT_S, agent, world


async def test_a_session_that_a_late_commit_put_under_a_dead_lease_is_written_again_at_once() -> None:
    """Nobody has to look now and then: that it changed is news."""
    assert node_session.LOOK_S > TIMEOUT_S
    async with world() as at:
        here = agent(at)
        await at.until(lambda: here.bookmarks)
        session = at.cache.view.record(kinds.NODE_SESSION, N1)
        assert session is not None
        lease = await at.store.lease(60)
        late = Txn("sync").put(kinds.NODE_SESSION, N1, session.message, lease=lease.id)
        await at.cache.wait_for(await at.store.commit(late))
        await lease.close()
        await at.until(lambda: at.cache.view.get(kinds.NODE_SESSION, N1) is not None)
        assert at.cache.view.get(kinds.NODE_SESSION, N1) == session.message
        assert here.error is None


async def test_a_late_commit_of_old_reports_changes_nothing() -> None:
    async with world() as at:
        key = f"vm/{at.cloud.vm('a', node=N1)}"
        await at.decided()
        here = agent(at)
        await at.until(lambda: here.bookmarks)
        commit, late = at.store.commit, list[Txn]()

        async def lost(txn: Txn) -> int:
            if not late and any(key.startswith(kinds.OBSERVED.prefix) for key in txn.puts):
                late.append(txn)
                raise Indeterminate("the answer did not come in time")
            return await commit(txn)

        at.store.commit = lost  # type: ignore[method-assign]
        here.report(key, vm=VmReport(state=VmReport.STATE_PREPARING))
        await at.until(lambda: late)
        here.report(key, vm=VmReport(state=VmReport.STATE_RUNNING))

        def state() -> Any:
            observed = at.cache.view.get(kinds.OBSERVED, f"{N1}/{key}")
            return observed is not None and observed.report.vm.state

        await at.until(lambda: state() == VmReport.STATE_RUNNING)
        with pytest.raises(Conflict):
            await commit(late[0])


async def test_a_report_that_comes_late_about_what_has_gone_is_removed() -> None:
    async with world() as at:
        vm = at.cloud.vm("a", node=N1)
        key = f"vm/{vm}"
        await at.decided()
        here = agent(at)
        await at.until(lambda: here.bookmarks)
        here.report(key, vm=VmReport(state=VmReport.STATE_RUNNING))
        await at.until(lambda: at.observed(N1, key))
        observed = at.cache.view.get(kinds.OBSERVED, f"{N1}/{key}")
        assert observed is not None
        at.cloud.delete(kinds.VM, vm)
        await at.copy()
        await at.until(lambda: key not in here.objects)
        await at.until(lambda: at.observed(N1, key) is None)
        await at.cache.wait_for(await at.store.commit(Txn("sync").put(kinds.OBSERVED, f"{N1}/{key}", observed)))
        await at.until(lambda: at.observed(N1, key) is None)


class _Behind:
    """A cache that shows what it showed at a moment, until the store is asked."""

    def __init__(self, cache: Cache) -> None:
        self._cache, self.view = cache, cache.view.fork(Txn("nobody"))

    async def wait_for(self, revision: int) -> None:
        await self._cache.wait_for(revision)
        self.view = self._cache.view


async def test_a_superseded_session_whose_lease_is_lost_writes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another stream has taken the node over before this one, with an old view, finds its lease lost."""
    monkeypatch.setattr(node_session, "TTL_S", 1.0)
    async with world() as at:
        old, new = (Session(at.store, SystemClock(), Hello(node=N1), name) for name in ("c1", "c2"))
        await at.cache.wait_for(await old.open(None, at.cache.view))
        behind: Any = _Behind(at.cache)
        (item,) = (await at.store.read(kinds.NODE_SESSION.key(N1)))[0]
        keeping = asyncio.create_task(old.keep(behind))
        await at.cache.wait_for(await new.open(None, at.cache.view))
        at.store.backend.revoke(item.lease)
        await asyncio.wait_for(keeping, 20)
        assert at.cache.view.get(kinds.NODE_SESSION, N1) == new.message
        await new.close(revoke=False)


async def test_a_session_is_not_written_over_one_it_has_not_seen() -> None:
    async with world() as at:
        old, new = (Session(at.store, SystemClock(), Hello(node=N1), name) for name in ("c1", "c2"))
        before = at.cache.view.fork(Txn("nobody"))
        await at.cache.wait_for(await new.open(None, before))
        unaware = LiveView()
        with pytest.raises(Conflict):
            await old.open(None, unaware)
        await new.close(revoke=True)


async def test_a_session_is_not_taken_back_when_the_one_that_took_it_is_gone() -> None:
    """Another stream has taken the node over, and its lease has ended, before this one heard of either."""
    async with world() as at:
        old, new = (Session(at.store, SystemClock(), Hello(node=N1), name) for name in ("c1", "c2"))
        await at.cache.wait_for(await old.open(None, at.cache.view))
        await at.cache.wait_for(await new.open(None, at.cache.view))
        (item,) = (await at.store.read(kinds.NODE_SESSION.key(N1)))[0]
        at.store.backend.revoke(item.lease)
        await at.until(lambda: at.cache.view.get(kinds.NODE_SESSION, N1) is None)
        await asyncio.wait_for(old.keep(at.cache), 20)
        assert at.cache.view.get(kinds.NODE_SESSION, N1) is None
        # The one that came last writes its own again.
        keeping = asyncio.create_task(new.keep(at.cache))
        await at.until(lambda: at.cache.view.get(kinds.NODE_SESSION, N1) == new.message)
        keeping.cancel()
        await new.close(revoke=True)
