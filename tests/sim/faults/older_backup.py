"""A backup is taken at any moment of the story, and restored when it is over, under load, with controllers dying meanwhile.

What users were promised since the backup is excused. What must hold all the same: every guest keeps running, none is started
twice or again, no volume is erased, nothing that was erased since comes back; and when an operator has decided about what nodes
know better (tests/sim/older_backup.py) and then deletes all of it, nothing is left of it anywhere. Not with nodes that joined
or left since, nor with shared pools.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Final

import grpc.aio
from cairn.proto import kinds
from cairn.proto.backup import Reader
from cairn.proto.v1 import cluster_pb2

from tests.sim import cast, older_backup
from tests.sim.checkers.agree import networks
from tests.sim.cloud import Cloud
from tests.sim.story import FAULT, Event, Size
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
    if _nodes(world) != {machine.id for machine in world.machines.values()} or _nodes(world) != _backed_up(content):
        world.note("nodes joined or left since the backup: it is not restored")
        return
    if any(volume.spec.type not in ("", "local") for volume in world.referee.cloud.all(kinds.VOLUME.name).values()):
        world.note("there are volumes in shared pools: it is not restored")
        return
    world.note("the older backup is restored")
    world.network.count("older_backup")
    before, boots, volumes = _running(world), _boots(world), _volumes(world)
    world.referee.suspend()
    load = [asyncio.create_task(_load(world, number)) for number in range(LOAD)]
    await _put_in_place(world, content, crash_steps)
    for task in load:
        task.cancel()
    await asyncio.gather(*load, return_exceptions=True)
    await world.until("all nodes to have said what they hold", lambda: _heard(world) >= _nodes(world), PATIENCE_S)
    await asyncio.sleep(WATCH_S)
    _judge(world, before, boots, volumes)
    operator = older_backup.Operator(world, world.referee.asked)
    await operator.decide()
    _judge(world, before, boots, volumes)
    await world.until("nodes to have the networks that the records say", lambda: not _strays(world), PATIENCE_S)
    await operator.delete_all()
    records = [(item.key, item.value) for item in world.backend.scan("", "", 0, 0)]
    world.referee.begin_anew(cast.all_checkers(), world.backend.revision, records)
    world.look()


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
    """What must hold whatever is restored. before: (guest, node) that ran, of those users still ask for."""
    asked, running = world.referee.asked, world.running()
    stopped = {each for each in before if each[0] in asked.vms} - set(running)
    assert not stopped, f"guests were stopped by a restore: {sorted(stopped)}"
    again = {id for id, count in _boots(world).items() if count != boots.get(id, count)}
    assert not again, f"guests were started again by a restore: {sorted(again)}"
    twice = [id for id, count in Counter(id for id, _ in running).items() if count > 1]
    assert not twice, f"guests run twice after a restore: {twice}"
    erased = {each for each in volumes if each[0] in asked.volumes} - _volumes(world)
    assert not erased, f"volumes were erased by a restore: {sorted(erased)}"
    back = sorted(id for id, _ in running if id in asked.erased)
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


def _backed_up(content: bytes) -> set[str]:
    """Return the ids of the nodes in a backup."""
    return {record.id for part in Reader().feed(content) for record in part.records.records if record.kind == kinds.NODE.name}


def _running(world: World) -> set[tuple[str, str]]:
    return {each for each in world.running() if each[0] in world.referee.asked.vms}


def _boots(world: World) -> dict[str, int]:
    found: dict[str, int] = {}
    for machine in world.machines.values():
        for id in machine.host.boots:
            found[id] = found.get(id, 0) + 1
    return found


def _volumes(world: World) -> set[tuple[str, str]]:
    """Return (volume, node's name) of every volume there is."""
    return {(id, name) for name, machine in world.machines.items() for id in machine.pool.volumes}


def _heard(world: World) -> set[str]:
    prefix, epoch = kinds.NODE_HEARD.prefix, _cluster(world).epoch
    items = world.backend.scan(prefix, prefix[:-1] + "0", 0, 0)
    found = (kinds.NODE_HEARD.message.FromString(item.value) for item in items)
    return {each.node for each in found if each.epoch == epoch}


ACTS = {"older_backup": take_backup}
