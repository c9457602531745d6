"""What there is to do in each subnet, kept in step with the view: one port more costs one port's work, however many are there.

    books.follow(view, changed)     led by the runtime, from view to fork and back
    books.at(view, subnet)          the subnet's Book as of that view; derived from scratch when not led there (a plan's fork)

`renew` forgets all books: each is derived again at its next look. The full scan does that, and finds what nobody follows:
a claim whose binding somebody else has removed.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from ipaddress import IPv4Address

from cairn.controller.store.base import Changed, View
from cairn.proto import kinds
from cairn.proto.addresses import addresses_of, claim_key, is_ipv6


@dataclass(eq=False, slots=True)
class Book:
    """One subnet. Ids."""

    # Ports without an address.
    waiting: set[str] = field(default_factory=set)
    # Bindings of ports that are gone.
    loose: set[str] = field(default_factory=set)
    # Claims nobody's binding answers to.
    stray: set[str] = field(default_factory=set)
    # Addresses claimed, and a number below which all IPv4 ones are.
    taken: set[str] = field(default_factory=set)
    lowest: int = 0


class Books:
    """See the module."""

    def __init__(self) -> None:
        self._view: View | None = None
        self._revision = 0
        self._changed: dict[Changed, None] = {}
        self._books: dict[str, Book] = {}
        # Port -> the subnet in whose book it is waiting or loose.
        self._noted: dict[str, str] = {}

    def follow(self, view: View, changed: Iterable[Changed]) -> None:
        """Move to a view that differs from the last one at most in what changed."""
        self._changed.update(dict.fromkeys(changed))
        self._view, self._revision = view, view.revision

    def renew(self) -> None:
        """Derive everything again."""
        self._books.clear()
        self._noted.clear()

    def at(self, view: View, subnet: str) -> Book:
        """Return what there is to do in a subnet as of a view."""
        if view is not self._view or view.revision != self._revision:
            return self._derived(view, subnet, {})
        for kind, id in self._changed:
            if kind is kinds.ADDRESS:
                self._address(view, id)
            elif kind in (kinds.PORT, kinds.PORT_BINDING):
                self._port(view, id)
        self._changed.clear()
        if subnet not in self._books:
            self._books[subnet] = self._derived(view, subnet, self._noted)
        return self._books[subnet]

    @staticmethod
    def _derived(view: View, subnet: str, noted: dict[str, str]) -> Book:
        book = Book()
        for id in {*view.by(kinds.PORT, "subnet", subnet), *view.by(kinds.PORT_BINDING, "subnet", subnet)}:
            if _note(view, book, subnet, id):
                noted[id] = subnet
        for id in view.by(kinds.ADDRESS, "subnet", subnet):
            book.taken.add(id.partition("/")[2])
            if _is_stray(view, id):
                book.stray.add(id)
        return book

    def _port(self, view: View, id: str) -> None:
        """Note a port, or its binding, that changed."""
        before = self._books.get(self._noted.pop(id, ""))
        if before is not None:
            before.waiting.discard(id)
            before.loose.discard(id)
        port, binding = view.get(kinds.PORT, id), view.get(kinds.PORT_BINDING, id)
        subnet = port.spec.subnet if port is not None else binding.subnet if binding is not None else ""
        book = self._books.get(subnet)
        if book is not None and _note(view, book, subnet, id):
            self._noted[id] = subnet
        if binding is not None:
            # Its claims are not stray, or not any more: the binding could not be read before.
            for address in addresses_of(binding):
                self._address(view, claim_key(binding.subnet, address))

    def _address(self, view: View, id: str) -> None:
        """Note a claim that came, went or changed."""
        subnet, _, address = id.partition("/")
        book = self._books.get(subnet)
        if book is None:
            return
        book.stray.discard(id)
        if view.get(kinds.ADDRESS, id) is None:
            book.taken.discard(address)
            if not is_ipv6(address):
                book.lowest = min(book.lowest, int(IPv4Address(address)))
            return
        book.taken.add(address)
        if _is_stray(view, id):
            book.stray.add(id)


def _note(view: View, book: Book, subnet: str, id: str) -> bool:
    """Put a port where it belongs; False when there is nothing to do about it."""
    port, binding = view.get(kinds.PORT, id), view.get(kinds.PORT_BINDING, id)
    if port is None:
        if binding is None or binding.subnet != subnet:
            return False
        book.loose.add(id)
        return True
    if port.spec.subnet != subnet or (binding is not None and addresses_of(binding)):
        return False
    book.waiting.add(id)
    return True


def _is_stray(view: View, id: str) -> bool:
    claim = view.get(kinds.ADDRESS, id)
    if claim is None:
        return False
    binding = view.get(kinds.PORT_BINDING, claim.port)
    return binding is None or claim.address not in addresses_of(binding)
