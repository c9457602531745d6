"""What users see of a VM: its record plus where it is, what its node says about it, and its addresses. Pure; see status.py."""

from __future__ import annotations

from typing import TypeAlias

from cairn.controller.api.status import clock_time, condition, copied, percent
from cairn.controller.model.absence import is_absent
from cairn.controller.model.capabilities import knows, unknown_there, vm_needs
from cairn.controller.model.lifetime import kept_no_longer
from cairn.controller.model.nodes import connected, hypervisor_silent, node_name
from cairn.controller.model.reports import report
from cairn.controller.model.where import reason, where
from cairn.controller.store.base import Record, View
from cairn.proto import kinds
from cairn.proto.addresses import addresses_of, set_addresses
from cairn.proto.capabilities import OPEN_VOLUMES, desired_kind
from cairn.proto.ids import mac_of
from cairn.proto.v1.agent_pb2 import VM_PAUSE_UNSPECIFIED, ImageReport, VmReport
from cairn.proto.v1.vm_pb2 import POWER_STATE_STOPPED, Vm, VmStatus

State: TypeAlias = VmStatus.State.ValueType
_SETTLED = frozenset({VmStatus.STATE_RUNNING, VmStatus.STATE_STOPPED, VmStatus.STATE_FAILED, VmStatus.STATE_DELETED})


def vm(view: View, record: Record[Vm]) -> Vm:
    """Project a VM."""
    result: Vm = copied(record)
    # Records of older releases hold them.
    result.spec.ClearField("ssh_keys")
    result.spec.ClearField("user_data")
    status = result.status
    why, node = reason(view, result.id), where(view, result.id).owner
    seen = report(view, node, f"vm/{result.id}") if node else None
    if node:
        status.node = node_name(view, node)
    image = view.get(kinds.IMAGE, result.spec.image)
    status.image_name = image.name if image is not None else ""
    _fill_nics(view, result)
    _fill_volumes(view, result)
    if seen is not None:
        status.observed_revision = seen.vm.spec_revision
        status.accelerator = seen.vm.accelerator
        status.boots = seen.vm.boots
        # Agents of older releases take a reboot asked for as done.
        counts = knows(view, node, OPEN_VOLUMES)
        status.rebooted_generation = seen.vm.rebooted_generation if counts else seen.vm.reboot_generation
        if seen.vm.HasField("boot_time"):
            status.boot_time.CopyFrom(seen.vm.boot_time)
        if seen.vm.HasField("start_time"):
            status.start_time.CopyFrom(seen.vm.start_time)
    if result.HasField("delete_time"):
        status.state, status.say = _deleted(view, result, node, seen.vm if seen is not None else None)
    elif not node:
        status.state, status.say = VmStatus.STATE_PENDING, _unplaced(view, result, why)
    else:
        status.state, status.say = _placed(view, result, node, seen.vm if seen is not None else None)
        if hypervisor_silent(view, node):
            status.say += f"; the hypervisor of {status.node} does not answer: `cairn node show {status.node}`"
    behind = seen is None or seen.vm.spec_revision < record.mod_revision
    result.reconciling = status.state not in _SETTLED or (behind and status.state != VmStatus.STATE_DELETED)
    _conditions(result, why, placed=bool(node))
    return result


def _fill_nics(view: View, vm: Vm) -> None:
    for nic in vm.spec.nics:
        binding = view.get(kinds.PORT_BINDING, nic.port)
        subnet = view.get(kinds.SUBNET, nic.subnet)
        shown = vm.status.nics.add(
            port=nic.port,
            subnet=nic.subnet,
            subnet_name=subnet.name if subnet is not None else "",
            mac=mac_of(nic.port),
        )
        set_addresses(shown, addresses_of(binding) if binding is not None else ())


def _fill_volumes(view: View, vm: Vm) -> None:
    for id in filter(None, (vm.spec.root_volume, *vm.spec.volumes)):
        volume = view.get(kinds.VOLUME, id)
        if volume is not None:
            vm.status.volumes.add(id=id, name=volume.name, size_bytes=volume.spec.size_bytes)


def _conditions(vm: Vm, why: str, *, placed: bool) -> None:
    cause = "Placed" if placed else ("NoNodeFits" if why else "NotDecided")
    condition(vm.status, "Placed", placed, cause, why or "not decided yet")
    state = VmStatus.State.Name(vm.status.state).removeprefix("STATE_").title()
    condition(vm.status, "Ready", vm.status.state == VmStatus.STATE_RUNNING, state, vm.status.say)


def _unplaced(view: View, vm: Vm, why: str) -> str:
    """Say why it is nowhere yet."""
    for nic in vm.spec.nics:
        binding = view.get(kinds.PORT_BINDING, nic.port)
        if binding is not None and not addresses_of(binding):
            return f"has no address: {binding.error}"
    if why:
        return why
    return "waits to be placed"


def _deleted(view: View, vm: Vm, node: str, seen: VmReport | None) -> tuple[State, str]:
    """Return state and sentence of a VM with a delete_time."""
    if node and not is_absent(vm, seen):
        silent = "" if connected(view, node) else ", which does not answer"
        return VmStatus.STATE_DELETING, f"being removed from {vm.status.node}{silent}"
    if view.get(kinds.PURGE, vm.id) is not None:
        return VmStatus.STATE_DELETING, "its disks are being erased"
    if kept_no_longer(vm):
        return VmStatus.STATE_DELETED, "deleted for good; its disks are about to be erased"
    until = clock_time(vm.purge_time)
    return VmStatus.STATE_DELETED, f"deleted; `cairn vm undelete {vm.id}` brings it back until {until}"


def _placed(view: View, vm: Vm, node: str, seen: VmReport | None) -> tuple[State, str]:
    """Return state and sentence of a VM that has a node."""
    name = vm.status.node
    wants_off = vm.spec.power_state == POWER_STATE_STOPPED
    if not connected(view, node):
        maybe = (
            "the guest may be running" if seen is not None and seen.state == VmReport.STATE_RUNNING else "nothing more is known"
        )
        return VmStatus.STATE_UNKNOWN, f"node {name} does not answer; {maybe}"
    if unknown := unknown_there(view, node, {desired_kind(kinds.VM.name), *vm_needs(view, vm.id)}):
        return VmStatus.STATE_UNKNOWN, f"{unknown}; until then it is left as it is"
    if seen is None or seen.state in (VmReport.STATE_UNSPECIFIED, VmReport.STATE_ABSENT):
        return VmStatus.STATE_STARTING, _preparing(view, vm, node, f"waits for {name} to take it up")
    if seen.state == VmReport.STATE_PREPARING:
        return VmStatus.STATE_STARTING, _preparing(view, vm, node, f"{name}: {seen.say or 'being prepared'}")
    if seen.state == VmReport.STATE_FAILED:
        return VmStatus.STATE_FAILED, f"{name}: {seen.error or seen.say}"
    if seen.state == VmReport.STATE_STOPPING:
        return VmStatus.STATE_STOPPING, seen.say or "the guest was asked to shut down"
    if seen.state == VmReport.STATE_RUNNING:
        return _running(vm, seen)
    if wants_off:
        return VmStatus.STATE_STOPPED, f"stopped; `cairn vm start {vm.name}` runs it"
    if seen.power_generation < vm.spec.power_generation:
        return VmStatus.STATE_STARTING, f"{name} was asked to start it"
    if seen.exit == VmReport.EXIT_MIGRATED:
        return VmStatus.STATE_STOPPED, f"{name}: {seen.say}"
    if seen.exit == VmReport.EXIT_GUEST:
        return VmStatus.STATE_STOPPED, f"the guest shut itself down; `cairn vm start {vm.name}` runs it again"
    if seen.exit == VmReport.EXIT_CRASHED:
        return VmStatus.STATE_FAILED, seen.error or seen.say or "the guest crashed"
    return VmStatus.STATE_STARTING, seen.say or f"{name} will start it"


def runs(view: View, vm: Vm) -> bool:
    """Tell whether a VM that is not deleted is shown as RUNNING, at a tenth of the cost of projecting it."""
    node = where(view, vm.id).owner
    if not node or vm.spec.power_state == POWER_STATE_STOPPED or not connected(view, node):
        return False
    seen = report(view, node, f"vm/{vm.id}")
    if seen is None or seen.vm.state != VmReport.STATE_RUNNING:
        return False
    return not unknown_there(view, node, {desired_kind(kinds.VM.name), *vm_needs(view, vm.id)})


def _running(vm: Vm, seen: VmReport) -> tuple[State, str]:
    name = vm.status.node
    if vm.spec.power_state == POWER_STATE_STOPPED:
        how = "its power is being cut" if vm.spec.force else "the guest is asked to shut down"
        return VmStatus.STATE_STOPPING, how
    if seen.pause != VM_PAUSE_UNSPECIFIED:
        return VmStatus.STATE_PAUSED, f"paused on {name}: {seen.say}"
    if seen.reboot_generation < vm.spec.reboot_generation:
        return VmStatus.STATE_RUNNING, f"running on {name}, about to reboot"
    more = seen.say.removeprefix("running; ") if seen.say.startswith("running; ") else ""
    if seen.rebooted_generation < vm.spec.reboot_generation and seen.spec_revision < vm.revision:
        more = seen.say
    return VmStatus.STATE_RUNNING, f"running on {name}" + (f"; {more}" if more else "")


def _preparing(view: View, vm: Vm, node: str, otherwise: str) -> str:
    """Name the image transfer when that is what it waits for."""
    seen = report(view, node, f"image/{vm.spec.image}")
    if seen is None or seen.image.state != ImageReport.STATE_FETCHING:
        return otherwise
    image = view.get(kinds.IMAGE, vm.spec.image)
    whole = image.spec.size_bytes if image is not None else 0
    return f"{vm.status.node} is fetching image {vm.status.image_name} ({percent(seen.image.held_bytes, whole)} %)"
