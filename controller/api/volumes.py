"""Volumes: block devices that outlive the VM they are attached to. Attaching and detaching is an update of spec.vm.

The VM keeps the list of its data volumes in its own spec, changed in the same transaction.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from cairn.controller.api import nouns, resolution, validation
from cairn.controller.api.authorise import caller_of
from cairn.controller.api.core import Core
from cairn.controller.api.decision import Decided
from cairn.controller.api.fitting import all_known, disk_fits_somewhere
from cairn.controller.api.masks import UpdateRules
from cairn.controller.api.objects import addressed, begin, looked_up, mark_deleted, updated
from cairn.controller.api.status import virtual_size
from cairn.controller.model.attachments import is_let_go
from cairn.controller.model.nodes import node_name
from cairn.controller.model.openings import holders
from cairn.controller.model.permits import Caller, Verb, name_for
from cairn.controller.model.pools import pool_types, reaching
from cairn.controller.model.restored import kept_s, was_restored
from cairn.controller.model.slots import free_slot, slots
from cairn.controller.model.where import in_shared_pool, volume_node, volume_pool, where
from cairn.controller.store.base import Record, Txn, View
from cairn.controller.words import size
from cairn.proto import kinds
from cairn.proto.errors import AlreadyExists, BadState, Invalid, NotFound, TryAgain
from cairn.proto.ids import LOCAL_POOL
from cairn.proto.seams import Clock, timestamp
from cairn.proto.v1 import volume_pb2, volume_pb2_grpc
from cairn.proto.v1.image_pb2 import Image
from cairn.proto.v1.vm_pb2 import Vm
from cairn.proto.v1.volume_pb2 import Volume

RULES = UpdateRules(
    mutable=("name", "labels", "spec.size_bytes", "spec.vm", "spec.delete_with_vm"),
    immutable=(
        "spec.type",
        "spec.image",
        "spec.boot",
        "spec.slot",
        "spec.former_vm",
        "spec.former_generation",
    ),
)


class VolumeService(volume_pb2_grpc.VolumeServiceServicer):
    """VolumeService of proto/v1/volume.proto."""

    def __init__(self, core: Core) -> None:
        self._core = core

    async def CreateVolume(self, request: volume_pb2.CreateVolumeRequest, context: Any) -> Volume:
        """Make a volume, attached when spec.vm is given."""
        return await self._core.mutations.run(
            request, caller_of(context), lambda view, caller: self._create(view, caller, request.volume)
        )

    def _create(self, view: View, caller: Caller, given: Volume) -> Decided[Volume]:
        decided, volume = begin(view, caller, self._core, nouns.VOLUME, given)
        spec = volume.spec
        spec.type = volume_type(view, given.spec.type, "volume.spec.type")
        if given.spec.boot:
            raise Invalid("volume.spec.boot", "is set by the system: a VM's root volume is made with the VM")
        if given.spec.image:
            image = looked_up(view, caller, nouns.IMAGE, volume.project, given.spec.image, "volume.spec.image")
            spec.image = image.id
            decided.txn.check(kinds.IMAGE, image.id, view.revision_of(kinds.IMAGE, image.id))
            size = given.spec.size_bytes if given.spec.HasField("size_bytes") else None
            spec.size_bytes = disk_size(view, image, size, "volume.spec.size_bytes")
        elif not given.spec.HasField("size_bytes"):
            raise Invalid("volume.spec.size_bytes", "a size is required")
        else:
            spec.size_bytes = validation.disk("volume.spec.size_bytes", given.spec.size_bytes)
        disk_fits_somewhere(view, spec.size_bytes, spec.type)
        spec.delete_with_vm = given.spec.delete_with_vm
        if given.spec.vm:
            attach(view, caller, decided.txn, volume, given.spec.vm)
        decided.txn.create(kinds.VOLUME, volume.id, volume)
        return decided

    async def GetVolume(self, request: volume_pb2.GetVolumeRequest, context: Any) -> Volume:
        """Return one."""
        return await self._core.listings.get(caller_of(context), nouns.VOLUME, request)

    async def ListVolumes(self, request: volume_pb2.ListVolumesRequest, context: Any) -> volume_pb2.ListVolumesResponse:
        """Return a page."""
        return await self._core.listings.list(caller_of(context), nouns.VOLUME, request, volume_pb2.ListVolumesResponse)

    async def UpdateVolume(self, request: volume_pb2.UpdateVolumeRequest, context: Any) -> Volume:
        """Grow, attach, detach, label."""

        def decide(view: View, caller: Caller) -> Decided[Volume]:
            decided, _, _ = updated(view, caller, self._core, nouns.VOLUME, request, RULES, amend)
            return decided

        return await self._core.mutations.run(request, caller_of(context), decide)

    async def DeleteVolume(self, request: volume_pb2.DeleteVolumeRequest, context: Any) -> Volume:
        """Put it away for the retention period, or erase it."""
        return await self._core.mutations.run(
            request, caller_of(context), lambda view, caller: delete_volume(view, caller, self._core, request)
        )

    async def UndeleteVolume(self, request: volume_pb2.UndeleteVolumeRequest, context: Any) -> Volume:
        """Bring a deleted volume back."""

        def decide(view: View, caller: Caller) -> Decided[Volume]:
            record = addressed(view, caller, nouns.VOLUME, request, verb=Verb.UNDELETE, deleted=True)
            volume = Volume()
            volume.CopyFrom(record.message)
            txn = revived(view, caller, record, volume, nouns.VOLUME, self._core.clock, request.name)
            txn.put(kinds.VOLUME, volume.id, volume)
            said = [("Undeleted", f"volume {volume.name} was brought back")]
            return Decided(txn, nouns.VOLUME, volume.id, volume.name, volume.project, events=said)

        return await self._core.mutations.run(request, caller_of(context), decide)

    async def WatchVolumes(
        self, request: volume_pb2.WatchVolumesRequest, context: Any
    ) -> AsyncIterator[volume_pb2.WatchVolumesResponse]:
        """Follow them."""
        async for response in self._core.watches.watch(
            caller_of(context), nouns.VOLUME, request, volume_pb2.WatchVolumesResponse
        ):
            yield response


def delete_volume(
    view: View, caller: Caller, core: Core, request: volume_pb2.DeleteVolumeRequest, *, gone: bool = False
) -> Decided[Volume]:
    """Decide a volume's deletion. gone: its bytes are, so a VM that is deleted need not let go of it. Raises Refused."""
    record = addressed(view, caller, nouns.VOLUME, request, verb=Verb.DELETE, deleted=True)
    refuse_if_deleted(record, nouns.VOLUME, purge=request.purge)
    resolution.check_etag("etag", record, request.etag, required=False, title="volume")
    volume = Volume()
    volume.CopyFrom(record.message)
    holder, txn = holder_of(view, volume), Txn("api")
    if holder is not None and gone and holder.HasField("delete_time"):
        _let_go(view, txn, volume, holder)
    elif holder is not None:
        name = name_for(view, caller, kinds.VM, holder.id)
        how = f"detach it first: `cairn volume detach {volume.name}`"
        if volume.spec.boot and not holder.HasField("delete_time"):
            how = "it is the root disk; delete the VM"
        raise BadState("volume", volume.name, f"volume {volume.name!r} is attached to VM {name!r}: {how}")
    elif not gone:
        _refuse_disk_of_unknown(view, volume)
    volume.spec.vm, volume.spec.boot = "", False
    mark_deleted(core, volume, purge=request.purge)
    txn.check(kinds.VOLUME, volume.id, record.mod_revision).put(kinds.VOLUME, volume.id, volume)
    resolution.release(txn, view, nouns.VOLUME, volume.project, volume.name, volume.id)
    said = [("Deleted", f"volume {volume.name} was deleted")]
    return Decided(txn, nouns.VOLUME, volume.id, volume.name, volume.project, events=said)


def _refuse_disk_of_unknown(view: View, volume: Volume) -> None:
    """Raises BadState: after a restore a node runs a VM with this disk that the records do not have.

    Without one it is a guest that was removed by word, and its node has not done so yet: it takes no disk from anybody.
    """
    if not was_restored(view):
        return
    told = (view.get(kinds.UNKNOWN, id) for id in view.by(kinds.UNKNOWN, "disk", volume.id))
    for unknown in told:
        vm = view.get(kinds.VM, unknown.desired.vm.id) if unknown is not None else None
        if unknown is not None and not unknown.desired.vm.absent and (vm is None or vm.HasField("delete_time")):
            whose = f"it is a disk of VM {unknown.desired.vm.id}, which a node runs and the records do not have"
            say = f"volume {volume.name!r} cannot be deleted: {whose}; adopt or forget that first (`cairn cluster adopt`)"
            raise BadState("volume", volume.name, say)


def volume_type(view: View, wanted: str, field: str) -> str:
    """Return the type of a new volume: local, or that of a pool some node reports. Raises Invalid, TryAgain."""
    if wanted in ("", LOCAL_POOL):
        return LOCAL_POOL
    if wanted not in pool_types(view):
        all_known(view)
    return validation.one_of(field, wanted, sorted(pool_types(view)))


def disk_size(view: View, image: Image, wanted: int | None, field: str) -> int:
    """Return the size of a disk copied from an image; unset: the image's own. Raises Invalid, BadState, TryAgain."""
    least = virtual_size(view, image.id)
    if not least and image.id in view.unreadable(kinds.IMAGE_CONTENT):
        what = f"what is known of the bytes of image {image.name!r}"
        raise TryAgain(f"{what} cannot be read; `cairn cluster fsck` lists what is damaged")
    if not least:
        shown = nouns.IMAGE.of(view, image.id)
        say = shown.status.say if shown is not None else "not known"
        raise BadState("image", image.name, f"image {image.name!r} is not ready: {say}")
    if wanted is None:
        return max(validation.DISK_BYTES_MIN, -(-least // validation.MIB) * validation.MIB)
    validation.disk(field, wanted)
    if wanted < least:
        raise Invalid(field, f"{size(wanted)} is smaller than image {image.name!r}, which needs {size(least)}")
    return wanted


def amend(view: View, caller: Caller, txn: Txn, new: Any, record: Record[Any]) -> None:
    """Check an updated volume and complete its transaction. Raises Invalid, BadState."""
    old: Volume = record.message
    if new.spec.size_bytes != old.spec.size_bytes:
        validation.disk("volume.spec.size_bytes", new.spec.size_bytes)
        if new.spec.size_bytes < old.spec.size_bytes:
            held = size(old.spec.size_bytes)
            raise Invalid("volume.spec.size_bytes", f"volumes only grow: it is {held} large")
        disk_fits_somewhere(view, new.spec.size_bytes, old.spec.type)
    _attach_or_detach(view, caller, txn, new, old)


def _attach_or_detach(view: View, caller: Caller, txn: Txn, new: Volume, old: Volume) -> None:
    """Carry out what an update says of spec.vm. A volume that is not to go with its VM leaves a deleted one."""
    holder, wanted = holder_of(view, old), new.spec.vm
    if holder is not None and new.spec.delete_with_vm != old.spec.delete_with_vm:
        # The VM is not deleted, or brought back, at this moment: neither writes a volume that goes with it.
        txn.check(kinds.VM, holder.id, view.revision_of(kinds.VM, holder.id))
    if holder is None:
        # Attached to nothing, or, as older releases left it, to a VM that was erased.
        new.spec.vm, new.spec.boot = "", False
        if wanted not in ("", old.spec.vm):
            attach(view, caller, txn, new, wanted)
    elif not wanted or (holder.HasField("delete_time") and not new.spec.delete_with_vm):
        detach(view, caller, txn, new, holder)
    elif wanted != holder.id:
        if looked_up(view, caller, nouns.VM, old.project, wanted, "volume.spec.vm").id != holder.id:
            name = name_for(view, caller, kinds.VM, holder.id)
            raise BadState("volume", old.name, f"volume {old.name!r} is attached to VM {name!r}: detach it first")
        new.spec.vm = holder.id


def holder_of(view: View, volume: Volume) -> Vm | None:
    """Return the VM a volume is attached to, also a deleted one; None: none, or one that was erased. Raises TryAgain."""
    resolution.refuse_unknown(view, nouns.VM, [volume.spec.vm])
    return view.get(kinds.VM, volume.spec.vm) if volume.spec.vm else None


def attach(view: View, caller: Caller, txn: Txn, volume: Volume, wanted: str) -> None:
    """Attach a volume to a VM given by id or name: sets spec.vm and adds the checks. Raises Refused."""
    vm = looked_up(view, caller, nouns.VM, volume.project, wanted, "volume.spec.vm")
    data = [id for id in view.by(kinds.VOLUME, "vm", vm.id) if id != vm.spec.root_volume]
    validation.at_most("volume.spec.vm", [*data, volume.id], validation.VOLUMES_MAX, f"data volumes at VM {vm.name!r}")
    owner, pool = where(view, vm.id).owner, volume_pool(view, volume.id)
    if owner and pool and in_shared_pool(view, volume.id) and owner not in reaching(view, pool):
        say = (
            f"volume {volume.name!r} is in pool {pool}, which {node_name(view, owner)}, where VM {vm.name!r} is, does not reach"
        )
        raise BadState("volume", volume.name, say)
    if owner and pool and not in_shared_pool(view, volume.id) and owner != volume_node(view, volume.id):
        there, here = node_name(view, volume_node(view, volume.id)), node_name(view, owner)
        say = f"volume {volume.name!r} is local to node {there}, VM {vm.name!r} is on {here}: a local volume cannot follow"
        raise BadState("volume", volume.name, say)
    places = slots(view, vm.id)
    volume.spec.vm = vm.id
    volume.spec.slot = places[volume.id] = free_slot(view, vm.id)
    holder = Vm()
    holder.CopyFrom(vm)
    holder.spec.volumes.append(volume.id)
    holder.spec.volumes[:] = sorted(holder.spec.volumes, key=lambda id: places.get(id, len(places)))
    holder.spec.volumes_generation += 1
    txn.check(kinds.VM, vm.id, view.revision_of(kinds.VM, vm.id)).put(kinds.VM, vm.id, holder)
    txn.check(kinds.PLACEMENT, vm.id, view.revision_of(kinds.PLACEMENT, vm.id))


def detach(view: View, caller: Caller, txn: Txn, volume: Volume, holder: Vm) -> None:
    """Take a volume off its VM. One that was to go with a deleted VM stays, and has its name again. Raises BadState.

    A root disk leaves only a deleted VM, and is a data volume from then on (UndeleteVm takes it back when it is free).
    """
    if not holder.HasField("delete_time") and volume.spec.boot:
        raise BadState("volume", volume.name, f"volume {volume.name!r} is the root disk of its VM and cannot be detached")
    if holder.HasField("delete_time"):
        try:
            resolution.claim(txn, view, caller, nouns.VOLUME, volume.project, volume.name, volume.id)
        except AlreadyExists:
            # Somebody took it since the VM was deleted: it goes by its id.
            volume.name = volume.id
            resolution.claim(txn, view, caller, nouns.VOLUME, volume.project, volume.name, volume.id)
    _let_go(view, txn, volume, holder)


def _let_go(view: View, txn: Txn, volume: Volume, holder: Vm) -> None:
    """Write a VM without a volume, and have the volume say so. Raises BadState: both are being erased."""
    if holder.HasField("delete_time"):
        if view.get(kinds.PURGE, holder.id) is not None:
            raise BadState("volume", volume.name, f"volume {volume.name!r} is being erased with VM {holder.name!r}")
        # Whoever erases the VM and its disks has not begun.
        txn.check(kinds.PURGE, holder.id, 0)
    vm = Vm()
    vm.CopyFrom(holder)
    vm.spec.volumes[:] = [id for id in vm.spec.volumes if id != volume.id]
    vm.spec.volumes_generation += 1
    free(view, volume, vm)
    txn.check(kinds.VM, vm.id, view.revision_of(kinds.VM, vm.id)).put(kinds.VM, vm.id, vm)


def reattach_root(view: View, caller: Caller, txn: Txn, vm: Vm) -> None:
    """Give a VM that is brought back (a copy of its record) its root disk, when that left it. Raises BadState."""
    record = view.record(kinds.VOLUME, vm.spec.root_volume)
    if record is None:
        raise BadState("vm", vm.name, f"VM {vm.name!r} cannot be brought back: its root disk was erased")
    root, holder = record.message, holder_of(view, record.message)
    if holder is not None and holder.id == vm.id:
        return
    how = ""
    if holder is not None:
        how = f"is attached to VM {name_for(view, caller, kinds.VM, holder.id)!r}: detach it first"
    elif root.HasField("delete_time"):
        how = f"is deleted: `cairn volume undelete {root.id}` first"
    if how:
        raise BadState("vm", vm.name, f"VM {vm.name!r} cannot be brought back: its root disk {root.name!r} {how}")
    taken = Volume()
    taken.CopyFrom(root)
    taken.spec.vm, taken.spec.boot, taken.spec.slot = vm.id, True, 0
    vm.spec.volumes_generation += 1
    txn.check(kinds.VOLUME, root.id, record.mod_revision).put(kinds.VOLUME, root.id, taken)


def free(view: View, volume: Volume, vm: Vm) -> None:
    """Have a volume say that it is attached to nothing, and who may not have let go yet. vm: as it is going to be."""
    # A root disk is a data volume from then on.
    volume.spec.vm, volume.spec.slot, volume.spec.boot = "", 0, False
    before = view.get(kinds.VOLUME, volume.id)
    # If the one it was taken from before has not let go yet, that is still the one to be waited for; unless this one has it
    # open, which was given to it once the other had: that one's node may have forgotten that since, as an older agent does.
    if before is None or is_let_go(view, before) or vm.id in {holder for holder, _ in holders(view, volume.id)}:
        volume.spec.former_vm, volume.spec.former_generation = vm.id, vm.spec.volumes_generation


def refuse_if_deleted(record: Record[Any], noun: nouns.Noun[Any], *, purge: bool) -> None:
    """Refuse to delete what is deleted, unless it is to be erased now. Raises NotFound."""
    if record.message.HasField("delete_time") and not purge:
        name = record.message.name
        raise NotFound(noun.kind.name, name, f"{noun.title} {name!r} is deleted already; say purge to erase it now")


def revived(
    view: View, caller: Caller, record: Record[Any], message: Any, noun: nouns.Noun[Any], clock: Clock, name: str = ""
) -> Txn:
    """Start the transaction that brings an object back: times cleared, its name (or another) claimed.

    Raises BadState, AlreadyExists, Invalid.
    """
    title = f"{noun.title} {message.name!r}"
    if not message.HasField("delete_time"):
        raise BadState(noun.kind.name, message.name, f"{title} is not deleted")
    now = clock.now()
    if view.get(kinds.PURGE, message.id) is not None or kept_s(view, noun.kind, message, now) <= 0:
        raise BadState(noun.kind.name, message.name, f"{title} is being erased: its retention period is over")
    message.ClearField("delete_time")
    message.ClearField("purge_time")
    message.update_time.CopyFrom(timestamp(now))
    txn = Txn("api").check(noun.kind, message.id, record.mod_revision).check(kinds.PURGE, message.id, 0)
    if name:
        message.name = validation.name("name", name)
    try:
        resolution.claim(txn, view, caller, noun, message.project, message.name, message.id)
    except AlreadyExists as error:
        how = f"bring this one back under another name: `cairn {noun.kind.name} undelete {message.id} --name NAME`"
        raise AlreadyExists(error.kind, error.name, f"{error.say}; {how}") from error
    return txn
