"""An address of a subnet, a MAC, a name, a node's number, a VNI are each held by one: in the records, and among guests.

Read off the objects themselves; the claims that keep them apart must say the same in the same revision. What is deleted gives
its name back, a VM's own disks with it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tests.sim.asked import Asked
from tests.sim.checkers.base import Checker
from tests.sim.cloud import Cloud, Commit, Guest
from tests.sim.rules import deleted

# Kinds whose objects have a name of their own; those of a project, and those of the cluster.
_NAMED = ("vm", "volume", "image", "vpc", "subnet")
_CLUSTER_WIDE = ("node", "project", "user", "role", "binding", "api_token", "identity_provider", "price_list")
# Claims that are called otherwise than who holds them.
_HOLDERS = {"node-index": "node", "login": "user"}
Thing = tuple[str, ...]


class HeldOnce(Checker):
    """Keeps who holds what, as of the newest revision."""

    def __init__(self) -> None:
        self._holder: dict[Thing, str] = {}
        self._held: dict[str, set[Thing]] = {}

    def committed(self, cloud: Cloud, commit: Commit) -> Iterator[str]:
        """First all that was given back, then what was taken."""
        now = {key: _held_by(cloud, *key.split("/", 1)) for key in _concerned(cloud, commit)}
        for key in now:
            for thing in self._held.pop(key, set()):
                self._holder.pop(thing, None)
        for key, things in now.items():
            for thing in sorted(things):
                other = self._holder.setdefault(thing, key)
                if other != key:
                    yield f"{' '.join(thing)} is held by {other} and by {key}"
            self._held[key] = things
        for key, things in now.items():
            yield from _unclaimed(cloud, key, things)

    def host_changed(self, cloud: Cloud, node: str) -> Iterator[str]:
        """No two live guests anywhere have an address or a MAC in common, and each has those of its port."""
        here = cloud.hosts[node].guests
        for guest in here.values():
            yield from _as_bound(cloud, guest)
        others = [guest for host in cloud.hosts.values() for guest in host.guests.values() if guest.id not in here]
        taken: dict[Thing, str] = {}
        for guest in [*others, *here.values()]:
            for card in guest.cards:
                for thing in (("address", card.subnet, card.address), ("MAC", card.mac)):
                    other = taken.setdefault(thing, guest.id)
                    if other != guest.id:
                        yield f"the guests {other} and {guest.id} both have {' '.join(thing)}"

    def settled(self, cloud: Cloud, asked: Asked) -> Iterator[str]:
        """Nobody holds a claim for nothing."""
        for id, claim in cloud.all("name").items():
            kind = claim.kind if claim.kind in cloud.records else _HOLDERS[claim.kind]
            record = cloud.get(kind, claim.id)
            named = claim.kind in (*_NAMED, *_CLUSTER_WIDE)
            if record is None or (named and ("name", claim.project, claim.kind, claim.name) not in self._holder):
                yield f"the name {id} is claimed by {claim.id}, which is not there"
            if claim.kind == "login" and not any(thing[0] == "login" for thing in self._held.get(f"{kind}/{claim.id}", ())):
                yield f"the name {id} is claimed by {claim.id}, which does not log in"
        for id, vni in cloud.all("vni").items():
            if cloud.get("vpc", vni.holder) is None and cloud.get("subnet", vni.holder) is None:
                yield f"VNI {id} is claimed by {vni.holder}, which is not there"
        for id, claim in cloud.all("address").items():
            binding = cloud.get("port_binding", claim.port)
            if binding is None or binding.subnet != claim.subnet or claim.address not in binding.addresses:
                yield f"the address {id} is claimed by {claim.port}, which does not have it"


def _concerned(cloud: Cloud, commit: Commit) -> list[str]:
    """Keys of objects that may hold something else now; a VM's deletion concerns its disks, a claim its object."""
    found: dict[str, None] = {}
    for change in commit.changes:
        if change.kind in (*_NAMED, *_CLUSTER_WIDE, "port_binding"):
            found[change.key] = None
        if change.kind == "vm":
            found |= {f"volume/{id}": None for id, each in cloud.all("volume").items() if each.spec.vm == change.id}
        claim = change.after or change.before
        if change.kind == "name" and claim.kind in cloud.records:
            found[f"{claim.kind}/{claim.id}"] = None
        elif change.kind == "address":
            found[f"port_binding/{claim.port}"] = None
        elif change.kind == "vni":
            found[f"{'vpc' if cloud.get('vpc', claim.holder) is not None else 'subnet'}/{claim.holder}"] = None
    return list(found)


def _held_by(cloud: Cloud, kind: str, id: str) -> set[Thing]:
    record = cloud.get(kind, id)
    if record is None:
        return set()
    if kind == "port_binding":
        return {("MAC", record.mac)} | {("address", record.subnet, address) for address in record.addresses}
    held = set() if _nameless(cloud, kind, record) else {("name", _owner(kind, record), kind, record.name)}
    if kind == "user" and record.spec.HasField("login"):
        held.add(("login", record.spec.login.provider, record.spec.login.subject))
    if kind == "node" and record.spec.index:
        held.add(("number", str(record.spec.index)))
    if kind in ("vpc", "subnet"):
        held.add(("VNI", str(record.spec.vni)))
    return held


def _nameless(cloud: Cloud, kind: str, record: Any) -> bool:
    if kind in ("vm", "volume") and deleted(record):
        return True
    return kind == "volume" and record.spec.delete_with_vm and deleted(cloud.get("vm", record.spec.vm))


def _owner(kind: str, record: Any) -> str:
    return "-" if kind in _CLUSTER_WIDE else str(record.project)


def _unclaimed(cloud: Cloud, key: str, things: set[Thing]) -> Iterator[str]:
    """What is held is claimed, in the same revision."""
    id = key.partition("/")[2]
    for thing in sorted(things):
        match thing:
            case ("name", owner, kind, name) if kind != "project":
                claim = cloud.get("name", f"{owner}/{kind}/{name}")
                if claim is None or claim.id != id:
                    yield f"{key} has the name {name}, which is claimed by {claim.id if claim is not None else 'nobody'}"
            case ("address", subnet, address):
                claim = cloud.get("address", f"{subnet}/{address}")
                if claim is None or claim.port != id:
                    yield f"{key} has {address}, which is claimed by {claim.port if claim is not None else 'nobody'}"
            case ("VNI", vni):
                claim = cloud.get("vni", f"{int(vni):08d}")
                if claim is None or claim.holder != id:
                    yield f"{key} has VNI {vni}, which is claimed by {claim.holder if claim is not None else 'nobody'}"


def _as_bound(cloud: Cloud, guest: Guest) -> Iterator[str]:
    for card in guest.cards:
        binding = cloud.get("port_binding", card.port)
        if binding is None:
            yield f"guest {guest.id} lives with the card {card.port}, which has no address"
        elif (binding.subnet, list(binding.addresses), binding.mac) != (card.subnet, [card.address], card.mac):
            given = f"{', '.join(binding.addresses)} ({binding.mac})"
            yield f"guest {guest.id} has {card.address} ({card.mac}) at {card.port}, which was given {given}"
