"""Change notices from a driver to its listeners: bounded, coalesced, in the order first noticed."""

from __future__ import annotations

import asyncio
import weakref

from cairn.agent.hypervisor.base import DomainEvent


class EventStream:
    """One listener's notices: several about the same domain, not yet taken, are one. Never ends."""

    def __init__(self) -> None:
        self._waiting: dict[str, None] = {}
        self._some = asyncio.Event()

    def add(self, id: str) -> None:
        """Put in a notice about a domain ("": about all)."""
        self._waiting[id] = None
        self._some.set()

    def __aiter__(self) -> EventStream:
        return self

    async def __anext__(self) -> DomainEvent:
        await self._some.wait()
        id = next(iter(self._waiting))
        del self._waiting[id]
        if not self._waiting:
            self._some.clear()
        return DomainEvent(id)


class Notices:
    """All listeners of one driver. A stream hears from the moment it is made until nobody holds it."""

    def __init__(self) -> None:
        # By number, so that listeners are told in the order they came: a WeakSet's order would differ from run to run.
        self._streams: weakref.WeakValueDictionary[int, EventStream] = weakref.WeakValueDictionary()
        self._made = 0

    def listen(self) -> EventStream:
        """Return a new listener's stream; it begins with "look at all"."""
        stream = EventStream()
        stream.add("")
        self._made += 1
        self._streams[self._made] = stream
        return stream

    def tell(self, id: str) -> None:
        """Tell every listener."""
        for stream in tuple(self._streams.values()):
            stream.add(id)
