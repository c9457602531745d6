"""Projects: made, changed, and deleted when nothing lives in them, also while somebody makes something there."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
from cairn.controller.store.base import Txn
from cairn.controller.store.memory import MemoryStore
from cairn.proto import kinds
from cairn.proto.v1 import event_pb2, project_pb2, quota_pb2, vpc_pb2
from cairn.proto.v1.cluster_pb2 import NameClaim
from cairn.proto.v1.common_pb2 import ChangeType
from cairn.proto.v1.project_pb2 import Project, ProjectSpec
from cairn.proto.v1.quota_pb2 import Quota

from tests.conformance.api_world import World, world_on
from tests.conformance.test_api_access import new_vpc, refused

Code = grpc.StatusCode


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with world_on(MemoryStore(), tmp_path) as world:
        await world.furnish()
        yield world


async def made(world: World, name: str) -> Project:
    asked = project_pb2.CreateProjectRequest(project=Project(name=name, spec=ProjectSpec(description="a try")))
    return await world.api.projects.CreateProject(asked)


async def test_a_project_is_made_changed_and_deleted(world: World) -> None:
    red = await made(world, "red")
    code, say = await refused(made(world, "red"))
    assert (code, "exists already" in say) == (Code.ALREADY_EXISTS, True)
    red.spec.description = "for the red team"
    asked = project_pb2.UpdateProjectRequest(project=red)
    asked.update_mask.paths.append("spec.description")
    assert (await world.api.projects.UpdateProject(asked)).spec.description == "for the red team"
    vpc = await world.api.vpcs.CreateVpc(new_vpc("mine", "red"))
    code, say = await refused(world.api.projects.DeleteProject(project_pb2.DeleteProjectRequest(id="red")))
    assert (code, "1 VPC (mine)" in say) == (Code.FAILED_PRECONDITION, True)
    await world.api.vpcs.DeleteVpc(vpc_pb2.DeleteVpcRequest(id=vpc.id))
    await world.user("bob", "member", "red")
    await world.api.projects.DeleteProject(project_pb2.DeleteProjectRequest(id="red"))
    assert (await refused(world.api.vpcs.CreateVpc(new_vpc("mine", "red"))))[0] is Code.NOT_FOUND
    assert await world.count(kinds.BINDING) == 0, "what was bound in it ended"


async def test_the_default_project_stays(world: World) -> None:
    code, say = await refused(world.api.projects.DeleteProject(project_pb2.DeleteProjectRequest(id="default")))
    assert (code, "it stays" in say) == (Code.FAILED_PRECONDITION, True)


async def test_what_is_made_in_a_project_that_is_deleted_at_that_moment_is_in_none(world: World) -> None:
    for round in range(10):
        await made(world, f"p{round}")
        calls = [
            world.api.projects.DeleteProject(project_pb2.DeleteProjectRequest(id=f"p{round}")),
            *(world.api.vpcs.CreateVpc(new_vpc(f"v{round}-{number}", f"p{round}")) for number in range(3)),
        ]
        await asyncio.gather(*calls, return_exceptions=True)
        view = world.cache.view
        orphans = [vpc.name for vpc in view.all(kinds.VPC) if view.get(kinds.PROJECT, vpc.project) is None]
        assert not orphans


async def test_a_project_made_a_moment_ago_is_found_by_a_controller_that_has_not_heard_of_it(world: World) -> None:
    async with world.behind():
        red = Project(id="prj-red00000", name="red")
        claim = NameClaim(kind="project", project="-", name="red", id=red.id)
        quota = Quota(id="quo-red00000", project=red.id)
        txn = Txn("api").create(kinds.PROJECT, red.id, red).create(kinds.NAME, "-/project/red", claim)
        await world.store.commit(txn.create(kinds.QUOTA, quota.id, quota))
        asked = asyncio.gather(
            world.api.vpcs.ListVpcs(vpc_pb2.ListVpcsRequest(project="red")),
            world.api.quotas.GetQuota(quota_pb2.GetQuotaRequest(project="red")),
            anext(aiter(world.api.vpcs.WatchVpcs(vpc_pb2.WatchVpcsRequest(project="red")))),
            anext(aiter(world.api.events.WatchEvents(event_pb2.WatchEventsRequest(project="red")))),
        )
        await asyncio.sleep(0)
    listed, found, *first = await asyncio.wait_for(asked, 10)
    assert (len(listed.vpcs), found.id) == (0, quota.id)
    assert all(each.type == ChangeType.CHANGE_TYPE_BOOKMARK for each in first)
