"""Names of what we make in the kernel, and back again: pure, injective on ids of one kind.

A namespace, device or table whose name has this form is ours; everything needed to find its owner is in the name (kernel
names hold 15 characters, ids are a prefix and 8). Aliases on devices repeat it for people reading `ip -d link`.
"""

from __future__ import annotations

import re
from typing import Final

from cairn.proto.seams import ID_ALPHABET, ID_LENGTH

VPC_PREFIX: Final = "rtr-"
SUBNET_PREFIX: Final = "vxnet-"
PORT_PREFIX: Final = "nic-"
NAMESPACE_PREFIX: Final = "cairn-"
BRIDGE_PREFIX: Final = "br-"
VXLAN_PREFIX: Final = "vx-"
TAP_PREFIX: Final = "tap-"
TRANSIT: Final = "l3x"
TABLE: Final = "cairn"
# Devices we make carry this group, so one message removes them all; routes carry this protocol (rtnetlink(7): above 4 is free).
LINK_GROUP: Final = 0xCA17
ROUTE_PROTOCOL: Final = 202
VXLAN_PORT: Final = 4789
TRANSIT_PREFIX_LENGTH: Final = 17

_SUFFIX = re.compile(f"[{ID_ALPHABET}]{{{ID_LENGTH}}}")
_MAC = re.compile("[0-9a-f]{2}(:[0-9a-f]{2}){5}")


def suffix(id: str) -> str:
    """Return the 8 characters of an id; ValueError for anything else."""
    text = id.rpartition("-")[2]
    if not _SUFFIX.fullmatch(text):
        raise ValueError(f"not an id: {id!r}")
    return text


def bridge_of(subnet: str) -> str:
    """Return the name of a subnet's bridge."""
    return BRIDGE_PREFIX + suffix(subnet)


def vxlan_of(subnet: str) -> str:
    """Return the name of a subnet's VXLAN device."""
    return VXLAN_PREFIX + suffix(subnet)


def _owner(name: str, name_prefix: str, id_prefix: str) -> str:
    text = name.removeprefix(name_prefix)
    return id_prefix + text if name.startswith(name_prefix) and _SUFFIX.fullmatch(text) else ""


def vpc_of(namespace: str, prefix: str = NAMESPACE_PREFIX) -> str:
    """Return the VPC a namespace belongs to; "" when it is not ours."""
    return _owner(namespace, prefix, VPC_PREFIX)


def subnet_of(device: str) -> str:
    """Return the subnet of a bridge or VXLAN device; "" for other devices."""
    return _owner(device, BRIDGE_PREFIX, SUBNET_PREFIX) or _owner(device, VXLAN_PREFIX, SUBNET_PREFIX)


def port_of_tap(device: str) -> str:
    """Return the port of a TAP; "" for other devices."""
    return _owner(device, TAP_PREFIX, PORT_PREFIX)


def port_of_mac(mac: str) -> str:
    """Return the port whose MAC this is (the inverse of proto.ids.mac_of); "" when it is no port's."""
    if not _MAC.fullmatch(mac):
        return ""
    octets = bytes.fromhex(mac.replace(":", ""))
    number = (octets[0] >> 6) << 40 | int.from_bytes(octets[1:], "big")
    if octets[0] & 0x3F != 0x2A or number >= len(ID_ALPHABET) ** ID_LENGTH:
        return ""
    text = ""
    for _ in range(ID_LENGTH):
        number, digit = divmod(number, len(ID_ALPHABET))
        text = ID_ALPHABET[digit] + text
    return PORT_PREFIX + text
