"""A backup is taken at any moment of the story, and restored when it is over, under load, with controllers dying meanwhile.

Nodes that left since are nodes again, those that joined since join again. Before anybody decides, nothing may change: every
guest keeps running, none is started, no volume is erased. Then an operator decides about what nodes know better
(tests/sim/older_backup.py), and what users were promised holds, but for what since.py says is rightly lost; the story goes on
from there.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Final

import grpc.aio
from cairn.controller.model.restored import GENERATION_BITS
from cairn.proto import kinds
from cairn.proto.v1 import cluster_pb2

from tests.sim import cast, older_backup
from tests.sim.checkers.agree import networks
from tests.sim.cloud import Cloud
from tests.sim.since import Records, Since, backed_up
from tests.sim.story import FAULT, Event, Size
from tests.sim.workloads import nodes
from tests.sim.world import World

PATIENCE_S: Final = 120.0
# For how long guests are watched after the restore.
WATCH_S: Final = 30.0
LOAD: Final = 4
MIB: Final = 1 << 20
Guests = set[tuple[str, str]]


def draw(draw: random.Random, size: Size) -> Iterable[Event]:
    """Once in a story, and not in each."""
    if draw.random() < 0.5:
        steps = tuple(draw.choice((0, 0, 20, 60, 150)) for _ in range(2))
        yield Event(round(draw.uniform(0, size.duration_s * 0.9), 2), FAULT, "older_backup", steps)


async def take_backup(world: World, *crash_steps: int) -> None:
    """Take it now; restore it at the end."""
    client = world.connect("operator")
    # A spoiled record in it would come back spoiled, and nobody would ever put the good bytes back.
    with world.whole():
        content = await older_backup.backup(client)
    world.note(f"a backup of {len(content)} bytes")

    async def restore_last() -> None:
        # Nothing else that the story has left may expect what is lost then.
        world.at_rest.append(lambda: _restore(world, content, crash_steps))

    world.at_rest.append(restore_last)


def _nodes(world: World) -> set[str]:
    return {machine.id for machine in world.machines.values() if not machine.away}


async def _restore(world: World, content: bytes, crash_steps: tuple[int, ...]) -> None:
    world.note("the older backup is restored")
    world.network.count("older_backup")
    world.network.forget_requests()
    before, volumes, since = set(world.running()), _volumes(world), Since(backed_up(content), _records(world))
    boots, asked = _boots(world), world.referee.asked
    world.referee.suspend()
    load = [asyncio.create_task(_load(world, number)) for number in range(LOAD)]
    await _put_in_place(world, content, crash_steps)
    for task in load:
        task.cancel()
    await asyncio.gather(*load, return_exceptions=True)
    await _gather_nodes(world, since)
    await world.until("all nodes to have said what they hold", lambda: _heard(world) >= _nodes(world), PATIENCE_S)
    await asyncio.sleep(WATCH_S)
    _judge(world, before, boots, volumes)
    await older_backup.Operator(world, asked, since).decide()
    wanted = {id for id, vm in asked.vms.items() if id not in since.refused}
    _judge(
        world,
        {each for each in before if each[0] in wanted},
        boots,
        {each for each in volumes if each[0] in asked.volumes and each[0] not in since.refused},
    )
    if lost := list(since.lost(asked, _records(world))):
        raise AssertionError(f"a restore has lost what it must not: {lost[:5]}")
    await world.until("nodes to have the networks that the records say", lambda: not _strays(world), PATIENCE_S)
    await world.until("work to go on in generations above those of before", lambda: not _old_work(world), PATIENCE_S)
    records = [(item.key, item.value) for item in world.backend.scan("", "", 0, 0)]
    world.referee.begin_anew(cast.all_checkers(), world.backend.revision, records)
    world.look()


async def _gather_nodes(world: World, since: Since) -> None:
    """Who left since is a node again, and switched on; who joined since is none, and joins again, with all that it holds."""
    for machine in list(world.machines.values()):
        if machine.id in since.backup["node"] and machine.away:
            world.note(f"{machine.name} is a node again")
            machine.away = False
            world.certify(machine.name)
            world.restart(machine.name)
        elif machine.id and machine.id not in since.backup["node"] and not machine.away:
            world.note(f"{machine.name} joins again")
            world.crash(machine.name)
            world.referee.cloud.hosts.pop(machine.id, None)
            await nodes.become_node(world, world.client, machine)


async def _put_in_place(world: World, content: bytes, crash_steps: tuple[int, ...]) -> None:
    """Restore it, while controllers die and live again."""
    for name, steps in zip(world.controllers, crash_steps, strict=False):
        if steps:
            world.crash_within(name, steps)
    restoring = asyncio.create_task(older_backup.restore(world.client, content, _cluster(world).name))
    while not restoring.done():
        await asyncio.sleep(0.5)
        world.restart_all()
    await restoring
    world.loop.snuff_fuses()
    world.restart_all()


def _strays(world: World) -> list[str]:
    """Return how networks are not as the records say, once everything is decided: ways to guests that were forgotten, too."""
    world.look()
    cloud = Cloud(hosts=world.referee.cloud.hosts)
    cloud.commit(world.backend.revision, [(item.key, item.value) for item in world.backend.scan("", "", 0, 0)])
    return [say for host in cloud.hosts.values() for say in networks(cloud, host)]


def _judge(world: World, before: Guests, boots: Mapping[str, int], volumes: Guests) -> None:
    """What must hold whatever is restored. before: (guest, node) that must run; volumes: (volume, node) that must be there."""
    asked, running = world.referee.asked, world.running()
    stopped = before - set(running)
    assert not stopped, f"guests were stopped by a restore: {sorted(stopped)}"
    # One that did not run may be started: whoever brings a deleted one back asks for that.
    ran = {id for id, _ in before}
    again = {id for id, count in _boots(world).items() if id in ran and count != boots.get(id, count)}
    assert not again, f"guests were started again by a restore: {sorted(again)}"
    twice = [id for id, count in Counter(id for id, _ in running).items() if count > 1]
    assert not twice, f"guests run twice after a restore: {twice}"
    shared = Counter(id for each in world.machines.values() for id in each.open_volumes() if id in world.tank.volumes)
    opened = [id for id, count in shared.items() if count > 1]
    assert not opened, f"two guests have a volume open after a restore: {opened}"
    erased = volumes - _volumes(world)
    assert not erased, f"volumes were erased by a restore: {sorted(erased)}"
    back = sorted(id for id, _ in running if id in asked.erased and (id, _) not in before)
    assert not back, f"what was erased since the backup runs again: {back}"


async def _load(world: World, number: int) -> None:
    """Somebody makes volumes all the time; nobody is held to an answer."""
    client = world.connect(f"load{number}")
    for count in range(100):
        try:
            await client.create_volume(f"load-{number}-{count}", MIB)
        except grpc.aio.AioRpcError:
            await asyncio.sleep(0.1)


def _cluster(world: World) -> cluster_pb2.Cluster:
    item = world.backend.find(kinds.CLUSTER.key("self"))
    assert item is not None
    return cluster_pb2.Cluster.FromString(item.value)


def _records(world: World) -> Records:
    """Return the records in the store."""
    cloud = Cloud()
    cloud.commit(world.backend.revision, [(item.key, item.value) for item in world.backend.scan("", "", 0, 0)])
    return cloud.records


def _old_work(world: World) -> list[str]:
    """Return what is done in a generation that may have been overtaken before the restore."""
    least = _cluster(world).epoch << GENERATION_BITS
    return [id for id, work in _records(world)["assignment"].items() if work.generation < least]


def _boots(world: World) -> dict[str, int]:
    found: dict[str, int] = {}
    for machine in world.machines.values():
        for id in machine.host.boots:
            found[id] = found.get(id, 0) + 1
    return found


def _volumes(world: World) -> set[tuple[str, str]]:
    """Return (volume, name of its node or of the shared pool) of every volume there is."""
    own = {(id, name) for name, machine in world.machines.items() for id in machine.pool.volumes}
    return own | {(id, world.tank.name) for id in world.tank.volumes}


def _heard(world: World) -> set[str]:
    prefix, epoch = kinds.NODE_HEARD.prefix, _cluster(world).epoch
    items = world.backend.scan(prefix, prefix[:-1] + "0", 0, 0)
    found = (kinds.NODE_HEARD.message.FromString(item.value) for item in items)
    return {each.node for each in found if each.epoch == epoch}


ACTS = {"older_backup": take_backup}
