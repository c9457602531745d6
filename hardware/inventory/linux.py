"""The inventory of a Linux machine, from its /proc and /sys. Needs no root; see tree.py for what "absent" means.

Each part is read by itself: one that fails is left out and named in `faults`, and harms no other.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path

from cairn.hardware.inventory.cpu import guess_arch, read_cpu, read_memory, read_numa
from cairn.hardware.inventory.disks import read_disks
from cairn.hardware.inventory.firmware import read_firmware
from cairn.hardware.inventory.nics import read_nics
from cairn.hardware.inventory.tree import Tree
from cairn.proto.log import logger
from cairn.proto.v1.node_pb2 import NodeFacts

_log = logger("inventory")


class LinuxInventory:
    """Reads below a root folder; implements Inventory. arch: of a recorded machine, when its files do not show it."""

    def __init__(self, root: Path = Path("/"), arch: str = "") -> None:
        self._root = root
        live = os.uname().machine if root == Path("/") else ""
        self._arch = arch or live or guess_arch(Tree(root))

    async def collect(self) -> NodeFacts:
        """Return arch, cpu, memory, numa, disks, nics, firmware, kernel, os, hostname and faults."""
        return await asyncio.to_thread(self.read)

    def read(self) -> NodeFacts:
        """Return the same; blocks for some milliseconds."""
        tree, facts = Tree(self._root), NodeFacts(arch=self._arch)
        parts: tuple[tuple[str, Callable[[], NodeFacts]], ...] = (
            ("cpu", lambda: NodeFacts(cpu=read_cpu(tree, self._arch))),
            ("memory", lambda: NodeFacts(memory_bytes=read_memory(tree))),
            ("numa", lambda: NodeFacts(numa=read_numa(tree))),
            ("disks", lambda: NodeFacts(disks=read_disks(tree))),
            ("nics", lambda: NodeFacts(nics=read_nics(tree))),
            ("firmware", lambda: NodeFacts(firmware=read_firmware(tree))),
            ("system", lambda: _system(tree)),
        )
        for name, read in parts:
            try:
                facts.MergeFrom(read())
            except Exception as error:  # noqa: BLE001 - the boundary: strange hardware may break a part, never the whole
                _log.exception("inventory_part_failed", part=name, error=str(error))
                tree.fault(name, f"not read: {type(error).__name__}: {error}")
        facts.faults.extend(tree.faults)
        return facts


def _system(tree: Tree) -> NodeFacts:
    return NodeFacts(
        kernel=tree.text("proc/sys/kernel/osrelease"),
        os=_os_name(tree.text("etc/os-release") or tree.text("usr/lib/os-release")),
        hostname=tree.text("proc/sys/kernel/hostname"),
    )


def _os_name(release: str) -> str:
    pairs = dict(line.split("=", 1) for line in release.splitlines() if "=" in line)
    return (pairs.get("PRETTY_NAME") or pairs.get("NAME") or "").strip("\"'")
