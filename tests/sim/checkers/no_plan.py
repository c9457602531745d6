"""At rest nobody has anything to do: whoever is restarted looks at everything anew and changes nothing.

`plan(apply(plan))` is empty: while all must rest no host feels any effect, no ledger's objects change, and nothing is written
but who is alive, and what is only remembered for a while.

A user's plan is a look, not a change: nobody acts on it before it is applied, and it ends by itself. So each time a question is
asked a plan may be kept, also when the network asks it again long after everybody has gone; that one adds to nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from tests.sim.checkers.base import Checker
from tests.sim.cloud import Changed, Cloud, Commit

# Who is alive, what is told of it, what is let go of what was done, and up to where it was counted that nothing was used.
_MAY_CHANGE = (
    "controller", "controller_last", "node_session", "node_last", "node_told", "event", "event_of", "request", "audit",
    "audit_head", "audit_cut", "usage_cursor",
)  # fmt: skip
# What somebody was shown: made, and ended by its lease; never changed.
_LOOKS = ("plan",)


_AMOUNTS = re.compile(r"[\d.]+ [KMGT]iB( on [\w.-]+)?|\d+ CPUs?( on [\w.-]+)?")


class NoPlan(Checker):
    """Watches while everything must stay as it is."""

    def __init__(self) -> None:
        self._resting = False
        # Node -> effects felt, first instructions executed, keys in the ledger.
        self._were: dict[str, tuple[int, int, frozenset[str]]] = {}

    def resting(self, cloud: Cloud, on: bool) -> Iterator[str]:
        """Begin or end."""
        if not on:
            for node in cloud.hosts:
                yield from self.host_changed(cloud, node)
        self._resting = on
        self._were = {node: self._now(cloud, node) for node in cloud.hosts} if on else {}

    def committed(self, cloud: Cloud, commit: Commit) -> Iterator[str]:
        """Nothing is decided or reported anew."""
        if self._resting:
            for change in commit.changes:
                if change.kind not in _MAY_CHANGE and not (_measured(change) or _looked(change) or _retold(change)):
                    yield f"{change.key} was written though all was at rest: {_difference(change)}"

    def host_changed(self, cloud: Cloud, node: str) -> Iterator[str]:
        """Nothing is done."""
        if self._resting and node in self._were and self._now(cloud, node) != self._were[node]:
            (effects, boots, keys), before = self._now(cloud, node), self._were[node]
            what = f"{effects - before[0]} effects, {boots - before[1]} boots, keys {sorted(keys ^ before[2])}"
            yield f"{cloud.name_of(node)} did something though all was at rest: {what}"

    def accepted(self, cloud: Cloud, node: str) -> Iterator[str]:
        """Nothing is told to a node that it did not know."""
        yield from self.host_changed(cloud, node)

    @staticmethod
    def _now(cloud: Cloud, node: str) -> tuple[int, int, frozenset[str]]:
        host = cloud.hosts[node]
        return host.effects, host.boots, frozenset(host.ledger)


def _measured(change: Changed) -> bool:
    """Whether it only tells anew what the machine is like: that is looked at now and then, and when an agent starts.

    How full a pool is, which alone is no reason to write what the machine is made of; and how much memory a NUMA node has: a
    real machine's grows when memory is put online.
    """
    if change.kind == "node_pools" and change.after is not None:
        return True
    if change.kind != "node_facts" or change.before is None or change.after is None or change.before.numa == change.after.numa:
        return False
    facts = [type(each).FromString(each.SerializeToString()) for each in (change.before, change.after)]
    for each in facts:
        for pool in each.pools:
            pool.ClearField("used_bytes")
            pool.ClearField("free_bytes")
        for numa in each.numa:
            numa.ClearField("memory_bytes")
    return bool(facts[0] == facts[1])


def _looked(change: Changed) -> bool:
    return change.kind in _LOOKS and (change.before is None or change.after is None)


def _retold(change: Changed) -> bool:
    """Whether it only says with today's amounts why a VM is on no node: that is worked out anew when somebody looks again."""
    if change.before is None or change.after is None or change.kind not in ("placement", "decision"):
        return False
    told = [each.decision if change.kind == "placement" else each for each in (change.before, change.after)]
    nodes = [each.node for each in (change.before, change.after)]
    says = [_AMOUNTS.sub("", each.say) for each in told]
    return nodes == ["", ""] and says[0] == says[1]


def _difference(change: Changed) -> str:
    before, after = (str(each).splitlines() for each in (change.before, change.after))
    return "; ".join(
        [
            *(f"-{line.strip()}" for line in before if line not in after),
            *(f"+{line.strip()}" for line in after if line not in before),
        ]
    )
