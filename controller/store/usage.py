"""What of each record is counted as usage: kind -> what an object counts with, by its own record alone.

A line here is all that a noun to come needs to be counted: writes of it are stamped (controller/standing.py), and what the
history of the store says of it is added up (controller/metering.py). A VM has besides what its node reports: its processors and
memory count while it runs. What is deleted and can be brought back is kept, so it counts until its record goes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from cairn.proto import kinds
from cairn.proto.ids import LOCAL_POOL


@dataclass(frozen=True, slots=True)
class Counted:
    """What one record says: of a VM what it has while it runs, of what is kept its bytes, and of which type."""

    project: str
    name: str
    cpus: int = 0
    memory_bytes: int = 0
    size_bytes: int = 0
    type: str = ""


def _vm(vm: Any) -> Counted:
    return Counted(vm.project, vm.name, cpus=vm.spec.cpus, memory_bytes=vm.spec.memory_bytes)


def _volume(volume: Any) -> Counted:
    return Counted(volume.project, volume.name, size_bytes=volume.spec.size_bytes, type=volume.spec.type or LOCAL_POOL)


# By kind; each function takes a record.
COUNTED: Final[Mapping[str, Callable[[Any], Counted]]] = {
    kinds.VM.name: _vm,
    kinds.VOLUME.name: _volume,
    kinds.IMAGE.name: lambda image: Counted(image.project, image.name, size_bytes=image.spec.size_bytes),
}
# Nouns with a quota of which nobody is told what they cost.
FREE: Final = frozenset({kinds.PORT.name, kinds.VPC.name, kinds.SUBNET.name, kinds.API_TOKEN.name})
# In the key of what a node reports of a guest.
_GUEST: Final = f"/{kinds.VM.name}/"
_PREFIXES: Final = tuple(kinds.BY_NAME[name].prefix for name in COUNTED)


def is_counted(key: str) -> bool:
    """Tell whether what is counted may change with the record of a key."""
    return key.startswith(_PREFIXES) or (key.startswith(kinds.OBSERVED.prefix) and _GUEST in key)


def guest_of(id: str) -> tuple[str, str] | None:
    """Return (node, VM) of a report by its id; None: it is of no VM."""
    node, between, vm = id.partition(_GUEST)
    return (node, vm) if between else None
