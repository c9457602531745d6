"""Why a VM is where it is, or nowhere, can be asked while it has a placement: the decision beside it is about that node."""

from __future__ import annotations

from collections.abc import Iterator

from tests.sim.checkers.base import Checker
from tests.sim.cloud import Cloud, Commit


class Reasons(Checker):
    """Compares placements with decisions, in each revision that changes one of both."""

    def committed(self, cloud: Cloud, commit: Commit) -> Iterator[str]:
        """Look at both."""
        for id in dict.fromkeys(change.id for change in commit.changes if change.kind in ("placement", "decision")):
            placement, decision = cloud.get("placement", id), cloud.get("decision", id)
            if placement is None:
                if decision is not None:
                    yield f"{id} has no placement any more, and its decision is left"
            elif decision is None:
                yield f"{id} has a placement, and nobody can tell why"
            elif placement.node != decision.node:
                yield f"{id} is on {placement.node or 'no node'}, its decision speaks of {decision.node or 'none'}"
            elif not placement.decision.say or placement.decision.top:
                yield f"the placement of {id} is to have the decision's sentence and no more, and has {placement.decision}"
