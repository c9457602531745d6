"""The fault knobs that the fakes share: before, after, and hanging until let go. What was done stays done."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from cairn.agent.hypervisor.base import FaultKnobs
from cairn.agent.hypervisor.fake import FakeHost, FakeHypervisor
from cairn.net import fake as net_fake
from cairn.net.fake import FakeDataplane, FakeNetHost
from cairn.proto.seams import SystemClock
from cairn.proto.v1.agent_pb2 import DesiredVolume
from cairn.storage.base import StorageError
from cairn.storage.fake import FakePool, FakeVolumes
from cairn.storage.fake_shared import FakeSharedVolumes, SharedPool

VOLUME = DesiredVolume(id="vol-0000001a", size_bytes=1 << 20, type="local")


def hypervisor() -> tuple[Callable[[], Coroutine[Any, Any, Any]], Callable[[], None]]:
    knobs = FaultKnobs(hang={"list": 1})
    return FakeHypervisor(FakeHost(), SystemClock(), knobs).list, knobs.let_go


def dataplane() -> tuple[Callable[[], Coroutine[Any, Any, Any]], Callable[[], None]]:
    knobs = net_fake.FaultKnobs(hang={"observe": 1})
    return FakeDataplane(FakeNetHost(), knobs).observe, knobs.let_go


def volumes() -> tuple[Callable[[], Coroutine[Any, Any, Any]], Callable[[], None]]:
    pool = FakePool(hang={"observe": 1})
    return lambda: FakeVolumes(pool).observe([]), pool.let_go


@pytest.mark.parametrize("make", [hypervisor, dataplane, volumes])
async def test_what_hangs_goes_on_when_it_is_let_go(make: Callable[[], Any]) -> None:
    call, let_go = make()
    hung = asyncio.create_task(call())
    done, _ = await asyncio.wait([hung], timeout=0.01)
    assert not done
    free = await call()
    let_go()
    assert await hung == free


@pytest.mark.parametrize("method", ["create", "resize", "delete"])
@pytest.mark.parametrize("shared", [False, True])
async def test_a_volume_is_as_asked_though_the_driver_says_it_failed(method: str, shared: bool) -> None:
    pool, tank = FakePool(), SharedPool("tank")
    driver = FakeSharedVolumes(tank, pool) if shared else FakeVolumes(pool)
    calls: dict[str, Callable[[], Coroutine[Any, Any, None]]] = {
        "create": lambda: driver.create(VOLUME),
        "resize": lambda: driver.resize(VOLUME.id, 2 << 20),
        "delete": lambda: driver.delete(VOLUME.id),
    }
    if method != "create":
        await driver.create(VOLUME)
    pool.faults_after[method].append(StorageError("nobody knows"))
    with pytest.raises(StorageError, match="nobody knows"):
        await calls[method]()
    held = (tank.volumes if shared else pool.volumes).get(VOLUME.id)
    assert (held.size_bytes if held is not None else 0) == {"create": 1 << 20, "resize": 2 << 20, "delete": 0}[method]
    await calls[method]()


async def test_a_volume_whose_creation_failed_before_is_not_there() -> None:
    pool = FakePool()
    pool.faults["create"].append(StorageError("not today"))
    with pytest.raises(StorageError, match="not today"):
        await FakeVolumes(pool).create(VOLUME)
    assert pool.volumes == {}
