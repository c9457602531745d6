"""Scenes of the checker projects: whose something is, and what is called how where."""

from __future__ import annotations

from typing import Any

from cairn.proto.v1.image_pb2 import Image
from cairn.proto.v1.project_pb2 import Project, Sharing
from cairn.proto.v1.vpc_pb2 import Vpc

from tests.sim.stage import SCENES, Stage, scene

__all__ = ["SCENES"]


def _project(id: str) -> tuple[str, str, Any]:
    return "project", id, Project(id=id, name=id)


def _vpc(id: str, project: str, *projects: str, name: str = "net", all: bool = False) -> tuple[str, str, Any]:
    vpc = Vpc(id=id, name=name, project=project)
    vpc.spec.sharing.CopyFrom(Sharing(projects=projects, all=all))
    return "vpc", id, vpc


@scene("projects")
def each_in_a_project_of_its_own(stage: Stage) -> None:
    stage.commit(_project("a"), _project("b"))
    stage.commit(_vpc("rtr-1", "a"), _vpc("rtr-2", "b"), _vpc("rtr-3", "a", "b", name="other"))
    stage.commit(("image", "img-1", Image(id="img-1", name="net", project="a")))
    stage.commit(("vpc", "rtr-2", None), ("vpc", "rtr-3", None), ("project", "b", None))


@scene("projects", "vpc/rtr-1 is of project a, which is not there")
def it_is_of_no_project(stage: Stage) -> None:
    stage.commit(_vpc("rtr-1", "a"))


@scene("projects", "project a was removed with vpc/rtr-1 in it")
def something_is_left_in_it(stage: Stage) -> None:
    stage.commit(_project("a"), _vpc("rtr-1", "a"))
    stage.commit(("project", "a", None))


@scene("projects", "project b was removed with vpc/rtr-1 shared with it")
def something_is_still_shared_with_it(stage: Stage) -> None:
    stage.commit(_project("a"), _project("b"), _vpc("rtr-1", "a", "b"))
    stage.commit(("project", "b", None))


@scene("projects", "are both called net in project b")
def one_is_shared_where_another_is_called_so(stage: Stage) -> None:
    stage.commit(_project("a"), _project("b"), _vpc("rtr-1", "b"))
    stage.commit(_vpc("rtr-2", "a", "b"))


@scene("projects", "are both called net in project b")
def one_is_shared_with_all(stage: Stage) -> None:
    stage.commit(_project("a"), _project("b"), _vpc("rtr-1", "a", all=True))
    stage.commit(_vpc("rtr-2", "b"))
