"""Jobs: finite work in steps. The API shows them and may ask for their end; controller/jobs runs them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from cairn.controller.api import nouns, resolution
from cairn.controller.api.authorise import caller_of
from cairn.controller.api.core import Core
from cairn.controller.api.decision import Decided
from cairn.controller.model.jobs import status_of
from cairn.controller.model.permits import Caller, Verb
from cairn.controller.store.base import Txn, View
from cairn.proto import kinds
from cairn.proto.errors import BadState
from cairn.proto.seams import timestamp
from cairn.proto.v1 import job_pb2, job_pb2_grpc
from cairn.proto.v1.job_pb2 import Job


class JobService(job_pb2_grpc.JobServiceServicer):
    """JobService of proto/v1/job.proto."""

    def __init__(self, core: Core) -> None:
        self._core = core

    async def GetJob(self, request: job_pb2.GetJobRequest, context: Any) -> Job:
        """Return one."""
        return await self._core.listings.get(caller_of(context), nouns.JOB, request)

    async def ListJobs(self, request: job_pb2.ListJobsRequest, context: Any) -> job_pb2.ListJobsResponse:
        """Return a page."""
        return await self._core.listings.list(caller_of(context), nouns.JOB, request, job_pb2.ListJobsResponse)

    async def WatchJobs(self, request: job_pb2.WatchJobsRequest, context: Any) -> AsyncIterator[job_pb2.WatchJobsResponse]:
        """Follow them."""
        async for response in self._core.watches.watch(caller_of(context), nouns.JOB, request, job_pb2.WatchJobsResponse):
            yield response

    async def CancelJob(self, request: job_pb2.CancelJobRequest, context: Any) -> Job:
        """Ask a job to stop and undo what it did. It ends when its machine has seen to that."""

        def decide(view: View, caller: Caller) -> Decided[Job]:
            record = resolution.find(view, caller, nouns.JOB, "", request.id, verb=Verb.CANCEL)
            job = Job()
            job.CopyFrom(record.message)
            status = status_of(view, job.id)
            if status.done:
                raise BadState("job", request.id, f"job {request.id} has ended: {status.say}")
            job.spec.cancel_requested = True
            job.update_time.CopyFrom(timestamp(self._core.clock.now()))
            # Its state is checked too: of a job that ends at this moment it must be said that it has ended.
            txn = Txn("api").check(kinds.JOB_STATE, job.id, view.revision_of(kinds.JOB_STATE, job.id))
            txn.check(kinds.JOB, job.id, record.mod_revision).put(kinds.JOB, job.id, job)
            said = [("CancelRequested", f"the end of job {job.id} was asked for")]
            return Decided(txn, nouns.JOB, job.id, job.name, job.project, events=said)

        return await self._core.mutations.run(request, caller_of(context), decide)
