"""A whole cloud in one process, on virtual time, from one seed: the product's own controllers and agents, unchanged.

    async def scenario() -> None:
        world = World(seed, controllers=3, nodes=4)
        await world.start()
        vm = await world.client.create_vm("web")
        world.crash("c1"); world.lose_power("n2"); ...; world.restart("c1")

What survives a process is here: the store's backend, and per node the machine (machine.py) with its disk, guests, volumes and
networks. A process lives until `crash` and is made anew by `restart`; its name with the number of its life is in every trace
line. A referee, if one is given, sees every commit, every change of a host and every trace line.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import contextvars
import random
from collections.abc import Callable, Coroutine, Iterator, MutableMapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import structlog
from cairn.agent.app import Agent
from cairn.agent.config import Config as AgentConfig
from cairn.agent.guestfiles import FakeGuestFiles
from cairn.agent.hypervisor.fake import FakeHypervisor
from cairn.agent.identity import Membership
from cairn.agent.ledger import NAME as LEDGER
from cairn.controller.api import nouns, resolution
from cairn.controller.api.chain import Link, append
from cairn.controller.app import Controller
from cairn.controller.config import Config
from cairn.controller.model.permits import Caller
from cairn.controller.model.roles import ADMINISTRATOR, builtin_id
from cairn.controller.openid import FakeIdentities
from cairn.controller.store.base import Txn
from cairn.controller.store.memory import MemoryStore
from cairn.controller.store.view import LiveView
from cairn.net.fake import FakeDataplane, FakeGuestServices
from cairn.proto import kinds
from cairn.proto.log import hide_secrets
from cairn.proto.pki import Authority, Identity
from cairn.proto.sealing import KEY_BYTES, Seals
from cairn.proto.seams import ID_ALPHABET, ID_LENGTH, timestamp
from cairn.proto.v1.audit_pb2 import Audit
from cairn.proto.v1.binding_pb2 import Binding
from cairn.proto.v1.node_pb2 import Node
from cairn.proto.v1.user_pb2 import User
from cairn.storage.fake import FakeImages, FakeVolumes
from cairn.storage.fake_shared import FakeSharedVolumes, SharedPool

from tests.sim.client import SimClient
from tests.sim.filed import Filed
from tests.sim.loop import PROCESS, SimLoop
from tests.sim.machine import Machine, SimInventory, ToldDict
from tests.sim.network import Faults, Network
from tests.sim.referee import Referee
from tests.sim.releases import Releases, noted
from tests.sim.store import SimBackend, SimStore, StoreFaults
from tests.sim.transport import SimTransport

START: Final = datetime(2030, 1, 1, tzinfo=UTC)
START_S: Final = 60.0
# Whoever may ask in a story, and so many that make load.
USERS: Final = tuple(f"u{number}" for number in range(1, 21))
LOADS: Final = 4
STAFF: Final = "staff"
# So few records of the audit are kept that each story lets some go, and so many more there may be when files cannot be written.
AUDITS_KEPT: Final = 60
AUDITS_OVER: Final = 100
SEALS: Final = Seals([bytes(range(KEY_BYTES))])


class SimClock:
    """Wall clock of one process: the loop's time and an error of its own."""

    def __init__(self, loop: SimLoop, skew_s: float) -> None:
        self._loop, self.skew_s = loop, skew_s

    def now(self) -> datetime:
        return START + timedelta(seconds=self._loop.time() + self.skew_s)


class SimIds:
    """Identifiers of one life of a process. secrets: takes every secret made."""

    def __init__(self, seed: str, secrets: set[str] | None = None) -> None:
        self._random, self._secrets = random.Random(seed), secrets

    def new(self, prefix: str) -> str:
        return prefix + "-" + "".join(self._random.choices(ID_ALPHABET, k=ID_LENGTH))

    def uuid(self) -> str:
        digits = f"{self._random.getrandbits(128):032x}"
        return f"{digits[:8]}-{digits[8:12]}-4{digits[13:16]}-8{digits[17:20]}-{digits[20:]}"

    def secret(self, nbytes: int) -> bytes:
        made = self._random.randbytes(nbytes)
        if self._secrets is not None:
            self._secrets |= {made.hex(), base64.urlsafe_b64encode(made).decode().rstrip("=")}
        return made

    def jitter(self) -> float:
        return self._random.random()


@dataclass
class Process:
    """One life of a controller or agent."""

    name: str
    life: int
    what: Controller | Agent
    clock: SimClock
    task: asyncio.Task[None]
    store: SimStore | None = None

    @property
    def label(self) -> str:
        """Name and life."""
        return f"{self.name}.{self.life}"


class World:
    """See the module. Made inside the loop. `store_faults` and `network.faults` may be changed while it runs."""

    def __init__(
        self,
        seed: int | str,
        *,
        controllers: int = 3,
        nodes: int = 3,
        skew_s: float = 0.5,
        threads: int = 16,
        memory_gib: int = 24,
        referee: Callable[[SimLoop], Referee] | None = None,
    ) -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, SimLoop)
        self.loop, self.seed, self.skew_s = loop, seed, skew_s
        self.random = random.Random(f"{seed}/world")
        self.network = Network(loop, seed)
        self.backend, self.store_faults = SimBackend(), StoreFaults()
        self.referee = referee(loop) if referee is not None else Referee([], loop.fail)
        self.referee.cloud.clock = self.now
        self.backend.observers.append(self.referee.batch)
        self.backend.elected = self._elected
        loop.trace.listeners.append(self.referee.line)
        self.controllers = [f"c{number}" for number in range(1, controllers + 1)]
        self.endpoints = tuple(f"{name}:7443" for name in self.controllers)
        # Its key comes from the operating system: nothing that is drawn or told depends on it.
        self.authority = Authority.create("sim", SimClock(loop, 0.0), SimIds(f"{seed}/authority"))
        self.filed = Filed(self.controllers, self.authority)
        self.referee.cloud.filed = self.filed.holds
        self._threads, self._memory_bytes = threads, memory_gib << 30
        self.machines: dict[str, Machine] = {}
        self.tank = SharedPool("tank", told=self.look)  # What every node reaches, whichever of them live.
        self.tank.volumes = in_tank = ToldDict(self.tank.volumes)
        in_tank.told = self._pool_changed
        for number in range(1, nodes + 1):
            self.add_machine(f"n{number}")
        self.processes: dict[str, Process] = {}
        # What is still to happen once the story is over and all is at rest.
        self.at_rest: list[Callable[[], Coroutine[Any, Any, None]]] = []
        # Key of a record that is spoiled -> what puts the good bytes back; how many want none to be.
        self.spoiled: dict[str, Callable[[], None]] = {}
        # Keys of those that were: their revisions are another's doing.
        self.were_spoiled: set[str] = set()
        self.stay_whole = 0
        # What runs beside the product in each process from now on, and lives as long.
        self.beside: list[Callable[[Process], Coroutine[Any, Any, None]]] = []
        # Where files are that the story needs.
        self.folders: list[str] = []
        # What to give back when all is over.
        self.closing: list[Callable[[], None]] = []
        # Gives a server that was away for longer than its certificate lasts another one, as its operator would.
        self.certify: Callable[[str], None] = lambda _name: None
        self._lives: dict[str, int] = {}
        self.client = self.connect("admin")
        self._log_to_trace()

    def note(self, text: str) -> None:
        """Tell the trace; a folder of this machine is none of the story's."""
        for folder in self.folders:
            text = text.replace(folder, "")
        self.loop.trace.note(self.loop.time(), PROCESS.get(), text)

    def connect(self, name: str) -> SimClient:
        """Return a new client of the API, a user with that name."""
        ids = SimIds(f"{self.seed}/client/{name}")
        transport = SimTransport(self.network, f"user-{name}", Identity("user", name), ids)
        return SimClient(transport, self.endpoints, ids, self.note, self.referee.asked.refused)

    def connect_by_token(self, name: str, token: str) -> SimClient:
        """Return a new client of the API that has a token, and no certificate."""
        ids = SimIds(f"{self.seed}/client/{name}")
        transport = SimTransport(self.network, f"user-{name}", Identity("user", "nobody"), ids, token)
        endpoints = tuple(f"{each}:7444" for each in self.controllers)
        return SimClient(transport, endpoints, ids, self.note, self.referee.asked.refused)

    def stranger(self, name: str) -> SimTransport:
        """Return what a server has that is no node yet."""
        return SimTransport(self.network, name, Identity("node", "none"), SimIds(f"{self.seed}/stranger/{name}"))

    @property
    def releases(self) -> Releases:
        """Return who is of which release."""
        return self.network.releases

    def put_back(self, name: str) -> None:
        """Have a process be of this release; it is started again, an agent with the ledger a newer one left."""
        self.crash(name)
        machine, releases = self.machines.get(name), self.releases
        if name in releases.newer and machine is not None and LEDGER in machine.disk.durable:
            machine.disk.leave(LEDGER, noted(machine.disk.durable[LEDGER]))
        releases.newer.discard(name)
        releases.older.discard(name)
        self.restart(name)

    def now(self) -> datetime:
        """Return the true time, which no process knows exactly."""
        return START + timedelta(seconds=self.loop.time())

    def suspend(self, for_s: float) -> None:
        """All machines stand still, as when their power is saved: time has passed, and nobody has noticed."""
        self.note(f"everything is suspended for {for_s:.0f} s")
        self.loop.leap(for_s)

    def close(self) -> None:
        """Give back what is not the story's own."""
        for give_back in self.closing:
            give_back()

    def add_machine(self, name: str) -> Machine:
        """Put a server into the rack; it is no node yet."""
        index, memory_bytes = len(self.machines) + 1, self._memory_bytes
        machine = Machine(name, index, threads=self._threads, memory_bytes=memory_bytes, tank=self.tank)
        self.machines[name] = machine
        machine.changed, machine.accepted, machine.host.connect = self._host_changed, self._ledger_changed, self.tank.connect
        return machine

    def _host_changed(self, machine: Machine) -> None:
        if machine.id:
            self.referee.host(machine.picture())

    def _pool_changed(self) -> None:
        self.referee.pool({id: volume.size_bytes for id, volume in self.tank.volumes.items()})

    def _ledger_changed(self, machine: Machine) -> None:
        if machine.id:
            self.referee.ledger(machine.picture())

    def _elected(self) -> None:
        self.note("the store has a new leader")
        self.referee.cloud.leases_began = self.now()

    def look(self) -> None:
        """Show the referee all machines as they are now."""
        for machine in self.machines.values():
            self._host_changed(machine)

    @contextlib.contextmanager
    def whole(self) -> Iterator[None]:
        """Put every spoiled record back, and let none be spoiled meanwhile."""
        self.stay_whole += 1
        for key in list(self.spoiled):
            self.spoiled.pop(key)()
        try:
            yield
        finally:
            self.stay_whole -= 1

    # --- life and death ------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Make the nodes known, start everything, wait until all nodes are connected."""
        await self._enrol()
        for name in (*self.controllers, *self.machines):
            self.restart(name)
        await self.until("all nodes to be connected", lambda: len(self.connected()) == len(self.machines), START_S)

    async def _enrol(self) -> None:
        view, now, link = LiveView(), timestamp(START), Link("world")
        ids = SimIds(f"{self.seed}/nodes")
        for machine in self.machines.values():
            machine.id = ids.new("node")
            node = Node(id=machine.id, name=machine.name, create_time=now, update_time=now)
            node.spec.index = machine.index
            txn = Txn("api").create(kinds.NODE, node.id, node)
            resolution.claim(txn, view, Caller.system("world"), nouns.NODE, "", machine.name, node.id)
            link = await self._commit(txn, link)
        await self._commit(self._users(view, ids), link)
        self.look()

    async def _commit(self, txn: Txn, link: Link) -> Link:
        """Commit what is there before a story, with its record in the audit; return where that ends."""
        link = append(txn, link, [Audit(caller="system", who="world")])
        return replace(link, revision=await MemoryStore(self.backend).commit(txn))

    def _users(self, view: LiveView, ids: SimIds) -> Txn:
        """Return what makes those who begin a story users who may do everything."""
        txn, now = Txn("api"), timestamp(START)
        for name in (*USERS, "operator", *(f"load{number}" for number in range(LOADS))):
            user = User(id=ids.new("usr"), name=name, create_time=now, update_time=now)
            user.spec.groups.append(STAFF)
            txn.create(kinds.USER, user.id, user)
            resolution.claim(txn, view, Caller.system("world"), nouns.USER, "", name, user.id)
        binding = Binding(id=ids.new("rb"), name=STAFF, create_time=now, update_time=now)
        binding.spec.role, binding.spec.subject.group = builtin_id(ADMINISTRATOR), STAFF
        resolution.claim(txn, view, Caller.system("world"), nouns.BINDING, "", binding.name, binding.id)
        return txn.create(kinds.BINDING, binding.id, binding)

    def alive(self, name: str) -> bool:
        """Tell whether a process lives."""
        return name in self.processes

    def life_of(self, name: str) -> int:
        """Return the number of a process's newest life."""
        return self._lives.get(name, 0)

    def calm(self) -> None:
        """End every fault: from now on nothing disturbs, and whoever is dead lives again."""
        for name in sorted(self.network.faults.forgotten):
            # What it was not told, its controller believes to have told: it is told again on a new stream only.
            self.crash(name)
        self.network.faults = Faults()
        self.network.heal()
        self.store_faults.calm()
        self.backend.full = False
        self.loop.snuff_fuses()
        self.filed.calm()
        for process in self.processes.values():
            if process.store is not None:
                process.store.mend()
        for machine in self.machines.values():
            machine.calm()
        for name in sorted(self.releases.older | self.releases.newer):
            self.put_back(name)
        self.restart_all()

    def restart(self, name: str) -> None:
        """Begin the next life of a process; of one that has left, there is none."""
        if name in self.processes or (name in self.machines and self.machines[name].away):
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
        store = what.store if isinstance(what, Controller) else None
        process = Process(name, life, what, clock, task, store if isinstance(store, SimStore) else None)
        self.processes[name] = process
        for beside in self.beside:
            self.start_beside(process, beside)

    def start_beside(self, process: Process, beside: Callable[[Process], Coroutine[Any, Any, None]]) -> None:
        """Run something in a process that lives already."""
        context = contextvars.copy_context()
        context.run(PROCESS.set, process.label)
        self.loop.create_task(beside(process), name=f"beside {process.label}", context=context)

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
        """Whoever is dead lives again; who left stays away."""
        for name in (*self.controllers, *self.machines):
            self.restart(name)

    def _controller(self, name: str, label: str, clock: SimClock) -> Controller:
        ids = SimIds(f"{self.seed}/{label}", self.referee.cloud.secrets)
        transport = SimTransport(self.network, name, Identity("controller", name), ids)
        drawn = random.Random(f"{self.seed}/store/{label}")
        store = SimStore(self.backend, drawn, self.store_faults, name=label, trace=self.note)
        store.really = lambda txn: self.releases.commits(name, txn)
        config = Config(
            name=name, listen=(f"{name}:7443",), enrol_listen=f"{name}:7444", etcd_endpoints=("store:2379",),
            etcd_ca="", etcd_cert="", etcd_key="", ca="", cert="", key="",
        )  # fmt: skip
        return Controller(
            config,
            store,
            transport,
            clock,
            ids,
            authority=self.authority,
            ca_pem=self.authority.cert_pem,
            seals=SEALS,
            audits=(AUDITS_KEPT, AUDITS_OVER),
            archive=self.filed.archive(name, clock),
            identities=FakeIdentities(clock, self.network.issuer),
        )

    def _agent(self, name: str, label: str, clock: SimClock) -> Agent:
        machine, ids = self.machines[name], SimIds(f"{self.seed}/{label}")
        services = machine.services = FakeGuestServices()
        config = AgentConfig(name=name, listen=f"{name}:7446", vtep=machine.vtep, underlay_mtu=1500)
        return Agent(
            config,
            SimTransport(self.network, name, Identity("node", machine.id), ids),
            clock,
            ids,
            machine.disk,
            FakeHypervisor(machine.host, clock, machine.knobs, latency_s=0.02),
            [FakeVolumes(machine.pool), FakeSharedVolumes(self.tank, machine.pool)],
            FakeImages(machine.pool),
            FakeDataplane(machine.net, machine.net_knobs, latency_s=0.01),
            services,
            SimInventory(machine.threads, machine.memory_bytes),
            membership=Membership(machine.id, self.endpoints),
            files=FakeGuestFiles(machine.files),
            boot_id=f"boot-{machine.boots}",
            version="simulated",
        )

    # --- what a stranger sees ------------------------------------------------------------------------------------------------

    def connected(self) -> list[str]:
        """Return ids of the nodes with a session in the store."""
        return [item.key.rpartition("/")[2] for item in self.backend.scan(*_range(kinds.NODE_SESSION.prefix), 0, 0)]

    def sessions(self) -> dict[str, int]:
        """Return node id -> revision its session was written at; those of nodes that have left may linger, and do not count."""
        items = self.backend.scan(*_range(kinds.NODE_SESSION.prefix), 0, 0)
        members = {machine.id for machine in self.machines.values() if not machine.away}
        found = {item.key.rpartition("/")[2]: item.mod_revision for item in items}
        return {node: revision for node, revision in found.items() if node in members}

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
