"""Controllers that are expected: `cluster status` tells who is missing, RetireController ends the expectation."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
from cairn.controller.store.base import Txn
from cairn.controller.store.memory import MemoryStore
from cairn.proto import kinds
from cairn.proto.v1.cluster_pb2 import (
    ControllerMember,
    ControllerSession,
    GetClusterStatusRequest,
    RetireControllerRequest,
)

from tests.conformance.api_world import World, world_on
from tests.conformance.test_api_refusals import refused


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with world_on(MemoryStore(), tmp_path) as world:
        yield world


async def test_a_controller_that_is_gone_is_missing_until_it_is_retired(world: World) -> None:
    member = ControllerMember(name="c2", endpoints=["192.0.2.2:7443"], version="1.2")
    await world.commit(Txn("members").put(kinds.CONTROLLER_MEMBER, "c2", member))
    await world.commit(Txn("peers").put(kinds.CONTROLLER, "c2", ControllerSession(name="c2")))
    status = await world.api.cluster.GetClusterStatus(GetClusterStatusRequest())
    assert not status.controllers_missing
    assert status.healthy == status.say.startswith("healthy")
    why = "controller 'c2' is running: stop it first"
    retire = RetireControllerRequest(name="c2")
    await refused(world.api.cluster.RetireController(retire), grpc.StatusCode.FAILED_PRECONDITION, why)

    await world.commit(Txn("peers").delete(kinds.CONTROLLER, "c2"))
    status = await world.api.cluster.GetClusterStatus(GetClusterStatusRequest())
    assert [missing.name for missing in status.controllers_missing] == ["c2"]
    assert "controller c2 is missing" in status.say
    assert not status.healthy

    await world.api.cluster.RetireController(retire)
    status = await world.api.cluster.GetClusterStatus(GetClusterStatusRequest())
    assert not status.controllers_missing
    await refused(world.api.cluster.RetireController(retire), grpc.StatusCode.NOT_FOUND, "'c2' does not exist")
