"""Somebody watches, filtered or not; the connection breaks, and he goes on from his last message at another controller."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterable
from itertools import chain, repeat
from typing import Any

import grpc
import grpc.aio
from cairn.proto.v1 import event_pb2, vm_pb2, volume_pb2
from cairn.proto.v1.event_pb2_grpc import EventServiceStub
from cairn.proto.v1.vm_pb2_grpc import VmServiceStub
from cairn.proto.v1.volume_pb2_grpc import VolumeServiceStub

from tests.sim.pictures import FILTERS, Picture
from tests.sim.story import Event, Size
from tests.sim.user import User

ALL_PROJECTS = "-"
# Between connections; longer each time while nobody answers.
PAUSE_S, PAUSE_S_MAX = 0.2, 6.0
# Messages of one connection; more than ever come.
ENDLESS = 10**9
_WATCHES: dict[str, tuple[Any, str, Any]] = {
    "vm": (VmServiceStub, "WatchVms", vm_pb2.WatchVmsRequest),
    "event": (EventServiceStub, "WatchEvents", event_pb2.WatchEventsRequest),
    "volume": (VolumeServiceStub, "WatchVolumes", volume_pb2.WatchVolumesRequest),
}


def draw(draw: random.Random, size: Size) -> Iterable[Event]:
    """Two or three watch, each breaks off some times; and there is something to see."""
    user = draw.choice(size.user_names)
    yield Event(round(draw.uniform(0, 5), 2), user, "create_vm", (f"seen-{user}", 1, 128))
    for kind, filter in draw.sample(sorted(FILTERS), draw.choice((2, 3))):
        breaks = tuple(draw.randint(1, 6) for _ in range(draw.randint(0, 8)))
        yield Event(
            round(draw.uniform(0, size.duration_s / 2), 2), draw.choice(size.user_names), "watch", (kind, filter, breaks)
        )


async def watch(user: User, kind: str, filter: str, breaks: tuple[int, ...]) -> None:
    """Watch until the story ends. breaks: after how many messages the first connections end."""
    picture = Picture(kind, filter)
    user.asked.pictures.append(picture)
    following = asyncio.create_task(_follow(user, picture, breaks), name=f"watch of {user.name}")
    user.world.closing.append(following.cancel)


async def _follow(user: User, picture: Picture, breaks: tuple[int, ...]) -> None:
    service, method, request = _WATCHES[picture.kind]
    pause_s = PAUSE_S
    for turn, most in enumerate(chain(breaks, repeat(ENDLESS))):
        async with user.client.channel(turn) as channel:
            asked = request(project=ALL_PROJECTS, filter=picture.filter, after_revision=picture.revision)
            if not asked.after_revision:
                picture.begin()
            call = getattr(service(channel), method)(asked)
            try:
                for _ in range(most):
                    response = await call.read()
                    if response is grpc.aio.EOF:
                        break
                    picture.take(response)
                    pause_s = PAUSE_S
                call.cancel()
            except grpc.aio.AioRpcError as error:
                if error.code() is grpc.StatusCode.OUT_OF_RANGE:
                    picture.begin()
        await asyncio.sleep(pause_s)
        pause_s = min(2 * pause_s, PAUSE_S_MAX)


ACTS = {"watch": watch}
