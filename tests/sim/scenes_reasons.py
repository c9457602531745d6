"""Scenes of the checker reasons: what it must see, and what it must not mind."""

from __future__ import annotations

from cairn.proto.v1.common_pb2 import Decision

from tests.sim.stage import NODE, OTHER, SCENES, VM, Stage, placement, scene

__all__ = ["SCENES"]


def _decision(node: str = NODE) -> tuple[str, str, Decision]:
    return "decision", VM, Decision(node=node, say="on n1")


@scene("reasons")
def told_resized_and_gone(stage: Stage) -> None:
    stage.commit(placement(), _decision())
    stage.commit(placement(say="stays as it is on n1"))
    stage.commit(placement(node=""), _decision(""))
    stage.commit(("placement", VM, None), ("decision", VM, None))


@scene("reasons", "nobody can tell why")
def placed_without_a_reason(stage: Stage) -> None:
    stage.commit(placement())


@scene("reasons", "i-1 is on node-2, its decision speaks of node-1")
def placed_elsewhere_without_a_reason(stage: Stage) -> None:
    stage.commit(placement(), _decision())
    stage.commit(placement(node=OTHER))


@scene("reasons", "its decision is left")
def a_reason_that_outlives_its_placement(stage: Stage) -> None:
    stage.commit(placement(), _decision())
    stage.commit(("placement", VM, None))


@scene("reasons", "the decision's sentence and no more")
def all_of_it_in_the_placement(stage: Stage) -> None:
    _, _, made = placement()
    made.decision.top.add(node=NODE)
    stage.commit(("placement", VM, made), _decision())
