"""A guest's serial console as a libvirt stream, both ways, without blocking.

libvirt calls back in its own thread when the stream can be read or written; bytes go through a bounded buffer: when the reader
is slow we stop asking for more, and the guest's output waits in libvirtd.
"""

from __future__ import annotations

import asyncio
import threading
from typing import Any, Final

import libvirt
import structlog
from cairn.agent.hypervisor.base import HypervisorError

CHUNK_BYTES: Final = 16 * 1024
BUFFER_BYTES_MAX: Final = 256 * 1024
_WOULD_BLOCK: Final = -2
_ENDED: Final = libvirt.VIR_STREAM_EVENT_ERROR | libvirt.VIR_STREAM_EVENT_HANGUP

log = structlog.get_logger(__name__)


class SerialConsole:
    """ConsoleStream over one virStream. Made in the asyncio loop; the stream must be open and non-blocking."""

    def __init__(self, id: str, stream: Any) -> None:
        self._id = id
        self._stream = stream
        self._loop = asyncio.get_running_loop()
        self._buffer = bytearray()
        self._arrived = asyncio.Event()
        self._writable = asyncio.Event()
        self._writable.set()
        self._wanted = libvirt.VIR_STREAM_EVENT_READABLE
        self._ended = False
        self._released: asyncio.Future[None] | None = None
        self._lock = threading.Lock()
        # libvirt calls `_heard`, so many times by now.
        self.listening = True
        self.calls = 0
        stream.eventAddCallback(self._wanted | _ENDED, self._heard, None)

    async def read(self) -> bytes:
        """Return what arrived; empty when the guest ended or somebody else took the console."""
        await self._arrived.wait()
        data = bytes(self._buffer)
        self._buffer.clear()
        if not self._ended:
            self._arrived.clear()
            self._want(libvirt.VIR_STREAM_EVENT_READABLE, wanted=True)
        return data

    async def write(self, data: bytes) -> None:
        """Send key strokes; HypervisorError when the console has ended."""
        view = memoryview(data)
        while view:
            if self._ended:
                raise HypervisorError(f"write to the console of {self._id}: it has ended")
            try:
                sent = self._stream.send(bytes(view[:CHUNK_BYTES]))
            except libvirt.libvirtError as error:
                raise HypervisorError(f"write to the console of {self._id}: {error}") from error
            if sent == _WOULD_BLOCK:
                self._writable.clear()
                self._want(libvirt.VIR_STREAM_EVENT_WRITABLE, wanted=True)
                await self._writable.wait()
            else:
                view = view[sent:]

    async def close(self) -> None:
        """Let go of the console; the guest notices nothing."""
        if not self._ended:
            self._end()
        if self._released is not None:
            await self._released

    def _heard(self, _stream: Any, events: int, _opaque: object) -> None:
        """In libvirt's thread: take what is there, hand it to asyncio."""
        self.calls += 1
        data, ended = b"", bool(events & _ENDED)
        if events & libvirt.VIR_STREAM_EVENT_READABLE:
            try:
                received = self._stream.recv(CHUNK_BYTES)
            except libvirt.libvirtError:
                received, ended = b"", True
            if isinstance(received, bytes):
                data, ended = received, ended or not received
        if ended:
            # At once and here: libvirt goes on calling for an ended stream, as fast as it can.
            self._stop_listening()
        elif events & libvirt.VIR_STREAM_EVENT_WRITABLE:
            self._update(self._wanted & ~libvirt.VIR_STREAM_EVENT_WRITABLE)
        try:
            self._loop.call_soon_threadsafe(self._take, data, events, ended)
        except RuntimeError as error:
            log.debug("console output after the end", vm=self._id, error=str(error))

    def _take(self, data: bytes, events: int, ended: bool) -> None:
        self._buffer += data
        if events & libvirt.VIR_STREAM_EVENT_WRITABLE:
            self._wanted &= ~libvirt.VIR_STREAM_EVENT_WRITABLE
            self._writable.set()
        if len(self._buffer) >= BUFFER_BYTES_MAX:
            self._want(libvirt.VIR_STREAM_EVENT_READABLE, wanted=False)
        if data:
            self._arrived.set()
        if ended and not self._ended:
            self._end()

    def _want(self, event: int, *, wanted: bool) -> None:
        new = self._wanted | event if wanted else self._wanted & ~event
        if not self._ended and new != self._wanted:
            self._wanted = new
            self._update(new)

    def _update(self, events: int) -> None:
        try:
            self._stream.eventUpdateCallback(events | _ENDED)
        except libvirt.libvirtError as error:
            log.debug("console callback", vm=self._id, error=str(error))

    def _end(self) -> None:
        self._ended = True
        self._arrived.set()
        self._writable.set()
        # A round trip to libvirtd, so not in this thread.
        self._released = self._loop.run_in_executor(None, self._release)

    def _stop_listening(self) -> None:
        """Remove the callback; by whichever of the two threads comes first."""
        with self._lock:
            if not self.listening:
                return
            self.listening = False
        try:
            self._stream.eventRemoveCallback()
        except libvirt.libvirtError as error:
            log.warning("console callback stays", vm=self._id, error=str(error))

    def _release(self) -> None:
        self._stop_listening()
        try:
            self._stream.abort()
        except libvirt.libvirtError as error:
            log.debug("console let go", vm=self._id, error=str(error))
