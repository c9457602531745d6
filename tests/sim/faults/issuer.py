"""The identity provider outside of the cloud: gone, slow, or with another key, for a while."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterable

from tests.sim.story import FAULT, Event, Size, spread
from tests.sim.world import World


def draw(draw: random.Random, size: Size) -> Iterable[Event]:
    """Some of each."""
    for at_s in spread(draw, size, (size.faults + 1) // 2):
        yield Event(at_s, FAULT, "issuer_trouble", (draw.choice(("gone", "slow", "key")), draw.choice((2.0, 20.0, 60.0))))


async def issuer_trouble(world: World, what: str, for_s: float) -> None:
    """A key that counts no more stays so."""
    issuer = world.network.issuer
    if what == "key":
        issuer.key += 1
        return
    issuer.gone, issuer.slow_s = what == "gone", 8.0 if what == "slow" else 0.0
    await asyncio.sleep(for_s)
    issuer.gone, issuer.slow_s = False, 0.0


ACTS = {"issuer_trouble": issuer_trouble}
