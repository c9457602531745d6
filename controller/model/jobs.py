"""Jobs are two records: what is wished of one (`job`, by the API), and how far it is (`job_state`, by who carries jobs out)."""

from __future__ import annotations

from datetime import datetime

from cairn.controller.model.restored import CLUSTER_ID, is_restored
from cairn.controller.store.base import View
from cairn.proto import kinds
from cairn.proto.seams import moment
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


def deadline_of(view: View, job: Job) -> datetime | None:
    """Return when a job is to have ended; None: it has all the time there is.

    Of a backup's job the time begins anew with the restore: it may have ended well since, and what it made is there.
    """
    if not job.spec.HasField("deadline"):
        return None
    deadline, cluster = moment(job.spec.deadline), view.get(kinds.CLUSTER, CLUSTER_ID)
    if cluster is None or not is_restored(view, kinds.JOB, job.id):
        return deadline
    return max(deadline, moment(cluster.restored.restore_time) + (deadline - moment(job.create_time)))
