"""A disk that takes half a minute for each sync of a node's ledger: the node stays connected, and acts on what is durable."""

from __future__ import annotations

import asyncio

import pytest

from tests.sim import cast
from tests.sim.loop import run
from tests.sim.referee import Referee
from tests.sim.world import World

# Longer than a node may be silent, and than its session lasts without it.
SYNC_S = 30.0


@pytest.mark.parametrize("seed", range(3))
def test_a_node_whose_disk_is_slow_is_not_lost(seed: int) -> None:
    async def scenario() -> None:
        world = World(f"slow-{seed}", controllers=1, nodes=2, referee=lambda loop: Referee(cast.all_checkers(), loop.fail))
        await world.start()
        await world.client.import_image("demo")
        await world.client.create_subnet("demo")
        await asyncio.sleep(10)
        sessions = world.sessions()
        machine = world.machines["n1"]
        machine.disk.sync_s = SYNC_S
        for number in (1, 2, 3):
            vm = await world.client.create_vm(f"vm{number}", image="demo", subnet="demo", memory_mib=128, node="n1")
        await asyncio.sleep(SYNC_S - 10)
        assert not machine.host.guests, "nothing of it is durable yet"
        await world.until("the last to run", lambda: vm.id in machine.running(), 20 * SYNC_S)
        assert world.sessions() == sessions, "the node was heard all the time"
        world.close()

    run(f"slow-{seed}", scenario)
