"""No agent destroys what nobody asked to have destroyed: a guest, a volume, an image that is kept there.

Whatever the records look like to the product: the picture of them here is the true one (a record that is unreadable or missing
for a while is shown as it was). What hands on the host do, and power cuts, are not an agent's doing.
"""

from __future__ import annotations

from collections.abc import Iterator

from tests.sim.checkers.base import Checker
from tests.sim.cloud import Cloud, Commit, Host
from tests.sim.rules import deleted


class Destroyed(Checker):
    """Keeps what was on each node; looks at what its agent took away."""

    def __init__(self) -> None:
        self._before: dict[str, Host] = {}
        # Deleted at some time: what is brought back may be removed and made again by a node that hears of it late.
        self._deleted: set[str] = set()

    def committed(self, cloud: Cloud, commit: Commit) -> Iterator[str]:
        """Learn what users deleted."""
        gone = (change.id for change in commit.changes if change.kind == "vm" and deleted(change.after))
        self._deleted.update(gone)
        yield from ()

    def host_changed(self, cloud: Cloud, node: str) -> Iterator[str]:
        """Look at what is gone."""
        host, before = cloud.hosts[node], self._before.get(node)
        self._before[node] = host
        if before is None or host.by != host.name:
            return
        for id in sorted(before.defined - host.defined):
            if id not in self._deleted and not _vm_may_go(cloud, node, id):
                yield f"the agent of {host.name} removed VM {id}, which is to be there"
        for id in sorted(before.volumes.keys() - host.volumes.keys()):
            if not _volume_may_go(cloud, node, id):
                yield f"the agent of {host.name} erased volume {id}, which is to be there"
        for digest in sorted(before.images - host.images):
            if _is_kept(cloud, host, digest):
                yield f"the agent of {host.name} removed image {digest}, which is kept there"


def _vm_may_go(cloud: Cloud, node: str, id: str) -> bool:
    vm, placement = cloud.get("vm", id), cloud.get("placement", id)
    return vm is None or placement is None or placement.node != node or placement.released


def _volume_may_go(cloud: Cloud, node: str, id: str) -> bool:
    volume, place = cloud.get("volume", id), cloud.get("volume_placement", id)
    if volume is None or place is None or place.node != node or cloud.get("purge", id) is not None:
        return True
    return volume.spec.delete_with_vm and cloud.get("purge", volume.spec.vm) is not None


def _is_kept(cloud: Cloud, host: Host, digest: str) -> bool:
    """Whether a node is to keep an image, and knows: the same bytes may have been another's, whose end it hears of first."""
    for id, image in cloud.all("image").items():
        content, key = cloud.get("image_content", id), f"image/{id}"
        told = key in host.ledger or cloud.get("observed", f"{host.node}/{key}") is not None
        if image.spec.digest == digest and content is not None and host.node in content.nodes and told:
            return True
    return False
