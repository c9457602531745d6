"""What guests are called in their VPC, as this node was told with its ports and forwards: kept by what changed.

    names.put("forward/rtr-1/nic-2", Named("rtr-1", "web", ("10.1.1.3",)))
    names.addresses("rtr-1", "web")         ["10.1.1.3"]; of a guest with several cards there, those of all
    names.hostname("rtr-1", "10.1.1.3")     "web"; "" when nobody has it

A card can be told twice for a moment, as a port here and as a forward to where it was: each telling counts until it is taken
back.
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import ip_address


@dataclass(frozen=True, slots=True)
class Named:
    """One card: its VPC, what its guest is called, its addresses."""

    vpc: str
    hostname: str
    addresses: tuple[str, ...]


class Names:
    """See the module."""

    def __init__(self) -> None:
        self._held: dict[str, Named] = {}
        self._by_name: dict[tuple[str, str], dict[str, Named]] = {}
        self._by_address: dict[tuple[str, str], dict[str, Named]] = {}

    def put(self, key: str, named: Named | None) -> None:
        """Take up what a key of a desired object says; None, or no hostname: nothing any more."""
        before = self._held.pop(key, None)
        if before is not None:
            _drop(self._by_name, (before.vpc, before.hostname), key)
            for address in before.addresses:
                _drop(self._by_address, (before.vpc, address), key)
        if named is None or not named.hostname:
            return
        self._held[key] = named
        self._by_name.setdefault((named.vpc, named.hostname), {})[key] = named
        for address in named.addresses:
            self._by_address.setdefault((named.vpc, address), {})[key] = named

    def addresses(self, vpc: str, hostname: str) -> list[str]:
        """Return the addresses of a guest in a VPC, IPv4 first, in order of their value; none: nobody is called so."""
        found = {address for named in self._by_name.get((vpc, hostname), {}).values() for address in named.addresses}
        return [str(address) for _, _, address in sorted((each.version, int(each), each) for each in map(ip_address, found))]

    def hostname(self, vpc: str, address: str) -> str:
        """Return what the guest is called that has an address, in the text it was told in; "": nobody has it."""
        return next((named.hostname for named in self._by_address.get((vpc, address), {}).values()), "")

    def everything(self) -> dict[str, dict[str, frozenset[str]]]:
        """Return VPC -> hostname -> addresses."""
        found: dict[str, dict[str, frozenset[str]]] = {}
        for vpc, hostname in self._by_name:
            found.setdefault(vpc, {})[hostname] = frozenset(self.addresses(vpc, hostname))
        return found

    def __len__(self) -> int:
        """How many cards have a name."""
        return len(self._held)


def _drop(index: dict[tuple[str, str], dict[str, Named]], place: tuple[str, str], key: str) -> None:
    held = index[place]
    del held[key]
    if not held:
        del index[place]
