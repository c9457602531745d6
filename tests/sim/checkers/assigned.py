"""Work that is no VM's is given to nodes that can do it, to one at a time, and is with a living node once the cloud is at rest.

Whether a node can is read off its session and its facts, as they were when it was chosen.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tests.sim import rules
from tests.sim.asked import Asked
from tests.sim.checkers.base import Checker
from tests.sim.cloud import Changed, Cloud, Commit


class Assigned(Checker):
    """Looks at each choice, and at all of them at rest."""

    def committed(self, cloud: Cloud, commit: Commit) -> Iterator[str]:
        """Look at what was chosen."""
        for change in commit.changes:
            if change.kind == "assignment":
                yield from _chosen(cloud, change)

    def settled(self, cloud: Cloud, asked: Asked) -> Iterator[str]:
        """Everything there is to do has a node that can do it; nothing else has one."""
        wanted = {f"volume/{id}" for id in cloud.all("volume_placement") if rules.in_shared_pool(cloud, id)}
        yield from (f"nobody does {key}" for key in sorted(wanted - cloud.all("assignment").keys()))
        for key, work in cloud.all("assignment").items():
            if key not in wanted:
                yield f"{cloud.name_of(work.node)} does {key}, which is not to be done"
            elif why := cannot(cloud, work):
                yield f"{key} is with {cloud.name_of(work.node)}, which {why}"
        for node in cloud.all("node_loss"):
            if cloud.get("node_session", node) is not None:
                yield f"{cloud.name_of(node)} counts as lost, and is connected"


def cannot(cloud: Cloud, work: Any) -> str:
    """Return why a node cannot do some work; empty: it can."""
    node, facts = cloud.get("node", work.node), cloud.get("node_facts", work.node)
    session, volume = cloud.get("node_session", work.node), cloud.get("volume", work.id)
    if node is None:
        return "has left"
    if session is None:
        return "is not connected"
    if volume is not None and f"volume:{volume.spec.type}" not in session.capabilities:
        return f"does not know volumes of type {volume.spec.type}"
    place = cloud.get("volume_placement", work.id)
    if place is not None and (facts is None or rules.pool_of(place) not in rules.pools_of(facts, work.node)):
        return f"does not reach {rules.pool_of(place)}"
    return ""


def _chosen(cloud: Cloud, change: Changed) -> Iterator[str]:
    before, after = change.before, change.after
    if after is None:
        return
    cluster, last = cloud.get("cluster", "self"), before.generation if before is not None else 0
    least = cluster.epoch << 24 if cluster is not None and cluster.HasField("restored") else 0
    # What a history begins with, once restored records were decided about, may have moved before; what is adopted has moved.
    begins = before is None and least and after.generation >= least
    if after.generation != max(last + 1, least) and not begins:
        was = before.generation if before is not None else "none"
        yield f"{change.key} was given to {cloud.name_of(after.node)} as generation {after.generation} after {was}"
    if before is not None and before.node == after.node and last >= least:
        yield f"{change.key} was taken from {cloud.name_of(after.node)} and given to it"
    if why := cannot(cloud, after):
        yield f"{change.key} was given to {cloud.name_of(after.node)}, which {why}"
