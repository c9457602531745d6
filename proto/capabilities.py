"""What an agent can be asked to do, in words both ends know: "desired:<kind>" for a kind of object it can hold, "volume:<type>"
for a type of volume it can make and open, and plain words for what it understands of the stream.

An agent names its capabilities in its Hello; a controller sends it nothing else. New kinds of work are new words, so that
controllers and agents of different releases can be mixed in any order. Rejected: comparing version numbers, which cannot tell
what a node without some driver knows.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from cairn.proto.ids import LOCAL_POOL
from cairn.proto.v1.agent_pb2 import VM_ROLE_OWNER, VM_ROLE_UNSPECIFIED, Desired

# Messages of many changes (SyncResponse.changes).
CHANGES: Final = "changes"


def desired_kind(kind: str) -> str:
    """Return the capability of holding objects of a kind: a field of Desired ("vm")."""
    return f"desired:{kind}"


def volume_type(type: str) -> str:
    """Return the capability of making and opening volumes of a type."""
    return f"volume:{type or LOCAL_POOL}"


# Knowing what a node is to a VM that moves, and waiting for a permit to start one: who does not would start it a second time.
VM_ROLES: Final = "vm:roles"
# Telling which volumes a guest has open.
OPEN_VOLUMES: Final = "report:open-volumes"

# Addresses of both families and names of cards, and the domain of networks. Who does not know them compares what it was told
# with what is in its kernel, finds a difference in fields it cannot read, and programs the same for ever: it is sent none.
CARDS: Final = "cards"

# Being told that a volume of a shared pool, which it administered before a restore, is another node's work now.
ELSEWHERE: Final = "volume-elsewhere"

# Asking a shared pool before a guest opens a volume there, and shutting out of it who opened one by an older claim.
SHUT_OUT: Final = "shut-out"
# Telling a running guest that a volume another node grew is larger now, and saying how large it sees it.
DISK_SIZES: Final = "disk-sizes"

# What agents knew that do not say what they know.
BEFORE_CAPABILITIES: Final = frozenset(
    (*map(desired_kind, ("image", "volume", "network", "port", "forward", "vm")), volume_type(LOCAL_POOL))
)
# Images are removed when they are sent with `absent`, no longer when they are sent no more.
ABSENT_IMAGES: Final = "absent:image"
# What every agent of this release knows, whatever its node has.
OF_THIS_RELEASE: Final = frozenset(
    (
        *(desired_kind(field.name) for field in Desired.DESCRIPTOR.oneofs_by_name["object"].fields),
        CHANGES,
        ABSENT_IMAGES,
        VM_ROLES,
        OPEN_VOLUMES,
        CARDS,
        ELSEWHERE,
        SHUT_OUT,
        DISK_SIZES,
    )
)


def of_agent(volume_types: Iterable[str]) -> list[str]:
    """Return what an agent of this release on a node with drivers for these types of volumes says of itself, sorted."""
    return sorted(OF_THIS_RELEASE | {volume_type(type) for type in volume_types})


def needed(object: Desired) -> frozenset[str]:
    """Return what an agent must know to be sent an object."""
    kind = object.WhichOneof("object") or ""
    types, more = list[str](), set[str]()
    if kind == "volume":
        types.append(object.volume.type)
    elif kind == "vm":
        types += [disk.type for disk in object.vm.disks]
        if object.vm.needs_permit or object.vm.role not in (VM_ROLE_UNSPECIFIED, VM_ROLE_OWNER):
            more.add(VM_ROLES)
    if object.image.absent:
        more.add(ABSENT_IMAGES)
    if object.volume.elsewhere:
        more.add(ELSEWHERE)
    return frozenset((desired_kind(kind), *map(volume_type, types), *more))


def without_cards(object: Desired) -> Desired:
    """Return an object as an agent is sent it that does not know CARDS: with the single address of each card."""
    result = Desired()
    result.CopyFrom(object)
    match object.WhichOneof("object"):
        case "network":
            result.network.domain = ""
        case "port":
            del result.port.addresses[:]
        case "forward":
            del result.forward.addresses[:]
            result.forward.hostname = ""
        case "vm":
            for nic in result.vm.nics:
                del nic.addresses[:]
        case _:
            return object
    return result


def without_sizes(object: Desired) -> Desired:
    """Return an object as an agent is sent it that does not know DISK_SIZES."""
    if not any(disk.size_bytes for disk in object.vm.disks):
        return object
    result = Desired()
    result.CopyFrom(object)
    for disk in result.vm.disks:
        disk.size_bytes = 0
    return result
