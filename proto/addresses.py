"""Addresses of ports in messages: a list, each of either family, in canonical text (RFC 5952 for IPv6).

Messages have `addresses`, and beside it the single `address` of the release before, which is the first IPv4 one. For one
release both are written, and a message that has the old field alone is read as having one address (docs/decisions/0023).
Nobody else looks at `address`.
"""

from __future__ import annotations

from collections.abc import Iterable, MutableSequence
from ipaddress import ip_address
from typing import Protocol, Self, TypeVar


class Addressed(Protocol):
    """A message with both fields."""

    address: str

    def CopyFrom(self, other: Self, /) -> None:
        """As of any message."""
        ...

    def DiscardUnknownFields(self) -> None:
        """As of any message."""
        ...

    @property
    def addresses(self) -> MutableSequence[str]:
        """The addresses."""
        ...


A = TypeVar("A", bound=Addressed)


def addresses_of(message: Addressed) -> tuple[str, ...]:
    """Return the addresses in a message of this release or the one before; empty: none."""
    return tuple(message.addresses) or ((message.address,) if message.address else ())


def set_addresses(message: Addressed, addresses: Iterable[str]) -> None:
    """Put addresses into a message, for this release and the one before."""
    message.addresses[:] = [canonical(each) for each in addresses]
    message.address = first_ipv4(message.addresses)


def current(message: A) -> A:
    """Return a message as this release means it: its addresses, nothing in the field of the release before, nor of one to come.

    Messages are equal when their unknown fields are, and the kernel shows none of those.
    """
    result = type(message)()
    result.CopyFrom(message)
    result.DiscardUnknownFields()
    result.addresses[:] = addresses_of(message)
    result.address = ""
    return result


def canonical(address: str) -> str:
    """Return the one spelling of an address. Raises ValueError."""
    return str(ip_address(address))


def is_ipv6(address: str) -> bool:
    """Tell the family of an address."""
    return ":" in address


def first_ipv4(addresses: Iterable[str]) -> str:
    """Return the first IPv4 address, or ""."""
    return next((each for each in addresses if not is_ipv6(each)), "")


def claim_key(subnet: str, address: str) -> str:
    """Return the id of the record that says who holds an address of a subnet."""
    return f"{subnet}/{canonical(address)}"
