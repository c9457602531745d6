"""Facts derived from ids, the same everywhere: MAC and TAP names of ports, transit identity of nodes."""

from __future__ import annotations

from ipaddress import IPv4Address
from typing import Final

from cairn.proto.seams import ID_ALPHABET, ID_LENGTH

GATEWAY_MAC: Final = "02:00:5e:00:00:01"
METADATA_ADDRESS: Final = "169.254.169.254"
# Guests are called <name>.<name of the VPC>.<this> (".internal" is nobody's: ICANN board resolution 2024.07.29.06).
GUEST_DOMAIN: Final = "cairn.internal"
NODE_INDEX_MAX: Final = 32_766
# Type of the pool every node has: files on its own disks.
LOCAL_POOL: Final = "local"
_TRANSIT_BASE: Final = int(IPv4Address("169.254.0.0"))


def pool_id(type: str, node: str, name: str = "") -> str:
    """Return the id of a storage pool: "<type>/<name>" of one that several nodes reach, "<type>/<node>" of a node's own.

    A local pool is always its node's own, whatever it is called: no node can speak of another's.
    """
    return f"{type}/{node if type == LOCAL_POOL or not name else name}"


def mac_of(port: str) -> str:
    """Return the MAC of a port: an injective function of the 8 characters of its id, so MACs cannot collide.

    36^8 < 2^42. The low 40 bits fill octets 2 to 6; the high 2 bits go to the top of the first octet, whose rest is 0x2a:
    unicast, locally administered (IEEE 802), never our gateway (02:00:5e:00:00:01) nor a router (02:00:5e:10:...).
    """
    text = port.partition("-")[2]
    if len(text) != ID_LENGTH:
        raise ValueError(f"not a port id: {port!r}")
    number = 0
    for character in text:
        number = number * len(ID_ALPHABET) + ID_ALPHABET.index(character)
    octets = [(number >> 40) << 6 | 0x2A, *(number & (1 << 40) - 1).to_bytes(5, "big")]
    return ":".join(f"{octet:02x}" for octet in octets)


def tap_of(port: str) -> str:
    """Return the name of a port's TAP device: "tap-" and the id's 8 characters (12 of at most 15)."""
    return "tap-" + port.partition("-")[2]


def transit_address(index: int) -> str:
    """Return a node's address on every VPC's transit segment: link-local (RFC 3927), lower half, so never tenant space."""
    if not 1 <= index <= NODE_INDEX_MAX:
        raise ValueError(f"node index {index} is not in 1..{NODE_INDEX_MAX}")
    return str(IPv4Address(_TRANSIT_BASE + index))


def router_mac(index: int) -> str:
    """Return a node's router MAC on the transit segments."""
    return f"02:00:5e:10:{index >> 8 & 0xFF:02x}:{index & 0xFF:02x}"
