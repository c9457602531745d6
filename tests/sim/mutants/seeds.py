"""Runs inside a copy: python -m tests.sim.mutants.seeds FIRST LAST [--but N,N,...]

Plays seeds in order until one fails, and prints one line of JSON: {"seed": n, "kind": checker, "failure": sentence}, or {} when
all went well. Exit code 3 when it does not run on the copy's own product.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import cairn.agent.app
import cairn.controller.app

from tests.sim.swarm import judge_seed


def main() -> int:
    """Do what the command line says."""
    parser = argparse.ArgumentParser()
    parser.add_argument("first", type=int)
    parser.add_argument("last", type=int)
    parser.add_argument("--but", default="", help="seeds to leave out")
    asked = parser.parse_args()
    here = Path(__file__).resolve().parents[3]
    for module in (cairn.agent.app, cairn.controller.app):
        if here not in Path(module.__file__).resolve().parents:
            print(f"{module.__file__} is not in {here}", file=sys.stderr)
            return 3
    left_out = {int(seed) for seed in asked.but.split(",") if seed}
    for seed in range(asked.first, asked.last + 1):
        if seed in left_out:
            continue
        result = judge_seed(seed)
        if result.failure:
            print(json.dumps({"seed": seed, "kind": result.kind, "failure": result.failure}))
            return 0
    print("{}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
