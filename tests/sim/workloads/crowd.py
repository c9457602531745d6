"""Users let VMs grow until their node has no room for it: one that cannot stays as it is, and says so, until there is room."""

from __future__ import annotations

import random
from collections.abc import Iterable

from tests.sim.story import Event, Size

# A node has room for one of these, not for two.
BIG_MIB = 14 << 10
SMALL_MIB = 128


def draw(draw: random.Random, size: Size) -> Iterable[Event]:
    """One user makes one VM more than there are nodes, lets all of them grow, and some shrink again. Not in each story."""
    if draw.random() < 0.5:
        user, count = draw.choice(size.user_names), size.nodes + 1
        for number in range(count):
            at_s = round(draw.uniform(0, size.duration_s / 3), 2)
            yield Event(at_s, user, "create_vm", (f"crowd-{user}-{number}", 1, SMALL_MIB))
        for number in range(2 * count):
            at_s = round(draw.uniform(size.duration_s / 3, size.duration_s), 2)
            yield Event(at_s, user, "resize", (number, 1, draw.choice((BIG_MIB, BIG_MIB, BIG_MIB, SMALL_MIB))))


ACTS = {}
