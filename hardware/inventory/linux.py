"""The inventory of a Linux machine, from its /proc and /sys. Needs no root; see tree.py for what "absent" means."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from cairn.hardware.inventory.cpu import guess_arch, read_cpu, read_memory, read_numa
from cairn.hardware.inventory.disks import read_disks
from cairn.hardware.inventory.firmware import read_firmware
from cairn.hardware.inventory.nics import read_nics
from cairn.hardware.inventory.tree import Tree
from cairn.proto.v1.node_pb2 import NodeFacts


class LinuxInventory:
    """Reads below a root folder; implements Inventory. arch: of a recorded machine, when its files do not show it."""

    def __init__(self, root: Path = Path("/"), arch: str = "") -> None:
        self._tree = Tree(root)
        live = os.uname().machine if root == Path("/") else ""
        self._arch = arch or live or guess_arch(self._tree)

    async def collect(self) -> NodeFacts:
        """Return arch, cpu, memory, numa, disks, nics, firmware, kernel, os and hostname."""
        return await asyncio.to_thread(self.read)

    def read(self) -> NodeFacts:
        """Return the same; blocks for some milliseconds."""
        tree = self._tree
        return NodeFacts(
            arch=self._arch,
            cpu=read_cpu(tree, self._arch),
            memory_bytes=read_memory(tree),
            numa=read_numa(tree),
            disks=read_disks(tree),
            nics=read_nics(tree),
            firmware=read_firmware(tree),
            kernel=tree.text("proc/sys/kernel/osrelease"),
            os=_os_name(tree.text("etc/os-release") or tree.text("usr/lib/os-release")),
            hostname=tree.text("proc/sys/kernel/hostname"),
        )


def _os_name(release: str) -> str:
    pairs = dict(line.split("=", 1) for line in release.splitlines() if "=" in line)
    return (pairs.get("PRETTY_NAME") or pairs.get("NAME") or "").strip("\"'")
