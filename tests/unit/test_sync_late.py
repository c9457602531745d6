"""AgentService when a commit that was given up as in doubt arrives late, after newer ones."""

from __future__ import annotations

from typing import Any

import pytest
from cairn.controller import node_session
from cairn.controller.store.base import Conflict, Indeterminate, Txn
from cairn.proto import kinds
from cairn.proto.v1.agent_pb2 import VmReport

from tests.unit.test_sync import N1, agent, world


async def test_a_session_that_a_late_commit_put_under_a_dead_lease_is_written_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node_session, "LOOK_S", 0.05)
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
