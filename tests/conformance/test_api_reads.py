"""Lists pinned to a revision, filters, watches, and who may read."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from cairn.controller.api.feed import Feed
from cairn.controller.store.base import Txn
from cairn.proto import kinds
from cairn.proto.pki import CONTROLLER_SERVER_NAME, Authority, Identity
from cairn.proto.rpc import GrpcTransport, StaticCredentials
from cairn.proto.v1.agent_pb2 import Report, VmReport
from cairn.proto.v1.common_pb2 import CHANGE_TYPE_BOOKMARK, CHANGE_TYPE_DELETE, CHANGE_TYPE_UPSERT
from cairn.proto.v1.project_pb2 import GetProjectRequest, ListProjectsRequest
from cairn.proto.v1.vm_pb2 import DeleteVmRequest, GetVmRequest, ListVmsRequest, VmStatus, WatchVmsRequest
from cairn.proto.v1.volume_pb2 import CreateVolumeRequest, ListVolumesRequest, Volume, WatchVolumesRequest
from cairn.proto.v1.vpc_pb2 import CreateVpcRequest, DeleteVpcRequest, ListVpcsRequest, Vpc, VpcSpec

from tests.conformance.api_stores import STORES, made_store
from tests.conformance.api_world import MIB, Stubs, World, world_on


@pytest.fixture(params=STORES)
async def world(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[World]:
    async with made_store(request) as store, world_on(store, tmp_path) as world:
        yield world


async def refused(call: Any) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value


async def vpc(world: World, name: str) -> Vpc:
    made: Vpc = await world.api.vpcs.CreateVpc(CreateVpcRequest(vpc=Vpc(name=name, spec=VpcSpec(cidr="10.0.0.0/16"))))
    return made


async def test_a_walk_neither_skips_nor_repeats_while_others_write(world: World) -> None:
    before = [(await vpc(world, f"v{number:02}")).id for number in range(12)]
    seen: list[str] = []
    request = ListVpcsRequest(page_size=3)
    rounds = 0
    while True:
        page = await world.api.vpcs.ListVpcs(request)
        seen += [each.id for each in page.vpcs]
        if not page.next_page_token:
            break
        request.page_token = page.next_page_token
        # Between pages: one of the next page's objects goes, two come.
        rest = sorted(set(before) - set(seen))
        alive = [id for id in rest if world.cache.view.get(kinds.VPC, id) is not None]
        await world.api.vpcs.DeleteVpc(DeleteVpcRequest(id=alive[0]))
        await vpc(world, f"new-{rounds}a")
        await vpc(world, f"new-{rounds}b")
        rounds += 1
    assert rounds >= 3
    assert seen == sorted(before)


async def test_page_tokens_are_bound_to_their_list_and_checked(world: World) -> None:
    for number in range(3):
        await vpc(world, f"v{number}")
    page = await world.api.vpcs.ListVpcs(ListVpcsRequest(page_size=1))
    token = page.next_page_token
    for other in (
        ListVpcsRequest(page_size=1, page_token=token[:-2] + ("AA" if token[-2:] != "AA" else "BB")),
        ListVpcsRequest(page_size=1, page_token=token, filter="name=v1"),
        ListVpcsRequest(page_size=1, page_token="nonsense"),
        ListVpcsRequest(page_size=-1),
    ):
        assert (await refused(world.api.vpcs.ListVpcs(other))).code() is grpc.StatusCode.INVALID_ARGUMENT
    error = await refused(world.api.volumes.ListVolumes(ListVolumesRequest(page_token=token)))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_walk_over_forgotten_history_says_list_again(world: World) -> None:
    for number in range(3):
        await vpc(world, f"v{number}")
    page = await world.api.vpcs.ListVpcs(ListVpcsRequest(page_size=1))
    await vpc(world, "later")
    await world.store.compact(await world.store.revision())
    error = await refused(world.api.vpcs.ListVpcs(ListVpcsRequest(page_size=1, page_token=page.next_page_token)))
    assert error.code() is grpc.StatusCode.OUT_OF_RANGE
    assert "list again" in str(error.details())


async def test_filters_and_projects(world: World) -> None:
    await vpc(world, "red")
    await vpc(world, "blue")
    found = await world.api.vpcs.ListVpcs(ListVpcsRequest(filter="name=r*"))
    assert [each.name for each in found.vpcs] == ["red"]
    assert len((await world.api.vpcs.ListVpcs(ListVpcsRequest(project="-"))).vpcs) == 2
    assert (await refused(world.api.vpcs.ListVpcs(ListVpcsRequest(filter="colour=red")))).code() is (
        grpc.StatusCode.INVALID_ARGUMENT
    )
    assert (await refused(world.api.vpcs.ListVpcs(ListVpcsRequest(project="nobody")))).code() is grpc.StatusCode.NOT_FOUND
    projects = await world.api.projects.ListProjects(ListProjectsRequest())
    assert [project.name for project in projects.projects] == ["default"]
    assert (await world.api.projects.GetProject(GetProjectRequest(id="default"))).id == projects.projects[0].id


async def test_reads_as_fresh_as_asked_for(world: World) -> None:
    made = await vpc(world, "red")
    assert (await world.api.vpcs.ListVpcs(ListVpcsRequest(read_revision=made.revision))).revision >= made.revision
    error = await refused(world.api.vpcs.ListVpcs(ListVpcsRequest(read_revision=made.revision + 1000)))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT


class Watcher:
    """Reads a watch until something shows."""

    def __init__(self, call: Any) -> None:
        self._call, self.seen = call, list[Any]()

    async def until(self, wanted: Any) -> Any:
        async with asyncio.timeout(10):
            while True:
                answer = await self._call.read()
                self.seen.append(answer)
                if wanted(answer):
                    return answer

    def close(self) -> None:
        self._call.cancel()


async def test_a_watch_tells_the_state_then_every_change_also_of_what_only_contributes(world: World) -> None:
    await world.furnish()
    made = await world.vm()
    watch = Watcher(world.api.vms.WatchVms(WatchVmsRequest()))
    first = await watch.until(lambda answer: answer.type == CHANGE_TYPE_BOOKMARK)
    assert [each.vm.id for each in watch.seen[:-1]] == [made.id]
    await world.reconcile()
    placed = await watch.until(lambda answer: answer.vm.status.node)
    assert placed.revision > first.revision
    node = world.cache.view.get(kinds.PLACEMENT, made.id)
    assert node is not None
    running = Report(vm=VmReport(state=VmReport.STATE_RUNNING, spec_revision=made.revision, power_generation=1))
    await world.report(node.node, f"vm/{made.id}", running)
    answer = await watch.until(lambda answer: answer.vm.status.state == VmStatus.STATE_RUNNING)
    assert answer.vm.status.say == f"running on {answer.vm.status.node}"
    assert not answer.vm.reconciling
    assert answer.vm.status.nics[0].address == "10.1.1.2"
    await world.disconnect(node.node)
    lost = await watch.until(lambda answer: answer.vm.status.state == VmStatus.STATE_UNKNOWN)
    assert "does not answer; the guest may be running" in lost.vm.status.say
    await world.api.vms.DeleteVm(DeleteVmRequest(id="web"))
    await watch.until(lambda answer: answer.vm.HasField("delete_time"))
    watch.close()


async def test_a_watch_resumes_where_it_ended_and_reports_what_went(world: World) -> None:
    one, two = await vpc(world, "one"), await vpc(world, "two")
    listed = await world.api.vpcs.ListVpcs(ListVpcsRequest())
    await world.api.vpcs.DeleteVpc(DeleteVpcRequest(id=one.id))
    three = await vpc(world, "three")
    from cairn.proto.v1.vpc_pb2 import WatchVpcsRequest

    watch = Watcher(world.api.vpcs.WatchVpcs(WatchVpcsRequest(after_revision=listed.revision)))
    await watch.until(lambda answer: answer.vpc.id == three.id)
    watch.close()
    assert {each.vpc.id for each in watch.seen} == {one.id, three.id}
    assert next(each.type for each in watch.seen if each.vpc.id == one.id) == CHANGE_TYPE_DELETE
    assert two.id not in {each.vpc.id for each in watch.seen}
    world.feed = Feed(world.cache.view.revision)
    gone = Watcher(world.api.vpcs.WatchVpcs(WatchVpcsRequest(after_revision=listed.revision)))
    error = await refused(gone.until(lambda _: False))
    assert error.code() is grpc.StatusCode.OUT_OF_RANGE


async def test_a_filtered_watch_drops_what_no_longer_passes(world: World) -> None:
    await world.furnish()
    await world.vm()
    volume = Volume(name="data", labels={"keep": "no"})
    volume.spec.size_bytes = MIB
    watch = Watcher(world.api.volumes.WatchVolumes(WatchVolumesRequest(filter='status.vm_name=""')))
    await watch.until(lambda answer: answer.type == CHANGE_TYPE_BOOKMARK)
    assert len(watch.seen) == 1
    made = await world.api.volumes.CreateVolume(CreateVolumeRequest(volume=volume))
    await watch.until(lambda answer: answer.type == CHANGE_TYPE_UPSERT and answer.volume.id == made.id)
    stored = world.cache.view.get(kinds.VOLUME, made.id)
    assert stored is not None
    attached = Volume()
    attached.CopyFrom(stored)
    attached.spec.vm = next(iter(world.cache.view.ids(kinds.VM)))
    await world.commit(Txn("api").put(kinds.VOLUME, made.id, attached))
    await watch.until(lambda answer: answer.type == CHANGE_TYPE_DELETE and answer.volume.id == made.id)
    watch.close()


async def test_who_watches_one_object_is_not_woken_by_others(world: World) -> None:
    from cairn.proto.v1.vpc_pb2 import WatchVpcsRequest

    one, two = await vpc(world, "one"), await vpc(world, "two")
    watch = Watcher(world.api.vpcs.WatchVpcs(WatchVpcsRequest(filter=f'id = "{two.id}"')))
    await watch.until(lambda answer: answer.type == CHANGE_TYPE_BOOKMARK)
    assert [each.vpc.id for each in watch.seen[:-1]] == [two.id]
    with world.feed.subscribe("vpc", world.feed.revision, two.id) as subscription:
        await world.api.vpcs.DeleteVpc(DeleteVpcRequest(id=one.id))
        await world.api.vpcs.DeleteVpc(DeleteVpcRequest(id=two.id))
        await watch.until(lambda answer: answer.type == CHANGE_TYPE_DELETE and answer.vpc.id == two.id)
        assert list((await subscription.take())[0]) == [two.id]
    watch.close()
    assert one.id not in {each.vpc.id for each in watch.seen}


async def test_nodes_may_not_use_the_api_and_strangers_do_not_get_in(world: World) -> None:
    node = world.stubs(Identity("node", "node-0000000a"))
    assert (await refused(node.vms.ListVms(ListVmsRequest()))).code() is grpc.StatusCode.PERMISSION_DENIED
    assert (await refused(node.vms.WatchVms(WatchVmsRequest()).read())).code() is grpc.StatusCode.PERMISSION_DENIED
    controller = world.stubs(Identity("controller", "c2"))
    assert not (await controller.vms.ListVms(ListVmsRequest())).vms
    stranger = Authority.create("elsewhere", world.clock, world.ids).issue(Identity("user", "mallory"))
    transport = GrpcTransport(StaticCredentials(world.authority.cert_pem, stranger))
    async with transport.channel([world.address], server_name=CONTROLLER_SERVER_NAME) as channel:
        error = await refused(Stubs(channel).vms.ListVms(ListVmsRequest(), timeout=5))
        assert error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)


async def test_an_unknown_vm_is_not_found_with_details(world: World) -> None:
    from cairn.proto.rpc import status_details
    from google.rpc import error_details_pb2

    error = await refused(world.api.vms.GetVm(GetVmRequest(id="nope")))
    assert error.code() is grpc.StatusCode.NOT_FOUND
    (info,) = status_details(error, error_details_pb2.ResourceInfo)
    assert isinstance(info, error_details_pb2.ResourceInfo)
    assert (info.resource_type, info.resource_name) == ("vm", "nope")


async def test_a_name_of_several_deleted_ones_is_the_last_ones_and_of_one_that_is_there_its_own(world: World) -> None:
    await world.furnish()
    deleted = []
    for _ in range(2):
        deleted.append((await world.vm("web")).id)
        world.clock.ahead += timedelta(seconds=1)
        await world.api.vms.DeleteVm(DeleteVmRequest(id="web"))
    assert (await world.api.vms.GetVm(GetVmRequest(id="web"))).id == deleted[-1]
    alive = await world.vm("web")
    assert (await world.api.vms.GetVm(GetVmRequest(id="web"))).id == alive.id
