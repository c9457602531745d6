"""What controllers do by themselves afterwards is in the audit, with the request that led to it as its cause."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import grpc
import pytest
from cairn.controller.api.mutation import Mutations
from cairn.controller.jobs.import_image import ImportImage
from cairn.controller.jobs.keepers import Keepers
from cairn.controller.jobs.machine import Jobs
from cairn.controller.metrics import RuntimeMetrics
from cairn.controller.outage import AuditFull
from cairn.controller.reconcilers.garbage import KEEP, Garbage
from cairn.controller.retention import EVENT_KEEP_S, Retention
from cairn.controller.runtime import Runtime
from cairn.proto import kinds
from cairn.proto.v1.agent_pb2 import ImageReport, Report
from cairn.proto.v1.api_token_pb2 import ApiToken, ApiTokenSpec, CreateApiTokenRequest
from cairn.proto.v1.audit_pb2 import Audit
from cairn.proto.v1.image_pb2 import IMAGE_FORMAT_QCOW2, CreateImageRequest
from cairn.proto.v1.job_pb2 import CancelJobRequest
from cairn.proto.v1.node_pb2 import CreateJoinTokenRequest
from cairn.proto.v1.vm_pb2 import DeleteVmRequest, GetVmRequest, UndeleteVmRequest
from cairn.proto.v1.volume_pb2 import CreateVolumeRequest, DeleteVolumeRequest, Volume, VolumeSpec
from prometheus_client import CollectorRegistry

from tests.conformance.api_stores import STORES, made_store
from tests.conformance.api_world import DIGEST, GIB, World, image, world_on
from tests.conformance.test_api_audit import audits, broken

UNTIL_S = 20.0
KEPT = timedelta(hours=2, minutes=1)


class All:
    """Everything is ours."""

    def mine(self, shard: str) -> bool:
        return True


@pytest.fixture(params=STORES)
async def world(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[World]:
    async with made_store(request) as store, world_on(store, tmp_path) as world:
        await world.furnish()
        yield world


@asynccontextmanager
async def working(world: World, chain: str = "c1") -> AsyncIterator[Mutations]:
    """Let a controller of that name erase, and carry jobs out. Another than "c1" shares nothing with the API but the store."""
    core = world.core
    mutations = core.mutations if chain == "c1" else Mutations(core.store, world.cache, world.clock, world.ids, chain)
    leases, metrics = Retention(world.store, EVENT_KEEP_S), RuntimeMetrics(CollectorRegistry())
    doing = [Garbage(), Jobs([ImportImage()], [Keepers()])]
    parts = (doing, metrics, leases, mutations.acts)
    runtime = Runtime(world.cache, core.store, All(), world.clock, world.ids, *parts, scan_s=0.1)
    task = asyncio.create_task(runtime.run())
    try:
        yield mutations
    finally:
        task.cancel()
        await asyncio.wait([task])


async def until(probe: Callable[[], Awaitable[Any]]) -> Any:
    async with asyncio.timeout(UNTIL_S):
        while not (found := await probe()):
            await asyncio.sleep(0.02)
    return found


async def recorded(world: World, method: str, count: int = 1, **asked: Any) -> list[Audit]:
    """Return the records of a method, once there are so many."""

    async def enough() -> list[Audit]:
        found = await audits(world, method=method, **asked)
        return found if len(found) >= count else []

    found: list[Audit] = await until(enough)
    assert len(found) == count
    return found


def fields(audit: Audit) -> dict[str, tuple[str, str]]:
    return {f"{each.object} {each.field}".strip(): (each.before, each.after) for each in audit.changes}


async def test_what_is_erased_names_the_deletion_whoever_erases_it(world: World) -> None:
    made, asked = await world.vm("web"), str(uuid4())
    async with working(world):
        await world.api.vms.DeleteVm(DeleteVmRequest(id="web", request_id=asked))
        kept = await world.api.vms.GetVm(GetVmRequest(id=made.id))
        assert kept.delete_request == asked
        assert await audits(world, method="EraseVm") == []
    world.clock.ahead = KEPT
    async with working(world, "c2"):
        (erased,) = await recorded(world, "EraseVm")
    assert (erased.caller, erased.who, erased.chain) == ("system", "garbage", "c2")
    assert (erased.object, erased.object_name, erased.project) == (f"vm/{made.id}", "web", "prj-default0")
    assert (erased.cause, erased.request_id) == (asked, "")
    assert fields(erased)["name"] == ("web", "")
    assert fields(erased)["spec.cpus"] == (str(made.spec.cpus), "")
    followed = await audits(world, cause=asked)
    assert {each.method for each in followed} == {"EraseVm", "EraseVolume"}, "its disk goes by the same word"
    assert len({each.revision for each in followed}) == 1
    assert [each.method for each in await audits(world, object=made.id)] == ["CreateVm", "DeleteVm", "EraseVm"]
    assert await broken(world) == []


async def test_the_purge_of_what_was_deleted_is_the_cause_and_what_was_brought_back_has_none(world: World) -> None:
    first, second = str(uuid4()), str(uuid4())
    await world.vm("web")
    await world.api.vms.DeleteVm(DeleteVmRequest(id="web", request_id=first))
    back = await world.api.vms.UndeleteVm(UndeleteVmRequest(id="web"))
    assert back.delete_request == ""
    await world.api.vms.DeleteVm(DeleteVmRequest(id="web"))
    await world.api.vms.DeleteVm(DeleteVmRequest(id=back.id, purge=True, request_id=second))
    await world.api.vms.DeleteVm(DeleteVmRequest(id=back.id, purge=True))
    async with working(world):
        (erased,) = await recorded(world, "EraseVm")
    assert erased.cause == second


async def test_a_deletion_that_was_planned_is_the_request_that_applied_it(world: World) -> None:
    asked = str(uuid4())
    await world.vm("web")
    planned = await world.api.vms.DeleteVm(DeleteVmRequest(id="web", purge=True, validate_only=True))
    await world.api.vms.DeleteVm(DeleteVmRequest(id="web", purge=True, plan_id=planned.plan.plan_id, request_id=asked))
    async with working(world):
        (erased,) = await recorded(world, "EraseVm")
    assert erased.cause == asked


async def test_a_volume_that_goes_by_itself(world: World) -> None:
    asked = str(uuid4())
    made = Volume(name="data", spec=VolumeSpec(size_bytes=GIB))
    await world.api.volumes.CreateVolume(CreateVolumeRequest(volume=made))
    await world.api.volumes.DeleteVolume(DeleteVolumeRequest(id="data", purge=True, request_id=asked))
    async with working(world):
        (erased,) = await recorded(world, "EraseVolume")
    assert (erased.object_name, erased.cause) == ("data", asked)


async def test_while_the_audit_is_closed_nothing_is_erased(world: World) -> None:
    asked = str(uuid4())
    await world.vm("web")
    await world.api.vms.DeleteVm(DeleteVmRequest(id="web", purge=True, request_id=asked))
    async with working(world) as mutations:
        full = AuditFull("audit", "the disk is full")
        mutations.closed = lambda: full
        await until(purged(world))
        assert world.cache.view.count(kinds.VM) == 1
        mutations.closed = lambda: None
        (erased,) = await recorded(world, "EraseVm")
    assert erased.cause == asked


async def test_while_the_audit_is_closed_no_note_changes_anything(world: World) -> None:
    """What is committed between the groups is a change like any other; what changes nothing is put on record still."""
    world.core.mutations.closed = lambda: AuditFull("audit", "the disk is full")
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await world.api.nodes.CreateJoinToken(CreateJoinTokenRequest(node_name="n9"))
    assert error.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert world.cache.view.count(kinds.JOIN_TOKEN) == 0
    await world.core.mutations.record([Audit(method="ConsoleVm")])
    assert len(await audits(world, method="ConsoleVm")) == 1


def purged(world: World) -> Callable[[], Awaitable[bool]]:
    async def there() -> bool:
        return world.cache.view.count(kinds.PURGE) > 0

    return there


async def test_tokens_that_ended_and_bindings_of_what_is_gone(world: World) -> None:
    await world.user("bob")
    made = await world.vm("web")
    binding = await world.bind("viewer", "default", f"vm/{made.id}", user="bob")
    token = ApiToken(name="ci", spec=ApiTokenSpec(user="bob"))
    await world.api.tokens.CreateApiToken(CreateApiTokenRequest(api_token=token, ttl_s=60))
    await world.api.vms.DeleteVm(DeleteVmRequest(id="web", purge=True))
    world.clock.ahead = KEEP + KEPT
    async with working(world):
        (gone,) = await recorded(world, "RemoveBinding")
        (ended,) = await recorded(world, "RemoveApiToken")
    assert (gone.object, gone.cause) == (f"binding/{binding.id}", "")
    assert (ended.object_name, ended.cause) == ("ci", "")
    assert "spec.user" in fields(ended)


async def imported(world: World, state: int, **said: Any) -> tuple[str, str, str]:
    """Announce an image; have its keepers say something of its bytes. Return its id, its job's, and the request's."""
    asked = str(uuid4())
    made = await world.api.images.CreateImage(CreateImageRequest(image=image("other"), request_id=asked))
    (job,) = world.cache.view.by(kinds.JOB, "target", made.id)

    async def keepers() -> list[str]:
        content = world.cache.view.get(kinds.IMAGE_CONTENT, made.id)
        return list(content.nodes) if content is not None else []

    for node in await until(keepers):
        await world.report(node, f"image/{made.id}", Report(image=ImageReport(state=state, **said)))
    return made.id, job, asked


async def test_how_an_import_ended_names_the_request_that_began_it(world: World) -> None:
    async with working(world):
        ready = {"virtual_size_bytes": GIB, "format": IMAGE_FORMAT_QCOW2}
        id, job, asked = await imported(world, ImageReport.STATE_READY, **ready)
        (done,) = await recorded(world, "FinishJob", object=job)
    assert (done.caller, done.who, done.object, done.cause) == ("system", "jobs", f"job/{job}", asked)
    told = fields(done)
    assert told["status.state"] == ("replicate", "done")
    assert told[f"image/{id} spec.digest"] == ("", DIGEST)
    assert told[f"image/{id} status.virtual_size_bytes"] == ("", str(GIB))
    assert (await audits(world, cause=asked))[-1] == done


async def test_why_an_import_failed(world: World) -> None:
    async with working(world):
        _, job, asked = await imported(world, ImageReport.STATE_FAILED, error="its digest is another")
        (failed,) = await recorded(world, "FailJob", object=job)
    assert failed.cause == asked
    assert "its digest is another" in fields(failed)["status.say"][1]


async def test_a_job_that_was_cancelled_names_who_cancelled_it(world: World) -> None:
    asked = str(uuid4())
    made = await world.api.images.CreateImage(CreateImageRequest(image=image("other")))
    (job,) = world.cache.view.by(kinds.JOB, "target", made.id)
    cancelled = await world.api.jobs.CancelJob(CancelJobRequest(id=job, request_id=asked))
    assert cancelled.cancel_request == asked
    assert cancelled.create_request not in ("", asked)
    async with working(world):
        (failed,) = await recorded(world, "FailJob", object=job)
    assert failed.cause == asked
