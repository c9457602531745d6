"""What the node tells about itself: hardware, hypervisor, pools, tunnels. Sent when it changed.

Free bytes change all the time: they count as changed when they moved by more than one percent of the pool. So a node at rest
writes nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from typing import Final

from cairn.agent.hypervisor.base import Hypervisor, HypervisorError
from cairn.agent.reports import Reports
from cairn.hardware.base import Inventory
from cairn.proto.log import logger
from cairn.proto.v1.node_pb2 import HypervisorFacts, NodeFacts, StoragePool
from cairn.storage.base import StorageError
from cairn.storage.drivers import Drivers

LOOK_EVERY_S: Final = 10.0
HYPERVISOR_EVERY_S: Final = 60.0
HARDWARE_EVERY_S: Final = 600.0


def agent_version() -> str:
    """Return the version of this program."""
    try:
        return version("cairn")
    except PackageNotFoundError:
        return "unknown"


class Facts:
    """Collects them; `run` keeps them fresh."""

    def __init__(
        self,
        inventory: Inventory,
        hypervisor: Hypervisor,
        drivers: Drivers,
        reports: Reports,
        *,
        silent: Callable[[], str],
        vtep: str,
        underlay_mtu: int,
        version: str,
    ) -> None:
        """silent: why the hypervisor does not answer; empty: it does."""
        self._inventory, self._hypervisor, self._drivers, self._reports = inventory, hypervisor, drivers, reports
        self._silent = silent
        self._vtep, self._underlay_mtu, self._version = vtep, underlay_mtu, version
        self._hardware = NodeFacts()
        self._pools: list[StoragePool] | None = None
        self._guests: HypervisorFacts | None = None
        self._hardware_s = self._hypervisor_s = float("-inf")

    async def run(self) -> None:
        """Look again and again; tell what changed."""
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            await self.refresh()

    async def refresh(self) -> None:
        """Look now; a part that cannot be read keeps what was known."""
        now_s, known = asyncio.get_running_loop().time(), self._reports.facts
        for name, read in (
            ("hardware", self._read_hardware),
            ("pools", self._read_pools),
            ("hypervisor", self._read_hypervisor),
        ):
            try:
                await read(known, now_s)
            except (HypervisorError, StorageError, OSError) as error:
                logger("facts").warning("incomplete", part=name, error=str(error))
        facts = NodeFacts()
        facts.CopyFrom(self._hardware)
        facts.hypervisor.CopyFrom(self._guests or known.hypervisor)
        facts.hypervisor.silent = self._silent()
        if facts.hypervisor.silent != known.hypervisor.silent:
            self._tell_silence(facts.hypervisor.silent)
        facts.pools.extend(known.pools if self._pools is None else self._pools)
        facts.vtep, facts.underlay_mtu, facts.agent_version = self._vtep, self._underlay_mtu, self._version
        if facts != known:
            self._reports.put_facts(facts)

    def _tell_silence(self, why: str) -> None:
        """Tell that the hypervisor fell silent, or that it answers again."""
        if why:
            self._reports.event("", "HypervisorSilent", f"the hypervisor does not answer: {why}", warning=True)
        else:
            self._reports.event("", "HypervisorAnswers", "the hypervisor answers again")

    async def _read_hardware(self, _known: NodeFacts, now_s: float) -> None:
        if now_s - self._hardware_s >= HARDWARE_EVERY_S:
            self._hardware = await self._inventory.collect()
            self._hardware_s = now_s

    async def _read_pools(self, known: NodeFacts, _now_s: float) -> None:
        """Each type's pool as it was last told, unless it moved; one that cannot be read keeps its last figures."""
        found, errors = await self._drivers.facts()
        told = {pool.type: pool for pool in known.pools}
        told |= {pool.type: pool for pool in found if _moved(told.get(pool.type, StoragePool()), pool)}
        self._pools = [told[type] for type in self._drivers.types if type in told]
        if errors:
            raise errors[0]

    async def _read_hypervisor(self, known: NodeFacts, now_s: float) -> None:
        if not known.hypervisor.accelerator or now_s - self._hypervisor_s >= HYPERVISOR_EVERY_S:
            self._guests = await self._hypervisor.facts()
            self._hypervisor_s = now_s


def _moved(before: StoragePool, now: StoragePool) -> bool:
    if (before.type, before.name, before.total_bytes, before.path) != (now.type, now.name, now.total_bytes, now.path):
        return True
    return abs(before.used_bytes - now.used_bytes) * 100 > now.total_bytes
