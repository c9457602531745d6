"""At rest, the world is what users asked for: each VM runs once and with what it was to have, and nothing else runs."""

from __future__ import annotations

from collections.abc import Iterator

from tests.sim.asked import Asked, AskedVm
from tests.sim.checkers.base import Checker
from tests.sim.cloud import Cloud, Guest


class AsAsked(Checker):
    """Compares guests with requests."""

    def settled(self, cloud: Cloud, asked: Asked) -> Iterator[str]:
        """Each VM as asked, no VM that nobody asked for."""
        yield from asked.contradictions
        found: dict[str, Guest] = {id: guest for host in cloud.hosts.values() for id, guest in host.guests.items()}
        for vm in asked.vms.values():
            yield from self._vm(vm, found.get(vm.id))
        for id in sorted(found):
            if id not in asked.vms:
                yield f"{id} runs and nobody asked for it"

    def _vm(self, vm: AskedVm, guest: Guest | None) -> Iterator[str]:
        shall_run = vm.running and not vm.deleted
        if not shall_run:
            if guest is not None:
                yield f"{vm.name} ({vm.id}) runs and shall not"
            return
        if guest is None or not guest.executing:
            yield f"{vm.name} ({vm.id}) does not run"
            return
        if vm.volumes - set(guest.volumes):
            yield f"{vm.name} ({vm.id}) lacks volumes {sorted(vm.volumes - set(guest.volumes))}"

    def emptied(self, cloud: Cloud) -> Iterator[str]:
        """Nothing runs."""
        for host in cloud.hosts.values():
            for id in host.guests:
                yield f"{id} still runs on {host.name}"
