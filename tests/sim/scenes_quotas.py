"""Scenes of the checker quotas: who has more than he may."""

from __future__ import annotations

from typing import Any

from cairn.proto.v1.cluster_pb2 import RequestRecord
from cairn.proto.v1.quota_pb2 import Quota
from cairn.proto.v1.vm_pb2 import Vm, VmSpec
from cairn.proto.v1.vpc_pb2 import Vpc

from tests.sim.stage import SCENES, Stage, scene

__all__ = ["SCENES"]
TOO_MUCH = "project a has 2 vpcs, 1 more than before, and may have 1"


def _quota(project: str = "a", **limits: int) -> tuple[str, str, Any]:
    quota = Quota(id=f"quo-{project}", project=project)
    quota.spec.limits.update(limits)
    return "quota", quota.id, quota


def _vpc(id: str, project: str = "a") -> tuple[str, str, Any]:
    return "vpc", id, Vpc(id=id, name=id, project=project)


def _vm(cpus: int, *, deleted: bool = False) -> tuple[str, str, Any]:
    vm = Vm(id="i-1", name="web", project="a", spec=VmSpec(cpus=cpus))
    if deleted:
        vm.delete_time.seconds = 1
    return "vm", "i-1", vm


@scene("quotas")
def as_much_as_it_may(stage: Stage) -> None:
    stage.commit(_quota(vpcs=1), _quota("b", vpcs=1))
    stage.commit(_vpc("rtr-1"), _vpc("rtr-2", "b"))
    stage.commit(_vpc("rtr-1"))
    stage.commit(("vpc", "rtr-1", None), _vpc("rtr-3"))


@scene("quotas")
def the_limit_was_lowered(stage: Stage) -> None:
    stage.commit(_quota(vpcs=2), _vpc("rtr-1"), _vpc("rtr-2"))
    stage.commit(_quota(vpcs=0))
    stage.commit(_vpc("rtr-1"))


@scene("quotas")
def what_was_adopted_is_there(stage: Stage) -> None:
    stage.commit(_quota(vpcs=0))
    stage.commit(_vpc("rtr-1"), ("request", "x/r-1", RequestRecord(method="AdoptVm", object="vm/i-1")))


@scene("quotas", TOO_MUCH)
def one_too_many(stage: Stage) -> None:
    stage.commit(_quota(vpcs=1), _vpc("rtr-1"))
    stage.commit(_vpc("rtr-2"))


@scene("quotas", TOO_MUCH)
def one_too_many_by_the_defaults(stage: Stage) -> None:
    stage.commit(_quota("", vpcs=1), _vpc("rtr-1"))
    stage.commit(_vpc("rtr-2"))


@scene("quotas", "project a has 3 cpus, 2 more than before, and may have 2")
def one_that_grew(stage: Stage) -> None:
    stage.commit(_quota(cpus=2), _vm(1))
    stage.commit(_vm(3))


@scene("quotas", "project a has 3 cpus, 3 more than before, and may have 2")
def one_that_was_brought_back(stage: Stage) -> None:
    stage.commit(_quota(cpus=2), _vm(3, deleted=True))
    stage.commit(_vm(3))
