"""Plays seeds: python -m tests.sim [--seeds N] [--first N] [--jobs N] | --seed N [--trace] | --shrink N | --scenarios

Progress goes to stderr. Failing seeds are told as they are found and again at the end; the exit code is 1 when there are any.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from typing import Final

from tests.sim import cast
from tests.sim.loop import traced
from tests.sim.play import draw
from tests.sim.shrink import Shrinker
from tests.sim.story import Story
from tests.sim.swarm import Result, judge, swarm

TELL_S: Final = 5.0


def main() -> int:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(prog="python -m tests.sim", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=300, help="how many to play")
    parser.add_argument("--first", type=int, default=1, help="the first of them")
    parser.add_argument("--jobs", type=int, default=0, help="how many at once; 0: one per core")
    parser.add_argument("--busy", action="store_true", help="stories with many more faults: seeds busy-1, busy-2, ...")
    parser.add_argument("--large", action="store_true", help="200 nodes and 5,000 VMs: seeds large-1, ...; minutes each")
    parser.add_argument("--seed", help="play this one again: 42, busy-42, crowded-42, middle-42, large-42")
    parser.add_argument("--trace", action="store_true", help="with --seed: print every line")
    parser.add_argument("--shrink", help="find the shortest story of a failing seed")
    parser.add_argument("--scenarios", action="store_true", help="play the named regressions")
    asked = parser.parse_args()
    if asked.seed is not None:
        return replay(draw(asked.seed), trace=asked.trace)
    if asked.shrink is not None:
        return shrink(draw(asked.shrink))
    if asked.scenarios:
        return max([replay(module.STORY, name=module.__name__) for module in cast.SCENARIOS], default=0)
    numbers = range(asked.first, asked.first + asked.seeds)
    size = "busy-" if asked.busy else "large-" if asked.large else ""
    return many([f"{size}{number}" for number in numbers] if size else list(numbers), asked.jobs)


def many(seeds: Sequence[int | str], jobs: int) -> int:
    """Play many seeds."""
    begin_s = told_s = time.monotonic()
    failed: list[Result] = []
    played, virtual_s, events = 0, 0.0, 0
    for result in swarm(seeds, jobs):
        played += 1
        virtual_s += result.virtual_s
        events += int(result.counts.get("seen", 0))
        if result.failure:
            failed.append(result)
            print(result, flush=True)
        if time.monotonic() - told_s >= TELL_S:
            told_s = time.monotonic()
            say = f"{played} of {len(seeds)} seeds, {len(failed)} failed, {told_s - begin_s:.0f} s"
            print(say, file=sys.stderr, flush=True)
    took_s = time.monotonic() - begin_s
    said = f"{virtual_s / 3600:.1f} hours of cloud, {events} events checked, {len(failed)} failed"
    print(f"{played} seeds in {took_s:.0f} s: {said}")
    for result in sorted(failed, key=lambda each: str(each.seed)):
        print(f"  {result}\n    replay: make sim SEED={result.seed}    shortest story: make sim SHRINK={result.seed}")
    return 1 if failed else 0


def replay(story: Story, *, trace: bool = False, name: str = "") -> int:
    """Play one story and tell how it went."""
    print(f"{name or f'seed {story.seed}'}: {story.size}")
    for event in story.events:
        print(event)
    with traced() as trace_of:
        result = judge(story)
    if trace or result.failure:
        lines = trace_of.lines if trace else trace_of.lines[-60:]
        print(*lines, sep="\n")
    print(result)
    print(f"trace hash: {trace_of.hash}")
    return 1 if result.failure else 0


def shrink(story: Story) -> int:
    """Shrink a failing story and print it."""
    result = judge(story)
    if not result.failure:
        print(f"seed {story.seed} goes well: nothing to shrink")
        return 0
    print(result)
    found = Shrinker(story, result.kind, told=lambda text: print(text, file=sys.stderr, flush=True)).run()
    print(f"\nThe shortest story ({found.tries} tried), seed {found.story.seed!r}, {found.story.size}:")
    for event in found.story.events:
        print(f"  {event}")
    print(f"{found.result.failure}\n\nAs a scenario:\n\nSTORY = {found.story!r}")
    return 1


if __name__ == "__main__":
    sys.exit(main())
