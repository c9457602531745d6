"""Hardware: what a server is made of, and (later) its power and boot.

    facts = await inventory.collect()     # NodeFacts: CPU, memory, NUMA, disks, NICs, firmware; from /sys and /proc

A collector reads below a *root* folder ("/" on a live node), so recorded trees of other machines are inputs of tests. What a
machine does not tell stays empty; a missing file is never an error. BMC drivers (power, boot) come with bare metal.
"""

from __future__ import annotations

from typing import Protocol

from cairn.proto.v1.node_pb2 import NodeFacts


class Inventory(Protocol):
    """Reads what the machine is made of."""

    async def collect(self) -> NodeFacts:
        """Return arch, cpu, memory, numa, disks, nics, firmware, kernel, os, hostname, faults; nothing else is set."""
        ...
