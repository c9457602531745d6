"""A cloud in a View, for tests of what decides: records made with few words, transactions applied as a store would."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from cairn.controller.model.pools import pool_claimed
from cairn.controller.reconcilers.base import Follower, Outcome, Reconciler
from cairn.controller.store.base import Conflict, Txn
from cairn.controller.store.memory import MemoryBackend, prefix_end
from cairn.controller.store.view import LiveView, Table
from cairn.proto import kinds
from cairn.proto.capabilities import of_agent
from cairn.proto.owners import VM, set_owner
from cairn.proto.seams import timestamp
from cairn.proto.v1.agent_pb2 import ImageReport, Observed, Report, VmReport, VolumeReport
from cairn.proto.v1.event_pb2 import Event
from cairn.proto.v1.image_pb2 import Image
from cairn.proto.v1.node_pb2 import Node, NodeFacts, NodeSession
from cairn.proto.v1.port_pb2 import Port
from cairn.proto.v1.subnet_pb2 import Subnet
from cairn.proto.v1.vm_pb2 import POWER_STATE_RUNNING, NodeClaims, Vm
from cairn.proto.v1.volume_pb2 import Volume
from cairn.proto.v1.vpc_pb2 import Vpc

MIB = 1 << 20
GIB = 1 << 30
NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


class Cloud:
    """A View and what it takes to change it."""

    def __init__(self) -> None:
        self.view = LiveView()
        self.view.advance(1)
        # What the store has and no view: kinds that are not cached.
        self._unseen = LiveView()
        self.now = NOW
        self.changed: list[tuple[Any, str]] = []

    def commit(self, txn: Txn) -> list[tuple[Any, str]]:
        """Apply or raise Conflict; return what changed."""
        checks = ((*kinds.split(key), revision) for key, revision in txn.checks.items())
        moved = [kind.key(id) for kind, id, revision in checks if self._table(kind).revision_of(id) != revision]
        if moved:
            raise Conflict(moved)
        revision = self.view.revision + 1
        changed = []
        for key in txn.deletes:
            kind, id = kinds.split(key)
            self._table(kind).delete(id)
            changed.append((kind, id))
        for key, put in txn.puts.items():
            kind, id = kinds.split(key)
            before = self._table(kind).record(id)
            self._table(kind).put(id, put.value, revision, before.create_revision if before else revision)
            changed.append((kind, id))
        self.view.advance(revision)
        changed = [(kind, id) for kind, id in changed if kind.cached]
        self.changed += changed
        return changed

    def _table(self, kind: Any) -> Table:
        return (self.view if kind.cached else self._unseen).table(kind)

    def stored(self, kind: Any, id: str) -> Any:
        """Return a record as the store has it, or None."""
        return self._table(kind).get(id)

    def put(self, kind: Any, id: str, message: Any) -> None:
        """Write as whoever may."""
        self.commit(Txn(kind.writer).put(kind, id, message))

    def delete(self, kind: Any, id: str) -> None:
        """Delete as whoever may."""
        self.commit(Txn(kind.writer).delete(kind, id))

    def edit(self, kind: Any, id: str) -> Any:
        """Return a copy of a record to change and `put`."""
        copy = kind.message()
        copy.CopyFrom(self.view.get(kind, id))
        return copy

    def take(self) -> list[tuple[Any, str]]:
        """Return what changed since the last call."""
        changed, self.changed = list(dict.fromkeys(self.changed)), []
        return changed

    # --- records -----------------------------------------------------------------------------------------------------

    def node(
        self, name: str, *, threads: int = 2, memory: int = 4 * GIB, disk: int = 100 * GIB, up: bool = True, **more: Any
    ) -> str:
        id = f"node-{name:0>8}"
        index = 1 + self.view.count(kinds.NODE)
        node = Node(id=id, name=name, labels=more.get("labels", {}))
        node.spec.index, node.spec.cordoned = index, more.get("cordoned", False)
        self.put(kinds.NODE, id, node)
        facts = NodeFacts(arch="x86_64", memory_bytes=memory, vtep=f"192.0.2.{index}", underlay_mtu=1500)
        facts.cpu.threads = threads
        facts.hypervisor.archs.extend(more.get("archs", ["x86_64"]))
        facts.hypervisor.silent = more.get("silent", "")
        facts.pools.add(type="local", total_bytes=disk, free_bytes=disk)
        for pool, total in more.get("shared", {}).items():
            facts.pools.add(type="net", name=pool, total_bytes=total, free_bytes=total)
        self.put(kinds.NODE_FACTS, id, facts)
        if up:
            self.connect(id)
        return id

    def connect(self, node: str, *, knows: Sequence[str] | None = None) -> None:
        """knows: what its agent says it knows; None: all of this release and volumes of type "net"; empty: too old to say."""
        session = NodeSession(node=node, controller="c1", endpoint=f"{node}:7446", connect_time=timestamp(self.now))
        session.capabilities.extend(of_agent(["local", "net"]) if knows is None else knows)
        self.put(kinds.NODE_SESSION, node, session)

    def image(self, name: str, *, size: int = 10 * MIB, arch: str = "x86_64") -> str:
        id = f"img-{name:0>8}"
        image = Image(id=id, name=name)
        image.spec.size_bytes, image.spec.arch, image.spec.digest = size, arch, "sha256:" + "0" * 64
        self.put(kinds.IMAGE, id, image)
        return id

    def vpc(self, name: str, cidr: str = "10.1.0.0/16") -> str:
        id = f"rtr-{name:0>8}"
        vpc = Vpc(id=id, name=name)
        vpc.spec.cidr, vpc.spec.vni = cidr, 5000
        self.put(kinds.VPC, id, vpc)
        return id

    def subnet(self, name: str, vpc: str, cidr: str = "10.1.1.0/24") -> str:
        id = f"vxnet-{name:0>8}"
        subnet = Subnet(id=id, name=name)
        subnet.spec.vpc, subnet.spec.cidr, subnet.spec.vni = vpc, cidr, 5001
        self.put(kinds.SUBNET, id, subnet)
        return id

    def port(self, name: str, subnet: str, *, vm: str = "", address: str = "") -> str:
        id = f"nic-{name:0>8}"
        record = self.view.get(kinds.SUBNET, subnet)
        port = Port(id=id, name=id)
        port.spec.subnet, port.spec.address = subnet, address
        if vm:
            set_owner(port, VM, vm)
        port.spec.vpc = record.spec.vpc if record is not None else ""
        self.put(kinds.PORT, id, port)
        return id

    def volume(
        self, name: str, *, vm: str = "", size: int = GIB, image: str = "", own: bool = False, type: str = "local"
    ) -> str:
        id = f"vol-{name:0>8}"
        volume = Volume(id=id, name=name)
        volume.spec.vm, volume.spec.size_bytes, volume.spec.image, volume.spec.type = vm, size, image, type
        volume.spec.delete_with_vm = volume.spec.boot = own
        self.put(kinds.VOLUME, id, volume)
        return id

    def vm(
        self,
        name: str,
        *,
        cpus: int = 1,
        memory: int = 512 * MIB,
        disk: int = GIB,
        image: str = "",
        subnet: str = "",
        **spec: Any,
    ) -> str:
        """A VM with its root volume and, given a subnet, one card."""
        id = f"i-{name:0>8}"
        vm = Vm(id=id, name=name, create_time=timestamp(self.now))
        vm.spec.cpus, vm.spec.memory_bytes, vm.spec.arch = cpus, memory, spec.get("arch", "x86_64")
        vm.spec.image, vm.spec.node, vm.spec.power_state = image, spec.get("node", ""), POWER_STATE_RUNNING
        vm.spec.node_selector.update(spec.get("selector", {}))
        vm.spec.root_volume = f"vol-{name:0>8}"
        if disk:
            self.volume(name, vm=id, size=disk, image=image, own=True, type=spec.get("type", "local"))
        if subnet:
            vm.spec.nics.add(subnet=subnet, port=self.port(name, subnet, vm=id))
        self.put(kinds.VM, id, vm)
        return id

    def claims(self, node: str) -> tuple[int, int, int, int]:
        """CPUs, memory, disk and VMs claimed of a node and its local pool."""
        claims = self.view.get(kinds.NODE_CLAIMS, node) or NodeClaims()
        return claims.cpus, claims.memory_bytes, pool_claimed(self.view, f"local/{node}"), claims.vms

    def delete_vm(self, id: str, *, purge: bool = False) -> None:
        """What the API does."""
        vm = self.edit(kinds.VM, id)
        vm.delete_time.CopyFrom(timestamp(self.now))
        vm.purge_time.CopyFrom(timestamp(self.now + (timedelta() if purge else timedelta(hours=2))))
        self.put(kinds.VM, id, vm)

    def undelete_vm(self, id: str) -> None:
        vm = self.edit(kinds.VM, id)
        vm.ClearField("delete_time")
        vm.ClearField("purge_time")
        vm.spec.power_generation += 1
        self.put(kinds.VM, id, vm)

    def report(self, node: str, key: str, **said: Any) -> None:
        """What sync.py writes. A VM is said to be absent as it was last asked for, unless said otherwise."""
        kind, _, id = key.partition("/")
        vm = self.view.get(kinds.VM, id) if kind == "vm" and said.get("state") == VmReport.STATE_ABSENT else None
        if vm is not None:
            said.setdefault("power_generation", vm.spec.power_generation)
        report = Report(key=key)
        of = {"vm": VmReport, "volume": VolumeReport, "image": ImageReport}[kind]
        getattr(report, kind).CopyFrom(of(**said))
        self.put(kinds.OBSERVED, f"{node}/{key}", Observed(key=key, node=node, report=report))

    # --- deciding ----------------------------------------------------------------------------------------------------

    def decide(self, reconciler: Reconciler, key: str) -> Outcome:
        """One decision and its commit."""
        outcome = reconciler.reconcile(self.view, key, self.now)
        if outcome.txn:
            self.commit(outcome.txn)
        return outcome

    def settle(self, reconcilers: Sequence[Reconciler], rounds: int = 50) -> None:
        """Decide about everything until nobody has anything to write, or to look at again at once."""
        for _ in range(rounds):
            wrote = False
            for reconciler in reconcilers:
                if isinstance(reconciler, Follower):
                    reconciler.follow(self.view, self.changed)
                for key in sorted(set(reconciler.all_keys(self.view))):
                    outcome = self.decide(reconciler, key)
                    wrote |= bool(outcome.txn) or outcome.again_after_s == 0
                    if isinstance(reconciler, Follower):
                        reconciler.follow(self.view, self.changed)
            if not wrote:
                return
        raise AssertionError("does not settle")


def events_of(backend: MemoryBackend) -> list[Event]:
    """Return the events a store has, oldest first."""
    return [Event.FromString(item.value) for item in backend.scan(kinds.EVENT.prefix, prefix_end(kinds.EVENT.prefix), 0, 0)]


def absent_everywhere(cloud: Cloud, vms: Iterable[str] = ()) -> None:
    """Nodes report that these VMs and their disks are gone."""
    for vm in vms:
        placement = cloud.view.get(kinds.PLACEMENT, vm)
        if placement is not None and placement.node:
            cloud.report(placement.node, f"vm/{vm}", state=VmReport.STATE_ABSENT)
        for volume in cloud.view.by(kinds.VOLUME, "vm", vm):
            place = cloud.view.get(kinds.VOLUME_PLACEMENT, volume)
            if place is not None:
                cloud.report(place.node, f"volume/{volume}", state=VolumeReport.STATE_ABSENT)
