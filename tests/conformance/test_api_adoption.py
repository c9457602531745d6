"""Adopting what nodes know better: what was adopted already is not refused because its node has not heard of it yet."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
from cairn.controller.store.base import Txn
from cairn.controller.store.memory import MemoryStore
from cairn.proto import kinds
from cairn.proto.v1.agent_pb2 import Desired, DesiredVolume, Unknown
from cairn.proto.v1.cluster_pb2 import AdoptVolumeRequest

from tests.conformance.api_world import GIB, World, world_on

VOLUME = "vol-unkn000"


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with world_on(MemoryStore(), tmp_path) as world:
        await world.furnish()
        for node in ("n1", "n2"):
            desired = Desired(volume=DesiredVolume(id=VOLUME, size_bytes=GIB))
            id = next(each.id for each in world.cache.view.all(kinds.NODE) if each.name == node)
            told = Unknown(key=f"volume/{VOLUME}", node=id, desired=desired)
            await world.commit(Txn("sync").put(kinds.UNKNOWN, f"{id}/volume/{VOLUME}", told))
        yield world


async def test_a_volume_that_was_adopted_a_moment_ago_is_adopted(world: World) -> None:
    """Its node says that it is unknown until it hears of the record: `cairn cluster adopt --all` comes to it in between."""
    first = await world.api.cluster.AdoptVolume(AdoptVolumeRequest(node="n1", id=VOLUME))
    again = await world.api.cluster.AdoptVolume(AdoptVolumeRequest(node="n1", id=VOLUME))
    assert (again.id, again.revision) == (first.id, first.revision), "and nothing is written"
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await world.api.cluster.AdoptVolume(AdoptVolumeRequest(node="n2", id=VOLUME))
    assert "by the records it is elsewhere" in str(refused.value.details())
