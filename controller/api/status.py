"""What users see of each stored record: the record plus a status projected from everything else in the View.

Nothing of this is stored, so it cannot be stale or disagree with what it is made of, and there is no writer to keep in step.
Each function takes (view, record) and returns a fresh message: id, spec and times as stored; revision and etag of the spec
record; `reconciling`; a state, and one sentence that says what the object is doing or waiting for. VMs are in vm_status.py.
Which objects must be projected again when some record changes is dependents.py's business.
"""

from __future__ import annotations

from datetime import UTC
from ipaddress import IPv4Network
from typing import Any, Final, TypeVar

from cairn.controller.model.attachments import Hold, attachment
from cairn.controller.model.beyond import doubt_say, doubts
from cairn.controller.model.capabilities import unknown_there
from cairn.controller.model.facts import facts_of
from cairn.controller.model.growth import Unseen, unseen
from cairn.controller.model.jobs import status_of, whole
from cairn.controller.model.lifetime import kept_no_longer
from cairn.controller.model.nodes import capacity, connected, hypervisor_silent, node_name
from cairn.controller.model.openings import holders
from cairn.controller.model.owners import owner, vm_of
from cairn.controller.model.pools import pool_claimed
from cairn.controller.model.reports import report, volume_ready_report
from cairn.controller.model.where import in_shared_pool, vms_on, volume_claimed_bytes, volume_node, volume_pool, where
from cairn.controller.store.base import Record, View
from cairn.controller.words import several, size
from cairn.proto import kinds
from cairn.proto.addresses import addresses_of, set_addresses
from cairn.proto.capabilities import volume_type
from cairn.proto.ids import LOCAL_POOL, pool_id
from cairn.proto.owners import owner_of
from cairn.proto.v1.agent_pb2 import ImageReport, PortReport, VolumeReport
from cairn.proto.v1.event_pb2 import Event
from cairn.proto.v1.image_pb2 import Image, ImageContent, ImageStatus
from cairn.proto.v1.job_pb2 import Job
from cairn.proto.v1.node_pb2 import Node, NodeStatus
from cairn.proto.v1.port_pb2 import Port, PortStatus
from cairn.proto.v1.project_pb2 import Project
from cairn.proto.v1.subnet_pb2 import Subnet
from cairn.proto.v1.volume_pb2 import Volume, VolumeStatus
from cairn.proto.v1.vpc_pb2 import Vpc
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

M = TypeVar("M", bound=Message)
_HELD: Final = {
    Hold.FREE: VolumeStatus.STATE_AVAILABLE,
    Hold.ATTACHING: VolumeStatus.STATE_ATTACHING,
    Hold.ATTACHED: VolumeStatus.STATE_ATTACHED,
    Hold.DETACHING: VolumeStatus.STATE_DETACHING,
}
_USABLE: Final = frozenset({VolumeStatus.STATE_AVAILABLE, VolumeStatus.STATE_ATTACHED})
_VOLUME_MOVING: Final = frozenset(
    {
        VolumeStatus.STATE_PENDING,
        VolumeStatus.STATE_CREATING,
        VolumeStatus.STATE_DELETING,
        VolumeStatus.STATE_ATTACHING,
        VolumeStatus.STATE_DETACHING,
    }
)


def copied(record: Record[M]) -> Any:
    """Return a copy of a stored record with its revision and etag; Any, since messages share these fields by name only."""
    result: Any = type(record.message)()
    result.CopyFrom(record.message)
    result.revision = record.mod_revision
    result.etag = str(record.mod_revision)
    return result


def condition(status: Any, type: str, holds: bool, reason: str, message: str) -> None:
    """Add a condition to a status message."""
    status.conditions.add(type=type, status=holds, reason=reason, message=message)


def clock_time(stamp: Timestamp) -> str:
    """Return a time for people: 2026-01-02 03:04 UTC."""
    return stamp.ToDatetime(UTC).strftime("%Y-%m-%d %H:%M UTC")


def percent(part: int, whole: int) -> int:
    """Return part of whole in percent, 100 only when it is all there."""
    return min(99, part * 100 // whole) if 0 <= part < whole else 100


def virtual_size(view: View, image: str) -> int:
    """Return the disk size a guest sees of an image, 0 while nobody has looked into its bytes."""
    content = view.get(kinds.IMAGE_CONTENT, image)
    return content.virtual_size_bytes if content is not None and not content.failed else 0


def project(view: View, record: Record[Project]) -> Project:
    """Project a project."""
    result: Project = copied(record)
    status = result.status
    status.vms, status.volumes = (view.count_by(kind, "project", result.id) for kind in (kinds.VM, kinds.VOLUME))
    status.images, status.vpcs = (view.count_by(kind, "project", result.id) for kind in (kinds.IMAGE, kinds.VPC))
    status.say = "ready"
    if result.HasField("delete_time"):
        result.reconciling, status.say = True, "being deleted"
    status.observed_revision = record.mod_revision
    return result


def event(_view: View, record: Record[Event]) -> Event:
    """Return an event: it is stored as it is shown."""
    return record.message


def job(view: View, record: Record[Job]) -> Job:
    """Project a job: what is wished, and how far it is."""
    result: Job = copied(record)
    result.status.CopyFrom(status_of(view, result.id))
    result.status.say = result.status.say or "has not begun yet"
    result.reconciling = not result.status.done
    result.status.observed_revision = record.mod_revision
    return result


def vpc(view: View, record: Record[Vpc]) -> Vpc:
    """Project a VPC."""
    result: Vpc = copied(record)
    subnets = view.count_by(kinds.SUBNET, "vpc", result.id)
    result.status.subnets = subnets
    result.status.observed_revision = record.mod_revision
    result.status.say = "ready" if subnets else "ready; it has no subnet yet"
    if result.HasField("delete_time"):
        result.reconciling, result.status.say = True, "being deleted"
    return result


def subnet(view: View, record: Record[Subnet]) -> Subnet:
    """Project a subnet."""
    result: Subnet = copied(record)
    network = IPv4Network(result.spec.cidr)
    status = result.status
    status.gateway = str(network[1])
    status.addresses_total = network.num_addresses - 3
    status.addresses_used = view.count_by(kinds.ADDRESS, "subnet", result.id)
    owner = view.get(kinds.VPC, result.spec.vpc)
    status.vpc_name = owner.name if owner is not None else ""
    status.observed_revision = record.mod_revision
    free = status.addresses_total - status.addresses_used
    status.say = f"{free} of {status.addresses_total} addresses free" if free else "no free address"
    if result.HasField("delete_time"):
        result.reconciling, status.say = True, "being deleted"
    return result


def port(view: View, record: Record[Port]) -> Port:
    """Project a port."""
    result: Port = copied(record)
    status = result.status
    binding = view.get(kinds.PORT_BINDING, result.id)
    whose, vm = owner(view, result), vm_of(result)
    place = where(view, vm)
    home = view.get(kinds.SUBNET, result.spec.subnet)
    if whose is not None:
        # Of a record that names a VM only, too.
        result.spec.owner.CopyFrom(owner_of(result))
        status.owner_name = whose.name
        status.vm_name = whose.name if vm else ""
    status.subnet_name = home.name if home is not None else ""
    if place.owner:
        status.node = node_name(view, place.owner)
    if binding is None:
        status.state, status.say = PortStatus.STATE_PENDING, "waits for an address"
        result.reconciling = True
        return result
    status.observed_revision = record.mod_revision
    set_addresses(status, addresses_of(binding))
    if not status.addresses:
        status.state, status.say = PortStatus.STATE_FAILED, binding.error or "has no address"
        return result
    seen = report(view, place.owner, f"port/{result.id}")
    if seen is not None and seen.port.state == PortReport.STATE_FAILED:
        status.state, status.say = PortStatus.STATE_FAILED, f"{status.node} could not set it up: {seen.port.error}"
    elif seen is not None and seen.port.state == PortReport.STATE_ACTIVE:
        status.state, status.say = PortStatus.STATE_ACTIVE, f"active on {status.node}"
    else:
        status.state, status.say = PortStatus.STATE_ALLOCATED, f"has {', '.join(status.addresses)}; not in use now"
    return result


def volume(view: View, record: Record[Volume]) -> Volume:
    """Project a volume."""
    result: Volume = copied(record)
    status = result.status
    node = volume_node(view, result.id)
    seen = report(view, node, f"volume/{result.id}")
    vm = view.get(kinds.VM, result.spec.vm)
    status.vm_name = vm.name if vm is not None else ""
    shared = in_shared_pool(view, result.id)
    status.node = node_name(view, node) if node and not shared else ""
    status.pool = volume_pool(view, result.id)
    seen = seen if seen is not None or not shared else volume_ready_report(view, result.id)
    if seen is not None:
        status.used_bytes = seen.volume.used_bytes
    state = _shared_state if shared and not result.HasField("delete_time") else _volume_state
    away = _with_deleted_vm(view, result)
    status.state, status.say = away or state(view, result, node, seen.volume if seen is not None else None)
    grows = _growing(view, result, seen.volume, node) if seen is not None and status.state in _USABLE else None
    status.say = grows.say if grows is not None else status.say
    result.reconciling = (grows is not None and grows.moves) or status.state in _VOLUME_MOVING
    status.observed_revision = 0 if result.reconciling else record.mod_revision
    usable = status.state in _USABLE
    condition(status, "Ready", usable, VolumeStatus.State.Name(status.state).removeprefix("STATE_").title(), status.say)
    return result


def _with_deleted_vm(view: View, volume: Volume) -> tuple[VolumeStatus.State.ValueType, str] | None:
    """Return state and sentence of a volume that goes with a VM that is deleted, None for any other."""
    vm = view.get(kinds.VM, volume.spec.vm)
    if vm is None or not vm.HasField("delete_time") or volume.HasField("delete_time"):
        return None
    holding = [node for id, node in holders(view, volume.id) if id == vm.id]
    if holding:
        where = node_name(view, holding[0])
        silent = "" if connected(view, holding[0]) else ", which does not answer,"
        return (
            VolumeStatus.STATE_DETACHING,
            f"waits for {where}{silent} to say that VM {vm.name}, which is deleted, let go of it",
        )
    if view.get(kinds.PURGE, vm.id) is not None:
        return VolumeStatus.STATE_DELETING, f"being erased with VM {vm.name}"
    if kept_no_longer(vm):
        return VolumeStatus.STATE_DELETED, f"deleted for good with VM {vm.name}; about to be erased"
    both = f"`cairn vm undelete {vm.id}` brings both back until {clock_time(vm.purge_time)}"
    return VolumeStatus.STATE_DELETED, f"deleted with VM {vm.name}: {both}; `cairn volume detach {volume.id}` keeps it alone"


def _volume_state(view: View, volume: Volume, node: str, seen: VolumeReport | None) -> tuple[VolumeStatus.State.ValueType, str]:
    """Return state and sentence; volume.status has its names filled in."""
    status = volume.status
    if volume.HasField("delete_time"):
        if view.get(kinds.PURGE, volume.id) is None:
            until = clock_time(volume.purge_time)
            if kept_no_longer(volume):
                return VolumeStatus.STATE_DELETED, "deleted for good; about to be erased"
            return VolumeStatus.STATE_DELETED, f"deleted; `cairn volume undelete {volume.id}` brings it back until {until}"
        where = f" on {status.node}" if node else ""
        return VolumeStatus.STATE_DELETING, f"being erased{where}"
    if not node:
        return _unplaced_state(view, volume)
    if unknown := unknown_there(view, node, {volume_type(volume.spec.type)}):
        return VolumeStatus.STATE_PENDING, f"waits: {unknown}"
    if seen is None or seen.state in (VolumeReport.STATE_ABSENT, VolumeReport.STATE_UNSPECIFIED):
        silent = "" if connected(view, node) else ", which does not answer"
        return VolumeStatus.STATE_CREATING, f"waits for {status.node}{silent}"
    if seen.state == VolumeReport.STATE_FAILED:
        return VolumeStatus.STATE_FAILED, f"{status.node} could not make it: {seen.error or seen.say}"
    if seen.state == VolumeReport.STATE_CREATING:
        return VolumeStatus.STATE_CREATING, f"{status.node}: {seen.say or 'being made'}"
    held = attachment(view, volume)
    settled = f"on {status.node}, attached to no VM"
    if volume.spec.vm:
        settled = f"attached to {status.vm_name or volume.spec.vm} on {status.node}"
    return _HELD[held.hold], held.say or settled


def _unplaced_state(view: View, volume: Volume) -> tuple[VolumeStatus.State.ValueType, str]:
    """Return state and sentence of one of which no record says where it is: it is nowhere yet, or that cannot be read."""
    if volume.id in view.unreadable(kinds.VOLUME_PLACEMENT):
        return VolumeStatus.STATE_PENDING, "where it is cannot be read; `cairn cluster fsck` lists what is damaged"
    if volume.spec.vm:
        return VolumeStatus.STATE_PENDING, f"waits for VM {volume.status.vm_name or volume.spec.vm} to be placed"
    if (volume.spec.type or LOCAL_POOL) != LOCAL_POOL:
        return VolumeStatus.STATE_PENDING, f"waits for room in a pool of type {volume.spec.type}"
    return VolumeStatus.STATE_AVAILABLE, "ready; its space is taken on the node of the first VM it is attached to"


def _growing(view: View, volume: Volume, seen: VolumeReport, node: str) -> Unseen | None:
    """Say what a volume waits for that is smaller than asked for, or smaller in its guest's eyes; None: it is not."""
    wanted = volume.spec.size_bytes
    if seen.size_bytes >= wanted:
        return unseen(view, volume, seen.size_bytes)
    if volume_claimed_bytes(view, volume.id) < wanted:
        return Unseen(f"waits for room to grow to {size(wanted)}", moves=True)
    why = f": {seen.error}; trying again" if seen.error else ""
    return Unseen(f"{node_name(view, node)} is growing it to {size(wanted)}{why}", moves=True)


def _shared_state(view: View, volume: Volume, node: str, seen: VolumeReport | None) -> tuple[VolumeStatus.State.ValueType, str]:
    """Return state and sentence of a volume that no node holds; `node` administers it."""
    pool, name = volume.status.pool, node_name(view, node) if node else ""
    if not node:
        return VolumeStatus.STATE_PENDING, f"waits for a connected node that reaches pool {pool}"
    if seen is not None and seen.state == VolumeReport.STATE_FAILED:
        return VolumeStatus.STATE_FAILED, f"{name} could not make it: {seen.error or seen.say}"
    if seen is None or seen.state != VolumeReport.STATE_READY:
        waits = unknown_there(view, node, {volume_type(volume.spec.type)}) or (
            "" if connected(view, node) else f"{name} does not answer; another node takes over"
        )
        return VolumeStatus.STATE_CREATING, waits or f"{name}: {(seen.say if seen is not None else '') or 'is to make it'}"
    held = attachment(view, volume)
    settled = f"in pool {pool}, attached to no VM"
    if volume.spec.vm:
        settled = f"attached to {volume.status.vm_name or volume.spec.vm}, in pool {pool}"
    return _HELD[held.hold], held.say or settled


def image(view: View, record: Record[Image]) -> Image:
    """Project an image."""
    result: Image = copied(record)
    status = result.status
    content = view.get(kinds.IMAGE_CONTENT, result.id)
    jobs = [found for id in view.by(kinds.JOB, "target", result.id) if (found := whole(view, id)) is not None]
    newest = max(jobs, key=lambda each: each.create_time.ToNanoseconds(), default=None)
    ready, fetching = _image_holders(view, result.id)
    status.nodes.extend(sorted(ready))
    status.virtual_size_bytes = virtual_size(view, result.id)
    status.job = newest.id if newest is not None else ""
    status.observed_revision = record.mod_revision
    status.state, status.say = _image_state(result, content, newest, fetching)
    going = newest is not None and not newest.status.done
    result.reconciling = going or status.state == ImageStatus.STATE_DELETING
    available = status.state == ImageStatus.STATE_AVAILABLE
    condition(status, "Ready", available, ImageStatus.State.Name(status.state).removeprefix("STATE_").title(), status.say)
    return result


def _image_holders(view: View, image: str) -> tuple[list[str], list[tuple[str, ImageReport]]]:
    """Return the names of nodes that hold an image, and those that are getting it with their reports."""
    ready: list[str] = []
    fetching: list[tuple[str, ImageReport]] = []
    for id in view.by(kinds.OBSERVED, "key", f"image/{image}"):
        observed = view.get(kinds.OBSERVED, id)
        if observed is None:
            continue
        name = node_name(view, observed.node)
        if observed.report.image.state == ImageReport.STATE_READY:
            ready.append(name)
        elif observed.report.image.state == ImageReport.STATE_FETCHING:
            fetching.append((name, observed.report.image))
    return ready, fetching


def _image_state(
    image: Image, content: ImageContent | None, job: Job | None, fetching: list[tuple[str, ImageReport]]
) -> tuple[ImageStatus.State.ValueType, str]:
    """Return state and sentence; image.status has its nodes filled in."""
    if image.HasField("delete_time"):
        return ImageStatus.STATE_DELETING, "being deleted"
    if content is not None and content.failed:
        return ImageStatus.STATE_FAILED, content.error or "the import failed"
    if job is not None and job.status.failed:
        return ImageStatus.STATE_FAILED, job.status.error or job.status.say
    held = max((seen.held_bytes for _, seen in fetching), default=0)
    if image.status.nodes:
        more = f"; copying to {fetching[0][0]} ({percent(held, image.spec.size_bytes)} %)" if fetching else ""
        known = bool(image.status.virtual_size_bytes)
        state = ImageStatus.STATE_AVAILABLE if known else ImageStatus.STATE_VERIFYING
        return state, f"{'ready on' if known else 'held by'} {', '.join(image.status.nodes)}{more}"
    if held:
        name = fetching[0][0]
        return ImageStatus.STATE_UPLOADING, f"{name} is receiving it ({percent(held, image.spec.size_bytes)} %)"
    return ImageStatus.STATE_UPLOADING, (job.status.say if job is not None else "") or "waits for its bytes"


def node(view: View, record: Record[Node]) -> Node:
    """Project a node."""
    result: Node = copied(record)
    status = result.status
    facts = facts_of(view, result.id)
    session = view.get(kinds.NODE_SESSION, result.id)
    claims = view.get(kinds.NODE_CLAIMS, result.id)
    if facts is not None:
        status.facts.CopyFrom(facts)
        status.capacity.CopyFrom(capacity(record.message, facts))
    if claims is not None:
        status.claims.CopyFrom(claims)
    held_bytes = pool_claimed(view, pool_id(LOCAL_POOL, result.id))
    if held_bytes or claims is not None:
        status.claims.node, status.claims.disk_bytes = result.id, held_bytes
    status.observed_revision = record.mod_revision
    if session is not None:
        status.state = NodeStatus.STATE_READY
        status.endpoint = session.endpoint
        status.connect_time.CopyFrom(session.connect_time)
        count, silent = len(vms_on(view, result.id)), hypervisor_silent(view, result.id)
        status.say = f"ready, {count} VM{'' if count == 1 else 's'}" + (
            "; cordoned: takes no new VMs" if result.spec.cordoned else ""
        )
        if silent:
            status.say += (
                f"; its hypervisor does not answer: it takes no new VMs, and nobody can tell what its guests do: {silent}"
            )
            condition(status, "HypervisorAnswers", False, "HypervisorSilent", silent)
    elif facts is None:
        status.state, status.say = NodeStatus.STATE_JOINING, "has joined; its agent has not connected yet"
        result.reconciling = True
    else:
        status.state, status.say = NodeStatus.STATE_DOWN, "its agent does not answer; its guests may be running"
    if result.HasField("delete_time"):
        status.say, result.reconciling = "being removed", True
    condition(
        status, "Ready", session is not None, NodeStatus.State.Name(status.state).removeprefix("STATE_").title(), status.say
    )
    if (count := doubts(view, result.id)) and not result.HasField("delete_time"):
        condition(status, "GuestsKnown", False, "GuestsDoubted", doubt_say(count))
        status.say += f"; no record speaks of {several(count, 'guest')} that it goes on managing: `cairn cluster adopt`"
    return result
