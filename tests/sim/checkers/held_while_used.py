"""No record vanishes while something of it exists in the world, and what is used is not given to others.

A guest that exists keeps its record, its place on that node, its ports and their addresses; a volume on a disk keeps its record
and its place; a network with a guest's card in it keeps its subnet. They go only after the node said that nothing is left.
"""

from __future__ import annotations

from collections.abc import Iterator

from tests.sim import rules
from tests.sim.checkers.base import Checker
from tests.sim.cloud import Changed, Cloud, Commit, Guest, Host


class HeldWhileUsed(Checker):
    """Looks from both sides: at what a record's change takes away, and at what a host's change begins to use."""

    def committed(self, cloud: Cloud, commit: Commit) -> Iterator[str]:
        """Look for uses of what was taken away or changed."""
        for change in commit.changes:
            if change.kind == "volume" and change.after is None and change.id in cloud.shared:
                yield f"the record of volume {change.id} vanished while it is in the shared pool"
            if change.kind == "volume_placement" and change.id in cloud.shared and not rules.in_shared_pool(cloud, change.id):
                yield f"the place of volume {change.id} was given away while it is in the shared pool"
            if change.before is not None:
                for host in cloud.hosts.values():
                    yield from _still_used(cloud, change, host)

    def pool_changed(self, cloud: Cloud) -> Iterator[str]:
        """Everything in the shared pool has its records."""
        for id in cloud.shared:
            if cloud.get("volume", id) is None or not rules.in_shared_pool(cloud, id):
                yield f"volume {id} is in the shared pool, its records are not"

    def host_changed(self, cloud: Cloud, node: str) -> Iterator[str]:
        """Everything there has its records."""
        host = cloud.hosts[node]
        for id in sorted(host.defined | host.files):
            if cloud.get("vm", id) is None:
                yield f"{host.name} has something of VM {id}, which has no record"
        for guest in host.guests.values():
            yield from _place(cloud, host, guest.id)
            yield from _cards(cloud, host, guest)
        for id in host.volumes:
            place = cloud.get("volume_placement", id)
            if cloud.get("volume", id) is None or place is None or place.node != node:
                yield f"volume {id} is on {host.name}, its records are not: placed {place.node if place else 'nowhere'}"


def _still_used(cloud: Cloud, change: Changed, host: Host) -> Iterator[str]:
    id, gone = change.id, change.after is None
    match change.kind:
        case "vm" if gone:
            if id in host.defined or id in host.guests or id in host.files:
                yield f"the record of VM {id} vanished while {host.name} still has it"
        case "placement":
            if id in host.guests:
                yield from _place(cloud, host, id)
        case "volume" if gone:
            if id in host.volumes:
                yield f"the record of volume {id} vanished while it is on {host.name}"
        case "volume_placement":
            if id in host.volumes and (gone or change.after.node != host.node):
                yield f"the place of volume {id} was given away while it is on {host.name}"
        case "node" if gone:
            if host.node == id and (host.defined or host.volumes):
                yield f"node {host.name} was removed with {sorted([*host.defined, *host.volumes])} on it"
        case "port" | "port_binding" | "address" | "subnet" | "vpc":
            for guest in host.guests.values():
                yield from _cards(cloud, host, guest)


def _place(cloud: Cloud, host: Host, vm: str) -> Iterator[str]:
    placement = cloud.get("placement", vm)
    if placement is None or placement.released or placement.node != host.node:
        where = "nowhere" if placement is None else f"on {cloud.name_of(placement.node)}"
        released = " and was released" if placement is not None and placement.released else ""
        yield f"VM {vm} lives on {host.name}, but is placed {where}{released}"


def _cards(cloud: Cloud, host: Host, guest: Guest) -> Iterator[str]:
    for card in guest.cards:
        claim = cloud.get("address", f"{card.subnet}/{card.address}")
        if claim is None or claim.port != card.port:
            by = claim.port if claim is not None else "nobody"
            yield f"VM {guest.id} lives on {host.name} with {card.address}, which is claimed by {by}"
        if cloud.get("port", card.port) is None or cloud.get("subnet", card.subnet) is None:
            yield f"VM {guest.id} lives on {host.name} with the card {card.port}, whose port or subnet has no record"
