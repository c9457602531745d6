"""The store: full, answers lost, commits late, watches silent or compacted, leases lost, members gone, slow quorum."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterable

from tests.sim.checkers.base import Violation
from tests.sim.story import FAULT, Event, Size, spread
from tests.sim.world import World

# Of one controller, to write to a store that is full; and at first, when each part of it begins to find that out.
TRIES_PER_S = 10
TRIES_AT_FIRST = 20
# And what each connected node reports is tried again every half second.
TRIES_OF_A_NODE_PER_S = 2.0
# For a call, which is answered with a refusal: beside its neighbours, then alone.
TRIES_OF_A_CALL = 2
# Those that came before the store was full, and upkeep under the API's name.
CALLS_UNDER_WAY = 50
_SHARES = {
    "lost_answer": (0.01, 0.1), "lost_request": (0.01, 0.05), "late_commit": (0.01, 0.1), "unavailable": (0.01, 0.2),
    "silent_watch": (0.01, 0.05), "compacted_watch": (0.002, 0.02), "progress_mark": (0.05, 0.5), "lost_lease": (0.02, 0.2),
    "member_loss": (0.002, 0.01),
}  # fmt: skip


def draw(draw: random.Random, size: Size) -> Iterable[Event]:
    """Spells in which a few kinds of fault strike at random; now and then one controller alone loses the store."""
    for at_s in spread(draw, size, size.faults):
        for_s = round(draw.choice((2.0, 10.0, 40.0)), 2)
        if draw.random() < 0.25:
            yield Event(at_s, FAULT, "store_cut", (draw.choice(size.controller_names), for_s))
            continue
        if draw.random() < 0.12:
            yield Event(at_s, FAULT, "store_full", (for_s,))
            continue
        kinds = draw.sample(sorted(_SHARES), draw.choice((1, 2, 4)))
        shares = tuple((kind, draw.choice(_SHARES[kind])) for kind in kinds)
        slow_s = draw.choice((0.0, 0.0, 0.05, 0.8))
        yield Event(at_s, FAULT, "store_trouble", (shares, slow_s, for_s))


async def store_trouble(world: World, shares: tuple[tuple[str, float], ...], slow_s: float, for_s: float) -> None:
    """Each call may be struck; a slow quorum delays all."""
    faults = world.store_faults
    for kind, share in shares:
        setattr(faults, kind, share)
    faults.slow_quorum_s = faults.watch_delay_s = (0.0, slow_s)
    await asyncio.sleep(for_s)
    faults.calm()


async def store_cut(world: World, name: str, for_s: float) -> None:
    """One controller cannot reach the store; the others can."""
    process = world.processes.get(name)
    if process is None or process.store is None:
        return
    process.store.cut()
    await asyncio.sleep(for_s)
    process.store.mend()


async def store_full(world: World, for_s: float) -> None:
    """Nothing can be written: nothing is lost, and nobody tries again and again without a pause."""
    struck, served = world.store_faults.struck, world.network.served
    before, before_of_calls = struck.get("full", 0), struck.get("full_for_api", 0)
    world.backend.full = True
    await asyncio.sleep(for_s)
    world.backend.full = False
    tries, calls = struck.get("full", 0) - before, world.network.served - served + CALLS_UNDER_WAY
    at_first, per_s = TRIES_AT_FIRST * len(world.controllers), TRIES_PER_S * len(world.controllers)
    if tries > at_first + for_s * (per_s + TRIES_OF_A_NODE_PER_S * len(world.machines)):
        raise Violation("store_full", f"{tries} attempts to write to a full store in {for_s} s")
    if (tries := struck.get("full_for_api", 0) - before_of_calls) > calls * TRIES_OF_A_CALL:
        raise Violation("store_full", f"{tries} attempts to write to a full store for {calls} calls")


ACTS = {"store_trouble": store_trouble, "store_cut": store_cut, "store_full": store_full}
