"""Several users want the same at the same moment: a name, an address, a volume. Exactly one gets it; and one request sent twice
to different controllers at once makes one object.

What they fight for belongs to nobody else's acts, so that whoever wins keeps it to the end.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Iterable
from typing import Any

from cairn.proto.v1.vm_pb2 import CreateVmRequest
from cairn.proto.v1.vm_pb2_grpc import VmServiceStub

from tests.sim.asked import AskedVolume
from tests.sim.client import MIB, vm_of
from tests.sim.story import Event, Size, spread
from tests.sim.user import Code, User

NOBODY = "contested"


def draw(draw: random.Random, size: Size) -> Iterable[Event]:
    """All users at the same moment, or nearly."""
    for number, at_s in enumerate(spread(draw, size, max(2, size.rounds // 2))):
        act = draw.choice(("take_name", "take_address", "take_address", "take_volume", "send_twice"))
        for user in size.user_names:
            when_s = round(at_s + draw.choice((0.0, 0.0, 0.0, 0.01, 0.1)), 2)
            # Each user sends several at once, so that one alone is enough for a fight.
            yield Event(when_s, user, act, (number, draw.choice((1, 2, 2))))


async def take_name(user: User, number: int, tries: int) -> None:
    """Make a VM of that name."""
    name = f"the-one-{number}"
    await _fight(user, f"name {name}", [user.client.create_vm(name, memory_mib=64) for _ in range(tries)])


async def take_address(user: User, number: int, tries: int) -> None:
    """Make a VM with that address."""
    address = f"10.1.1.{200 + number}"
    vms = [(f"at-{number}-{user.name}-{each}", address) for each in range(tries)]
    await _fight(user, f"address {address}", [user.client.create_vm(name, address=at, memory_mib=64) for name, at in vms])


async def take_volume(user: User, number: int, tries: int) -> None:
    """Make a VM with that volume, which whoever comes first has made."""
    name = f"disk-{number}"
    made = await user.attempt(user.client.create_volume(name, 32 * MIB), Code.ALREADY_EXISTS)
    if made is not None:
        user.asked.volumes[made.id] = AskedVolume(made.id, name, NOBODY, 32 * MIB)
    vms = [f"with-{number}-{user.name}-{each}" for each in range(tries)]
    await _fight(user, f"volume {name}", [user.client.create_vm(vm, volumes=[name], memory_mib=64) for vm in vms])


async def _fight(user: User, what: str, calls: list[Awaitable[Any]]) -> None:
    contest = user.asked.contest(what)
    contest.asked += len(calls)
    refused = (Code.ALREADY_EXISTS, Code.FAILED_PRECONDITION)
    answers = await asyncio.gather(*(user.attempt(call, *refused) for call in calls))
    for vm in answers:
        if vm is None:
            contest.lost += 1
        else:
            contest.won.append(vm.id)
            user.keep(vm, owner=NOBODY, volumes=set(vm.spec.volumes))


async def send_twice(user: User, number: int, times: int) -> None:
    """Send one request to several controllers at once, and again later: all are answered with one VM."""
    request_id = user.client.request_id()
    request = CreateVmRequest(vm=vm_of(f"twice-{number}-{user.name}", memory_mib=64), request_id=request_id)
    sent = [user.client.call(VmServiceStub, "CreateVm", request, first=first) for first in range(times + 1)]
    for vm in await asyncio.gather(*sent):
        user.asked.answered(request_id, vm.id)
    again = await user.client.call(VmServiceStub, "CreateVm", request)
    user.asked.answered(request_id, again.id)
    user.keep(again)


ACTS = {"take_name": take_name, "take_address": take_address, "take_volume": take_volume, "send_twice": send_twice}
