"""How a process started by another one is told what to do, and that it must end: lines on its standard input, then its end.

    await lifeline.follow(each_line)     # returns when the parent closed it or is gone, or SIGTERM or SIGINT came

Invariant: whatever becomes of the parent, kill -9 included, the kernel closes its end of the pipe, so the child hears of it.
What is said through it is in no command line. Rejected: PR_SET_PDEATHSIG (Linux alone has it, it follows the thread that
forked, and it misses a parent that died before the call), asking for the parent's pid again and again.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Callable
from typing import IO, Final

LINE_BYTES_MAX: Final = 1 << 20


async def follow(each: Callable[[str], None], file: IO[bytes] | None = None) -> None:
    """Give every line of standard input (or another pipe) to a function until this process must end.

    What the function raises ends it. Half a line, cut by the parent's death, is nothing.
    """
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    reader = asyncio.StreamReader(LINE_BYTES_MAX)
    transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), file or sys.stdin.buffer)
    parts = [asyncio.ensure_future(part) for part in (_read(reader, each), stop.wait())]
    try:
        done, _ = await asyncio.wait(parts, return_when=asyncio.FIRST_COMPLETED)
        for part in done:
            part.result()
    finally:
        for part in parts:
            part.cancel()
        await asyncio.gather(*parts, return_exceptions=True)
        transport.close()


async def _read(reader: asyncio.StreamReader, each: Callable[[str], None]) -> None:
    while (line := await reader.readline()).endswith(b"\n"):
        each(line.decode().rstrip("\n"))
