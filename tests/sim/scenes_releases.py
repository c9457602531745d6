"""Scenes for the checker of mixed releases, see test_checkers.py."""

from __future__ import annotations

from typing import Any

from tests.sim.releases import NOVELTY
from tests.sim.stage import Stage, scene, vm


def _newer(**spec: Any) -> tuple[str, str, Any]:
    kind, id, record = vm(**spec)
    return kind, id, type(record).FromString(record.SerializeToString() + NOVELTY)


@scene("novelties")
def what_is_not_known_is_kept(stage: Stage) -> None:
    stage.commit(_newer())
    stage.commit(_newer(power_generation=2))
    stage.commit(("vm", "i-1", None))
    stage.commit(vm())
    stage.commit(vm(power_generation=3))


@scene("novelties", "vm/i-1 has lost")
def what_is_not_known_is_lost(stage: Stage) -> None:
    stage.commit(_newer())
    stage.commit(vm(power_generation=2))
