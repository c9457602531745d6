"""Users ask what would be, and then for exactly that: it is done as it was shown, or refused because something moved."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterable
from typing import Any

from cairn.proto.v1.vm_pb2 import CreateVmRequest, DeleteVmRequest, Vm
from cairn.proto.v1.vm_pb2_grpc import VmServiceStub

from tests.sim.asked import AskedVm
from tests.sim.client import vm_of
from tests.sim.story import Event, Size, spread
from tests.sim.user import Code, User


def draw(draw: random.Random, size: Size) -> Iterable[Event]:
    """One user, who sometimes thinks for a while before he goes on."""
    user = draw.choice(size.user_names)
    for number, at_s in enumerate(spread(draw, size, max(2, size.rounds // 2))):
        act, pause_s = (
            draw.choice(("create_as_planned", "create_as_planned", "erase_as_planned", "several_as_planned")),
            draw.choice((0.0, 0.0, 1.0, 10.0)),
        )
        if act == "create_as_planned":
            yield Event(at_s, user, act, (f"planned-{user}-{number}", pause_s))
        elif act == "several_as_planned":
            yield Event(at_s, user, act, (f"batch-{user}-{number}", draw.choice((2, 3, 5)), pause_s))
        else:
            yield Event(at_s, user, act, (draw.randrange(8), pause_s))


async def create_as_planned(user: User, name: str, pause_s: float) -> None:
    """Make a VM where the plan said it would be."""
    planned = await _plan(user, "CreateVm", CreateVmRequest(vm=vm_of(name, memory_mib=64), validate_only=True))
    await asyncio.sleep(pause_s)
    request = CreateVmRequest(vm=vm_of(name, memory_mib=64), plan_id=planned.plan.plan_id)
    made = await _apply(user, "CreateVm", request)
    if made is None:
        return
    user.keep(made)
    decided = planned.plan.decision.node_name
    if made.id != planned.id or (decided and made.status.node != decided):
        user.asked.contradict(f"{planned.id} was planned on {decided}, and {made.id} was made on {made.status.node}")


async def several_as_planned(user: User, name: str, count: int, pause_s: float) -> None:
    """Make several, each where the plan for all of them said, up to the first that something overtook."""
    request = CreateVmRequest(vm=vm_of(name, memory_mib=64), validate_only=True, count=count)
    planned = await _plan(user, "CreateVm", request)
    for number, part in enumerate(planned.plan.parts, 1):
        await asyncio.sleep(pause_s / count)
        asked = CreateVmRequest(vm=vm_of(f"{name}-{number}", memory_mib=64), plan_id=part.plan_id)
        made = await _apply(user, "CreateVm", asked)
        if made is None:
            return
        user.keep(made)
        if (made.id, made.name, made.status.node) != (part.id, part.name, part.node):
            user.asked.contradict(f"{part.id} was planned on {part.node}, and {made.id} was made on {made.status.node}")


async def erase_as_planned(user: User, index: int, pause_s: float) -> None:
    """Erase one of his VMs."""
    vm: AskedVm | None = user.vm(index)
    if vm is None:
        return
    planned = await _plan(user, "DeleteVm", DeleteVmRequest(id=vm.id, purge=True, validate_only=True))
    await asyncio.sleep(pause_s)
    if await _apply(user, "DeleteVm", DeleteVmRequest(id=vm.id, purge=True, plan_id=planned.plan.plan_id)) is not None:
        user.asked.erase_vm(vm.id)


async def _plan(user: User, method: str, request: Any) -> Vm:
    planned: Vm = await user.client.call(VmServiceStub, method, request)
    return planned


async def _apply(user: User, method: str, request: Any) -> Vm | None:
    applied: Vm | None = await user.attempt(
        user.client.call(VmServiceStub, method, request, final=(Code.ABORTED,)), Code.ABORTED
    )
    return applied


ACTS = {
    "create_as_planned": create_as_planned, "several_as_planned": several_as_planned, "erase_as_planned": erase_as_planned,
}  # fmt: skip
