"""Where the hypervisor suite runs: on the fake's memory, and on a real libvirtd in a host of its own."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import pytest
from cairn.agent.hypervisor.base import ConsoleStream, Disk, Domain, DomainEvent, DomainSpec, Hypervisor
from cairn.agent.hypervisor.fake import FakeHost, FakeHypervisor
from cairn.proto.ids import mac_of, tap_of
from cairn.proto.seams import SystemClock
from cairn.proto.v1.agent_pb2 import DesiredVm, VmNic

from tests.lab import guest, libvirtd
from tests.lab.hosts import Host, wait_until

REASON = libvirtd.missing()
needs_libvirt = pytest.mark.skipif(bool(REASON), reason=REASON)
RealHost = tuple[libvirtd.Libvirtd, Host, Path]

DEADLINE_S = 60.0
MIB = 1024 * 1024
FOREIGN_XML = """<domain type='qemu'><name>{name}</name><memory unit='MiB'>64</memory>
<os><type arch='x86_64' machine='q35'>hvm</type></os></domain>"""


class World(Protocol):
    """A host with a hypervisor, as the tests play with it."""

    def driver(self) -> Hypervisor: ...
    def disk(self, volume: str, *, boot: bool = False, system: bool = False) -> Disk: ...
    def crash(self, id: str) -> None: ...
    def restart_daemon(self) -> None: ...
    def make_foreign(self, name: str) -> None: ...
    def foreign(self) -> set[str]: ...
    def taps(self) -> set[str]: ...
    def running(self) -> int: ...
    def suspend(self, id: str) -> None: ...
    def start_by_hand(self, id: str) -> None: ...
    def deafen(self, id: str) -> None: ...
    def size_bytes(self, disk: Disk) -> int: ...
    def small_disk(self, volume: str) -> Disk: ...
    def use_up(self, disk: Disk, console: ConsoleStream) -> Awaitable[None]: ...
    def make_room(self, disk: Disk) -> None: ...
    def console_log(self, id: str) -> str: ...
    def panic(self, id: str, console: ConsoleStream) -> Awaitable[None]: ...


@dataclass
class FakeWorld:
    """Everything in memory."""

    folder: Path
    host: FakeHost = field(default_factory=lambda: FakeHost(size_at=lambda _path: 64 * MIB))

    def driver(self) -> Hypervisor:
        return FakeHypervisor(self.host, SystemClock())

    def disk(self, volume: str, *, boot: bool = False, system: bool = False) -> Disk:
        return Disk(volume, str(self.folder / volume), "qcow2", boot=boot)

    def crash(self, id: str) -> None:
        self.host.crash(id)

    def restart_daemon(self) -> None:
        self.host.restart_daemon()

    def make_foreign(self, name: str) -> None:
        self.host.foreign.add(name)

    def foreign(self) -> set[str]:
        return set(self.host.foreign)

    def taps(self) -> set[str]:
        return set(self.host.taps)

    def running(self) -> int:
        return sum(guest.live is not None for guest in self.host.guests.values())

    def suspend(self, id: str) -> None:
        self.host.suspend(id)

    def start_by_hand(self, id: str) -> None:
        self.host.start_by_hand(id)

    def deafen(self, id: str) -> None:
        self.host.deaf.add(id)

    def size_bytes(self, disk: Disk) -> int:
        return self.host.grown.get(disk.volume, 64 * MIB)

    def small_disk(self, volume: str) -> Disk:
        return self.disk(volume)

    async def use_up(self, disk: Disk, console: ConsoleStream) -> None:
        self.host.fill(disk.volume)

    def make_room(self, disk: Disk) -> None:
        self.host.full.discard(disk.volume)

    def console_log(self, id: str) -> str:
        return ""

    async def panic(self, id: str, console: ConsoleStream) -> None:
        """Its kernel panics, and nobody ends its process."""
        self.host.panic(id)


@dataclass
class LibvirtWorld:
    """A real libvirtd and QEMU."""

    folder: Path
    settings: libvirtd.Libvirtd
    host: Host
    system_image: Path

    def driver(self) -> Hypervisor:
        from cairn.agent.hypervisor.libvirt import LibvirtHypervisor

        return LibvirtHypervisor(SystemClock(), self.settings.uri, leftover_s=0.0)

    def disk(self, volume: str, *, boot: bool = False, system: bool = False) -> Disk:
        path = self.folder / f"{volume}.qcow2"
        base = ["-b", str(self.system_image), "-F", "qcow2"] if system else []
        if not path.exists():
            subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", *base, str(path), "64M"], check=True)
        return Disk(volume, str(path), "qcow2", boot=boot)

    def virsh(self, *arguments: str) -> str:
        command = ["virsh", "-c", self.settings.uri, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    def crash(self, id: str) -> None:
        pid = (self.settings.folder / "run" / "qemu" / f"{id}.pid").read_text().strip()
        self.host.run("kill", "-9", pid)

    def hang(self, id: str) -> None:
        """Its process does nothing more, and does not end."""
        pid = (self.settings.folder / "run" / "qemu" / f"{id}.pid").read_text().strip()
        self.host.run("kill", "-STOP", pid)

    def restart_daemon(self) -> None:
        old = self.host.pid_of("libvirtd")
        self.host.kill("libvirtd")
        wait_until("libvirtd to come back", lambda: self.host.pid_of("libvirtd") not in (0, old) and self.settings.answers())

    def make_foreign(self, name: str) -> None:
        path = self.folder / "foreign.xml"
        path.write_text(FOREIGN_XML.format(name=name))
        self.virsh("define", str(path))
        self.virsh("start", name)

    def foreign(self) -> set[str]:
        return set(self.virsh("list", "--name").split())

    def taps(self) -> set[str]:
        listed = self.host.run("ip", "-o", "link").stdout.splitlines()
        return {name for line in listed if (name := line.split(":")[1].strip()).startswith("tap-")}

    def suspend(self, id: str) -> None:
        self.virsh("suspend", id)

    def start_by_hand(self, id: str) -> None:
        self.virsh("start", id)

    def deafen(self, id: str) -> None:
        """Without a system in it, it is deaf."""

    def size_bytes(self, disk: Disk) -> int:
        command = ["qemu-img", "info", "-U", "--output=json", disk.path]
        answer = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        return int(json.loads(answer)["virtual-size"])

    def console_log(self, id: str) -> str:
        return str(self.folder / f"{id}.log")

    async def panic(self, id: str, console: ConsoleStream) -> None:
        """Its kernel panics while the daemon hangs, which is then killed: nobody is left who ends its process."""
        await console.write(b"(sleep 3; echo c > /proc/sysrq-trigger) &\n")
        await read_until(console, "sysrq-trigger) &\r\n")
        self.host.kill("libvirtd", signal.SIGSTOP)
        log = Path(self.console_log(id))
        await asyncio.to_thread(wait_until, "the panic", lambda: "Kernel panic" in log.read_text(errors="replace"))
        await asyncio.to_thread(self.restart_daemon)

    def small_disk(self, volume: str) -> Disk:
        """A disk of 64 MiB on a file system with room for 4."""
        small = self.folder / "small"
        small.mkdir()
        self.host.run("mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(small))
        path = small / f"{volume}.qcow2"
        self.host.run("qemu-img", "create", "-q", "-f", "qcow2", str(path), "64M")
        return Disk(volume, str(path), "qcow2")

    async def use_up(self, disk: Disk, console: ConsoleStream) -> None:
        await console.write(b"dd if=/dev/urandom of=/dev/vdb bs=1M count=16; sync; echo writ''ten\n")

    def make_room(self, disk: Disk) -> None:
        self.host.run("mount", "-o", "remount,size=128m", str(Path(disk.path).parent))

    def running(self) -> int:
        return len(list((self.settings.folder / "run" / "qemu").glob("i-*.pid")))

    def clear(self) -> None:
        """Remove every domain and file of a test."""
        for name in self.virsh("list", "--all", "--name").split():
            subprocess.run(["virsh", "-c", self.settings.uri, "destroy", name], capture_output=True, check=False)
            self.virsh("undefine", name)
        if (self.folder / "small").is_dir():
            self.host.run("umount", str(self.folder / "small"))
        shutil.rmtree(self.folder)


def spec(world: World, id: str, *, cards: int = 0, system: bool = False, **changes: Any) -> DomainSpec:
    """A small guest; system: one that really boots, from the demo image."""
    number = id.partition("-")[2]
    ports = [f"nic-{number[:7]}{index}" for index in range(cards)]
    nics = [VmNic(port=port, tap=tap_of(port), mac=mac_of(port), mtu=1450) for port in ports]
    fields: dict[str, Any] = {"name": "web", "hostname": "web", "cpus": 1, "memory_bytes": 128 * MIB, "arch": "x86_64"}
    vm = DesiredVm(id=id, nics=nics, **(fields | changes))
    return DomainSpec(vm, (world.disk(f"vol-{number}", boot=True, system=system),))


async def observed(driver: Hypervisor, id: str) -> Domain | None:
    return next((domain for domain in await driver.list() if domain.id == id), None)


async def domain_when(driver: Hypervisor, id: str, wanted: Callable[[Domain], bool]) -> Domain:
    """The domain as soon as it is as wanted; fails with what it is instead."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + DEADLINE_S
    while True:
        domain = await observed(driver, id)
        if domain is not None and wanted(domain):
            return domain
        assert loop.time() < deadline, f"{id} stays {domain}"
        await asyncio.sleep(0.02)


async def read_until(console: ConsoleStream, text: str) -> str:
    """Console output up to and with some text."""
    seen = b""
    async with asyncio.timeout(DEADLINE_S):
        while text.encode() not in seen:
            data = await console.read()
            assert data, f"the console ended before {text!r}: {seen[-500:]!r}"
            seen += data
    return seen.decode(errors="replace")


async def next_event(events: Any, wanted: Callable[[DomainEvent], bool]) -> DomainEvent:
    async with asyncio.timeout(DEADLINE_S):
        async for event in events:
            if wanted(event):
                found: DomainEvent = event
                return found
    raise AssertionError("events ended")


def unique(prefix: str) -> str:
    """A name for namespaces: this process's own."""
    return f"{prefix}{os.getpid()}"


@pytest.fixture(scope="module")
def real_host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealHost]:
    """A libvirtd in a host of its own, and the image guests boot from."""
    folder = tmp_path_factory.mktemp("hv")
    image = guest.build(folder / "system.qcow2")
    libvirtd.warm(folder)
    with libvirtd.running(folder / "host", unique("chv")) as (settings, host):
        yield settings, host, image


@contextmanager
def libvirt_world(real: RealHost, folder: Path) -> Iterator[LibvirtWorld]:
    """A test's own use of the real host; it is empty again afterwards."""
    settings, host, image = real
    world = LibvirtWorld(folder, settings, host, image)
    folder.mkdir()
    try:
        yield world
    finally:
        world.clear()
