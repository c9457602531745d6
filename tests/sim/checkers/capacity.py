"""No node or pool is promised away twice: what is claimed of it is the sum of what was placed there, and not more than it has.

Sums are of the records, in the same revision; what a node has follows from its facts and its policy.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tests.sim import rules
from tests.sim.checkers.base import Checker
from tests.sim.cloud import Cloud, Commit

_KINDS = ("placement", "node_claims")
_POOL_KINDS = ("volume_placement", "pool_claims", "node_claims")


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
        for pool, held_bytes in _pools(commit).items():
            yield from _pool(cloud, pool, held_bytes)

    def settled(self, cloud: Cloud, asked: Any) -> Iterator[str]:
        """All nodes: policies may have changed meanwhile, sums not."""
        for node in cloud.all("node_claims"):
            if _amounts(cloud.get("node_claims", node)) != rules.claimed(cloud, node):
                yield f"{cloud.name_of(node)} has claims that are not the sum of what is there"
        for pool in {*cloud.all("pool_claims"), *map(rules.pool_of, cloud.all("volume_placement").values())}:
            if _claimed(cloud.get("pool_claims", pool)) + _before(cloud, pool) != rules.pool_claimed(cloud, pool):
                yield f"pool {pool} has claims that are not the sum of what is there"


def _node(cloud: Cloud, node: str, before: rules.Amounts) -> Iterator[str]:
    record, name = cloud.get("node_claims", node), cloud.name_of(node)
    now = _amounts(record) if record is not None else rules.Amounts()
    summed, most = rules.claimed(cloud, node), rules.capacity(cloud, node)
    if now != summed:
        yield f"of {name} {now} is claimed, what is placed there is {summed}"
    for what in ("cpus", "memory_bytes"):
        if getattr(now, what) > max(getattr(most, what), getattr(before, what)):
            yield f"of {name} {getattr(now, what)} {what} are claimed, it has {getattr(most, what)}"


def _amounts(claims: Any) -> rules.Amounts:
    return rules.Amounts(claims.cpus, claims.memory_bytes, claims.vms)


def _pools(commit: Commit) -> dict[str, int]:
    """Return the pools a revision concerns: id -> bytes that were claimed before it."""
    found: dict[str, int] = {}
    for change in commit.changes:
        if change.kind not in _POOL_KINDS:
            continue
        for each in (change.before, change.after):
            if each is not None and change.kind == "volume_placement":
                found.setdefault(rules.pool_of(each), 0)
        if change.kind != "volume_placement":
            pool = change.id if change.kind == "pool_claims" else f"local/{change.id}"
            found[pool] = found.get(pool, 0) + _claimed(change.before)
    return found


def _pool(cloud: Cloud, pool: str, before: int) -> Iterator[str]:
    now = _claimed(cloud.get("pool_claims", pool)) + _before(cloud, pool)
    summed, most = rules.pool_claimed(cloud, pool), rules.pool_capacity(cloud, pool)
    if now != summed:
        yield f"of pool {pool} {now} bytes are claimed, what is placed there is {summed}"
    if now > max(most, before):
        yield f"of pool {pool} {now} bytes are claimed, it has {most}"


def _claimed(claims: Any) -> int:
    return int(claims.disk_bytes) if claims is not None else 0


def _before(cloud: Cloud, pool: str) -> int:
    """What an older release claimed of a local pool is in the claims of its node."""
    return _claimed(cloud.get("node_claims", pool.removeprefix("local/")))
