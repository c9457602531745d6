"""What a restore may take from users: exactly what changed between the backup and the restore, and no node was told of.

    since = Since(backup, records)      # records by kind and id: those of the backup, those that were in the store before
    say = since.lost(asked, now)        # sentences; what is rightly lost is taken out of `asked`, the rest must hold

What was in the backup and not erased since is there. What came since is there when a node held it, unless the operator could
not adopt it, and rightly so (`refused`). Whether a guest is to run, how large it is and which disks it has is as its node was
told last; what no node is told (names of volumes and subnets, whether a disk goes with its VM, networks without guests) is as
in the backup.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from cairn.proto import kinds
from cairn.proto.backup import Reader
from cairn.proto.v1.vm_pb2 import POWER_STATE_RUNNING

from tests.sim.asked import Asked, AskedVm, AskedVolume

Records = Mapping[str, Mapping[str, Any]]


def backed_up(content: bytes) -> Records:
    """Return the records of a backup."""
    found: dict[str, dict[str, Any]] = {kind.name: {} for kind in kinds.ALL}
    for part in Reader().feed(content):
        for record in part.records.records:
            if record.kind in found:
                found[record.kind][record.id] = kinds.BY_NAME[record.kind].message.FromString(record.value)
    return found


@dataclass
class Since:
    """The records of the backup, and those of just before it was restored."""

    backup: Records
    before: Records
    # What could not be adopted, and rightly so: id -> why.
    refused: dict[str, str] = field(default_factory=dict)

    def refuse(self, id: str, why: str) -> None:
        """It cannot be adopted, nor can its own disk."""
        self.refused[id] = why

    def was_held(self, vm: str) -> bool:
        """Tell whether a node held a VM's guest, running or off, when the backup was restored."""
        placement = self.before["placement"].get(vm)
        return placement is not None and bool(placement.node) and not placement.released

    def was_kept(self, volume: str) -> bool:
        """Tell whether a volume was somewhere then."""
        return volume in self.before["volume_placement"]

    def lost(self, asked: Asked, now: Records) -> Iterator[str]:
        """Yield what is lost and should not be; take out of `asked` what is lost rightly."""
        for id, vm in list(asked.vms.items()):
            yield from self._vm(asked, id, vm, now)
        for id, volume in list(asked.volumes.items()):
            yield from self._volume(asked, id, volume, now)
        for id in asked.images:
            if id not in now["image"]:
                yield f"image {id}, which nodes hold, is gone"
        yield from self._networks(asked, now)

    def _networks(self, asked: Asked, now: Records) -> Iterator[str]:
        """Of those made since nodes know what guests there are in; the name of a VPC, not of a subnet."""
        used = {nic.subnet for id in asked.vms for nic in self.before["vm"][id].spec.nics}
        for id, subnet in list(asked.subnets.items()):
            record, was = now["subnet"].get(id), self.before["subnet"][id]
            if record is None:
                if id in self.backup["subnet"] or id in used:
                    yield f"subnet {subnet.name} ({id}) was in the backup, or has guests, and is gone"
                del asked.subnets[id]
                continue
            subnet.name = record.name
            vpc = now["vpc"].get(record.spec.vpc)
            if record.spec != was.spec or vpc is None or vpc.spec != self.before["vpc"][vpc.id].spec:
                yield f"subnet {id} is {record.spec} of VPC {vpc}, it was {was.spec} of {self.before['vpc'].get(was.spec.vpc)}"
                continue
            name = (self.backup["vpc"].get(vpc.id) or self.before["vpc"][vpc.id]).name
            if vpc.name not in (name, f"{name[:54]}-{vpc.id[-8:]}"):
                yield f"VPC {vpc.id} is called {vpc.name}, it was {name}"

    def _vm(self, asked: Asked, id: str, vm: AskedVm, now: Records) -> Iterator[str]:
        record, kept = now["vm"].get(id), self.backup["vm"].get(id)
        if record is None:
            if kept is not None and id not in self.refused:
                yield f"VM {vm.name} ({id}) was in the backup and is gone"
            if kept is None and self.was_held(id) and id not in self.refused:
                yield f"VM {vm.name} ({id}) was on a node and is gone"
            del asked.vms[id]
            asked.erased[id] = None
            return
        names = [each.name for each in (kept, self.before["vm"].get(id)) if each is not None]
        if record.name not in names and record.name != f"{vm.name[:54]}-{id[-8:]}":
            yield f"VM {id} is called {record.name}, which it never was: {names}"
        vm.name = record.name
        if not self.was_held(id):
            # No node was told anything of it since: neither how large it is to be, nor whether it is to run.
            vm.cpus, vm.memory_bytes = record.spec.cpus, record.spec.memory_bytes
            on = record.spec.power_state == POWER_STATE_RUNNING
            if not vm.deleted and on != vm.power_on:
                vm.switch(on=on)
        elif (record.spec.cpus, record.spec.memory_bytes) != (vm.cpus, vm.memory_bytes):
            yield from self._shrunk(id, vm, record)
        self._kept_root(vm, record, now)

    def _shrunk(self, id: str, vm: AskedVm, record: Any) -> Iterator[str]:
        """What was asked for and not claimed yet no node knows; what was claimed, it does."""
        placement, kept = self.before["placement"][id], self.backup["vm"].get(id)
        known = {(placement.cpus, placement.memory_bytes)}
        if kept is not None:
            known.add((kept.spec.cpus, kept.spec.memory_bytes))
        if (record.spec.cpus, record.spec.memory_bytes) not in known:
            yield f"VM {vm.name} ({id}) has {record.spec.cpus} CPUs and {record.spec.memory_bytes} bytes, known are {known}"
        vm.cpus, vm.memory_bytes = record.spec.cpus, record.spec.memory_bytes

    def _kept_root(self, vm: AskedVm, record: Any, now: Records) -> None:
        """Whether its own disk stays when it goes is for the records alone."""
        root = now["volume"].get(record.spec.root_volume)
        if root is None or root.spec.delete_with_vm:
            vm.kept_root = None
        else:
            vm.kept_root = (root.id, root.name, root.spec.size_bytes)

    def _volume(self, asked: Asked, id: str, volume: AskedVolume, now: Records) -> Iterator[str]:
        record, kept = now["volume"].get(id), self.backup["volume"].get(id)
        if record is None:
            if kept is not None and id not in self.refused:
                yield f"volume {volume.name} ({id}) was in the backup and is gone"
            if kept is None and self.was_kept(id) and id not in self.refused:
                yield f"volume {volume.name} ({id}) was on a node and is gone"
            del asked.volumes[id]
            asked.erased[id] = None
            for vm in asked.vms.values():
                vm.volumes.discard(id)
            return
        names = {each.name for each in (kept, self.before["volume"].get(id)) if each is not None} | {id}
        if record.name not in names:
            yield f"volume {id} is called {record.name}, which it never was: {sorted(names)}"
        volume.name = record.name
        place = self.before["volume_placement"].get(id)
        if record.spec.size_bytes != volume.size_bytes:
            known = {place.disk_bytes} if place is not None else {each.spec.size_bytes for each in (kept,) if each is not None}
            if record.spec.size_bytes not in known:
                yield f"volume {volume.name} ({id}) has {record.spec.size_bytes} bytes, known are {known}"
            volume.size_bytes = record.spec.size_bytes
