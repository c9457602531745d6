"""validate_only shows what would be; plan_id does exactly that, or refuses because something moved."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from cairn.controller.store.base import Put, Txn
from cairn.proto import kinds
from cairn.proto.v1.project_pb2 import Project
from cairn.proto.v1.vm_pb2 import CreateVmRequest, DeleteVmRequest, ExplainVmRequest, GetVmRequest, StopVmRequest
from cairn.proto.v1.vpc_pb2 import CreateVpcRequest, DeleteVpcRequest, Vpc, VpcSpec

from tests.conformance.api_stores import STORES, made_store
from tests.conformance.api_world import GIB, World, vm, world_on


@pytest.fixture(params=STORES)
async def world(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[World]:
    async with made_store(request) as store, world_on(store, tmp_path) as world:
        await world.furnish()
        yield world


async def code_of(call: Any) -> grpc.StatusCode:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value.code()


async def test_a_plan_shows_node_address_and_disk_and_makes_nothing(world: World) -> None:
    planned = await world.api.vms.CreateVm(CreateVmRequest(vm=vm(root_disk_bytes=20 * GIB), validate_only=True))
    plan = planned.plan
    assert plan.plan_id
    shown = {(change.action, change.kind): list(change.details) for change in plan.changes}
    assert shown["create", "port"] == ["address 10.1.1.2"]
    assert shown["create", "volume"] == ["disk 20 GiB"]
    assert shown["place", "vm"] == [f"on {plan.decision.node_name}"]
    assert plan.decision.considered == 2
    assert planned.status.node == plan.decision.node_name
    for kind in (kinds.VM, kinds.VOLUME, kinds.PORT, kinds.PLACEMENT, kinds.PORT_BINDING):
        assert await world.count(kind) == 0


async def test_applying_a_plan_does_exactly_that_once(world: World) -> None:
    request = CreateVmRequest(vm=vm(), validate_only=True)
    planned = await world.api.vms.CreateVm(request)
    apply = CreateVmRequest(vm=vm(), plan_id=planned.plan.plan_id, request_id=world.ids.uuid())
    made = await world.api.vms.CreateVm(apply)
    assert made.id == planned.id
    assert made.status.node == planned.plan.decision.node_name
    assert made.status.nics[0].address == "10.1.1.2"
    assert (await world.api.vms.CreateVm(apply)).id == made.id
    apply.request_id = world.ids.uuid()
    assert await code_of(world.api.vms.CreateVm(apply)) is grpc.StatusCode.ABORTED
    assert await world.count(kinds.VM) == 1


async def test_a_plan_that_something_overtook_is_aborted(world: World) -> None:
    planned = await world.api.vms.CreateVm(CreateVmRequest(vm=vm("web"), validate_only=True))
    await world.vm("other")
    await world.reconcile()
    apply = CreateVmRequest(vm=vm("web"), plan_id=planned.plan.plan_id)
    assert await code_of(world.api.vms.CreateVm(apply)) is grpc.StatusCode.ABORTED
    assert await world.count(kinds.VM) == 1


async def test_a_plan_fits_only_its_request_and_expires(world: World) -> None:
    planned = await world.api.vms.CreateVm(CreateVmRequest(vm=vm("web"), validate_only=True))
    other = CreateVmRequest(vm=vm("db"), plan_id=planned.plan.plan_id)
    assert await code_of(world.api.vms.CreateVm(other)) is grpc.StatusCode.INVALID_ARGUMENT
    world.clock.ahead = timedelta(minutes=11)
    apply = CreateVmRequest(vm=vm("web"), plan_id=planned.plan.plan_id)
    assert await code_of(world.api.vms.CreateVm(apply)) is grpc.StatusCode.ABORTED


async def test_a_plan_that_was_refused_is_not_applied_by_a_controller_whose_clock_is_behind(world: World) -> None:
    planned = await world.api.vms.CreateVm(CreateVmRequest(vm=vm("web"), validate_only=True))
    apply = CreateVmRequest(vm=vm("web"), plan_id=planned.plan.plan_id, request_id=world.ids.uuid())
    world.clock.ahead = timedelta(minutes=11)
    assert await code_of(world.api.vms.CreateVm(apply)) is grpc.StatusCode.ABORTED
    world.clock.ahead = timedelta()
    assert await code_of(world.api.vms.CreateVm(apply)) is grpc.StatusCode.ABORTED
    assert await world.count(kinds.VM) == 0


async def test_what_cannot_be_placed_says_what_would_make_it_fit(world: World) -> None:
    for number in range(4):
        await world.vm(f"big-{number}", memory_bytes=3 * GIB)
        await world.reconcile()
    planned = await world.api.vms.CreateVm(CreateVmRequest(vm=vm(memory_bytes=5 * GIB), validate_only=True))
    assert "no node fits" in planned.plan.say
    assert not planned.status.node
    made = await world.vm(memory_bytes=5 * GIB)
    await world.reconcile()
    explained = await world.api.vms.ExplainVm(ExplainVmRequest(id="web"))
    assert explained.vm == made.id
    assert explained.decision.say == explained.say == planned.plan.say
    assert explained.decision.filters[0].name == "memory"


async def test_why_it_is_where_it_is_is_looked_up_when_asked(world: World) -> None:
    made = await world.vm()
    await world.reconcile()
    assert not list(world.cache.view.ids(kinds.DECISION)), "no controller keeps them"
    assert await world.count(kinds.DECISION) == 1
    explained = await world.api.vms.ExplainVm(ExplainVmRequest(id="web"))
    assert explained.decision.considered == len(explained.decision.top) == 2
    assert explained.decision.top[0].node == explained.decision.node
    shown = await world.api.vms.GetVm(GetVmRequest(id=made.id))
    condition = next(each for each in shown.status.conditions if each.type == "Placed")
    assert (condition.reason, condition.message) == ("Placed", explained.decision.say)


async def test_a_controller_that_has_fallen_behind_explains_once_it_has_caught_up(world: World) -> None:
    await world.vm("web")
    await world.reconcile()
    async with world.behind():
        await world.store.commit(Txn("api").put(kinds.PROJECT, "prj-later", Project(id="prj-later", name="later")))
        await world.store.compact(await world.store.revision())
        answer = asyncio.create_task(explain(world))
        await asyncio.wait({answer}, timeout=0.3)
    assert (await answer).decision.node


async def explain(world: World) -> Any:
    return await world.api.vms.ExplainVm(ExplainVmRequest(id="web"))


async def test_a_decision_that_cannot_be_read_hides_nothing_else(world: World) -> None:
    made = await world.vm()
    await world.reconcile()
    key = kinds.DECISION.key(made.id)
    await world.store.commit(Txn("placement", puts={key: Put(b"\xff\xff")}, writers={key: "placement"}))
    explained = await world.api.vms.ExplainVm(ExplainVmRequest(id="web"))
    assert explained.decision.node_name in explained.decision.say
    assert not explained.decision.top


async def test_plans_of_deletes_and_power(world: World) -> None:
    await world.vm()
    planned = await world.api.vms.DeleteVm(DeleteVmRequest(id="web", validate_only=True))
    assert ("delete", "web") in {(change.action, change.name) for change in planned.plan.changes}
    assert (await world.api.vms.StopVm(StopVmRequest(id="web", validate_only=True))).plan.plan_id
    assert world.cache.view.get(kinds.VM, planned.id) is not None
    spec = VpcSpec(cidr="10.9.0.0/16")
    await world.api.vpcs.CreateVpc(CreateVpcRequest(vpc=Vpc(name="spare", spec=spec)))
    planned = await world.api.vpcs.DeleteVpc(DeleteVpcRequest(id="spare", validate_only=True))
    gone = await world.api.vpcs.DeleteVpc(DeleteVpcRequest(id="spare", plan_id=planned.plan.plan_id))
    assert gone.name == "spare"
    assert await world.count(kinds.VPC) == 1


def several(count: int, **spec: Any) -> CreateVmRequest:
    return CreateVmRequest(vm=vm("web", **spec), validate_only=True, count=count)


def part_of(number: int, plan_id: str, **spec: Any) -> CreateVmRequest:
    return CreateVmRequest(vm=vm(f"web-{number}", **spec), plan_id=plan_id)


async def test_a_plan_for_several_sees_itself_and_is_made_exactly_so(world: World) -> None:
    planned = (await world.api.vms.CreateVm(several(5, memory_bytes=2 * GIB))).plan
    assert planned.say == "all 5 fit"
    assert [part.name for part in planned.parts] == [f"web-{number}" for number in range(1, 6)]
    assert {part.node for part in planned.parts} == {"n1", "n2"}, "each sees what those before it take"
    assert await world.count(kinds.VM) == 0
    addresses = set()
    for number, part in enumerate(planned.parts, 1):
        assert part.plan_id == f"{planned.plan_id}-{number}"
        made = await world.api.vms.CreateVm(part_of(number, part.plan_id, memory_bytes=2 * GIB))
        assert (made.id, made.name, made.status.node) == (part.id, part.name, part.node)
        addresses |= {nic.address for nic in made.status.nics}
    assert len(addresses) == 5
    assert not await world.reconcile(), "nothing is left to be decided"


async def test_a_plan_for_several_ends_where_no_node_fits(world: World) -> None:
    """Two nodes: as many as fit are planned, and said why not the next."""
    planned = (await world.api.vms.CreateVm(several(20, memory_bytes=3 * GIB))).plan
    count = len(planned.parts)
    assert 2 <= count < 20
    assert planned.say.startswith(f"{count} of 20 fit; web-{count + 1}: no node fits")
    for number, part in enumerate(planned.parts, 1):
        await world.api.vms.CreateVm(part_of(number, part.plan_id, memory_bytes=3 * GIB))
    other = CreateVmRequest(vm=vm("db", memory_bytes=3 * GIB), validate_only=True, count=3)
    none = (await world.api.vms.CreateVm(other)).plan
    assert (len(none.parts), none.plan_id) == (0, "")
    assert none.say.startswith("0 of 3 fit")


async def test_parts_of_a_plan_stand_on_each_other(world: World) -> None:
    """Before those it stands on, or when somebody else takes room between two: ABORTED."""
    planned = (await world.api.vms.CreateVm(several(4))).plan
    third, fourth = (part_of(number, planned.parts[number - 1].plan_id) for number in (3, 4))
    assert await code_of(world.api.vms.CreateVm(third)) is grpc.StatusCode.ABORTED
    for number in (1, 2):
        await world.api.vms.CreateVm(part_of(number, planned.parts[number - 1].plan_id))
    await world.api.vms.CreateVm(third)
    for number in range(2):
        await world.vm(f"other-{number}")
        await world.reconcile()
    assert await code_of(world.api.vms.CreateVm(fourth)) is grpc.StatusCode.ABORTED
    assert await world.count(kinds.VM) == 5


async def test_a_count_is_for_plans_and_bounded(world: World) -> None:
    real = CreateVmRequest(vm=vm("web"), count=2)
    assert await code_of(world.api.vms.CreateVm(real)) is grpc.StatusCode.INVALID_ARGUMENT
    assert await code_of(world.api.vms.CreateVm(several(1000))) is grpc.StatusCode.INVALID_ARGUMENT
    await world.vm("web-3")
    assert await code_of(world.api.vms.CreateVm(several(3))) is grpc.StatusCode.ALREADY_EXISTS
