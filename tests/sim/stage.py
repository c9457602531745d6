"""Small hand-made clouds on which checkers are shown to speak or to be silent; see test_checkers.py.

@scene("one_node", "has a process on n2 and on n1")     # what must be said; nothing: silence
def two_processes(stage): stage.host("n1", guests=...)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from cairn.proto import kinds
from cairn.proto.v1 import (
    agent_pb2,
    cluster_pb2,
    image_pb2,
    job_pb2,
    node_pb2,
    port_pb2,
    subnet_pb2,
    vm_pb2,
    volume_pb2,
    vpc_pb2,
)

from tests.sim.asked import Asked, AskedVm
from tests.sim.checkers.base import Checker
from tests.sim.cloud import Card, Cloud, Definition, Guest, Host

VM, VOLUME, PORT, SUBNET, VPC, IMAGE, NODE, OTHER = "i-1", "vol-1", "nic-1", "vxnet-1", "rtr-1", "img-1", "node-1", "node-2"
GIB = 1 << 30
DIGEST = "sha256:1"


@dataclass(frozen=True)
class Scene:
    """What happens, and what must be said."""

    checker: str
    says: str
    play: Callable[[Stage], None]


SCENES: list[Scene] = []


def scene(checker: str, says: str = "") -> Callable[[Callable[[Stage], None]], Callable[[Stage], None]]:
    """Make a function a scene."""

    def take(play: Callable[[Stage], None]) -> Callable[[Stage], None]:
        SCENES.append(Scene(checker, says, play))
        return play

    return take


class Stage:
    """A cloud and one checker that looks at it."""

    def __init__(self, checker: Checker) -> None:
        self.cloud, self.checker = Cloud(), checker
        self.said: list[str] = []

    def commit(
        self,
        *records: tuple[str, str, Any],
        by: dict[str, str] | None = None,
        checked: Iterable[str] | None = None,
        revision: int = 0,
    ) -> None:
        """Write records (kind, id, message; None: remove) in one revision."""
        changes = [
            (kinds.BY_NAME[kind].key(id), message.SerializeToString() if message is not None else None)
            for kind, id, message in records
        ]
        writers = {kinds.ROOT + key: writer for key, writer in by.items()} if by is not None else None
        looked = [kinds.ROOT + key for key in checked] if checked is not None else None
        made = self.cloud.commit(revision or self.cloud.revision + 1, changes, writers, looked)
        self.said += self.checker.committed(self.cloud, made)

    def host(self, node: str = NODE, **fields: Any) -> None:
        """Show a host."""
        self.cloud.hosts[node] = Host(node=node, name=node.replace("node-", "n"), **fields)
        self.said += self.checker.host_changed(self.cloud, node)

    def pool(self, **volumes: int) -> None:
        """Show what the shared pool holds: volume ("vol_1") -> bytes."""
        self.cloud.shared = {id.replace("_", "-"): size for id, size in volumes.items()}
        self.said += self.checker.pool_changed(self.cloud)

    def ledger(
        self,
        keys: dict[str, tuple[int, int]],
        held: tuple[int, int] = (1, 1),
        node: str = NODE,
        wanted: dict[str, bool] | None = None,
        told: dict[str, int] | None = None,
    ) -> None:
        """Show what a ledger holds now. wanted: its guests, False for those that are to be absent; told: sizes of disks."""
        name = node.replace("node-", "n")
        self.cloud.hosts[node] = Host(node=node, name=name, ledger=keys, held=held, wanted=wanted or {}, told=told or {})
        self.said += self.checker.accepted(self.cloud, node)

    def settle(self, asked: Asked | None = None) -> None:
        """Be at rest."""
        self.said += self.checker.settled(self.cloud, asked or Asked())

    def empty(self) -> None:
        """Be empty."""
        self.said += self.checker.emptied(self.cloud)

    def bare(self) -> None:
        """Have nothing but the cloud itself."""
        self.said += self.checker.bared(self.cloud)


# --- what there is ---------------------------------------------------------------------------------------------------------


def vm(id: str = VM, *, gone: bool = False, name: str = "", **spec: Any) -> tuple[str, str, vm_pb2.Vm]:
    made = vm_pb2.Vm(id=id, name=name or f"vm{id[2:]}", project="p", spec=vm_pb2.VmSpec(cpus=1, memory_bytes=GIB, **spec))
    if gone:
        made.delete_time.FromSeconds(1)
    return "vm", id, made


def volume(id: str = VOLUME, *, gone: bool = False, name: str = "", **spec: Any) -> tuple[str, str, volume_pb2.Volume]:
    spec.setdefault("size_bytes", GIB)
    made = volume_pb2.Volume(id=id, name=name or f"vol{id[4:]}", project="p", spec=volume_pb2.VolumeSpec(**spec))
    if gone:
        made.delete_time.FromSeconds(1)
    return "volume", id, made


def port(id: str = PORT, vm: str = VM) -> tuple[str, str, port_pb2.Port]:
    return "port", id, port_pb2.Port(id=id, name=id, project="p", spec=port_pb2.PortSpec(vpc=VPC, subnet=SUBNET, vm=vm))


def subnet() -> tuple[str, str, subnet_pb2.Subnet]:
    spec = subnet_pb2.SubnetSpec(vpc=VPC, cidr="10.0.0.0/29", vni=7)
    return "subnet", SUBNET, subnet_pb2.Subnet(id=SUBNET, name="net", project="p", spec=spec)


def vpc() -> tuple[str, str, vpc_pb2.Vpc]:
    return "vpc", VPC, vpc_pb2.Vpc(id=VPC, name="net", project="p", spec=vpc_pb2.VpcSpec(cidr="10.0.0.0/16", vni=6))


def binding(
    port: str = PORT, address: str = "10.0.0.2", mac: str = "02:00:00:00:00:01"
) -> tuple[str, str, port_pb2.PortBinding]:
    addresses = [address] if address else []
    return "port_binding", port, port_pb2.PortBinding(port=port, subnet=SUBNET, vpc=VPC, addresses=addresses, mac=mac)


def claim(port: str = PORT, address: str = "10.0.0.2") -> tuple[str, str, port_pb2.AddressClaim]:
    return "address", f"{SUBNET}/{address}", port_pb2.AddressClaim(subnet=SUBNET, address=address, port=port)


def name(kind: str, text: str, id: str, owner: str = "p") -> tuple[str, str, cluster_pb2.NameClaim]:
    return "name", f"{owner}/{kind}/{text}", cluster_pb2.NameClaim(kind=kind, project=owner, name=text, id=id)


def vni(number: int, holder: str) -> tuple[str, str, vpc_pb2.VniClaim]:
    return "vni", f"{number:08d}", vpc_pb2.VniClaim(vni=number, holder=holder)


def node(id: str = NODE, index: int = 1) -> tuple[str, str, node_pb2.Node]:
    return "node", id, node_pb2.Node(id=id, name=id, spec=node_pb2.NodeSpec(index=index))


def facts(id: str = NODE, threads: int = 1) -> tuple[str, str, node_pb2.NodeFacts]:
    made = node_pb2.NodeFacts(memory_bytes=4 * GIB, vtep=f"vtep-{id}")
    made.cpu.threads = threads
    made.hypervisor.archs.append("x86_64")
    made.pools.add(type="local", total_bytes=100 * GIB)
    return "node_facts", id, made


def session(id: str = NODE) -> tuple[str, str, node_pb2.NodeSession]:
    return "node_session", id, node_pb2.NodeSession(node=id)


def placement(
    id: str = VM, node: str = NODE, *, released: bool = False, say: str = "on n1"
) -> tuple[str, str, vm_pb2.Placement]:
    made = vm_pb2.Placement(vm=id, node=node, cpus=1, memory_bytes=GIB, released=released)
    made.decision.say = say
    return "placement", id, made


def place(id: str = VOLUME, node: str = NODE, size: int = GIB) -> tuple[str, str, volume_pb2.VolumePlacement]:
    return "volume_placement", id, volume_pb2.VolumePlacement(volume=id, node=node, disk_bytes=size)


def claims(id: str = NODE, **amounts: int) -> tuple[str, str, vm_pb2.NodeClaims]:
    return "node_claims", id, vm_pb2.NodeClaims(node=id, **amounts)


def pool_claims(disk_bytes: int, id: str = f"local/{NODE}") -> tuple[str, str, volume_pb2.PoolClaims]:
    return "pool_claims", id, volume_pb2.PoolClaims(pool=id, disk_bytes=disk_bytes)


def image(id: str = IMAGE) -> tuple[str, str, image_pb2.Image]:
    return "image", id, image_pb2.Image(id=id, name="demo", project="p", spec=image_pb2.ImageSpec(digest=DIGEST, arch="x86_64"))


def content(*nodes: str, **more: Any) -> tuple[str, str, image_pb2.ImageContent]:
    return "image_content", IMAGE, image_pb2.ImageContent(image=IMAGE, nodes=nodes, **{"virtual_size_bytes": 1, **more})


def job(**status: Any) -> tuple[tuple[str, str, job_pb2.Job], tuple[str, str, job_pb2.JobStatus]]:
    """What is wished, and how far it is."""
    spec = job_pb2.JobSpec(kind="import_image", target=IMAGE)
    return ("job", "j-1", job_pb2.Job(id="j-1", spec=spec)), ("job_state", "j-1", job_pb2.JobStatus(**status))


def said(key: str, node: str = NODE, revision: int = 1, **object: Any) -> tuple[str, str, agent_pb2.Observed]:
    report = agent_pb2.Report(key=key, version=agent_pb2.Version(epoch=1, revision=revision), **object)
    return "observed", f"{node}/{key}", agent_pb2.Observed(key=key, node=node, report=report)


def card(port: str = PORT, address: str = "10.0.0.2", mac: str = "02:00:00:00:00:01") -> Card:
    return Card(port, SUBNET, address, mac)


def guest(id: str = VM, cards: Sequence[Card] = (), volumes: Sequence[str] = (), cpus: int = 1) -> dict[str, Guest]:
    return {id: Guest(id, True, cpus, GIB, tuple(cards), tuple(volumes))}


def defined(id: str = VM, *volumes: str, cpus: int = 1) -> dict[str, Definition]:
    return {id: Definition(cpus, GIB, frozenset(volumes))}


def asked(**fields: Any) -> Asked:
    fields = {"name": "vm1", "owner": "u", "cpus": 1, "memory_bytes": GIB, **fields}
    return Asked(vms={VM: AskedVm(VM, **fields)})
