"""Which task waits where: what to tell of a run that does not end."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import FrameType
from typing import Any


def waits() -> list[str]:
    """Return a line for each task of the running loop but the current one: its name, and its calls down to the wait."""
    others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    return sorted(f"{task.get_name()}: {' > '.join(_calls(task.get_coro()))}" for task in others)


def _calls(awaited: Any) -> list[str]:
    """Return the frames from an awaitable down to the one that is no coroutine or generator."""
    calls = []
    while (frame := _of(awaited, "frame")) is not None:
        assert isinstance(frame, FrameType)
        calls.append(f"{frame.f_code.co_name} ({Path(frame.f_code.co_filename).name}:{frame.f_lineno})")
        awaited = _of(awaited, "await")
    return calls


def _of(awaited: Any, what: str) -> Any:
    """Return an attribute that is named after the kind of its object: of coroutines, generators, asynchronous generators."""
    for name in (f"cr_{what}", "gi_yieldfrom" if what == "await" else f"gi_{what}", f"ag_{what}"):
        if hasattr(awaited, name):
            return getattr(awaited, name)
    return None
