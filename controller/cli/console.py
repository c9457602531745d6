"""cairn vm console: a VM's serial console on this terminal.

On a terminal keys go through raw (the guest echoes, Ctrl-C is the guest's), Ctrl-] leaves, and the terminal is put back
however it ends. From a pipe, the bytes are sent, and after its end what the guest still says is shown until it has been
silent a while. When the controller dies the console is opened again through another one.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import termios
import tty
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any, Final

from cairn.controller.cli.client import Patience, Session

ESCAPE: Final = b"\x1d"
READ_BYTES: Final = 4096
# After the end of a piped input: leave when the guest has said nothing for this long.
SILENCE_S: Final = 2.0


class Console:
    """One console session of one VM."""

    def __init__(self, session: Session, vm: Any) -> None:
        self._session, self._vm = session, vm
        self._keys: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._left = asyncio.Event()
        self._heard = asyncio.Event()

    async def run(self) -> None:
        """Talk until the person leaves, the input ends, or the VM is gone."""
        interactive = sys.stdin.isatty()
        leave = " Ctrl-] leaves." if interactive else ""
        self._session.output.say(f"Serial console of {self._vm.name}.{leave}")
        with _raw(sys.stdin.fileno()) if interactive else _untouched(), self._reading(interactive), self._signals():
            talk = asyncio.create_task(self._talk())
            left = asyncio.create_task(self._left.wait())
            try:
                await asyncio.wait([talk, left], return_when=asyncio.FIRST_COMPLETED)
            finally:
                left.cancel()
                talk.cancel()
                await asyncio.gather(talk, left, return_exceptions=True)
        if interactive:
            self._session.output.say("")
            self._session.output.say(f"Left the console of {self._vm.name}; the VM goes on.")
        if talk.done() and not talk.cancelled() and (error := talk.exception()) is not None:
            raise error

    async def _talk(self) -> None:
        """Keep a console open, through whichever controller answers."""
        from grpc.aio import AioRpcError

        patience = Patience(self._session)
        while True:
            try:
                call = self._session.stub("vm").ConsoleVm(self._requests())
                async for response in call:
                    patience = Patience(self._session)
                    self._heard.set()
                    write_all(sys.stdout.fileno(), response.data)
            except AioRpcError as error:
                await patience.wait_after(error)
                self._session.output.say("\r\n[the connection broke; connecting again]\r")
            else:
                return

    async def _requests(self) -> AsyncIterator[Any]:
        """Yield which VM, then what is typed."""
        from cairn.proto.v1.vm_pb2 import ConsoleVmRequest

        yield ConsoleVmRequest(id=self._vm.id, project=self._session.project)
        while (data := await self._keys.get()) is not None:
            yield ConsoleVmRequest(data=data)
        await self._silence()
        self._left.set()

    async def _silence(self) -> None:
        """Return once the guest has said nothing for a while."""
        while True:
            self._heard.clear()
            try:
                async with asyncio.timeout(SILENCE_S):
                    await self._heard.wait()
            except TimeoutError:
                return

    @contextmanager
    def _reading(self, interactive: bool) -> Iterator[None]:
        """Feed standard input into the queue as it comes."""
        descriptor, loop = sys.stdin.fileno(), asyncio.get_running_loop()

        def readable() -> None:
            data = os.read(descriptor, READ_BYTES)
            before, escape, _ = data.partition(ESCAPE) if interactive else (data, b"", b"")
            if before:
                self._keys.put_nowait(before)
            if escape or (interactive and not data):
                self._left.set()
            if escape or not data:
                loop.remove_reader(descriptor)
            if not data:
                self._keys.put_nowait(None)

        try:
            loop.add_reader(descriptor, readable)
        except OSError:
            # A file, or a device like /dev/null: it cannot be polled, and never blocks.
            while data := os.read(descriptor, READ_BYTES):
                self._keys.put_nowait(data)
            self._keys.put_nowait(None)
            yield
            return
        try:
            yield
        finally:
            loop.remove_reader(descriptor)

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """Leave, and so put the terminal back, when told to end."""
        loop = asyncio.get_running_loop()
        numbers = (signal.SIGTERM, signal.SIGHUP)
        for number in numbers:
            loop.add_signal_handler(number, self._left.set)
        try:
            yield
        finally:
            for number in numbers:
                loop.remove_signal_handler(number)


def write_all(descriptor: int, data: bytes) -> None:
    """Write every byte, past Python's buffers."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


@contextmanager
def _untouched() -> Iterator[None]:
    yield


@contextmanager
def _raw(descriptor: int) -> Iterator[None]:
    """Put a terminal into raw mode, and back."""
    before = termios.tcgetattr(descriptor)
    try:
        tty.setraw(descriptor, termios.TCSANOW)
        yield
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)
