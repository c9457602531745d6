"""The cloud on virtual time: the same seed tells the same story, and after all faults have stopped everything is as asked."""

from __future__ import annotations

import asyncio
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from cairn.proto import kinds

from tests.sim.loop import Deadlock, Outcome, run
from tests.sim.world import World

QUIET_S = 300.0
ROUNDS = 12


async def _populate(world: World) -> None:
    await world.start()
    await world.client.import_image("demo")
    await world.client.create_subnet("demo")


async def _user(world: World, number: int, wanted: dict[str, None]) -> None:
    """Make VMs and delete some of them, whatever happens meanwhile."""
    client, draw = world.connect(f"u{number}"), random.Random(f"{world.seed}/user/{number}")
    mine: list[str] = []
    for round in range(4):
        vm = await client.create_vm(f"web-{number}-{round}")
        wanted[vm.id] = None
        mine.append(vm.id)
        await asyncio.sleep(draw.uniform(0, 5))
        if draw.random() < 0.5:
            id = mine.pop(draw.randrange(len(mine)))
            await client.delete_vm(id)
            del wanted[id]


async def _faults(world: World) -> None:
    """Crash, cut and delay, a few at a time."""
    draw, network = random.Random(f"{world.seed}/faults"), world.network
    network.faults.reset, network.faults.silence, network.faults.late = 0.002, 0.01, 0.02
    for _ in range(ROUNDS):
        name = draw.choice([*world.controllers, *world.machines])
        match draw.choice(["crash", "crash within", "cut", "cut one way", "power"]):
            case "crash":
                world.crash(name)
            case "crash within":
                world.crash_within(name, draw.randrange(1, 400))
            case "cut":
                network.block(name, "*", both=True)
            case "cut one way":
                network.block(*draw.choice([(name, "*"), ("*", name)]))
            case "power" if name in world.machines:
                world.lose_power(name)
        await asyncio.sleep(draw.uniform(0.1, 15))
        if draw.random() < 0.6:
            world.restart_all()
        if draw.random() < 0.6:
            network.heal()
    network.faults.reset = network.faults.silence = network.faults.late = 0.0
    network.heal()
    world.loop.snuff_fuses()
    world.restart_all()


async def _as_asked(world: World, wanted: dict[str, None]) -> None:
    await world.until(f"exactly {sorted(wanted)} to run", lambda: [id for id, _ in world.running()] == sorted(wanted), QUIET_S)
    await world.until("nobody to wait for an answer", lambda: world.client.waiting == 0, QUIET_S)
    for id in list(wanted):
        await world.client.delete_vm(id)
    await world.until("no VM to be recorded", lambda: world.count(kinds.VM) == 0, QUIET_S)
    await world.until("nothing to be left", lambda: all(each.is_empty() for each in world.machines.values()), QUIET_S)
    for kind in (kinds.VOLUME, kinds.PORT, kinds.ADDRESS, kinds.PLACEMENT, kinds.PURGE):
        assert world.count(kind) == 0, f"{kind.name} records are left"


def story(seed: int) -> Outcome:
    async def scenario() -> None:
        world = World(seed)
        await _populate(world)
        wanted: dict[str, None] = {}
        async with asyncio.TaskGroup() as group:
            group.create_task(_faults(world))
            for number in range(2):
                group.create_task(_user(world, number, wanted))
        await _as_asked(world, wanted)

    return run(seed, scenario)


@pytest.mark.parametrize("seed", range(1, 7))
def test_after_faults_all_is_as_asked(seed: int) -> None:
    outcome = story(seed)
    assert not outcome.faults, "\n".join(outcome.faults)


def test_the_same_seed_tells_the_same_story() -> None:
    outcome = story(1)
    assert story(1).trace_hash == outcome.trace_hash
    assert story(2).trace_hash != outcome.trace_hash
    command = [sys.executable, "-c", "from tests.sim.test_smoke import story; print(story(1).trace_hash)"]
    environment = {**os.environ, "PYTHONHASHSEED": "4711", "PYTHONPATH": "."}
    root = Path(__file__).parent.parent.parent
    ran = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=True)
    assert ran.stdout.split()[-1] == outcome.trace_hash


def test_a_deadlock_tells_who_waits_where() -> None:
    async def scenario() -> None:
        await asyncio.Event().wait()

    with pytest.raises(Deadlock, match=r"scenario#1 waits at .*locks.py:\d+ wait"):
        run(0, scenario)


def test_turns_are_drawn_but_time_is_kept() -> None:
    orders = set()

    async def scenario() -> list[int]:
        order: list[int] = []

        async def one(number: int) -> None:
            await asyncio.sleep(0)
            order.append(number)

        await asyncio.gather(*(one(number) for number in range(4)))
        await asyncio.sleep(3600)
        return order

    for seed in range(20):
        outcome = run(seed, scenario)
        assert outcome.virtual_s >= 3600
        orders.add(tuple(outcome.result))
    assert len(orders) > 5
