"""What a node must hold: a pure function of (view, node), and the same per key. The keys are those of proto/v1/agent.proto.

    vm/<id>               its VM; `absent` while it is deleted and its record lives
    volume/<id>           in its own pool, or in a shared one, to administer; `absent` once its retention, or its VM's, is over
    image/<id>            kept here as a copy, or needed by a volume here; with nodes to pull it from until it is here; `absent`
                          when it was, until the node has removed it
    port/<id>             a guest's card here, once it has an address
    network/<vpc>         a VPC with a port here: all its subnets
    peer/<vpc>/<node>     another node where that VPC is present
    forward/<vpc>/<port>  a guest's card elsewhere, of a VPC present here

`node_objects` gives all of it, `own_keys` and `desired` what is this node's alone: peers and forwards are the same for all
nodes of a VPC, and are made once (shared.py). presence.py says which ones a change may have touched. A node is told only what
concerns it.

There are three answers: an object, None (it need not be held), and CannotTell: a record that the object is made of is missing,
or cannot be read. Then nothing is said about it, and the node keeps what it has (docs/decisions/0013).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final, TypeVar

from cairn.controller.model.administered import let_go_of
from cairn.controller.model.assigned import VOLUME_WORK, assigned_to, assignment
from cairn.controller.model.attachments import is_let_go
from cairn.controller.model.capabilities import lacking
from cairn.controller.model.lifetime import kept_no_longer
from cairn.controller.model.openings import claim_of, is_given, is_outcast, shut_out_of
from cairn.controller.model.owners import hostname_of, vm_of
from cairn.controller.model.readable import CannotTell, Readable
from cairn.controller.model.reports import volume_known_bytes
from cairn.controller.model.restored import is_restored, settled
from cairn.controller.model.seats import transit_of
from cairn.controller.model.slots import slots
from cairn.controller.model.unreadable import all_unreadable
from cairn.controller.model.where import (
    claimed,
    in_shared_pool,
    needs_permit,
    vms_on,
    volume_claimed_bytes,
    volume_node,
    volume_nodes,
    volume_pool,
    volumes_on,
    where,
)
from cairn.controller.presence import Presence
from cairn.controller.shared import forward_of, peer_of
from cairn.controller.store.base import View
from cairn.net import ipam
from cairn.proto import kinds
from cairn.proto.addresses import addresses_of, set_addresses
from cairn.proto.capabilities import ABSENT_IMAGES
from cairn.proto.ids import GUEST_DOMAIN, LOCAL_POOL, mac_of, router_mac, tap_of, transit_address
from cairn.proto.keys import UNSETTLED
from cairn.proto.kinds import AnyKind, Kind
from cairn.proto.v1.agent_pb2 import (
    VM_ROLE_INCOMING,
    VM_ROLE_UNSPECIFIED,
    Desired,
    DesiredImage,
    DesiredNetwork,
    DesiredPort,
    DesiredSubnet,
    DesiredVm,
    DesiredVolume,
    ImageReport,
    VmDisk,
    VmNic,
    VolumeReport,
)
from cairn.proto.v1.image_pb2 import IMAGE_FORMAT_UNSPECIFIED
from cairn.proto.v1.node_pb2 import Assignment
from cairn.proto.v1.port_pb2 import PortBinding
from cairn.proto.v1.secret_pb2 import Secret
from cairn.proto.v1.vm_pb2 import POWER_STATE_STOPPED, Vm
from cairn.proto.v1.volume_pb2 import Volume
from google.protobuf.message import Message

M = TypeVar("M", bound=Message)

# What a node may know better than a restored record.
_RESTORABLE: Final[dict[str, AnyKind]] = {kind.name: kind for kind in (kinds.VM, kinds.VOLUME)}
# VXLAN over IPv4 (RFC 7348): 14 + 20 + 8 + 8 bytes.
VXLAN_OVERHEAD: Final = 50
MTU_MAX: Final = 1500


def node_objects(view: View, presence: Presence, node: str, kept: set[str] | None = None) -> dict[str, Desired]:
    """Return everything a node must hold, by key. kept: takes the keys and kinds ("forward/") of which that cannot be told."""
    found: dict[str, Desired] = {}
    cannot = set(unsure(view))
    for key in sorted({*own_keys(view, presence, node), *_shared_keys(presence, node)}):
        try:
            object = desired(view, presence, node, key)
        except CannotTell:
            cannot.add(key)
            continue
        if object is not None:
            found[key] = object
    if kept is not None:
        kept |= cannot
    return found


def unsure(view: View) -> frozenset[str]:
    """Return what any node may have to hold because of records that nobody can read, or that a restored store lacks.

    Keys where they are known, else kinds; UNSETTLED for what is to be decided after a restore.
    """
    found: set[str] = set() if settled(view) else {UNSETTLED}
    for kind, id, unreadable in all_unreadable(view):
        if not unreadable.kept:
            found |= {text.format(id=id) for text in _LEADS_TO.get(kind, ())}
    return frozenset(found)


def desired(view: View, presence: Presence, node: str, key: str, *, told: bool = False) -> Desired | None:
    """Return one object a node must hold, or None when it need not hold it, or its agent never understood it.

    told: it was told to hold that key just before. What need not be held, holds something, and can be said to be `absent`, is
    not None until the node has removed it. Raises CannotTell.
    """
    kind, _, id = key.partition("/")
    view = Readable(view) if view.harmed else view
    made = _MAKERS[kind](view, presence, node, id)
    if made is None:
        made = _absent(view, node, key, told=told)
    elif kind in _RESTORABLE:
        made.restored = is_restored(view, _RESTORABLE[kind], id)
    missing = lacking(view, node, made) if made is not None else []
    if missing and missing != [ABSENT_IMAGES]:
        raise CannotTell(f"its agent does not know {', '.join(missing)}")
    # An older agent removes an image that it is not sent any more.
    return None if missing else made


def _absent(view: View, node: str, key: str, *, told: bool) -> Desired | None:
    """Return the explicit word that a node must not hold something, as long as it may."""
    seen, unknown = view.get(kinds.OBSERVED, f"{node}/{key}"), view.get(kinds.UNKNOWN, f"{node}/{key}")
    erasure = view.get(kinds.ERASURE, f"{node}/{key}")
    if erasure is not None:
        # Until garbage.py has seen it done, also when the node calls it unknown no more and has not removed it yet.
        return erasure.desired
    if seen is None and unknown is None and not told:
        return None
    if seen is not None and seen.report.image.state == ImageReport.STATE_ABSENT:
        return None
    everywhere, image = view.get(kinds.ERASURE, f"-/{key}"), view.get(kinds.IMAGE, key.partition("/")[2])
    if everywhere is not None:
        return None if seen is not None and seen.report.volume.state == VolumeReport.STATE_ABSENT else everywhere.desired
    if image is None or not _is_kept(view, node, image.id):
        return None
    # Its record is there, and says that this node need not keep it.
    return Desired(image=DesiredImage(id=image.id, digest=image.spec.digest, absent=True))


def _is_kept(view: View, node: str, image: str) -> bool:
    """Tell whether others keep an image that a node need not: those of a backup may have left, and this copy be the last."""
    content = view.get(kinds.IMAGE_CONTENT, image)
    if content is None:
        return view.get(kinds.UNKNOWN, f"{node}/image/{image}") is None
    if content.failed or not is_restored(view, kinds.IMAGE_CONTENT, image):
        return True
    return any(_holds(view, keeper, image) for keeper in content.nodes)


def own_keys(view: View, presence: Presence, node: str) -> Iterator[str]:
    """Yield at least the keys of what this node alone must hold; some more than once."""
    yield from (f"vm/{id}" for id in vms_on(view, node))
    yield from (f"image/{id}" for id in view.by(kinds.IMAGE_CONTENT, "node", node))
    for id in (*volumes_on(view, node), *assigned_to(view, node, VOLUME_WORK)):
        yield f"volume/{id}"
        volume = view.get(kinds.VOLUME, id)
        if volume is not None and volume.spec.image:
            yield f"image/{volume.spec.image}"
    yield from (id.partition("/")[2] for kind in (kinds.UNKNOWN, kinds.ERASURE) for id in view.by(kind, "node", node))
    reported = (id.partition("/")[2] for id in view.by(kinds.OBSERVED, "node", node))
    yield from (key for key in reported if key.startswith("image/"))
    for vpc in presence.vpcs_on(node):
        yield f"network/{vpc}"
        yield from (f"port/{port}" for port in presence.vpcs[vpc][node])


def _shared_keys(presence: Presence, node: str) -> Iterator[str]:
    """Yield the keys of what this node holds because its VPCs are elsewhere too."""
    for vpc in presence.vpcs_on(node):
        for there, ports in presence.vpcs[vpc].items():
            if there != node:
                yield f"peer/{vpc}/{there}"
                yield from (f"forward/{vpc}/{port}" for port in ports)


def mtu(view: View, node: str) -> int:
    """Return the MTU of guests' cards on a node."""
    return min(transit_of(view, node).mtu or MTU_MAX, MTU_MAX) - VXLAN_OVERHEAD


def _vm(view: View, _presence: Presence, node: str, id: str) -> Desired | None:
    record, place = view.record(kinds.VM, id), where(view, id)
    role = place.role(node)
    if record is None or role == VM_ROLE_UNSPECIFIED:
        return None
    vm = record.message
    if vm.HasField("delete_time") or place.released:
        # One that was brought back and is not placed again yet: what is absent is its life before.
        generation = vm.spec.power_generation if vm.HasField("delete_time") else 0
        return Desired(vm=DesiredVm(id=id, name=vm.name, project=vm.project, absent=True, power_generation=generation))
    spec, project, room = vm.spec, _needed(view, kinds.PROJECT, vm.project) if vm.project else None, claimed(view, id)
    image = view.get(kinds.IMAGE, spec.image)
    result = DesiredVm(
        id=id,
        name=vm.name,
        project=vm.project,
        project_name=project.name if project is not None else "",
        # What was claimed, not what is asked for: a node is never asked for more than it has.
        cpus=room.cpus,
        memory_bytes=room.memory_bytes,
        arch=spec.arch or (image.spec.arch if image is not None else ""),
        disks=_disks(view, node, vm),
        nics=_nics(view, node, vm),
        power_state=spec.power_state,
        power_generation=spec.power_generation,
        reboot_generation=spec.reboot_generation,
        force=spec.force,
        restart_policy=spec.restart_policy,
        hostname=vm.name,
        # Of VMs made by older releases; later ones have a secret.
        ssh_keys=spec.ssh_keys,
        user_data=spec.user_data,
        sealed=_sealed(view, vm),
        spec_revision=record.mod_revision,
        volumes_generation=spec.volumes_generation,
        role=role,
        needs_permit=needs_permit(view, vm),
    )
    if spec.root_volume and is_outcast(view, spec.root_volume, id, node):
        # Its disk is dead: once its guest is off it gets the disk anew, and is started again.
        result.power_state, result.force = POWER_STATE_STOPPED, True
    return Desired(vm=result)


def _sealed(view: View, vm: Vm) -> Secret | None:
    """Return its keys and user data. Raises CannotTell when some were given and are not there: a guest reads them once."""
    given = vm.spec.ssh_key_count or vm.spec.user_data_bytes
    return _needed(view, kinds.SECRET, f"vm/{vm.id}") if given else view.get(kinds.SECRET, f"vm/{vm.id}")


def _needed(view: View, kind: Kind[M], id: str) -> M:
    """Return a record that another one refers to. Raises CannotTell when it is not there."""
    found = view.get(kind, id)
    if found is None:
        raise CannotTell(f"{kind.name} {id} is not there")
    return found


def _bound(view: View, port: str) -> PortBinding:
    """Return the address of a port. Raises CannotTell when it has none, yet or any more."""
    binding = _needed(view, kinds.PORT_BINDING, port)
    if not addresses_of(binding):
        raise CannotTell(f"port {port} has no address yet")
    return binding


def _nics(view: View, node: str, vm: Vm) -> list[VmNic]:
    """Return the cards. Raises CannotTell, also while one has no address yet."""
    nics: list[VmNic] = []
    for nic in vm.spec.nics:
        binding, subnet = _bound(view, nic.port), _needed(view, kinds.SUBNET, nic.subnet)
        card = VmNic(
            port=nic.port,
            tap=tap_of(nic.port),
            mac=mac_of(nic.port),
            mtu=mtu(view, node),
            subnet=nic.subnet,
            prefix_length=ipam.prefix_length(subnet.spec.cidr),
            gateway=ipam.gateway(subnet.spec.cidr),
        )
        set_addresses(card, addresses_of(binding))
        nics.append(card)
    return nics


def _disks(view: View, node: str, vm: Vm) -> list[VmDisk]:
    """Return the VM's disks on this node, in the order its guest is to find them. Raises CannotTell when one has no record."""
    for id in filter(None, (vm.spec.root_volume, *vm.spec.volumes)):
        _needed(view, kinds.VOLUME, id)
    disks, order = list[VmDisk](), slots(view, vm.id)
    for id in view.by(kinds.VOLUME, "vm", vm.id):
        volume = view.get(kinds.VOLUME, id)
        if volume is not None and node in volume_nodes(view, id) and not _erased(view, id):
            disk = VmDisk(volume=id, boot=volume.spec.boot, slot=order[id])
            if in_shared_pool(view, id) and not _is_its_turn(view, node, vm, volume):
                continue
            if volume.spec.type not in ("", LOCAL_POOL):
                disk.type, disk.pool, disk.open_generation = volume.spec.type, volume_pool(view, id), claim_of(view, id, node)
                disk.size_bytes = volume_known_bytes(view, id)
            disks.append(disk)
    return sorted(disks, key=lambda disk: (disk.slot, disk.volume))


def _is_its_turn(view: View, node: str, vm: Vm, volume: Volume) -> bool:
    """Tell whether a node is told of a shared disk of a VM; one that the VM is to move to looks at it, and opens it not yet."""
    if where(view, vm.id).role(node) == VM_ROLE_INCOMING:
        return is_let_go(view, volume)
    given = is_given(view, volume, vm.id, node)
    if volume.spec.boot and not given and not is_outcast(view, volume.id, vm.id, node):
        raise CannotTell(f"volume {volume.id} is not to be opened there yet")
    return given


def _erased(view: View, id: str) -> bool:
    """Tell whether a volume's retention, or that of the VM it goes with, is over."""
    volume = view.get(kinds.VOLUME, id)
    if volume is None or view.get(kinds.PURGE, id) is not None:
        return True
    return volume.spec.delete_with_vm and bool(volume.spec.vm) and view.get(kinds.PURGE, volume.spec.vm) is not None


def _goes(view: View, volume: Volume) -> bool:
    """Tell whether a volume was purged, by itself or with its VM: what is written next is that it be erased."""
    vm = view.get(kinds.VM, volume.spec.vm) if volume.spec.vm and volume.spec.delete_with_vm else None
    return any(each.HasField("delete_time") and kept_no_longer(each) for each in (volume, vm) if each is not None)


def _volume(view: View, _presence: Presence, node: str, id: str) -> Desired | None:
    volume = view.get(kinds.VOLUME, id)
    if volume is None or node != volume_node(view, id):
        return Desired(volume=elsewhere) if (elsewhere := let_go_of(view, node, id)) is not None else None
    work = assignment(view, VOLUME_WORK, id) or Assignment()
    result = DesiredVolume(id=id, type=volume.spec.type, pool=volume_pool(view, id), generation=work.generation, made=work.made)
    if _erased(view, id):
        result.absent = True
        return Desired(volume=result)
    if _goes(view, volume):
        # Its node may have erased it before a restore: told that it is to be, it would make it anew, empty.
        raise CannotTell(f"volume {id} was purged, and is not said to be erased yet")
    result.shut_out = shut_out_of(view, id)
    # Not larger than the room claimed for it.
    result.size_bytes = volume_claimed_bytes(view, id)
    image = view.get(kinds.IMAGE, volume.spec.image) if volume.spec.image else None
    if image is not None:
        content = view.get(kinds.IMAGE_CONTENT, image.id)
        found = content.format if content is not None else IMAGE_FORMAT_UNSPECIFIED
        result.image, result.image_digest, result.image_format = image.id, image.spec.digest, found or image.spec.format
    return Desired(volume=result)


def _image(view: View, presence: Presence, node: str, id: str) -> Desired | None:
    image, content = view.get(kinds.IMAGE, id), view.get(kinds.IMAGE_CONTENT, id)
    if image is None:
        return None
    kept = content is not None and node in content.nodes
    if not kept and all(_erased(view, volume) for volume in presence.copies(id, node)):
        return None
    spec = image.spec
    result = DesiredImage(id=id, digest=spec.digest, size_bytes=spec.size_bytes, format=spec.format)
    if not _holds(view, node, id):
        result.sources.extend(presence.sources(id, node))
    return Desired(image=result)


def _holds(view: View, node: str, image: str) -> bool:
    observed = view.get(kinds.OBSERVED, f"{node}/image/{image}")
    return observed is not None and observed.report.image.state == ImageReport.STATE_READY


def _network(view: View, presence: Presence, node: str, vpc: str) -> Desired | None:
    nodes, own = presence.nodes(vpc), transit_of(view, node)
    if node not in nodes:
        return None
    if not own.index or not own.vtep:
        raise CannotTell(f"how node {node} is reached is not known")
    record = _needed(view, kinds.VPC, vpc)
    _all_subnets(view, presence, node, vpc)
    result = DesiredNetwork(
        vpc=vpc,
        transit_vni=record.spec.vni,
        transit_address=transit_address(own.index),
        router_mac=router_mac(own.index),
        vtep=own.vtep,
        mtu=mtu(view, node),
        cidr=record.spec.cidr,
        domain=f"{record.name}.{GUEST_DOMAIN}",
    )
    for id in view.by(kinds.SUBNET, "vpc", vpc):
        subnet = view.get(kinds.SUBNET, id)
        if subnet is not None:
            cidr = subnet.spec.cidr
            result.subnets.append(DesiredSubnet(id=id, vni=subnet.spec.vni, cidr=cidr, gateway=ipam.gateway(cidr)))
    return Desired(network=result)


def with_peers(view: View, presence: Presence, node: str, network: DesiredNetwork) -> DesiredNetwork:
    """Return a network with its peers in it, for an agent that does not know them as objects."""
    result = DesiredNetwork()
    result.CopyFrom(network)
    for other in sorted(presence.nodes(network.vpc)):
        peer = peer_of(network.vpc, other, transit_of(view, other))
        if other != node and peer is not None:
            told = peer.peer
            result.peers.add(node=told.node, vtep=told.vtep, transit_address=told.transit_address, router_mac=told.router_mac)
    return result


def _all_subnets(view: View, presence: Presence, node: str, vpc: str) -> None:
    """See that no subnet is left out. Raises CannotTell when one is missing that is used here, or one cannot be read."""
    listed = set(view.by(kinds.SUBNET, "vpc", vpc))
    for port in presence.vpcs[vpc][node]:
        binding = view.get(kinds.PORT_BINDING, port)
        if binding is not None and binding.subnet not in listed:
            raise CannotTell(f"subnet {binding.subnet} is not there")
    for id, each in view.unreadable(kinds.SUBNET).items():
        ports = (view.get(kinds.PORT, port) for port in view.by(kinds.PORT, "subnet", id))
        if not each.kept and any(port is not None and port.spec.vpc == vpc for port in ports):
            raise CannotTell(f"subnet {id} cannot be read")


def _lost_seat(view: View, id: str) -> None:
    """Raise CannotTell when a port is nowhere because its address is not there, though its guest may run."""
    port = view.get(kinds.PORT, id)
    if port is not None and where(view, vm_of(port)).runs_on:
        _bound(view, id)


def _port(view: View, presence: Presence, node: str, id: str) -> Desired | None:
    seat = presence.seat(id)
    if seat is None or seat.node != node:
        _lost_seat(view, id)
        return None
    port, binding = _needed(view, kinds.PORT, id), _bound(view, id)
    result = DesiredPort(
        id=id,
        vpc=seat.vpc,
        subnet=binding.subnet,
        mac=binding.mac,
        vm=vm_of(port),
        tap=tap_of(id),
        hostname=hostname_of(view, id),
    )
    set_addresses(result, addresses_of(binding))
    return Desired(port=result)


def _forward(view: View, presence: Presence, node: str, id: str) -> Desired | None:
    vpc, _, port = id.partition("/")
    seat = presence.seat(port)
    if seat is None or seat.vpc != vpc or seat.node == node or node not in presence.nodes(vpc):
        return None
    binding = view.get(kinds.PORT_BINDING, port)
    return forward_of(vpc, port, binding, transit_of(view, seat.node), hostname_of(view, port))


def _peer(view: View, presence: Presence, node: str, id: str) -> Desired | None:
    vpc, _, other = id.partition("/")
    nodes = presence.nodes(vpc)
    return peer_of(vpc, other, transit_of(view, other)) if other != node and node in nodes and other in nodes else None


_MAKERS: Final[dict[str, Callable[[View, Presence, str, str], Desired | None]]] = {
    "vm": _vm,
    "volume": _volume,
    "image": _image,
    "network": _network,
    "port": _port,
    "forward": _forward,
    "peer": _peer,
}
# What a record that was never readable may have led to, on any node.
_CARDS: Final = ("port/", "network/", "forward/", "peer/")
_LEADS_TO: Final[dict[AnyKind, tuple[str, ...]]] = {
    kinds.VM: ("vm/{id}", *_CARDS),
    kinds.PLACEMENT: ("vm/{id}", *_CARDS),
    kinds.PORT: _CARDS,
    kinds.PORT_BINDING: _CARDS,
    kinds.VPC: ("network/{id}",),
    kinds.NODE: _CARDS[1:],
    kinds.NODE_FACTS: _CARDS[1:],
    kinds.VOLUME: ("volume/{id}", "image/"),
    kinds.VOLUME_PLACEMENT: ("volume/{id}", "image/"),
    kinds.ASSIGNMENT: ("volume/",),
    kinds.IMAGE: ("image/{id}",),
    kinds.IMAGE_CONTENT: ("image/{id}",),
}
# Kinds that no desired object is made of. A new kind is among these or in presence.py's RULES (tests/test_tidy.py).
NOBODYS: Final = frozenset(
    kind.name
    for kind in (
        kinds.JOIN_TOKEN, kinds.NAME, kinds.VNI, kinds.REQUEST, kinds.PLAN, kinds.ADDRESS, kinds.DECISION, kinds.NODE_CLAIMS,
        kinds.POOL_CLAIMS, kinds.NODE_HEARD, kinds.NODE_LOSS, kinds.JOB, kinds.JOB_STATE, kinds.CONTROLLER, kinds.CLUSTER,
        kinds.EVENT, kinds.EVENT_OF, kinds.NODE_TOLD, kinds.NODE_POOLS, kinds.CONTROLLER_MEMBER, kinds.USER, kinds.ROLE,
        kinds.BINDING, kinds.API_TOKEN, kinds.IDENTITY_PROVIDER, kinds.QUOTA, kinds.QUOTA_USE,
        kinds.PRICE_LIST, kinds.NODE_LAST, kinds.CONTROLLER_LAST,
        kinds.AUDIT, kinds.AUDIT_HEAD, kinds.AUDIT_CUT, kinds.USAGE_CLOCK, kinds.USAGE_CURSOR, kinds.USAGE_OPEN,
        kinds.USAGE_DAY, kinds.USAGE_MONTH, kinds.USAGE_GAP,
    )
)  # fmt: skip
