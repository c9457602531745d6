"""The simulation can fail: bugs put into a copy of the product are caught. All of them: python -m tests.sim.mutants."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.sim.mutants.copies import NotThere, changed
from tests.sim.mutants.hunt import Hunt
from tests.sim.mutants.table import MUTANTS, Mutant, parse

BY_NAME = {mutant.name: mutant for mutant in MUTANTS}
# Few seeds each; by a checker of records, one of hosts and their ledgers, and one of both.
QUICK = {"claims_unchecked": "checked", "act_before_durable": "ledger_first", "erased_before_gone": "held_while_used"}
SEEDS = 15
FEW = 3


@pytest.fixture(scope="module")
def hunt() -> Iterator[Hunt]:
    with Hunt() as hunting:
        yield hunting


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_bug_can_be_put_in(mutant: Mutant) -> None:
    for file, content in changed(mutant).items():
        compile(content, file, "exec")


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(("name", "checker"), QUICK.items())
def test_a_bug_is_caught(hunt: Hunt, name: str, checker: str) -> None:
    caught = hunt.catch(BY_NAME[name], SEEDS)
    assert caught.seed is not None
    assert caught.checker == checker, caught.failure


def test_a_bug_whose_text_is_gone_is_an_error() -> None:
    mutant = parse("outdated", "Breaks nothing.\n--- agent/ledger.py\n@@\n-a line that never was\n+another\n")
    with pytest.raises(NotThere):
        changed(mutant)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_change_that_breaks_nothing_is_not_caught(hunt: Hunt) -> None:
    text = 'Breaks nothing.\n--- agent/ledger.py\n@@\n-NAME: Final = "ledger"\n+NAME: Final = "ledger"  # the same\n'
    assert hunt.catch(parse("harmless", text), FEW).seed is None
