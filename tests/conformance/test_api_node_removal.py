"""A node leaves: only empty, at once, and for good; on the memory store and on real etcd."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from cairn.controller.api.images import receivers_of
from cairn.controller.model.nodes import node_name
from cairn.controller.reconcilers.garbage import Garbage
from cairn.controller.reconcilers.placement import Placements
from cairn.controller.store.base import Conflict, Store, Txn
from cairn.controller.store.memory import MemoryStore
from cairn.proto import kinds
from cairn.proto.pki import Identity, make_csr
from cairn.proto.seams import timestamp
from cairn.proto.v1.agent_pb2 import ImageReport, Report, VmReport
from cairn.proto.v1.cluster_pb2 import JoinNodeRequest, RenewCertificateRequest
from cairn.proto.v1.image_pb2 import ImageContent
from cairn.proto.v1.node_pb2 import (
    CreateJoinTokenRequest,
    DeleteNodeRequest,
    GetNodeRequest,
    Node,
    NodeSpec,
    UpdateNodeRequest,
)
from cairn.proto.v1.vm_pb2 import CreateVmRequest, DeleteVmRequest
from google.protobuf.field_mask_pb2 import FieldMask

from tests.conformance.api_stores import STORES, made_store
from tests.conformance.api_world import MIB, World, vm, world_on

STATE = grpc.StatusCode.FAILED_PRECONDITION
DENIED = grpc.StatusCode.PERMISSION_DENIED
NOT_FOUND = grpc.StatusCode.NOT_FOUND
ABORTED = grpc.StatusCode.ABORTED


@pytest.fixture(params=STORES)
async def world(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[World]:
    async with made_store(request) as store, world_on(store, tmp_path) as world:
        await world.furnish()
        yield world


async def refusal(call: Any) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value.code(), str(caught.value.details())


def remove(world: World, name: str, **more: Any) -> Any:
    return world.api.nodes.DeleteNode(DeleteNodeRequest(id=name, **more))


def node(world: World, name: str) -> Node | None:
    return next((each for each in world.cache.view.all(kinds.NODE) if each.name == name), None)


async def cordon(world: World, name: str, cordoned: bool) -> None:
    change = Node(name=name, spec=NodeSpec(cordoned=cordoned))
    mask = FieldMask(paths=["spec.cordoned"])
    await world.api.nodes.UpdateNode(UpdateNodeRequest(node=change, update_mask=mask, allow_stale=True))


@asynccontextmanager
async def beside(world: World, folder: Path) -> AsyncIterator[World]:
    """Another controller on the same store."""
    other = World(world.store, folder)
    other.authority = world.authority
    await other.start()
    try:
        yield other
    finally:
        other._following.cancel()
        other._feeding.cancel()
        await other.server.stop(0)
        await other.enrolment_server.stop(0)


async def collect(world: World) -> None:
    """Let the reconcilers that remove things have nothing left to do."""
    await world.reconcile()
    garbage = Garbage()
    for key in list(garbage.all_keys(world.cache.view)):
        outcome = garbage.reconcile(world.cache.view, key, world.clock.now())
        if outcome.txn:
            await world.commit(outcome.txn)


async def test_an_empty_node_leaves_and_nothing_of_it_stays(world: World) -> None:
    await world.vm("web", node="n1")
    await world.reconcile()
    (id,) = [each.id for each in world.cache.view.all(kinds.NODE) if each.name == "n1"]
    await world.report(id, "volume/vol-00000000", Report())
    web = next(iter(world.cache.view.all(kinds.VM)))
    await world.api.vms.DeleteVm(DeleteVmRequest(id="web", purge=True))
    erased = Txn("garbage").delete(kinds.VM, web.id).delete(kinds.VOLUME, web.spec.root_volume)
    await world.commit(erased.delete(kinds.PORT, web.spec.nics[0].port))
    await world.reconcile()
    assert world.cache.view.get(kinds.NODE_CLAIMS, id) is not None
    gone = await remove(world, "n1")
    assert (gone.id, gone.name) == (id, "n1")
    assert (await refusal(world.api.nodes.GetNode(GetNodeRequest(id="n1"))))[0] is NOT_FOUND
    await world.disconnect(id)
    await collect(world)
    items, _ = await world.store.read(kinds.ROOT)
    # What happened to it is remembered for a day, as of everything else.
    about = [item.key for item in items if id in item.key and not item.key.startswith(kinds.EVENT_OF.prefix)]
    assert about == [], "record, facts, claims, reports"
    assert world.cache.view.get(kinds.NAME, "-/node/n1") is None
    assert await world.node("n1") != id, "the name is free; who takes it is another node"


async def test_the_repeat_is_answered_and_a_second_removal_finds_nothing(world: World) -> None:
    request_id = world.ids.uuid()
    first = await remove(world, "n1", request_id=request_id)
    assert await remove(world, "n1", request_id=request_id) == first
    assert (await refusal(remove(world, "n1")))[0] is NOT_FOUND


async def test_what_is_on_it_keeps_it_and_is_named(world: World) -> None:
    await world.vm("web", node="n1")
    await world.reconcile()
    code, say = await refusal(remove(world, "n1"))
    assert code is STATE
    assert say.startswith("node 'n1' still has 1 VM (web) and 1 volume (web-root): delete what is on it")
    left = node(world, "n1")
    assert left is not None
    assert not left.HasField("delete_time"), "the mark is taken back"
    made = await world.api.vms.DeleteVm(DeleteVmRequest(id="web"))
    await world.report(left.id, f"vm/{made.id}", Report(vm=VmReport(state=VmReport.STATE_ABSENT)))
    await world.reconcile()
    code, say = await refusal(remove(world, "n1"))
    assert code is STATE
    assert "1 volume (web-root)" in say, "it could be brought back"
    assert (await remove(world, "n2")).name == "n2"


async def test_the_only_copy_of_an_image_keeps_it(world: World) -> None:
    (image,) = world.cache.view.ids(kinds.IMAGE)
    nodes = [each.id for name in ("n1", "n2") if (each := node(world, name)) is not None]
    content = ImageContent(image=image, virtual_size_bytes=64 * MIB, nodes=nodes)
    await world.commit(Txn("jobs").put(kinds.IMAGE_CONTENT, image, content))
    ready = Report(image=ImageReport(state=ImageReport.STATE_READY))
    await world.report(nodes[0], f"image/{image}", ready)
    code, say = await refusal(remove(world, "n1"))
    assert code is STATE
    assert "1 image no other node keeps ready (demo)" in say
    assert "cairn node cordon n1" in say
    await world.report(nodes[1], f"image/{image}", ready)
    # Of two that leave at once, each with the other's copy in mind, one stays.
    results = await asyncio.gather(remove(world, "n1"), remove(world, "n2"), return_exceptions=True)
    assert any(isinstance(each, grpc.aio.AioRpcError) for each in results)
    view = world.cache.view
    kept = [each for each in view.all(kinds.NODE) if view.get(kinds.OBSERVED, f"{each.id}/image/{image}") is not None]
    assert kept
    assert not any(each.HasField("delete_time") for each in kept)


async def test_a_plan_a_stale_etag_and_a_plan_that_was_overtaken(world: World) -> None:
    planned = await remove(world, "n1", validate_only=True)
    assert [(each.action, each.kind, each.name) for each in planned.plan.changes] == [("delete", "node", "n1")]
    assert planned.plan.say == "would delete node n1"
    assert node(world, "n1") is not None
    etag = (await world.api.nodes.GetNode(GetNodeRequest(id="n1"))).etag
    change = Node(name="n1", labels={"rack": "a"})
    await world.api.nodes.UpdateNode(UpdateNodeRequest(node=change, allow_stale=True))
    assert (await refusal(remove(world, "n1", etag=etag)))[0] is ABORTED
    assert (await refusal(remove(world, "n1", plan_id=planned.plan.plan_id)))[0] is ABORTED
    left = node(world, "n1")
    assert left is not None
    assert not left.HasField("delete_time")
    planned = await remove(world, "n1", validate_only=True)
    assert (await remove(world, "n1", plan_id=planned.plan.plan_id)).name == "n1"
    assert node(world, "n1") is None


async def test_only_users_remove_nodes(world: World) -> None:
    left = node(world, "n1")
    assert left is not None
    itself = world.stubs(Identity("node", left.id))
    assert (await refusal(itself.nodes.DeleteNode(DeleteNodeRequest(id="n1"))))[0] is DENIED


async def test_a_placement_decided_before_conflicts_and_is_decided_again(world: World) -> None:
    """Another controller is about to place a VM on the node while it is removed: both orders."""
    leaves = node(world, "n1")
    assert leaves is not None
    await cordon(world, "n2", True)
    made = await world.vm("web")
    late = Placements().reconcile(world.cache.view, made.id, world.clock.now())
    assert late.txn is not None
    assert "n1" in late.say
    await remove(world, "n1")
    with pytest.raises(Conflict):
        await world.store.commit(late.txn)
    await cordon(world, "n2", False)
    await world.reconcile()
    placement = world.cache.view.get(kinds.PLACEMENT, made.id)
    assert placement is not None
    assert node_name(world.cache.view, placement.node) == "n2"


async def test_placing_and_removing_at_the_same_moment(world: World, tmp_path: Path) -> None:
    """Through two controllers, again and again: never a VM on a node that is gone, never a mark that is left."""
    async with beside(world, tmp_path / "other") as other:
        for number in range(8):
            name = f"m{number}"
            id = await world.node(name)
            made = await world.vm(f"vm-{number}", node=name)
            await other.cache.wait_for(world.cache.view.revision)
            results = await asyncio.gather(other.reconcile(), remove(world, name), return_exceptions=True)
            refused = [each for each in results if isinstance(each, BaseException)]
            assert all(isinstance(each, grpc.aio.AioRpcError) and each.code() is STATE for each in refused), refused
            await world.cache.wait_for(await world.store.revision())
            await world.reconcile()
            left, placement = world.cache.view.get(kinds.NODE, id), world.cache.view.get(kinds.PLACEMENT, made.id)
            assert placement is not None
            assert (placement.node == id) == (left is not None) == bool(refused)
            assert left is None or not left.HasField("delete_time")


async def test_a_removal_that_died_half_way_takes_no_vm_and_is_finished_by_the_next(world: World) -> None:
    left = node(world, "n1")
    assert left is not None
    marked = Node()
    marked.CopyFrom(left)
    marked.delete_time.CopyFrom(timestamp(world.clock.now()))
    await world.commit(Txn("api").put(kinds.NODE, left.id, marked))
    shown = await world.api.nodes.GetNode(GetNodeRequest(id="n1"))
    assert (shown.status.say, shown.reconciling) == ("being removed", True)
    code, _ = await refusal(world.api.vms.CreateVm(CreateVmRequest(vm=vm("pinned", node="n1"))))
    assert code is STATE
    made = await world.vm("web")
    await world.reconcile()
    placement = world.cache.view.get(kinds.PLACEMENT, made.id)
    assert placement is not None
    assert node_name(world.cache.view, placement.node) == "n2"
    assert (await remove(world, "n1")).id == left.id
    assert node(world, "n1") is None


async def test_who_joined_and_was_removed_is_a_stranger(tmp_path: Path) -> None:
    store: Store = MemoryStore()
    async with world_on(store, tmp_path) as world:
        await world.controller("c1", "10.0.0.1:7443")
        token = (await world.api.nodes.CreateJoinToken(CreateJoinTokenRequest())).token
        csr = make_csr("n1").cert_pem
        join = JoinNodeRequest(token=token, node_name="n1", csr_pem=csr)
        stranger = world.stubs(None, world.enrolment)
        joined = await stranger.enrolment.JoinNode(join)
        assert world.cache.view.get(kinds.NAME, "-/node-index/00001") is not None
        itself = world.stubs(Identity("node", joined.node))
        await itself.identity.RenewCertificate(RenewCertificateRequest(csr_pem=csr))
        await remove(world, "n1")
        code, say = await refusal(itself.identity.RenewCertificate(RenewCertificateRequest(csr_pem=csr)))
        assert (code, "not part of this cluster any more" in say) == (DENIED, True)
        code, say = await refusal(stranger.enrolment.JoinNode(join))
        assert (code, "was removed" in say) == (DENIED, True), "nor does its old token make it a node again"
        assert world.cache.view.get(kinds.NAME, "-/node-index/00001") is None
        token = (await world.api.nodes.CreateJoinToken(CreateJoinTokenRequest())).token
        join.token = token
        again = await stranger.enrolment.JoinNode(join)
        assert again.node != joined.node
        shown = await world.api.nodes.GetNode(GetNodeRequest(id="n1"))
        assert shown.spec.index == 1, "name and number are free again"


async def test_no_bytes_go_to_a_node_that_left(tmp_path: Path) -> None:
    async with world_on(MemoryStore(), tmp_path) as world:
        id, image = await world.node("n1"), await world.image()
        content = ImageContent(image=image, nodes=[id])
        await world.commit(Txn("jobs").put(kinds.IMAGE_CONTENT, image, content))
        await world.report(id, f"image/{image}", Report(image=ImageReport(state=ImageReport.STATE_FETCHING)))
        assert receivers_of(world.cache.view, image) == (False, [(id, "127.0.0.1:1")])
        await world.commit(Txn("api").delete(kinds.NODE, id))
        assert receivers_of(world.cache.view, image) == (False, [])
