"""Projects: owners of everything else. One exists from the start."""

from __future__ import annotations

from typing import Any

from cairn.controller.api import nouns, resolution
from cairn.controller.api.authorise import caller_of
from cairn.controller.api.core import Core
from cairn.controller.store.base import Conflict, Indeterminate, Txn
from cairn.proto import kinds
from cairn.proto.seams import Clock, timestamp
from cairn.proto.v1 import project_pb2, project_pb2_grpc
from cairn.proto.v1.cluster_pb2 import NameClaim
from cairn.proto.v1.project_pb2 import Project


class ProjectService(project_pb2_grpc.ProjectServiceServicer):
    """ProjectService of proto/v1/project.proto."""

    def __init__(self, core: Core) -> None:
        self._core = core

    async def GetProject(self, request: project_pb2.GetProjectRequest, context: Any) -> Project:
        """Return one."""
        return await self._core.listings.get(caller_of(context), nouns.PROJECT, request)

    async def ListProjects(self, request: project_pb2.ListProjectsRequest, context: Any) -> project_pb2.ListProjectsResponse:
        """Return a page."""
        return await self._core.listings.list(caller_of(context), nouns.PROJECT, request, project_pb2.ListProjectsResponse)


async def ensure_default_project(core: Core, clock: Clock) -> None:
    """Make the default project unless it exists; controllers may all try at once. Raises StoreError.

    One that cannot be read exists: who has to repair it needs a controller. One that is gone may have left its name.
    """
    view = core.cache.view
    name = resolution.claim_id(nouns.PROJECT, "", nouns.DEFAULT_PROJECT)
    while view.get(kinds.PROJECT, nouns.DEFAULT_PROJECT_ID) is None:
        if nouns.DEFAULT_PROJECT_ID in view.unreadable(kinds.PROJECT) or name in view.unreadable(kinds.NAME):
            return
        now = timestamp(clock.now())
        project = Project(id=nouns.DEFAULT_PROJECT_ID, name=nouns.DEFAULT_PROJECT, create_time=now, update_time=now)
        project.spec.description = "where things are made when no project is named"
        claim = NameClaim(kind="project", project=nouns.CLUSTER_WIDE, name=project.name, id=project.id)
        txn = Txn("api").create(kinds.PROJECT, project.id, project)
        txn.check(kinds.NAME, name, view.revision_of(kinds.NAME, name)).put(kinds.NAME, name, claim)
        try:
            await core.cache.wait_for(await core.store.commit(txn))
        except (Conflict, Indeterminate):
            await core.mutations.freshen()
        view = core.cache.view
