"""Who is where: which ports are on which node, and so which nodes a changed record concerns.

`follow` is told what changed and answers with (node, key) pairs whose desired object may now differ, at a cost of what
changed, not of the cluster. A live View does not show what a record was before, so this keeps what it needs of that: small
tables of who was where. Too many pairs are harmless (the object is computed and found unchanged); too few would leave a
node behind, which tests/unit/test_nodespec.py looks for with random histories. Rejected: computing every connected node's
whole set after each change.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any, NamedTuple

from cairn.controller.model.assigned import VOLUME_WORK
from cairn.controller.model.seats import Seat, Transit, seat_of, transit_of
from cairn.controller.model.where import vms_on, volume_node, volume_pool, where
from cairn.controller.store.base import Changed, View
from cairn.proto import kinds
from cairn.proto.kinds import AnyKind
from cairn.proto.v1.agent_pb2 import ImageReport

# Node id -> keys of desired objects ("vm/i-1234abcd").
Affected = dict[str, set[str]]


class _Disk(NamedTuple):
    """The node that makes and erases a volume (empty: none yet), and what the volume belongs to."""

    node: str
    image: str
    vm: str


class Presence:
    """The tables, as of the view last followed to."""

    def __init__(self, view: View) -> None:
        self._seats: dict[str, Seat] = {}
        # VPC -> node -> its ports there.
        self.vpcs: dict[str, dict[str, set[str]]] = {}
        self._vm_nodes: dict[str, tuple[str, ...]] = {}
        self._disks: dict[str, _Disk] = {}
        # Image -> node -> volumes there that are copies of it.
        self._copies: dict[str, dict[str, set[str]]] = {}
        self._replicas: dict[str, tuple[str, ...]] = {}
        # Image -> nodes that hold it.
        self._ready: dict[str, set[str]] = defaultdict(set)
        self._transits: dict[str, Transit] = {}
        self._endpoints: dict[str, str] = {}
        self._subnets: dict[str, str] = {}
        first: tuple[AnyKind, ...] = (
            kinds.PLACEMENT, kinds.VOLUME_PLACEMENT, kinds.IMAGE_CONTENT, kinds.OBSERVED, kinds.NODE, kinds.NODE_SESSION,
            kinds.SUBNET, kinds.PORT,
        )  # fmt: skip
        for kind in first:
            self.follow(view, [(kind, id) for id in view.ids(kind)])

    def nodes(self, vpc: str) -> Iterable[str]:
        """Return the nodes where a VPC is present."""
        return self.vpcs.get(vpc, {})

    def vpcs_on(self, node: str) -> Iterable[str]:
        """Return the VPCs present on a node."""
        return [vpc for vpc, nodes in self.vpcs.items() if node in nodes]

    def seat(self, port: str) -> Seat | None:
        """Return where a port is."""
        return self._seats.get(port)

    def copies(self, image: str, node: str) -> Iterable[str]:
        """Return the volumes on a node that are copies of an image."""
        return self._copies.get(image, {}).get(node, ())

    def follow(self, view: View, changed: Iterable[Changed]) -> Affected:
        """Move to a view; return which objects of which nodes may be different now."""
        affected: Affected = defaultdict(set)
        ports: dict[str, None] = {}
        for kind, id in changed:
            rule = getattr(self, f"_on_{kind.name}", None)
            if rule is not None:
                rule(view, id, affected, ports)
        self._move(view, ports, affected)
        affected.pop("", None)
        return {node: affected[node] for node in sorted(affected)}

    # --- ports, and the networks they make present -----------------------------------------------------------------------

    def _on_port(self, _view: View, id: str, _affected: Affected, ports: dict[str, None]) -> None:
        ports[id] = None

    _on_port_binding = _on_port

    def _move(self, view: View, ports: Iterable[str], affected: Affected) -> None:
        """Take ports to where they are now."""
        before: dict[str, set[str]] = {}
        touched: list[tuple[str, str]] = []
        for port in ports:
            old, new = self._seats.get(port), seat_of(view, port)
            for each in dict.fromkeys(seat for seat in (old, new) if seat is not None):
                before.setdefault(each.vpc, set(self.nodes(each.vpc)))
                touched.append((each.vpc, port))
                affected[each.node].add(f"port/{port}")
                record = view.get(kinds.PORT, port)
                if record is not None:
                    affected[each.node].add(f"vm/{record.spec.vm}")
            if old != new:
                self._reseat(port, old, new)
            elif old is None:
                self._vm_of(view, port, affected)
        for vpc, port in touched:
            for node in sorted(before[vpc].union(self.nodes(vpc))):
                affected[node].add(f"forward/{vpc}/{port}")
        for vpc, nodes in before.items():
            self._presence_changed(vpc, nodes, set(self.nodes(vpc)), affected)

    def _vm_of(self, view: View, port: str, affected: Affected) -> None:
        """A port that is nowhere may be what its VM waits for."""
        record = view.get(kinds.PORT, port)
        if record is not None:
            self._vm_changed(record.spec.vm, affected)

    def _reseat(self, port: str, old: Seat | None, new: Seat | None) -> None:
        if old is not None:
            there = self.vpcs[old.vpc][old.node]
            there.discard(port)
            if not there:
                del self.vpcs[old.vpc][old.node]
            if not self.vpcs[old.vpc]:
                del self.vpcs[old.vpc]
            del self._seats[port]
        if new is not None:
            self._seats[port] = new
            self.vpcs.setdefault(new.vpc, {}).setdefault(new.node, set()).add(port)

    def _presence_changed(self, vpc: str, before: set[str], after: set[str], affected: Affected) -> None:
        """Nodes that joined or left a VPC: all its nodes learn of it; they themselves of all its ports."""
        crossed = before ^ after
        if not crossed:
            return
        self._network(vpc, before | after, affected)
        for node in crossed:
            for ports in self.vpcs.get(vpc, {}).values():
                affected[node].update(f"forward/{vpc}/{port}" for port in ports)

    def _network(self, vpc: str, nodes: Iterable[str], affected: Affected) -> None:
        for node in nodes:
            affected[node].add(f"network/{vpc}")

    def _on_vpc(self, _view: View, id: str, affected: Affected, _ports: dict[str, None]) -> None:
        self._network(id, self.nodes(id), affected)

    def _on_subnet(self, view: View, id: str, affected: Affected, _ports: dict[str, None]) -> None:
        subnet = view.get(kinds.SUBNET, id)
        vpc = self._subnets.pop(id, "") if subnet is None else subnet.spec.vpc
        if subnet is not None:
            self._subnets[id] = vpc
        self._network(vpc, self.nodes(vpc), affected)

    # --- VMs and volumes -------------------------------------------------------------------------------------------------

    def _on_vm(self, view: View, id: str, affected: Affected, ports: dict[str, None]) -> None:
        self._vm_changed(id, affected)
        ports.update(dict.fromkeys(view.by(kinds.PORT, "vm", id)))

    def _on_secret(self, _view: View, id: str, affected: Affected, _ports: dict[str, None]) -> None:
        kind, _, owner = id.partition("/")
        if kind == kinds.VM.name:
            self._vm_changed(owner, affected)

    def _on_placement(self, view: View, id: str, affected: Affected, ports: dict[str, None]) -> None:
        self._vm_changed(id, affected)
        self._vm_nodes.pop(id, None)
        if nodes := where(view, id).nodes:
            self._vm_nodes[id] = nodes
        self._on_vm(view, id, affected, ports)

    def _vm_changed(self, id: str, affected: Affected) -> None:
        for node in self._vm_nodes.get(id, ()):
            affected[node].add(f"vm/{id}")

    def _on_volume(self, view: View, id: str, affected: Affected, _ports: dict[str, None]) -> None:
        self._disk_changed(id, affected)
        volume, node = view.get(kinds.VOLUME, id), volume_node(view, id)
        old = self._disks.pop(id, None)
        if old is not None:
            self._copies[old.image][old.node].discard(id)
        if volume is not None and volume_pool(view, id):
            self._disks[id] = _Disk(node, volume.spec.image, volume.spec.vm)
            self._copies.setdefault(volume.spec.image, {}).setdefault(node, set()).add(id)
        self._disk_changed(id, affected)

    _on_volume_placement = _on_volume

    def _on_assignment(self, view: View, id: str, affected: Affected, ports: dict[str, None]) -> None:
        kind, _, object = id.partition("/")
        if kind == VOLUME_WORK:
            self._on_volume(view, object, affected, ports)

    def _disk_changed(self, id: str, affected: Affected) -> None:
        disk = self._disks.get(id)
        if disk is None:
            return
        affected[disk.node].update((f"volume/{id}", f"image/{disk.image}"))
        self._vm_changed(disk.vm, affected)

    def _on_purge(self, view: View, id: str, affected: Affected, _ports: dict[str, None]) -> None:
        for disk in (id, *view.by(kinds.VOLUME, "vm", id)):
            self._disk_changed(disk, affected)

    # --- images ----------------------------------------------------------------------------------------------------------

    def _on_image(self, view: View, id: str, affected: Affected, _ports: dict[str, None]) -> None:
        self._image_changed(id, affected)
        for volume in view.by(kinds.VOLUME, "image", id):
            self._disk_changed(volume, affected)

    def _on_image_content(self, view: View, id: str, affected: Affected, ports: dict[str, None]) -> None:
        self._image_changed(id, affected)
        content = view.get(kinds.IMAGE_CONTENT, id)
        self._replicas.pop(id, None)
        if content is not None:
            self._replicas[id] = tuple(content.nodes)
        self._on_image(view, id, affected, ports)

    def _image_changed(self, id: str, affected: Affected) -> None:
        """Every node that is to hold an image."""
        for node in {*self._replicas.get(id, ()), *self._copies.get(id, ())}:
            affected[node].add(f"image/{id}")

    def _on_observed(self, view: View, id: str, affected: Affected, ports: dict[str, None]) -> None:
        node, kind, object = [*id.split("/", 2), "", ""][:3]
        if kind == kinds.IMAGE.name or view.get(kinds.ERASURE, id) is not None:
            affected[node].add(f"{kind}/{object}")
        if kind == kinds.VM.name:
            vm = view.get(kinds.VM, object)
            if vm is not None and vm.HasField("delete_time"):
                ports.update(dict.fromkeys(view.by(kinds.PORT, "vm", object)))
        if kind != kinds.IMAGE.name:
            return
        observed = view.get(kinds.OBSERVED, id)
        ready = observed is not None and observed.report.image.state == ImageReport.STATE_READY
        if ready != (node in self._ready[object]):
            (self._ready[object].add if ready else self._ready[object].discard)(node)
            self._image_changed(object, affected)

    # --- what nodes hold without being told --------------------------------------------------------------------------------

    def _on_unknown(self, _view: View, id: str, affected: Affected, _ports: dict[str, None]) -> None:
        node, _, key = id.partition("/")
        affected[node].add(key)

    def _on_erasure(self, view: View, id: str, affected: Affected, _ports: dict[str, None]) -> None:
        node, _, key = id.partition("/")
        holders = [*view.by(kinds.OBSERVED, "key", key), *view.by(kinds.UNKNOWN, "key", key)] if node == "-" else [id]
        for holder in holders:
            affected[holder.partition("/")[0]].add(key)

    # --- nodes -----------------------------------------------------------------------------------------------------------

    def _on_node(self, view: View, id: str, affected: Affected, _ports: dict[str, None]) -> None:
        transit = transit_of(view, id)
        if transit == self._transits.get(id):
            return
        self._transits[id] = transit
        for vpc in self.vpcs_on(id):
            nodes = self.vpcs[vpc]
            self._network(vpc, nodes, affected)
            for other in nodes:
                affected[other].update(f"forward/{vpc}/{port}" for port in nodes[id])
        affected[id].update(f"vm/{vm}" for vm in vms_on(view, id))

    _on_node_facts = _on_node

    def _on_node_session(self, view: View, id: str, affected: Affected, _ports: dict[str, None]) -> None:
        session: Any = view.get(kinds.NODE_SESSION, id)
        endpoint = session.endpoint if session is not None else ""
        if endpoint == self._endpoints.get(id, ""):
            return
        self._endpoints[id] = endpoint
        for image, nodes in self._ready.items():
            if id in nodes:
                self._image_changed(image, affected)
