"""Images and VPCs shared with other projects: seen and used there, changed by nobody there, one name for one thing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from cairn.controller.model.sharing import ALL
from cairn.controller.store.memory import MemoryStore
from cairn.proto import kinds
from cairn.proto.v1 import image_pb2, project_pb2, subnet_pb2, vm_pb2, vpc_pb2
from cairn.proto.v1.auth_pb2 import CheckPermissionRequest
from cairn.proto.v1.common_pb2 import ChangeType
from cairn.proto.v1.image_pb2 import Image, ShareImageRequest
from cairn.proto.v1.project_pb2 import Project, Sharing
from cairn.proto.v1.vpc_pb2 import ShareVpcRequest

from tests.conformance.api_world import World, image, vm, world_on
from tests.conformance.test_api_access import new_vpc, refused

Code = grpc.StatusCode


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    """The furnished world (image demo, VPC home, subnet blue in the default project) and two more projects."""
    async with world_on(MemoryStore(), tmp_path) as world:
        await world.furnish()
        for name in ("red", "green"):
            await world.api.projects.CreateProject(project_pb2.CreateProjectRequest(project=Project(name=name)))
        yield world


async def share_image(world: World, *projects: str, all: bool = False, id: str = "demo", **more: Any) -> Image:
    return await world.api.images.ShareImage(ShareImageRequest(id=id, sharing=Sharing(projects=projects, all=all), **more))


def listed(project: str) -> image_pb2.ListImagesRequest:
    return image_pb2.ListImagesRequest(project=project)


async def names(bob: Any, project: str) -> list[str]:
    return [each.name for each in (await bob.images.ListImages(listed(project))).images]


async def test_a_shared_image_is_seen_and_used_there_and_not_changed(world: World) -> None:
    bob = await world.user("bob", "member", "red")
    carol = await world.user("carol", "member", "green")
    assert await names(bob, "red") == []
    assert (await refused(bob.images.GetImage(image_pb2.GetImageRequest(id="demo", project="red"))))[0] is Code.NOT_FOUND
    shared = await share_image(world, "red")
    assert await names(bob, "red") == ["demo"]
    found = await bob.images.GetImage(image_pb2.GetImageRequest(id="demo", project="red"))
    assert found.id == shared.id
    assert await names(carol, "green") == []
    assert (await refused(carol.images.GetImage(image_pb2.GetImageRequest(id=shared.id, project="green"))))[0] is Code.NOT_FOUND
    asked = vm("web", nics=[])
    asked.project = "red"
    made = await bob.vms.CreateVm(vm_pb2.CreateVmRequest(vm=asked))
    assert made.spec.image == shared.id
    asked_why = CheckPermissionRequest(permission="image.use", object=f"image/{shared.id}", project="red")
    why = await bob.auth.CheckPermission(asked_why)
    assert (why.allowed, "which is shared with project red" in why.say) == (True, True)
    code, _ = await refused(bob.images.DeleteImage(image_pb2.DeleteImageRequest(id=shared.id, project="red")))
    assert code is Code.PERMISSION_DENIED
    code, _ = await refused(bob.images.ShareImage(ShareImageRequest(id=shared.id, project="red")))
    assert code is Code.PERMISSION_DENIED


async def test_what_is_taken_back_is_gone_there_and_what_uses_it_goes_on(world: World) -> None:
    bob = await world.user("bob", "member", "red")
    shared = await share_image(world, "red")
    asked = vm("web", nics=[])
    asked.project = "red"
    await bob.vms.CreateVm(vm_pb2.CreateVmRequest(vm=asked))
    watch = bob.images.WatchImages(image_pb2.WatchImagesRequest(project="red"))
    seen: list[tuple[str, str]] = []
    async for each in watch:
        seen.append((ChangeType.Name(each.type).removeprefix("CHANGE_TYPE_"), each.image.name))
        if each.type == ChangeType.CHANGE_TYPE_BOOKMARK:
            await share_image(world)
        if each.type == ChangeType.CHANGE_TYPE_DELETE:
            break
    watch.cancel()
    assert seen[0] == ("UPSERT", "demo")
    assert seen[-1] == ("DELETE", "demo")
    assert await names(bob, "red") == []
    assert (await bob.vms.GetVm(vm_pb2.GetVmRequest(id="web", project="red"))).spec.image == shared.id
    asked.name = "second"
    assert (await refused(bob.vms.CreateVm(vm_pb2.CreateVmRequest(vm=asked))))[0] is Code.NOT_FOUND


async def test_cards_of_others_in_a_shared_vpc(world: World) -> None:
    bob = await world.user("bob", "member", "red")
    await share_image(world, "red")
    await world.vm("ours")
    await world.api.vpcs.ShareVpc(ShareVpcRequest(id="home", sharing=Sharing(projects=["red"])))
    asked = vm("his", nics=[vm_pb2.Nic(subnet="home/blue")])
    asked.project = "red"
    made = await bob.vms.CreateVm(vm_pb2.CreateVmRequest(vm=asked))
    port = world.cache.view.get(kinds.PORT, made.spec.nics[0].port)
    assert port is not None
    subnet = world.cache.view.get(kinds.SUBNET, port.spec.subnet)
    assert subnet is not None
    assert (subnet.name, subnet.project != port.project) == ("blue", True)
    assert [each.name for each in (await bob.subnets.ListSubnets(subnet_pb2.ListSubnetsRequest(project="red"))).subnets] == [
        "blue"
    ]
    # He sees their network, and nothing of theirs.
    assert [each.name for each in (await bob.vms.ListVms(vm_pb2.ListVmsRequest(project="-"))).vms] == ["his"]
    mine = subnet_pb2.Subnet(name="mine", project="red", spec=subnet_pb2.SubnetSpec(vpc="home", cidr="10.1.9.0/24"))
    code, _ = await refused(bob.subnets.CreateSubnet(subnet_pb2.CreateSubnetRequest(subnet=mine)))
    assert code is Code.PERMISSION_DENIED


async def test_who_does_not_see_a_project_takes_nothing_back_from_it(world: World) -> None:
    await share_image(world, "red", "green")
    ann = await world.user("ann", "project-admin", "default")
    await world.bind("viewer", "red", user="ann")
    seen = await ann.images.GetImage(image_pb2.GetImageRequest(id="demo"))
    assert len(seen.spec.sharing.projects) == 1, "of the other she is not told"
    await ann.images.ShareImage(ShareImageRequest(id="demo"))
    after = world.cache.view.get(kinds.IMAGE, seen.id)
    assert after is not None
    green = world.cache.view.get(kinds.NAME, "-/project/green")
    assert green is not None
    assert list(after.spec.sharing.projects) == [green.id]


async def test_it_is_taken_back_from_a_project_whose_record_cannot_be_read(world: World) -> None:
    shared = await share_image(world, "red")
    red = shared.spec.sharing.projects[0]
    await world.spoil(kinds.PROJECT, red)
    seen = await world.api.images.GetImage(image_pb2.GetImageRequest(id="demo"))
    assert list(seen.spec.sharing.projects) == [red]
    await world.api.images.ShareImage(ShareImageRequest(id="demo"))
    after = world.cache.view.get(kinds.IMAGE, shared.id)
    assert after is not None
    assert not after.spec.HasField("sharing"), "he may see that project, and has left it out"


async def test_a_name_means_one_thing_in_a_project(world: World) -> None:
    await world.api.vpcs.CreateVpc(new_vpc("home", "red"))
    asked = ShareVpcRequest(id="home", sharing=Sharing(projects=["red"]))
    assert (await refused(world.api.vpcs.ShareVpc(asked)))[0] is Code.ALREADY_EXISTS
    await world.api.vpcs.ShareVpc(ShareVpcRequest(id="home", sharing=Sharing(projects=["green"])))
    assert (await refused(world.api.vpcs.CreateVpc(new_vpc("home", "green"))))[0] is Code.ALREADY_EXISTS
    # Under another name it is that there, too.
    renamed = vpc_pb2.UpdateVpcRequest(vpc=vpc_pb2.Vpc(id="home", name="house"), allow_stale=True)
    renamed.vpc.id = (await world.api.vpcs.GetVpc(vpc_pb2.GetVpcRequest(id="home"))).id
    renamed.update_mask.paths.append("name")
    await world.api.vpcs.UpdateVpc(renamed)
    await world.api.vpcs.CreateVpc(new_vpc("home", "green"))
    assert (await refused(world.api.vpcs.CreateVpc(new_vpc("house", "green"))))[0] is Code.ALREADY_EXISTS


async def test_shared_with_all_projects_also_those_to_come(world: World) -> None:
    bob = await world.user("bob", "member", "red")
    await share_image(world, all=True)
    assert await names(bob, "red") == ["demo"]
    await world.api.projects.CreateProject(project_pb2.CreateProjectRequest(project=Project(name="late")))
    dave = await world.user("dave", "viewer", "late")
    assert await names(dave, "late") == ["demo"]
    own = image("demo")
    own.project = "late"
    code, _ = await refused(world.api.images.CreateImage(image_pb2.CreateImageRequest(image=own)))
    assert code is Code.ALREADY_EXISTS
    claim = world.cache.view.get(kinds.NAME, f"{ALL}/image/demo")
    assert claim is not None
    assert not claim.HasField("reserve_time")
    await share_image(world)
    assert world.cache.view.get(kinds.NAME, f"{ALL}/image/demo") is None
    await world.api.images.CreateImage(image_pb2.CreateImageRequest(image=own))
    code, say = await refused(share_image(world, all=True))
    assert (code, "another project has image 'demo'" in say) == (Code.ALREADY_EXISTS, True)


async def test_of_one_name_made_and_shared_with_all_at_a_time_one_thing_is_left(world: World) -> None:
    for number in range(8):
        ours, theirs = new_vpc(f"v{number}"), new_vpc(f"v{number}", "red")
        await world.api.vpcs.CreateVpc(ours)
        asked = ShareVpcRequest(id=f"v{number}", sharing=Sharing(all=True))
        await asyncio.gather(world.api.vpcs.ShareVpc(asked), world.api.vpcs.CreateVpc(theirs), return_exceptions=True)
        view = world.cache.view
        called = [each for each in view.all(kinds.VPC) if each.name == f"v{number}"]
        assert len(called) == 1 or not any(each.spec.sharing.all for each in called)


async def test_a_plan_to_share_with_all_holds_what_it_shows(world: World) -> None:
    asked = ShareVpcRequest(id="home", sharing=Sharing(all=True), validate_only=True)
    plan = (await world.api.vpcs.ShareVpc(asked)).plan.plan_id
    assert (await refused(world.api.vpcs.CreateVpc(new_vpc("home", "red"))))[0] is Code.ALREADY_EXISTS
    asked.validate_only, asked.plan_id = False, plan
    assert (await world.api.vpcs.ShareVpc(asked)).spec.sharing.all


async def test_a_name_reserved_by_one_who_died_is_free_again(world: World) -> None:
    from cairn.controller.reconcilers.garbage import RESERVED, Garbage
    from cairn.controller.store.base import Txn
    from cairn.proto.seams import timestamp
    from cairn.proto.v1.cluster_pb2 import NameClaim

    id = (await world.api.vpcs.GetVpc(vpc_pb2.GetVpcRequest(id="home"))).id
    now = world.core.clock.now()
    left = NameClaim(kind="vpc", project=ALL, name="home", id=id, reserve_time=timestamp(now))
    await world.commit(Txn("api").put(kinds.NAME, f"{ALL}/vpc/home", left))
    look = Garbage().reconcile
    assert look(world.cache.view, f"name/{ALL}/vpc/home", now).txn is None
    outcome = look(world.cache.view, f"name/{ALL}/vpc/home", now + RESERVED + timedelta(seconds=1))
    assert outcome.txn is not None
    await world.commit(outcome.txn)
    await world.api.vpcs.CreateVpc(new_vpc("home", "red"))


async def test_a_project_that_is_deleted_is_shared_with_no_more(world: World) -> None:
    shared = await share_image(world, "red", "green")
    await world.api.projects.DeleteProject(project_pb2.DeleteProjectRequest(id="red"))
    after = world.cache.view.get(kinds.IMAGE, shared.id)
    assert after is not None
    assert len(after.spec.sharing.projects) == 1
    held = [each.project for each in world.cache.view.all(kinds.NAME) if each.id == shared.id]
    assert sorted(held) == sorted([after.project, *after.spec.sharing.projects])


async def test_what_cannot_be_shared(world: World) -> None:
    assert (await refused(share_image(world, "default")))[0] is Code.INVALID_ARGUMENT
    assert (await refused(share_image(world, "nowhere")))[0] is Code.NOT_FOUND
    code, say = await refused(share_image(world, *(f"p{number}" for number in range(33))))
    assert (code, "sharing.projects" in say) == (Code.INVALID_ARGUMENT, True)
    asked = new_vpc("mine")
    asked.vpc.spec.sharing.all = True
    assert (await refused(world.api.vpcs.CreateVpc(asked)))[0] is Code.INVALID_ARGUMENT
