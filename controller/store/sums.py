"""What projects have, added up as records come and go: kind -> (project, amounts by name) of a record.

The names are those of quotas. A line here is all that a noun to come needs to be counted. What is deleted and can be brought
back has its disks, addresses and name still, so it counts; only processors and memory it takes none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from cairn.proto import kinds
from cairn.proto.ids import LOCAL_POOL

Amounts = Mapping[str, int]


def _vm(vm: Any) -> Amounts:
    if vm.HasField("delete_time"):
        return {"vms": 1}
    return {"vms": 1, "cpus": vm.spec.cpus, "memory_bytes": vm.spec.memory_bytes}


# By kind; each function takes a record with a project.
COUNTED: Final[dict[str, Callable[[Any], Amounts]]] = {
    kinds.VM.name: _vm,
    kinds.VOLUME.name: lambda m: {"volumes": 1, f"{VOLUME_BYTES}{m.spec.type or LOCAL_POOL}": m.spec.size_bytes},
    kinds.IMAGE.name: lambda m: {"images": 1, "image_bytes": m.spec.size_bytes},
    kinds.PORT.name: lambda _: {"ports": 1},
    kinds.VPC.name: lambda _: {"vpcs": 1},
    kinds.SUBNET.name: lambda _: {"subnets": 1},
}
VOLUME_BYTES: Final = "volume_bytes."
# All that can be limited, but for bytes of types of volumes.
NAMES: Final = ("vms", "cpus", "memory_bytes", "volumes", "images", "image_bytes", "ports", "vpcs", "subnets")


class Sums:
    """Of one kind: project -> name -> amount."""

    __slots__ = ("_amounts", "_of")

    def __init__(self, amounts: Callable[[Any], Amounts]) -> None:
        self._amounts, self._of = amounts, dict[str, dict[str, int]]()

    def move(self, before: Any, after: Any) -> None:
        """Count a record that was, and is now; None: absent."""
        for message, sign in ((before, -1), (after, 1)):
            if message is None:
                continue
            held = self._of.setdefault(message.project, {})
            for name, amount in self._amounts(message).items():
                if left := held.get(name, 0) + sign * amount:
                    held[name] = left
                else:
                    held.pop(name, None)
            if not held:
                del self._of[message.project]

    def of(self, project: str) -> Amounts:
        """Return what a project has."""
        return self._of.get(project, {})


def added(into: dict[str, int], amounts: Amounts, sign: int = 1) -> None:
    """Add amounts to a sum."""
    for name, amount in amounts.items():
        into[name] = into.get(name, 0) + sign * amount
