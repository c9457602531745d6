"""A controller starts whatever became of the record of the default project: who has to repair it needs one."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from cairn.controller.api import nouns, resolution
from cairn.controller.api.projects import ensure_default_project
from cairn.controller.store.base import Put, Txn
from cairn.controller.store.memory import MemoryStore
from cairn.proto import kinds

from tests.conformance.api_world import world_on

GARBAGE = b"\xff\xff\xff\xff"
PATIENCE_S = 10.0
PROJECT = kinds.PROJECT.key(nouns.DEFAULT_PROJECT_ID)
NAME = kinds.NAME.key(resolution.claim_id(nouns.PROJECT, "", nouns.DEFAULT_PROJECT))


@pytest.mark.parametrize("key", [PROJECT, NAME])
async def test_one_that_cannot_be_read_is_not_made_again(key: str, tmp_path: Path) -> None:
    """Nor is it tried for ever, against the store: no controller would have begun."""
    store = MemoryStore()
    async with world_on(store, tmp_path) as world:
        await store.commit(Txn("test", deletes={PROJECT, NAME}))
        await world.core.cache.wait_for(await store.commit(Txn("test", puts={key: Put(GARBAGE)})))
        before = await store.revision()
        async with asyncio.timeout(PATIENCE_S):
            await ensure_default_project(world.core, world.clock)
        assert await store.revision() == before


async def test_one_that_is_gone_is_made_again_though_its_name_is_left(tmp_path: Path) -> None:
    store = MemoryStore()
    async with world_on(store, tmp_path) as world:
        await world.core.cache.wait_for(await store.commit(Txn("test", deletes={PROJECT})))
        async with asyncio.timeout(PATIENCE_S):
            await ensure_default_project(world.core, world.clock)
        assert world.core.cache.view.get(kinds.PROJECT, nouns.DEFAULT_PROJECT_ID) is not None
