"""What a request's fields may hold. Every refusal names the field and the bound.

Pure functions; each raises Invalid and returns the value in its canonical form. Whether the objects a request names exist is
decided where the transaction is (resolution.py and the nouns), on a View.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterable, Mapping, Sequence
from ipaddress import IPv4Address, IPv4Network
from typing import Final, NamedTuple
from uuid import UUID

from cairn.controller.words import size
from cairn.proto.addresses import Addressed, is_ipv6
from cairn.proto.errors import Invalid
from cairn.proto.kinds import ID_PREFIXES
from cairn.proto.v1.image_pb2 import ImageFormat, ImageSpec

KIB: Final = 1024
MIB: Final = 1024**2
GIB: Final = 1024**3
TIB: Final = 1024**4

NAME: Final = re.compile(r"[a-z]([a-z0-9-]{0,61}[a-z0-9])?")
NAME_LENGTH_MAX: Final = 63
# An id of ours: no name may look like one, so that "an id or a name" is never ambiguous.
ID_LIKE: Final = re.compile(rf"({'|'.join(sorted(ID_PREFIXES))})-[0-9a-z]{{8}}")
LABELS_MAX: Final = 64
DESCRIPTION_LENGTH_MAX: Final = 255
LABEL_LENGTH_MAX: Final = 63
LABEL_KEY: Final = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._/-]{0,61}[A-Za-z0-9])?")

CPUS_MAX: Final = 64
MEMORY_BYTES_MIN: Final = 32 * MIB
MEMORY_BYTES_MAX: Final = TIB
DISK_BYTES_MIN: Final = MIB
DISK_BYTES_MAX: Final = 64 * TIB
NICS_MAX: Final = 8
VOLUMES_MAX: Final = 16
# Of one port.
ADDRESSES_MAX: Final = 1
NO_IPV6: Final = "IPv6 is not carried yet"
SSH_KEYS_MAX: Final = 32
SSH_KEY_LENGTH_MAX: Final = 16 * KIB
USER_DATA_BYTES_MAX: Final = 64 * KIB
ARCHS: Final = ("x86_64", "aarch64")
IMAGE_REPLICAS_MAX: Final = 16
DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}")

RFC1918: Final = (IPv4Network("10.0.0.0/8"), IPv4Network("172.16.0.0/12"), IPv4Network("192.168.0.0/16"))
VPC_PREFIX_MIN: Final = 8
VPC_PREFIX_MAX: Final = 28
SUBNET_PREFIX_MAX: Final = 29

# Key types OpenSSH accepts by default (sshd(8), AUTHORIZED_KEYS FILE FORMAT), without the retired ssh-dss.
SSH_KEY_TYPES: Final = frozenset(
    {
        "ssh-ed25519",
        "ssh-rsa",
        "ecdsa-sha2-nistp256",
        "ecdsa-sha2-nistp384",
        "ecdsa-sha2-nistp521",
        "sk-ssh-ed25519@openssh.com",
        "sk-ecdsa-sha2-nistp256@openssh.com",
    }
)


def name(field: str, value: str) -> str:
    """Return a valid object name (a DNS label, RFC 1035, in lower case)."""
    if not value:
        raise Invalid(field, "a name is required")
    if len(value) > NAME_LENGTH_MAX:
        raise Invalid(field, f"{len(value)} characters long, at most {NAME_LENGTH_MAX} are allowed")
    if not NAME.fullmatch(value):
        raise Invalid(field, f"{value!r} must be of a-z, 0-9 and '-', start with a letter and not end with '-'")
    if ID_LIKE.fullmatch(value):
        raise Invalid(field, f"{value!r} looks like an id; choose another name")
    return value


def labels(field: str, value: Mapping[str, str]) -> None:
    """Check label keys and values."""
    if len(value) > LABELS_MAX:
        raise Invalid(field, f"{len(value)} labels, at most {LABELS_MAX} are allowed")
    for key, text in value.items():
        if not LABEL_KEY.fullmatch(key):
            raise Invalid(field, f"label {key[:80]!r} must be 1 to {LABEL_LENGTH_MAX} of A-Z, a-z, 0-9, '.', '_', '/' and '-'")
        if len(text) > LABEL_LENGTH_MAX:
            raise Invalid(field, f"the value of label {key!r} is {len(text)} characters long, at most {LABEL_LENGTH_MAX}")


def request_id(value: str) -> None:
    """Check that it is a UUID in its canonical spelling (RFC 9562)."""
    try:
        canonical = str(UUID(value))
    except ValueError as error:
        raise Invalid("request_id", "must be a UUID, for example 0191d9a0-5b1c-4c55-9d1c-1a2b3c4d5e6f") from error
    if canonical != value.lower():
        raise Invalid("request_id", f"must be a UUID in the form {canonical}")


def _sized(field: str, value: int, least: int, most: int) -> int:
    if not least <= value <= most:
        raise Invalid(field, f"{size(value)} is not between {size(least)} and {size(most)}")
    if value % MIB:
        raise Invalid(field, f"{value} bytes is not a whole number of MiB")
    return value


def cpus(field: str, value: int) -> int:
    """Check a virtual CPU count."""
    if not 1 <= value <= CPUS_MAX:
        raise Invalid(field, f"{value} is not between 1 and {CPUS_MAX}")
    return value


def memory(field: str, value: int) -> int:
    """Check a memory size in bytes."""
    return _sized(field, value, MEMORY_BYTES_MIN, MEMORY_BYTES_MAX)


def disk(field: str, value: int) -> int:
    """Check a disk size in bytes."""
    return _sized(field, value, DISK_BYTES_MIN, DISK_BYTES_MAX)


def at_most(field: str, values: Sequence[object], most: int, what: str) -> None:
    """Check how many there are of something."""
    if len(values) > most:
        raise Invalid(field, f"{len(values)} {what}, at most {most} are allowed")


def description(field: str, value: str) -> None:
    """Check a sentence about an object: one line."""
    if len(value) > DESCRIPTION_LENGTH_MAX:
        raise Invalid(field, f"{len(value)} characters long, at most {DESCRIPTION_LENGTH_MAX} are allowed")
    if not value.isprintable():
        raise Invalid(field, "it has a control character: one line of text is wanted")


def one_of(field: str, value: str, allowed: Iterable[str]) -> str:
    """Check membership in a short list."""
    if value not in allowed:
        raise Invalid(field, f"{value!r} is not one of {', '.join(allowed)}")
    return value


def user_data(field: str, value: bytes) -> None:
    """Check cloud-init user data; its content is the user's business and never quoted."""
    if len(value) > USER_DATA_BYTES_MAX:
        raise Invalid(field, f"{size(len(value))} long, at most {size(USER_DATA_BYTES_MAX)} are allowed")


def ssh_key(field: str, value: str) -> str:
    """Check an OpenSSH public key line: type, base64 blob whose first string is the type (RFC 4253, 6.6), comment."""
    if len(value) > SSH_KEY_LENGTH_MAX:
        raise Invalid(field, f"{len(value)} characters long, at most {SSH_KEY_LENGTH_MAX} are allowed")
    if "\n" in value.strip() or "\r" in value.strip():
        raise Invalid(field, "one key per entry: this one has several lines")
    parts = value.split(None, 2)
    if len(parts) < 2 or parts[0] not in SSH_KEY_TYPES:
        hint = " (that is a private key: give the .pub file)" if "PRIVATE KEY" in value else ""
        raise Invalid(field, f"not an OpenSSH public key such as 'ssh-ed25519 AAAA... comment'{hint}")
    try:
        blob = base64.b64decode(parts[1], validate=True)
    except binascii.Error as error:
        raise Invalid(field, "the key's base64 part is damaged") from error
    length = int.from_bytes(blob[:4], "big")
    if len(blob) < 5 or blob[4 : 4 + length] != parts[0].encode():
        raise Invalid(field, f"the key's base64 part does not hold a {parts[0]} key")
    return value.strip()


def _network(field: str, value: str) -> IPv4Network:
    if not value:
        raise Invalid(field, "a CIDR is required, for example 10.1.0.0/16")
    if "/" not in value:
        raise Invalid(field, f"{value!r} has no prefix length, for example 10.1.0.0/16")
    try:
        return IPv4Network(value)
    except ValueError as error:
        try:
            loose = IPv4Network(value, strict=False)
        except ValueError:
            raise Invalid(field, NO_IPV6 if is_ipv6(value) else f"{value!r} is not an IPv4 CIDR such as 10.1.0.0/16") from error
        raise Invalid(field, f"{value} has host bits set; did you mean {loose}?") from error


def vpc_cidr(field: str, value: str) -> IPv4Network:
    """Return a VPC's network: private, /8 to /28."""
    network = _network(field, value)
    if not any(network.subnet_of(private) for private in RFC1918):
        private = ", ".join(str(each) for each in RFC1918)
        raise Invalid(field, f"{network} is not inside private IPv4 space (RFC 1918: {private})")
    if not VPC_PREFIX_MIN <= network.prefixlen <= VPC_PREFIX_MAX:
        raise Invalid(field, f"/{network.prefixlen} is not between /{VPC_PREFIX_MIN} and /{VPC_PREFIX_MAX}")
    return network


def subnet_cidr(field: str, value: str, vpc: str, siblings: Mapping[str, str]) -> IPv4Network:
    """Return a subnet's network. vpc: the VPC's CIDR; siblings: name to CIDR of the subnets it has."""
    network, outer = _network(field, value), IPv4Network(vpc)
    if network.prefixlen > SUBNET_PREFIX_MAX:
        raise Invalid(field, f"/{network.prefixlen} is too small: at most /{SUBNET_PREFIX_MAX} leaves room for guests")
    if not network.subnet_of(outer):
        raise Invalid(field, f"{network} is not inside the VPC's {outer}")
    for sibling, cidr in sorted(siblings.items()):
        if network.overlaps(IPv4Network(cidr)):
            raise Invalid(field, f"{network} overlaps subnet {sibling!r} ({cidr})")
    return network


class Asked(NamedTuple):
    """The address a port is asked to have, and the field that says so; empty: any."""

    field: str
    address: str


def addresses(prefix: str, given: Addressed) -> Asked:
    """Return the address asked for; clients of the release before give `address`. prefix: what the message is called."""
    asked = list(given.addresses)
    at_most(f"{prefix}.addresses", asked, ADDRESSES_MAX, "addresses")
    if asked and given.address not in ("", asked[0]):
        raise Invalid(f"{prefix}.address", f"is {given.address}, but addresses says {asked[0]}: give addresses alone")
    return Asked(f"{prefix}.addresses[0]", asked[0]) if asked else Asked(f"{prefix}.address", given.address)


def not_yet(field: str, value: str) -> None:
    """Refuse a field of IPv6."""
    if value:
        raise Invalid(field, f"{NO_IPV6}: leave it out")


def address(field: str, value: str, cidr: str) -> IPv4Address:
    """Return an address a guest may have in a subnet: not the network's, the gateway's nor the broadcast one."""
    network = IPv4Network(cidr)
    try:
        wanted = IPv4Address(value)
    except ValueError as error:
        raise Invalid(field, NO_IPV6 if is_ipv6(value) else f"{value!r} is not an IPv4 address") from error
    if wanted not in network:
        raise Invalid(field, f"{wanted} is not inside the subnet's {network}")
    reserved = {network[0]: "the network address", network[1]: "the gateway", network[-1]: "the broadcast address"}
    if wanted in reserved:
        raise Invalid(field, f"{wanted} is {reserved[wanted]} of {network}; guests get {network[2]} to {network[-2]}")
    return wanted


def image(spec: ImageSpec) -> None:
    """Check an image's spec."""
    if not DIGEST.fullmatch(spec.digest):
        raise Invalid("image.spec.digest", "must be 'sha256:' and 64 hex digits in lower case")
    if not 1 <= spec.size_bytes <= DISK_BYTES_MAX:
        raise Invalid("image.spec.size_bytes", f"{spec.size_bytes} is not between 1 and {DISK_BYTES_MAX}")
    if spec.format not in (ImageFormat.IMAGE_FORMAT_QCOW2, ImageFormat.IMAGE_FORMAT_RAW):
        raise Invalid("image.spec.format", "must be qcow2 or raw")
    one_of("image.spec.arch", spec.arch, ARCHS)
    if spec.replicas > IMAGE_REPLICAS_MAX:
        raise Invalid("image.spec.replicas", f"{spec.replicas} is more than {IMAGE_REPLICAS_MAX}")
