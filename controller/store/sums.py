"""What projects have, added up as records come and go: kind -> (project, amounts by name) of a record.

The names are those of quotas. A line here is all that a noun to come needs to be counted. What is deleted and can be brought
back has its disks, addresses and name still, so it counts; only processors and memory it takes none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from cairn.proto import kinds
from cairn.proto.ids import LOCAL_POOL

Amounts = Mapping[str, int]


def _vm(vm: Any) -> Amounts:
    if vm.HasField("delete_time"):
        return {"vms": 1}
    return {"vms": 1, "cpus": vm.spec.cpus, "memory_bytes": vm.spec.memory_bytes}


# By kind; each function takes a record, and says what each of its holders has of it.
COUNTED: Final[dict[str, Callable[[Any], Amounts]]] = {
    kinds.VM.name: _vm,
    kinds.VOLUME.name: lambda m: {"volumes": 1, f"{VOLUME_BYTES}{m.spec.type or LOCAL_POOL}": m.spec.size_bytes},
    kinds.IMAGE.name: lambda m: {"images": 1, "image_bytes": m.spec.size_bytes},
    kinds.PORT.name: lambda _: {"ports": 1},
    kinds.VPC.name: lambda _: {"vpcs": 1},
    kinds.SUBNET.name: lambda _: {"subnets": 1},
    kinds.API_TOKEN.name: lambda _: {"tokens": 1},
}
VOLUME_BYTES: Final = "volume_bytes."
# All that can be limited, but for bytes of types of volumes.
NAMES: Final = ("vms", "cpus", "memory_bytes", "volumes", "images", "image_bytes", "ports", "vpcs", "subnets", "tokens")


def holders(kind: str, message: Any) -> Iterable[str]:
    """Return the projects in which a record counts: its own; a token is of a user, and counts in each it is narrowed to."""
    return dict.fromkeys(message.spec.projects) if kind == kinds.API_TOKEN.name else (message.project,)


class Sums:
    """Of one kind: project -> name -> amount."""

    __slots__ = ("_amounts", "_kind", "_of")

    def __init__(self, kind: str) -> None:
        self._kind, self._amounts, self._of = kind, COUNTED[kind], dict[str, dict[str, int]]()

    def move(self, before: Any, after: Any) -> None:
        """Count a record that was, and is now; None: absent."""
        for message, sign in ((before, -1), (after, 1)):
            for project in holders(self._kind, message) if message is not None else ():
                held = self._of.setdefault(project, {})
                for name, amount in self._amounts(message).items():
                    if left := held.get(name, 0) + sign * amount:
                        held[name] = left
                    else:
                        held.pop(name, None)
                if not held:
                    del self._of[project]

    def of(self, project: str) -> Amounts:
        """Return what a project has."""
        return self._of.get(project, {})


def added(into: dict[str, int], amounts: Amounts, sign: int = 1) -> None:
    """Add amounts to a sum."""
    for name, amount in amounts.items():
        into[name] = into.get(name, 0) + sign * amount
