"""Projects: owners of everything else. One exists from the start."""

from __future__ import annotations

from typing import Any

from cairn.controller.api import nouns
from cairn.controller.api.authorise import caller_of
from cairn.controller.api.core import Core
from cairn.controller.api.objects import ensure
from cairn.proto.seams import Clock
from cairn.proto.v1 import project_pb2, project_pb2_grpc
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
    """Make the default project unless it exists. Raises StoreError."""
    project = Project(id=nouns.DEFAULT_PROJECT_ID, name=nouns.DEFAULT_PROJECT)
    project.spec.description = "where things are made when no project is named"
    await ensure(core, clock, nouns.PROJECT, project)
