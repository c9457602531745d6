"""Parts of a stream: tasks that end together, and why."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Final

# How long a stream, or a part of it, has to end.
END_S: Final = 3.0


class Over(Exception):
    """The stream ends; `revoke`: the node is to count as disconnected at once."""

    def __init__(self, say: str, *, revoke: bool) -> None:
        super().__init__(say)
        self.say, self.revoke = say, revoke


async def unended(parts: Sequence[asyncio.Task[None]], within_s: float) -> list[str]:
    """Wait for tasks that were cancelled; return the names of those that go on all the same."""
    left: set[asyncio.Task[None]] = set()
    if parts:
        _, left = await asyncio.wait(parts, timeout=within_s)
    return sorted(_name(task.get_coro()) for task in left)


def _name(coroutine: Any) -> str:
    return str(coroutine.__qualname__)
