"""The serial console: on a terminal, from a pipe, from a file; the terminal is put back."""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.cli_cloud import Cloud
from tests.unit.cli_objects import cloud, vm  # noqa: F401

COMMAND = [sys.executable, "-c", "from cairn.controller.cli.main import main; main()", "vm", "console", "web"]


class Terminal:
    """A command on a pseudo terminal."""

    def __init__(self, cloud: Cloud) -> None:  # noqa: F811
        self.master, self.slave = pty.openpty()
        self.before = termios.tcgetattr(self.slave)
        self.said = b""
        self.process = subprocess.Popen(
            COMMAND, stdin=self.slave, stdout=self.slave, stderr=self.slave, env={**os.environ, **cloud.environment}
        )

    def until(self, text: bytes, timeout_s: float = 20.0) -> None:
        deadline = time.monotonic() + timeout_s
        while text not in self.said:
            assert time.monotonic() < deadline, self.said
            if select.select([self.master], [], [], 0.1)[0]:
                self.said += os.read(self.master, 65536)

    def type(self, data: bytes) -> None:
        os.write(self.master, data)

    def end(self) -> int:
        code = self.process.wait(20)
        while select.select([self.master], [], [], 0)[0]:
            self.said += os.read(self.master, 65536)
        return code

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self.master)
        os.close(self.slave)


@pytest.fixture
def terminal(cloud: Cloud) -> Iterator[Terminal]:  # noqa: F811
    cloud.do(cloud.add("vm", vm()))
    terminal = Terminal(cloud)
    yield terminal
    terminal.close()


def test_keys_go_through_raw_and_escape_leaves(terminal: Terminal) -> None:
    terminal.until(b"Ctrl-] leaves")
    terminal.until(b"login on web")
    assert termios.tcgetattr(terminal.slave)[3] & (termios.ICANON | termios.ECHO | termios.ISIG) == 0
    terminal.type(b"ls\x03\r")
    terminal.until(b"\x03")
    terminal.type(b"x\x1dnever sent")
    assert terminal.end() == 0
    assert b"never sent" not in terminal.said
    assert termios.tcgetattr(terminal.slave) == terminal.before


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGHUP])
def test_the_terminal_is_put_back_when_told_to_end(terminal: Terminal, how: signal.Signals) -> None:
    terminal.until(b"login on web")
    terminal.process.send_signal(how)
    terminal.end()
    assert termios.tcgetattr(terminal.slave) == terminal.before


def test_the_terminal_is_put_back_when_the_console_fails(terminal: Terminal) -> None:
    terminal.until(b"login on web")
    terminal.type(b"boom")
    assert terminal.end() == 4
    assert termios.tcgetattr(terminal.slave) == terminal.before
    assert b"the console is gone" in terminal.said


def test_a_pipe_works_too(cloud: Cloud) -> None:  # noqa: F811
    cloud.do(cloud.add("vm", vm()))
    ended = subprocess.run(
        COMMAND, input=b"uname -a\n", capture_output=True, check=False, timeout=30, env={**os.environ, **cloud.environment}
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout == b"login on web\r\n<uname -a\n>"
    assert b"Serial console of web." in ended.stderr


def test_a_file_works_too(cloud: Cloud, tmp_path: Path) -> None:  # noqa: F811
    cloud.do(cloud.add("vm", vm()))
    (tmp_path / "script").write_bytes(b"uptime\n")
    with (tmp_path / "script").open("rb") as script:
        ended = subprocess.run(
            COMMAND, stdin=script, capture_output=True, check=False, timeout=30, env={**os.environ, **cloud.environment}
        )
    assert (ended.returncode, ended.stdout) == (0, b"login on web\r\n<uptime\n>")


def test_no_such_vm(cloud: Cloud) -> None:  # noqa: F811
    ended = subprocess.run(
        COMMAND, stdin=subprocess.DEVNULL, capture_output=True, check=False, timeout=30, env={**os.environ, **cloud.environment}
    )
    assert ended.returncode == 4
