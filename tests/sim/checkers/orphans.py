"""When all was deleted, nothing is left: no record, and on no host a guest, a configuration, a file, a volume or a port.

At rest nothing is left of what goes with something else: tokens, and what was given for one object.

When networks and images were deleted too, only the cloud itself is left: its nodes, controllers, projects and history.
"""

from __future__ import annotations

from collections.abc import Iterator

from tests.sim.asked import Asked
from tests.sim.checkers.base import Checker
from tests.sim.cloud import Cloud

_KINDS = (
    "vm", "volume", "port", "port_binding", "address", "placement", "decision", "volume_placement", "pool_claims", "assignment",
    "opening", "purge", "secret",
)  # fmt: skip
_BARE = ("vpc", "subnet", "vni", "image", "image_content", "observed", "unknown")
# Kinds of names that outlive what users make.
_STANDING = (
    "project", "node", "node-index", "user", "role", "binding", "api_token", "price_list", "identity_provider", "login",
)  # fmt: skip


class Orphans(Checker):
    """Looks at everything when everything should be gone; at rest, at what went with something else."""

    def settled(self, cloud: Cloud, asked: Asked) -> Iterator[str]:
        """Tokens go with whose they are, and with where he logged in; what was given for one object goes with that."""
        for id, token in sorted(cloud.all("api_token").items()):
            by = token.spec.login.provider
            if cloud.get("user", token.spec.user) is None or (by and cloud.get("identity_provider", by) is None):
                yield f"API token {id} is of somebody who is gone"
        for id, binding in sorted(cloud.all("binding").items()):
            kind, _, object = binding.spec.object.partition("/")
            if kind and cloud.get(kind, object) is None:
                yield f"binding {id} is for {binding.spec.object}, which is gone"

    def emptied(self, cloud: Cloud) -> Iterator[str]:
        """Look for leftovers."""
        for kind in _KINDS:
            for id in sorted(cloud.all(kind)):
                # Tokens are not users' objects: they stay, like users, where a restore brings them back.
                if kind != "secret" or cloud.get("api_token", id.removeprefix("api_token/")) is None:
                    yield f"the record {kind}/{id} is left"
        for claims in cloud.all("node_claims").values():
            if claims.cpus or claims.memory_bytes or claims.disk_bytes or claims.vms:
                yield f"{cloud.name_of(claims.node)} is still claimed: {claims}"
        if cloud.shared:
            yield f"volumes are left in the shared pool: {sorted(cloud.shared)}"
        for host in cloud.hosts.values():
            for what, left in (("configurations", host.defined), ("files", host.files), ("volumes", host.volumes)):
                if left:
                    yield f"{what} are left on {host.name}: {sorted(left)}"
            ports = sorted(port for each in host.ports.values() for port in each)
            if ports:
                yield f"ports are left on {host.name}: {ports}"

    def bared(self, cloud: Cloud) -> Iterator[str]:
        """Look for what is left of networks, images and names."""
        yield from self.emptied(cloud)
        for kind in _BARE:
            for id in sorted(cloud.all(kind)):
                yield f"the record {kind}/{id} is left"
        for id, claim in sorted(cloud.all("name").items()):
            if claim.kind not in _STANDING:
                yield f"the name {id} is still taken"
        for host in cloud.hosts.values():
            if host.away:
                continue
            for what, left in (("images", host.images), ("halves of images", host.partials), ("networks", host.ports)):
                if left:
                    yield f"{what} are left on {host.name}: {sorted(left)}"
