"""Projects: owners of everything else. One exists from the start."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any, Final

from cairn.controller.api import nouns, resolution, sharing, validation
from cairn.controller.api.authorise import caller_of
from cairn.controller.api.bindings import BINDINGS_MAX, drop_binding
from cairn.controller.api.core import Core
from cairn.controller.api.decision import Decided
from cairn.controller.api.erasure import Erasure
from cairn.controller.api.masks import UpdateRules
from cairn.controller.api.nouns import Noun
from cairn.controller.api.objects import begin, ensure, updated
from cairn.controller.api.quotas import of_project
from cairn.controller.model.permits import Caller, name_for
from cairn.controller.model.quotas import quota_id
from cairn.controller.store.base import Record, Txn, View
from cairn.controller.words import several
from cairn.proto import kinds
from cairn.proto.errors import BadState
from cairn.proto.seams import Clock
from cairn.proto.v1 import project_pb2, project_pb2_grpc
from cairn.proto.v1.project_pb2 import Project

DEFAULT_SAY: Final = "is where things are made when no project is named"
RULES: Final = UpdateRules(mutable=("name", "labels", "spec.description"), immutable=())
# What keeps a project, in the order in which it is deleted.
_LIVING: Final = (nouns.VM, nouns.VOLUME, nouns.PORT, nouns.SUBNET, nouns.VPC, nouns.IMAGE)


class ProjectService(project_pb2_grpc.ProjectServiceServicer):
    """ProjectService of proto/v1/project.proto."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._erasure: Erasure[Project] = Erasure(core, nouns.PROJECT, in_use, release)

    async def CreateProject(self, request: project_pb2.CreateProjectRequest, context: Any) -> Project:
        """Make a project; who works in it, bindings say."""

        def decide(view: View, caller: Caller) -> Decided[Project]:
            decided, project = begin(view, caller, self._core, nouns.PROJECT, request.project)
            project.spec.description = request.project.spec.description
            validation.description("project.spec.description", project.spec.description)
            decided.txn.create(kinds.PROJECT, project.id, project)
            decided.txn.create(kinds.QUOTA, quota_id(project.id), of_project(project.id, project.create_time))
            return decided

        return await self._core.mutations.run(request, caller_of(context), decide)

    async def UpdateProject(self, request: project_pb2.UpdateProjectRequest, context: Any) -> Project:
        """Change its name, labels and description."""

        def amend(_view: View, _caller: Caller, _txn: Txn, new: Project, old: Record[Project]) -> None:
            validation.description("project.spec.description", new.spec.description)
            _refuse_default(old.message, renamed=new.name != old.message.name)

        def decide(view: View, caller: Caller) -> Decided[Project]:
            decided, _, _ = updated(view, caller, self._core, nouns.PROJECT, request, RULES, amend)
            return decided

        return await self._core.mutations.run(request, caller_of(context), decide)

    async def DeleteProject(self, request: project_pb2.DeleteProjectRequest, context: Any) -> Project:
        """Remove one in which nothing lives."""
        return await self._erasure.run(request, caller_of(context))

    async def WatchProjects(
        self, request: project_pb2.WatchProjectsRequest, context: Any
    ) -> AsyncIterator[project_pb2.WatchProjectsResponse]:
        """Follow them."""
        responses = self._core.watches.watch(caller_of(context), nouns.PROJECT, request, project_pb2.WatchProjectsResponse)
        async for response in responses:
            yield response

    async def GetProject(self, request: project_pb2.GetProjectRequest, context: Any) -> Project:
        """Return one."""
        return await self._core.listings.get(caller_of(context), nouns.PROJECT, request)

    async def ListProjects(self, request: project_pb2.ListProjectsRequest, context: Any) -> project_pb2.ListProjectsResponse:
        """Return a page."""
        return await self._core.listings.list(caller_of(context), nouns.PROJECT, request, project_pb2.ListProjectsResponse)


def in_use(view: View, caller: Caller, record: Record[Project]) -> None:
    """Refuse while anything lives in it, saying what. Raises BadState."""
    project = record.message
    _refuse_default(project)
    found = [(noun, view.by(noun.kind, "project", project.id)) for noun in _LIVING]
    parts = [f"{several(len(ids), noun.title)} ({_named(view, caller, noun, ids)})" for noun, ids in found if ids]
    if parts:
        how = f"delete them first (`cairn project delete {project.name} --cascade` deletes all of it)"
        say = f"project {project.name!r} still has {', '.join(parts)}: {how}"
        raise BadState("project", project.name, say)


def _named(view: View, caller: Caller, noun: Noun[Any], ids: Sequence[str]) -> str:
    some = ", ".join(name_for(view, caller, noun.kind, id) for id in ids[:3])
    return some if len(ids) <= 3 else f"{some}, ..."


def _refuse_default(project: Project, *, renamed: bool = True) -> None:
    if project.id == nouns.DEFAULT_PROJECT_ID and renamed:
        raise BadState("project", project.name, f"project {project.name!r} {DEFAULT_SAY}: it stays, and keeps its name")


def release(txn: Txn, view: View, record: Record[Project]) -> None:
    """Give back its name; what was bound in it ends."""
    project = record.message
    resolution.release(txn, view, nouns.PROJECT, "", project.name, project.id)
    bindings = view.by(kinds.BINDING, "project", project.id)
    if len(bindings) > BINDINGS_MAX:
        say = f"{len(bindings)} bindings hold in project {project.name!r}, and {BINDINGS_MAX} go with it at most: unbind some"
        raise BadState("project", project.name, say)
    for id in bindings:
        drop_binding(txn, view, id)
    sharing.take_out(txn, view, project.id)
    txn.delete(kinds.QUOTA, quota_id(project.id)).delete(kinds.QUOTA_USE, project.id)


async def ensure_default_project(core: Core, clock: Clock) -> None:
    """Make the default project unless it exists. Raises StoreError."""
    project = Project(id=nouns.DEFAULT_PROJECT_ID, name=nouns.DEFAULT_PROJECT)
    project.spec.description = DEFAULT_SAY.removeprefix("is ")
    await ensure(core, clock, nouns.PROJECT, project)
