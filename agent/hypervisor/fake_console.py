"""The serial console of a fake guest: a root shell that knows echo, hostname and poweroff."""

from __future__ import annotations

import asyncio
import shlex
from typing import TYPE_CHECKING

from cairn.agent.hypervisor.base import HypervisorError

if TYPE_CHECKING:
    from cairn.agent.hypervisor.fake import FakeHost


def prompt(hostname: str) -> str:
    """Return what the shell shows when it waits."""
    return f"root@{hostname}:~# "


class FakeConsole:
    """A serial console with a root shell that knows echo, hostname and poweroff."""

    def __init__(self, host: FakeHost, id: str) -> None:
        self._host, self._id = host, id
        self._output = bytearray()
        self._line = bytearray()
        self._some = asyncio.Event()
        self._ended = False

    async def read(self) -> bytes:
        """Return what was printed; empty when it ended."""
        await self._some.wait()
        data = bytes(self._output)
        self._output.clear()
        if not self._ended:
            self._some.clear()
        return data

    async def write(self, data: bytes) -> None:
        """Type."""
        if self._ended:
            raise HypervisorError(f"write to the console of {self._id}: it has ended")
        # Enter is a carriage return on a terminal, and shows as a new line.
        self.put(data.replace(b"\r\n", b"\n").replace(b"\r", b"\n").replace(b"\n", b"\r\n"))
        for byte in data:
            if byte in b"\r\n":
                line, self._line = self._line.decode(errors="replace"), bytearray()
                self._execute(line)
            else:
                self._line.append(byte)

    async def close(self) -> None:
        """Let go."""
        self.end()
        guest = self._host.guests.get(self._id)
        if guest is not None and guest.console is self:
            guest.console = None

    def put(self, data: bytes) -> None:
        """Show output."""
        if not self._ended:
            self._output += data
            self._some.set()

    def end(self) -> None:
        """No more output."""
        self._ended = True
        self._some.set()

    def _execute(self, line: str) -> None:
        guest = self._host.guests.get(self._id)
        if guest is None or guest.live is None or guest.live.paused:
            return
        try:
            words = shlex.split(line)
        except ValueError as error:
            words = ["echo", f"syntax error: {error}"]
        if words[:1] == ["poweroff"]:
            self._host.later(self._id, self._host.shutdown_s, lambda _guest, _live: self._host.guest_poweroff(self._id))
            return
        if words[:1] == ["echo"]:
            self.put(" ".join(words[1:]).encode() + b"\r\n")
        elif words[:1] == ["hostname"]:
            self.put(guest.live.hostname.encode() + b"\r\n")
        elif words:
            self.put(f"{words[0]}: not found; this guest knows echo, hostname and poweroff\r\n".encode())
        self.put(prompt(guest.live.hostname).encode())
