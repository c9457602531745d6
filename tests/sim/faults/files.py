"""The audit's files: a controller cannot write them for a while, or none can."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterable

from tests.sim.story import FAULT, Event, Size, spread
from tests.sim.world import World


def draw(draw: random.Random, size: Size) -> Iterable[Event]:
    """Spells long enough for a look or more at what there is to write."""
    for at_s in spread(draw, size, (size.faults + 1) // 2):
        name = draw.choice((*size.controller_names, ""))
        yield Event(at_s, FAULT, "files_fail", (name, draw.choice((20.0, 60.0, 300.0))))


async def files_fail(world: World, name: str, for_s: float) -> None:
    """A full disk. name: empty: of every controller."""
    struck = [files for each, files in world.filed.files.items() if name in ("", each)]
    before = sum(files.refused for files in struck)
    for files in struck:
        files.fails = "/audit: No space left on device"
    await asyncio.sleep(for_s)
    for files in struck:
        files.fails = ""
    if sum(files.refused for files in struck) > before:
        world.store_faults.struck["files_fail"] = world.store_faults.struck.get("files_fail", 0) + 1


ACTS = {"files_fail": files_fail}
