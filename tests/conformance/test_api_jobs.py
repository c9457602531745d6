"""Jobs as users see them: what is wished and how far it is are two records shown as one; a cancel writes the wish only."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
from cairn.controller.store.base import Txn
from cairn.proto import kinds
from cairn.proto.v1.common_pb2 import ChangeType
from cairn.proto.v1.job_pb2 import CancelJobRequest, GetJobRequest, Job, JobStatus, ListJobsRequest, WatchJobsRequest

from tests.conformance.api_stores import STORES, made_store
from tests.conformance.api_world import World, world_on


@pytest.fixture(params=STORES)
async def world(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[World]:
    async with made_store(request) as store, world_on(store, tmp_path) as world:
        await world.image()
        yield world


async def only(world: World) -> Job:
    (job,) = (await world.api.jobs.ListJobs(ListJobsRequest())).jobs
    found: Job = job
    return found


async def step(world: World, id: str, **status: object) -> None:
    """What the job's machine writes."""
    await world.commit(Txn("jobs").put(kinds.JOB_STATE, id, JobStatus(**status)))  # type: ignore[arg-type]


async def test_both_are_shown_as_one(world: World) -> None:
    job = await only(world)
    assert (job.status.say, job.status.state, job.reconciling) == ("has not begun yet", "", True)
    await step(world, job.id, state="upload", say="receiving its bytes", percent=30)
    shown = await world.api.jobs.GetJob(GetJobRequest(id=job.id))
    assert (shown.spec, shown.revision, shown.etag) == (job.spec, job.revision, job.etag), "what is wished has not changed"
    assert (shown.status.state, shown.status.percent, shown.status.say) == ("upload", 30, "receiving its bytes")
    found = await world.api.jobs.ListJobs(ListJobsRequest(filter='status.state = "upload"'))
    assert [each.id for each in found.jobs] == [job.id]


async def test_who_watches_is_told_how_far_it_is(world: World) -> None:
    job = await only(world)
    stream = aiter(world.api.jobs.WatchJobs(WatchJobsRequest()))
    async with asyncio.timeout(10):
        assert (await anext(stream)).job.id == job.id
        assert (await anext(stream)).type == ChangeType.CHANGE_TYPE_BOOKMARK
        await step(world, job.id, state="done", done=True)
        told = (await anext(stream)).job
    assert (told.id, told.status.done, told.reconciling) == (job.id, True, False)


async def test_a_cancel_writes_the_wish_alone_and_is_refused_at_the_end(world: World) -> None:
    job = await only(world)
    await step(world, job.id, state="upload", say="receiving its bytes")
    before = world.cache.view.revision_of(kinds.JOB_STATE, job.id)
    answer = await world.api.jobs.CancelJob(CancelJobRequest(id=job.id))
    assert (answer.spec.cancel_requested, answer.status.state) == (True, "upload")
    assert world.cache.view.revision_of(kinds.JOB_STATE, job.id) == before
    stored = world.cache.view.get(kinds.JOB, job.id)
    assert stored is not None
    assert not stored.HasField("status")
    await step(world, job.id, state="failed", done=True, failed=True, say="failed: it was cancelled")
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await world.api.jobs.CancelJob(CancelJobRequest(id=job.id))
    assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert "has ended: failed: it was cancelled" in str(refused.value.details())
