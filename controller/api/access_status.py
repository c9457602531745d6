"""How users, roles, bindings, API tokens and identity providers are shown."""

from __future__ import annotations

from typing import Any, Final

from cairn.controller.api.status import copied
from cairn.controller.model.authority import token_of
from cairn.controller.model.roles import BUILTIN
from cairn.controller.store.base import Record, View
from cairn.controller.words import several
from cairn.proto import kinds
from cairn.proto.subjects import subject_key
from cairn.proto.v1.api_token_pb2 import ApiToken
from cairn.proto.v1.binding_pb2 import Binding, Subject
from cairn.proto.v1.identity_provider_pb2 import IdentityProvider
from cairn.proto.v1.role_pb2 import Role
from cairn.proto.v1.user_pb2 import User

_KINDS: Final = {kind.name: kind for kind in (kinds.VM, kinds.VOLUME, kinds.IMAGE, kinds.VPC, kinds.SUBNET, kinds.PORT)}


def user(view: View, record: Record[User]) -> User:
    """Project a user."""
    result: User = copied(record)
    status, spec = result.status, result.spec
    bound = view.count_by(kinds.BINDING, "subject", subject_key(Subject(user=result.id)))
    status.say = "disabled: it may do nothing" if spec.disabled else f"{several(bound, 'role')} bound to it"
    if not bound and not spec.disabled:
        groups = f", but for its {several(len(spec.groups), 'group')}" if spec.groups else ""
        status.say = f"no role is bound to it{groups}: `cairn role bind ROLE --user {result.name}`"
    by = view.get(kinds.IDENTITY_PROVIDER, spec.login.provider) if spec.HasField("login") else None
    status.provider_name = by.name if by is not None else spec.login.provider
    status.observed_revision = record.mod_revision
    return result


def role(view: View, record: Record[Role]) -> Role:
    """Project a role: of those that came with this release what it permits now, not when its record was made."""
    result: Role = copied(record)
    builtin = BUILTIN.get(result.name) if result.spec.builtin else None
    if builtin is not None:
        result.spec.description = builtin[0]
        result.spec.permissions[:] = builtin[1]
    result.status.bindings = view.count_by(kinds.BINDING, "role", result.id)
    result.status.say = f"bound {several(result.status.bindings, 'time')}"
    result.status.observed_revision = record.mod_revision
    return result


def binding(view: View, record: Record[Binding]) -> Binding:
    """Project a binding."""
    result: Binding = copied(record)
    status, spec = result.status, result.spec
    bound = view.get(kinds.ROLE, spec.role)
    status.role_name = bound.name if bound is not None else spec.role
    status.subject_name = _subject_name(view, spec.subject)
    status.object_name = _object_name(view, spec.object)
    where = status.object_name or ("in its project" if result.project else "in the whole cluster")
    status.say = f"{status.subject_name} has role {status.role_name} {where}"
    status.observed_revision = record.mod_revision
    return result


def api_token(view: View, record: Record[ApiToken]) -> ApiToken:
    """Project a token: all but what tells a good secret from a bad one."""
    result: ApiToken = copied(record)
    result.ClearField("secret_sha256")
    status, spec = result.status, result.spec
    user = view.get(kinds.USER, spec.user)
    status.user_name = user.name if user is not None else spec.user
    status.role_names[:] = [named.name if (named := view.get(kinds.ROLE, id)) is not None else id for id in spec.roles]
    status.say = f"stands for {status.user_name} until {spec.expire_time.ToDatetime():%Y-%m-%d %H:%M} UTC"
    if spec.disabled:
        status.say = f"disabled: nobody is taken for {status.user_name} by it"
    elif user is None or user.spec.disabled:
        status.say = f"good for nothing: its user {status.user_name} is disabled or gone"
    elif token_of(view, user.name, result.id) is None:
        status.say = f"good for nothing: {status.user_name} logs in so no more, or its identity provider is not trusted"
    status.observed_revision = record.mod_revision
    return result


def identity_provider(view: View, record: Record[IdentityProvider]) -> IdentityProvider:
    """Project an identity provider."""
    result: IdentityProvider = copied(record)
    status = result.status
    status.users = view.count_by(kinds.USER, "provider", result.id)
    status.say = f"{several(status.users, 'user')} may log in by it"
    if result.spec.disabled:
        status.say = "disabled: nobody can log in by it, and whoever has is out"
    elif result.spec.create_users:
        status.say = f"whoever it knows may log in; {several(status.users, 'user')} did"
    status.observed_revision = record.mod_revision
    return result


def _subject_name(view: View, subject: Subject) -> str:
    if subject.HasField("user"):
        found = view.get(kinds.USER, subject.user)
        return f"user {found.name if found is not None else subject.user}"
    return f"group {subject.group}" if subject.HasField("group") else "everyone"


def _object_name(view: View, object: str) -> str:
    kind, _, id = object.partition("/")
    found: Any = view.get(_KINDS[kind], id) if kind in _KINDS else None
    return f"for {kind} {found.name if found is not None else id}" if object else ""
