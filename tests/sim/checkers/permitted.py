"""Nobody changes anything without a right to it at that very revision.

Judged from the records alone, and coarsely: a user that is there and not disabled, and a binding that gives him more than to
look. What each role permits in particular is for the tests of roles. Who asked by a token has one that is there, is his, is not
disabled, has not ended by the clock of whoever decided, and is not narrowed to something else. Who has it by logging in is whom
his identity provider means by it, and in the groups it named as far as its record still says so. Nobody logs in by one that is
not trusted.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from fnmatch import fnmatchcase
from typing import Any

from tests.sim.checkers.base import Checker
from tests.sim.cloud import Cloud, Commit

_USER = "cairn://user/"
# Has no record, and may do everything.
_ROOT = "admin"
_LOOKS_ONLY = ("viewer", "auditor")
# What records were before a commit, by kind.
Before = dict[str, list[Any]]


class Permitted(Checker):
    """Looks at who is said to have asked for what a commit did."""

    def committed(self, cloud: Cloud, commit: Commit) -> Iterator[str]:
        """Each request that was carried out is its caller's to make.

        What is taken back in the same transaction was decided after it, or before what is given there: both count.
        """
        before: Before = {"user": [], "binding": [], "api_token": [], "identity_provider": []}
        for change in commit.changes:
            if change.kind in before and change.before is not None:
                before[change.kind].append(change.before)
        for change in commit.changes:
            record = change.after
            if change.kind != "request" or record is None or record.refusal:
                continue
            if record.method == "Login" and not _vouched(cloud, record.object.partition("/")[2], before):
                yield f"{record.caller} has logged in, and nobody who is trusted vouches for it"
            if not record.caller.startswith(_USER):
                continue
            name = record.caller.removeprefix(_USER)
            if name != _ROOT and not _may(cloud, name, record.token, before):
                yield f"{record.method} of {record.object} was carried out for {name}, who may not"
            if record.token and not _by(cloud, name, record, before):
                yield f"{record.method} of {record.object} was carried out by token {record.token} of {name}, which may not"


def _providers(cloud: Cloud, id: str, before: Before) -> list[Any]:
    """Return what an identity provider was in this commit, while it was trusted."""
    known = [*cloud.all("identity_provider").values(), *before["identity_provider"]]
    return [each for each in known if each.id == id and not each.spec.disabled]


def _vouched(cloud: Cloud, token: str, before: Before) -> bool:
    """Tell whether whoever has a token by logging in is whom a trusted provider means, or has it otherwise."""
    for made in [*cloud.all("api_token").values(), *before["api_token"]]:
        login = made.spec.login
        if made.id != token:
            continue
        if not made.spec.HasField("login"):
            return True
        users = [each for each in [*cloud.all("user").values(), *before["user"]] if each.id == made.spec.user]
        meant = any((each.spec.login.provider, each.spec.login.subject) == (login.provider, login.subject) for each in users)
        return meant and bool(_providers(cloud, login.provider, before))
    return False


def _groups(cloud: Cloud, token: str, before: Before) -> set[str]:
    """Return the groups that somebody is in by having logged in."""
    for made in [*cloud.all("api_token").values(), *before["api_token"]]:
        if made.id == token and made.spec.HasField("login"):
            providers = _providers(cloud, made.spec.login.provider, before)
            named = {ours for each in providers for ours in each.spec.groups.values()}
            return named & set(made.spec.login.groups)
    return set()


def _by(cloud: Cloud, name: str, record: Any, before: Before) -> bool:
    """Tell whether a token is good for a request."""
    verb, noun = re.match(r"([A-Z][a-z]+)(\w+)", record.method).groups()  # type: ignore[union-attr]
    permission = f"{re.sub('(?<!^)(?=[A-Z])', '_', noun).lower()}.{verb.lower()}"
    users = {each.id for each in [*cloud.all("user").values(), *before["user"]] if each.name == name}
    for token in [*cloud.all("api_token").values(), *before["api_token"]]:
        spec = token.spec
        ended = record.create_time.ToDatetime() >= spec.expire_time.ToDatetime()
        wide = not spec.permissions or any(fnmatchcase(permission, each) for each in spec.permissions)
        if token.id == record.token and spec.user in users and wide and not (spec.disabled or ended):
            return _vouched(cloud, token.id, before)
    return False


def _may(cloud: Cloud, name: str, token: str, before: Before) -> bool:
    groups = _groups(cloud, token, before)
    users = [each for each in [*cloud.all("user").values(), *before["user"]] if each.name == name and not each.spec.disabled]
    for binding in [*cloud.all("binding").values(), *before["binding"]]:
        role, subject = cloud.get("role", binding.spec.role), binding.spec.subject
        if role is not None and role.name in _LOOKS_ONLY:
            continue
        for user in users:
            if subject.user == user.id or subject.everyone:
                return True
            if subject.group and (subject.group in user.spec.groups or subject.group in groups):
                return True
    return False
