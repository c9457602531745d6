"""A view as fresh as the store was when asked for; those who ask together share one question to the store.

A question under way when somebody comes may have been answered before he came: he waits for the next one.
"""

from __future__ import annotations

import asyncio
from typing import Final

from cairn.controller.api.decision import Views
from cairn.controller.outage import refusal
from cairn.controller.store.base import Store, Unavailable, View
from cairn.proto.errors import TryAgain

# How long the watch may take to bring what the store has committed.
CATCH_UP_S: Final = 10.0


class Freshness:
    """See the module."""

    def __init__(self, store: Store, cache: Views) -> None:
        self._store, self._cache = store, cache
        self._waiting: list[asyncio.Future[int]] = []
        self._asking: asyncio.Task[None] | None = None

    async def freshen(self) -> View:
        """Return a view as fresh as the store was when called. Raises TryAgain."""
        answer: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._waiting.append(answer)
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._ask(), name="freshen")
        await self.caught_up(await answer)
        return self._cache.view

    async def caught_up(self, revision: int) -> None:
        """Return once the view contains a revision. Raises TryAgain when that takes too long."""
        try:
            async with asyncio.timeout(CATCH_UP_S):
                await self._cache.wait_for(revision)
        except TimeoutError as error:
            behind = f"at revision {self._cache.view.revision}, the store at {revision}"
            raise TryAgain(f"this controller has fallen behind the store ({behind}); try again") from error

    async def _ask(self) -> None:
        """Ask the store for as long as anybody waits."""
        while self._waiting:
            waiting, self._waiting = self._waiting, []
            try:
                revision = await self._store.revision()
            except Unavailable as error:
                for each in waiting:
                    _fail(each, error)
            except BaseException:
                for each in (*waiting, *self._waiting):
                    each.cancel()
                raise
            else:
                for each in waiting:
                    if not each.done():
                        each.set_result(revision)


def _fail(answer: asyncio.Future[int], error: Unavailable) -> None:
    if not answer.done():
        refused = refusal(error)
        refused.__cause__ = error
        answer.set_exception(refused)
