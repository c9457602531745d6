"""Many nodes in a process: what they are told, what they are made of, what they share; and the pipe they live on."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator
from typing import Any

import pytest
from cairn.agent.fleet import Machine, Order
from cairn.hardware.base import Inventory
from cairn.hardware.fake import ARM, LARGE, SMALL, FakeInventory, model_of
from cairn.proto import lifeline
from cairn.proto.v1.image_pb2 import ImageFormat
from cairn.storage.fake import FakeImages, FakePool


def test_an_order_is_a_line() -> None:
    order = Order.parse('{"number": 300, "name": "n300", "token": "hush"}')
    assert (order.name, order.vtep) == ("n300", "198.18.1.44")
    assert "hush" not in repr(order)
    with pytest.raises(ValueError, match="'token'"):
        Order.parse('{"number": 1, "name": "n1"}')


async def test_servers_differ_and_are_the_same_each_time() -> None:
    models = [model_of(number) for number in range(1, 11)]
    assert {model: models.count(model) for model in (SMALL, LARGE, ARM)} == {SMALL: 7, LARGE: 2, ARM: 1}
    inventory: Inventory = FakeInventory(LARGE, "n3", 3)
    facts = await inventory.collect()
    assert (facts.arch, facts.hostname, facts.cpu.cores, facts.cpu.threads) == ("x86_64", "n3", 64, 128)
    assert [(node.cpus, node.memory_bytes >> 30) for node in facts.numa] == [("0-63", 256), ("64-127", 256)]
    assert facts.memory_bytes >> 30 == 512
    assert (facts.nics[0].mac, facts.hypervisor.accelerator) == ("02:00:00:00:00:03", "")


async def test_nodes_of_a_process_keep_the_bytes_of_an_image_once() -> None:
    pools: list[FakePool] = []
    machines = [Machine(SMALL, pools) for _ in range(3)]
    digest = "sha256:" + hashlib.sha256(bytes(1024)).hexdigest()

    async def chunks() -> AsyncIterator[bytes]:
        yield bytes(1024)

    for machine in machines[:2]:
        await FakeImages(machine.pool).put(digest, 1024, ImageFormat.IMAGE_FORMAT_RAW, chunks())
    assert machines[0].pool.images[digest][1] is machines[1].pool.images[digest][1]
    assert machines[2].pool.images == {}
    await FakeImages(machines[0].pool).delete(digest)
    assert [content async for content in FakeImages(machines[1].pool).get(digest)] == [bytes(1024)]


async def follow(each: Any, *written: bytes) -> None:
    """Be the child; the parent writes, then is gone."""
    read, write = os.pipe()
    with os.fdopen(write, "wb", buffering=0) as parent, os.fdopen(read, "rb") as child:
        following = asyncio.ensure_future(lifeline.follow(each, child))
        for part in written:
            parent.write(part)
        parent.close()
        async with asyncio.timeout(10):
            await following


async def test_a_child_hears_whole_lines_and_the_end_of_its_parent() -> None:
    heard: list[str] = []
    await follow(heard.append, b"one\ntw", b"o\n", b"half a li")
    assert heard == ["one", "two"]


async def test_a_line_that_cannot_be_used_ends_the_child() -> None:
    with pytest.raises(ValueError, match="number"):
        await follow(Order.parse, b"{}\n")
