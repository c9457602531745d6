"""A careless operator: what he does by hand on a host, behind the agent's back, and what the agent sets right again."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterable

from cairn.agent.hypervisor.base import ExitCause
from cairn.agent.hypervisor.fake import FakeHypervisor
from cairn.proto.v1.vm_pb2 import POWER_STATE_STOPPED

from tests.sim.machine import Machine
from tests.sim.story import FAULT, Event, Size, spread
from tests.sim.user import pick
from tests.sim.world import SimClock, World


def draw(draw: random.Random, size: Size) -> Iterable[Event]:
    """Guests and networks, one at a time."""
    for at_s in spread(draw, size, size.faults):
        act = draw.choice(("rules_flushed", "paused_by_hand", "killed_by_hand", "undefined_by_hand", "started_by_hand"))
        more = (draw.choice((2.0, 15.0, 40.0)),) if act == "paused_by_hand" else ()
        yield Event(at_s, FAULT, act, (draw.choice(size.node_names), draw.randrange(8), *more))


async def rules_flushed(world: World, node: str, index: int) -> None:
    """The rules of a network are gone."""
    machine = world.machines[node]
    vpc = pick(sorted(machine.net.networks), index)
    if vpc is not None:
        machine.net.damage(vpc)
        world.network.count("rules_flushed")


async def paused_by_hand(world: World, node: str, index: int, for_s: float = 10.0) -> None:
    """A guest that runs is suspended for a while: nobody else may let it run unless a user asks for that.

    What was asked before and is still on its way to the node lets it run, too: the node cannot tell which came first.
    """
    host = world.machines[node].host
    id = pick(world.machines[node].running(), index)
    if id is None:
        return
    live, asked = host.guests[id].live, _power_asked(world, id)
    on_its_way = _is_unanswered(world, world.machines[node], id)
    host.suspend(id)
    world.network.count("paused_by_hand")
    for _ in range(int(for_s)):
        await asyncio.sleep(1.0)
        guest = host.guests.get(id)
        if guest is None or guest.live is None or guest.live is not live or _power_asked(world, id) != asked:
            break
        if not guest.live.paused and on_its_way:
            break
        if not guest.live.paused:
            world.referee.asked.contradict(f"{id} was suspended by hand, and let run though no user asked for it")
            break
    if id in host.guests:
        host.resume_by_hand(id)


def _power_asked(world: World, id: str) -> object:
    """What users ask of a guest's power."""
    vm = world.referee.cloud.get("vm", id)
    return None if vm is None else (vm.spec.power_generation, vm.spec.reboot_generation, vm.spec.power_state, vm.delete_time)


def _is_unanswered(world: World, machine: Machine, id: str) -> bool:
    """Tell whether users asked something of a guest's power that its node has not said yet to have heard."""
    cloud = world.referee.cloud
    vm, seen = cloud.get("vm", id), cloud.get("observed", f"{machine.id}/vm/{id}")
    if vm is None or seen is None:
        return vm is not None
    if vm.spec.power_state == POWER_STATE_STOPPED:
        # One that is to go off is let run, to hear of it.
        return True
    told = seen.report.vm
    return bool(told.power_generation < vm.spec.power_generation or told.reboot_generation < vm.spec.reboot_generation)


async def killed_by_hand(world: World, node: str, index: int) -> None:
    """A guest that runs loses its power."""
    machine = world.machines[node]
    id = pick(machine.running(), index)
    if id is not None:
        machine.host.end(id, ExitCause.STOPPED)
        world.network.count("killed_by_hand")


async def undefined_by_hand(world: World, node: str, index: int) -> None:
    """A guest's configuration is removed, and the guest with it; that it had gone off by itself may be lost with it."""
    machine = world.machines[node]
    id = pick(sorted(machine.host.guests), index)
    if id is None:
        return
    vm = world.referee.asked.vms.get(id)
    if vm is not None and vm.power_on and machine.host.guests[id].live is None:
        vm.running = vm.may_be_off = True
    await _by_hand(world, machine).undefine(id)
    world.network.count("undefined_by_hand")


async def started_by_hand(world: World, node: str, index: int) -> None:
    """A guest that is off is started: one that is to be off is stopped again, one that went off by itself may run."""
    machine, vms = world.machines[node], world.referee.asked.vms
    off = [id for id, guest in machine.host.guests.items() if guest.live is None and id in vms and not vms[id].deleted]
    id = pick(sorted(off), index)
    if id is None:
        return
    if vms[id].power_on:
        vms[id].running = vms[id].may_be_off = True
    machine.host.start_by_hand(id)
    world.network.count("started_by_hand")


def _by_hand(world: World, machine: Machine) -> FakeHypervisor:
    return FakeHypervisor(machine.host, SimClock(world.loop, 0.0))


ACTS = {
    "rules_flushed": rules_flushed,
    "paused_by_hand": paused_by_hand,
    "killed_by_hand": killed_by_hand,
    "undefined_by_hand": undefined_by_hand,
    "started_by_hand": started_by_hand,
}
