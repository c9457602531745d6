"""At rest a node holds each guest with what was claimed for it there, not with what its user would like it to have."""

from __future__ import annotations

from collections.abc import Iterator

from tests.sim import rules
from tests.sim.asked import Asked
from tests.sim.checkers.base import Checker
from tests.sim.cloud import Cloud


class AsClaimed(Checker):
    """Compares configurations with placements."""

    def settled(self, cloud: Cloud, asked: Asked) -> Iterator[str]:
        """Look at every guest that is to be somewhere."""
        for host in cloud.hosts.values():
            for id, there in host.definitions.items():
                placement = cloud.get("placement", id)
                if rules.node_of(cloud, id) != host.node or placement is None:
                    continue
                has, claimed = (there.cpus, there.memory_bytes), (placement.cpus, placement.memory_bytes)
                if has != claimed:
                    yield f"{id} is defined on {host.name} with {has[0]} CPUs and {has[1]} bytes, claimed are {claimed}"
