"""Who is where: which ports are on which node, and so which nodes a changed record concerns.

`follow` is told what changed and answers with (node, key) pairs whose desired object may now differ, at a cost of what
changed, not of the cluster. What all nodes of a VPC are told alike is not among the pairs: it is kept here, made (shared.py),
and `follow` names the VPCs in which it changed. A live View does not show what a record was before, so this keeps what it
needs of that: small tables of who was where. Too many pairs are harmless (the object is computed and found unchanged); too few
would leave a node behind, which tests/unit/test_nodespec.py looks for with random histories. Rejected: computing every
connected node's whole set after each change; pairs of (node, card) for all nodes of a VPC.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from cairn.controller.model.assigned import VOLUME_WORK
from cairn.controller.model.owners import hostname_of, ports_of, vm_of
from cairn.controller.model.seats import Seat, Transit, seat_of, transit_of
from cairn.controller.model.where import in_shared_pool, vms_on, volume_node, volume_pool, where
from cairn.controller.shared import NOTHING, Shared, forward_of, peer_of
from cairn.controller.sources import Sources
from cairn.controller.store.base import Changed, View
from cairn.proto import kinds
from cairn.proto.kinds import AnyKind
from cairn.proto.v1.agent_pb2 import BlobSource, Desired, ImageReport
from cairn.proto.v1.image_pb2 import ImageFormat

# Records taken in before others may run.
STEP: Final = 50
UNREACHED: Final = Transit(0, "", 0)
# What the tables are made of, in an order in which each finds what it needs.
_FIRST: Final[tuple[AnyKind, ...]] = (
    kinds.PLACEMENT, kinds.VOLUME_PLACEMENT, kinds.IMAGE_CONTENT, kinds.OBSERVED, kinds.NODE, kinds.NODE_SESSION,
    kinds.SUBNET, kinds.UNKNOWN, kinds.PORT,
)  # fmt: skip
# Node id -> keys of desired objects ("vm/i-1234abcd").
Affected = dict[str, set[str]]


@dataclass(frozen=True, slots=True)
class Touched:
    """What may be different after a change."""

    # Objects that are one node's own.
    objects: Affected
    # VPCs whose shared entries changed.
    vpcs: tuple[str, ...] = ()


class _Disk(NamedTuple):
    """The node that makes and erases a volume (empty: none yet), and what the volume belongs to."""

    node: str
    image: str
    vm: str


class Presence:
    """The tables, as of the view last followed to."""

    def __init__(self, view: View | None = None) -> None:
        """view: take all of it in at once; None: `load` will."""
        self._seats: dict[str, Seat] = {}
        # VPC -> node -> its ports there; and the other way round.
        self.vpcs: dict[str, dict[str, set[str]]] = {}
        self._vpcs_on: dict[str, set[str]] = {}
        self._shared: dict[str, Shared] = {}
        self._shared_changed: dict[str, None] = {}
        self._vm_nodes: dict[str, tuple[str, ...]] = {}
        self._disks: dict[str, _Disk] = {}
        # Image -> node -> volumes there that are copies of it.
        self._copies: dict[str, dict[str, set[str]]] = {}
        self._replicas: dict[str, tuple[str, ...]] = {}
        # Key of what is told of a guest -> disks of one that runs and no record speaks of; volumes in shared pools it has open.
        self._held: dict[str, set[str]] = {}
        # Image -> nodes that hold it; and those of them that can be asked for it.
        self._ready: dict[str, set[str]] = {}
        self._sources: dict[str, Sources] = {}
        self._transits: dict[str, Transit] = {}
        self._endpoints: dict[str, str] = {}
        self._subnets: dict[str, str] = {}
        # What volumes and guests are told of an image; absent: there is none.
        self._images: dict[str, bytes] = {}
        # The first view is being taken in: nobody is told anything yet.
        self._loading = False
        for _ in self.load(view) if view is not None else ():
            pass

    def load(self, view: View) -> Iterator[None]:
        """Take a whole view in, step by step. What changes between steps is to be followed afterwards."""
        self._loading = True
        for kind in _FIRST:
            ids = list(view.ids(kind))
            for start in range(0, len(ids), STEP):
                some = ids[start : start + STEP]
                if kind is kinds.OBSERVED:
                    # Of reports, only those of images are remembered; most are of others.
                    some = [id for id in some if f"/{kinds.IMAGE.name}/" in id]
                self._take_in(view, kind, some)
                yield
        self._loading = False

    def _take_in(self, view: View, kind: AnyKind, ids: Iterable[str]) -> None:
        """Note some records of the first view. Ports come last: what else would move them is noted by then."""
        affected: Affected = defaultdict(set)
        ports: dict[str, None] = {}
        for id in ids:
            RULES[kind.name](self, view, id, affected, ports)
        if kind is kinds.PORT:
            self._move(view, ports, affected)

    def nodes(self, vpc: str) -> Iterable[str]:
        """Return the nodes where a VPC is present."""
        return self.vpcs.get(vpc, {})

    def vpcs_on(self, node: str) -> Collection[str]:
        """Return the VPCs present on a node."""
        return self._vpcs_on.get(node, ())

    def shared(self, vpc: str) -> Shared:
        """Return what all nodes of a VPC are told alike. It grows; another object takes its place now and then."""
        return self._shared.get(vpc, NOTHING)

    def seat(self, port: str) -> Seat | None:
        """Return where a port is."""
        return self._seats.get(port)

    def copies(self, image: str, node: str) -> Iterable[str]:
        """Return the volumes on a node that are copies of an image."""
        return self._copies.get(image, {}).get(node, ())

    def sources(self, image: str, asker: str) -> list[BlobSource]:
        """Return a few nodes that hold an image and are connected, in the order in which a node is to ask them."""
        sources = self._sources.get(image)
        nodes = sources.of(asker) if sources is not None else []
        return [BlobSource(node=node, endpoint=self._endpoints[node]) for node in nodes]

    def follow(self, view: View, changed: Iterable[Changed]) -> Touched:
        """Move to a view; return what may be different now."""
        affected: Affected = defaultdict(set)
        ports: dict[str, None] = {}
        self._shared_changed = {}
        for kind, id in changed:
            rule = RULES.get(kind.name)
            if rule is not None:
                rule(self, view, id, affected, ports)
        self._move(view, ports, affected)
        affected.pop("", None)
        for vpc in self._shared_changed:
            self._tidy(vpc)
        return Touched({node: affected[node] for node in sorted(affected)}, tuple(self._shared_changed))

    # --- ports, and the networks they make present -----------------------------------------------------------------------

    def _on_port(self, _view: View, id: str, _affected: Affected, ports: dict[str, None]) -> None:
        ports[id] = None

    def _move(self, view: View, ports: Iterable[str], affected: Affected) -> None:
        """Take ports to where they are now."""
        for port in ports:
            old, new = self._seats.get(port), seat_of(view, port)
            record = view.get(kinds.PORT, port)
            for each in dict.fromkeys(seat for seat in (old, new) if seat is not None):
                affected[each.node].add(f"port/{port}")
                if record is not None and (vm := vm_of(record)):
                    affected[each.node].add(f"vm/{vm}")
            if old != new:
                self._reseat(view, port, old, new, affected)
            elif old is None:
                self._vm_of(view, port, affected)
            if new is not None:
                self._share_port(view, port, new)

    def _share_port(self, view: View, port: str, seat: Seat) -> None:
        """Have all other nodes of its VPC told how a port is reached."""
        there, binding = self._transit(view, seat.node), view.get(kinds.PORT_BINDING, port)
        forward = forward_of(seat.vpc, port, binding, there, hostname_of(view, port))
        self._share(seat.vpc, f"forward/{seat.vpc}/{port}", seat.node, forward)

    def _share_peer(self, view: View, vpc: str, node: str) -> None:
        """Have all other nodes of a VPC told how one of them is reached, or that it is not among them."""
        peer = peer_of(vpc, node, self._transit(view, node)) if node in self.nodes(vpc) else None
        self._share(vpc, f"peer/{vpc}/{node}", node, peer)

    def _share(self, vpc: str, key: str, node: str, object: Desired | None) -> None:
        if self._shared.setdefault(vpc, Shared()).put(key, node, object):
            self._shared_changed[vpc] = None

    def _tidy(self, vpc: str) -> None:
        """Forget what is gone: of a VPC that is nowhere all, of others when it is too much."""
        if vpc not in self.vpcs:
            del self._shared[vpc]
        elif self._shared[vpc].is_bloated:
            self._shared[vpc] = self._shared[vpc].compacted()

    def _transit(self, view: View, node: str) -> Transit:
        """Return how a node is reached, as last followed."""
        found = self._transits.get(node)
        return transit_of(view, node) if found is None else found

    def _vm_of(self, view: View, port: str, affected: Affected) -> None:
        """A port that is nowhere may be what its VM waits for."""
        record = view.get(kinds.PORT, port)
        if record is not None and (vm := vm_of(record)):
            self._vm_changed(vm, affected)

    def _reseat(self, view: View, port: str, old: Seat | None, new: Seat | None, affected: Affected) -> None:
        if old is not None:
            there = self.vpcs[old.vpc][old.node]
            there.discard(port)
            del self._seats[port]
            if new is None or new.vpc != old.vpc:
                self._share(old.vpc, f"forward/{old.vpc}/{port}", old.node, None)
            if not there:
                self._leave(view, old, affected)
        if new is not None:
            self._seats[port] = new
            if new.node not in self.nodes(new.vpc):
                self._join(view, new, affected)
            self.vpcs[new.vpc][new.node].add(port)

    def _join(self, view: View, seat: Seat, affected: Affected) -> None:
        """A VPC is on a node now: all others learn of it; it learns of all that is shared by having its network touched."""
        self.vpcs.setdefault(seat.vpc, {})[seat.node] = set()
        self._vpcs_on.setdefault(seat.node, set()).add(seat.vpc)
        self._network(seat.vpc, [seat.node], affected)
        self._share_peer(view, seat.vpc, seat.node)

    def _leave(self, view: View, seat: Seat, affected: Affected) -> None:
        del self.vpcs[seat.vpc][seat.node]
        if not self.vpcs[seat.vpc]:
            del self.vpcs[seat.vpc]
        self._vpcs_on[seat.node].discard(seat.vpc)
        if not self._vpcs_on[seat.node]:
            del self._vpcs_on[seat.node]
        self._network(seat.vpc, [seat.node], affected)
        self._share_peer(view, seat.vpc, seat.node)

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
        if self._loading:
            return
        self._network(vpc, self.nodes(vpc), affected)
        # Guests are told the width and the gateway of their subnet: nothing can be told of them while it cannot be read.
        for port in view.by(kinds.PORT, "subnet", id):
            self._vm_of(view, port, affected)

    def _on_project(self, view: View, id: str, affected: Affected, _ports: dict[str, None]) -> None:
        """Guests are told their project's name."""
        for vm in view.by(kinds.VM, "project", id):
            self._vm_changed(vm, affected)

    # --- VMs and volumes -------------------------------------------------------------------------------------------------

    def _on_vm(self, view: View, id: str, affected: Affected, ports: dict[str, None]) -> None:
        self._vm_changed(id, affected)
        self._takers_changed(view, id, affected)
        vm = view.get(kinds.VM, id)
        if vm is None or vm.HasField("delete_time"):
            # Those that go with it are told no more once it was purged.
            for disk in view.by(kinds.VOLUME, "vm", id):
                self._disk_changed(disk, affected)
        ports.update(dict.fromkeys(ports_of(view, kinds.VM, id)))

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

    def _takers_changed(self, view: View, former: str, affected: Affected) -> None:
        """VMs that wait for this one to let go of a volume that was its."""
        for id in view.by(kinds.VOLUME, "former_vm", former):
            volume = view.get(kinds.VOLUME, id)
            if volume is not None and volume.spec.vm:
                self._vm_changed(volume.spec.vm, affected)

    def _vm_changed(self, id: str, affected: Affected) -> None:
        for node in self._vm_nodes.get(id, ()):
            affected[node].add(f"vm/{id}")

    def _on_volume(self, view: View, id: str, affected: Affected, _ports: dict[str, None]) -> None:
        self._disk_changed(id, affected)
        volume, node = view.get(kinds.VOLUME, id), volume_node(view, id)
        old = self._disks.pop(id, None)
        if old is not None:
            _discard(self._copies[old.image], old.node, id)
            if not self._copies[old.image]:
                del self._copies[old.image]
        if volume is not None and volume_pool(view, id):
            self._disks[id] = _Disk(node, volume.spec.image, volume.spec.vm)
            self._copies.setdefault(volume.spec.image, {}).setdefault(node, set()).add(id)
        self._disk_changed(id, affected)
        for seen in view.by(kinds.OBSERVED, "open", id) if in_shared_pool(view, id) else ():
            self._held.setdefault(kinds.OBSERVED.key(seen), set()).add(id)
        # Who administered it before a restore is told to let go of it once the records know it.
        for unknown in view.by(kinds.UNKNOWN, "key", f"volume/{id}"):
            affected[unknown.partition("/")[0]].add(f"volume/{id}")

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
        before, now = self._images.pop(id, b""), _told_of_image(view, id)
        if now:
            self._images[id] = now
        # Where its copies are concerns none of the volumes made of it, which may be all there are.
        if before == now or self._loading:
            return
        for volume in view.by(kinds.VOLUME, "image", id):
            self._disk_changed(volume, affected)

    def _on_image_content(self, view: View, id: str, affected: Affected, ports: dict[str, None]) -> None:
        self._image_changed(id, affected)
        content = view.get(kinds.IMAGE_CONTENT, id)
        self._replicas.pop(id, None)
        if content is not None:
            self._replicas[id] = tuple(content.nodes)
        if id in self._sources:
            self._sources[id].keep(self._replicas.get(id, ()))
        self._on_image(view, id, affected, ports)

    def _image_changed(self, id: str, affected: Affected) -> None:
        """Every node that is to hold an image."""
        for node in {*self._replicas.get(id, ()), *self._copies.get(id, ())}:
            affected[node].add(f"image/{id}")

    def _source_changed(self, image: str, node: str, affected: Affected) -> None:
        """A node holds an image, or not any more, or is reached elsewhere: those that pull it and are told of that node."""
        sources = self._sources.setdefault(image, Sources())
        if not len(sources):
            sources.keep(self._replicas.get(image, ()))
        # Whoever has it is told of no sources.
        lacking = {*self._replicas.get(image, ()), *self._copies.get(image, ())}.difference(self._ready.get(image, ()), (node,))
        told = set(sources.told(node, lacking)) if node in sources else set[str]()
        sources.remove(node)
        if node in self._endpoints and node in self._ready.get(image, ()):
            sources.add(node)
            told.update(sources.told(node, lacking))
        if not len(sources):
            del self._sources[image]
        for each in told:
            affected[each].add(f"image/{image}")

    def _on_observed(self, view: View, id: str, affected: Affected, ports: dict[str, None]) -> None:
        node, kind, object = [*id.split("/", 2), "", ""][:3]
        if kind == kinds.IMAGE.name or view.get(kinds.ERASURE, id) is not None:
            affected[node].add(f"{kind}/{object}")
        if kind == kinds.VOLUME.name and in_shared_pool(view, object):  # Its guest is to see how large it is.
            self._disk_changed(object, affected)
        if kind == kinds.VM.name:
            self._takers_changed(view, object, affected)
            vm, seen = view.get(kinds.VM, object), view.get(kinds.OBSERVED, id)
            open_volumes = seen.report.vm.open_volumes if seen is not None else ()
            self._holds(kinds.OBSERVED.key(id), {each for each in open_volumes if in_shared_pool(view, each)}, affected)
            if vm is not None and vm.HasField("delete_time"):
                ports.update(dict.fromkeys(ports_of(view, kinds.VM, object)))
        if kind != kinds.IMAGE.name:
            return
        observed = view.get(kinds.OBSERVED, id)
        ready = observed is not None and observed.report.image.state == ImageReport.STATE_READY
        if ready == (node in self._ready.get(object, ())):
            return
        if ready:
            self._ready.setdefault(object, set()).add(node)
        else:
            _discard(self._ready, object, node)
        affected[node].add(f"image/{object}")
        self._source_changed(object, node, affected)
        # Who has a copy too many keeps it until a keeper has one.
        for other in view.by(kinds.UNKNOWN, "key", f"image/{object}"):
            affected[other.partition("/")[0]].add(f"image/{object}")

    # --- what nodes hold without being told --------------------------------------------------------------------------------

    def _on_unknown(self, view: View, id: str, affected: Affected, _ports: dict[str, None]) -> None:
        node, _, key = id.partition("/")
        affected[node].add(key)
        told = view.get(kinds.UNKNOWN, id)
        disks = {disk.volume for disk in told.desired.vm.disks} if told is not None and told.running else set[str]()
        self._holds(kinds.UNKNOWN.key(id), disks, affected)

    def _holds(self, key: str, volumes: set[str], affected: Affected) -> None:
        """A guest has these now: VMs may wait for it to let go of one, also of one that names it no more."""
        for volume in self._held.pop(key, set[str]()) ^ volumes:
            self._disk_changed(volume, affected)
        if volumes:
            self._held[key] = volumes

    def _on_erasure(self, view: View, id: str, affected: Affected, _ports: dict[str, None]) -> None:
        node, _, key = id.partition("/")
        holders = [*view.by(kinds.OBSERVED, "key", key), *view.by(kinds.UNKNOWN, "key", key)] if node == "-" else [id]
        for holder in holders:
            affected[holder.partition("/")[0]].add(key)

    # --- nodes -----------------------------------------------------------------------------------------------------------

    def _on_node(self, view: View, id: str, affected: Affected, _ports: dict[str, None]) -> None:
        transit = transit_of(view, id)
        if transit == self._transits.get(id, UNREACHED):
            return
        self._transits.pop(id, None)
        if transit != UNREACHED:
            self._transits[id] = transit
        for vpc in self.vpcs_on(id):
            self._network(vpc, [id], affected)
            self._share_peer(view, vpc, id)
            for port in self.vpcs[vpc][id]:
                self._share_port(view, port, self._seats[port])
        affected[id].update(f"vm/{vm}" for vm in vms_on(view, id))

    def _on_node_session(self, view: View, id: str, affected: Affected, _ports: dict[str, None]) -> None:
        session: Any = view.get(kinds.NODE_SESSION, id)
        endpoint = session.endpoint if session is not None else ""
        if endpoint == self._endpoints.get(id, ""):
            return
        self._endpoints.pop(id, None)
        if endpoint:
            self._endpoints[id] = endpoint
        for image, nodes in self._ready.items():
            if id in nodes:
                self._source_changed(image, id, affected)


def _told_of_image(view: View, id: str) -> bytes:
    """Return all that desired volumes and guests are made of, of an image; empty: there is none."""
    image, content = view.get(kinds.IMAGE, id), view.get(kinds.IMAGE_CONTENT, id)
    if image is None:
        return b""
    format = content.format if content is not None else ImageFormat.IMAGE_FORMAT_UNSPECIFIED
    return image.spec.SerializeToString(deterministic=True) + b"/%d" % format


def _discard(table: dict[str, set[str]], key: str, value: str) -> None:
    """Take a value out of a set, and the set with its last."""
    if key in table:
        table[key].discard(value)
        if not table[key]:
            del table[key]


_Rule = Callable[[Presence, View, str, Affected, dict[str, None]], None]
# Record kind -> what a change of one means.
RULES: Final[dict[str, _Rule]] = {
    kinds.PROJECT.name: Presence._on_project,
    kinds.PORT.name: Presence._on_port,
    kinds.PORT_BINDING.name: Presence._on_port,
    kinds.VPC.name: Presence._on_vpc,
    kinds.SUBNET.name: Presence._on_subnet,
    kinds.VM.name: Presence._on_vm,
    kinds.SECRET.name: Presence._on_secret,
    kinds.PLACEMENT.name: Presence._on_placement,
    kinds.VOLUME.name: Presence._on_volume,
    kinds.VOLUME_PLACEMENT.name: Presence._on_volume,
    kinds.PURGE.name: Presence._on_purge,
    kinds.ASSIGNMENT.name: Presence._on_assignment,
    kinds.OPENING.name: Presence._on_volume,
    kinds.UNKNOWN.name: Presence._on_unknown,
    kinds.ERASURE.name: Presence._on_erasure,
    kinds.IMAGE.name: Presence._on_image,
    kinds.IMAGE_CONTENT.name: Presence._on_image_content,
    kinds.OBSERVED.name: Presence._on_observed,
    kinds.NODE.name: Presence._on_node,
    kinds.NODE_FACTS.name: Presence._on_node,
    kinds.NODE_SESSION.name: Presence._on_node_session,
}
