"""Jobs are two records: what is wished of one (`job`, by the API), and how far it is (`job_state`, by who carries jobs out)."""

from __future__ import annotations

from cairn.controller.store.base import View
from cairn.proto import kinds
from cairn.proto.v1.job_pb2 import Job, JobStatus


def status_of(view: View, id: str) -> JobStatus:
    """Return how far a job is; an empty one when it has not begun, or is not there. Older releases kept it in the wish."""
    state, job = view.get(kinds.JOB_STATE, id), view.get(kinds.JOB, id)
    if state is not None:
        return state
    return job.status if job is not None else JobStatus()


def whole(view: View, id: str) -> Job | None:
    """Return a copy of a job with its status filled in, or None."""
    job = view.get(kinds.JOB, id)
    if job is None:
        return None
    result = Job()
    result.CopyFrom(job)
    result.status.CopyFrom(status_of(view, id))
    return result


def under_way(view: View, target: str) -> list[str]:
    """Return the ids of the jobs on an object that have not ended, sorted."""
    return [id for id in view.by(kinds.JOB, "target", target) if not status_of(view, id).done]
