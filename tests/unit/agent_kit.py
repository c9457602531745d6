"""A node without a machine: the real agent on fake drivers, virtual time and a disk that forgets what was not synced.

    def test_x() -> None:
        run(scenario)            # on a loop whose clock jumps to the next timer when nobody has anything to do

`Machine` is the truth that outlives agents; `agent()` makes one on it, `crash` drops it as kill -9 and a power cut would.
"""

from __future__ import annotations

import asyncio
import hashlib
import selectors
from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from cairn.agent.app import Agent
from cairn.agent.config import Config
from cairn.agent.guestfiles import FakeGuestFiles
from cairn.agent.hypervisor.base import FaultKnobs
from cairn.agent.hypervisor.fake import FakeHost, FakeHypervisor
from cairn.agent.identity import Membership
from cairn.net import fake as net_fake
from cairn.net.fake import FakeDataplane, FakeGuestServices, FakeNetHost
from cairn.proto.ids import mac_of, tap_of
from cairn.proto.v1.agent_pb2 import (
    Desired,
    DesiredImage,
    DesiredNetwork,
    DesiredPort,
    DesiredSubnet,
    DesiredVm,
    DesiredVolume,
    Remove,
    SyncResponse,
    Upsert,
    Version,
    VmDisk,
    VmNic,
    VmReport,
)
from cairn.proto.v1.image_pb2 import ImageFormat
from cairn.proto.v1.node_pb2 import NodeFacts
from cairn.proto.v1.vm_pb2 import POWER_STATE_RUNNING
from cairn.storage.base import Image
from cairn.storage.fake import FakeImages, FakePool, FakeVolumes
from cairn.storage.fake_shared import FakeSharedVolumes, SharedPool

MIB = 1 << 20
CONTENT = b"\x5a" * MIB
DIGEST = "sha256:" + hashlib.sha256(CONTENT).hexdigest()


class VirtualSelector(selectors.SelectSelector):
    """Never waits: the clock jumps instead."""

    now_s = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if not ready:
            assert timeout is not None, "everybody waits for something that cannot happen"
            self.now_s += max(timeout, 0.0)
        return ready


class VirtualLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self.virtual = VirtualSelector()
        super().__init__(self.virtual)

    def time(self) -> float:
        return self.virtual.now_s


def run(scenario: Callable[[], Coroutine[Any, Any, None]]) -> None:
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.run(scenario())


class LoopClock:
    """Wall clock that follows the loop's."""

    def now(self) -> datetime:
        return datetime(2030, 1, 1, tzinfo=UTC) + timedelta(seconds=asyncio.get_running_loop().time())


class PlainIds:
    """No randomness."""

    def new(self, prefix: str) -> str:
        return f"{prefix}-00000000"

    def uuid(self) -> str:
        return "00000000-0000-4000-8000-000000000000"

    def secret(self, nbytes: int) -> bytes:
        return bytes(nbytes)

    def jitter(self) -> float:
        return 0.5


@dataclass
class MemoryDisk:
    """Files, and which bytes of them would survive a power cut. `torn`: how many unsynced bytes do anyway.

    sync_s: how long a sync takes, in the loop's time. Whoever is killed meanwhile leaves bytes that are not durable.
    """

    files: dict[str, bytes] = field(default_factory=dict)
    durable: dict[str, bytes] = field(default_factory=dict)
    full: bool = False
    syncs: int = 0
    sync_s: float = 0.0

    def read(self, name: str) -> bytes | None:
        return self.files.get(name)

    async def replace(self, name: str, content: bytes) -> None:
        self._room()
        await self._synced()
        self.files[name] = self.durable[name] = content

    async def append(self, name: str, content: bytes) -> None:
        if content:
            if self.full:
                self.files[name] = self.files.get(name, b"") + content[: len(content) // 2]
            self._room()
            self.files[name] = self.files.get(name, b"") + content
        await self._synced()
        self.syncs += 1
        self.durable[name] = self.files[name]

    async def _synced(self) -> None:
        await asyncio.sleep(0)
        await elapse(self.sync_s)

    def lose_power(self, torn: int = 0) -> None:
        for name, content in list(self.files.items()):
            kept = self.durable.get(name, b"")
            self.files[name] = self.durable[name] = content[: len(kept) + torn]

    def _room(self) -> None:
        if self.full:
            raise OSError(28, "No space left on device")


class _NoServer:
    """Accepts handlers, serves nobody."""

    def add_generic_rpc_handlers(self, handlers: object) -> None: ...

    def add_registered_method_handlers(self, service: str, handlers: object) -> None: ...

    async def start(self) -> None: ...

    async def stop(self, grace: float | None) -> None: ...


class NoTransport:
    """A node whose controllers are all gone."""

    def channel(self, endpoints: Sequence[str], *, server_name: str) -> Any:
        raise OSError(f"nobody answers at {', '.join(endpoints)}")

    def server(self, *, interceptors: Sequence[Any] = ()) -> Any:
        return _NoServer()

    async def listen(self, server: Any, address: str, *, mutual: bool = True) -> str:
        return address


class NoInventory:
    async def collect(self) -> NodeFacts:
        return NodeFacts(arch="x86_64")


@dataclass
class Machine:
    """What is there whatever happens to the agent."""

    pool: FakePool = field(default_factory=FakePool)
    net: FakeNetHost = field(default_factory=FakeNetHost)
    files: dict[str, bytes] = field(default_factory=dict)
    disk: Any = field(default_factory=MemoryDisk)
    knobs: FaultKnobs = field(default_factory=FaultKnobs)
    net_knobs: net_fake.FaultKnobs = field(default_factory=net_fake.FaultKnobs)
    revision: int = 10
    # Besides the local one.
    tank: SharedPool | None = None
    epoch: int = 1

    def __post_init__(self) -> None:
        self.host = FakeHost(taps=self.net.taps, size_at=self._size_at, on_grow=self._grown)
        self.clock = LoopClock()
        self.services = FakeGuestServices()

    def _size_at(self, path: str) -> int:
        return self.pool.size_at(path) or (self.tank.size_at(path) if self.tank is not None else 0)

    def _grown(self, path: str, size_bytes: int) -> None:
        self.pool.grow(path, size_bytes)
        if self.tank is not None:
            self.tank.set_size(path, size_bytes)

    def hold_image(self) -> None:
        image = Image(DIGEST, len(CONTENT), len(CONTENT), ImageFormat.IMAGE_FORMAT_RAW)
        self.pool.images[DIGEST] = (image, CONTENT)

    def agent(self, *, latency_s: float = 0.0) -> Agent:
        self.services = FakeGuestServices()
        self.pool.latency_s = latency_s
        return Agent(
            Config(name="n1", listen="127.0.0.1:7446", underlay_mtu=1500),
            NoTransport(),
            self.clock,
            PlainIds(),
            self.disk,
            FakeHypervisor(self.host, self.clock, self.knobs, latency_s=latency_s),
            [FakeVolumes(self.pool), *([FakeSharedVolumes(self.tank, self.pool)] if self.tank is not None else [])],
            FakeImages(self.pool),
            FakeDataplane(self.net, self.net_knobs, latency_s=latency_s),
            self.services,
            NoInventory(),
            membership=Membership("node-00000001", ("127.0.0.1:7443",)),
            files=FakeGuestFiles(self.files),
        )

    async def crash(self, agent: Agent, torn: int = 0) -> None:
        await agent.stop()
        self.disk.lose_power(torn)

    # --- the controller's part ------------------------------------------------------------------------------------------

    def version(self) -> Version:
        return Version(epoch=self.epoch, revision=self.revision)

    async def snapshot(self, agent: Agent, objects: dict[str, Desired]) -> None:
        self.revision += 1
        upserts = [Upsert(key=key, version=self.version(), object=object) for key, object in objects.items()]
        await agent.ledger.accept_snapshot(self.version(), upserts, then=agent.loop.accepted)

    async def upsert(self, agent: Agent, objects: dict[str, Desired]) -> None:
        self.revision += 1
        messages = [
            SyncResponse(upsert=Upsert(key=key, version=self.version(), object=object)) for key, object in objects.items()
        ]
        await agent.ledger.accept(messages, agent.loop.accepted)

    async def remove(self, agent: Agent, keys: Iterable[str]) -> None:
        self.revision += 1
        messages = [SyncResponse(remove=Remove(key=key, version=self.version())) for key in keys]
        await agent.ledger.accept(messages, agent.loop.accepted)

    # --- what a stranger sees -------------------------------------------------------------------------------------------

    def running(self) -> set[str]:
        return {id for id, guest in self.host.guests.items() if guest.live is not None and not guest.live.paused}

    def is_empty(self) -> bool:
        return not (self.host.guests or self.files or self.pool.volumes or self.net.networks or self.net.taps)


def vm_objects(number: int = 1, **more: Any) -> dict[str, Desired]:
    """A guest, its volume, port, network and image."""
    vm, volume, port = f"i-{number:08d}", f"vol-{number:08d}", f"nic-{number:08d}"
    address = f"10.1.1.{number + 1}"
    desired_port = DesiredPort(
        id=port, vpc="rtr-00000001", subnet="vxnet-00000001", address=address, mac=mac_of(port), vm=vm, tap=tap_of(port)
    )
    fields: dict[str, Any] = {
        "id": vm, "name": f"web{number}", "cpus": 1, "memory_bytes": 128 * MIB, "arch": "x86_64",
        "disks": [VmDisk(volume=volume, boot=True)], "power_state": POWER_STATE_RUNNING, "power_generation": 1,
        "spec_revision": 5,
        "nics": [VmNic(port=port, tap=tap_of(port), mac=mac_of(port), mtu=1450, address=address)],
    }  # fmt: skip
    return {
        "image/img-00000001": Desired(image=image()),
        f"volume/{volume}": Desired(volume=root_volume(number)),
        "network/rtr-00000001": Desired(network=network()),
        f"port/{port}": Desired(port=desired_port),
        f"vm/{vm}": Desired(vm=DesiredVm(**{**fields, **more})),
    }


def image() -> DesiredImage:
    return DesiredImage(id="img-00000001", digest=DIGEST, size_bytes=len(CONTENT), format=ImageFormat.IMAGE_FORMAT_RAW)


def root_volume(number: int = 1, *, absent: bool = False) -> DesiredVolume:
    return DesiredVolume(
        id=f"vol-{number:08d}", size_bytes=64 * MIB, type="local", image="img-00000001", image_digest=DIGEST, absent=absent
    )


def network() -> DesiredNetwork:
    return DesiredNetwork(
        vpc="rtr-00000001", transit_vni=5000, transit_address="169.254.0.1", router_mac="02:00:5e:10:00:01",
        vtep="172.31.0.11", mtu=1450, cidr="10.1.0.0/16",
        subnets=[DesiredSubnet(id="vxnet-00000001", vni=5001, cidr="10.1.1.0/24", gateway="10.1.1.1")],
    )  # fmt: skip


async def until(what: str, probe: Callable[[], Any], timeout_s: float = 600.0) -> None:
    """Wait (in the loop's time) for a condition."""
    try:
        async with asyncio.timeout(timeout_s):
            while not probe():
                await asyncio.sleep(0.01)
    except TimeoutError as error:
        raise AssertionError(f"waited {timeout_s} s for: {what}") from error


async def elapse(duration_s: float) -> None:
    """Let virtual time go by; it costs none of ours."""
    end_s = asyncio.get_running_loop().time() + duration_s
    while (left_s := end_s - asyncio.get_running_loop().time()) > 1e-6:
        await asyncio.sleep(left_s)


async def settled(agent: Agent, timeout_s: float = 600.0) -> None:
    """Wait until nothing is due, and stays so over a scan."""

    async def look() -> None:
        await until("the loop to be idle", lambda: agent.loop.is_idle, timeout_s)

    await look()
    await asyncio.sleep(0)
    await look()


def state_of(agent: Agent, vm: str) -> int:
    report = agent.reports.latest(f"vm/{vm}")
    return report.vm.state if report is not None else 0


async def ran(agent: Agent, vm: str) -> None:
    await until(f"{vm} to run", lambda: state_of(agent, vm) == VmReport.STATE_RUNNING)
