"""At rest every controller tells the truth: what it lists is what the store holds, and says of each what is so in the world."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from cairn.proto.v1.image_pb2 import ImageStatus
from cairn.proto.v1.node_pb2 import NodeStatus
from cairn.proto.v1.vm_pb2 import VmStatus
from cairn.proto.v1.volume_pb2 import VolumeStatus

from tests.sim import rules
from tests.sim.checkers.base import Checker
from tests.sim.cloud import Cloud

# What records and answers have in common.
_SAME = ("name", "project", "labels", "spec", "create_time", "update_time", "delete_time", "purge_time")


class Views(Checker):
    """Compares lists with records and hosts."""

    def listed(self, cloud: Cloud, who: str, kind: str, objects: Sequence[Any]) -> Iterator[str]:
        """Look at each object of a list."""
        if kind not in cloud.records:
            # A report, which is of no kind of record.
            return
        records, shown = cloud.all(kind), {each.id: each for each in objects}
        if len(shown) != len(objects):
            yield f"{who} lists a {kind} twice"
        if shown.keys() != records.keys():
            yield f"{who} lists {kind} {sorted(shown)}, there are {sorted(records)}"
            return
        for id, each in shown.items():
            differ = [name for name in _SAME if _part(each, name) != _part(records[id], name)]
            if differ:
                yield f"{who} shows another {', '.join(differ)} of {kind} {id} than the store holds"
            state = _STATES[kind](cloud, each) if kind in _STATES else ""
            if state:
                yield f"{who} says of {kind} {each.name}: {state}"


def _part(message: Any, name: str) -> Any:
    return getattr(message, name) if name in message.DESCRIPTOR.fields_by_name else None


def _vm(cloud: Cloud, vm: Any) -> str:
    nodes = [host.name for host in cloud.hosts.values() if vm.id in host.guests and host.guests[vm.id].executing]
    runs = vm.status.state in (VmStatus.STATE_RUNNING, VmStatus.STATE_STOPPING)
    if runs != bool(nodes) or (runs and nodes != [vm.status.node]):
        return f"{VmStatus.State.Name(vm.status.state)} on {vm.status.node or 'no node'}, it runs on {nodes}"
    if rules.deleted(vm) != (vm.status.state in (VmStatus.STATE_DELETED, VmStatus.STATE_DELETING)):
        return f"{VmStatus.State.Name(vm.status.state)}"
    for nic in vm.status.nics:
        binding = cloud.get("port_binding", nic.port)
        if list(nic.addresses) != list(binding.addresses if binding is not None else ()):
            return f"addresses {', '.join(nic.addresses)}"
        # Clients of the release before read the other field.
        if nic.address != (nic.addresses[0] if nic.addresses else ""):
            return f"address {nic.address}"
    return "" if vm.status.say else "nothing"


def _volume(cloud: Cloud, volume: Any) -> str:
    nodes = [host.name for host in cloud.hosts.values() if volume.id in host.volumes]
    place = cloud.get("volume_placement", volume.id)
    if volume.status.pool != (rules.pool_of(place) if place is not None else ""):
        return f"in pool {volume.status.pool}, it is placed in {place}"
    if [node for node in [volume.status.node] if node] != nodes:
        return f"on {volume.status.node or 'no node'}, it is on {nodes}"
    state, name = volume.status.state, VolumeStatus.State.Name(volume.status.state)
    away = rules.deleted(volume) or rules.deleted(cloud.get("vm", volume.spec.vm))
    if away != (state in (VolumeStatus.STATE_DELETED, VolumeStatus.STATE_DELETING)):
        return name
    has_it = [(guest.id, host) for host in cloud.hosts.values() for guest in host.guests.values() if volume.id in guest.volumes]
    if state == VolumeStatus.STATE_AVAILABLE and has_it:
        return f"{name}, {has_it[0][0]} has it open"
    on = any(volume.spec.vm in host.guests for host in cloud.hosts.values())
    if state == VolumeStatus.STATE_ATTACHED and on != (volume.spec.vm in [id for id, _ in has_it]):
        return f"{name} to {volume.spec.vm}, which {'lacks it' if on else 'is off'}; open in {[id for id, _ in has_it]}"
    moving = (VolumeStatus.STATE_ATTACHING, VolumeStatus.STATE_DETACHING)
    return f"{name} at rest: {volume.status.say}" if state in moving else ""


def _image(cloud: Cloud, image: Any) -> str:
    keepers = [host for host in cloud.hosts.values() if image.id in rules.images_on(cloud, host.node) and not host.away]
    nodes = sorted(host.name for host in keepers if image.spec.digest in host.images)
    available = image.status.state == ImageStatus.STATE_AVAILABLE
    if available and list(image.status.nodes) != nodes:
        return f"kept on {list(image.status.nodes)}, it is on {nodes}"
    return ""


def _node(cloud: Cloud, node: Any) -> str:
    host = cloud.hosts.get(node.id)
    up = host is not None and not host.away and cloud.get("node_session", node.id) is not None
    if up != (node.status.state == NodeStatus.STATE_READY):
        return NodeStatus.State.Name(node.status.state)
    claimed = rules.claimed(cloud, node.id)
    shown = node.status.claims
    if rules.Amounts(shown.cpus, shown.memory_bytes, shown.vms) != claimed:
        return f"claims {shown}, what is placed there is {claimed}"
    if shown.disk_bytes != rules.pool_claimed(cloud, f"local/{node.id}"):
        return f"{shown.disk_bytes} bytes of its pool claimed, which is not what is placed there"
    return ""


_STATES = {"vm": _vm, "volume": _volume, "image": _image, "node": _node}
