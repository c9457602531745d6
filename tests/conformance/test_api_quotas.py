"""Quotas: exact whoever races, counted as the objects are, said before and after."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from cairn.controller.api.api_tokens import TOKENS_MAX
from cairn.controller.model.quotas import DEFAULTS_ID, charge, fence, quota_id
from cairn.controller.store.base import Conflict, Txn
from cairn.controller.store.memory import MemoryStore
from cairn.controller.store.sums import COUNTED, added, holders
from cairn.proto import kinds
from cairn.proto.errors import Exhausted
from cairn.proto.v1 import project_pb2, quota_pb2, vm_pb2, volume_pb2, vpc_pb2
from cairn.proto.v1.api_token_pb2 import ApiToken, ApiTokenSpec, CreateApiTokenRequest, DeleteApiTokenRequest
from cairn.proto.v1.common_pb2 import ChangeType
from cairn.proto.v1.project_pb2 import Project
from cairn.proto.v1.quota_pb2 import Quota
from cairn.proto.v1.volume_pb2 import Volume, VolumeSpec

from tests.conformance.api_world import MIB, Stubs, World, vm, world_on
from tests.conformance.test_api_access import new_vpc, refused

Code = grpc.StatusCode
DEFAULT = "prj-default0"


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with world_on(MemoryStore(), tmp_path) as world:
        await world.furnish()
        yield world


async def limited(world: World, id: str = "", **limits: int) -> Quota:
    """Set limits of the default project, or the defaults."""
    quota = Quota(id=id)
    quota.spec.limits.update(limits)
    request = quota_pb2.UpdateQuotaRequest(quota=quota, allow_stale=True)
    request.update_mask.paths.extend(f"spec.limits.{name}" for name in limits)
    return await world.api.quotas.UpdateQuota(request)


async def shown(world: World, project: str = "") -> Quota:
    return await world.api.quotas.GetQuota(quota_pb2.GetQuotaRequest(project=project))


def recount(world: World, project: str = DEFAULT) -> dict[str, int]:
    """What a project has, from all its records."""
    found: dict[str, int] = {}
    for name, counted in COUNTED.items():
        for record in world.cache.view.all(kinds.BY_NAME[name]):
            message: Any = record
            if project in holders(name, message):
                added(found, counted(message))
    return {name: amount for name, amount in found.items() if amount}


def new_volume(name: str, mebibytes: int = 1) -> volume_pb2.CreateVolumeRequest:
    return volume_pb2.CreateVolumeRequest(volume=Volume(name=name, spec=VolumeSpec(size_bytes=mebibytes * MIB)))


async def unless_exhausted(call: Any) -> Any:
    """Return the answer, None when the quota refuses it."""
    try:
        return await call
    except grpc.aio.AioRpcError as error:
        if error.code() is not Code.RESOURCE_EXHAUSTED:
            raise
        return None


async def test_what_would_be_too_much_is_refused_and_says_so(world: World) -> None:
    await limited(world, volumes=1)
    first = await world.api.volumes.CreateVolume(new_volume("a"))
    code, say = await refused(world.api.volumes.CreateVolume(new_volume("b")))
    assert code is Code.RESOURCE_EXHAUSTED
    assert say.startswith("quota of project default: it has 1 of 1 volumes, 1 more asked for")
    quota = await shown(world)
    assert (quota.status.used["volumes"], quota.status.limits["volumes"]) == (1, 1)
    assert quota.status.say == "full: 1 of 1 volumes"
    await world.api.volumes.DeleteVolume(volume_pb2.DeleteVolumeRequest(id=first.id))
    code, _ = await refused(world.api.volumes.CreateVolume(new_volume("b")))
    assert code is Code.RESOURCE_EXHAUSTED, "what can be brought back has its bytes still"


async def test_a_plan_says_what_it_takes(world: World) -> None:
    await limited(world, vms=3, cpus=8)
    answer = await world.api.vms.CreateVm(vm_pb2.CreateVmRequest(vm=vm("web"), validate_only=True))
    (takes,) = [each for each in answer.plan.changes if each.kind == "quota"]
    assert (takes.action, takes.name) == ("allocate", "default")
    assert "1 vms, then 1 of 3" in takes.details


async def test_a_vm_that_is_deleted_gives_its_processors_back_and_takes_them_again(world: World) -> None:
    made = await world.vm("web")
    cpus = made.spec.cpus
    await limited(world, cpus=cpus, vms=2)
    code, _ = await refused(world.api.vms.CreateVm(vm_pb2.CreateVmRequest(vm=vm("other"))))
    assert code is Code.RESOURCE_EXHAUSTED
    await world.api.vms.DeleteVm(vm_pb2.DeleteVmRequest(id=made.id))
    quota = await shown(world)
    assert (quota.status.used["vms"], quota.status.used["cpus"]) == (1, 0)
    await world.vm("other")
    code, say = await refused(world.api.vms.UndeleteVm(vm_pb2.UndeleteVmRequest(id=made.id)))
    assert (code, "cpus" in say) == (Code.RESOURCE_EXHAUSTED, True)


async def test_growing_counts(world: World) -> None:
    made = await world.api.volumes.CreateVolume(new_volume("a", 4))
    await limited(world, **{"volume_bytes.local": 6 * MIB})
    grown = volume_pb2.UpdateVolumeRequest(volume=Volume(id=made.id, spec=VolumeSpec(size_bytes=8 * MIB)), allow_stale=True)
    grown.update_mask.paths.append("spec.size_bytes")
    code, say = await refused(world.api.volumes.UpdateVolume(grown))
    assert (code, "it has 4 MiB of 6 MiB volume_bytes.local, 4 MiB more asked for" in say) == (Code.RESOURCE_EXHAUSTED, True)


async def test_limits_are_the_projects_or_the_defaults(world: World) -> None:
    await world.api.projects.CreateProject(project_pb2.CreateProjectRequest(project=Project(name="red")))
    await limited(world, DEFAULTS_ID, vpcs=1)
    await limited(world, vpcs=-1)
    await world.api.vpcs.CreateVpc(new_vpc("a"))
    await world.api.vpcs.CreateVpc(new_vpc("a", "red"))
    assert (await refused(world.api.vpcs.CreateVpc(new_vpc("b", "red"))))[0] is Code.RESOURCE_EXHAUSTED
    assert (await shown(world, "red")).status.limits == {"vpcs": 1}
    # Lowered below what there is: that stays.
    await limited(world, quota_id(world.cache.view.get(kinds.NAME, "-/project/red").id), vpcs=0)  # type: ignore[union-attr]
    assert (await shown(world, "red")).status.used["vpcs"] == 1


async def test_what_is_no_limit_is_refused(world: World) -> None:
    assert (await refused(limited(world, nonsense=1)))[0] is Code.INVALID_ARGUMENT
    assert (await refused(limited(world, vms=-2)))[0] is Code.INVALID_ARGUMENT
    bob = await world.user("bob", "project-admin", "default")
    request = quota_pb2.UpdateQuotaRequest(quota=Quota(), allow_stale=True)
    request.quota.spec.limits["vms"] = 100
    assert (await refused(bob.quotas.UpdateQuota(request)))[0] is Code.PERMISSION_DENIED
    assert (await bob.quotas.GetQuota(quota_pb2.GetQuotaRequest())).status.project_name == "default"


async def test_sixty_four_race_for_the_last_unit(world: World) -> None:
    before = len(list(world.cache.view.ids(kinds.VPC)))
    await limited(world, vpcs=before + 1)
    answers = await asyncio.gather(
        *(world.api.vpcs.CreateVpc(new_vpc(f"v{number}")) for number in range(64)), return_exceptions=True
    )
    made = [each for each in answers if not isinstance(each, BaseException)]
    assert len(made) == 1
    assert all(each.code() is Code.RESOURCE_EXHAUSTED for each in answers if isinstance(each, grpc.aio.AioRpcError))


async def test_two_controllers_that_do_not_hear_of_each_other_conflict(world: World) -> None:
    await limited(world, vpcs=2)
    view = world.cache.view

    def adding(number: int) -> Txn:
        vpc = vpc_pb2.Vpc(id=f"rtr-race{number:04d}", name=f"race{number}", project=DEFAULT)
        txn = Txn("api").create(kinds.VPC, vpc.id, vpc)
        charge(view, txn)
        return txn

    first, second = adding(1), adding(2)
    await world.store.commit(first)
    with pytest.raises(Conflict):
        await world.store.commit(second)


async def test_a_watch_tells_of_what_is_used(world: World) -> None:
    watch = world.api.quotas.WatchQuotas(quota_pb2.WatchQuotasRequest())
    seen: list[int] = []
    async for each in watch:
        if each.type == ChangeType.CHANGE_TYPE_BOOKMARK:
            if not seen or seen[-1] == 0:
                await world.api.volumes.CreateVolume(new_volume("a"))
        elif each.quota.project == DEFAULT:
            seen.append(each.quota.status.used["volumes"])
            if seen[-1] == 1:
                break
    watch.cancel()
    assert seen == [0, 1]


async def test_what_is_used_equals_a_recount_whatever_was_done(world: World) -> None:
    rng = random.Random(7)
    volumes: list[str] = []
    await limited(world, volumes=6)
    for number in range(60):
        match rng.choice(("make", "delete", "purge", "vm")):
            case "make":
                request = new_volume(f"v{number}", rng.randint(1, 9))
                made = await unless_exhausted(world.api.volumes.CreateVolume(request))
                volumes += [made.id] if made is not None else []
            case "vm":
                await unless_exhausted(world.vm(f"vm{number}"))
            case how if volumes:
                id = volumes.pop(rng.randrange(len(volumes)))
                await world.api.volumes.DeleteVolume(volume_pb2.DeleteVolumeRequest(id=id, purge=how == "purge"))
        view = world.cache.view
        assert {name: amount for name, amount in view.amounts(DEFAULT).items() if amount} == recount(world)
        assert view.amounts(DEFAULT).get("volumes", 0) <= 6
        fork = view.fork(Txn("api").delete(kinds.VOLUME, volumes[0])) if volumes else view
        assert fork.amounts(DEFAULT).get("volumes", 0) == view.amounts(DEFAULT).get("volumes", 0) - bool(volumes)


async def test_a_decision_on_what_a_neighbour_leaves(world: World) -> None:
    """Two in one transaction: the second is decided on what the first leaves."""
    await limited(world, vpcs=len(list(world.cache.view.ids(kinds.VPC))) + 1)
    view = world.cache.view
    first = Txn("api").create(kinds.VPC, "rtr-a0000000", vpc_pb2.Vpc(id="rtr-a0000000", project=DEFAULT))
    charge(view, first)
    second = Txn("api").create(kinds.VPC, "rtr-b0000000", vpc_pb2.Vpc(id="rtr-b0000000", project=DEFAULT))
    with pytest.raises(Exhausted):
        charge(view.fork(first), second)


async def test_a_token_counts_in_each_project_it_is_narrowed_to(world: World) -> None:
    await world.api.projects.CreateProject(project_pb2.CreateProjectRequest(project=Project(name="red")))
    await limited(world, DEFAULTS_ID, tokens=2)
    bob = await world.user("bob", "member", "default")
    await token(bob)
    await token(bob, "default")
    made = await token(bob, "default")
    assert (await shown(world)).status.used["tokens"] == 2
    assert (await shown(world, "red")).status.used["tokens"] == 0
    code, say = await refused(token(bob, "default"))
    assert (code, "it has 2 of 2 tokens, 1 more asked for" in say) == (Code.RESOURCE_EXHAUSTED, True)
    await token(bob)
    await bob.tokens.DeleteApiToken(DeleteApiTokenRequest(id=made.id))
    await token(bob, "default")
    assert recount(world)["tokens"] == 2


async def test_many_race_for_the_last_token_a_user_may_have(world: World) -> None:
    bob = await world.user("bob", "member", "default")
    await asyncio.gather(*(token(bob) for _ in range(TOKENS_MAX - 1)))
    answers = await asyncio.gather(*(token(bob) for _ in range(8)), return_exceptions=True)
    assert sum(not isinstance(each, BaseException) for each in answers) == 1
    first, second = (Txn("api") for _ in range(2))
    for txn in (first, second):
        fence(world.cache.view, txn, "usr-x")
    await world.store.commit(first)
    with pytest.raises(Conflict):
        await world.store.commit(second)


async def token(stubs: Stubs, *projects: str) -> ApiToken:
    asked = CreateApiTokenRequest(api_token=ApiToken(spec=ApiTokenSpec(projects=projects)))
    return (await stubs.tokens.CreateApiToken(asked)).api_token
