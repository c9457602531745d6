"""What a new VM is made of: the VM, its name, its root volume, one port per card, its data volumes; all in one transaction."""

from __future__ import annotations

from collections import Counter

from cairn.controller.api import nouns, resolution, validation
from cairn.controller.api.core import Core
from cairn.controller.api.decision import Decided
from cairn.controller.api.fitting import all_known, disk_fits_somewhere, fits_somewhere
from cairn.controller.api.objects import begin, looked_up
from cairn.controller.api.ports import fill, room
from cairn.controller.api.volumes import disk_size, volume_type
from cairn.controller.model.nodes import node_name
from cairn.controller.model.permits import Caller, name_for
from cairn.controller.model.pools import reaching
from cairn.controller.model.where import in_shared_pool, volume_node, volume_pool
from cairn.controller.store.base import Txn, View
from cairn.proto import kinds
from cairn.proto.addresses import set_addresses
from cairn.proto.errors import BadState, Invalid
from cairn.proto.owners import VM, set_owner
from cairn.proto.sealing import SealError
from cairn.proto.v1.image_pb2 import Image
from cairn.proto.v1.port_pb2 import Port
from cairn.proto.v1.secret_pb2 import VmData
from cairn.proto.v1.subnet_pb2 import Subnet
from cairn.proto.v1.vm_pb2 import POWER_STATE_RUNNING, Vm, VmSpec
from cairn.proto.v1.volume_pb2 import Volume


def create_vm(view: View, caller: Caller, core: Core, given: Vm) -> Decided[Vm]:
    """Decide a VM's creation. Raises Refused."""
    check_spec(given.spec)
    decided, vm = begin(view, caller, core, nouns.VM, given)
    spec, wanted = vm.spec, given.spec
    spec.cpus, spec.memory_bytes = wanted.cpus, wanted.memory_bytes
    image = looked_up(view, caller, nouns.IMAGE, vm.project, wanted.image, "vm.spec.image")
    decided.txn.check(kinds.IMAGE, image.id, view.revision_of(kinds.IMAGE, image.id))
    spec.image, spec.arch = image.id, wanted.arch or image.spec.arch
    if spec.arch != image.spec.arch:
        raise Invalid("vm.spec.arch", f"is {spec.arch}, but image {image.name!r} is for {image.spec.arch}")
    fits_somewhere(view, spec)
    if wanted.node:
        spec.node = looked_up(view, caller, nouns.NODE, "", wanted.node, "vm.spec.node").id
    _data(core, decided.txn, vm, wanted)
    spec.power_state = wanted.power_state or POWER_STATE_RUNNING
    spec.power_generation = 1
    spec.restart_policy = wanted.restart_policy
    spec.node_selector.update(wanted.node_selector)
    spec.volume_type = volume_type(view, wanted.volume_type, "vm.spec.volume_type")
    _root_volume(view, caller, core, decided.txn, vm, wanted, image)
    _cards(view, caller, core, decided.txn, vm, wanted)
    _data_volumes(view, caller, decided.txn, vm, wanted)
    decided.txn.create(kinds.VM, vm.id, vm)
    return decided


def _data(core: Core, txn: Txn, vm: Vm, wanted: VmSpec) -> None:
    """Keep keys and user data apart from the VM, sealed. Raises Invalid, BadState."""
    data = VmData(user_data=wanted.user_data)
    data.ssh_keys.extend(validation.ssh_key(f"vm.spec.ssh_keys[{i}]", key) for i, key in enumerate(wanted.ssh_keys))
    vm.spec.ssh_key_count, vm.spec.user_data_bytes = len(data.ssh_keys), len(data.user_data)
    content = data.SerializeToString(deterministic=True)
    if not content:
        return
    id = f"vm/{vm.id}"
    try:
        txn.create(kinds.SECRET, id, core.seals.seal(id, content, core.clock.now()))
    except SealError as error:
        raise BadState("vm", vm.name, f"vm.spec: keys and user data cannot be kept: {error}") from error


def check_spec(spec: VmSpec) -> None:
    """Check what needs no view. Raises Invalid."""
    for field in ("cpus", "memory_bytes"):
        if not spec.HasField(field):
            raise Invalid(f"vm.spec.{field}", "is required")
    validation.cpus("vm.spec.cpus", spec.cpus)
    validation.memory("vm.spec.memory_bytes", spec.memory_bytes)
    if spec.arch:
        validation.one_of("vm.spec.arch", spec.arch, validation.ARCHS)
    validation.at_most("vm.spec.nics", spec.nics, validation.NICS_MAX, "network cards")
    validation.at_most("vm.spec.volumes", spec.volumes, validation.VOLUMES_MAX, "data volumes")
    validation.at_most("vm.spec.ssh_keys", spec.ssh_keys, validation.SSH_KEYS_MAX, "SSH keys")
    validation.user_data("vm.spec.user_data", spec.user_data)
    validation.labels("vm.spec.node_selector", spec.node_selector)
    if not spec.image:
        raise Invalid("vm.spec.image", "an image is required")
    refuse_high_availability(spec)


def refuse_high_availability(spec: VmSpec) -> None:
    """Refuse a promise that nothing would keep. Raises Invalid."""
    if spec.high_availability:
        why = "no release restarts a VM on another node by itself yet: leave it out"
        how = "for a service that outlives a node, run it in several VMs, each with `cairn vm create --node NODE`"
        raise Invalid("vm.spec.high_availability", f"{why}; {how}")


def _root_volume(view: View, caller: Caller, core: Core, txn: Txn, vm: Vm, wanted: VmSpec, image: Image) -> None:
    size = wanted.root_disk_bytes if wanted.HasField("root_disk_bytes") else None
    spec = vm.spec
    spec.root_disk_bytes = disk_size(view, image, size, "vm.spec.root_disk_bytes")
    volume = Volume(id=core.ids.new(kinds.VOLUME.id_prefix), project=vm.project, create_time=vm.create_time)
    volume.update_time.CopyFrom(vm.create_time)
    volume.name = f"{vm.name[:58]}-root"
    claim = resolution.claim_id(nouns.VOLUME, vm.project, volume.name)
    if view.get(kinds.NAME, claim) is not None:
        volume.name = volume.id
    resolution.claim(txn, view, caller, nouns.VOLUME, vm.project, volume.name, volume.id)
    volume.spec.size_bytes, volume.spec.type = spec.root_disk_bytes, spec.volume_type
    disk_fits_somewhere(view, spec.root_disk_bytes, spec.volume_type)
    volume.spec.image, volume.spec.vm = image.id, vm.id
    volume.spec.boot = volume.spec.delete_with_vm = True
    spec.root_volume = volume.id
    txn.create(kinds.VOLUME, volume.id, volume)


def _cards(view: View, caller: Caller, core: Core, txn: Txn, vm: Vm, wanted: VmSpec) -> None:
    asked: Counter[str] = Counter()
    taken: set[tuple[str, str]] = set()
    for index, nic in enumerate(wanted.nics):
        field = f"vm.spec.nics[{index}]"
        subnet: Subnet = looked_up(view, caller, nouns.SUBNET, vm.project, nic.subnet, f"{field}.subnet")
        port = Port(id=core.ids.new(kinds.PORT.id_prefix), project=vm.project, create_time=vm.create_time)
        port.update_time.CopyFrom(vm.create_time)
        port.name = port.id
        set_owner(port, VM, vm.id)
        asked_for = validation.addresses(field, nic)
        fill(view, caller, txn, port, subnet, asked_for)
        for address in port.spec.addresses:
            if (subnet.id, address) in taken:
                raise Invalid(asked_for.field, f"{address} is asked for twice")
            taken.add((subnet.id, address))
        asked[subnet.id] += 1
        room(view, subnet, asked[subnet.id])
        set_addresses(vm.spec.nics.add(subnet=subnet.id, port=port.id), port.spec.addresses)
        txn.create(kinds.PORT, port.id, port)


def _data_volumes(view: View, caller: Caller, txn: Txn, vm: Vm, wanted: VmSpec) -> None:
    """Attach existing volumes; their revisions are checked, so that two VMs cannot take one."""
    nodes: dict[str, str] = {}
    pools: dict[str, str] = {}
    for index, text in enumerate(wanted.volumes):
        field = f"vm.spec.volumes[{index}]"
        held: Volume = looked_up(view, caller, nouns.VOLUME, vm.project, text, field)
        if held.spec.vm:
            name = name_for(view, caller, kinds.VM, held.spec.vm)
            raise BadState("volume", held.name, f"{field}: volume {held.name!r} is attached to VM {name!r}: detach it first")
        if kinds.VOLUME.key(held.id) in txn.puts:
            raise Invalid(field, f"volume {held.name!r} is asked for twice")
        if pool := volume_pool(view, held.id):
            pools[pool] = held.name
        if pool and not in_shared_pool(view, held.id):
            nodes[volume_node(view, held.id)] = held.name
        volume = Volume()
        volume.CopyFrom(held)
        volume.spec.vm, volume.spec.slot = vm.id, index + 1
        txn.check(kinds.VOLUME, held.id, view.revision_of(kinds.VOLUME, held.id)).put(kinds.VOLUME, held.id, volume)
        vm.spec.volumes.append(held.id)
    if len(nodes) > 1:
        held_on = ", ".join(f"{name!r} on {node_name(view, node)}" for node, name in nodes.items())
        raise BadState("volume", next(iter(nodes.values())), f"vm.spec.volumes: local volumes on different nodes: {held_on}")
    if pools and not set[str].intersection(*(set(reaching(view, pool)) for pool in pools)):
        all_known(view)
        held_in = ", ".join(f"{name!r} in {pool}" for pool, name in pools.items())
        raise BadState("volume", next(iter(pools.values())), f"vm.spec.volumes: no node reaches all their pools: {held_in}")
