"""At rest, the world is what users asked for: each VM runs once and with what it was to have, and nothing else runs.

What cannot be is right only if it cannot: no node has room, no address is free; and then the record says why. What takes effect
at the next start waits for it: the configuration has it, and the node says so.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tests.sim import rules
from tests.sim.asked import Asked, AskedVm, AskedVolume
from tests.sim.checkers.base import Checker
from tests.sim.cloud import Cloud, Guest, Host


class AsAsked(Checker):
    """Compares guests and disks with requests."""

    def settled(self, cloud: Cloud, asked: Asked) -> Iterator[str]:
        """Each VM and volume as asked, no VM that nobody asked for."""
        found: dict[str, Guest] = {id: guest for host in cloud.hosts.values() for id, guest in host.guests.items()}
        for vm in asked.vms.values():
            yield from self._vm(cloud, vm, found.get(vm.id))
        for volume in asked.volumes.values():
            yield from self._volume(cloud, volume, asked)
        for id in sorted(found):
            if id not in asked.vms:
                yield f"{id} runs and nobody asked for it"

    def _vm(self, cloud: Cloud, vm: AskedVm, guest: Guest | None) -> Iterator[str]:
        record = cloud.get("vm", vm.id)
        if record is None:
            return
        if record.name != vm.name:
            yield f"{vm.id} is called {record.name}, not {vm.name}"
        if not vm.running or vm.deleted:
            if guest is not None:
                yield f"{vm.name} ({vm.id}) runs and shall not"
            elif vm.deleted:
                yield from self._put_away(cloud, vm, record)
            else:
                yield from self._defined(cloud, vm, record)
        elif guest is not None and guest.executing:
            yield from self._shape(cloud, vm, record, guest)
        elif vm.may_be_off and guest is None:
            yield from self._defined(cloud, vm, record)
        elif not (said := list(_cannot_run(cloud, record))):
            yield f"{vm.name} ({vm.id}) does not run"
        else:
            yield from (text for text in said if text)

    def _shape(self, cloud: Cloud, vm: AskedVm, record: Any, guest: Guest) -> Iterator[str]:
        """A guest that runs has the CPUs, memory and volumes asked for, or will have them when it is restarted."""
        wanted = {*vm.volumes, record.spec.root_volume}
        if set(guest.volumes) != wanted:
            yield f"{vm.name} ({vm.id}) has the volumes {sorted(guest.volumes)}, not {sorted(wanted)}"
        if (guest.cpus, guest.memory_bytes) != (vm.cpus, vm.memory_bytes):
            placement = cloud.get("placement", vm.id)
            observed = cloud.get("observed", f"{placement.node}/vm/{vm.id}")
            waits = "restart" in observed.report.vm.say if observed is not None else False
            if not waits and not _stays(cloud, record, placement):
                has = f"{guest.cpus} CPUs and {guest.memory_bytes} bytes"
                yield f"{vm.name} ({vm.id}) has {has}, and nobody says that they are to change"
        yield from self._defined(cloud, vm, record)

    def _defined(self, cloud: Cloud, vm: AskedVm, record: Any) -> Iterator[str]:
        """Its configuration is as asked, also of one that is off."""
        placement = cloud.get("placement", vm.id)
        host = cloud.hosts.get(placement.node) if placement is not None else None
        if host is None or vm.id not in host.definitions:
            if not (said := list(_cannot_run(cloud, record))):
                yield f"{vm.name} ({vm.id}) is nowhere"
            yield from (text for text in said if text)
            return
        there = host.definitions[vm.id]
        if vm.id in host.seeds and host.seeds[vm.id] != (vm.ssh_keys, vm.user_data):
            yield f"{vm.name} ({vm.id}) is not told the keys and user data that were given for it"
        if (there.cpus, there.memory_bytes) != (vm.cpus, vm.memory_bytes) and not _stays(cloud, record, placement):
            yield f"{vm.name} ({vm.id}) is defined with {there.cpus} CPUs and {there.memory_bytes} bytes on {host.name}"

    def _put_away(self, cloud: Cloud, vm: AskedVm, record: Any) -> Iterator[str]:
        """Deleted but not erased: nothing of the guest is left, its own disk is kept."""
        for host in cloud.hosts.values():
            if vm.id in host.defined | host.files:
                yield f"{vm.name} ({vm.id}) is deleted, and something of it is left on {host.name}"
        yield from _kept(cloud, record.spec.root_volume, f"the disk of {vm.name}")
        placement = cloud.get("placement", vm.id)
        if placement is not None and placement.node and not placement.released:
            yield f"{vm.name} ({vm.id}) is deleted and still holds CPU and memory"

    def _volume(self, cloud: Cloud, volume: AskedVolume, asked: Asked) -> Iterator[str]:
        record = cloud.get("volume", volume.id)
        if record is None:
            return
        holders = [vm.id for vm in asked.vms.values() if volume.id in vm.volumes and not vm.deleted]
        if record.spec.vm not in (holders or [""]):
            yield f"volume {volume.name} ({volume.id}) is attached to {record.spec.vm or 'nothing'}, not to {holders}"
        if record.spec.size_bytes != volume.size_bytes:
            yield f"volume {volume.name} ({volume.id}) has {record.spec.size_bytes} bytes, not {volume.size_bytes}"
        yield from _kept(cloud, volume.id, f"volume {volume.name}")
        place = cloud.get("volume_placement", volume.id)
        if place is not None and place.disk_bytes != record.spec.size_bytes:
            more = record.spec.size_bytes - place.disk_bytes
            if more <= rules.pool_free(cloud, rules.pool_of(place)):
                yield f"volume {volume.name} ({volume.id}) wants {more} bytes more, which its pool has"

    def emptied(self, cloud: Cloud) -> Iterator[str]:
        """Nothing runs."""
        for host in cloud.hosts.values():
            for id in host.guests:
                yield f"{id} still runs on {host.name}"


def _kept(cloud: Cloud, volume: str, what: str) -> Iterator[str]:
    """A volume that has a place is there."""
    place = cloud.get("volume_placement", volume)
    if place is not None and not place.node:
        if volume not in cloud.shared:
            yield f"{what} ({volume}) is not in the pool {place.pool}, where it is kept"
        return
    host: Host | None = cloud.hosts.get(place.node) if place is not None else None
    if place is not None and (host is None or volume not in host.volumes):
        yield f"{what} ({volume}) is not on {cloud.name_of(place.node)}, where it is kept"


def _cannot_run(cloud: Cloud, vm: Any) -> Iterator[str]:
    """Yield why a VM rightly runs nowhere: "" when its record says it too, else what is wrong with that."""
    for nic in vm.spec.nics:
        binding = cloud.get("port_binding", nic.port)
        if binding is None or binding.addresses:
            continue
        taken = cloud.get("address", f"{nic.subnet}/{nic.address}") is not None if nic.address else False
        if taken or rules.addresses_left(cloud, nic.subnet) <= 0:
            yield "" if binding.error else f"{vm.name} has no address and is not told why"
    placement = cloud.get("placement", vm.id)
    if placement is not None and not placement.node and not list(rules.could_go(cloud, vm)):
        yield "" if placement.decision.say else f"{vm.name} is placed nowhere and is not told why"


def _stays(cloud: Cloud, vm: Any, placement: Any) -> bool:
    """Tell whether a VM rightly has less than it asked for: its node has no room, and the decision says so."""
    left = rules.free(cloud, placement.node)
    short = vm.spec.cpus - placement.cpus > left.cpus or vm.spec.memory_bytes - placement.memory_bytes > left.memory_bytes
    return short and bool(placement.decision.say)
