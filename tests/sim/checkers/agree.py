"""At rest each node holds exactly what the records say it must, and what is recorded of its reports is what is there.

A full mesh: each node of a VPC knows the way to every card of that VPC elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from cairn.proto.v1.agent_pb2 import ImageReport, PortReport, VmReport, VolumeReport

from tests.sim import rules
from tests.sim.asked import Asked
from tests.sim.checkers.base import Checker
from tests.sim.cloud import Cloud, Host


class Agree(Checker):
    """Compares hosts with records, both ways."""

    def settled(self, cloud: Cloud, asked: Asked) -> Iterator[str]:
        """Everything."""
        for id in cloud.all("purge"):
            yield f"{id} is still being erased"
        for kind, of in (("placement", "vm"), ("volume_placement", "volume"), ("port_binding", "port")):
            for id in cloud.all(kind):
                if cloud.get(of, id) is None:
                    yield f"the record {kind}/{id} is left of a {of} that is gone"
        yield from _pool(cloud)
        for node, host in cloud.hosts.items():
            if host.away or cloud.get("node", node) is None:
                continue
            yield from self._disks(cloud, host)
            yield from self._guests(cloud, host)
            yield from networks(cloud, host)
            yield from self._reports(cloud, host)

    def emptied(self, cloud: Cloud) -> Iterator[str]:
        """The same, of nothing."""
        yield from self.settled(cloud, Asked())

    def _disks(self, cloud: Cloud, host: Host) -> Iterator[str]:
        wanted = rules.volumes_on(cloud, host.node)
        yield from _differ(host, "volumes", wanted, host.volumes)
        for id, size in wanted.items():
            held = host.volumes.get(id, size)
            # One that grew while its guest has it open follows when the guest is off.
            if held > size or (held < size and not rules.open_in(host, id)):
                yield f"volume {id} on {host.name} has {held} bytes, not {size}"
        images = rules.images_on(cloud, host.node)
        missing = [id for id, digest in images.items() if digest not in host.images and _arrived(cloud, id)]
        if missing:
            yield f"the images {missing} are not on {host.name}"
        needed = set(images.values()) | {_origin(cloud, id) for id in host.volumes}
        if host.images - needed:
            yield f"images nobody needs are on {host.name}: {sorted(host.images - needed)}"

    def _guests(self, cloud: Cloud, host: Host) -> Iterator[str]:
        wanted = rules.guests_on(cloud, host.node)
        yield from _differ(host, "guests", wanted, host.defined)
        yield from _differ(host, "guests' files", wanted, host.files)
        for id in sorted(wanted & host.defined):
            attached = {volume.id for volume in rules.volumes_of(cloud, id)}
            defined = host.definitions[id].volumes
            if defined != attached:
                yield f"{id} is defined on {host.name} with {sorted(defined)}, attached are {sorted(attached)}"

    def _reports(self, cloud: Cloud, host: Host) -> Iterator[str]:
        if cloud.get("node_session", host.node) is None:
            yield f"{host.name} is not connected"
        facts = cloud.get("node_facts", host.node)
        if facts is None or not facts.hypervisor.archs or not facts.pools:
            yield f"{host.name} has not said what it is"
        said = {key: each.report for key, each in _observed(cloud, host)}
        deleted = {f"vm/{id}" for id, vm in cloud.all("vm").items() if _was_here(cloud, host, id) and rules.deleted(vm)}
        wanted = {f"vm/{id}" for id in rules.guests_on(cloud, host.node)} | deleted
        wanted |= {f"volume/{id}" for id in (*rules.volumes_on(cloud, host.node), *rules.administered(cloud, host.node))}
        wanted |= {f"image/{id}" for id in rules.images_on(cloud, host.node)}
        wanted |= {f"port/{port}" for vpc in host.ports for port, node in rules.seats(cloud, vpc).items() if node == host.node}
        yield from _differ(host, "reports", wanted, said)
        for key in sorted(wanted & said.keys()):
            yield from _REPORTED[key.partition("/")[0]](cloud, host, key.partition("/")[2], said[key])


def networks(cloud: Cloud, host: Host) -> Iterator[str]:
    """Tell how a node's networks are not as the records say."""
    meshes = {vpc: rules.seats(cloud, vpc) for vpc in cloud.all("vpc")}
    present = {vpc for vpc, seats in meshes.items() if host.node in seats.values()}
    yield from _differ(host, "networks", present, host.ports)
    yield from (f"the rules of {vpc} on {host.name} are damaged" for vpc in sorted(host.damaged))
    for vpc in sorted(present & host.ports.keys()):
        seats = meshes[vpc]
        others = {node: _vtep(cloud, node) for node in seats.values() if node != host.node}
        live = {card.port for guest in host.guests.values() for card in guest.cards}
        yield from _differ(host, f"ports of {vpc}", live & seats.keys(), host.ports[vpc])
        ways = {port: others[node] for port, node in seats.items() if node in others}
        if host.forwards[vpc] != ways:
            yield f"{host.name} knows the ways {dict(host.forwards[vpc])} in {vpc}, they are {ways}"
        yield from _differ(host, f"peers in {vpc}", set(others.values()), host.peers[vpc])
        subnets = {id for id, subnet in cloud.all("subnet").items() if subnet.spec.vpc == vpc}
        yield from _differ(host, f"subnets of {vpc}", subnets, host.subnets[vpc])
    yield from _names(cloud, host, {vpc: meshes[vpc] for vpc in present})


def _pool(cloud: Cloud) -> Iterator[str]:
    """The shared pool holds what is placed there, and nothing else."""
    wanted = rules.shared_volumes(cloud)
    if wanted != cloud.shared:
        yield f"the shared pool holds {dict(sorted(cloud.shared.items()))}, not {dict(sorted(wanted.items()))}"


def _differ(host: Host, what: str, wanted: Iterable[str], found: Iterable[str]) -> Iterator[str]:
    missing, more = sorted(set(wanted) - set(found)), sorted(set(found) - set(wanted))
    if missing or more:
        yield f"{what} on {host.name}: missing {missing}, too many {more}"


def _vtep(cloud: Cloud, node: str) -> str:
    facts = cloud.get("node_facts", node)
    return facts.vtep if facts is not None else ""


def _origin(cloud: Cloud, volume: str) -> str:
    record = cloud.get("volume", volume)
    image = cloud.get("image", record.spec.image) if record is not None else None
    return image.spec.digest if image is not None else ""


def _arrived(cloud: Cloud, image: str) -> bool:
    content = cloud.get("image_content", image)
    return content is not None and bool(content.virtual_size_bytes) and not content.failed


def _was_here(cloud: Cloud, host: Host, vm: str) -> bool:
    placement = cloud.get("placement", vm)
    return placement is not None and placement.node == host.node


def _observed(cloud: Cloud, host: Host) -> Iterator[tuple[str, Any]]:
    for id, each in cloud.all("observed").items():
        node, _, key = id.partition("/")
        if node == host.node:
            yield key, each


# --- what was reported, and what is there ----------------------------------------------------------------------------------


def _vm(cloud: Cloud, host: Host, id: str, report: Any) -> Iterator[str]:
    guest, state = host.guests.get(id), report.vm.state
    if guest is not None and guest.executing:
        fits = {VmReport.STATE_RUNNING, VmReport.STATE_STOPPING}
    elif id in host.defined or id in host.files:
        fits = {VmReport.STATE_STOPPED, VmReport.STATE_FAILED, VmReport.STATE_PREPARING}
    else:
        fits = {VmReport.STATE_ABSENT}
    if state not in fits:
        yield f"{host.name} says {VmReport.State.Name(state)} of {id}, which is not so"


def _volume(cloud: Cloud, host: Host, id: str, report: Any) -> Iterator[str]:
    there = report.volume.state == VolumeReport.STATE_READY
    found = cloud.shared if rules.in_shared_pool(cloud, id) else host.volumes
    if there != (id in found) or (there and report.volume.size_bytes != found[id]):
        yield f"{host.name} says {report.volume} of volume {id}, which is {found.get(id, 'not there')}"


def _image(cloud: Cloud, host: Host, id: str, report: Any) -> Iterator[str]:
    digest = cloud.get("image", id).spec.digest
    if (report.image.state == ImageReport.STATE_READY) != (digest in host.images):
        yield f"{host.name} says {ImageReport.State.Name(report.image.state)} of image {id}, which is not so"


def _port(cloud: Cloud, host: Host, id: str, report: Any) -> Iterator[str]:
    bound = any(id in ports for ports in host.ports.values())
    if (report.port.state == PortReport.STATE_ACTIVE) != bound:
        yield f"{host.name} says {PortReport.State.Name(report.port.state)} of port {id}, which is not so"


_REPORTED: Mapping[str, Any] = {"vm": _vm, "volume": _volume, "image": _image, "port": _port}


def _names(cloud: Cloud, host: Host, meshes: Mapping[str, Mapping[str, str]]) -> Iterator[str]:
    """Guests find every guest of their VPC, and nobody who is gone. meshes: VPC -> its cards."""
    if host.names is None:
        return
    wanted: dict[str, dict[str, frozenset[str]]] = {}
    for vpc, seats in meshes.items():
        called = wanted.setdefault(vpc, {})
        for id in seats:
            name = cloud.get("vm", rules.card_of(cloud.get("port", id))).name
            called[name] = called.get(name, frozenset()) | frozenset(cloud.get("port_binding", id).addresses)
    told = host.names()
    for vpc in sorted(wanted.keys() | told.keys()):
        if told.get(vpc, {}) != wanted.get(vpc, {}):
            yield f"in {vpc}, {host.name} tells guests the names {dict(told.get(vpc, {}))}, they are {wanted.get(vpc, {})}"
