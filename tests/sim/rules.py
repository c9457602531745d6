"""What the design says must be, worked out from the records once more, by code that shares nothing with the product's.

A record is one of `cloud.all(kind)`. Sources: the comments in proto/v1, docs/architecture.md. For checkers: slow and plain.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Network
from typing import Any, Final

from cairn.proto.v1.agent_pb2 import VmReport

from tests.sim.cloud import Cloud, Host

# NodeSpec's comments; a local pool keeps a twentieth for itself.
OVERCOMMIT: Final = 4.0
MEMORY_SHARE: Final = 0.9
DISK_SHARE: Final = 0.95
# Of a subnet: its network and broadcast address, and the gateway.
ADDRESSES_RESERVED: Final = 3
SECTOR: Final = 512


@dataclass(frozen=True, slots=True)
class Amounts:
    """What a node has, or what is claimed of it, but for its pool."""

    cpus: int = 0
    memory_bytes: int = 0
    vms: int = 0


def deleted(message: Any) -> bool:
    """Tell whether an object is deleted, for good or not."""
    return message is not None and message.HasField("delete_time")


def capacity(cloud: Cloud, node: str) -> Amounts:
    """Return what placements may use of a node."""
    record, facts = cloud.get("node", node), cloud.get("node_facts", node)
    if record is None or facts is None:
        return Amounts()
    overcommit = record.spec.cpu_overcommit if record.spec.HasField("cpu_overcommit") else OVERCOMMIT
    share = record.spec.memory_share if record.spec.HasField("memory_share") else MEMORY_SHARE
    return Amounts(int(facts.cpu.threads * overcommit), int(facts.memory_bytes * share))


def pool_of(place: Any) -> str:
    """Return the pool a volume is in; records of older releases name only the node, and mean its local pool."""
    return str(place.pool or f"local/{place.node}")


def pools_of(facts: Any, node: str) -> dict[str, int]:
    """Return pool -> bytes of what a node reaches: pools with a name are shared."""
    return {f"{pool.type}/{pool.name or node}": pool.total_bytes for pool in facts.pools}


def pool_capacity(cloud: Cloud, pool: str) -> int:
    """Return how many bytes of a pool may be promised: of the least a connected node reports, else of the least reported."""
    told = {
        node: pools_of(facts, node)[pool] for node, facts in cloud.all("node_facts").items() if pool in pools_of(facts, node)
    }
    fresh = {node: total for node, total in told.items() if cloud.get("node_session", node) is not None}
    return min((int(total * DISK_SHARE) for total in (fresh or told).values()), default=0)


def pool_claimed(cloud: Cloud, pool: str) -> int:
    """Return what places of volumes hold of a pool, summed up."""
    return sum(each.disk_bytes for each in cloud.all("volume_placement").values() if pool_of(each) == pool)


def pool_free(cloud: Cloud, pool: str) -> int:
    """Return what is left of a pool."""
    return pool_capacity(cloud, pool) - pool_claimed(cloud, pool)


def claimed(cloud: Cloud, node: str) -> Amounts:
    """Return what placements hold of a node, summed up."""
    holding = [each for each in cloud.all("placement").values() if each.node == node and not each.released]
    return Amounts(sum(each.cpus for each in holding), sum(each.memory_bytes for each in holding), len(holding))


def free(cloud: Cloud, node: str) -> Amounts:
    """Return what is left of a node."""
    most, taken = capacity(cloud, node), claimed(cloud, node)
    return Amounts(most.cpus - taken.cpus, most.memory_bytes - taken.memory_bytes)


def volumes_of(cloud: Cloud, vm: str) -> list[Any]:
    """Return the volumes attached to a VM, its root among them."""
    return [volume for volume in cloud.all("volume").values() if volume.spec.vm == vm]


def could_go(cloud: Cloud, vm: Any) -> Iterator[str]:
    """Yield the connected nodes that would take a VM as it is asked for."""
    image = cloud.get("image", vm.spec.image)
    arch = vm.spec.arch or (image.spec.arch if image is not None else "")
    places = {volume.id: cloud.get("volume_placement", volume.id) for volume in volumes_of(cloud, vm.id)}
    held_in = {pool_of(place) for place in places.values() if place is not None}
    wanted: dict[str, int] = {}
    for id, place in places.items():
        if place is None:
            spec = cloud.get("volume", id).spec
            wanted[spec.type or "local"] = wanted.get(spec.type or "local", 0) + spec.size_bytes
    for id, node in cloud.all("node").items():
        facts, left = cloud.get("node_facts", id), free(cloud, id)
        if facts is None or cloud.get("node_session", id) is None or node.spec.cordoned or deleted(node):
            continue
        if arch not in facts.hypervisor.archs or facts.hypervisor.silent or (vm.spec.node and vm.spec.node != id):
            continue
        pools = pools_of(facts, id)
        room = [
            any(pool.partition("/")[0] == type and pool_free(cloud, pool) >= disk for pool in pools)
            for type, disk in wanted.items()
        ]
        if held_in - pools.keys() or not all(room):
            continue
        if any(node.labels.get(key) != value for key, value in vm.spec.node_selector.items()):
            continue
        if vm.spec.cpus <= left.cpus and vm.spec.memory_bytes <= left.memory_bytes:
            yield id


def addressed(cloud: Cloud, vm: Any) -> bool:
    """Tell whether every card of a VM has an address."""
    bindings = [cloud.get("port_binding", nic.port) for nic in vm.spec.nics]
    return all(binding is not None and binding.addresses for binding in bindings)


def addresses_left(cloud: Cloud, subnet: str) -> int:
    """Return how many addresses of a subnet nobody has."""
    record = cloud.get("subnet", subnet)
    taken = [each for each in cloud.all("port_binding").values() if each.subnet == subnet and each.addresses]
    return IPv4Network(record.spec.cidr).num_addresses - ADDRESSES_RESERVED - len(taken)


def node_of(cloud: Cloud, vm: str) -> str:
    """Return the node a VM is to be on now; empty: none."""
    record, placement = cloud.get("vm", vm), cloud.get("placement", vm)
    if record is None or deleted(record) or placement is None or placement.released:
        return ""
    return str(placement.node)


def guests_on(cloud: Cloud, node: str) -> set[str]:
    """Return the VMs a node must have a configuration of."""
    vms = cloud.all("vm")
    return {id for id in vms if node_of(cloud, id) == node and addressed(cloud, vms[id])}


def card_of(port: Any) -> str:
    """Return the VM whose card a port is; records of older releases name it otherwise. Empty: it is nobody's, or another's."""
    if port.spec.HasField("owner"):
        return str(port.spec.owner.id) if port.spec.owner.kind == "vm" else ""
    return str(port.spec.vm)


def seats(cloud: Cloud, vpc: str) -> dict[str, str]:
    """Return port -> node of every card of a VPC whose VM is to be somewhere."""
    found = {}
    for id, port in cloud.all("port").items():
        binding = cloud.get("port_binding", id)
        if binding is not None and binding.vpc == vpc and binding.addresses and (node := _seat(cloud, card_of(port))):
            found[id] = node
    return found


def _seat(cloud: Cloud, vm: str) -> str:
    """A card keeps its place until its guest is gone."""
    placement = cloud.get("placement", vm)
    if cloud.get("vm", vm) is None or placement is None or placement.released or not placement.node:
        return ""
    observed = cloud.get("observed", f"{placement.node}/vm/{vm}")
    gone = observed is not None and observed.report.vm.state == VmReport.STATE_ABSENT
    return "" if gone and deleted(cloud.get("vm", vm)) else str(placement.node)


def volumes_on(cloud: Cloud, node: str) -> dict[str, int]:
    """Return volume -> bytes of what a node must hold: what is placed there and not to be erased."""
    found = {}
    for id, place in cloud.all("volume_placement").items():
        volume = cloud.get("volume", id)
        if place.node != node or volume is None or cloud.get("purge", id) is not None:
            continue
        if volume.spec.delete_with_vm and volume.spec.vm and cloud.get("purge", volume.spec.vm) is not None:
            continue
        found[id] = -(-place.disk_bytes // SECTOR) * SECTOR
    return found


def in_shared_pool(cloud: Cloud, volume: str) -> bool:
    """Tell whether a volume is in the pool all nodes reach."""
    place = cloud.get("volume_placement", volume)
    return place is not None and not place.node


def erased(cloud: Cloud, volume: str) -> bool:
    """Tell whether a volume is to be erased, or gone."""
    record = cloud.get("volume", volume)
    if record is None or cloud.get("purge", volume) is not None:
        return True
    return bool(record.spec.delete_with_vm and record.spec.vm and cloud.get("purge", record.spec.vm) is not None)


def shared_volumes(cloud: Cloud) -> dict[str, int]:
    """Return volume -> bytes of what the shared pool must hold."""
    places = cloud.all("volume_placement").items()
    return {id: -(-place.disk_bytes // SECTOR) * SECTOR for id, place in places if not place.node and not erased(cloud, id)}


def administered(cloud: Cloud, node: str) -> list[str]:
    """Return the volumes of the shared pool that a node makes, grows and erases."""
    work = [each for each in cloud.all("assignment").values() if each.kind == "volume" and each.node == node]
    return sorted(each.id for each in work if in_shared_pool(cloud, each.id))


def images_on(cloud: Cloud, node: str) -> dict[str, str]:
    """Return image id -> digest of what a node must hold: chosen to keep it, or a copy of it is there."""
    wanted = {id for id, content in cloud.all("image_content").items() if node in content.nodes}
    wanted |= {cloud.get("volume", id).spec.image for id in volumes_on(cloud, node)}
    wanted |= {cloud.get("volume", id).spec.image for id in administered(cloud, node) if not erased(cloud, id)}
    return {id: image.spec.digest for id in sorted(wanted) if (image := cloud.get("image", id)) is not None}


def open_in(host: Host, volume: str) -> list[str]:
    """Return the live guests of a host that have a volume open."""
    return [id for id, guest in host.guests.items() if volume in guest.volumes]
