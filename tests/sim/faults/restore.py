"""The store is lost, and made anew from its dump: every record is there, revisions begin again, the epoch is one more.

The dump is of the moment the controllers were stopped, so nothing that was acknowledged is missing (a restored older backup
rightly forgets what came after it: nobody could say then what must be). Nodes hold a newer revision of an older epoch, and must
believe the new store all the same. It happens when the story is over and all is at rest: users keep no revisions by then.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterable
from typing import Final

from cairn.controller.store.base import Put
from cairn.proto import kinds
from cairn.proto.v1.cluster_pb2 import Cluster

from tests.sim.cloud import Cloud
from tests.sim.store import SimBackend
from tests.sim.story import FAULT, Event, Size
from tests.sim.world import World

PATIENCE_S: Final = 120.0


def draw(draw: random.Random, size: Size) -> Iterable[Event]:
    """Once in a story, and not in each."""
    if draw.random() < 0.5:
        yield Event(round(draw.uniform(0, size.duration_s), 2), FAULT, "restore_store", (draw.choice((0.5, 30.0)),))


async def restore_store(world: World, down_s: float) -> None:
    """Do it at the end."""
    world.at_rest.append(lambda: _restore(world, down_s))


async def _restore(world: World, down_s: float) -> None:
    world.note("the store is made anew from its dump")
    world.network.count("restore_store")
    world.network.forget_requests()
    for name in world.controllers:
        world.crash(name)
    await asyncio.sleep(down_s)
    old, new = world.backend, SimBackend()
    observers, old.observers = old.observers, []
    kept = {item.key: Put(_raised(item.key, item.value)) for item in old.scan("", "", 0, 0) if not item.lease}
    new.load(kept)
    world.backend, new.observers, new.elected = new, observers, old.elected
    # Not a step of the old store's history: the picture begins anew as well.
    cloud: Cloud = world.referee.cloud
    cloud.records = {kind.name: {} for kind in kinds.ALL}
    cloud.commit(new.revision, [(key, put.value) for key, put in kept.items()])
    for name in world.controllers:
        world.restart(name)
    nodes = {machine.id for machine in world.machines.values() if not machine.away}
    await world.until("all nodes to be connected to the new store", lambda: nodes <= set(world.connected()), PATIENCE_S)


def _raised(key: str, value: bytes) -> bytes:
    """Return a record as it is in the restored store: the cluster's own has the next epoch."""
    if not key.startswith(kinds.CLUSTER.prefix):
        return value
    cluster = Cluster.FromString(value)
    cluster.epoch += 1
    return cluster.SerializeToString(deterministic=True)


ACTS = {"restore_store": restore_store}
