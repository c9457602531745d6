"""Records whose bytes become garbage, or that vanish, behind everybody's back, for a while; then the good bytes come again.

The checkers' picture keeps the good record all the time: nothing may be destroyed, given away or told otherwise because of it.
`restarted`: every controller is restarted meanwhile, so that none has ever read the record. What the product itself writes or
removes meanwhile stays so.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterable
from typing import Final

from cairn.controller.store.base import Put, Txn
from cairn.proto import kinds

from tests.sim.story import FAULT, Event, Size, spread
from tests.sim.user import pick
from tests.sim.world import World

GARBAGE: Final = b"\xff\xff\xff\xff"
_UNREADABLE: Final = (
    "vm", "vm", "subnet", "subnet", "placement", "port_binding", "port", "volume", "volume_placement", "vpc", "image",
    "image_content", "project", "node_facts", "node_pools", "observed", "node_claims", "name", "address", "secret",
)  # fmt: skip
# Of others that are gone, what they held is rightly given away, and who asks for them is rightly told that they are not there:
# nobody can tell that from a deletion.
_MISSING: Final = ("secret",)


def draw(draw: random.Random, size: Size) -> Iterable[Event]:
    """A few, each for a while."""
    for at_s in spread(draw, size, max(1, size.faults // 2) if size.faults else 0):
        index, for_s, restarted = draw.randrange(8), draw.choice((2.0, 10.0, 30.0)), draw.random() < 0.5
        if draw.random() < 0.75:
            yield Event(at_s, FAULT, "unreadable", (draw.choice(_UNREADABLE), index, for_s, restarted))
        else:
            yield Event(at_s, FAULT, "missing", (draw.choice(_MISSING), index, for_s, restarted))


async def unreadable(world: World, kind: str, index: int, for_s: float, restarted: bool) -> None:
    """A record's bytes cannot be decoded for a while."""
    await _spoil(world, kind, index, for_s, restarted, GARBAGE)


async def missing(world: World, kind: str, index: int, for_s: float, restarted: bool) -> None:
    """A record is gone for a while."""
    await _spoil(world, kind, index, for_s, restarted, None)


async def _spoil(world: World, kind: str, index: int, for_s: float, restarted: bool, value: bytes | None) -> None:
    item = pick(world.backend.of(kinds.BY_NAME[kind].prefix), index)
    if item is None or item.lease or item.value == GARBAGE or world.stay_whole:
        return
    world.note(f"{item.key} becomes {'unreadable' if value else 'missing'}")
    world.network.count("unreadable" if value else "missing")
    world.backend.spoil(item.key, Put(value) if value is not None else None)
    world.were_spoiled.add(item.key)
    world.spoiled[item.key] = lambda: _mend(world, item.key, item.value, value)
    try:
        if restarted:
            for name in world.controllers:
                world.crash(name)
                world.restart(name)
        await asyncio.sleep(for_s)
    finally:
        if mend := world.spoiled.pop(item.key, None):
            mend()


def _mend(world: World, key: str, good: bytes, value: bytes | None) -> None:
    """Put the good bytes back, unless somebody wrote or removed the record meanwhile. value: what it was spoiled with."""
    now = world.backend.find(key)
    if (now.value if now is not None else None) == value:
        world.note(f"{key} is as it was")
        world.backend.spoil(key, Put(good))
        if value is None and not _has_its_object(world, key):
            # It was erased with its object meanwhile; of what was not there nobody was told that.
            world.backend.apply(Txn("garbage").delete(kinds.SECRET, key.removeprefix(kinds.SECRET.prefix)))


def _has_its_object(world: World, key: str) -> bool:
    """Tell whether what a secret ("vm/i-...") is of is still there."""
    kind, _, id = key.removeprefix(kinds.SECRET.prefix).partition("/")
    return world.backend.find(kinds.BY_NAME[kind].key(id)) is not None


ACTS = {"unreadable": unreadable, "missing": missing}
