"""What keeps the event loop: how late it is, and a heap that the garbage collector need not walk.

Lateness is the time in which one step, or several in a row, let nobody else run.

A timer that is due every TICK_S measures how much later it is woken. That is what a lease, a heartbeat or another caller would
have waited, and it costs a few microseconds a tick. Rejected: asyncio's debug mode (it slows every step down, and only logs).
"""

from __future__ import annotations

import asyncio
import gc
import time
from typing import Final

from cairn.proto.log import logger
from prometheus_client import CollectorRegistry, Histogram

TICK_S: Final = 0.02
# Leases live some seconds and are kept alive thrice as often: half a second is no accident any more.
WARN_S: Final = 0.5
# While much is read: a collection in between walks what was read since.
FREEZE_EVERY_S: Final = 0.25
# And after that, so long.
FREEZE_LATER_S: Final = 2.0
SETTLES_S: Final = 60.0
_BUCKETS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)


async def freeze_heap(*loaded: asyncio.Event) -> None:
    """Until each of these has happened, take what there is out of the garbage collector's sight, and then; never returns.

    What a controller reads at its start lives as long as it does, and a full collection walks all of it again and again:
    54 ms for 5,000 VMs, and the longest while more and more is read. Not collected before, as that would be the longest step of
    all; what is garbage in circles at such a moment stays.
    """
    for event in loaded:
        happened = asyncio.ensure_future(event.wait())
        try:
            while not happened.done():
                await asyncio.wait({happened}, timeout=FREEZE_EVERY_S)
                gc.freeze()
        finally:
            happened.cancel()
    # The first scans make the reconcilers' own tables.
    for _ in range(int(SETTLES_S / FREEZE_LATER_S)):
        await asyncio.sleep(FREEZE_LATER_S)
        gc.freeze()
    await asyncio.Event().wait()


class Lateness:
    """Measures the running loop. `run` until cancelled."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._seconds = Histogram(
            "cairn_loop_step_seconds", "How long the event loop let nobody else run", registry=registry, buckets=_BUCKETS
        )

        self._cpu_seconds = Histogram(
            "cairn_loop_step_cpu_seconds",
            "What of that the controller itself used: the rest is a machine that is too busy",
            registry=registry,
            buckets=_BUCKETS,
        )

    async def run(self) -> None:
        """Tick for ever."""
        loop = asyncio.get_running_loop()
        while True:
            due_s, used_s = loop.time() + TICK_S, time.thread_time()
            await asyncio.sleep(TICK_S)
            late_s = max(0.0, loop.time() - due_s)
            used_s = time.thread_time() - used_s
            self._seconds.observe(late_s)
            self._cpu_seconds.observe(min(late_s, used_s))
            if late_s > WARN_S:
                logger("lateness").warning("loop_late", seconds=round(late_s, 3), cpu_seconds=round(used_s, 3))
