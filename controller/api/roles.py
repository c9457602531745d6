"""Roles: permissions that are given together."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any, Final

from cairn.controller.api import nouns, resolution, validation
from cairn.controller.api.authorise import caller_of
from cairn.controller.api.core import Core
from cairn.controller.api.decision import Decided
from cairn.controller.api.masks import UpdateRules
from cairn.controller.api.objects import addressed, begin, ensure, updated
from cairn.controller.model.permits import Caller, Verb, authority_of
from cairn.controller.model.roles import BUILTIN, allowed_by, builtin_id, expanded, unknown_patterns
from cairn.controller.store.base import Record, Txn, View
from cairn.controller.words import several
from cairn.proto import kinds
from cairn.proto.errors import BadState, Denied, Invalid
from cairn.proto.seams import Clock
from cairn.proto.v1 import role_pb2, role_pb2_grpc
from cairn.proto.v1.role_pb2 import Role

PATTERNS_MAX: Final = 64
RULES: Final = UpdateRules(mutable=("name", "labels", "spec.permissions", "spec.description"), immutable=("spec.builtin",))


class RoleService(role_pb2_grpc.RoleServiceServicer):
    """RoleService of proto/v1/role.proto."""

    def __init__(self, core: Core) -> None:
        self._core = core

    async def CreateRole(self, request: role_pb2.CreateRoleRequest, context: Any) -> Role:
        """Make a role of permissions that its maker has."""

        def decide(view: View, caller: Caller) -> Decided[Role]:
            decided, role = begin(view, caller, self._core, nouns.ROLE, request.role)
            role.spec.description = request.role.spec.description
            role.spec.permissions.extend(_patterns(request.role.spec.permissions))
            _refuse_more(view, caller, role, Role())
            validation.description("role.spec.description", role.spec.description)
            decided.txn.create(kinds.ROLE, role.id, role)
            return decided

        return await self._core.mutations.run(request, caller_of(context), decide)

    async def GetRole(self, request: role_pb2.GetRoleRequest, context: Any) -> Role:
        """Return one."""
        return await self._core.listings.get(caller_of(context), nouns.ROLE, request)

    async def ListRoles(self, request: role_pb2.ListRolesRequest, context: Any) -> role_pb2.ListRolesResponse:
        """Return a page."""
        return await self._core.listings.list(caller_of(context), nouns.ROLE, request, role_pb2.ListRolesResponse)

    async def UpdateRole(self, request: role_pb2.UpdateRoleRequest, context: Any) -> Role:
        """Change what a role of one's own making permits: at once, for all it is bound to."""

        def amend(view: View, caller: Caller, _txn: Txn, new: Role, old: Record[Role]) -> None:
            _refuse_builtin(old.message)
            patterns = _patterns(new.spec.permissions)
            new.spec.permissions[:] = patterns
            validation.description("role.spec.description", new.spec.description)
            _refuse_more(view, caller, new, old.message)

        def decide(view: View, caller: Caller) -> Decided[Role]:
            decided, _, _ = updated(view, caller, self._core, nouns.ROLE, request, RULES, amend)
            return decided

        return await self._core.mutations.run(request, caller_of(context), decide)

    async def DeleteRole(self, request: role_pb2.DeleteRoleRequest, context: Any) -> Role:
        """Remove one that is bound to nobody."""

        def decide(view: View, caller: Caller) -> Decided[Role]:
            record = addressed(view, caller, nouns.ROLE, request, verb=Verb.DELETE)
            resolution.check_etag("etag", record, request.etag, required=False, title="role")
            return removal(view, record)

        return await self._core.mutations.run(request, caller_of(context), decide)

    async def WatchRoles(self, request: role_pb2.WatchRolesRequest, context: Any) -> AsyncIterator[role_pb2.WatchRolesResponse]:
        """Follow them."""
        async for response in self._core.watches.watch(caller_of(context), nouns.ROLE, request, role_pb2.WatchRolesResponse):
            yield response


def removal(view: View, record: Record[Role]) -> Decided[Role]:
    """Return the decision to remove a role. Raises BadState."""
    role = record.message
    _refuse_builtin(role)
    bound = view.by(kinds.BINDING, "role", role.id)
    if bound:
        say = f"role {role.name!r} is bound {several(len(bound), 'time')}: `cairn role bindings` lists whom to, unbind it first"
        raise BadState("role", role.name, say)
    if by := view.count_by(kinds.API_TOKEN, "role", role.id):
        say = f"{several(by, 'API token')} give nothing but what is bound by role {role.name!r}: delete them first"
        raise BadState("role", role.name, say)
    # Whoever binds it checks its revision.
    txn = Txn("api").check(kinds.ROLE, role.id, record.mod_revision).delete(kinds.ROLE, role.id)
    resolution.release(txn, view, nouns.ROLE, "", role.name, role.id)
    said = [("Deleted", f"role {role.name} was deleted")]
    return Decided(txn, nouns.ROLE, role.id, role.name, "", erased=nouns.ROLE.project(view, record), events=said)


def _refuse_builtin(role: Role) -> None:
    if role.spec.builtin:
        raise BadState("role", role.name, f"role {role.name!r} came with this release and is never changed: make another")


def _patterns(given: Sequence[str]) -> list[str]:
    """Return patterns in order, each once. Raises Invalid."""
    validation.at_most("role.spec.permissions", given, PATTERNS_MAX, "permissions")
    if unknown := unknown_patterns(given):
        say = f"{unknown[0]!r} stands for no permission; they are noun.verb, either may be * (docs/permissions.md lists all)"
        raise Invalid("role.spec.permissions", say)
    return sorted(set(given))


def _refuse_more(view: View, caller: Caller, new: Role, old: Role) -> None:
    """Nobody gives what he has not, also not through a role that is bound already. Raises Denied."""
    more = expanded(tuple(new.spec.permissions)) - allowed_by(old)
    if caller.kind == "user" and (missing := sorted(more - authority_of(view, caller).everywhere)):
        raise Denied(f"user {caller.id!r} may not {missing[0]} everywhere, and so cannot put it into a role")


async def ensure_builtin_roles(core: Core, clock: Clock) -> None:
    """Make records of the roles that came with this release, to be listed and bound. Raises StoreError."""
    for name, (description, patterns) in BUILTIN.items():
        role = Role(id=builtin_id(name), name=name)
        role.spec.description, role.spec.builtin = description, True
        role.spec.permissions.extend(patterns)
        await ensure(core, clock, nouns.ROLE, role)
