"""Scenes for the checkers of long times, see test_checkers.py."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from cairn.proto.v1.cluster_pb2 import PlanRecord, RequestRecord

from tests.sim.stage import IMAGE, VM, VOLUME, Stage, image, job, scene, vm, volume

BEGIN = datetime(2030, 1, 1, tzinfo=UTC)


def _at(stage: Stage, hours: float) -> None:
    stage.cloud.clock = lambda: BEGIN + timedelta(hours=hours)


def _request() -> tuple[str, str, Any]:
    made = RequestRecord(request_id="r-1")
    made.create_time.FromDatetime(BEGIN)
    return "request", "r-1", made


def _put_away(kept_h: float) -> tuple[str, str, Any]:
    made = vm(gone=True)
    made[2].purge_time.FromDatetime(BEGIN + timedelta(hours=kept_h))
    return made


@scene("remembered")
def everything_goes_in_time(stage: Stage) -> None:
    _at(stage, 0)
    stage.commit(_request(), _put_away(2))
    _at(stage, 2.5)
    stage.settle()
    stage.commit((*_put_away(2)[:2], None), by={"vm/i-1": "garbage"})
    _at(stage, 24.5)
    stage.settle()
    stage.commit(("request", "r-1", None), by={})
    _at(stage, 99)
    stage.settle()


@scene("remembered")
def a_new_leader_lets_leases_last(stage: Stage) -> None:
    stage.commit(_request())
    stage.cloud.leases_began = BEGIN + timedelta(hours=20)
    _at(stage, 44)
    stage.settle()


@scene("remembered")
def nobody_knows_the_time(stage: Stage) -> None:
    stage.commit(_request(), _put_away(2))
    stage.settle()


@scene("remembered", "request/r-1 was to be kept until .*, and is forgotten")
def a_request_is_forgotten_early(stage: Stage) -> None:
    _at(stage, 1)
    stage.commit(_request())
    stage.commit(("request", "r-1", None), by={})


@scene("remembered", "request/r-1 was to be kept until .*, and is there")
def a_request_is_remembered_for_ever(stage: Stage) -> None:
    stage.commit(_request())
    _at(stage, 27)
    stage.settle()


@scene("remembered", "plan/plan-1 was to be kept")
def a_plan_stays(stage: Stage) -> None:
    plan = PlanRecord(plan_id="plan-1")
    plan.expire_time.FromDatetime(BEGIN)
    stage.commit(("plan", "plan-1", plan))
    _at(stage, 3)
    stage.settle()


@scene("remembered", "vm/i-1 was to go")
def retention_never_ends(stage: Stage) -> None:
    stage.commit(_put_away(2))
    _at(stage, 3)
    stage.settle()


@scene("remembered", "job_state/j-1 was to go")
def a_finished_job_stays(stage: Stage) -> None:
    wished, done = job(done=True)
    done[2].end_time.FromDatetime(BEGIN)
    stage.commit(wished, done)
    _at(stage, 26)
    stage.settle()


@scene("references")
def a_kept_disk_goes_before_its_deleted_vm(stage: Stage) -> None:
    stage.commit(image(), volume(), vm(gone=True, image=IMAGE, root_volume=VOLUME))
    stage.commit(("volume", VOLUME, None))


@scene("references", "volume/vol-1 was removed while vm/i-1 refers to it")
def a_disk_goes_before_its_vm(stage: Stage) -> None:
    stage.commit(image(), volume(vm=VM), vm(image=IMAGE, root_volume=VOLUME))
    stage.commit(("volume", VOLUME, None))
