"""Mutations that arrive together share commits, and nobody is harmed by a neighbour; on the memory store and on real etcd."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from cairn.controller.api import commits, nouns
from cairn.controller.api.decision import Decided
from cairn.controller.model.permits import Caller
from cairn.controller.store.base import Conflict, Full, Indeterminate, LeaseLost, Store, Txn, Unavailable
from cairn.proto import kinds
from cairn.proto.errors import Exhausted
from cairn.proto.rpc import status_details
from cairn.proto.v1.vm_pb2 import CreateVmRequest, DeleteVmRequest, GetVmRequest, StartVmRequest, UpdateVmRequest, Vm, VmSpec
from cairn.proto.v1.vpc_pb2 import CreateVpcRequest, DeleteVpcRequest, Vpc, VpcSpec
from google.protobuf.field_mask_pb2 import FieldMask
from google.rpc.error_details_pb2 import QuotaFailure

from tests.conformance.api_stores import STORES, made_store
from tests.conformance.api_world import World, vm, world_on


class Counted:
    """A store that counts commits, and fails or precedes the next that touch a kind as told."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.commits = 0
        self.revisions = 0
        # Turns of the event loop that a commit takes at least.
        self.turns = 0
        self.faults: list[str] = []
        # Done just before the next commit, by somebody else.
        self.before: list[Txn] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def revision(self) -> int:
        self.revisions += 1
        return await self._store.revision()

    async def commit(self, txn: Txn) -> int:
        self.commits += 1
        for _ in range(self.turns):
            await asyncio.sleep(0)
        while self.before:
            await self._store.commit(self.before.pop())
        fault = self.faults.pop(0) if self.faults else ""
        if fault == "conflict":
            raise Conflict(["/somebody/else"])
        if fault == "lease":
            raise LeaseLost("gone")
        if fault == "full":
            raise Full("NOSPACE on member m1, 2 GiB")
        if fault == "unavailable":
            raise Unavailable("no member answers")
        if fault == "lost request":
            raise Indeterminate("the request was lost")
        revision = await self._store.commit(txn)
        if fault == "lost answer":
            raise Indeterminate("the answer was lost")
        return revision


@pytest.fixture(params=STORES)
async def world(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[World]:
    async with made_store(request) as store, world_on(Counted(store), tmp_path) as world:
        await world.furnish()
        yield world


def counted(world: World) -> Counted:
    assert isinstance(world.store, Counted)
    return world.store


def vpc(number: int) -> CreateVpcRequest:
    return CreateVpcRequest(vpc=Vpc(name=f"v{number}", spec=VpcSpec(cidr="10.2.0.0/16")))


async def test_many_vpcs_at_once_take_few_commits(world: World) -> None:
    """Each takes the lowest free VNI: decided apart, all but one of each moment would conflict."""
    before = counted(world).commits
    made = await asyncio.gather(*(world.api.vpcs.CreateVpc(vpc(number)) for number in range(256)))
    assert len({each.spec.vni for each in made}) == len({each.id for each in made}) == 256
    assert counted(world).commits - before <= 300


async def test_those_who_ask_again_when_answered_share_commits(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Answered together, they ask again one by one: who decides waits for them, a moment."""
    monkeypatch.setattr(commits, "GATHER_S", 0.5)
    counted(world).turns = 100
    before = counted(world).commits

    async def caller(number: int) -> None:
        for turn in range(8):
            await world.api.vpcs.CreateVpc(vpc(8 * number + turn))

    await asyncio.gather(*(caller(number) for number in range(16)))
    assert counted(world).commits - before <= 40, "8 rounds of 16 calls; each alone would be 128"


async def test_who_is_alone_waits_for_nobody(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commits, "GATHER_S", 0.0)
    await asyncio.gather(*(world.api.vpcs.CreateVpc(vpc(number)) for number in range(3)))
    await world.api.vpcs.CreateVpc(vpc(3))
    async with asyncio.timeout(15):
        monkeypatch.setattr(commits, "GATHER_S", 30.0)
        for number in range(4, 8):
            await world.api.vpcs.CreateVpc(vpc(number))


@pytest.mark.parametrize("fault", ["conflict", "lease", "lost request", "lost answer"])
async def test_what_befalls_a_commit_befalls_no_call(world: World, fault: str) -> None:
    counted(world).faults = [fault, fault]
    made = await asyncio.gather(*(world.api.vms.CreateVm(CreateVmRequest(vm=vm(f"web-{n}"))) for n in range(12)))
    assert len({each.id for each in made}) == 12
    assert await world.count(kinds.VM) == 12
    assert await world.count(kinds.VOLUME) == 12


@pytest.mark.parametrize(("fault", "times"), [("conflict", 1), ("unavailable", 0), ("lost answer", 1), ("lost request", 2)])
async def test_the_first_certificate_is_counted_when_its_change_is_committed(world: World, fault: str, times: int) -> None:
    """Not for each time it is decided; in doubt, rather twice than not at all."""
    used: list[int] = []
    world.core.mutations.root_used = lambda: used.append(1)
    counted(world).faults = [fault]
    await asyncio.gather(world.api.vms.CreateVm(CreateVmRequest(vm=vm("web"))), return_exceptions=True)
    assert len(used) == times


async def test_a_store_that_does_not_answer_is_told_to_all(world: World) -> None:
    counted(world).faults = ["unavailable"] * 50
    calls = (world.api.vms.CreateVm(CreateVmRequest(vm=vm(f"web-{n}"))) for n in range(12))
    answers = await asyncio.gather(*calls, return_exceptions=True)
    assert {error.code() for error in answers if isinstance(error, grpc.aio.AioRpcError)} == {grpc.StatusCode.UNAVAILABLE}
    counted(world).faults = []
    await world.vm("after")


async def test_a_full_store_is_told_by_name_to_each_kind_of_call(world: World) -> None:
    """Not as a passing fault, which clients would repeat for half a minute."""
    await world.vm("web")
    plan = CreateVmRequest(vm=vm("planned"), validate_only=True)
    calls = (
        lambda: world.api.vms.CreateVm(CreateVmRequest(vm=vm("db"))),
        lambda: world.api.vms.CreateVm(plan),
        lambda: world.api.vms.DeleteVm(DeleteVmRequest(id="web")),
    )
    for call in calls:
        counted(world).faults = ["full"] * 50
        with pytest.raises(grpc.aio.AioRpcError, match="the store is full: NOSPACE on member m1, 2 GiB") as caught:
            await call()
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        (quota,) = status_details(caught.value, QuotaFailure)
        assert quota.violations[0].subject == "store"
        assert len(counted(world).faults) >= 48, "asked once, not again and again"
    counted(world).faults = []
    assert (await world.api.vms.GetVm(GetVmRequest(id="web"))).name == "web"


async def test_a_store_that_was_full_is_no_answer_to_the_same_request_later(world: World) -> None:
    """A network that was marked when the store became full can be deleted once there is room, by the request asked again."""
    await world.api.vpcs.CreateVpc(vpc(1))
    request = DeleteVpcRequest(id="v1", request_id=world.ids.uuid())
    counted(world).faults = ["", "full", "full"]
    with pytest.raises(grpc.aio.AioRpcError, match="the store is full"):
        await world.api.vpcs.DeleteVpc(request)
    assert not counted(world).faults
    assert (await world.api.vpcs.DeleteVpc(request)).name == "v1"


async def test_a_refusal_harms_no_neighbour(world: World) -> None:
    requests = [CreateVmRequest(vm=vm(f"web-{n}", image="none" if n % 3 == 0 else "demo")) for n in range(30)]
    answers = await asyncio.gather(*(world.api.vms.CreateVm(each) for each in requests), return_exceptions=True)
    refused = [error.code() for error in answers if isinstance(error, grpc.aio.AioRpcError)]
    assert refused == [grpc.StatusCode.NOT_FOUND] * 10
    assert await world.count(kinds.VM) == 20


async def test_what_moved_for_one_moves_no_other(world: World) -> None:
    """Somebody writes one call's VM between decision and commit: all are decided again, and each succeeds once."""
    made = [await world.vm(f"web-{n}") for n in range(6)]
    record = world.cache.view.record(kinds.VM, made[0].id)
    assert record is not None
    counted(world).before = [Txn("api").put(kinds.VM, made[0].id, record.message)]
    started = await asyncio.gather(*(world.api.vms.StartVm(StartVmRequest(id=each.id)) for each in made))
    assert [each.spec.power_generation for each in started] == [2] * 6


async def test_calls_about_one_object_follow_each_other(world: World) -> None:
    made = await world.vm("web")
    started = await asyncio.gather(*(world.api.vms.StartVm(StartVmRequest(id="web")) for _ in range(8)))
    assert sorted(each.spec.power_generation for each in started) == list(range(2, 10))
    assert all(each.etag == str(each.revision) for each in started)
    assert len({each.revision for each in started}) == 8, "each shows the object as it left it"
    new = Vm(id=made.id, etag=max(started, key=lambda each: each.revision).etag, spec=VmSpec(cpus=2))
    request = UpdateVmRequest(vm=new, update_mask=FieldMask(paths=["spec.cpus"]))
    answers = await asyncio.gather(*(world.api.vms.UpdateVm(request) for _ in range(4)), return_exceptions=True)
    codes = [error.code() for error in answers if isinstance(error, grpc.aio.AioRpcError)]
    assert codes == [grpc.StatusCode.ABORTED] * 3, "one etag lets one change through"


async def test_made_and_deleted_at_once(world: World) -> None:
    """A delete that may come first, or right after, finds nothing or the whole VM."""
    for number in range(5):
        create = world.api.vms.CreateVm(CreateVmRequest(vm=vm(f"web-{number}")))
        delete = world.api.vms.DeleteVm(DeleteVmRequest(id=f"web-{number}"))
        made, gone = await asyncio.gather(create, delete, return_exceptions=True)
        assert not isinstance(made, BaseException)
        if isinstance(gone, grpc.aio.AioRpcError):
            assert gone.code() is grpc.StatusCode.NOT_FOUND
        else:
            assert gone.id == made.id


async def test_repeats_at_the_same_moment_are_one(world: World) -> None:
    ids = [world.ids.uuid() for _ in range(5)]
    requests = [CreateVmRequest(vm=vm(f"web-{n}"), request_id=id) for n, id in enumerate(ids)] * 4
    made = await asyncio.gather(*(world.api.vms.CreateVm(each) for each in requests))
    assert len({each.id for each in made}) == 5
    assert await world.count(kinds.REQUEST) == 5 + len({"image", "vpc", "subnet"})
    assert not list(world.cache.view.ids(kinds.REQUEST)), "no controller keeps them"


async def test_a_change_that_fits_no_commit_says_what_is_large(world: World) -> None:
    await world.vm("web")
    core = world.core

    def decide(view: Any, caller: Any) -> Any:
        huge = Vm(id="i-00000big", name="big" * 700_000)
        return Decided(Txn("api").create(kinds.VM, huge.id, huge), nouns.VM, huge.id, "big")

    request = CreateVmRequest(vm=vm("big"))
    with pytest.raises(Exhausted) as caught:
        await core.mutations.run(request, Caller("user", "admin"), decide)
    assert "the largest are vm/i-00000big with 2 MiB; give less" in caught.value.say
    await world.vm("small")


async def test_those_who_want_the_newest_together_ask_the_store_once(world: World) -> None:
    before = counted(world).revisions
    await asyncio.gather(*(world.core.mutations.freshen() for _ in range(100)))
    assert counted(world).revisions - before <= 2
