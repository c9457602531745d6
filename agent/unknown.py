"""What this node holds that it is not told to hold: left as it is, and told to the controller, who remembers it for people.

Three sorts: what the ledger knows from before (its last object was taken back, or a snapshot lacked it, without a word that it
be absent), and what is found on the host without the ledger knowing anything. Neither is ever started, stopped or removed from
here; guests that run keep their networks (kept.py). What is unknown and not here any more is forgotten. The third are guests
that are managed as ever, and told here so that somebody adopts or removes them: those that are doubted (doubt.py), and those of
which a restored store cannot say what they are to be (it lacks the address of a card that was given one since).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from cairn.agent.doubt import is_guest
from cairn.agent.hypervisor.base import DomainState
from cairn.agent.kept import SUBNETS, is_administered
from cairn.agent.last_word import is_absent
from cairn.agent.ledger import Ledger
from cairn.agent.reports import Reports
from cairn.agent.work import Again
from cairn.agent.world import Part, World
from cairn.proto.v1.agent_pb2 import DesiredNetwork, DesiredVm, Unknown

KEY: Final = "unknown"
# Kinds of objects that are told; what they need of networks goes with them.
_TOLD: Final = ("vm", "volume", "image")
_DOUBT: Final = (
    "they stay as they were until the records speak of them again (`cairn cluster adopt`) or somebody says that they go"
    " (`cairn node forget`)"
)
_PARTS: Final = (Part.DOMAINS, Part.VOLUMES, Part.POOLS, Part.IMAGES, Part.FILES)


class Unknowns:
    """Observe and report what is unknown."""

    def __init__(self, world: World, ledger: Ledger, reports: Reports) -> None:
        self._world, self._ledger, self._reports = world, ledger, reports
        # Guests that were told to be doubted.
        self._told: frozenset[str] = frozenset()
        # Called with the keys of what was forgotten, and of what had stayed for it.
        self.forgotten: Callable[[set[str]], None] = _ignore

    async def settle(self, _key: str = KEY) -> Again:
        """Look at everything; tell what is unknown now."""
        if not (self._ledger.synced and self._ledger.trusted):
            return Again()
        while not self._world.is_fresh(*_PARTS):
            await self._world.refresh(*_PARTS)
        # What cannot be looked at is not gone.
        self._world.require()
        remembered = [key for key in self._ledger.unknown if key.partition("/")[0] in _TOLD]
        gone = await self._ledger.forget(key for key in remembered if not self._is_here(key))
        if gone:
            self.forgotten(gone)
            remembered = [key for key in remembered if key in self._ledger.unknown]
        found = {key: self._unknown(key) for key in remembered if self._is_here(key)}
        found |= {key: self._unknown(key) for key in sorted(self._strangers())}
        found |= {key: self._contested(key) for key in self._ledger.overruled}
        found |= {key: self._untold(key) for key in self._untold_since_a_restore()}
        found |= {key: self._doubted(key) for key in sorted(self._ledger.doubted)}
        self._tell_doubt()
        self._reports.put_unknown(found, epoch=self._ledger.held[0])
        return Again()

    def _is_here(self, key: str) -> bool:
        kind, _, id = key.partition("/")
        if kind == "vm":
            return id in self._world.domains or id in self._world.files
        if kind == "volume":
            # One that was here and is gone may come back with its pool.
            return id in self._world.volumes or id in self._world.pooled or bool(self._ledger.note(key))
        held = self._ledger.last(key)
        return (held.image.digest if held is not None else id) in self._world.images

    def _strangers(self) -> set[str]:
        """Return the keys of what is here without the ledger ever having heard of it."""
        known = self._ledger.desired.keys() | self._ledger.unknown.keys()
        images = {held.image.digest for key in known if (held := self._ledger.last(key)) is not None}
        found = {f"vm/{id}" for id in (*self._world.domains, *self._world.files)}
        found |= {f"volume/{id}" for id in self._world.pooled}
        return (found - known) | {f"image/{digest}" for digest in self._world.images if digest not in images}

    def _tell_doubt(self) -> None:
        """Tell once when guests come to be doubted."""
        doubts, told = self._ledger.doubted, self._told
        self._told = doubts
        if doubts - told:
            of = sum(is_guest(key, self._ledger.desired) for key in self._ledger.desired)
            say = f"is told no more of {len(doubts)} of its {of} guests, without a word that they go: {_DOUBT}"
            self._reports.event("", "GuestsDoubted", say, warning=True)

    def _doubted(self, key: str) -> Unknown:
        """Tell of a guest that stays as it was told last."""
        runs = "its guest runs" if self._is_running(key) else "its guest is off"
        return self._in_force(key, f"{runs}, and is managed as before: too many are missing at once", doubted=True)

    def _in_force(self, key: str, say: str, *, doubted: bool = False, contested: bool = False) -> Unknown:
        """Return what is told of an object that stays as its node was told last, with its networks if it is a guest."""
        held = self._ledger.desired[key]
        told = Unknown(key=key, running=self._is_running(key), say=say, desired=held.object, version=held.version)
        told.doubted, told.contested = doubted, contested
        told.networks.extend(self._networks_of(held.object.vm))
        return told

    def _networks_of(self, vm: DesiredVm) -> list[DesiredNetwork]:
        """Return the networks of a guest's cards, as its node was told of them: a restored store may know neither."""
        found: dict[str, DesiredNetwork] = {}
        for nic in vm.nics:
            port = self._ledger.last(f"port/{nic.port}")
            vpc = port.port.vpc if port is not None else ""
            for held in (self._ledger.last(f"network/{vpc}"), self._ledger.last(SUBNETS + vpc)):
                subnet = (
                    next((each for each in held.network.subnets if each.id == nic.subnet), None) if held is not None else None
                )
                if held is None or subnet is None:
                    continue
                whole = held.network
                told = DesiredNetwork(vpc=vpc, transit_vni=whole.transit_vni, cidr=whole.cidr, domain=whole.domain)
                network = found.setdefault(vpc, told)
                if subnet not in network.subnets:
                    network.subnets.append(subnet)
        return list(found.values())

    def _is_running(self, key: str) -> bool:
        kind, _, id = key.partition("/")
        domain = self._world.domains.get(id) if kind == "vm" else None
        return domain is not None and domain.state is not DomainState.SHUT_OFF

    def _untold_since_a_restore(self) -> list[str]:
        """Return guests that stay desired as an earlier epoch had them: the controller cannot tell what they are to be."""
        epoch, desired = self._ledger.held[0], self._ledger.desired
        there = (key for key in desired if key.startswith("vm/") and not is_absent(desired[key].object))
        told = self._ledger.doubted | self._ledger.overruled.keys()
        return sorted(key for key in there if desired[key].version.epoch < epoch and key not in told)

    def _untold(self, key: str) -> Unknown:
        """Tell of a guest what its node was told of it last."""
        say = "stays as it was told before the restore: the records cannot say yet what it is to be"
        return self._in_force(key, say, contested=True)

    def _contested(self, key: str) -> Unknown:
        """Tell what stays in force though the restored record says otherwise."""
        say = "was told otherwise after the backup, and stays so"
        if is_absent(self._ledger.desired[key].object):
            say = "was removed by explicit word after the backup, and is not brought back"
        return self._in_force(key, say, contested=True)

    def _unknown(self, key: str) -> Unknown:
        held, (kind, _, id) = self._ledger.unknown.get(key), key.partition("/")
        running = self._is_running(key)
        say = ("its guest runs" if running else "its guest is off") if kind == "vm" else "is kept here"
        administered = held is not None and is_administered(held.object)
        if held is not None and administered:
            say = f"is in pool {held.object.volume.pool}, and was administered here"
        if kind == "volume" and id not in self._world.volumes:
            say = "was here and is gone: is its pool mounted?"
        told = Unknown(key=key, running=running, say=say)
        if held is not None:
            told.desired.CopyFrom(held.object)
            told.version.CopyFrom(held.version)
            told.networks.extend(self._networks_of(held.object.vm))
        if administered:
            # Whoever is to administer it next must not make it anew: if it is not there, it is lost.
            told.desired.volume.made = True
        return told


def _ignore(_keys: set[str]) -> None:
    return None
