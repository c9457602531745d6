"""Users: people and programs that ask. Their names are what certificates call them, and are never changed."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, Final

from cairn.controller.api import nouns, resolution, validation
from cairn.controller.api.administrators import keep_one
from cairn.controller.api.authorise import caller_of
from cairn.controller.api.bindings import BINDINGS_MAX, drop_binding, refuse_letting_in
from cairn.controller.api.core import Core
from cairn.controller.api.decision import Decided
from cairn.controller.api.linking import relink, unlink
from cairn.controller.api.masks import UpdateRules
from cairn.controller.api.objects import addressed, begin, updated
from cairn.controller.model.permits import Caller, Verb
from cairn.controller.store.base import Record, Txn, View
from cairn.proto import kinds
from cairn.proto.errors import BadState, Invalid
from cairn.proto.subjects import ROOT, subject_key
from cairn.proto.v1 import user_pb2, user_pb2_grpc
from cairn.proto.v1.binding_pb2 import Subject
from cairn.proto.v1.user_pb2 import User, UserSpec

GROUPS_MAX: Final = 64
RULES: Final = UpdateRules(
    mutable=("labels", "spec.disabled", "spec.groups", "spec.description", "spec.login"), immutable=("name", "spec.type")
)


class UserService(user_pb2_grpc.UserServiceServicer):
    """UserService of proto/v1/user.proto."""

    def __init__(self, core: Core) -> None:
        self._core = core

    async def CreateUser(self, request: user_pb2.CreateUserRequest, context: Any) -> User:
        """Make a user; nothing is allowed to it before a role is bound to it."""

        def decide(view: View, caller: Caller) -> Decided[User]:
            decided, user = begin(view, caller, self._core, nouns.USER, request.user)
            if user.name == ROOT:
                raise Invalid("user.name", f"{ROOT!r} is the first administrator, who has no record: take another name")
            user.spec.CopyFrom(request.user.spec)
            user.spec.type = user.spec.type or UserSpec.TYPE_PERSON
            _check(user)
            refuse_letting_in(view, caller, user.spec.groups)
            relink(decided.txn, view, caller, user, User())
            decided.txn.create(kinds.USER, user.id, user)
            return decided

        return await self._core.mutations.run(request, caller_of(context), decide)

    async def GetUser(self, request: user_pb2.GetUserRequest, context: Any) -> User:
        """Return one."""
        return await self._core.listings.get(caller_of(context), nouns.USER, request)

    async def ListUsers(self, request: user_pb2.ListUsersRequest, context: Any) -> user_pb2.ListUsersResponse:
        """Return a page."""
        return await self._core.listings.list(caller_of(context), nouns.USER, request, user_pb2.ListUsersResponse)

    async def UpdateUser(self, request: user_pb2.UpdateUserRequest, context: Any) -> User:
        """Disable it or let it in again; change its groups."""

        def amend(view: View, caller: Caller, txn: Txn, new: User, old: Record[User]) -> None:
            _check(new)
            refuse_letting_in(view, caller, set(new.spec.groups) - set(old.message.spec.groups))
            relink(txn, view, caller, new, old.message)
            txn.put(kinds.USER, new.id, new)
            keep_one(view, txn, f"user {new.name!r}")

        def decide(view: View, caller: Caller) -> Decided[User]:
            decided, _, _ = updated(view, caller, self._core, nouns.USER, request, RULES, amend)
            return decided

        return await self._core.mutations.run(request, caller_of(context), decide)

    async def DeleteUser(self, request: user_pb2.DeleteUserRequest, context: Any) -> User:
        """Remove a user, and what was bound to it."""

        def decide(view: View, caller: Caller) -> Decided[User]:
            record = addressed(view, caller, nouns.USER, request, verb=Verb.DELETE)
            resolution.check_etag("etag", record, request.etag, required=False, title="user")
            return removal(view, record)

        return await self._core.mutations.run(request, caller_of(context), decide)

    async def WatchUsers(self, request: user_pb2.WatchUsersRequest, context: Any) -> AsyncIterator[user_pb2.WatchUsersResponse]:
        """Follow them."""
        async for response in self._core.watches.watch(caller_of(context), nouns.USER, request, user_pb2.WatchUsersResponse):
            yield response


def removal(view: View, record: Record[User]) -> Decided[User]:
    """Return the decision to remove a user with what speaks of it. Raises BadState."""
    user = record.message
    txn = Txn("api").check(kinds.USER, user.id, record.mod_revision).delete(kinds.USER, user.id)
    txn.delete(kinds.QUOTA_USE, user.id)
    resolution.release(txn, view, nouns.USER, "", user.name, user.id)
    if user.spec.HasField("login"):
        unlink(txn, view, user)
    bindings = view.by(kinds.BINDING, "subject", subject_key(Subject(user=user.id)))
    if len(bindings) > BINDINGS_MAX:
        say = f"user {user.name!r} has {len(bindings)} bindings, and {BINDINGS_MAX} go with it at most: unbind some first"
        raise BadState("user", user.name, say)
    for id in bindings:
        drop_binding(txn, view, id)
    keep_one(view, txn, f"user {user.name!r}")
    said = [("Deleted", f"user {user.name} was deleted, with {len(bindings)} bindings")]
    return Decided(txn, nouns.USER, user.id, user.name, "", erased=nouns.USER.project(view, record), events=said)


def _check(user: User) -> None:
    """Raises Invalid."""
    spec = user.spec
    validation.at_most("user.spec.groups", spec.groups, GROUPS_MAX, "groups")
    for number, group in enumerate(spec.groups):
        validation.name(f"user.spec.groups[{number}]", group)
    validation.description("user.spec.description", spec.description)
