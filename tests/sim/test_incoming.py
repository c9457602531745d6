"""A VM that one node is to take over from another: the whole cloud behaves, whatever happens, though nothing moves VMs yet."""

from __future__ import annotations

import asyncio

import pytest
from cairn.controller.store.base import Txn
from cairn.proto import kinds
from cairn.proto.v1.vm_pb2 import Placement, Vm

from tests.sim.loop import run
from tests.sim.world import World


def _set_incoming(world: World, vm: str, node: str) -> None:
    """What a migration would write first; "": it gave up."""
    item = world.backend.find(kinds.PLACEMENT.key(vm))
    assert item is not None
    placement = Placement.FromString(item.value)
    placement.incoming = node
    world.backend.apply(Txn("placement").put(kinds.PLACEMENT, vm, placement))


async def _runs(world: World) -> str:
    """A VM that runs."""
    await world.start()
    await world.client.import_image("demo")
    await world.client.create_subnet("demo")
    vm = await world.client.create_vm("web", image="demo", subnet="demo", memory_mib=128)
    await world.until("it to run", lambda: [id for id, _ in world.running()] == [vm.id], 120)
    return str(vm.id)


async def _taken_over(world: World) -> tuple[str, str, str]:
    """A VM that runs, its owner, and the node that makes ready for it."""
    vm = await _runs(world)
    owner = world.running()[0][1]
    incoming = next(name for name in world.machines if name != owner)
    _set_incoming(world, vm, world.machines[incoming].id)
    files = world.machines[incoming].files
    await world.until("the incoming node to make ready", lambda: any(vm in name for name in files), 60)
    return vm, owner, incoming


async def _stays(world: World, running: list[tuple[str, str]], for_s: int = 120) -> None:
    """Look each second of virtual time."""
    for _ in range(for_s):
        assert world.running() == running
        await asyncio.sleep(1.0)


@pytest.mark.parametrize("seed", range(3))
def test_it_runs_at_its_owner_alone_and_a_crash_does_not_start_it_anywhere(seed: int) -> None:
    async def scenario() -> None:
        world = World(f"incoming-{seed}", controllers=2, nodes=2)
        vm, owner, incoming = await _taken_over(world)
        await _stays(world, [(vm, owner)])
        world.machines[owner].host.crash(vm)
        await _stays(world, [])
        assert not world.machines[incoming].host.guests
        _set_incoming(world, vm, "")
        await world.until("its owner to run it again", lambda: world.running() == [(vm, owner)], 400)
        await world.until("nothing left where it was to go", lambda: not world.machines[incoming].host.guests, 60)
        world.close()

    run(f"incoming-{seed}", scenario)


@pytest.mark.parametrize("seed", range(3))
def test_after_power_losses_neither_node_starts_it_by_its_ledger(seed: int) -> None:
    async def scenario() -> None:
        world = World(f"cold-{seed}", controllers=2, nodes=2)
        vm, owner, incoming = await _taken_over(world)
        await _stays(world, [(vm, owner)], 10)
        for name in (owner, incoming):
            world.lose_power(name)
        for name in world.controllers:
            world.crash(name)
        for name in (owner, incoming):
            world.restart(name)
        await _stays(world, [])
        world.restart_all()
        await _stays(world, [])
        _set_incoming(world, vm, "")
        await world.until("its owner to run it again", lambda: world.running() == [(vm, owner)], 400)
        world.close()

    run(f"cold-{seed}", scenario)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("needed", [True, False])
def test_after_a_power_loss_one_that_needs_a_permit_waits_for_a_controller(seed: int, needed: bool) -> None:
    async def scenario() -> None:
        world = World(f"permit-{seed}", controllers=2, nodes=1)
        vm = await _runs(world)
        if needed:
            # As of a release that restarts VMs elsewhere.
            item = world.backend.find(kinds.VM.key(vm))
            assert item is not None
            record = Vm.FromString(item.value)
            record.spec.high_availability = True
            world.backend.apply(Txn("api").put(kinds.VM, vm, record))
        await asyncio.sleep(10.0)
        for name in world.controllers:
            world.crash(name)
        world.lose_power("n1")
        world.restart("n1")
        if needed:
            await _stays(world, [])
            world.restart_all()
        await world.until("it to run", lambda: world.running() == [(vm, "n1")], 120)
        world.close()

    run(f"permit-{seed}", scenario)
