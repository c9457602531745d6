"""Talk to a guest through `cairn vm console`, as a person at a terminal would: the command runs on a pseudo terminal."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import time
from collections.abc import Mapping, Sequence

from tests.lab.hosts import LabError

ESCAPE = b"\x1d"
PROMPT = b"# "


def converse(argv: Sequence[str], environment: Mapping[str, str], line: str, until: str, timeout_s: float) -> str:
    """Wait for the prompt, type `line`, return everything said until a line after it holds `until`; then leave."""
    master, slave = pty.openpty()
    process = subprocess.Popen(argv, stdin=slave, stdout=slave, stderr=slave, env=dict(environment), start_new_session=True)
    os.close(slave)
    deadline = time.monotonic() + timeout_s
    said = b""
    typed_at = -1
    next_return = 0.0
    try:
        while time.monotonic() < deadline:
            if typed_at < 0 and time.monotonic() > next_return:
                next_return = time.monotonic() + 1.0
                os.write(master, b"\r")
            if select.select([master], [], [], 0.1)[0]:
                said += read(master)
            if process.poll() is not None:
                raise LabError(f"{' '.join(argv)} ended: {said.decode(errors='replace')[-500:]}")
            if typed_at < 0 and PROMPT in said:
                typed_at = len(said)
                os.write(master, line.encode() + b"\r")
            elif typed_at >= 0 and until.encode() in said[typed_at:].replace(line.encode(), b"", 1):
                return said[typed_at:].decode(errors="replace").replace("\r", "")
        raise LabError(f"no {until!r} on the console within {timeout_s:.0f} s; it said: {said.decode(errors='replace')[-800:]}")
    finally:
        if process.poll() is None:
            os.write(master, ESCAPE)
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        os.close(master)


def read(master: int) -> bytes:
    """Read what is there; nothing when the other side has closed (EIO on Linux)."""
    try:
        return os.read(master, 65536)
    except OSError:
        return b""
