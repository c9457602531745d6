"""Hundreds of seeds and every named regression: users and faults drawn, checkers watching, nothing may be found."""

from __future__ import annotations

import os

import pytest

from tests.sim import cast
from tests.sim.swarm import judge, swarm

# As many as fit into a run of all tests on two cores; `make sim` plays 300.
SEEDS = int(os.environ.get("SIM_SEEDS", "60"))


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_every_seed_goes_well() -> None:
    failed = [str(result) for result in swarm(range(1, SEEDS + 1)) if result.failure]
    assert not failed, "\n".join([f"{len(failed)} of {SEEDS} seeds failed; play one again: make sim SEED=n", *failed])


@pytest.mark.parametrize("scenario", cast.SCENARIOS, ids=lambda module: module.__name__.rpartition(".")[2])
def test_what_went_wrong_once_goes_well(scenario: object) -> None:
    result = judge(scenario.STORY)  # type: ignore[attr-defined]
    assert not result.failure, f"{scenario.__doc__}\n{result.failure}"
