"""A store in memory, with what goes wrong in others at the turn of a knob. It ships: whoever tests with backups uses it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

from cairn.storage.backups.store import ANSWER_S, CHUNK_BYTES, Gone, Object, StoreError, StoreFull, check_name


@dataclass
class FakeStore:
    """Objects of a dict, which a test may read and damage. The knobs may be turned at any time."""

    title: str = "the fake store"
    objects: dict[str, bytes] = field(default_factory=dict)
    # No more than so many bytes in all.
    capacity_bytes: int = 1 << 60
    # So many bytes in a second for each call; 0: at once.
    bytes_s: float = 0.0
    # After so many bytes, to and fro, it answers no call any more: each fails after its time limit.
    dies_after_bytes: int = 1 << 60
    answer_s: float = ANSWER_S
    is_dead: bool = False
    # The next so many puts are answered with an error, and take effect so much later.
    late_puts: int = 0
    late_s: float = 1.0
    # Called with (method, name) before a call and after it ("put", "put done"); what it raises, the call raises.
    before: Callable[[str, str], None] | None = None
    # Seen by the store: bytes put and got, calls going on now and at most at once.
    put_bytes: int = 0
    got_bytes: int = 0
    calls: int = 0
    calls_max: int = 0
    _late: list[asyncio.TimerHandle] = field(default_factory=list)

    async def put(self, name: str, content: bytes) -> None:
        """Write an object."""
        check_name(name)
        async with self._call("put", name):
            await self._move(len(content))
            used = sum(len(each) for other, each in self.objects.items() if other != name)
            if used + len(content) > self.capacity_bytes:
                raise StoreFull(f"{self.title} is full: {name} has {len(content)} bytes, {self.capacity_bytes - used} are free")
            self.put_bytes += len(content)
            if self.late_puts:
                self.late_puts -= 1
                loop = asyncio.get_running_loop()
                self._late.append(loop.call_later(self.late_s, self.objects.__setitem__, name, content))
                raise StoreError(f"{self.title} did not answer to the put of {name}")
            self.objects[name] = content

    async def get(self, name: str, *, offset: int = 0, length: int | None = None) -> AsyncIterator[bytes]:
        """Yield its bytes."""
        check_name(name)
        async with self._call("get", name):
            if name not in self.objects:
                raise Gone(f"{name} is not in {self.title}")
            content = self.objects[name]
        end = len(content) if length is None else min(len(content), offset + length)
        for at in range(offset, end, CHUNK_BYTES):
            chunk = content[at : min(end, at + CHUNK_BYTES)]
            async with self._call("get on", name):
                await self._move(len(chunk))
                self.got_bytes += len(chunk)
            yield chunk

    async def list(self, prefix: str) -> AsyncIterator[Object]:
        """Yield objects by prefix, as they are now."""
        async with self._call("list", prefix):
            await self._move(0)
            found = [Object(name, len(content)) for name, content in sorted(self.objects.items()) if name.startswith(prefix)]
        for each in found:
            yield each

    async def delete(self, name: str) -> None:
        """Remove an object."""
        check_name(name)
        async with self._call("delete", name):
            await self._move(0)
            self.objects.pop(name, None)

    async def close(self) -> None:
        """Drop what would come late."""
        for each in self._late:
            each.cancel()

    def _call(self, method: str, name: str) -> _Call:
        return _Call(self, method, name)

    async def _move(self, size_bytes: int) -> None:
        self.is_dead |= self.put_bytes + self.got_bytes + size_bytes > self.dies_after_bytes
        if self.is_dead:
            await asyncio.sleep(self.answer_s)
            raise StoreError(f"{self.title} did not answer for {self.answer_s:.0f} s")
        await asyncio.sleep(size_bytes / self.bytes_s if self.bytes_s else 0)


@dataclass
class _Call:
    """Counts a call, and asks the test before and after it."""

    store: FakeStore
    method: str
    name: str

    async def __aenter__(self) -> None:
        if self.store.before:
            self.store.before(self.method, self.name)
        self.store.calls += 1
        self.store.calls_max = max(self.store.calls_max, self.store.calls)

    async def __aexit__(self, kind: object, error: object, trace: object) -> None:
        self.store.calls -= 1
        if self.store.before and error is None:
            self.store.before(f"{self.method} done", self.name)
