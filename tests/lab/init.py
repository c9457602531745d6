"""Process 1 of a lab node: makes the node's private folders, then keeps its services running, as systemd would on a server.

Started inside fresh network, mount, UTS and PID namespaces with one argument, the node's folder. Reads <folder>/node.json:
{"hostname", "binds": [[source, target], ...], "services": {name: {"argv": [...], "env": {...}, "drop": bool}}}. Each service
logs to <folder>/log/<name>.log; a service that ends is started again unless <folder>/down/<name> exists. Being process 1, it
reaps every orphan (QEMU outlives libvirtd on purpose), and when it dies the kernel ends all the node's processes: that is
both the power switch of the lab and its guarantee of leaving nothing behind.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

RESTART_DELAY_S = 0.3
POLL_S = 0.1


def mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True)


def furnish(folder: Path, config: dict[str, Any]) -> None:
    """Make this mount namespace look like a server of its own."""
    socket.sethostname(config["hostname"])
    mount("--make-rprivate", "/")
    mount("-t", "proc", "proc", "/proc")
    mount("-t", "sysfs", "sysfs", "/sys")
    for source, target in config["binds"]:
        origin, destination = Path(source), Path(target)
        if not destination.exists():
            if origin.is_dir():
                # Several servers of one machine may be booting at this moment.
                destination.mkdir(parents=True, exist_ok=True)
            else:
                destination.touch()
        mount("--bind", str(origin), str(destination))
    # Terminals and their locks of its own: libvirt locks consoles by terminal name.
    mount("-t", "devpts", "-o", "newinstance,ptmxmode=0666,mode=0620", "devpts", "/dev/pts")
    mount("--bind", "/dev/pts/ptmx", "/dev/ptmx")
    for private in ("/run/lock", "/run/netns"):
        Path(private).mkdir(parents=True, exist_ok=True)
        mount("-t", "tmpfs", "-o", "mode=755", "tmpfs", private)
    mount("--make-shared", "/run/netns")
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    (folder / "down").mkdir(exist_ok=True)
    (folder / "pid").mkdir(exist_ok=True)


class Services:
    """The services of one node and the processes that run them."""

    def __init__(self, folder: Path, services: dict[str, dict[str, Any]]) -> None:
        self.folder, self.services = folder, services
        self.running: dict[str, subprocess.Popen[bytes]] = {}
        self.not_before: dict[str, float] = {}
        self.stopping = False

    def step(self) -> None:
        """Start what should run, stop what should not."""
        for name in self.services:
            down = (self.folder / "down" / name).exists() or self.stopping
            process = self.running.get(name)
            if process is None and not down and time.monotonic() >= self.not_before.get(name, 0.0):
                self.start(name)
            elif process is not None and down:
                process.terminate()

    def start(self, name: str) -> None:
        service = self.services[name]
        argv = service["argv"]
        if service.get("drop"):
            argv = ["setpriv", "--bounding-set=-all", "--inh-caps=-all", "--no-new-privs", *argv]
        log = os.open(self.folder / "log" / f"{name}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        process = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=os.environ | service.get("env", {}), cwd="/"
        )
        os.close(log)
        self.running[name] = process
        (self.folder / "pid" / name).write_text(str(process.pid))

    def reap(self) -> None:
        """Collect every ended child, ours or adopted."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            for name, process in list(self.running.items()):
                if process.pid == pid:
                    process.returncode = os.waitstatus_to_exitcode(status)
                    print(f"{name} {pid} ended: {process.returncode}", flush=True)
                    del self.running[name]
                    (self.folder / "pid" / name).unlink(missing_ok=True)
                    self.not_before[name] = time.monotonic() + RESTART_DELAY_S


def main() -> None:
    folder = Path(sys.argv[1])
    config = json.loads((folder / "node.json").read_text())
    os.umask(0o077)
    furnish(folder, config)
    services = Services(folder, config["services"])

    def stop(_signal: int, _frame: object) -> None:
        services.stopping = True

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # The end of any child wakes the wait below at once: libvirt waits for QEMU's process to be gone, not merely dead.
    waker, wakened = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wakened, warn_on_full_buffer=False)
    (folder / "ready").touch()
    while not (services.stopping and not services.running):
        services.step()
        if select.select([waker], [], [], POLL_S)[0]:
            os.read(waker, 4096)
        services.reap()


if __name__ == "__main__":
    main()
