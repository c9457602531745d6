"""What there is to do in each subnet, kept in step with the view: one port more costs one port's work, however many are there.

    books.follow(view, changed)     led by the runtime, from view to fork and back
    books.at(view, subnet)          the subnet's Book as of that view; derived from scratch when not led there (a plan's fork)

Reading all of a large subnet takes a while, so a book is made in steps, one at each look: until it is `whole`, nothing can be
decided from it; while it is not `read`, it is to be looked at again at once. `renew` has all books read again, by the same
steps, while they serve: the full scan does that, and finds what nobody follows: a claim whose binding somebody else has
removed. A book that nobody looked at since the last renewal (its subnet is gone, or another controller's) is forgotten.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from itertools import islice
from typing import Final, TypeAlias

from cairn.controller.store.base import Changed, View
from cairn.proto import kinds
from cairn.proto.addresses import addresses_of, claim_key, is_ipv6

# Records of a subnet read at a look, before others may run.
STEP: Final = 100
# What to do about a record, and its id.
_Reading: TypeAlias = tuple[Callable[[View, str], None], str]


@dataclass(eq=False, slots=True)
class Book:
    """One subnet. Ids."""

    # All of it has been read once.
    whole: bool = False
    # Looked at since the last renewal; and to be read again.
    looked: bool = True
    stale: bool = True
    # What is yet to be read; None: nothing.
    unread: Iterator[_Reading] | None = None
    # Ports without an address.
    waiting: set[str] = field(default_factory=set)
    # Bindings of ports that are gone.
    loose: set[str] = field(default_factory=set)
    # Claims nobody's binding answers to.
    stray: set[str] = field(default_factory=set)
    # Addresses claimed, and a number below which all IPv4 ones are.
    taken: set[str] = field(default_factory=set)
    lowest: int = 0

    @property
    def read(self) -> bool:
        """Nothing is left to be read."""
        return self.unread is None


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
        if self._books:
            self._changed.update(dict.fromkeys(changed))
        self._view, self._revision = view, view.revision

    def renew(self) -> None:
        """Read everything again, step by step."""
        self._books = {subnet: book for subnet, book in self._books.items() if book.looked}
        self._noted = {port: subnet for port, subnet in self._noted.items() if subnet in self._books}
        for book in self._books.values():
            book.looked, book.stale = False, True

    def at(self, view: View, subnet: str) -> Book:
        """Return what there is to do in a subnet as of a view."""
        if view is not self._view or view.revision != self._revision:
            return _derived(view, subnet)
        for kind, id in self._changed:
            if kind is kinds.ADDRESS:
                self._address(view, id)
            elif kind in (kinds.PORT, kinds.PORT_BINDING):
                self._port(view, id)
        self._changed.clear()
        book = self._books.setdefault(subnet, Book())
        book.looked = True
        self._read(view, subnet, book)
        return book

    def _read(self, view: View, subnet: str, book: Book) -> None:
        """Take a step."""
        if book.stale and book.unread is None:
            book.stale, book.unread = False, self._readings(view, subnet, book)
        if book.unread is None:
            return
        step = list(islice(book.unread, STEP))
        for read, id in step:
            read(view, id)
        if len(step) < STEP:
            book.whole, book.unread = True, None

    def _readings(self, view: View, subnet: str, book: Book) -> Iterator[_Reading]:
        """Name all records of a subnet as it is now, and what the book says of others; only lists are copied at once."""
        ports, bindings = view.by(kinds.PORT, "subnet", subnet), view.by(kinds.PORT_BINDING, "subnet", subnet)
        ports, claims = [*ports, *book.waiting, *book.loose], [*view.by(kinds.ADDRESS, "subnet", subnet), *book.stray]
        taken = (claim_key(subnet, address) for address in list(book.taken))
        parts = ((self._place, ports), (self._left, bindings), (self._address, claims), (self._freed, taken))
        return ((read, id) for read, ids in parts for id in ids)

    def _left(self, view: View, id: str) -> None:
        """Look at the binding of a port that may be gone."""
        if not view.revision_of(kinds.PORT, id):
            self._place(view, id)

    def _freed(self, view: View, id: str) -> None:
        """Look at a claim that may be gone."""
        if not view.revision_of(kinds.ADDRESS, id):
            self._address(view, id)

    def _port(self, view: View, id: str) -> None:
        """Note a port, or its binding, that changed."""
        self._place(view, id)
        binding = view.get(kinds.PORT_BINDING, id)
        if binding is not None:
            # Its claims are not stray, or not any more: the binding could not be read before.
            for address in addresses_of(binding):
                self._address(view, claim_key(binding.subnet, address))

    def _place(self, view: View, id: str) -> None:
        """Note a port where it belongs."""
        before = self._books.get(self._noted.pop(id, ""))
        if before is not None:
            before.waiting.discard(id)
            before.loose.discard(id)
        port, binding = view.get(kinds.PORT, id), view.get(kinds.PORT_BINDING, id)
        subnet = port.spec.subnet if port is not None else binding.subnet if binding is not None else ""
        book = self._books.get(subnet)
        if book is not None and _note(view, book, subnet, id):
            self._noted[id] = subnet

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


def _derived(view: View, subnet: str) -> Book:
    """Read all of a subnet at once."""
    book = Book(whole=True, stale=False)
    for id in {*view.by(kinds.PORT, "subnet", subnet), *view.by(kinds.PORT_BINDING, "subnet", subnet)}:
        _note(view, book, subnet, id)
    for id in view.by(kinds.ADDRESS, "subnet", subnet):
        book.taken.add(id.partition("/")[2])
        if _is_stray(view, id):
            book.stray.add(id)
    return book


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
