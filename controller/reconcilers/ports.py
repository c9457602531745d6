"""Every port has one address of its subnet that no other port has; the address of a port that is gone is free again.

Keys are ids of subnets: all ports of a subnet that wait are served in one transaction. A binding (the port's address) and a
claim (the address's port) are created together, and both must not exist, so two controllers can never give one address
twice: the second conflicts and decides again. Ports that ask for an address are served before those that take any, in the
order they were made. A port that cannot have one gets a binding that says why, and is tried again when an address is given
back. The card of a VM of a backup that had no address in it waits until it is known whether a guest has one: it may have been
given one since, and others the lowest free one.
"""

from __future__ import annotations

from collections.abc import Iterable, Set
from datetime import datetime
from ipaddress import IPv4Address
from itertools import chain
from typing import Final

from cairn.controller.model.happening import EventSpec
from cairn.controller.model.owners import vm_of
from cairn.controller.model.restored import holders, is_restored, unheard
from cairn.controller.model.where import where
from cairn.controller.reconcilers.base import NOTHING, Outcome
from cairn.controller.reconcilers.port_books import Book, Books
from cairn.controller.store.base import Changed, Record, Txn, View
from cairn.controller.words import several
from cairn.net import ipam
from cairn.proto import kinds
from cairn.proto.addresses import addresses_of, claim_key, set_addresses
from cairn.proto.ids import mac_of
from cairn.proto.kinds import AnyKind
from cairn.proto.v1.port_pb2 import AddressClaim, Port, PortBinding
from cairn.proto.v1.subnet_pb2 import Subnet

# Ports served by one transaction: 3 checks each, of at most 128.
PORTS_MAX: Final = 40
# Nobody is woken when a node has said what it holds.
DOUBT_AGAIN_S: Final = 5.0


class Ports:
    """Every port has one address of its subnet that no other port has."""

    name = "ports"
    reads: tuple[AnyKind, ...] = (kinds.PORT, kinds.SUBNET, kinds.PORT_BINDING, kinds.ADDRESS, kinds.UNKNOWN, kinds.VM)
    writes: tuple[AnyKind, ...] = (kinds.PORT_BINDING, kinds.ADDRESS)

    def __init__(self) -> None:
        self._books = Books()

    def follow(self, view: View, changed: Iterable[Changed]) -> None:
        """Keep the books in step."""
        self._books.follow(view, changed)

    def keys(self, view: View, kind: AnyKind, id: str) -> Iterable[str]:
        """The subnet of what changed."""
        if kind is kinds.SUBNET:
            return (id,)
        if kind is kinds.ADDRESS:
            return (id.partition("/")[0],)
        if kind is kinds.UNKNOWN:
            # What a guest nobody knows has is not given away; nobody waits for that alone.
            return ()
        if kind is kinds.VM:
            vm = view.get(kinds.VM, id)
            cards = (nic for nic in vm.spec.nics if view.get(kinds.PORT_BINDING, nic.port) is None) if vm is not None else ()
            return dict.fromkeys(nic.subnet for nic in cards)
        port, binding = view.get(kinds.PORT, id), view.get(kinds.PORT_BINDING, id)
        if port is not None:
            return (port.spec.subnet,)
        return (binding.subnet,) if binding is not None else ()

    def all_keys(self, view: View) -> Iterable[str]:
        """All subnets, and those that are gone and still have bindings or claims."""
        self._books.renew()
        held = (view.values(kind, "subnet") for kind in (kinds.ADDRESS, kinds.PORT_BINDING))
        return dict.fromkeys((*view.ids(kinds.SUBNET), *chain.from_iterable(held)))

    def shard(self, key: str) -> str:
        """By the subnet."""
        return key

    def reconcile(self, view: View, key: str, now: datetime) -> Outcome:  # noqa: ARG002 - nothing here depends on the time
        """Serve the ports of one subnet."""
        txn = Txn(self.name)
        book = self._books.at(view, key)
        if not book.whole:
            return Outcome(None, f"{key} is being read", again_after_s=0.0)
        freed = _free(txn, view, key, book)
        subnet = view.record(kinds.SUBNET, key)
        waiting = _waiting(view, book) if subnet is not None else []
        doubted = {port.id for port in waiting if in_doubt(view, port)}
        waiting = [port for port in waiting if port.id not in doubted]
        served, events = 0, list[EventSpec]()
        if subnet is not None and waiting and freed < PORTS_MAX:
            served, events = _serve(txn, view, subnet, waiting[: PORTS_MAX - freed], book)
        if not txn and doubted and book.read:
            say = f"{several(len(doubted), 'card')} of a backup in {key}: whether a guest has an address is not known yet"
            return Outcome(None, say, again_after_s=DOUBT_AGAIN_S)
        if not txn:
            return NOTHING if book.read else Outcome(None, f"{key} is being read again", again_after_s=0.0)
        more = not book.read or freed >= PORTS_MAX or len(waiting) > PORTS_MAX - freed
        say = f"{several(served, 'address')} given".replace("addresss", "addresses") + f", {freed} freed in {key}"
        again_after_s = 0.0 if more else DOUBT_AGAIN_S if doubted else None
        return Outcome(txn, say, again_after_s=again_after_s, events=events)


def in_doubt(view: View, port: Port) -> bool:
    """Tell whether a guest may have an address for a port since the backup that its restored records are of."""
    vm = vm_of(port)
    if not vm or not is_restored(view, kinds.PORT, port.id):
        return False
    if holders(view, f"{kinds.VM.name}/{vm}"):
        # It is adopted with its address.
        return True
    return is_restored(view, kinds.VM, vm) and (not where(view, vm).owner or bool(unheard(view)))


def _free(txn: Txn, view: View, subnet: str, book: Book) -> int:
    """Remove bindings of ports that are gone, and claims nobody's binding answers to; return how many."""
    freed = 0
    for id in sorted(book.loose)[:PORTS_MAX]:
        binding = view.record(kinds.PORT_BINDING, id)
        if binding is None:
            continue
        if id in view.unreadable(kinds.PORT):
            continue
        txn.check(kinds.PORT, id, 0).check(kinds.PORT_BINDING, id, binding.mod_revision).delete(kinds.PORT_BINDING, id)
        for address in addresses_of(binding.message):
            _drop_claim(txn, view, claim_key(subnet, address), id)
        freed += 1
    for claim_id in sorted(book.stray):
        claim = view.get(kinds.ADDRESS, claim_id)
        if claim is None or kinds.ADDRESS.key(claim_id) in txn.deletes or freed >= PORTS_MAX:
            continue
        if claim_id in view.unreadable(kinds.ADDRESS) or claim.port in view.unreadable(kinds.PORT_BINDING):
            continue
        txn.check(kinds.PORT_BINDING, claim.port, view.revision_of(kinds.PORT_BINDING, claim.port))
        _drop_claim(txn, view, claim_id, claim.port)
        freed += 1
    return freed


def _drop_claim(txn: Txn, view: View, claim_id: str, port: str) -> None:
    claim = view.record(kinds.ADDRESS, claim_id)
    if claim is not None and claim.message.port == port:
        txn.check(kinds.ADDRESS, claim_id, claim.mod_revision).delete(kinds.ADDRESS, claim_id)


def _waiting(view: View, book: Book) -> list[Port]:
    """Ports without an address: those that ask for one first, then as they were made."""
    waiting: list[tuple[bool, int, str, Port]] = []
    for id in book.waiting:
        port = view.record(kinds.PORT, id)
        damaged = id in view.unreadable(kinds.PORT) or id in view.unreadable(kinds.PORT_BINDING)
        if port is not None and not damaged:
            waiting.append((not addresses_of(port.message.spec), port.create_revision, id, port.message))
    return [port for _, _, _, port in sorted(waiting, key=lambda each: each[:3])]


def _serve(txn: Txn, view: View, subnet: Record[Subnet], waiting: list[Port], book: Book) -> tuple[int, list[EventSpec]]:
    """Give each an address or a reason; return how many got one, and what to tell."""
    cidr = subnet.message.spec.cidr
    # What is freed in this transaction is free in the next.
    given = {id.partition("/")[2] for id in view.unreadable(kinds.ADDRESS) if id.startswith(f"{subnet.message.id}/")}
    given |= _held_unknown(view, subnet.message.id, {port.id for port in waiting})
    lowest = (address for address in ipam.free(cidr, book.taken, book.lowest) if address not in given)
    served, events = 0, list[EventSpec]()
    for port in waiting:
        before = view.get(kinds.PORT_BINDING, port.id)
        binding = PortBinding(port=port.id, subnet=subnet.message.id, vpc=port.spec.vpc, mac=mac_of(port.id))
        asked = addresses_of(port.spec)
        if asked:
            reasons = (_why_not(cidr, each, given if each in given else book.taken) for each in asked)
            binding.error = next(filter(None, reasons), "")
            set_addresses(binding, () if binding.error else asked)
        elif address := next(lowest, ""):
            set_addresses(binding, (address,))
            # Below the first that is free all are taken.
            book.lowest = book.lowest if given else int(IPv4Address(address))
        else:
            binding.error = f"no address is free in {cidr}: delete a port or take another subnet"
        if binding == before:
            continue
        txn.check(kinds.PORT, port.id, view.revision_of(kinds.PORT, port.id))
        txn.check(kinds.PORT_BINDING, port.id, view.revision_of(kinds.PORT_BINDING, port.id))
        txn.put(kinds.PORT_BINDING, port.id, binding)
        for address in binding.addresses:
            claim = AddressClaim(subnet=binding.subnet, address=address, port=port.id)
            txn.create(kinds.ADDRESS, claim_key(binding.subnet, address), claim)
            given.add(address)
            served += 1
        if binding.error:
            events.append(EventSpec(port.id, port.name, port.project, "NoAddress", binding.error, warning=True))
    if txn:
        txn.check(kinds.SUBNET, subnet.message.id, subnet.mod_revision)
    return served, events


def _held_unknown(view: View, subnet: str, but: Set[str]) -> set[str]:
    """Return the addresses of a subnet that guests have whom no record speaks of, and are adopted with. but: these ports."""
    told = (view.get(kinds.UNKNOWN, id) for id in view.by(kinds.UNKNOWN, "subnet", subnet))
    cards = [nic for each in told if each is not None and not each.desired.vm.absent for nic in each.desired.vm.nics]
    return {address for nic in cards if nic.subnet == subnet and nic.port not in but for address in addresses_of(nic)}


def _why_not(cidr: str, address: str, taken: set[str]) -> str:
    return ipam.refusal(cidr, address) or (f"{address} is taken" if address in taken else "")
