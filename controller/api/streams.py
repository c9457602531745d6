"""Streams that last, and end when their caller may not have them any longer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any, Final

# How often it is asked of an open stream whether its caller may still have it.
ASK_AGAIN_S: Final = 0.5


async def while_allowed(responses: Any, refuse: Callable[[], Awaitable[None]]) -> AsyncGenerator[Any, None]:
    """Pass responses of a generator on until `refuse` raises, which is asked before each and also while there are none."""
    following: asyncio.Future[Any] | None = None
    try:
        while True:
            following = following or asyncio.ensure_future(anext(responses, None))
            done, _ = await asyncio.wait([following], timeout=ASK_AGAIN_S)
            await refuse()
            if done:
                response, following = following.result(), None
                if response is None:
                    return
                yield response
    finally:
        if following is not None:
            following.cancel()
            await asyncio.wait([following])
        await responses.aclose()
