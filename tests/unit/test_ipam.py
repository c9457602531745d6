"""Address arithmetic: what is free, what is refused."""

from ipaddress import IPv4Address, IPv4Network
from itertools import islice

import pytest
from cairn.net import ipam
from hypothesis import given
from hypothesis import strategies as st

cidrs = st.builds(
    lambda number, prefix: str(IPv4Network((number, prefix), strict=False)),
    st.integers(0, 2**32 - 1),
    st.integers(20, ipam.PREFIX_LENGTH_MAX),
)


def test_small_subnet() -> None:
    assert ipam.gateway("10.1.1.0/29") == "10.1.1.1"
    assert ipam.prefix_length("10.1.1.0/29") == 29
    assert ipam.capacity("10.1.1.0/29") == 5
    assert list(ipam.free("10.1.1.0/29", {"10.1.1.3"})) == ["10.1.1.2", "10.1.1.4", "10.1.1.5", "10.1.1.6"]


@pytest.mark.parametrize(
    ("address", "why"),
    [
        ("10.1.1.0", "is the network address"),
        ("10.1.1.1", "is the gateway"),
        ("10.1.1.7", "is the broadcast address"),
        ("10.1.1.8", "is outside"),
        ("10.1.1.300", "is not an IPv4 address"),
        ("fe80::1", "is not an IPv4 address"),
        ("", "is not an IPv4 address"),
    ],
)
def test_refusals(address: str, why: str) -> None:
    assert why in ipam.refusal("10.1.1.0/29", address)


def test_host_bits_are_an_error() -> None:
    with pytest.raises(ValueError, match="host bits"):
        ipam.gateway("10.1.1.5/29")


@given(cidrs, st.sets(st.integers(0, 40)))
def test_free_is_exactly_what_is_not_refused_nor_taken(cidr: str, offsets: set[int]) -> None:
    network = IPv4Network(cidr)
    # The last networks there are end where the addresses do.
    taken = {str(IPv4Address(int(network[0]) + offset)) for offset in offsets if int(network[0]) + offset < 2**32}
    found = list(islice(ipam.free(cidr, taken), 50))
    assert found == sorted(found, key=IPv4Address)
    assert not taken & set(found)
    assert all(ipam.refusal(cidr, address) == "" for address in found)
    if len(found) < 50:
        possible = {str(address) for address in network if not ipam.refusal(cidr, str(address))}
        assert set(found) == possible - taken
        assert len(possible) == ipam.capacity(cidr)
