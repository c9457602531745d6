"""A simulated server: what of a node is there whatever happens to its agent, and the picture of it that checkers see.

The drivers' fakes hold their truth apart from the agent (FakeHost, FakePool, FakeNetHost, files, a disk that forgets what was
not synced). `changed` is told of every effect on guests, volumes, networks and files, `accepted` whenever the ledger became
durable.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Final, TypeVar

from cairn.agent.hypervisor.base import FaultKnobs
from cairn.agent.hypervisor.events import Notices
from cairn.agent.hypervisor.fake import FakeHost
from cairn.agent.ledger import NAME as LEDGER
from cairn.net import fake as net_fake
from cairn.net.fake import FakeGuestServices, FakeNetHost
from cairn.proto.v1.agent_pb2 import DesiredVm
from cairn.proto.v1.node_pb2 import NodeFacts
from cairn.storage.fake import FakePool
from cairn.storage.fake_shared import SharedPool

from tests.sim.cloud import Card, Definition, Guest, Host, LedgerReader
from tests.sim.loop import PROCESS
from tests.unit.agent_kit import MemoryDisk

GIB: Final = 1 << 30


class ToldNotices(Notices):
    """A hypervisor's notices, also told to whoever watches the machine. `lost`: listeners hear of none of them."""

    def __init__(self, told: Callable[[], None]) -> None:
        super().__init__()
        self._told = told
        self.lost = False

    def tell(self, id: str) -> None:
        """Tell every listener, then the watcher."""
        if not self.lost:
            super().tell(id)
        self._told()


K = TypeVar("K")
V = TypeVar("V")


class ToldDict(dict[K, V]):
    """A table that tells of every change."""

    told: Callable[[], None] = staticmethod(lambda: None)

    def __setitem__(self, key: K, value: V) -> None:
        same = key in self and self[key] == value
        super().__setitem__(key, value)
        if not same:
            self.told()

    def pop(self, key: K, *default: Any) -> Any:
        """Remove."""
        there = key in self
        value = super().pop(key, *default)
        if there:
            self.told()
        return value


@dataclass(slots=True)
class ToldNet(FakeNetHost):
    """A kernel that tells of every action done to it."""

    told: Callable[[], None] = lambda: None

    def perform(self, action: Any) -> None:
        """Do it, then tell."""
        FakeNetHost.perform(self, action)
        self.told()


@dataclass
class SimDisk(MemoryDisk):
    """A disk that tells when something became durable, and can refuse the next writes (`errors`: how many), or all (`full`).

    Syncs can be slow (`sync_s`): then time goes by between a write and its being durable, in which anything may happen.
    """

    durable_changed: Callable[[], None] = lambda: None
    errors: int = 0
    full: bool = False

    async def replace(self, name: str, content: bytes) -> None:
        """Write durably."""
        self._fault()
        await super().replace(name, content)
        self.durable_changed()

    async def append(self, name: str, content: bytes) -> None:
        """Add bytes; a fault may come before the first of them, or take their being durable."""
        self._fault(writes=bool(content))
        if content:
            self.files[name] = self.files.get(name, b"") + content
        await asyncio.sleep(self.sync_s)
        self._fault(writes=False)
        self.syncs += 1
        self.durable[name] = self.files[name]
        self.durable_changed()

    def leave(self, name: str, content: bytes) -> None:
        """Have there, durably, what another release wrote: no write of this one, so none that is to fail."""
        self.files[name] = self.durable[name] = content
        self.durable_changed()

    def _fault(self, *, writes: bool = True) -> None:
        if self.errors > 0:
            self.errors -= 1
            raise OSError(5, "Input/output error")
        if self.full and writes:
            raise OSError(28, "No space left on device")


class SimInventory:
    """A server with some threads and memory."""

    def __init__(self, threads: int, memory_bytes: int) -> None:
        self._threads, self._memory_bytes = threads, memory_bytes

    async def collect(self) -> NodeFacts:
        """Return what it has."""
        facts = NodeFacts(arch="x86_64", memory_bytes=self._memory_bytes)
        facts.cpu.threads = self._threads
        return facts


@dataclass
class Machine:
    """See the module."""

    name: str
    index: int
    # Node id; empty before it has joined.
    id: str = ""
    threads: int = 16
    memory_bytes: int = 24 * GIB
    pool: FakePool = field(default_factory=FakePool)
    # What every node reaches, and the sizes that guests here gave volumes in it.
    tank: SharedPool = field(default_factory=lambda: SharedPool("tank"))
    looked: dict[str, int] = field(default_factory=dict)
    net: ToldNet = field(default_factory=ToldNet)
    files: ToldDict[str, bytes] = field(default_factory=ToldDict)
    disk: SimDisk = field(default_factory=SimDisk)
    knobs: FaultKnobs = field(default_factory=FaultKnobs)
    net_knobs: net_fake.FaultKnobs = field(default_factory=net_fake.FaultKnobs)
    boots: int = 1
    # It left the cloud, or never came: nobody expects anything of it.
    away: bool = False
    changed: Callable[[Machine], None] = lambda _machine: None
    accepted: Callable[[Machine], None] = lambda _machine: None

    @property
    def vtep(self) -> str:
        """Address of its tunnels."""
        return f"10.255.{self.index >> 8}.{self.index & 255}"

    def __post_init__(self) -> None:
        notices = self.notices = ToldNotices(self._feel)
        self.pool.volumes = volumes = ToldDict(self.pool.volumes)
        self.pool.images = images = ToldDict(self.pool.images)
        volumes.told = images.told = self.files.told = self.net.told = self._feel
        # Guest -> its process and the configuration it was started with: a new one counts from the next start.
        self._started: dict[str, tuple[Any, Any]] = {}
        self.effects = 0
        # Of the agent that runs, or ran last.
        self.services = FakeGuestServices()
        self.host = FakeHost(taps=self.net.taps, boot_s=2.0, shutdown_s=3.0, notices=notices)
        self.host.size_at, self.host.on_grow = self._size_at, self._grown
        self.disk.durable_changed = lambda: self.accepted(self)
        self._reader = LedgerReader()

    def _size_at(self, path: str) -> int:
        return self.tank.size_at(path) or self.pool.size_at(path)

    def _grown(self, path: str, size_bytes: int) -> None:
        """A guest's process gives what it has open this size."""
        if not self.tank.size_at(path):
            self.pool.grow(path, size_bytes)
            return
        self.looked[path.removeprefix(f"{self.tank.name}/")] = size_bytes
        self._feel()
        self.tank.set_size(path, size_bytes)

    def _feel(self) -> None:
        """Something was done to this server."""
        self.effects += 1
        for id, guest in self.host.guests.items():
            if guest.live is not None and self._started.get(id, (None, None))[0] is not guest.live:
                self._started[id] = (guest.live, guest.spec.vm)
        self.changed(self)

    def running(self) -> list[str]:
        """Return the guests that execute instructions."""
        return sorted(id for id, guest in self.host.guests.items() if guest.live is not None and not guest.live.paused)

    def open_volumes(self) -> list[str]:
        """Return the volumes that guests which are on have open, each as often as there are such guests."""
        return [volume for guest in self.host.guests.values() if guest.live is not None for volume in guest.live.disks]

    def lose_power(self, torn: int) -> None:
        """Guests, networks and unsynced bytes are gone."""
        self.host.power_off()
        self.net.networks.clear()
        self.net.taps.clear()
        self.disk.lose_power(torn)
        self.boots += 1

    def calm(self) -> None:
        """Nothing fails on purpose any more."""
        for knobs in (self.knobs, self.net_knobs):
            knobs.fail_before.clear()
            knobs.fail_after.clear()
            knobs.let_go()
        self.pool.faults.clear()
        self.pool.faults_after.clear()
        self.pool.let_go()
        self.pool.foreign_bytes = 0
        self.host.deaf.clear()
        self.host.clinging.clear()
        self.host.full.clear()
        for id in self.host.guests:
            self.host.resume_by_hand(id)
        self.notices.lost = False
        self.disk.errors, self.disk.full, self.disk.sync_s = 0, False, 0.0

    def picture(self) -> Host:
        """Return what is there now."""
        self._reader.read(self.disk.durable.get(LEDGER, b""))
        networks = self.net.networks
        return Host(
            node=self.id,
            name=self.name,
            guests={guest.id: guest for guest in self._guests()},
            definitions={id: self._definition(guest) for id, guest in self.host.guests.items()},
            volumes={id: volume.size_bytes for id, volume in self.pool.volumes.items()},
            grown=dict(self.host.grown),
            looked=dict(self.looked),
            images=frozenset(self.pool.images),
            partials=frozenset(self.pool.partials),
            ports={vpc: frozenset(port for port in net.bound if self.net.is_bound(port)) for vpc, net in networks.items()},
            forwards={vpc: {port: each.vtep for port, each in net.forwards.items()} for vpc, net in networks.items()},
            subnets={vpc: frozenset(subnet.id for subnet in net.network.subnets) for vpc, net in networks.items()},
            peers={vpc: frozenset(peer.vtep for peer in net.network.peers) for vpc, net in networks.items()},
            names=lambda: self.services.names.everything(),
            damaged=frozenset(vpc for vpc, net in networks.items() if not net.complete),
            seeds={id: _told(content) for id, content in self.files.items()},
            files=frozenset(self.files),
            ledger=dict(self._reader.keys),
            held=self._reader.held,
            wanted=dict(self._reader.wanted),
            told=dict(self._reader.told),
            boots=len(self.host.boots),
            effects=self.effects,
            away=self.away,
            by=PROCESS.get().partition(".")[0],
        )

    @staticmethod
    def _definition(guest: Any) -> Definition:
        return Definition(guest.spec.vm.cpus, guest.spec.vm.memory_bytes, frozenset(guest.disks))

    def _guests(self) -> list[Guest]:
        found = []
        for id, guest in self.host.guests.items():
            live = guest.live
            if live is None:
                continue
            vm = self._started[id][1]
            cards = tuple(
                Card(nic.port, nic.subnet, ",".join(nic.addresses) or nic.address, nic.mac)
                for nic in vm.nics
                if nic.tap in live.taps
            )
            # What it was shut out of it cannot touch any more.
            open = tuple(id for id in live.disks if id not in live.connections or not live.connections[id].is_out)
            found.append(Guest(id, not live.paused, vm.cpus, vm.memory_bytes, cards, open, dict(live.seen)))
        return found


@lru_cache(maxsize=4096)
def _told(seed: bytes) -> tuple[tuple[str, ...], bytes]:
    """Return what the guest reads of its seed, which the fake keeps as the object it was made from."""
    vm = DesiredVm.FromString(seed)
    return tuple(vm.ssh_keys), vm.user_data
