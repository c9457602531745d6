"""What a user may do where: the sum of the bindings that speak of him. Default: nothing.

    of = authority(view, "alice")
    of.allows("vm.delete", project, "vm/i-...")      # by a binding to the cluster, the project or that one object
    of.reasons("vm.delete", project, "vm/i-...")     # those bindings

Whoever asks by an API token has that, narrowed by what the token says. When a token ends is asked where there is a clock
(controller/api/bearer.py).

The first administrator (`cairn cluster init` makes its certificate) may do everything, whatever is recorded: a way in that no
mistake with bindings can close. Everybody else has a record, and nothing once it is disabled or gone. A binding or role that
cannot be read gives nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

from cairn.controller.model.roles import PERMISSIONS, allowed_by, expanded
from cairn.controller.store.base import View
from cairn.proto import kinds
from cairn.proto.subjects import EVERYONE, ROOT, login_key
from cairn.proto.v1.api_token_pb2 import ApiToken
from cairn.proto.v1.user_pb2 import User

_READS: Final[tuple[kinds.AnyKind, ...]] = (kinds.USER, kinds.ROLE, kinds.BINDING)
_READS_BY_TOKEN: Final = (*_READS, kinds.API_TOKEN, kinds.IDENTITY_PROVIDER)


@dataclass(frozen=True, slots=True)
class Grant:
    """What one binding gives. binding, role, user: the records it follows from.

    project: id, empty: in the whole cluster; object: "<noun>/<id>", empty: any there.
    """

    binding: str
    permissions: frozenset[str]
    role: str = ""
    user: str = ""
    project: str = ""
    object: str = ""

    def covers(self, permission: str, project: str, object: str) -> bool:
        """Tell whether it permits that to an object of a project (empty: of none)."""
        if self.object and self.object != object:
            return False
        return permission in self.permissions and (not self.project or self.project == project)


@dataclass(frozen=True, slots=True)
class Authority:
    """See the module."""

    grants: tuple[Grant, ...] = ()
    # The same, for the one question that is asked of every record of a list.
    everywhere: frozenset[str] = frozenset()
    in_project: Mapping[str, frozenset[str]] = field(default_factory=dict)
    of_object: Mapping[str, frozenset[str]] = field(default_factory=dict)

    def allows(self, permission: str, project: str, object: str) -> bool:
        """Tell whether that may be done to an object of a project (empty: of none)."""
        if permission in self.everywhere or permission in self.in_project.get(project, ()):
            return True
        return permission in self.of_object.get(object, ())

    def reasons(self, permission: str, project: str, object: str) -> list[Grant]:
        """Return what permits it."""
        return [each for each in self.grants if each.covers(permission, project, object)]

    def anywhere(self, permission: str) -> bool:
        """Tell whether there is anything it may be done to."""
        return any(permission in each.permissions for each in self.grants)


NONE: Final = Authority()
ALL: Final = Authority((Grant("", PERMISSIONS),), PERMISSIONS)


def user_called(view: View, name: str) -> User | None:
    """Return the record of a user that may do anything; None: there is none, or it is disabled."""
    for id in view.by(kinds.USER, "name", name):
        user = view.get(kinds.USER, id)
        if user is not None and not user.spec.disabled:
            return user
    return None


def authority(view: View, name: str, token: str = "") -> Authority:
    """Return what the user of that name may do. token: the id of the API token that he asks by; empty: by none."""
    if token:
        return view.recall(f"authority of {name} by {token}", _READS_BY_TOKEN, lambda: _by_token(view, name, token))
    if name == ROOT:
        return ALL
    return view.recall(f"authority of {name}", _READS, lambda: _summed(view, name))


def _by_token(view: View, name: str, token: str) -> Authority:
    user, found = user_called(view, name), token_of(view, name, token)
    if user is None or found is None:
        return NONE
    groups = login_groups(view, found)
    return narrowed(summed(tuple(_grants(view, user, groups))) if groups else authority(view, name), found)


def _summed(view: View, name: str) -> Authority:
    user = user_called(view, name)
    if user is None:
        return NONE
    return summed(tuple(_grants(view, user, ())))


def token_of(view: View, name: str, token: str) -> ApiToken | None:
    """Return a token of the user of that name; None: it is gone, disabled or another's, or he may do nothing.

    One he has by logging in is his while he is who logged in, and his identity provider is trusted.
    """
    user, found = user_called(view, name), view.get(kinds.API_TOKEN, token)
    if user is None or found is None or found.spec.user != user.id or found.spec.disabled:
        return None
    if found.spec.HasField("login") and not _logged_in(view, user, found):
        return None
    return found


def _logged_in(view: View, user: User, token: ApiToken) -> bool:
    provider = view.get(kinds.IDENTITY_PROVIDER, token.spec.login.provider)
    trusted = provider is not None and not provider.spec.disabled
    return trusted and login_key(user.spec.login) == login_key(token.spec.login)


def login_groups(view: View, token: ApiToken) -> tuple[str, ...]:
    """Return the groups that somebody is in by having logged in: as long as the provider's record names them."""
    provider = view.get(kinds.IDENTITY_PROVIDER, token.spec.login.provider) if token.spec.HasField("login") else None
    named = frozenset(provider.spec.groups.values()) if provider is not None else frozenset()
    return tuple(each for each in token.spec.login.groups if each in named)


def is_lesser(token: ApiToken) -> bool:
    """Tell whether a token gives less than its user has, wherever it comes from."""
    return bool(token.spec.permissions or token.spec.roles or token.spec.projects)


def narrowed(of: Authority, token: ApiToken) -> Authority:
    """Return what a token leaves of what its user may do."""
    if not is_lesser(token):
        return of
    spec = token.spec
    allowed = expanded(tuple(spec.permissions)) if spec.permissions else PERMISSIONS
    left: list[Grant] = []
    for each in of.grants:
        if spec.roles and each.role not in spec.roles:
            continue
        less = replace(each, permissions=each.permissions & allowed)
        if not spec.projects or each.project in spec.projects:
            left.append(less)
        elif not each.project:
            left.extend(replace(less, project=project) for project in spec.projects)
    return summed(tuple(left))


def lacking(mine: Authority, of: Authority) -> str:
    """Return a permission that somebody lacks of what another one has; empty: none."""
    for each in of.grants:
        if missing := [every for every in each.permissions if not mine.allows(every, each.project, each.object)]:
            return min(missing)
    return ""


def summed(grants: tuple[Grant, ...]) -> Authority:
    """Return what grants give together."""
    everywhere: frozenset[str] = frozenset()
    in_project: dict[str, frozenset[str]] = {}
    of_object: dict[str, frozenset[str]] = {}
    for each in grants:
        if each.object:
            of_object[each.object] = of_object.get(each.object, frozenset()) | each.permissions
        elif each.project:
            in_project[each.project] = in_project.get(each.project, frozenset()) | each.permissions
        else:
            everywhere |= each.permissions
    return Authority(grants, everywhere, in_project, of_object)


def _grants(view: View, user: User, groups: Iterable[str]) -> Iterator[Grant]:
    """Yield what speaks of a user, in the order of ids. groups: that he is in besides."""
    subjects = [f"user/{user.id}", *(f"group/{each}" for each in sorted({*user.spec.groups, *groups})), EVERYONE]
    for subject in subjects:
        for id in view.by(kinds.BINDING, "subject", subject):
            binding: Any = view.get(kinds.BINDING, id)
            role = view.get(kinds.ROLE, binding.spec.role) if binding is not None else None
            if role is not None:
                yield Grant(id, allowed_by(role), role.id, user.id, binding.project, binding.spec.object)
