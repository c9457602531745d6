"""Keyed work: each key is handled by one task at a time, different keys at the same time up to a limit.

A key woken while it is being handled is handled once more afterwards; a key woken twice before its turn is handled once. A
failure is retried later and later; new information about the key (`fresh`) makes it due at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from cairn.proto.seams import Ids

RETRY_S: Final = 0.5
RETRY_S_MAX: Final = 30.0
PERMANENT_RETRY_S: Final = 60.0
PERMANENT_RETRY_S_MAX: Final = 600.0


@dataclass(frozen=True, slots=True)
class Again:
    """When a handled key wants to be looked at next. after_s 0: when woken. failed: it went wrong; retryable or not."""

    after_s: float = 0.0
    failed: bool = False
    retryable: bool = True


Handler = Callable[[str], Awaitable[Again]]


class KeyedWork:
    """A queue of keys and the tasks that handle them. `run` it; cancel that to stop."""

    def __init__(self, handle: Handler, ids: Ids, *, at_once_max: int) -> None:
        self._handle, self._ids = handle, ids
        self._slots = at_once_max
        self._ready: dict[str, None] = {}
        self._running: dict[str, asyncio.Task[None]] = {}
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._failures: dict[str, int] = {}
        # Running keys that there is fresh information about.
        self._fresh: set[str] = set()
        self._some = asyncio.Event()

    @property
    def is_idle(self) -> bool:
        """Nothing is due, nothing runs; timers may be set."""
        return not self._ready and not self._running

    @property
    def depth(self) -> int:
        """How many keys are due or handled now."""
        return len(self._ready) + len(self._running)

    def wake(self, key: str, *, fresh: bool = False) -> None:
        """Make a key due now; one that failed waits for its retry unless there is fresh information."""
        if fresh:
            self._failures.pop(key, None)
            self._fresh |= {key} & self._running.keys()
        elif key in self._failures and key in self._timers:
            return
        self._cancel_timer(key)
        self._ready[key] = None
        self._some.set()

    def wake_after(self, key: str, after_s: float) -> None:
        """Make a key due later, if it is not due earlier."""
        loop = asyncio.get_running_loop()
        timer = self._timers.get(key)
        if key in self._ready or (timer is not None and timer.when() <= loop.time() + after_s):
            return
        self._cancel_timer(key)
        self._timers[key] = loop.call_later(after_s, self._due, key)

    def forget(self, key: str) -> None:
        """Drop what is remembered of a key that is not due."""
        self._failures.pop(key, None)
        self._cancel_timer(key)

    async def run(self) -> None:
        """Handle keys until cancelled."""
        try:
            while True:
                await self._some.wait()
                self._some.clear()
                for key in [key for key in self._ready if key not in self._running][: self._slots - len(self._running)]:
                    del self._ready[key]
                    self._running[key] = asyncio.create_task(self._run_one(key), name=f"handle {key}")
        finally:
            for timer in self._timers.values():
                timer.cancel()
            tasks = list(self._running.values())
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _run_one(self, key: str) -> None:
        try:
            again = await self._handle(key)
            self._settle(key, again)
        finally:
            self._fresh.discard(key)
            del self._running[key]
            self._some.set()

    def _settle(self, key: str, again: Again) -> None:
        if not again.failed:
            self._failures.pop(key, None)
            if again.after_s > 0:
                self.wake_after(key, again.after_s)
            return
        if key in self._fresh:
            return
        # What woke it meanwhile may have been its own doing.
        self._ready.pop(key, None)
        self.wake_after(key, self.retry_after_s(key, retryable=again.retryable))
        self._failures[key] = self._failures.get(key, 0) + 1

    def retry_after_s(self, key: str, *, retryable: bool) -> float:
        """Return how long a key would wait if it failed now."""
        first, most = (RETRY_S, RETRY_S_MAX) if retryable else (PERMANENT_RETRY_S, PERMANENT_RETRY_S_MAX)
        return min(first * 2.0 ** min(self._failures.get(key, 0), 16), most) * (1.0 + 0.25 * self._ids.jitter())

    def _due(self, key: str) -> None:
        self._timers.pop(key, None)
        self._ready[key] = None
        self._some.set()

    def _cancel_timer(self, key: str) -> None:
        timer = self._timers.pop(key, None)
        if timer is not None:
            timer.cancel()
