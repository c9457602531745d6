"""Price lists: what can be one, what holds is not changed, and what a plan and a report say by them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from cairn.controller.store.base import Txn
from cairn.controller.store.memory import MemoryStore
from cairn.proto import kinds
from cairn.proto.v1.price_list_pb2 import (
    CreatePriceListRequest,
    DeletePriceListRequest,
    GetPriceListRequest,
    ListPriceListsRequest,
    Price,
    PriceList,
    PriceListSpec,
    PriceTier,
    UpdatePriceListRequest,
)
from cairn.proto.v1.usage_pb2 import ReportUsageRequest, UsageCursor, UsageOpen
from cairn.proto.v1.vm_pb2 import CreateVmRequest
from cairn.proto.v1.volume_pb2 import CreateVolumeRequest, Volume, VolumeSpec

from tests.conformance.api_world import GIB, World, vm, world_on


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with world_on(MemoryStore(), tmp_path) as world:
        await world.furnish()
        yield world


def today(world: World) -> datetime:
    now: datetime = world.clock.now()
    return now.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)


def price(of: str, *tiers: str) -> Price:
    return Price(of=of, tiers=[PriceTier(from_hours=at * 10, per_second=each) for at, each in enumerate(tiers)])


async def listed(world: World, name: str, *prices: Price, days: int = 0, **spec: Any) -> Any:
    """Make a list that holds from so many days from now on."""
    made = PriceListSpec(currency="CNY", prices=prices or [price("cpu", "0.1")])
    made.valid_from.FromDatetime(today(world) + timedelta(days=days))
    made.MergeFrom(PriceListSpec(**spec))
    return await world.api.prices.CreatePriceList(CreatePriceListRequest(price_list=PriceList(name=name, spec=made)))


async def refused(call: Any) -> str:
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await call
    return str(error.value.details())


async def test_a_list_is_made_shown_and_deleted(world: World) -> None:
    other = await world.project("other")
    made = await listed(world, "standard", price("cpu", "0.5", "0.4"), project="other")
    assert made.spec.project == other
    assert made.status.project_name == "other"
    assert "1 price for project other" in made.status.say
    assert [each.id for each in (await world.api.prices.ListPriceLists(ListPriceListsRequest())).price_lists] == [made.id]
    await world.api.prices.DeletePriceList(DeletePriceListRequest(id="standard"))
    assert "standard" in await refused(world.api.prices.GetPriceList(GetPriceListRequest(id="standard")))


@pytest.mark.parametrize(
    ("spec", "say"),
    [
        ({"currency": "1"}, "is no currency"),
        ({"prices": [price("gpu", "1")]}, "is no price"),
        ({"prices": [price("cpu", "1"), price("cpu", "2")]}, "has a price already"),
        ({"prices": [price("cpu", "-1")]}, "is no price"),
        ({"prices": [price("cpu")]}, "begin at 0 hours"),
        ({"prices": [Price(of="cpu", tiers=[PriceTier(from_hours=1, per_second="1")])]}, "begin at 0 hours"),
        ({"project": "nowhere"}, "nowhere"),
    ],
)
async def test_what_cannot_be_added_up_by_is_no_list(world: World, spec: dict[str, Any], say: str) -> None:
    made = PriceListSpec(**({"currency": "CNY", "prices": [price("cpu", "1")]} | spec))
    made.valid_from.FromDatetime(today(world))
    request = CreatePriceListRequest(price_list=PriceList(name="bad", spec=made))
    assert say in await refused(world.api.prices.CreatePriceList(request))


async def test_it_begins_with_a_day(world: World) -> None:
    made = PriceListSpec(currency="CNY", prices=[price("cpu", "1")])
    request = CreatePriceListRequest(price_list=PriceList(name="bad", spec=made))
    assert "beginning of a day" in await refused(world.api.prices.CreatePriceList(request))
    request.price_list.spec.valid_from.FromDatetime(today(world) + timedelta(hours=1))
    assert "beginning of a day" in await refused(world.api.prices.CreatePriceList(request))


async def test_what_holds_is_not_changed(world: World) -> None:
    holds, comes = await listed(world, "holds"), await listed(world, "comes", days=2)
    for made, may in ((holds, False), (comes, True)):
        new = PriceList(id=made.id, etag=made.etag, spec=PriceListSpec(prices=[price("cpu", "9")]))
        request = UpdatePriceListRequest(price_list=new)
        request.update_mask.paths.append("spec.prices")
        if may:
            changed = await world.api.prices.UpdatePriceList(request)
            assert changed.spec.prices[0].tiers[0].per_second == "9"
        else:
            assert "what holds is not changed" in await refused(world.api.prices.UpdatePriceList(request))
        named = UpdatePriceListRequest(
            price_list=PriceList(id=made.id, spec=PriceListSpec(description="new")), allow_stale=True
        )
        named.update_mask.paths.append("spec.description")
        assert (await world.api.prices.UpdatePriceList(named)).spec.description == "new"


async def test_a_plan_says_what_it_costs_a_day(world: World) -> None:
    asked = CreateVmRequest(vm=vm("web", cpus=2, memory_bytes=GIB), validate_only=True)
    plan = (await world.api.vms.CreateVm(asked)).plan
    assert not [each for each in plan.changes if each.action == "cost"]
    await listed(world, "standard", price("cpu", "0.0000014"), price("memory", "0.0000003"), price("volume", "0.00000001"))
    plan = (await world.api.vms.CreateVm(asked)).plan
    (cost,) = [each for each in plan.changes if each.action == "cost"]
    assert list(cost.details) == ["about 0.27 CNY a day while it runs"]
    assert (cost.kind, cost.name) == ("price_list", "standard")
    disk = CreateVolumeRequest(volume=Volume(name="data", spec=VolumeSpec(size_bytes=10 * GIB)), validate_only=True)
    plan = (await world.api.volumes.CreateVolume(disk)).plan
    assert [list(each.details) for each in plan.changes if each.action == "cost"] == [["about 0.0086 CNY a day while it runs"]]


async def test_a_report_says_what_it_cost(world: World) -> None:
    project = next(each.id for each in world.cache.view.all(kinds.PROJECT))
    # Ten GiB-hours a month at one price, then at another.
    await listed(world, "standard", price("volume", "1", "0.5"), days=-40)
    since = today(world) - timedelta(days=1)
    open = UsageOpen(object="volume/vol-1", project=project, name="data", type="local", size_bytes=GIB)
    open.since_us = int(since.timestamp()) * 10**6
    cursor = UsageCursor(revision=10**6)
    await world.commit(Txn("metering").put(kinds.USAGE_OPEN, open.object, open).put(kinds.USAGE_CURSOR, "self", cursor))
    request = ReportUsageRequest()
    request.from_time.FromDatetime(since)
    request.until_time.FromDatetime(since + timedelta(hours=20))
    (usage,) = (await world.api.usage.ReportUsage(request)).usages
    (cost,) = usage.costs
    assert (cost.currency, cost.amount) == ("CNY", f"{10 * 3600 + 10 * 1800}.000000")
