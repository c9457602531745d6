"""What breaks, from a seed: processes killed with signal 9, links cut, servers without power. Each is logged and counted.

    faults = Faults(lab, "1/faults", well, note)
    await faults.run(until_s); await faults.calm()

Two streams, each with pauses of its own. One kills processes that may die alone: agents, libvirtd, controllers (also all of
these at once). The other does what costs an etcd member: kill it, cut its server off, take the power. It does one thing at a
time and waits until the member is well again: what is lost with a majority of members is not what we look for. Only processes
the lab started are killed, each by the pid file of its server.
"""

from __future__ import annotations

import asyncio
import random
import signal
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any, Final

from tests.lab.hosts import Host, LabError, run
from tests.lab.lab import Lab

TABLE: Final = "twin"
ALONE: Final = ("agent", "agent", "agent", "libvirtd", "libvirtd", "controller", "controller")
WELL_S: Final = 90.0
Fault = Callable[[], Awaitable[None]]


class Faults:
    """well: whether the etcd member of a server is. `struck` counts by kind."""

    def __init__(self, lab: Lab, seed: str, well: Callable[[Host], Awaitable[bool]], note: Callable[[str], None]) -> None:
        self._lab, self._well, self._note = lab, well, note
        self._draw = {name: random.Random(f"{seed}/{name}") for name in ("alone", "members")}
        self.struck: Counter[str] = Counter()
        # Kills of each server's services, to tell them from ends nobody caused.
        self.killed: Counter[tuple[str, str]] = Counter()

    async def run(self, until_s: float) -> None:
        """Let things break until then (the loop's time), and be mended."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._stream("alone", self._alone, until_s, (0.5, 4.0)))
            group.create_task(self._stream("members", self._members, until_s, (2.0, 10.0)))

    async def calm(self) -> None:
        """Everything runs and reaches everything again."""
        for index, host in enumerate(self._lab.hosts, 1):
            self._plug(index, up=True)
            await self._power_on(host)
            for service in host.services:
                host.start(service)
        # Adding what is there is no error, so this is none either when it is not.
        _nft(f"add table bridge {TABLE}", f"delete table bridge {TABLE}")

    async def all_restarted(self) -> None:
        """Kill every process of ours, of etcd and of libvirt, and let all start again."""
        for host in self._lab.hosts:
            for service in host.services:
                self._kill(host, service)
        while not all(host.pid_of(service) for host in self._lab.hosts for service in host.services):
            await asyncio.sleep(0.1)

    async def _stream(self, name: str, strike: Callable[[random.Random], Fault], until_s: float, pause: Any) -> None:
        loop, draw = asyncio.get_running_loop(), self._draw[name]
        while True:
            # All is drawn whether or not it can be done now: what follows does not depend on it.
            fault, pause_s = strike(draw), draw.uniform(*pause)
            await asyncio.sleep(max(0.0, min(pause_s, until_s - loop.time())))
            if loop.time() >= until_s:
                return
            await fault()

    # --- who may die alone -------------------------------------------------------------------------------------------------

    def _alone(self, draw: random.Random) -> Fault:
        host, service, down_s = draw.choice(self._lab.hosts), draw.choice(ALONE), draw.choice((0.0, 0.0, 0.0, 2.0, 8.0))
        if draw.random() < 0.1:
            return lambda: self._all_of(service, down_s)
        return lambda: self._die([host], service, down_s)

    async def _all_of(self, service: str, down_s: float) -> None:
        await self._die([host for host in self._lab.hosts if service in host.services], service, down_s)

    async def _die(self, hosts: list[Host], service: str, down_s: float) -> None:
        """Kill them; down_s 0: they are started again at once, as a supervisor does."""
        struck = [host for host in hosts if self._kill(host, service)]
        if struck:
            self.struck[f"kill {'every ' if len(hosts) > 1 else ''}{service}"] += 1
        for host in struck if down_s else []:
            host.hold(service)
        await asyncio.sleep(down_s)
        for host in struck:
            host.start(service)

    def _kill(self, host: Host, service: str) -> bool:
        pid = host.pid_of(service)
        if not pid:
            return False
        self._note(f"kill -9 {service} on {host.name}")
        self.killed[host.name, service] += 1
        host.kill(service, signal.SIGKILL)
        return True

    # --- what costs a member -------------------------------------------------------------------------------------------------

    def _members(self, draw: random.Random) -> Fault:
        index = draw.randrange(len(self._lab.hosts))
        host, other = self._lab.hosts[index], self._lab.hosts[(index + 1) % len(self._lab.hosts)]
        for_s, source_first = draw.choice((1.0, 4.0, 12.0, 25.0)), draw.random() < 0.5
        kind = draw.choice(("kill etcd", "kill etcd", "cut", "cut", "one way", "pair", "unplug", "power loss"))
        return lambda: self._cost_a_member(kind, host, other, for_s, source_first)

    async def _cost_a_member(self, kind: str, host: Host, other: Host, for_s: float, source_first: bool) -> None:
        name, port = host.name, f"u{self._lab.hosts.index(host) + 1}"
        peer = f"u{self._lab.hosts.index(other) + 1}"
        self._note(f"{kind} {name} for {for_s:.0f} s")
        match kind:
            case "kill etcd":
                await self._die([host], "etcd", min(for_s, 12.0) if for_s > 1.0 else 0.0)
            case "cut":
                await self._drop(for_s, f"iifname {port} drop", f"oifname {port} drop")
            case "one way":
                await self._drop(for_s, f"{'iifname' if source_first else 'oifname'} {port} drop")
            case "pair":
                await self._drop(for_s, f"iifname {port} oifname {peer} drop", f"iifname {peer} oifname {port} drop")
            case "unplug":
                self._plug(self._lab.hosts.index(host) + 1, up=False)
                await asyncio.sleep(for_s)
                self._plug(self._lab.hosts.index(host) + 1, up=True)
            case "power loss":
                await asyncio.to_thread(host.power_off)
                await asyncio.sleep(for_s)
                await self._power_on(host)
        if kind != "kill etcd":
            self.struck[kind] += 1
        await self._mended(host)

    async def _drop(self, for_s: float, *rules: str) -> None:
        """Let the underlay's bridge drop frames for a while. This process is in its namespace."""
        lines = [f"add table bridge {TABLE}", f"add chain bridge {TABLE} cut {{ type filter hook forward priority 0; }}"]
        _nft(*lines, *(f"add rule bridge {TABLE} cut {rule}" for rule in rules))
        await asyncio.sleep(for_s)
        _nft(f"delete table bridge {TABLE}")

    def _plug(self, index: int, *, up: bool) -> None:
        run("ip", "link", "set", f"u{index}", "up" if up else "down")

    async def _power_on(self, host: Host) -> None:
        if not host.init_pid:
            await asyncio.to_thread(host.boot)

    async def _mended(self, host: Host) -> None:
        """Wait until the server's member answers and follows a leader."""
        try:
            async with asyncio.timeout(WELL_S):
                while "etcd" in host.services and not await self._well(host):
                    await asyncio.sleep(0.3)
        except TimeoutError as error:
            raise LabError(f"etcd on {host.name} is not well {WELL_S:.0f} s after it was mended") from error


def _nft(*lines: str) -> None:
    run("nft", "-f", "-", input="\n".join(lines) + "\n")
