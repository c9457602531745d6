"""How each kind of job can go: for every edge of its machine's table a road that takes it, in a whole simulated cloud.

    road = Road("arrives", _arrives, (("choose", "upload"), ...), ends=DONE)

A road is walked by test_jobs.py, undisturbed and with every step of it disturbed. It does what users and machines do; it never
looks at, or waits for, what a disturbance may change. A machine without roads for all its edges fails the test.
"""

from __future__ import annotations

import asyncio
import pkgutil
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from importlib import import_module
from typing import Any, Final

import grpc
import grpc.aio
from cairn.controller import jobs
from cairn.controller.jobs.import_image import DEADLINE, LOST
from cairn.controller.jobs.machine import DONE, FAILED, Machine
from cairn.proto import kinds
from cairn.proto.v1 import image_pb2
from cairn.proto.v1.image_pb2 import ImageContent
from cairn.proto.v1.image_pb2_grpc import ImageServiceStub
from cairn.proto.v1.job_pb2 import CancelJobRequest, JobStatus
from cairn.proto.v1.job_pb2_grpc import JobServiceStub

from tests.sim.client import digest_of
from tests.sim.world import World

Edge = tuple[str, str]
BYTES: Final = b"\x3c" * (256 << 10)
# Longer than a session outlives its node, and than a silent node is waited for.
PATIENCE_S: Final = 120.0
CANCEL: Final = "cancel"
LATE: Final = "deadline"


@dataclass
class Site:
    """A cloud with one job in it, and what a road has found out about it."""

    world: World
    # How far the controllers' wall clocks were put forward, also those of later lives.
    ahead_s: float = 0.0
    image: str = ""
    digest: str = ""
    job: str = ""

    def record(self, kind: Any, id: str) -> Any:
        """Return a record as stored, None when there is none."""
        item = self.world.backend.find(kind.key(id))
        return kind.message.FromString(item.value) if item is not None else None

    @property
    def state(self) -> str:
        """The job's state as stored; empty: it has not begun."""
        return self.status().state

    def status(self) -> JobStatus:
        """How far the job is, as stored."""
        status: JobStatus | None = self.record(kinds.JOB_STATE, self.job)
        return status if status is not None else JobStatus()

    def content(self) -> ImageContent:
        """Who is to keep the image."""
        content: ImageContent | None = self.record(kinds.IMAGE_CONTENT, self.image)
        return content if content is not None else ImageContent()

    def keepers(self) -> list[str]:
        """Names of the servers that are to keep the image."""
        nodes = list(self.content().nodes)
        return [name for name, machine in self.world.machines.items() if machine.id in nodes]

    async def until(self, what: str, probe: Callable[[], bool]) -> None:
        """Wait for it."""
        await self.world.until(what, probe, PATIENCE_S)

    def restart_controllers(self) -> None:
        """Start those that are dead; their clocks are as far ahead as the others'."""
        for name in self.world.controllers:
            if not self.world.alive(name):
                self.world.restart(name)
                self.world.processes[name].clock.skew_s += self.ahead_s

    def leap(self, ahead: timedelta) -> None:
        """Let so much time pass on every controller's clock."""
        self.ahead_s += ahead.total_seconds()
        for name in self.world.controllers:
            if self.world.alive(name):
                self.world.processes[name].clock.skew_s += ahead.total_seconds()


@dataclass(frozen=True)
class Road:
    """See the module. stops: (state, CANCEL or LATE) when it is about a job that is stopped. error: the reason it must keep."""

    name: str
    walk: Callable[[Site], Coroutine[Any, Any, None]]
    edges: tuple[Edge, ...]
    ends: str
    error: str = ""
    stops: Edge | None = None

    @property
    def states(self) -> tuple[str, ...]:
        """Every state it enters."""
        return tuple(dict.fromkeys([self.edges[0][0], *(after for _, after in self.edges)]))


def machines() -> list[Machine]:
    """Return every kind of job there is: each class with a table in a module of controller/jobs."""
    found: list[Machine] = []
    for module in sorted(each.name for each in pkgutil.iter_modules(jobs.__path__)):
        content = vars(import_module(f"{jobs.__name__}.{module}"))
        here = [each for each in content.values() if isinstance(each, type) and each.__module__ == f"{jobs.__name__}.{module}"]
        found += [each() for each in here if {"kind", "first", "stop", "states"} <= vars(each).keys()]
    return found


# --- import_image ------------------------------------------------------------------------------------------------------------


async def _announce(site: Site, promised: bytes = BYTES) -> None:
    """Make the image, and with it the job."""
    image = await site.world.client.create_image("tested", BYTES, digest_of(promised))
    site.image, site.digest, site.job = image.id, digest_of(promised), image.status.job


async def _send(site: Site) -> None:
    await site.world.client.upload_image(site.image, BYTES)


async def _send_half(site: Site) -> None:
    """Send half of the bytes, and break off."""

    async def parts() -> AsyncIterator[image_pb2.UploadImageRequest]:
        yield image_pb2.UploadImageRequest(image=site.image)
        yield image_pb2.UploadImageRequest(chunk=BYTES[: len(BYTES) // 2])
        await asyncio.Event().wait()

    async def upload(channel: Any) -> Any:
        call: Any = ImageServiceStub(channel).UploadImage(parts())
        try:
            await site.until("half of it to be there", lambda: any(_halves(site)) or call.done())
            # A call that ended by itself says why: the controller that had it may have been killed.
            return None if any(_halves(site)) else await call
        finally:
            call.cancel()

    await site.world.client._repeat("UploadImage", upload)


def _halves(site: Site) -> list[str]:
    return [name for name, machine in site.world.machines.items() if machine.pool.partials.get(site.digest)]


async def _cancel(site: Site) -> None:
    request = CancelJobRequest(id=site.job)
    await site.world.client.call(JobServiceStub, "CancelJob", request)


async def _late(site: Site) -> None:
    site.leap(DEADLINE + timedelta(minutes=1))


async def _lonely(site: Site) -> None:
    """Nobody is there to keep anything."""
    for name in site.world.machines:
        site.world.crash(name)
    await site.until("all nodes to be away", lambda: not site.world.connected())


async def _chosen(site: Site) -> None:
    """Keepers are chosen, and wait for the bytes."""
    await site.until("keepers to be chosen", lambda: site.state == "upload")


async def _arrives(site: Site) -> None:
    await _announce(site)
    await _send(site)


async def _cancelled_choosing(site: Site) -> None:
    await _lonely(site)
    await _announce(site)
    await _cancel(site)


async def _late_choosing(site: Site) -> None:
    await _lonely(site)
    await _announce(site)
    await _late(site)


async def _cancelled_uploading(site: Site) -> None:
    await _announce(site)
    await _chosen(site)
    await _send_half(site)
    await _cancel(site)


async def _late_uploading(site: Site) -> None:
    await _announce(site)
    await _chosen(site)
    await _late(site)


async def _wrong_bytes(site: Site) -> None:
    await _announce(site, promised=BYTES + b"\x01")
    with suppress(grpc.aio.AioRpcError):
        await _send(site)


async def _deleted(site: Site) -> None:
    await _announce(site)
    await _chosen(site)
    await site.world.client.delete_image(site.image)


async def _keepers_lost(site: Site) -> None:
    """The chosen nodes lose their power and do not come back for longer than they are waited for."""
    await _announce(site)
    await _chosen(site)
    lost = site.keepers()
    for name in lost:
        site.world.lose_power(name)
    await site.until("others to be chosen", lambda: bool(site.keepers()) and not set(lost) & set(site.keepers()))
    await _send(site)
    await site.until("the job to end", lambda: site.state == DONE)


async def _one_keeper_away(site: Site) -> None:
    """One keeper never gets its copy before the deadline."""
    await _announce(site)
    await _chosen(site)
    site.world.lose_power(site.keepers()[-1])
    await _send(site)
    await site.until("a copy to be verified", lambda: site.state == "replicate")
    await asyncio.sleep(LOST.total_seconds())
    await _late(site)


_IMPORT_IMAGE: Final = (
    Road("arrives", _arrives, (("choose", "upload"), ("upload", "replicate"), ("replicate", "done")), DONE),
    Road(
        "cancelled while choosing",
        _cancelled_choosing,
        (("choose", "unwind"), ("unwind", "failed")),
        FAILED,
        "it was cancelled",
        ("choose", CANCEL),
    ),
    Road(
        "late while choosing",
        _late_choosing,
        (("choose", "unwind"), ("unwind", "failed")),
        FAILED,
        "its deadline has passed",
        ("choose", LATE),
    ),
    Road(
        "cancelled while half of it is there",
        _cancelled_uploading,
        (("choose", "upload"), ("upload", "unwind"), ("unwind", "failed")),
        FAILED,
        "it was cancelled",
        ("upload", CANCEL),
    ),
    Road(
        "late while waiting for bytes",
        _late_uploading,
        (("choose", "upload"), ("upload", "unwind"), ("unwind", "failed")),
        FAILED,
        "its deadline has passed",
        ("upload", LATE),
    ),
    Road(
        "other bytes than promised",
        _wrong_bytes,
        (("choose", "upload"), ("upload", "unwind"), ("unwind", "failed")),
        FAILED,
        "the bytes have digest",
    ),
    Road(
        "image deleted meanwhile",
        _deleted,
        (("choose", "upload"), ("upload", "unwind"), ("unwind", "failed")),
        FAILED,
        "the image was deleted",
    ),
    Road(
        "keepers lost",
        _keepers_lost,
        (("choose", "upload"), ("upload", "choose"), ("upload", "replicate"), ("replicate", "done")),
        DONE,
    ),
    Road(
        "a keeper away until the deadline",
        _one_keeper_away,
        (("choose", "upload"), ("upload", "replicate"), ("replicate", "done")),
        DONE,
    ),
)

ROADS: Final[dict[str, tuple[Road, ...]]] = {"import_image": _IMPORT_IMAGE}
