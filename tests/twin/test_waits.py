"""What is told of tasks that wait."""

from __future__ import annotations

import asyncio

from tests.twin.waits import waits


async def test_a_task_that_waits_is_told_with_its_calls() -> None:
    never = asyncio.Event()

    async def inner() -> None:
        await never.wait()

    async def outer() -> None:
        await inner()

    task = asyncio.create_task(outer(), name="the one that waits")
    await asyncio.sleep(0)
    (line,) = waits()
    calls = [each.split()[0] for each in line.removeprefix("the one that waits: ").split(" > ")]
    assert calls == ["outer", "inner", "wait"]
    assert "test_waits.py:" in line
    task.cancel()
