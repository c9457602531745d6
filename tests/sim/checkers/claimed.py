"""A guest executes with a volume of the shared pool only by the claim to open it, of which there is one at a time.

What a guest was shut out of it has no more (cloud.py, Guest). After a restore nobody can say who has the claim of the records.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tests.sim import rules
from tests.sim.asked import Asked
from tests.sim.checkers.base import Checker
from tests.sim.cloud import Changed, Cloud, Commit


class Claimed(Checker):
    """Looks at each guest, at each change of a claim, and at all of them at rest."""

    def committed(self, cloud: Cloud, commit: Commit) -> Iterator[str]:
        """Look at whom a claim passes to."""
        for change in commit.changes:
            if change.kind == "opening" and change.after is not None:
                yield from _passed(cloud, change)

    def host_changed(self, cloud: Cloud, node: str) -> Iterator[str]:
        """Look at what is open there."""
        if _restored(cloud):
            return
        host = cloud.hosts[node]
        for id, guest in host.guests.items():
            for volume in guest.volumes if guest.executing else ():
                claim = cloud.get("opening", volume)
                if volume in cloud.shared and claim is not None and (claim.vm, claim.node) != (id, node):
                    yield f"{id} on {host.name} has {volume} open, the claim is {_who(cloud, claim)}"

    def settled(self, cloud: Cloud, asked: Asked) -> Iterator[str]:
        """Who is to have a volume has the claim, and nobody else has; nobody is being shut out, or is kept in mind for it."""
        for id, record in cloud.all("volume").items():
            if not rules.in_shared_pool(cloud, id):
                continue
            vm = cloud.get("vm", record.spec.vm) if record.spec.vm else None
            placement = cloud.get("placement", vm.id) if vm is not None else None
            wanted = ("", "")
            if vm is not None and placement is not None and not placement.released and not vm.HasField("delete_time"):
                wanted = (vm.id, placement.node) if placement.node else wanted
            claim = cloud.get("opening", id)
            has = (claim.vm, claim.node) if claim is not None else ("", "")
            if has != wanted and _has_addresses(cloud, vm):
                yield f"the claim to {id} is {_who(cloud, claim) if claim is not None else 'none'}, and not that of {wanted}"
        for claim in cloud.all("opening").values():
            if claim.shutting_out or claim.outcasts:
                yield f"{claim.volume}: somebody is shut out still: {claim}"


def _passed(cloud: Cloud, change: Changed) -> Iterator[str]:
    before, after = change.before, change.after
    last = before.generation if before is not None else 0
    if after.generation < last:
        yield f"the claim to {change.id} went back from {last} to {after.generation}"
    if before is None or not before.vm or (after.vm, after.node) == (before.vm, before.node):
        return
    if after.vm and after.generation == last:
        yield f"the claim to {change.id} passed from {_who(cloud, before)} to {_who(cloud, after)} as the same"


def _who(cloud: Cloud, claim: Any) -> str:
    return f"{claim.generation} of {claim.vm or 'nobody'} on {cloud.name_of(claim.node)}"


def _has_addresses(cloud: Cloud, vm: Any) -> bool:
    bindings = [cloud.get("port_binding", nic.port) for nic in vm.spec.nics] if vm is not None else []
    return all(binding is not None and binding.addresses for binding in bindings)


def _restored(cloud: Cloud) -> bool:
    cluster = cloud.get("cluster", "self")
    return cluster is not None and (cluster.HasField("restored") or cluster.HasField("restore"))
