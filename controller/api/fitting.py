"""What nothing in the cluster could hold, even if it were empty, is refused at once, for every resource by the same rule.

What could be held and is not free now is accepted: it waits, and says for what.
"""

from __future__ import annotations

from cairn.controller.api import validation
from cairn.controller.model.nodes import capacity, node_name
from cairn.controller.model.pools import pool_capacity, pools_on
from cairn.controller.store.base import View
from cairn.controller.words import size
from cairn.proto import kinds
from cairn.proto.errors import Exhausted, TryAgain
from cairn.proto.v1.node_pb2 import NodeCapacity
from cairn.proto.v1.vm_pb2 import VmSpec


def all_known(view: View) -> None:
    """Refuse to say of what is asked that no node has it while what one has cannot be read. Raises TryAgain."""
    if view.unreadable(kinds.NODE_FACTS) or view.unreadable(kinds.NODE):
        raise TryAgain("what a node has cannot be read; `cairn cluster fsck` lists what is damaged")


def fits_somewhere(view: View, spec: VmSpec) -> None:
    """Refuse what no node could hold even if it were empty; with none known, anything may fit. Raises Exhausted, TryAgain."""
    known: list[tuple[str, NodeCapacity]] = []
    for id in view.ids(kinds.NODE):
        node, facts = view.get(kinds.NODE, id), view.get(kinds.NODE_FACTS, id)
        if node is None or facts is None:
            continue
        most = capacity(node, facts)
        if spec.memory_bytes <= most.memory_bytes and spec.cpus <= most.cpus:
            return
        known.append((node.name, most))
    all_known(view)
    if not known:
        return
    name, largest = max(known, key=lambda each: (each[1].memory_bytes, each[0]))
    if spec.memory_bytes > largest.memory_bytes:
        room_bytes = largest.memory_bytes // validation.MIB * validation.MIB
        say = f"{size(spec.memory_bytes)} of memory fits no node: the largest, {name}, can give {size(room_bytes)}"
        raise Exhausted("memory", f"{say}; ask for at most that, or add a larger node")
    name, largest = max(known, key=lambda each: (each[1].cpus, each[0]))
    if spec.cpus > largest.cpus:
        say = f"{spec.cpus} CPUs fit no node: the largest, {name}, can give {largest.cpus}"
        raise Exhausted("cpus", f"{say}; ask for at most that, or add a larger node")


def disk_fits_somewhere(view: View, disk_bytes: int, type: str) -> None:
    """Refuse a disk that no pool of its type could hold; with none known, anything may fit. Raises Exhausted, TryAgain."""
    largest_bytes, where = 0, ""
    for node in view.ids(kinds.NODE_FACTS):
        for pool in pools_on(view, node, type):
            room_bytes = pool_capacity(view, pool)
            if disk_bytes <= room_bytes:
                return
            if room_bytes > largest_bytes:
                largest_bytes, where = room_bytes, node
    all_known(view)
    if where:
        most = size(largest_bytes // validation.MIB * validation.MIB)
        say = f"a disk of {size(disk_bytes)} fits no {type} pool: the largest, on {node_name(view, where)}, can give {most}"
        raise Exhausted("disk", f"{say}; ask for at most that, or add storage")
