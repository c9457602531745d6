"""Somebody asks for many large VMs at once, more than there is room for, and soon gives most of them back."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterable

from tests.sim.asked import AskedVm
from tests.sim.story import Event, Size
from tests.sim.user import User

# A node has room for three.
LARGE_MIB = 6144
LARGE_CPUS = 2


def draw(draw: random.Random, size: Size) -> Iterable[Event]:
    """Once in a story, and not in each."""
    if draw.random() < 0.5:
        user, at_s = draw.choice(size.user_names), round(draw.uniform(0, size.duration_s / 2), 2)
        count = min(60, draw.choice((4, 5, 8)) * size.nodes + draw.choice((0, 4)))
        yield Event(at_s, user, "storm", (f"storm-{user}", count, draw.choice((0, 0, 1)), draw.choice((0.0, 2.0, 10.0))))


async def storm(user: User, name: str, count: int, kept: int, pause_s: float) -> None:
    """Make that many at once, and erase all but a few, those first that were asked for first: others then get their room."""
    made = await asyncio.gather(*(_one(user, f"{name}-{number}") for number in range(count)))
    await asyncio.sleep(pause_s)
    await asyncio.gather(*(_back(user, vm) for vm in made[: count - kept]))


async def _one(user: User, name: str) -> AskedVm:
    vm = await user.client.create_vm(name, cpus=LARGE_CPUS, memory_mib=LARGE_MIB)
    # No other act of this user is at work meanwhile, and no other user's touches it.
    return user.keep(vm)


async def _back(user: User, vm: AskedVm) -> None:
    await user.client.delete_vm(vm.id)
    user.asked.erase_vm(vm.id)


ACTS = {"storm": storm}
