"""Can the simulation fail? python -m tests.sim.mutants [--seeds 300] [--jobs N] [--only NAME ...] [--trusted]

Hunts every bug of table.py and prints for each how many seeds it took to be caught, and by which checker. Exit code 1 when one
got away, or when the product has changed so that a bug cannot be put in.
"""

from __future__ import annotations

import argparse
import os
import sys
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Final

from tests.sim.mutants.copies import NotThere, changed
from tests.sim.mutants.hunt import Caught, Hunt
from tests.sim.mutants.table import MUTANTS, Mutant

TEXT_MAX: Final = 150


def main() -> int:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(prog="python -m tests.sim.mutants", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=300, help="how many to play at most")
    parser.add_argument("--jobs", type=int, default=0, help="mutants hunted at once; 0: one per core")
    parser.add_argument("--only", nargs="*", default=[], help="names of mutants")
    parser.add_argument("--trusted", action="store_true", help="the product is known to pass all those seeds")
    asked = parser.parse_args()
    unknown = set(asked.only) - {mutant.name for mutant in MUTANTS}
    if unknown:
        parser.error(f"no such mutant: {', '.join(sorted(unknown))}")
    mutants = [mutant for mutant in MUTANTS if not asked.only or mutant.name in asked.only]
    try:
        for mutant in mutants:
            changed(mutant)
    except NotThere as error:
        print(error, file=sys.stderr)
        return 1
    return hunt(mutants, asked.seeds, asked.jobs or os.cpu_count() or 1, trusted=asked.trusted)


def hunt(mutants: list[Mutant], seeds: int, jobs: int, *, trusted: bool) -> int:
    """Hunt them all and tell."""
    found: dict[str, Caught] = {}
    with Hunt(trusted=trusted) as hunting, ThreadPoolExecutor(jobs) as pool:
        for future in as_completed([pool.submit(hunting.catch, mutant, seeds) for mutant in mutants]):
            caught = future.result()
            found[caught.mutant.name] = caught
            print(_line(caught, seeds), file=sys.stderr, flush=True)
    rows = [found[mutant.name] for mutant in mutants]
    print("| bug | what it breaks | caught at seed | by | seconds |\n|---|---|---|---|---|")
    for row in rows:
        seed = str(row.seed) if row.seed is not None else f"not within {seeds}"
        print(f"| {row.mutant.name} | {row.mutant.breaks} | {seed} | {row.checker or '-'} | {row.seconds:.0f} |")
    away = [row.mutant.name for row in rows if row.seed is None]
    ill = sorted({seed for row in rows for seed in row.ill})
    if ill:
        print(f"\nThese seeds fail without any bug, too, and were not counted: {ill}")
    print(
        f"\n{len(rows) - len(away)} of {len(rows)} were caught within {seeds} seeds"
        + (f"; not: {', '.join(away)}" * bool(away))
    )
    return 1 if away else 0


def _line(caught: Caught, seeds: int) -> str:
    if caught.seed is None:
        return f"{caught.mutant.name}: NOT CAUGHT within {seeds} seeds ({caught.seconds:.0f} s)"
    said = caught.failure.splitlines()[0][:TEXT_MAX]
    return f"{caught.mutant.name}: seed {caught.seed} ({caught.seconds:.0f} s): {said}"


if __name__ == "__main__":
    sys.exit(main())
