"""Users with many VMs: made by many callers at once, and many of them erased and made anew while a node is away.

What is gathered while it was away comes at once: reports, what need not be reported any more, events; lists of a whole fleet;
every node of a VPC told of every card. That is where bounds of transactions and messages are, and work that grows as a square.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterable
from typing import Any, Final

from tests.sim.story import FAULT, Event, Size
from tests.sim.user import IMAGE, User

MASSES: Final = True
CALLERS: Final = 100
PER_VPC: Final = 250
MEMORY_MIB: Final = 64
# So much text goes with every VM of a fleet.
USER_DATA: Final = (0, 0, 1 << 10, 48 << 10)


def draw(draw: random.Random, size: Size) -> Iterable[Event]:
    """Each user makes his share, VPC by VPC; later a part of each is replaced while a node or two are cut off."""
    share = -(-size.many // size.users)
    for user in size.user_names:
        for number, begin in enumerate(range(0, share, PER_VPC)):
            name, count = f"fleet-{user}-{number}", min(PER_VPC, share - begin)
            yield Event(round(draw.uniform(0, 2), 2), user, "fleet", (name, count, draw.choice(USER_DATA)))
            turn_s = round(draw.uniform(0.5, 0.8) * size.duration_s, 2)
            yield Event(turn_s, user, "fleet_turns", (name, count // 2))
            if draw.random() < 0.7:
                # What comes while one commit is under way comes together.
                yield Event(round(max(0.0, turn_s - 0.1), 2), FAULT, "store_trouble", ((), draw.choice((1.0, 3.0)), 10.0))
            for node in draw.sample(size.node_names, min(2, size.nodes)):
                away_s = draw.choice((2.0, 8.0, 20.0))
                at_s = round(max(0.0, turn_s + draw.uniform(-0.2, 1.0)), 2)
                yield Event(at_s, FAULT, "cut", (node, "*", away_s))


async def fleet(user: User, name: str, count: int, data_bytes: int) -> None:
    """Make a VPC and that many VMs in it."""
    await user.client.create_vpc(name, "10.7.0.0/16")
    await user.client.create_subnet_in(name, name, "10.7.0.0/22")
    await _together([_make(user, name, f"{name}-{number}", data_bytes) for number in range(count)])


async def fleet_turns(user: User, name: str, count: int) -> None:
    """Erase that many of a fleet, and make as many others at the same time."""
    old = [vm for vm in user.asked.vms_of(user.name) if vm.name.startswith(f"{name}-")][:count]
    erased = [_erase(user, vm.id) for vm in old]
    made = [_make(user, name, f"{name}-again-{number}", 0) for number in range(len(old))]
    await _together([call for pair in zip(erased, made, strict=True) for call in pair])


async def _together(calls: list[Any]) -> None:
    room = asyncio.Semaphore(CALLERS)

    async def one(call: Any) -> None:
        async with room:
            await call

    await asyncio.gather(*(one(call) for call in calls))


async def _make(user: User, subnet: str, name: str, data_bytes: int) -> None:
    data = b"#cloud-config\n" + b"# fleet\n" * (data_bytes // 8)
    vm = await user.client.create_vm(name, image=IMAGE, subnet=subnet, memory_mib=MEMORY_MIB, user_data=data)
    user.keep(vm, subnets=(subnet,), user_data=data)


async def _erase(user: User, id: str) -> None:
    await user.client.delete_vm(id)
    user.asked.erase_vm(id)


ACTS = {"fleet": fleet, "fleet_turns": fleet_turns}
