"""No node is promised away twice: what is claimed of it is the sum of what was placed there, and not more than it has.

Sums are of the records, in the same revision; what a node has follows from its facts and its policy.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tests.sim import rules
from tests.sim.checkers.base import Checker
from tests.sim.cloud import Cloud, Commit

_KINDS = ("placement", "volume_placement", "node_claims")


class Capacity(Checker):
    """Looks at the nodes a revision concerns."""

    def committed(self, cloud: Cloud, commit: Commit) -> Iterator[str]:
        """Sum up, compare, and look at what grew."""
        nodes: dict[str, rules.Amounts] = {}
        for change in commit.changes:
            if change.kind not in _KINDS:
                continue
            for each in (change.before, change.after):
                if each is not None and each.node:
                    nodes.setdefault(each.node, rules.Amounts())
            if change.kind == "node_claims" and change.before is not None:
                nodes[change.id] = _amounts(change.before)
        for node, before in nodes.items():
            yield from _node(cloud, node, before)

    def settled(self, cloud: Cloud, asked: Any) -> Iterator[str]:
        """All nodes: policies may have changed meanwhile, sums not."""
        for node in cloud.all("node_claims"):
            if _amounts(cloud.get("node_claims", node)) != rules.claimed(cloud, node):
                yield f"{cloud.name_of(node)} has claims that are not the sum of what is there"


def _node(cloud: Cloud, node: str, before: rules.Amounts) -> Iterator[str]:
    record, name = cloud.get("node_claims", node), cloud.name_of(node)
    now = _amounts(record) if record is not None else rules.Amounts()
    summed, most = rules.claimed(cloud, node), rules.capacity(cloud, node)
    if now != summed:
        yield f"of {name} {now} is claimed, what is placed there is {summed}"
    for what in ("cpus", "memory_bytes", "disk_bytes"):
        if getattr(now, what) > max(getattr(most, what), getattr(before, what)):
            yield f"of {name} {getattr(now, what)} {what} are claimed, it has {getattr(most, what)}"


def _amounts(claims: Any) -> rules.Amounts:
    return rules.Amounts(claims.cpus, claims.memory_bytes, claims.disk_bytes, claims.vms)
