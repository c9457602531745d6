"""Scenes of guests that a node is told no more of."""

from __future__ import annotations

from tests.sim.stage import Stage, scene

GUESTS = {f"vm/i-{number}": True for number in range(1, 5)}


@scene("let_go")
def a_few_are_let_go_others_are_to_be_absent(stage: Stage) -> None:
    stage.ledger({}, held=(1, 1), wanted=GUESTS)
    stage.ledger({}, held=(1, 2), wanted={"vm/i-1": True, "vm/i-2": False, "vm/i-3": False})
    stage.ledger({}, held=(1, 3), wanted={})


@scene("let_go")
def a_restored_store_knows_less(stage: Stage) -> None:
    stage.ledger({}, held=(1, 1), wanted=GUESTS)
    stage.ledger({}, held=(2, 1), wanted={})


@scene("let_go", "n1 has let go of vm/i-1, vm/i-2, vm/i-3, vm/i-4")
def all_are_let_go(stage: Stage) -> None:
    stage.ledger({}, held=(1, 1), wanted=GUESTS)
    stage.ledger({}, held=(1, 2), wanted={})
