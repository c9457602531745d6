"""Quotas: each project has one, made and removed with it; one more holds where projects say nothing."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from cairn.controller.api import nouns, resolution
from cairn.controller.api.authorise import caller_of
from cairn.controller.api.core import Core
from cairn.controller.api.decision import Decided
from cairn.controller.api.masks import UpdateRules
from cairn.controller.api.mutation import Act
from cairn.controller.api.objects import updated
from cairn.controller.model.permits import Caller
from cairn.controller.model.quotas import ANY, DEFAULTS, DEFAULTS_ID, LIMIT_MAX, is_name, quota_id
from cairn.controller.store.base import Conflict, Indeterminate, Record, Txn, View
from cairn.controller.store.sums import NAMES, VOLUME_BYTES
from cairn.proto import kinds
from cairn.proto.errors import Invalid, NotFound
from cairn.proto.seams import Clock, timestamp
from cairn.proto.v1 import quota_pb2, quota_pb2_grpc
from cairn.proto.v1.quota_pb2 import Quota

RULES = UpdateRules(mutable=("labels", "spec.limits"), immutable=())


class QuotaService(quota_pb2_grpc.QuotaServiceServicer):
    """QuotaService of proto/v1/quota.proto."""

    def __init__(self, core: Core) -> None:
        self._core = core

    async def GetQuota(self, request: quota_pb2.GetQuotaRequest, context: Any) -> Quota:
        """Return one, with what is used."""
        caller, view = caller_of(context), self._core.cache.view
        try:
            id = _id(view, caller, request.id, request.project)
        except NotFound:
            # Its project may have been made a moment ago.
            id = _id(await self._core.mutations.freshen(), caller, request.id, request.project)
        asked = quota_pb2.GetQuotaRequest(id=id, read_revision=request.read_revision)
        return await self._core.listings.get(caller, nouns.QUOTA, asked)

    async def ListQuotas(self, request: quota_pb2.ListQuotasRequest, context: Any) -> quota_pb2.ListQuotasResponse:
        """Return a page."""
        return await self._core.listings.list(caller_of(context), nouns.QUOTA, request, quota_pb2.ListQuotasResponse)

    async def UpdateQuota(self, request: quota_pb2.UpdateQuotaRequest, context: Any) -> Quota:
        """Set limits; what is there already stays, also beyond them."""

        def amend(_view: View, _caller: Caller, _txn: Txn, new: Quota, _old: Record[Quota]) -> None:
            _check(new)

        def decide(view: View, caller: Caller) -> Decided[Quota]:
            asked = quota_pb2.UpdateQuotaRequest()
            asked.CopyFrom(request)
            asked.quota.id = _id(view, caller, request.quota.id, request.quota.project)
            decided, _, _ = updated(view, caller, self._core, nouns.QUOTA, asked, RULES, amend)
            return decided

        return await self._core.mutations.run(request, caller_of(context), decide)

    async def WatchQuotas(
        self, request: quota_pb2.WatchQuotasRequest, context: Any
    ) -> AsyncIterator[quota_pb2.WatchQuotasResponse]:
        """Follow them, and what is used."""
        responses = self._core.watches.watch(caller_of(context), nouns.QUOTA, request, quota_pb2.WatchQuotasResponse)
        async for response in responses:
            yield response


def _id(view: View, caller: Caller, id: str, project: str) -> str:
    """Return the id of the quota that is meant. Raises NotFound."""
    if id == DEFAULTS:
        return DEFAULTS_ID
    return id or quota_id(resolution.project_id(view, caller, project))


def _check(quota: Quota) -> None:
    """Raises Invalid."""
    for name, limit in quota.spec.limits.items():
        if not is_name(name):
            known = ", ".join((*NAMES, f"{VOLUME_BYTES}<type>"))
            raise Invalid(f"quota.spec.limits.{name}", f"nothing is called so; these can be limited: {known}")
        if not ANY <= limit <= LIMIT_MAX:
            raise Invalid(f"quota.spec.limits.{name}", f"{limit} is not between 0 and {LIMIT_MAX}, nor {ANY} (any amount)")


def of_project(project: str, now: Any) -> Quota:
    """Return the quota of a new project. now: a timestamp."""
    return Quota(id=quota_id(project) if project else DEFAULTS_ID, project=project, create_time=now, update_time=now)


async def ensure_quotas(core: Core, clock: Clock) -> None:
    """Make the quotas that are missing: the defaults, and those of projects of a release that had none. Raises StoreError."""
    for project in ("", *sorted(core.cache.view.ids(kinds.PROJECT))):
        quota = of_project(project, timestamp(clock.now()))
        act = Act("EnsureQuota", f"{kinds.QUOTA.name}/{quota.id}", project=project)
        while not _there(view := core.cache.view, quota.id):
            txn = Txn("api").create(kinds.QUOTA, quota.id, quota)
            try:
                await core.cache.wait_for(await core.mutations.write(view, Caller.system("controller"), txn, act))
            except (Conflict, Indeterminate):
                await core.mutations.freshen()


def _there(view: View, id: str) -> bool:
    """One that cannot be read is there."""
    return bool(view.revision_of(kinds.QUOTA, id)) or id in view.unreadable(kinds.QUOTA)
