"""A whole cloud in one process, on virtual time, from one seed: the product's own controllers and agents, unchanged.

    async def scenario() -> None:
        world = World(seed, controllers=3, nodes=4)
        await world.start()
        vm = await world.client.create_vm("web")
        world.crash("c1"); world.lose_power("n2"); ...; world.restart("c1")

What survives a process is here: the store's backend, and per node the machine with its disk, guests, volumes and networks.
A process lives until `crash` and is made anew by `restart`; its name with the number of its life is in every trace line.
"""

from __future__ import annotations

import asyncio
import contextvars
import random
from collections.abc import Callable, MutableMapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import structlog
from cairn.agent.app import Agent
from cairn.agent.config import Config as AgentConfig
from cairn.agent.guestfiles import FakeGuestFiles
from cairn.agent.hypervisor.base import FaultKnobs
from cairn.agent.hypervisor.fake import FakeHost, FakeHypervisor
from cairn.agent.identity import Membership
from cairn.controller.api import nouns, resolution
from cairn.controller.app import Controller
from cairn.controller.config import Config
from cairn.controller.store.base import Store, Txn
from cairn.controller.store.memory import MemoryBackend, MemoryStore
from cairn.controller.store.view import LiveView
from cairn.net import fake as net_fake
from cairn.net.fake import FakeDataplane, FakeGuestServices, FakeNetHost
from cairn.proto import kinds
from cairn.proto.log import hide_secrets
from cairn.proto.pki import Identity
from cairn.proto.seams import ID_ALPHABET, ID_LENGTH, timestamp
from cairn.proto.v1.node_pb2 import Node, NodeFacts
from cairn.storage.fake import FakeImages, FakePool, FakeVolumes

from tests.sim.client import SimClient
from tests.sim.loop import PROCESS, SimLoop
from tests.sim.network import Network
from tests.sim.transport import SimTransport
from tests.unit.agent_kit import MemoryDisk

GIB: Final = 1 << 30
START: Final = datetime(2030, 1, 1, tzinfo=UTC)
START_S: Final = 60.0


class SimClock:
    """Wall clock of one process: the loop's time and an error of its own."""

    def __init__(self, loop: SimLoop, skew_s: float) -> None:
        self._loop, self.skew_s = loop, skew_s

    def now(self) -> datetime:
        return START + timedelta(seconds=self._loop.time() + self.skew_s)


class SimIds:
    """Identifiers of one life of a process."""

    def __init__(self, seed: str) -> None:
        self._random = random.Random(seed)

    def new(self, prefix: str) -> str:
        return prefix + "-" + "".join(self._random.choices(ID_ALPHABET, k=ID_LENGTH))

    def uuid(self) -> str:
        digits = f"{self._random.getrandbits(128):032x}"
        return f"{digits[:8]}-{digits[8:12]}-4{digits[13:16]}-8{digits[17:20]}-{digits[20:]}"

    def secret(self, nbytes: int) -> bytes:
        return self._random.randbytes(nbytes)

    def jitter(self) -> float:
        return self._random.random()


class SimInventory:
    """A server with some threads and memory."""

    async def collect(self) -> NodeFacts:
        facts = NodeFacts(arch="x86_64", memory_bytes=16 * GIB)
        facts.cpu.threads = 8
        return facts


@dataclass
class Machine:
    """What of a node is there whatever happens to its agent."""

    name: str
    id: str
    index: int
    pool: FakePool = field(default_factory=FakePool)
    net: FakeNetHost = field(default_factory=FakeNetHost)
    files: dict[str, bytes] = field(default_factory=dict)
    disk: MemoryDisk = field(default_factory=MemoryDisk)
    knobs: FaultKnobs = field(default_factory=FaultKnobs)
    net_knobs: net_fake.FaultKnobs = field(default_factory=net_fake.FaultKnobs)
    boots: int = 1

    def __post_init__(self) -> None:
        self.host = FakeHost(taps=self.net.taps, boot_s=2.0, shutdown_s=3.0)

    def running(self) -> list[str]:
        """Return the guests that execute instructions."""
        return sorted(id for id, guest in self.host.guests.items() if guest.live is not None and not guest.live.paused)

    def is_empty(self) -> bool:
        """Tell whether nothing of any guest is left."""
        return not (self.host.guests or self.files or self.pool.volumes or self.net.networks or self.net.taps)

    def lose_power(self, torn: int) -> None:
        """Guests, networks and unsynced bytes are gone."""
        self.host.power_off()
        self.net.networks.clear()
        self.net.taps.clear()
        self.disk.lose_power(torn)
        self.boots += 1


@dataclass
class Process:
    """One life of a controller or agent."""

    name: str
    life: int
    what: Controller | Agent
    clock: SimClock
    task: asyncio.Task[None]

    @property
    def label(self) -> str:
        """Name and life."""
        return f"{self.name}.{self.life}"


class World:
    """See the module. Made inside the loop. `store` makes the store of a controller: faults wrap it there."""

    def __init__(
        self,
        seed: int | str,
        *,
        controllers: int = 3,
        nodes: int = 3,
        skew_s: float = 0.5,
        store: Callable[[str, MemoryBackend], Store] | None = None,
    ) -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, SimLoop)
        self.loop, self.seed, self.skew_s = loop, seed, skew_s
        self.random = random.Random(f"{seed}/world")
        self.network = Network(loop, seed)
        self.backend = MemoryBackend()
        self._make_store = store or (lambda _name, backend: MemoryStore(backend))
        self.controllers = [f"c{number}" for number in range(1, controllers + 1)]
        self.endpoints = tuple(f"{name}:7443" for name in self.controllers)
        ids = SimIds(f"{seed}/nodes")
        names = [f"n{number}" for number in range(1, nodes + 1)]
        self.machines = {name: Machine(name, ids.new("node"), index) for index, name in enumerate(names, 1)}
        self.processes: dict[str, Process] = {}
        self._lives: dict[str, int] = {}
        self.client = self.connect("admin")
        self._log_to_trace()

    def note(self, text: str) -> None:
        """Tell the trace."""
        self.loop.trace.note(self.loop.time(), PROCESS.get(), text)

    def connect(self, name: str) -> SimClient:
        """Return a new client of the API, a user with that name."""
        ids = SimIds(f"{self.seed}/client/{name}")
        transport = SimTransport(self.network, f"user-{name}", Identity("user", name), ids)
        return SimClient(transport, self.endpoints, ids, self.note)

    # --- life and death ------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Make the nodes known, start everything, wait until all nodes are connected."""
        await self._enrol()
        for name in (*self.controllers, *self.machines):
            self.restart(name)
        await self.until("all nodes to be connected", lambda: len(self.connected()) == len(self.machines), START_S)

    async def _enrol(self) -> None:
        store, view, now = MemoryStore(self.backend), LiveView(), timestamp(START)
        for machine in self.machines.values():
            node = Node(id=machine.id, name=machine.name, create_time=now, update_time=now)
            node.spec.index = machine.index
            txn = Txn("api").create(kinds.NODE, node.id, node)
            resolution.claim(txn, view, nouns.NODE, "", machine.name, node.id)
            await store.commit(txn)

    def alive(self, name: str) -> bool:
        """Tell whether a process lives."""
        return name in self.processes

    def restart(self, name: str) -> None:
        """Begin the next life of a process."""
        if name in self.processes:
            return
        life = self._lives[name] = self._lives.get(name, 0) + 1
        label = f"{name}.{life}"
        self.note(f"start {label}")
        context = contextvars.copy_context()
        context.run(PROCESS.set, label)
        clock = SimClock(self.loop, self.random.uniform(-self.skew_s, self.skew_s))
        make = self._controller if name in self.controllers else self._agent
        what = context.run(make, name, label, clock)
        task = self.loop.create_task(self._live(label, what), name=label, context=context)
        self.processes[name] = Process(name, life, what, clock, task)

    async def _live(self, label: str, what: Controller | Agent) -> None:
        try:
            await what.start()
            await what.wait()
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            self.loop.faults.append(f"{label} has failed: {error!r}")
            raise
        self.loop.faults.append(f"{label} has ended by itself")

    def crash(self, name: str) -> None:
        """Kill -9: nothing of it runs any more; its kernel resets its connections."""
        process = self.processes.pop(name, None)
        if process is not None:
            self.note(f"crash {process.label}")
            self.loop.kill(process.label)
            self.network.lose(name, silently=False)

    def crash_within(self, name: str, steps: int) -> None:
        """Crash a process after it has taken so many more steps, at whatever await that is."""
        if name in self.processes:
            self.loop.light_fuse(self.processes[name].label, steps, lambda: self.crash(name))

    def lose_power(self, name: str) -> None:
        """The node's power goes: the agent, the guests and what was not synced with it."""
        self.note(f"power loss {name}")
        process = self.processes.pop(name, None)
        if process is not None:
            self.loop.kill(process.label)
        self.network.lose(name, silently=True)
        self.machines[name].lose_power(self.random.randrange(64))

    def restart_all(self) -> None:
        """Whoever is dead lives again."""
        for name in (*self.controllers, *self.machines):
            self.restart(name)

    def _controller(self, name: str, label: str, clock: SimClock) -> Controller:
        ids = SimIds(f"{self.seed}/{label}")
        transport = SimTransport(self.network, name, Identity("controller", name), ids)
        config = Config(
            name=name, listen=(f"{name}:7443",), etcd_endpoints=("store:2379",),
            etcd_ca="", etcd_cert="", etcd_key="", ca="", cert="", key="",
        )  # fmt: skip
        return Controller(config, self._make_store(name, self.backend), transport, clock, ids)

    def _agent(self, name: str, label: str, clock: SimClock) -> Agent:
        machine, ids = self.machines[name], SimIds(f"{self.seed}/{label}")
        config = AgentConfig(name=name, listen=f"{name}:7446", vtep=f"192.0.2.{machine.index}", underlay_mtu=1500)
        return Agent(
            config,
            SimTransport(self.network, name, Identity("node", machine.id), ids),
            clock,
            ids,
            machine.disk,
            FakeHypervisor(machine.host, clock, machine.knobs, latency_s=0.02),
            FakeVolumes(machine.pool),
            FakeImages(machine.pool),
            FakeDataplane(machine.net, machine.net_knobs, latency_s=0.01),
            FakeGuestServices(),
            SimInventory(),
            membership=Membership(machine.id, self.endpoints),
            files=FakeGuestFiles(machine.files),
            boot_id=f"boot-{machine.boots}",
        )

    # --- what a stranger sees ------------------------------------------------------------------------------------------------

    def connected(self) -> list[str]:
        """Return ids of the nodes with a session in the store."""
        return [item.key.rpartition("/")[2] for item in self.backend.scan(*_range(kinds.NODE_SESSION.prefix), 0, 0)]

    def count(self, kind: Any) -> int:
        """Return how many records of a kind the store holds."""
        return len(self.backend.scan(*_range(kind.prefix), 0, 0))

    def running(self) -> list[tuple[str, str]]:
        """Return (guest, node) of every guest that runs anywhere."""
        return sorted((id, name) for name, machine in self.machines.items() for id in machine.running())

    async def until(self, what: str, probe: Callable[[], bool], timeout_s: float) -> None:
        """Wait in virtual time for a condition."""
        try:
            async with asyncio.timeout(timeout_s):
                while not probe():
                    await asyncio.sleep(0.1)
        except TimeoutError as error:
            raise AssertionError(f"waited {timeout_s:.0f} s for {what}") from error

    def _log_to_trace(self) -> None:
        """The product's own log lines are part of the story."""

        def keep(_logger: object, level: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
            error = event.pop("exc_info", None)
            if isinstance(error, BaseException):
                event["error"] = repr(error)
                self.loop.faults.append(f"{PROCESS.get()} {event}")
            text = " ".join(f"{key}={event[key]!s}" for key in sorted(event) if key != "event")
            self.note(f"{level} {event.get('event')} {text}")
            raise structlog.DropEvent

        structlog.configure(processors=[hide_secrets, keep], cache_logger_on_first_use=False)


def _range(prefix: str) -> tuple[str, str]:
    return prefix, prefix[:-1] + chr(ord(prefix[-1]) + 1)
