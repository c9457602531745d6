"""Who has to hear that something shared in a VPC changed: the nodes that were sent all there was of it.

    hearers.sent(node, vpcs)          its stream has sent all that is shared in these
    hearers.of(vpcs)                  whom to tell that there is more, each once until it was sent that, too

A stream that knows of one change looks at all there is when its turn comes, so it need not be told of the next: telling every
node of a VPC of every card in it would cost nodes x cards.
"""

from __future__ import annotations

from collections.abc import Iterable


class Hearers:
    """Of each VPC, the nodes whose streams are up to date."""

    def __init__(self) -> None:
        self._nodes: dict[str, dict[str, None]] = {}

    def sent(self, node: str, vpcs: Iterable[str]) -> None:
        """A node was sent all that is shared in these VPCs."""
        for vpc in vpcs:
            self._nodes.setdefault(vpc, {})[node] = None

    def of(self, vpcs: Iterable[str]) -> list[str]:
        """Return the nodes to be told of a change in these VPCs."""
        return list(dict.fromkeys(node for vpc in vpcs for node in self._nodes.pop(vpc, ())))

    def forget(self, node: str) -> None:
        """Its stream is over."""
        for nodes in self._nodes.values():
            nodes.pop(node, None)
