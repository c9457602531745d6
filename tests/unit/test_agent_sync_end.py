"""A stream that ends on this side, by a fault of ours or of gRPC's, is no end of the agent's talking."""

from __future__ import annotations

from typing import Any

import pytest
from cairn.proto.pki import Authority
from cairn.proto.v1.agent_pb2_grpc import add_AgentServiceServicer_to_server

from tests.unit.agent_kit import Machine, until
from tests.unit.test_agent_sync import Controller, agent_of, ca, serving

__all__ = ["ca"]


async def test_a_fault_while_reports_are_taken_ends_the_stream_and_not_the_talking(
    ca: Authority,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """gRPC gives the call up on this side then, and whoever reads from it is cancelled."""
    controller, faults = Controller({}), [RuntimeError("a fault")]
    async with (
        serving(ca, controller, add_AgentServiceServicer_to_server) as address,
        agent_of(ca, Machine(), [address]) as agent,
    ):
        await until("the snapshot", lambda: agent.sync.synced.is_set(), 20)
        take = agent.reports.take

        def taking() -> Any:
            if faults:
                raise faults.pop()
            return take()

        monkeypatch.setattr(agent.reports, "take", taking)
        agent.reports.some.set()
        await until("a second stream", lambda: len(controller.hellos) >= 2 and agent.sync.synced.is_set(), 20)
