"""Plays many seeds, several at once, and tells which fail. Each seed is played in a process that has played others before it:
nothing may be left of them.

    for result in swarm(range(1, 301), jobs=2): print(result)
"""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Final

from tests.sim.play import draw, play
from tests.sim.story import Story

# Seeds handed out before their results are in: memory stays flat however many there are.
AHEAD: Final = 8


@dataclass(frozen=True, slots=True)
class Result:
    """How one story went. failure "": well."""

    seed: int | str
    failure: str = ""
    # Kind of failure: a checker's name, or the exception's.
    kind: str = ""
    trace_hash: str = ""
    seconds: float = 0.0
    virtual_s: float = 0.0
    steps: int = 0
    counts: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        how = f"FAILED {self.failure.splitlines()[0][:300]}" if self.failure else "well"
        return f"seed {self.seed}: {how} ({self.seconds:.2f} s)"


def judge(story: Story) -> Result:
    """Play a story; return how it went."""
    begin_s = time.perf_counter()
    try:
        outcome = play(story)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # noqa: BLE001 - the result of the experiment
        innermost = _innermost(error)
        kind = getattr(innermost, "checker", type(innermost).__name__)
        notes = " ".join(getattr(error, "__notes__", []))
        text = f"{innermost or type(innermost).__name__} [{notes}]"
        return Result(story.seed, text, str(kind), seconds=time.perf_counter() - begin_s)
    seconds = time.perf_counter() - begin_s
    return Result(story.seed, "", "", outcome.trace_hash, seconds, outcome.virtual_s, outcome.steps, dict(outcome.result or {}))


def judge_seed(seed: int | str) -> Result:
    """Draw and play a seed."""
    try:
        story = draw(seed)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # noqa: BLE001 - a result too
        return Result(seed, f"cannot be drawn: {error!r}", "draw")
    return judge(story)


def swarm(seeds: Iterable[int | str], jobs: int = 0) -> Iterator[Result]:
    """Yield results as they come. jobs 0: one per core."""
    waiting = iter(seeds)
    jobs = jobs or os.cpu_count() or 1
    if jobs == 1:
        yield from map(judge_seed, waiting)
        return
    # What they inherit is nothing to look through at each collection.
    with ProcessPoolExecutor(max_workers=jobs, initializer=gc.freeze) as pool:
        running: set[Future[Result]] = {pool.submit(judge_seed, seed) for seed in islice(waiting, jobs * AHEAD)}
        while running:
            done, running = wait(running, return_when=FIRST_COMPLETED)
            running |= {pool.submit(judge_seed, seed) for seed in islice(waiting, len(done))}
            yield from (future.result() for future in done)


def _innermost(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
