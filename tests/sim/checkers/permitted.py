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
        """Each request that was carried out is its caller's to make; what was taken back with it, he had."""
        gone = [change.before for change in commit.changes if change.kind == "binding" and change.after is None]
        for change in commit.changes:
            record = change.after
            if change.kind != "request" or record is None or record.refusal or not record.caller.startswith(_USER):
                continue
            name = record.caller.removeprefix(_USER)
            if name != _ROOT and not _may(cloud, name, gone):
                yield f"{record.method} of {record.object} was carried out for {name}, who may not"


def _may(cloud: Cloud, name: str, gone: list[Any]) -> bool:
    user = next((each for each in cloud.all("user").values() if each.name == name), None)
    if user is None or user.spec.disabled:
        return False
    for binding in [*cloud.all("binding").values(), *gone]:
        role = cloud.get("role", binding.spec.role)
        subject = binding.spec.subject
        if role is not None and role.name in _LOOKS_ONLY:
            continue
        if subject.user == user.id or (subject.group and subject.group in user.spec.groups) or subject.everyone:
            return True
    return False
