"""The lab's servers: namespaces that stand for machines on one underlay network.

A *host* is a set of network, mount, UTS, IPC and PID namespaces with tests/lab/init.py as its process 1. The underlay is a
bridge in a network namespace of its own, so no frame of the lab ever touches the machine's own network. Every name begins with
the lab's prefix; killing a host's process 1 ends every process in it.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

REPOSITORY = Path(__file__).resolve().parent.parent.parent
ROOT = Path("/var/lib/cairn-lab")
UNDERLAY_MTU = 1600
INIT = str(Path(__file__).resolve().parent / "init.py")


class LabError(Exception):
    """What the lab could not do, and what to look at."""


def run(*argv: str, check: bool = True, **keywords: Any) -> subprocess.CompletedProcess[str]:
    result = subprocess.run(argv, capture_output=True, text=True, check=False, **keywords)
    if check and result.returncode != 0:
        raise LabError(f"{' '.join(argv)}: exit {result.returncode}: {(result.stderr or result.stdout).strip()}")
    return result


def wait_until(what: str, probe: Callable[[], Any], timeout_s: float = 30.0, every_s: float = 0.05) -> Any:
    """Return the probe's first true value."""
    deadline = time.monotonic() + timeout_s
    while True:
        if value := probe():
            return value
        if time.monotonic() > deadline:
            raise LabError(f"waited {timeout_s:.0f} s for {what}")
        time.sleep(every_s)


@dataclass
class Child:
    """A process that is the test's child."""

    argv: list[str]
    log: Path
    process: subprocess.Popen[bytes] | None = field(default=None, kw_only=True)

    @property
    def pid(self) -> int:
        """Its process; 0 when it does not run."""
        return self.process.pid if self.process is not None and self.process.poll() is None else 0

    def start(self) -> None:
        """Run it, again with the data it had."""
        with self.log.open("ab") as log:
            # setpriv: killed when the test run is, not left behind.
            argv = ["setpriv", "--pdeathsig", "KILL", "--", *self.argv]
            self.process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send it a signal; wait until it is gone, if that ends it."""
        if self.process is None or not self.pid:
            return
        self.process.send_signal(number)
        if number in (signal.SIGKILL, signal.SIGTERM):
            self.process.wait(timeout=20)


class Running(ABC):
    """Processes of a test: made and started on entering, ended on leaving, also when they did not come up."""

    @abstractmethod
    def begin(self) -> None:
        """Start them, and wait until they answer."""

    @abstractmethod
    def stop(self) -> None:
        """End them and remove their data."""

    def __enter__(self) -> Self:
        try:
            self.begin()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()


@dataclass
class Underlay:
    """One bridge in its own network namespace."""

    prefix: str

    @property
    def namespace(self) -> str:
        return f"{self.prefix}-u"

    def up(self) -> None:
        if self.namespace in namespaces():
            return
        run("ip", "netns", "add", self.namespace)
        run("ip", "-n", self.namespace, "link", "add", "underlay", "mtu", str(UNDERLAY_MTU), "type", "bridge")
        run("ip", "-n", self.namespace, "link", "set", "underlay", "up")

    def attend(self, address: str) -> None:
        """Give whoever is in the underlay's namespace an address there, to see the hosts from outside."""
        run("ip", "-n", self.namespace, "addr", "replace", f"{address}/24", "dev", "underlay")
        run("ip", "-n", self.namespace, "link", "set", "lo", "up")

    def plug(self, index: int, namespace: str, address: str) -> None:
        """Give a host its network card."""
        port = f"u{index}"
        run("ip", "-n", self.namespace, "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", namespace)
        run("ip", "-n", self.namespace, "link", "set", port, "mtu", str(UNDERLAY_MTU), "master", "underlay", "up")
        run("ip", "-n", namespace, "addr", "add", f"{address}/24", "dev", "eth0")
        run("ip", "-n", namespace, "link", "set", "eth0", "mtu", str(UNDERLAY_MTU), "up")
        run("ip", "-n", namespace, "link", "set", "lo", "up")


@dataclass
class Host:
    """One machine of the lab."""

    name: str
    address: str
    folder: Path
    namespace: str
    services: dict[str, dict[str, Any]] = field(default_factory=dict)
    binds: list[tuple[str, str]] = field(default_factory=list)

    def boot(self) -> None:
        """Power on: start process 1 in fresh namespaces."""
        for sub in ("log", "down", "pid"):
            (self.folder / sub).mkdir(parents=True, exist_ok=True)
        for stale in (*(self.folder / "pid").iterdir(), self.folder / "ready"):
            stale.unlink(missing_ok=True)
        document = {"hostname": self.name, "binds": self.binds, "services": self.services}
        (self.folder / "node.json").write_text(json.dumps(document, indent=1))
        with (self.folder / "log" / "init.log").open("ab") as log:
            process = subprocess.Popen(
                [
                    "nsenter", f"--net=/run/netns/{self.namespace}",
                    "unshare", "--mount", "--uts", "--ipc", "--pid", "--fork", "--kill-child", "--propagation", "private",
                    sys.executable, "-I", INIT, str(self.folder),
                ],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, cwd="/",
            )  # fmt: skip
        (self.folder / "unshare.pid").write_text(str(process.pid))
        wait_until(
            f"{self.name} to boot (see {self.folder}/log/init.log)",
            lambda: (self.folder / "ready").exists() or process.poll() is not None,
        )
        if process.poll() is not None:
            raise LabError(f"{self.name} did not boot: {(self.folder / 'log' / 'init.log').read_text()[-500:]}")

    @property
    def init_pid(self) -> int:
        """Process 1 as the machine numbers it; 0 when powered off."""
        try:
            unshare = int((self.folder / "unshare.pid").read_text())
            children = Path(f"/proc/{unshare}/task/{unshare}/children").read_text().split()
            ours = bool(children) and str(self.folder).encode() in Path(f"/proc/{children[0]}/cmdline").read_bytes()
        except (FileNotFoundError, ProcessLookupError, ValueError):
            return 0
        return int(children[0]) if ours else 0

    def pid_of(self, service: str) -> int:
        """A service's process as the machine numbers it; 0 when it does not run."""
        init = self.init_pid
        try:
            inner = (self.folder / "pid" / service).read_text()
        except FileNotFoundError:
            return 0
        try:
            children = Path(f"/proc/{init}/task/{init}/children").read_text().split()
        except (FileNotFoundError, ProcessLookupError):
            return 0
        for child in children:
            try:
                status = Path(f"/proc/{child}/status").read_text()
            except (FileNotFoundError, ProcessLookupError):
                continue
            ids = next((line.split()[1:] for line in status.splitlines() if line.startswith("NSpid:")), [])
            if ids and ids[-1] == inner:
                return int(child)
        return 0

    def kill(self, service: str, number: int = signal.SIGKILL) -> None:
        """Send a signal to a service's main process."""
        if pid := self.pid_of(service):
            os.kill(pid, number)

    def stop(self, service: str, timeout_s: float = 15.0) -> None:
        """Stop a service and keep it stopped."""
        self.hold(service)
        wait_until(f"{service} on {self.name} to stop", lambda: self.pid_of(service) == 0, timeout_s)

    def hold(self, service: str) -> None:
        """Keep a service that was just killed from being started again until `start`."""
        (self.folder / "down" / service).touch()

    def start(self, service: str) -> None:
        """Let a service run."""
        (self.folder / "down" / service).unlink(missing_ok=True)

    def power_off(self) -> None:
        """Cut the power: every process of the host dies at once."""
        pid = self.init_pid
        if pid:
            os.kill(pid, signal.SIGKILL)
            wait_until(f"{self.name} to be off", lambda: self.init_pid == 0)

    def enter(self, *argv: str) -> list[str]:
        """The command line that runs argv inside the host."""
        return ["nsenter", "-t", str(self.init_pid), "-m", "-u", "-i", "-n", "-p", "--", *argv]

    def run(self, *argv: str, check: bool = True, **keywords: Any) -> subprocess.CompletedProcess[str]:
        """Run a command inside the host."""
        return run(*self.enter(*argv), check=check, **keywords)


def namespaces() -> set[str]:
    """Names of all named network namespaces."""
    return {line.split()[0] for line in run("ip", "netns", "list").stdout.splitlines() if line.strip()}


def processes_naming(text: str) -> dict[int, str]:
    """Processes whose command line or environment's lab marker holds that text: pid -> command line."""
    found = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
        if text in command:
            found[int(entry.name)] = command.strip()
    return found


def erase(prefix: str, folder: Path) -> None:
    """Remove every trace of a lab, also of one whose maker crashed: processes, namespaces, mounts, files."""
    for pid, command in processes_naming(f"{folder}/").items():
        if INIT in command:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
    wait_until("the lab's processes to end", lambda: not any(INIT in c for c in processes_naming(f"{folder}/").values()))
    for name in sorted(namespaces()):
        if name.startswith(f"{prefix}-"):
            run("ip", "netns", "del", name)
    shutil.rmtree(folder, ignore_errors=False) if folder.exists() else None


def traces(prefix: str, folder: Path) -> list[str]:
    """What is left of a lab; empty after a clean `down`."""
    left = [f"process {pid}: {command[:100]}" for pid, command in processes_naming(f"{folder}/").items()]
    left += [f"network namespace {name}" for name in namespaces() if name.startswith(f"{prefix}-")]
    left += [f"folder {folder}"] if folder.exists() else []
    left += [f"mount {line.split()[1]}" for line in Path("/proc/mounts").read_text().splitlines() if f"{folder}/" in line]
    links = json.loads(run("ip", "-j", "link").stdout)
    left += [f"link {link['ifname']}" for link in links if link["ifname"].startswith(("tap-", "br-", "vx-", "l3x", prefix))]
    tables = run("nft", "list", "tables", check=False).stdout.splitlines()
    left += [f"nftables {table}" for table in tables if "cairn" in table]
    return left
