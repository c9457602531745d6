"""No project comes to have more than its quota, in any revision: counted from the records, and not as the product counts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from tests.sim.checkers.base import Checker
from tests.sim.cloud import Cloud, Commit

# Kind of record -> what it is called in quotas.
_ONE_EACH = {
    "vm": "vms", "volume": "volumes", "image": "images", "port": "ports", "vpc": "vpcs", "subnet": "subnets",
    "api_token": "tokens",
}  # fmt: skip


class Quotas(Checker):
    """Looks at projects with limits in which a commit made something."""

    def committed(self, cloud: Cloud, commit: Commit) -> Iterator[str]:
        """More than the limit is wrong when it is more than before: limits may be lowered below what there is."""
        if any(change.kind == "request" and change.after is not None and _adopts(change.after) for change in commit.changes):
            return
        made = [change for change in commit.changes if change.kind in _ONE_EACH and change.after is not None]
        for project in dict.fromkeys(project for change in made for project in _projects(change.kind, change.after)):
            limits = _limits(cloud, project)
            if not limits:
                continue
            after = _used(cloud, project)
            for name, limit in limits.items():
                gained = sum(_gained(change, project, name) for change in commit.changes if change.kind in _ONE_EACH)
                if gained > 0 and after.get(name, 0) > limit:
                    yield f"project {project} has {after[name]} {name}, {gained} more than before, and may have {limit}"


def _adopts(request: Any) -> bool:
    return str(request.method).startswith("Adopt")


def _projects(kind: str, record: Any) -> list[str]:
    return list(record.spec.projects) if kind == "api_token" else [record.project]


def _limits(cloud: Cloud, project: str) -> Mapping[str, int]:
    found: dict[str, int] = {}
    for owner in ("", project):
        for quota in cloud.all("quota").values():
            if quota.project == owner:
                found |= quota.spec.limits
    return {name: limit for name, limit in found.items() if limit >= 0}


def _amounts(kind: str, record: Any) -> dict[str, int]:
    found = {_ONE_EACH[kind]: 1}
    if kind == "vm" and not record.HasField("delete_time"):
        found |= {"cpus": record.spec.cpus, "memory_bytes": record.spec.memory_bytes}
    if kind == "volume":
        found[f"volume_bytes.{record.spec.type or 'local'}"] = record.spec.size_bytes
    if kind == "image":
        found["image_bytes"] = record.spec.size_bytes
    return found


def _used(cloud: Cloud, project: str) -> dict[str, int]:
    found: dict[str, int] = {}
    for kind in _ONE_EACH:
        for record in cloud.all(kind).values():
            for name, amount in _amounts(kind, record).items() if project in _projects(kind, record) else ():
                found[name] = found.get(name, 0) + amount
    return found


def _gained(change: Any, project: str, name: str) -> int:
    total = 0
    for record, sign in ((change.before, -1), (change.after, 1)):
        if record is not None and project in _projects(change.kind, record):
            total += sign * _amounts(change.kind, record).get(name, 0)
    return total
