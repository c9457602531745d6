"""When all was deleted, nothing is left: no record, and on no host a guest, a configuration, a file, a volume or a port."""

from __future__ import annotations

from collections.abc import Iterator

from tests.sim.checkers.base import Checker
from tests.sim.cloud import Cloud

_KINDS = ("vm", "volume", "port", "port_binding", "address", "placement", "volume_placement", "purge")


class Orphans(Checker):
    """Looks at everything when everything should be gone."""

    def emptied(self, cloud: Cloud) -> Iterator[str]:
        """Look for leftovers."""
        for kind in _KINDS:
            for id in sorted(cloud.all(kind)):
                yield f"the record {kind}/{id} is left"
        for claims in cloud.all("node_claims").values():
            if claims.cpus or claims.memory_bytes or claims.disk_bytes or claims.vms:
                yield f"{cloud.name_of(claims.node)} is still claimed: {claims}"
        for host in cloud.hosts.values():
            for what, left in (("configurations", host.defined), ("files", host.files), ("volumes", host.volumes)):
                if left:
                    yield f"{what} are left on {host.name}: {sorted(left)}"
            ports = sorted(port for each in host.ports.values() for port in each)
            if ports:
                yield f"ports are left on {host.name}: {ports}"
