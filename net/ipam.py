"""Address arithmetic of subnets: which addresses exist, which are free. Pure; who holds what is decided in the controller.

Of a subnet's addresses the first (network) and the last (broadcast, RFC 919) are nobody's and the second is the gateway,
the same on every node; the rest can be given to ports. `free` yields the lowest first, so that small clouds have small,
memorable addresses. Rejected: random choice (needs a source of randomness to decide), a bitmap record per subnet (one hot
key that every port writes; one claim record per address conflicts only when two want the same).
"""

from __future__ import annotations

from collections.abc import Container, Iterator
from functools import lru_cache
from ipaddress import AddressValueError, IPv4Address, IPv4Network
from typing import Final

# Network, gateway and broadcast.
RESERVED: Final = 3
PREFIX_LENGTH_MAX: Final = 29


@lru_cache(maxsize=4096)
def network_of(cidr: str) -> IPv4Network:
    """Return the network of "10.1.1.0/24". Raises ValueError when host bits are set or it is not IPv4."""
    return IPv4Network(cidr)


def gateway(cidr: str) -> str:
    """Return the first usable address: router, DHCP and DNS of the subnet on every node."""
    return str(network_of(cidr)[1])


def prefix_length(cidr: str) -> int:
    """Return the number of network bits."""
    return network_of(cidr).prefixlen


def capacity(cidr: str) -> int:
    """Return how many ports the subnet can have addresses for."""
    return max(0, network_of(cidr).num_addresses - RESERVED)


def refusal(cidr: str, address: str) -> str:
    """Return why a port of that subnet cannot have that address, in one sentence; empty when it can."""
    network = network_of(cidr)
    try:
        wanted = IPv4Address(address)
    except AddressValueError:
        return f"{address!r} is not an IPv4 address"
    if wanted not in network:
        return f"{address} is outside {cidr}"
    if wanted == network.network_address:
        return f"{address} is the network address of {cidr}"
    if wanted == network.broadcast_address:
        return f"{address} is the broadcast address of {cidr}"
    if wanted == network[1]:
        return f"{address} is the gateway of {cidr}"
    return ""


def free(cidr: str, taken: Container[str], lowest: int = 0) -> Iterator[str]:
    """Yield the addresses a port can have and nobody has taken, lowest first. Lazy: take as many as needed.

    lowest: a number below which all are known to be taken.
    """
    network = network_of(cidr)
    first = max(int(network.network_address) + 2, lowest)
    for number in range(first, int(network.broadcast_address)):
        address = str(IPv4Address(number))
        if address not in taken:
            yield address
