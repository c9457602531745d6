"""Users announce images and never send the bytes: some end the import themselves, of others its deadline takes care.

What failed stays to be looked at: it says why, and no node keeps anything of it. The deadline is an hour: when all is at rest,
that hour passes at once on every controller's clock.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterable
from datetime import UTC, timedelta
from typing import Final

from cairn.controller.reconcilers.garbage import KEEP
from cairn.proto import kinds
from cairn.proto.v1.image_pb2 import ImageStatus
from cairn.proto.v1.job_pb2 import CancelJobRequest, Job, JobStatus
from cairn.proto.v1.job_pb2_grpc import JobServiceStub

from tests.sim.checkers.base import Violation
from tests.sim.story import Event, Size, spread
from tests.sim.user import User
from tests.sim.world import World

BYTES: Final = b"\x77" * 4096
# How long an import may take.
DEADLINE: Final = timedelta(hours=1)
# Less than what is deleted is kept: clocks that were wrong when the image was announced may have put the deadline further off.
AHEAD_S_MAX: Final = timedelta(minutes=75).total_seconds()
PATIENCE_S: Final = 120.0


def draw(draw: random.Random, size: Size) -> Iterable[Event]:
    """One user, a few images."""
    user = draw.choice(size.user_names)
    for number, at_s in enumerate(spread(draw, size, 2)):
        yield Event(at_s, user, draw.choice(("give_up_import", "forget_import")), (f"forsaken-{user}-{number}",))


async def give_up_import(user: User, name: str) -> None:
    """Cancel it and wait until it has failed."""
    image = await user.client.create_image(name, BYTES + name.encode())
    await user.client.call(JobServiceStub, "CancelJob", CancelJobRequest(id=image.status.job))
    while (await user.client.image(image.id)).status.state != ImageStatus.STATE_FAILED:
        await asyncio.sleep(1.0)


async def forget_import(user: User, name: str) -> None:
    """Never think of it again."""
    image = await user.client.create_image(name, BYTES + name.encode())
    job, world = image.status.job, user.world
    asked_s = world.loop.time()
    world.at_rest.append(lambda: _an_hour_later(world, name, job, asked_s))


async def _an_hour_later(world: World, name: str, job: str, asked_s: float) -> None:
    if _status(world, job).done:
        return
    wished = world.backend.find(kinds.JOB.key(job))
    if wished is None:
        # In a story of days it failed, was looked at by nobody, and went.
        kept_s = world.loop.time() - asked_s
        assert kept_s > KEEP.total_seconds(), f"job {job} is gone before anybody could look at it"
        return
    deadline = Job.FromString(wished.value).create_time.ToDatetime(UTC) + DEADLINE
    clocks = [world.processes[controller].clock for controller in world.controllers]
    left_s = max((deadline - clock.now()).total_seconds() for clock in clocks) + 1.0
    if left_s > AHEAD_S_MAX:
        return
    world.note(f"{left_s:.0f} s have passed")
    for clock in clocks:
        clock.skew_s += left_s
    until_s = world.loop.time() + PATIENCE_S
    while not _status(world, job).failed:
        await asyncio.sleep(1.0)
        if world.loop.time() > until_s:
            raise Violation("jobs_end", f"the import of {name} has not failed though its deadline is over")


def _status(world: World, id: str) -> JobStatus:
    item = world.backend.find(kinds.JOB_STATE.key(id))
    return JobStatus.FromString(item.value) if item is not None else JobStatus()


ACTS = {"give_up_import": give_up_import, "forget_import": forget_import}
