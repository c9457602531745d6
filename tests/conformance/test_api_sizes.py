"""Answers are bounded in bytes, not only in objects; and long ones let others have their turn."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from cairn.controller.api import nouns, selection
from cairn.controller.api.listing import PAGE_BYTES_MAX
from cairn.controller.model.permits import Caller
from cairn.controller.store.base import Txn
from cairn.controller.store.memory import MemoryStore
from cairn.proto import kinds
from cairn.proto.rpc import MESSAGE_BYTES_MAX
from cairn.proto.v1.vm_pb2 import ListVmsRequest, Vm, VmSpec
from cairn.proto.v1.vpc_pb2 import ListVpcsRequest, ListVpcsResponse, Vpc, VpcSpec

from tests.conformance.api_world import MIB, World, world_on

ALICE = Caller("user", "admin")
COUNT = 600
# As many and as long as an object may have.
LABELS = {f"{number:02}" + "k" * 61: "v" * 63 for number in range(64)}


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with world_on(MemoryStore(), tmp_path) as world:
        yield world


async def walk(call: Any, request: Any, plural: str) -> list[Any]:
    """Follow the pages; return them."""
    pages = [await call(request)]
    while pages[-1].next_page_token:
        request.page_token = pages[-1].next_page_token
        pages.append(await call(request))
    assert all(page.ByteSize() < MESSAGE_BYTES_MAX for page in pages)
    ids = [each.id for page in pages for each in getattr(page, plural)]
    assert ids == sorted(set(ids))
    return pages


async def vpcs(world: World, count: int, **fields: Any) -> None:
    for first in range(0, count, 100):
        txn = Txn("api")
        for number in range(first, min(first + 100, count)):
            vpc = Vpc(id=f"rtr-{number:08}", name=f"v{number}", project=nouns.DEFAULT_PROJECT_ID, **fields)
            vpc.spec.CopyFrom(VpcSpec(cidr="10.0.0.0/16"))
            txn.create(kinds.VPC, vpc.id, vpc)
        await world.commit(txn)


async def test_a_page_ends_before_it_is_larger_than_a_message(world: World) -> None:
    await vpcs(world, COUNT, labels=LABELS)
    pages = await walk(world.api.vpcs.ListVpcs, ListVpcsRequest(page_size=1000), "vpcs")
    assert sum(len(page.vpcs) for page in pages) == COUNT
    assert len(pages) == -(-sum(page.ByteSize() for page in pages) // PAGE_BYTES_MAX)


async def test_a_hundred_vms_with_as_much_user_data_as_there_may_be(world: World) -> None:
    """Also those that older releases kept it in."""
    for number in range(100):
        spec = VmSpec(cpus=1, memory_bytes=128 * MIB, user_data=b"#" * 65536, ssh_keys=["k" * 16384] * 8)
        vm = Vm(id=f"i-{number:08}", name=f"vm{number}", project=nouns.DEFAULT_PROJECT_ID, spec=spec)
        await world.commit(Txn("api").create(kinds.VM, vm.id, vm))
    for size in (0, 500):
        pages = await walk(world.api.vms.ListVms, ListVmsRequest(page_size=size), "vms")
        assert sum(len(page.vms) for page in pages) == 100


async def test_a_long_list_lets_others_have_their_turn_and_shows_one_moment(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    await vpcs(world, COUNT, labels={"a": "before"})
    monkeypatch.setattr(selection, "SLICE_S", 0.0)
    view, turns = world.cache.view, 0

    async def others() -> None:
        """In each turn one object is changed, one removed and one made; the list began before."""
        nonlocal turns
        while True:
            number = turns % (COUNT // 2)
            late = f"rtr-{COUNT - 1 - number:08}"
            view.table(kinds.VPC).put(late, Vpc(id=late, labels={"a": "after"}).SerializeToString(), 10**6, 1)
            view.table(kinds.VPC).delete(f"rtr-{COUNT // 2 + 1:08}")
            made = Vpc(id=f"rtr-z{number:07}", name="z", project=nouns.DEFAULT_PROJECT_ID)
            view.table(kinds.VPC).put(made.id, made.SerializeToString(), 10**6, 10**6)
            turns += 1
            await asyncio.sleep(0)

    asked = ListVpcsRequest(page_size=1000)
    # The list is begun first, so all the others do is later than its moment.
    listing = asyncio.create_task(world.core.listings.list(ALICE, nouns.VPC, asked, ListVpcsResponse))
    meanwhile = asyncio.create_task(others())
    page = await listing
    meanwhile.cancel()
    assert turns >= COUNT
    assert [each.id for each in page.vpcs] == [f"rtr-{number:08}" for number in range(COUNT)]
    assert {each.labels["a"] for each in page.vpcs} == {"before"}
