"""Making records of what a node holds and the store does not know: after a restore, or whatever else took records away.

A node tells what it holds without being told to (`unknown` records). Adopting a VM writes all that it consists of in one
transaction: the VM, its name (with a suffix when somebody else has it), its cards with their addresses, its volumes, where
they are, and what they take there; each in the name of the component that decides it otherwise, so nothing is left for those to
decide anew; networks that the store does not know come with it (adoption_network.py). What stands in the way is a refusal that
says so: an address given to somebody else, no room. The guest notices nothing.

Where the store has a record and its node was told otherwise later (`unknown.contested`), adopting changes the record to the
node's later word, rejecting writes the record again, so that it is a word of today and carried out.
"""

from __future__ import annotations

from typing import Any

from cairn.controller.api import nouns, resolution
from cairn.controller.api.adoption_network import AdoptedNetworks
from cairn.controller.api.adoption_shared import administered
from cairn.controller.api.core import Core
from cairn.controller.api.decision import Decided
from cairn.controller.api.nouns import DEFAULT_PROJECT_ID, Noun
from cairn.controller.api.volumes import free
from cairn.controller.model.administered import is_of_shared_pool, told_of_shared
from cairn.controller.model.nodes import node_name
from cairn.controller.model.owners import owner
from cairn.controller.model.permits import Caller
from cairn.controller.model.pools import pool_room
from cairn.controller.model.restored import holders
from cairn.controller.model.where import Claimed, claimed, in_shared_pool, in_short, volume_node, volume_pool, where
from cairn.controller.reconcilers.claims import claim, unclaimed
from cairn.controller.store.base import Record, Txn, View
from cairn.controller.words import size
from cairn.proto import kinds
from cairn.proto.addresses import addresses_of, claim_key, set_addresses
from cairn.proto.errors import AlreadyExists, BadState, Exhausted
from cairn.proto.ids import LOCAL_POOL, mac_of, pool_id
from cairn.proto.owners import VM, set_owner
from cairn.proto.sealing import SealError
from cairn.proto.seams import timestamp
from cairn.proto.v1.agent_pb2 import DesiredVm, DesiredVolume, Unknown, VmDisk, VmNic
from cairn.proto.v1.common_pb2 import Decision
from cairn.proto.v1.port_pb2 import AddressClaim, Port, PortBinding
from cairn.proto.v1.secret_pb2 import VmData
from cairn.proto.v1.vm_pb2 import Placement, Vm, VmSpec
from cairn.proto.v1.volume_pb2 import Volume, VolumePlacement


class Adoption:
    """One object being adopted: the transactions it grows, one per component."""

    def __init__(self, view: View, caller: Caller, core: Core, unknown: Unknown) -> None:
        """unknown: what a node told of it."""
        self._view, self._caller, self._core, self._node, self._unknown = view, caller, core, unknown.node, unknown
        self._now = timestamp(core.clock.now())
        self._api, self._ports, self._placement = Txn("api"), Txn("ports"), Txn("placement")
        self._assignments = Txn("assignments")
        self._networks = AdoptedNetworks(self._api, view, unknown.networks, self._name, self._now)
        self._pools: dict[str, int] = {}

    def vm(self) -> Decided[Vm]:
        """Decide a VM that is not placed on that node, and in most cases not known at all. Raises Refused."""
        given = self._unknown.desired.vm
        if not given.id:
            say = "its node does not know what it is made of"
            raise BadState("vm", self._unknown.key, f"{say}: have it removed with `cairn node forget`, or keep it by hand")
        vm = Vm(id=given.id, create_time=self._now)
        known = self._view.record(kinds.VM, given.id)
        if known is not None:
            vm.CopyFrom(known.message)
            vm.ClearField("delete_time")
            vm.ClearField("purge_time")
            del vm.spec.nics[:], vm.spec.volumes[:]
        vm.update_time.CopyFrom(self._now)
        vm.project = self._project(given.project)
        vm.name = self._name(nouns.VM, vm.project, given.name, vm.id)
        if known is not None and known.message.name != vm.name:
            resolution.release(self._api, self._view, nouns.VM, vm.project, known.message.name, vm.id)
        _follow(vm.spec, given)
        spec = vm.spec
        spec.arch, spec.restart_policy, spec.volume_type = given.arch, given.restart_policy, LOCAL_POOL
        for nic in given.nics:
            set_addresses(spec.nics.add(subnet=nic.subnet, port=nic.port), addresses_of(nic))
            self._card(vm, nic)
        for disk in given.disks:
            self._disk(vm, disk)
        self._detach(vm, {disk.volume for disk in given.disks})
        self._data(vm, given)
        self._api.check(kinds.VM, vm.id, known.mod_revision if known is not None else 0).put(kinds.VM, vm.id, vm)
        self._seat(vm, given)
        said = f"VM {vm.name} was adopted: {node_name(self._view, self._node)} holds it"
        return Decided(self._whole(), nouns.VM, vm.id, vm.name, vm.project, events=[("Adopted", said)])

    def _data(self, vm: Vm, given: DesiredVm) -> None:
        """Keep its user data and keys as they came, sealed."""
        id = f"vm/{vm.id}"
        if not given.HasField("sealed") or self._view.get(kinds.SECRET, id) is not None:
            return
        self._api.create(kinds.SECRET, id, given.sealed)
        try:
            data = VmData.FromString(self._core.seals.open(given.sealed))
        except SealError as error:
            raise BadState("vm", vm.name, f"its user data cannot be kept: {error}") from error
        vm.spec.ssh_key_count, vm.spec.user_data_bytes = len(data.ssh_keys), len(data.user_data)

    def volume(self) -> Decided[Volume]:
        """Decide a volume of no VM that the store does not know, or another size of one. Raises Refused."""
        given, key = self._unknown.desired.volume, self._unknown.key
        if not given.id:
            raise BadState("volume", key, "its node does not know how large it is: have it removed with `cairn node forget`")
        if is_of_shared_pool(given) and not self._unknown.contested:
            told = told_of_shared(self._view, given.id)
            given = told.desired.volume if told is not None else given
        known = self._view.record(kinds.VOLUME, given.id)
        if known is not None:
            return self._resized(known, given)
        volume = self._new_volume(DEFAULT_PROJECT_ID, given.id, given)
        volume.name = self._name(nouns.VOLUME, volume.project, given.id, volume.id)
        self._api.create(kinds.VOLUME, volume.id, volume)
        self._home(volume, given)
        claim(self._placement, self._view, pools=self._pools)
        said = f"volume {volume.name} was adopted: {node_name(self._view, self._node)} holds it"
        return Decided(self._whole(), nouns.VOLUME, volume.id, volume.name, volume.project, events=[("Adopted", said)])

    def _resized(self, known: Record[Volume], given: DesiredVolume) -> Decided[Volume]:
        """Give a volume the size, or the place, that it was given since. Raises BadState."""
        name = node_name(self._view, self._node)
        volume = Volume()
        volume.CopyFrom(known.message)
        if not self._unknown.contested and volume_node(self._view, volume.id) == self._node:
            # Its VM was adopted, and with it the volume; its node has not said yet that it knows.
            self._api.check(kinds.VOLUME, volume.id, known.mod_revision)
            return Decided(self._api, nouns.VOLUME, volume.id, volume.name, volume.project)
        if not self._unknown.contested and in_shared_pool(self._view, volume.id):
            if given.size_bytes <= volume.spec.size_bytes:
                # Another one administers it by the records, and this one hears of that in a moment.
                self._api.check(kinds.VOLUME, volume.id, known.mod_revision)
                return Decided(self._api, nouns.VOLUME, volume.id, volume.name, volume.project)
        elif not self._unknown.contested and volume_pool(self._view, volume.id):
            where = node_name(self._view, volume_node(self._view, volume.id))
            raise BadState("volume", volume.name, f"by the records it is elsewhere, on {where}, and {name} has it as well")
        if not self._unknown.contested and not volume_pool(self._view, volume.id):
            # It had no place at the backup.
            self._home(volume, given)
            claim(self._placement, self._view, pools=self._pools)
        volume.spec.size_bytes = given.size_bytes
        volume.update_time.CopyFrom(self._now)
        self._api.check(kinds.VOLUME, volume.id, known.mod_revision).put(kinds.VOLUME, volume.id, volume)
        said = f"volume {volume.name} was adopted as {name} knows it"
        return Decided(self._whole(), nouns.VOLUME, volume.id, volume.name, volume.project, events=[("Adopted", said)])

    def _whole(self) -> Txn:
        return self._api.merge(self._ports).merge(self._placement).merge(self._assignments)

    def _project(self, project: str) -> str:
        """Return the project it was in, or the default one when that is gone."""
        known = self._view.get(kinds.PROJECT, project)
        if known is None or known.HasField("delete_time"):
            return DEFAULT_PROJECT_ID
        self._api.check(kinds.PROJECT, project, self._view.revision_of(kinds.PROJECT, project))
        return project

    def _name(self, noun: Noun[Any], project: str, name: str, id: str) -> str:
        """Claim the name it had, or that with the end of its id when somebody else has it."""
        wanted = name or id
        try:
            resolution.claim(self._api, self._view, self._caller, noun, project, wanted, id)
        except AlreadyExists:
            wanted = f"{wanted[:54]}-{id[-8:]}"
            resolution.claim(self._api, self._view, self._caller, noun, project, wanted, id)
        return wanted

    # --- cards -----------------------------------------------------------------------------------------------------------

    def _card(self, vm: Vm, nic: VmNic) -> None:
        """Make the port, its binding and the claim of its address what the guest has. Raises BadState."""
        view, addresses = self._view, addresses_of(nic)
        vpc = self._networks.subnet(vm.name, vm.project, nic.subnet).spec.vpc
        for address in addresses:
            self._claim(vm, nic, address)
        port = Port(id=nic.port, name=nic.port, project=vm.project, create_time=self._now, update_time=self._now)
        port.spec.vpc, port.spec.subnet, port.spec.mac = vpc, nic.subnet, mac_of(nic.port)
        set_owner(port, VM, vm.id)
        set_addresses(port.spec, addresses)
        self._api.check(kinds.PORT, nic.port, view.revision_of(kinds.PORT, nic.port)).put(kinds.PORT, nic.port, port)
        binding = PortBinding(port=nic.port, subnet=nic.subnet, vpc=vpc, mac=mac_of(nic.port))
        set_addresses(binding, addresses)
        self._ports.check(kinds.PORT_BINDING, nic.port, view.revision_of(kinds.PORT_BINDING, nic.port))
        self._ports.put(kinds.PORT_BINDING, nic.port, binding)

    def _claim(self, vm: Vm, nic: VmNic, address: str) -> None:
        """Claim an address the guest has. Raises BadState: somebody else has it."""
        view, key = self._view, claim_key(nic.subnet, address)
        held = view.get(kinds.ADDRESS, key)
        if held is not None and held.port != nic.port:
            other = view.get(kinds.PORT, held.port)
            whose = owner(view, other) if other is not None else None
            by = f"{whose.title} {whose.name!r}" if whose is not None and whose.name else f"port {held.port}"
            raise BadState("vm", vm.name, f"its address {address} is that of {by}: adopt, delete or change that one first")
        claim = AddressClaim(subnet=nic.subnet, address=address, port=nic.port)
        self._ports.check(kinds.ADDRESS, key, view.revision_of(kinds.ADDRESS, key)).put(kinds.ADDRESS, key, claim)

    # --- disks -----------------------------------------------------------------------------------------------------------

    def _disk(self, vm: Vm, disk: VmDisk) -> None:
        """Attach a volume, made of what its node tells where the store does not know it. Raises BadState."""
        known = self._view.record(kinds.VOLUME, disk.volume)
        if known is not None:
            volume = Volume()
            volume.CopyFrom(known.message)
            if volume.spec.vm not in ("", vm.id):
                other = self._view.get(kinds.VM, volume.spec.vm)
                whose = f"VM {other.name!r}" if other is not None else "another VM"
                raise BadState("vm", vm.name, f"its volume {volume.name!r} is that of {whose}: adopt or change that one first")
            volume.ClearField("delete_time")
            volume.ClearField("purge_time")
            # One that was put away, itself or with its VM, had given its name back.
            volume.name = self._name(nouns.VOLUME, volume.project, volume.name, volume.id)
            self._api.check(kinds.VOLUME, disk.volume, known.mod_revision)
            self._known_home(vm, volume)
        else:
            seen = self._told(disk.volume)
            if seen is None or not seen.desired.volume.id:
                who = "its node" if disk.type in ("", LOCAL_POOL) else f"the node that administered it in pool {disk.pool}"
                raise BadState("vm", vm.name, f"{who} has not told of its volume {disk.volume} yet: try again in a moment")
            volume = self._new_volume(vm.project, disk.volume, seen.desired.volume)
            name = f"{vm.name[:58]}-root" if disk.boot else disk.volume
            volume.name = self._name(nouns.VOLUME, vm.project, name, volume.id)
            volume.spec.delete_with_vm = disk.boot
            self._home(volume, seen.desired.volume)
        # One that was a volume of its own at the backup is its VM's root disk again.
        volume.spec.vm, volume.spec.slot, volume.spec.boot = vm.id, disk.slot, disk.boot
        # Its guest was told of it once all others had let go.
        volume.spec.former_vm, volume.spec.former_generation = "", 0
        self._api.put(kinds.VOLUME, volume.id, volume)
        if not disk.boot:
            vm.spec.volumes.append(volume.id)
            return
        vm.spec.root_volume, vm.spec.root_disk_bytes = volume.id, volume.spec.size_bytes
        vm.spec.volume_type = volume.spec.type or LOCAL_POOL
        if self._view.get(kinds.IMAGE, volume.spec.image) is not None:
            vm.spec.image = volume.spec.image

    def _new_volume(self, project: str, id: str, given: DesiredVolume) -> Volume:
        volume = Volume(id=id, project=project, create_time=self._now, update_time=self._now)
        volume.spec.size_bytes, volume.spec.type = given.size_bytes, given.type or LOCAL_POOL
        image = self._view.record(kinds.IMAGE, given.image)
        if image is not None and not image.message.HasField("delete_time"):
            self._api.check(kinds.IMAGE, given.image, image.mod_revision)
            volume.spec.image = given.image
        elif holders(self._view, f"{kinds.IMAGE.name}/{given.image}"):
            raise BadState(
                "volume", id, f"it is a copy of image {given.image}, which nodes hold and no record knows: adopt that first"
            )
        self._api.check(kinds.VOLUME, id, 0)
        return volume

    def _known_home(self, vm: Vm, volume: Volume) -> None:
        """See that a known volume is where its node says; say it where that is open. Raises BadState."""
        if volume_pool(self._view, volume.id):
            there = volume_node(self._view, volume.id)
            if there not in ("", self._node) and not in_shared_pool(self._view, volume.id):
                say = f"its volume {volume.name!r} is on {node_name(self._view, there)} by the records"
                raise BadState("vm", vm.name, f"{say}, and on {node_name(self._view, self._node)} as well")
            return
        seen = self._told(volume.id)
        given = seen.desired.volume if seen is not None else DesiredVolume(size_bytes=volume.spec.size_bytes)
        self._home(volume, given)

    def _told(self, volume: str) -> Unknown | None:
        """Return what is told of a volume: of one in a shared pool by whoever administered it."""
        return told_of_shared(self._view, volume) or self._view.get(kinds.UNKNOWN, f"{self._node}/volume/{volume}")

    def _home(self, volume: Volume, given: DesiredVolume) -> None:
        """Say in which pool a volume is. Raises BadState when the store says otherwise."""
        type = given.type or LOCAL_POOL
        # Of a server that joined anew its pool is that of the node it is now.
        pool = pool_id(type, self._node) if type == LOCAL_POOL else given.pool
        place = VolumePlacement(volume=volume.id, pool=pool, disk_bytes=given.size_bytes)
        if type == LOCAL_POOL:
            place.node = self._node
        elif (told := told_of_shared(self._view, volume.id)) is not None:
            administered(self._view, self._assignments, told, volume.spec.vm or self._unknown.desired.vm.id, self._now)
        self._placement.create(kinds.VOLUME_PLACEMENT, volume.id, place)
        self._pools[pool] = self._pools.get(pool, 0) + given.size_bytes

    def _detach(self, vm: Vm, held: set[str]) -> None:
        """Detach the volumes that its guest was told to let go of since."""
        for id in self._view.by(kinds.VOLUME, "vm", vm.id):
            record = self._view.record(kinds.VOLUME, id)
            if record is None or id in held or record.message.spec.boot:
                continue
            volume = Volume()
            volume.CopyFrom(record.message)
            free(self._view, volume, vm)
            self._api.check(kinds.VOLUME, id, record.mod_revision).put(kinds.VOLUME, id, volume)

    # --- the place -------------------------------------------------------------------------------------------------------

    def _seat(self, vm: Vm, given: DesiredVm) -> None:
        """Place it where it is, and claim what it takes there. Raises BadState, Exhausted."""
        view, node, name = self._view, self._node, node_name(self._view, self._node)
        there = where(view, vm.id).runs_on
        if there not in ("", node):
            raise BadState("vm", vm.name, f"VM {vm.name!r} is placed on {node_name(view, there)} as well")
        held = claimed(view, vm.id) if there else Claimed(0, 0)
        free, cpus, memory = unclaimed(view, node), given.cpus - held.cpus, given.memory_bytes - held.memory_bytes
        if cpus > free.cpus or memory > free.memory_bytes:
            say = f"{name} has room for {free.cpus} CPUs and {size(free.memory_bytes)} of memory by the records there are"
            raise Exhausted("memory", f"{say}: adopt first what was deleted there since, or delete something")
        for pool, disk_bytes in self._pools.items():
            if disk_bytes > pool_room(view, pool):
                raise Exhausted("disk", f"pool {pool} has {size(pool_room(view, pool))} left by the records there are")
        placement = Placement(vm=vm.id, node=node, cpus=given.cpus, memory_bytes=given.memory_bytes)
        say = f"on {name}, which held it when it was adopted"
        decision = Decision(node=node, node_name=name, say=say, decide_time=self._now)
        placement.decision.CopyFrom(in_short(decision))
        txn = self._placement.put(kinds.DECISION, vm.id, decision)
        txn.check(kinds.PLACEMENT, vm.id, view.revision_of(kinds.PLACEMENT, vm.id)).put(kinds.PLACEMENT, vm.id, placement)
        txn.check(kinds.NODE, node, view.revision_of(kinds.NODE, node))
        claim(txn, view, node, cpus=cpus, memory_bytes=memory, vms=0 if there else 1, pools=self._pools)


def _follow(spec: VmSpec, given: DesiredVm) -> None:
    """Make the spec what its node was told last."""
    spec.cpus, spec.memory_bytes, spec.power_state = given.cpus, given.memory_bytes, given.power_state
    spec.power_generation = max(spec.power_generation, given.power_generation)
    spec.reboot_generation = max(spec.reboot_generation, given.reboot_generation)
    spec.volumes_generation = max(spec.volumes_generation, given.volumes_generation)
