"""Nobody changes anything without a right to it at that very revision.

Judged from the records alone, and coarsely: a user that is there and not disabled, and a binding that gives him more than to
look. What each role permits in particular is for the tests of roles.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tests.sim.checkers.base import Checker
from tests.sim.cloud import Cloud, Commit

_USER = "cairn://user/"
# Has no record, and may do everything.
_ROOT = "admin"
_LOOKS_ONLY = ("viewer", "auditor")


class Permitted(Checker):
    """Looks at who is said to have asked for what a commit did."""

    def committed(self, cloud: Cloud, commit: Commit) -> Iterator[str]:
        """Each request that was carried out is its caller's to make.

        What is taken back in the same transaction was decided after it, or before what is given there: both count.
        """
        before: dict[str, list[Any]] = {"user": [], "binding": []}
        for change in commit.changes:
            if change.kind in before and change.before is not None:
                before[change.kind].append(change.before)
        for change in commit.changes:
            record = change.after
            if change.kind != "request" or record is None or record.refusal or not record.caller.startswith(_USER):
                continue
            name = record.caller.removeprefix(_USER)
            if name != _ROOT and not _may(cloud, name, before):
                yield f"{record.method} of {record.object} was carried out for {name}, who may not"


def _may(cloud: Cloud, name: str, before: dict[str, list[Any]]) -> bool:
    users = [each for each in [*cloud.all("user").values(), *before["user"]] if each.name == name and not each.spec.disabled]
    for binding in [*cloud.all("binding").values(), *before["binding"]]:
        role, subject = cloud.get("role", binding.spec.role), binding.spec.subject
        if role is not None and role.name in _LOOKS_ONLY:
            continue
        for user in users:
            if subject.user == user.id or (subject.group and subject.group in user.spec.groups) or subject.everyone:
                return True
    return False
