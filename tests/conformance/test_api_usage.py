"""Usage as it is reported: sums that agree however they are grouped, until now, of what the caller may read."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from cairn.controller.metering import Metering
from cairn.controller.metrics import MeteringMetrics
from cairn.controller.retention import Retention
from cairn.controller.store.base import Txn
from cairn.proto import kinds
from cairn.proto.v1.agent_pb2 import Observed, Report, VmReport
from cairn.proto.v1.cluster_pb2 import Cluster
from cairn.proto.v1.usage_pb2 import ReportUsageRequest, UsageDay, UsageGap, UsageGroup, UsageMonth
from cairn.proto.v1.volume_pb2 import CreateVolumeRequest, DeleteVolumeRequest, Volume, VolumeSpec
from prometheus_client import CollectorRegistry

from tests.conformance.api_stores import STORES, made_store
from tests.conformance.api_world import GIB, MIB, World, world_on

HOUR_S = 3600
BY_OBJECT = UsageGroup.USAGE_GROUP_OBJECT


class Alone:
    """All is this controller's to do."""

    def mine(self, _shard: str) -> bool:
        return True


class Counting:
    """Who counts, until it is stopped."""

    def __init__(self, world: World) -> None:
        store = world.core.store
        leases, metrics = Retention(store, 60.0), MeteringMetrics(CollectorRegistry())
        counting = Metering(world.cache, store, Alone(), world.clock, world.ids, leases, metrics)
        self._task = asyncio.create_task(counting.run())

    async def stop(self) -> None:
        self._task.cancel()
        await asyncio.wait([self._task])


@pytest.fixture(params=STORES)
async def world(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[World]:
    async with made_store(request) as store, world_on(store, tmp_path) as world:
        await world.commit(Txn("peers").create(kinds.CLUSTER, "self", Cluster(name="c", epoch=1)))
        counting = Counting(world)
        async with asyncio.timeout(20):
            while not await world.count(kinds.USAGE_CURSOR):
                await asyncio.sleep(0.01)
        await world.furnish()
        world.counting = counting  # type: ignore[attr-defined]
        yield world
        await counting.stop()


async def volume(world: World, name: str, gib: int = 1, project: str = "") -> Any:
    spec = VolumeSpec(size_bytes=gib * GIB)
    return await world.api.volumes.CreateVolume(CreateVolumeRequest(volume=Volume(name=name, project=project, spec=spec)))


async def told(world: World, vm: str, *, runs: bool) -> None:
    """Have a node say whether a VM runs."""
    said = VmReport(state=VmReport.STATE_RUNNING if runs else VmReport.STATE_STOPPED)
    observed = Observed(key=f"vm/{vm}", node="node-1", report=Report(key=f"vm/{vm}", vm=said))
    txn = Txn("sync").put(kinds.OBSERVED, f"node-1/vm/{vm}", observed)
    await world.cache.wait_for(await world.core.store.commit(txn))


def later(world: World, hours: float) -> None:
    world.clock.ahead += timedelta(hours=hours)


async def report(world: World, group: Any = UsageGroup.USAGE_GROUP_PROJECT, stubs: Any = None, **fields: Any) -> Any:
    """Return what is reported since the day before."""
    request = ReportUsageRequest(group_by=group, **fields)
    if not request.HasField("from_time"):
        request.from_time.FromDatetime(midnight(world) - timedelta(days=3))
    answer = await (stubs or world.api).usage.ReportUsage(request)
    assert not answer.behind
    return answer


def midnight(world: World) -> datetime:
    now: datetime = world.clock.now()
    return now.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)


def hours(seconds: float) -> float:
    return round(seconds / HOUR_S, 1)


async def test_a_vm_and_its_disk_to_the_second(world: World) -> None:
    web = await world.vm("web", cpus=2, memory_bytes=256 * MIB)
    later(world, 1)
    await told(world, web.id, runs=True)
    later(world, 3)
    await told(world, web.id, runs=False)
    later(world, 1)
    found = {(each.kind, each.object_name): each for each in (await report(world, BY_OBJECT)).usages}
    ran = found["vm", "web"]
    assert (hours(ran.seconds), hours(ran.running_seconds), hours(ran.cpu_seconds)) == (5, 3, 6)
    assert hours(ran.memory_byte_seconds / GIB) == 0.8
    assert ran.open
    disk = found["volume", "web-root"]
    assert (hours(disk.seconds), round(disk.byte_seconds / disk.seconds), disk.type) == (5, 64 * MIB, "local")
    image = found["image", "demo"]
    assert (hours(image.seconds), round(image.byte_seconds / image.seconds)) == (5, 10 * MIB)


async def test_however_it_is_grouped_the_sums_agree(world: World) -> None:
    data = await volume(world, "data", 4)
    web = await world.vm("web")
    await told(world, web.id, runs=True)
    later(world, 30)
    await world.api.volumes.DeleteVolume(DeleteVolumeRequest(id=data.id, purge=True))
    await world.cache.wait_for(await world.core.store.commit(Txn("garbage").delete(kinds.VOLUME, data.id)))
    later(world, 30)
    await told(world, web.id, runs=False)
    sums = dict[str, list[float]]()
    until = midnight(world) + timedelta(hours=world.clock.now().astimezone(UTC).hour)
    for name, group in UsageGroup.items():
        request = ReportUsageRequest(group_by=group)
        request.until_time.FromDatetime(until)
        answer = await report(world, group, until_time=request.until_time)
        columns = ("seconds", "cpu_seconds", "byte_seconds")
        sums[name] = [sum(getattr(each, column) for each in answer.usages) for column in columns]
    for name, each in sums.items():
        assert each == pytest.approx(sums["USAGE_GROUP_PROJECT"], rel=1e-12), name


async def test_a_window_takes_what_lies_in_it(world: World) -> None:
    await volume(world, "data", 2)
    later(world, 24 * 3)
    begin = midnight(world) - timedelta(days=2)
    request = ReportUsageRequest()
    request.from_time.FromDatetime(begin)
    request.until_time.FromDatetime(begin + timedelta(hours=6))
    answer = await report(world, BY_OBJECT, from_time=request.from_time, until_time=request.until_time, show_intervals=True)
    (data,) = [each for each in answer.usages if each.object_name == "data"]
    assert (data.seconds, data.byte_seconds) == (6 * HOUR_S, 6 * HOUR_S * 2 * GIB)
    (interval,) = data.intervals
    assert (interval.begin_time, interval.end_time) == (request.from_time, request.until_time)


async def test_only_whole_hours_are_asked_for(world: World) -> None:
    for field in ("from_time", "until_time"):
        request = ReportUsageRequest()
        getattr(request, field).FromDatetime(midnight(world) + timedelta(minutes=30))
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await world.api.usage.ReportUsage(request)
        assert "whole hour" in (refused.value.details() or "")
    request.from_time.FromDatetime(midnight(world))
    request.until_time.FromDatetime(midnight(world))
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await world.api.usage.ReportUsage(request)
    assert "not after" in (refused.value.details() or "")


async def test_pages_are_of_one_moment(world: World) -> None:
    for number in range(7):
        await volume(world, f"data-{number}")
    later(world, 1)
    request = ReportUsageRequest(group_by=BY_OBJECT, page_size=3)
    request.from_time.FromDatetime(midnight(world) - timedelta(days=1))
    found, moments = list[str](), set[float]()
    while True:
        answer = await world.api.usage.ReportUsage(request)
        found += [each.object_name for each in answer.usages]
        moments.add(answer.until_time.ToMicroseconds())
        if not answer.next_page_token:
            break
        request.page_token = answer.next_page_token
        await volume(world, f"more-{len(found)}")
    assert sorted(found) == sorted(["demo", *(f"data-{number}" for number in range(7))])
    assert len(moments) == 1
    request.group_by = UsageGroup.USAGE_GROUP_DAY
    with pytest.raises(grpc.aio.AioRpcError):
        await world.api.usage.ReportUsage(request)


async def test_who_may_read_what(world: World) -> None:
    other = await world.project("other")
    await volume(world, "data", project=other)
    await volume(world, "here")
    admin = await world.user("ann", "project-admin", other)
    auditor = await world.user("eve", "auditor")
    everywhere = await report(world, stubs=auditor, project="-")
    assert len(everywhere.usages) == 2
    own = await report(world, BY_OBJECT, stubs=admin, project="-")
    assert [each.object_name for each in own.usages] == ["data"]
    assert [each.object_name for each in (await report(world, BY_OBJECT, stubs=admin, project="other")).usages] == ["data"]
    for name, role in (("vic", "viewer"), ("meg", "member")):
        stubs = await world.user(name, role, other)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await report(world, stubs=stubs, project="other")
        assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED
    with pytest.raises(grpc.aio.AioRpcError) as unseen:
        await report(world, stubs=admin, project="default")
    assert unseen.value.code() is grpc.StatusCode.NOT_FOUND


async def test_folded_days_are_told_whole_and_gaps_are_told(world: World) -> None:
    project = next(each.id for each in world.cache.view.all(kinds.PROJECT))
    month = UsageMonth(project=project, month=202601)
    month.sums.add(day=20260110, kind="volume", type="local", us=HOUR_S * 1_000_000, byte_us=(HOUR_S * 10**6 * GIB).to_bytes(9))
    day = UsageDay(project=project, day=20260301)
    held = day.objects.add(object="volume/vol-1", name="old", type="local")
    held.pieces.add(begin_us=0, end_us=HOUR_S * 10**6, us=HOUR_S * 10**6, byte_us=(HOUR_S * 10**6 * GIB).to_bytes(9))
    gap = UsageGap(say="it was restored")
    gap.begin_time.FromDatetime(datetime(2026, 1, 10, 5, tzinfo=UTC))
    gap.end_time.FromDatetime(datetime(2026, 1, 10, 6, tzinfo=UTC))
    txn = Txn("metering").put(kinds.USAGE_MONTH, f"202601/{project}", month)
    txn.put(kinds.USAGE_GAP, f"{gap.end_time.ToMicroseconds():016d}", gap)
    await world.commit(txn.put(kinds.USAGE_DAY, f"20260301/{project}/0000", day))
    request = ReportUsageRequest()
    request.from_time.FromDatetime(datetime(2026, 1, 10, tzinfo=UTC))
    request.until_time.FromDatetime(datetime(2026, 1, 11, tzinfo=UTC))
    answer = await report(world, BY_OBJECT, from_time=request.from_time, until_time=request.until_time)
    (usage,) = answer.usages
    assert (usage.kind, usage.type, usage.object, usage.byte_seconds) == ("volume", "local", "", HOUR_S * GIB)
    assert [each.say for each in answer.gaps] == ["it was restored"]
    request.until_time.FromDatetime(datetime(2026, 3, 2, tzinfo=UTC))
    answer = await report(world, UsageGroup.USAGE_GROUP_DAY, from_time=request.from_time, until_time=request.until_time)
    assert [(each.day, each.byte_seconds) for each in answer.usages] == [
        ("2026-01-10", HOUR_S * GIB), ("2026-03-01", HOUR_S * GIB),
    ]  # fmt: skip


async def test_who_comes_later_counts_what_was_meanwhile_and_tells_where_history_is_gone(world: World) -> None:
    counting: Counting = world.counting  # type: ignore[attr-defined]
    data = await volume(world, "data")
    assert not (await report(world)).gaps
    await counting.stop()
    later(world, 1)
    await volume(world, "meanwhile")
    second = Counting(world)
    assert {each.object_name for each in (await report(world, BY_OBJECT)).usages} == {"demo", "data", "meanwhile"}
    await second.stop()
    later(world, 1)
    await world.cache.wait_for(await world.core.store.commit(Txn("garbage").delete(kinds.VOLUME, data.id)))
    await world.store.compact(await world.store.revision())
    third = Counting(world)
    answer = await report(world, BY_OBJECT)
    await third.stop()
    assert "forgotten" in answer.gaps[0].say
    (gone,) = [each for each in answer.usages if each.object_name == "data"]
    assert not gone.open
    assert (hours(gone.seconds), hours(gone.inexact_seconds)) == (1, 1)
