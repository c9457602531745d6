"""Whatever a record refers to exists, in every revision; and a VM and its volumes agree about who is attached to whom."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tests.sim.checkers.base import Checker
from tests.sim.cloud import Cloud, Commit
from tests.sim.rules import card_of, deleted


class References(Checker):
    """Keeps who refers to whom."""

    def __init__(self) -> None:
        # Key -> keys it refers to; and the other way round.
        self._to: dict[str, set[str]] = {}
        self._from: dict[str, set[str]] = {}

    def committed(self, cloud: Cloud, commit: Commit) -> Iterator[str]:
        """Look at what changed, from both sides."""
        for change in commit.changes:
            for target in self._to.pop(change.key, set()):
                self._from[target].discard(change.key)
            if change.after is not None:
                targets = self._to[change.key] = set(_references(change.kind, change.after))
                for target in targets:
                    self._from.setdefault(target, set()).add(change.key)
        for change in commit.changes:
            for target in sorted(self._to.get(change.key, ())):
                if cloud.get(*target.split("/", 1)) is None and not _ending(cloud, change.key, target):
                    yield f"{change.key} refers to {target}, which is not there"
            users = [key for key in sorted(self._from.get(change.key, ())) if not _ending(cloud, key, change.key)]
            if change.after is None and users:
                yield f"{change.key} was removed while {', '.join(users)} refers to it"
        yield from self._attachments(cloud, commit)

    def _attachments(self, cloud: Cloud, commit: Commit) -> Iterator[str]:
        vms: dict[str, None] = {}
        for change in commit.changes:
            if change.kind == "vm":
                vms[change.id] = None
            elif change.kind == "volume":
                vms |= {each.spec.vm: None for each in (change.before, change.after) if each is not None and each.spec.vm}
        for id in vms:
            vm = cloud.get("vm", id)
            if vm is None or deleted(vm):
                continue
            listed = {vm.spec.root_volume, *vm.spec.volumes}
            attached = {volume.id for volume in cloud.all("volume").values() if volume.spec.vm == id}
            if listed != attached:
                yield f"VM {id} lists the volumes {sorted(listed)}, attached to it are {sorted(attached)}"


def _ending(cloud: Cloud, key: str, target: str) -> bool:
    """Whether it is the place of something that is gone: it follows as soon as that is seen.

    Or a deleted VM whose own disk was to stay: that is a data volume of its own since, and may be erased before the VM is.
    """
    kind, _, id = key.partition("/")
    if kind == "vm" and target.startswith("volume/"):
        return deleted(cloud.get("vm", id))
    of = {"placement": "vm", "volume_placement": "volume"}.get(kind)
    return of is not None and cloud.get(of, id) is None


def _references(kind: str, record: Any) -> Iterator[str]:
    spec = getattr(record, "spec", None)
    match kind:
        case "vm":
            if not record.HasField("delete_time"):
                # The root disk of a deleted one may have left it, and be gone: then it is not brought back.
                yield f"image/{spec.image}"
                yield f"volume/{spec.root_volume}"
            yield from (f"volume/{volume}" for volume in spec.volumes)
            yield from (f"subnet/{nic.subnet}" for nic in spec.nics)
            yield from (f"port/{nic.port}" for nic in spec.nics)
        case "volume":
            yield from (f"vm/{vm}" for vm in [spec.vm] if vm)
            yield from (f"image/{image}" for image in [spec.image] if image)
        case "port":
            yield f"vpc/{spec.vpc}"
            yield f"subnet/{spec.subnet}"
            yield from (f"vm/{vm}" for vm in [card_of(record)] if vm)
        case "subnet":
            yield f"vpc/{spec.vpc}"
        case "placement" | "volume_placement":
            yield from (f"node/{node}" for node in [record.node] if node)
