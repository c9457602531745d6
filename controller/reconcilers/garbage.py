"""What was deleted is erased once its retention is over and no node holds any of it; what nobody refers to any more is removed.

Keys are "<kind>/<id>". Erasing goes in two steps, so that no record vanishes while something of it exists in the world:

    retention over                     write Purge: from now on it cannot be brought back, and nodes are told to erase its disks
    every node involved says ABSENT    remove the VM with its ports, its own disks, and what was reported about them, at once

A VM or disk that was never placed counts as absent. The removing transaction checks where everything is placed, so a
placement made at that moment wins. The room on the nodes is given back by placement.py when it sees the records gone.
Of what users see, and of what says who may do what, the audit keeps that it went, and the request that had it deleted.
What a node had reported goes when the node was removed. The word that a node may remove something (Erasure) goes when the node
has said that it is gone; the word that all may, when it is so old that no node will come back with it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime, timedelta
from typing import Any, Final

from cairn.controller.acts import HEAD_CHECKS, HEAD_RECORDS, RECORD_BYTES_MAX
from cairn.controller.events import RECORDS
from cairn.controller.model.absence import removed
from cairn.controller.model.assigned import VOLUME_WORK, work_key
from cairn.controller.model.happening import ActSpec, EventSpec
from cairn.controller.model.jobs import status_of
from cairn.controller.model.names import holder_kind, is_held
from cairn.controller.model.opened import opened_by
from cairn.controller.model.owners import ports_of
from cairn.controller.model.readable import CannotTell, Readable
from cairn.controller.model.reports import report
from cairn.controller.model.restored import kept_s
from cairn.controller.model.where import in_shared_pool, volume_node, where
from cairn.controller.reconcilers.base import NOTHING, Outcome
from cairn.controller.store.base import Gathering, Record, Txn, View
from cairn.proto import kinds
from cairn.proto.kinds import AnyKind
from cairn.proto.seams import moment, timestamp
from cairn.proto.v1.agent_pb2 import ImageReport, VmReport, VolumeReport
from cairn.proto.v1.api_token_pb2 import ApiToken, ApiTokenSpec
from cairn.proto.v1.vm_pb2 import Vm
from cairn.proto.v1.volume_pb2 import Purge, Volume

# A guest that let go of a volume wakes nobody.
OPEN_AGAIN_S: Final = 5.0
# How long finished jobs and expired tokens are kept to be looked at.
KEEP: Final = timedelta(hours=24)
# How long nodes that cannot be reached may come back and be told that a deleted image goes.
# A name that is reserved longer than that is used by nobody: who reserved it has died, and a plan that it is for has ended.
RESERVED: Final = timedelta(minutes=10)
ERASURE_KEEP: Final = timedelta(days=90)
_LOOKED_AT: Final[tuple[AnyKind, ...]] = (
    kinds.VM, kinds.VOLUME, kinds.PURGE, kinds.IMAGE_CONTENT, kinds.VNI, kinds.NAME, kinds.JOB, kinds.JOB_STATE,
    kinds.JOIN_TOKEN, kinds.ERASURE, kinds.BINDING, kinds.API_TOKEN,
)  # fmt: skip
_HOLDERS: Final = (kinds.VPC, kinds.SUBNET)
_OF_JOBS: Final[tuple[AnyKind, ...]] = (kinds.JOB, kinds.JOB_STATE)
# Records of which a node is the first part of the id.
_OF_NODES: Final[tuple[AnyKind, ...]] = (
    kinds.NODE, kinds.NODE_FACTS, kinds.NODE_POOLS, kinds.NODE_HEARD, kinds.NODE_TOLD, kinds.OBSERVED, kinds.UNKNOWN,
)  # fmt: skip
# Removed at once, below what one transaction takes.
REPORTS_MAX: Final = 100


def _nodes_of(view: View, kind: AnyKind) -> Iterable[str]:
    """Return the nodes there are records of: there may be hundreds of a node."""
    return view.values(kind, "node") if kind in (kinds.OBSERVED, kinds.UNKNOWN) else view.ids(kind)


class Garbage:
    """What was deleted is erased once its retention is over and no node holds any of it."""

    name = "garbage"
    reads: tuple[AnyKind, ...] = (
        kinds.VM, kinds.VOLUME, kinds.PURGE, kinds.PLACEMENT, kinds.VOLUME_PLACEMENT, kinds.OBSERVED, kinds.IMAGE, kinds.JOB,
        kinds.JOB_STATE, kinds.JOIN_TOKEN, kinds.NODE, kinds.NODE_FACTS, kinds.NODE_POOLS, kinds.NODE_HEARD, kinds.NODE_TOLD,
        kinds.UNKNOWN, kinds.ERASURE, kinds.BINDING, kinds.API_TOKEN, kinds.USER, kinds.IDENTITY_PROVIDER,
    )  # fmt: skip
    writes: tuple[AnyKind, ...] = (
        kinds.PURGE, kinds.VM, kinds.SECRET, kinds.VOLUME, kinds.PORT, kinds.OBSERVED, kinds.IMAGE_CONTENT, kinds.VNI,
        kinds.NAME, kinds.JOB, kinds.JOB_STATE, kinds.JOIN_TOKEN, kinds.NODE_FACTS, kinds.NODE_POOLS, kinds.NODE_HEARD,
        kinds.NODE_TOLD, kinds.NODE_LAST, kinds.UNKNOWN, kinds.ERASURE, kinds.BINDING, kinds.API_TOKEN,
    )  # fmt: skip

    def keys(self, view: View, kind: AnyKind, id: str) -> Iterable[str]:
        """The object, and the VM a disk goes with."""
        if kind in _OF_NODES and view.get(kinds.NODE, id.partition("/")[0]) is None:
            return (f"node/{id.partition('/')[0]}",)
        if kind is kinds.OBSERVED and view.get(kinds.ERASURE, id) is not None:
            return (f"erasure/{id}",)
        if kind is kinds.OBSERVED:
            _, _, key = id.partition("/")
            kind_name, _, id = key.partition("/")
            kind = kinds.BY_NAME.get(kind_name, kind)
        if kind in (kinds.VM, kinds.PLACEMENT):
            return (f"vm/{id}",) if _going(view.get(kinds.VM, id)) else ()
        if kind in (kinds.VOLUME, kinds.VOLUME_PLACEMENT):
            volume = view.get(kinds.VOLUME, id)
            if volume is None or not (_going(volume) or _going(view.get(kinds.VM, volume.spec.vm))):
                return ()
            return (f"volume/{id}", f"vm/{volume.spec.vm}") if volume.spec.vm else (f"volume/{id}",)
        if kind is kinds.PURGE:
            return (f"purge/{id}", f"vm/{id}", f"volume/{id}")
        if kind is kinds.USER:
            return [f"{kinds.API_TOKEN.name}/{token}" for token in view.by(kinds.API_TOKEN, "user", id)]
        if kind is kinds.IDENTITY_PROVIDER:
            return [f"{kinds.API_TOKEN.name}/{token}" for token in view.by(kinds.API_TOKEN, "provider", id)]
        if kind is kinds.IMAGE:
            return (f"image_content/{id}",)
        return (f"{kind.name}/{id}",) if kind in _LOOKED_AT else ()

    def all_keys(self, view: View) -> Iterable[str]:
        """Everything that could have to go."""
        for kind in _LOOKED_AT:
            yield from (f"{kind.name}/{id}" for id in list(view.ids(kind)))
        nodes = dict.fromkeys(id for kind in _OF_NODES[1:] for id in _nodes_of(view, kind))
        yield from (f"node/{node}" for node in nodes if view.get(kinds.NODE, node) is None)

    def shard(self, key: str) -> str:
        """By the object."""
        return key.partition("/")[2]

    def reconcile(self, view: View, key: str, now: datetime) -> Outcome:
        """Look at one object."""
        kind, _, id = key.partition("/")
        try:
            # What cannot be read is not absent: whatever asks for it waits.
            return _RULES[kind](Readable(view) if view.harmed else view, id, now)
        except CannotTell as error:
            return Outcome(None, str(error), again_after_s=OPEN_AGAIN_S, held_up_by=(error.record,) if error.record else ())


def _going(message: Any) -> bool:
    return message is not None and message.HasField("delete_time")


def _vm(view: View, id: str, now: datetime) -> Outcome:
    record = view.record(kinds.VM, id)
    if record is None or not _going(record.message):
        return NOTHING
    waits = _purge(view, kinds.VM, record, now)
    if waits is not None:
        return waits
    vm = record.message
    # Indexes lack what cannot be read: it is asked for by the names in the VM's own record.
    for kind, named in ((kinds.PORT, [nic.port for nic in vm.spec.nics]), (kinds.VOLUME, _disks_of(vm))):
        for each in named:
            view.get(kind, each)
    disks = [disk for each in view.by(kinds.VOLUME, "vm", id) if (disk := view.record(kinds.VOLUME, each)) is not None]
    own = [disk for disk in disks if disk.message.spec.delete_with_vm]
    if not _vm_absent(view, vm):
        return Outcome(None, "its node has not removed it yet")
    for disk in own:
        if not _volume_absent(view, disk.message.id):
            return Outcome(None, f"the node of its disk {disk.message.name} has not erased it yet")
    said = EventSpec(id, vm.name, vm.project, "Erased", f"VM {vm.name} and its disks were erased")
    base = Txn("garbage").check(kinds.VM, id, record.mod_revision)
    base.check(kinds.PLACEMENT, id, view.revision_of(kinds.PLACEMENT, id))
    gathering = Gathering(base, puts=RECORDS + HEAD_RECORDS, checks=HEAD_CHECKS, size_bytes=RECORD_BYTES_MAX)
    acts: list[ActSpec] = []
    for part, part_acts in _parts(view, vm, own):
        if not gathering.add(part, puts=len(part_acts), put_bytes=RECORD_BYTES_MAX * len(part_acts)):
            # More than one commit takes: the VM itself goes last, and until then this is looked at again.
            return Outcome(gathering.txn, f"erasing VM {vm.name}", again_after_s=0.0, acts=acts)
        acts += part_acts
    return Outcome(gathering.txn, said.message, events=(said,), acts=acts)


def _parts(view: View, vm: Vm, disks: Iterable[Record[Volume]]) -> Iterator[tuple[Txn, Sequence[ActSpec]]]:
    """Yield what removes each part of a VM, itself last, with what the audit keeps of that."""
    id = vm.id
    for disk in disks:
        txn, volume = Txn("garbage"), disk.message
        _erase_volume(txn, view, disk)
        # It goes by the word that its VM goes, unless it was deleted itself.
        yield txn, (_act("EraseVolume", kinds.VOLUME, volume, volume.delete_request if _going(volume) else vm.delete_request),)
    for port in ports_of(view, kinds.VM, id):
        txn = Txn("garbage").delete(kinds.PORT, port)
        _forget(txn, view, f"port/{port}")
        yield txn, ()
    txn = Txn("garbage").delete(kinds.VM, id).delete(kinds.PURGE, id).delete(kinds.SECRET, f"vm/{id}")
    _forget(txn, view, f"vm/{id}")
    yield txn, (_act("EraseVm", kinds.VM, vm, vm.delete_request),)


def _act(method: str, kind: AnyKind, message: Any, cause: str = "") -> ActSpec:
    return ActSpec(method, f"{kind.name}/{message.id}", message.name, getattr(message, "project", ""), cause)


def _volume(view: View, id: str, now: datetime) -> Outcome:
    record = view.record(kinds.VOLUME, id)
    if record is None or not _going(record.message):
        return NOTHING
    waits = _purge(view, kinds.VOLUME, record, now)
    if waits is not None:
        return waits
    volume = record.message
    if not _volume_absent(view, id):
        return Outcome(None, "its node has not erased it yet")
    txn = Txn("garbage")
    _erase_volume(txn, view, record)
    said = EventSpec(id, volume.name, volume.project, "Erased", f"volume {volume.name} was erased")
    act = _act("EraseVolume", kinds.VOLUME, volume, volume.delete_request)
    return Outcome(txn, said.message, events=(said,), acts=(act,))


def _purge(view: View, kind: AnyKind, record: Record[Any], now: datetime) -> Outcome | None:
    """Wait for the end of retention, then say so in the store; None once that is done."""
    message: Vm | Volume = record.message
    left_s = kept_s(view, kind, message, now)
    if view.get(kinds.PURGE, message.id) is not None:
        return None
    if left_s > 0:
        return Outcome(None, "waits for the end of its retention", again_after_s=left_s)
    _must_be_read(view, message)
    if guest := _guest_at(view, message):
        return Outcome(None, f"guest {guest} may have a disk of it open", again_after_s=OPEN_AGAIN_S)
    txn = Txn("garbage").check(kind, message.id, record.mod_revision)
    txn.create(kinds.PURGE, message.id, Purge(id=message.id, purge_time=timestamp(now)))
    return Outcome(txn, f"{kind.name} {message.name} is to be erased now")


def _disks_of(vm: Vm) -> Sequence[str]:
    return (vm.spec.root_volume, *vm.spec.volumes)


def _must_be_read(view: View, message: Vm | Volume) -> None:
    """Ask for all that says in which pool a VM's disks, or a volume, are, and who may have them open. Raises CannotTell."""
    vm = message if isinstance(message, Vm) else None
    named = (*_disks_of(vm), *view.by(kinds.VOLUME, "vm", vm.id)) if vm is not None else (message.id,)
    disks = [disk for id in named if (disk := view.get(kinds.VOLUME, id)) is not None]
    vms = (*(vm_id for disk in disks for vm_id in (disk.spec.vm, disk.spec.former_vm)), vm.id if vm is not None else "")
    for kind, ids in ((kinds.VOLUME_PLACEMENT, named), (kinds.VM, vms), (kinds.PLACEMENT, vms)):
        for id in ids:
            view.get(kind, id)


def _guest_at(view: View, message: Vm | Volume) -> str:
    """Return a guest that may have open what is to be erased, in a pool where another node would erase it; empty: none.

    A node does not erase a volume of its own pool under its own guests.
    """
    own = (id for id in view.by(kinds.VOLUME, "vm", message.id) if _goes_with(view, id)) if isinstance(message, Vm) else ()
    shared = [id for id in (*own, message.id) if in_shared_pool(view, id)]
    for seen in view.unreadable(kinds.OBSERVED) if shared and view.harmed else ():
        if f"/{kinds.VM.name}/" in seen:
            say = f"what guest {seen.rpartition('/')[2]} has open cannot be read"
            raise CannotTell(say, f"{kinds.OBSERVED.name}/{seen}")
    return next((guest for id in shared if (guest := opened_by(view, id))), "")


def _goes_with(view: View, id: str) -> bool:
    volume = view.get(kinds.VOLUME, id)
    return volume is not None and volume.spec.delete_with_vm


def _vm_absent(view: View, vm: Vm) -> bool:
    return all(removed(view, vm, node) for node in where(view, vm.id).nodes)


def _volume_absent(view: View, id: str) -> bool:
    node = volume_node(view, id)
    if not node:
        return True
    seen = report(view, node, f"volume/{id}")
    return seen is not None and seen.volume.state == VolumeReport.STATE_ABSENT


def _erase_volume(txn: Txn, view: View, record: Record[Volume]) -> None:
    id = record.message.id
    txn.check(kinds.VOLUME, id, record.mod_revision).delete(kinds.VOLUME, id).delete(kinds.PURGE, id)
    txn.check(kinds.VOLUME_PLACEMENT, id, view.revision_of(kinds.VOLUME_PLACEMENT, id))
    if in_shared_pool(view, id):
        # Nobody begins to make it, or administers it instead, at this moment.
        work = work_key(VOLUME_WORK, id)
        txn.check(kinds.ASSIGNMENT, work, view.revision_of(kinds.ASSIGNMENT, work))
    _forget(txn, view, f"volume/{id}")


def _forget(txn: Txn, view: View, key: str) -> None:
    """Remove what nodes reported about an object."""
    for id in view.by(kinds.OBSERVED, "key", key):
        txn.delete(kinds.OBSERVED, id)


def _drop(
    view: View, kind: AnyKind, id: str, say: str, *, because: Iterable[tuple[AnyKind, str]] = (), acts: Sequence[ActSpec] = ()
) -> Outcome:
    """Remove a record. because: records whose absence, or state, is why; the store must see them so, too."""
    txn = Txn("garbage").check(kind, id, view.revision_of(kind, id)).delete(kind, id)
    for other, each in because:
        txn.check(other, each, view.revision_of(other, each))
    return Outcome(txn, say, acts=acts)


def _stray_purge(view: View, id: str, now: datetime) -> Outcome:  # noqa: ARG001 - one shape for all rules
    """A purge whose object is gone, or was brought back before anything was erased."""
    vm, volume = view.get(kinds.VM, id), view.get(kinds.VOLUME, id)
    if view.get(kinds.PURGE, id) is None or _going(vm) or _going(volume):
        return NOTHING
    return _drop(view, kinds.PURGE, id, f"purge of {id} has no object", because=((kinds.VM, id), (kinds.VOLUME, id)))


def _image_content(view: View, id: str, now: datetime) -> Outcome:  # noqa: ARG001 - one shape for all rules
    if view.get(kinds.IMAGE, id) is not None or view.get(kinds.IMAGE_CONTENT, id) is None:
        return NOTHING
    say = f"image {id} is gone: its copies are not needed"
    return _drop(view, kinds.IMAGE_CONTENT, id, say, because=((kinds.IMAGE, id),))


def _vni(view: View, id: str, now: datetime) -> Outcome:  # noqa: ARG001 - one shape for all rules
    claim = view.get(kinds.VNI, id)
    if claim is None or any(view.get(kind, claim.holder) is not None for kind in _HOLDERS):
        return NOTHING
    say = f"VNI {claim.vni} is free again: {claim.holder} is gone"
    return _drop(view, kinds.VNI, id, say, because=[(kind, claim.holder) for kind in _HOLDERS])


def _name(view: View, id: str, now: datetime) -> Outcome:
    claim = view.get(kinds.NAME, id)
    kind = holder_kind(claim) if claim is not None else None
    if claim is None or kind is None:
        return NOTHING
    holder = view.get(kind, claim.id)
    say = f"the name {claim.name!r} is free again: {claim.id} is gone"
    if holder is not None and claim.HasField("reserve_time"):
        left_s = (moment(claim.reserve_time) + RESERVED - now).total_seconds()
        if left_s > 0:
            return Outcome(None, "reserved", again_after_s=left_s)
        say = f"the name {claim.name!r} is free again: {claim.id} was not shared after all"
    elif is_held(view, claim):
        return NOTHING
    elif holder is not None:
        say = f"the name {claim.name!r} is free again: {claim.id} does not have it any more"
    # A disk is put away with its VM.
    vm = holder.spec.vm if isinstance(holder, Volume) else ""
    return _drop(view, kinds.NAME, id, say, because=((kind, claim.id), *(((kinds.VM, vm),) if vm else ())))


def _job(view: View, id: str, now: datetime) -> Outcome:
    """A job that ended goes with its state; a state whose job is not there, alone."""
    there, status = [kind for kind in _OF_JOBS if view.get(kind, id) is not None], status_of(view, id)
    if not there or (kinds.JOB in there and not status.done):
        return NOTHING
    left_s = (moment(status.end_time) + KEEP - now).total_seconds()
    if kinds.JOB in there and left_s > 0:
        return Outcome(None, "kept to be looked at", again_after_s=left_s)
    txn = Txn("garbage")
    for kind in _OF_JOBS:
        txn.check(kind, id, view.revision_of(kind, id))
    for kind in there:
        txn.delete(kind, id)
    return Outcome(txn, f"job {id} ended long ago")


def _join_token(view: View, id: str, now: datetime) -> Outcome:
    token = view.get(kinds.JOIN_TOKEN, id)
    if token is None:
        return NOTHING
    left_s = (moment(token.expire_time) + KEEP - now).total_seconds()
    if left_s > 0:
        return Outcome(None, "kept to be looked at", again_after_s=left_s)
    return _drop(view, kinds.JOIN_TOKEN, id, f"join token {id} expired long ago")


def _binding(view: View, id: str, now: datetime) -> Outcome:  # noqa: ARG001 - one shape for all rules
    """What was given for one object ends with it; found by the scan, as its id is never given again."""
    binding = view.get(kinds.BINDING, id)
    kind_name, _, about = binding.spec.object.partition("/") if binding is not None else ("", "", "")
    kind = kinds.BY_NAME.get(kind_name)
    if kind is None or view.get(kind, about) is not None:
        return NOTHING
    say = f"binding {id} was for {kind_name} {about}, which is gone"
    # By which request that went was written in its record.
    acts = (_act("RemoveBinding", kinds.BINDING, binding),)
    return _drop(view, kinds.BINDING, id, say, because=((kind, about),), acts=acts)


def _api_token(view: View, id: str, now: datetime) -> Outcome:
    """A token goes some time after it has ended, and with its user."""
    token = view.get(kinds.API_TOKEN, id)
    if token is None:
        return NOTHING
    user = token.spec.user
    if view.get(kinds.USER, user) is None:
        return _drop_token(view, token, f"the user of token {id} is gone", because=((kinds.USER, user),))
    by, kind = token.spec.login.provider, kinds.IDENTITY_PROVIDER
    if by and view.get(kind, by) is None:
        return _drop_token(view, token, f"token {id} is of who logged in by {by}, which is gone", because=((kind, by),))
    left_s = (moment(token.spec.expire_time) + KEEP - now).total_seconds()
    if left_s > 0:
        return Outcome(None, "kept to be looked at", again_after_s=left_s)
    return _drop_token(view, token, f"token {id} ended long ago")


def _drop_token(view: View, token: ApiToken, say: str, *, because: Iterable[tuple[AnyKind, str]] = ()) -> Outcome:
    """Remove a token with the claim of its name, and what it signs with."""
    acts = (_act("RemoveApiToken", kinds.API_TOKEN, token),)
    outcome, name = _drop(view, kinds.API_TOKEN, token.id, say, because=because, acts=acts), _name_of_token(token)
    held = view.get(kinds.NAME, name)
    if outcome.txn is not None and token.spec.type == ApiTokenSpec.TYPE_SIGNING:
        outcome.txn.delete(kinds.SECRET, f"{kinds.API_TOKEN.name}/{token.id}")
    if outcome.txn is not None and held is not None and held.id == token.id:
        outcome.txn.check(kinds.NAME, name, view.revision_of(kinds.NAME, name)).delete(kinds.NAME, name)
    return outcome


def _name_of_token(token: ApiToken) -> str:
    return f"-/{kinds.API_TOKEN.name}/{token.name}"


def _node(view: View, id: str, now: datetime) -> Outcome:  # noqa: ARG001 - one shape for all rules
    """What a node that was removed had reported; some at a time, as each removal wakes this again."""
    if view.get(kinds.NODE, id) is not None:
        return NOTHING
    txn = Txn("garbage").check(kinds.NODE, id, 0)
    for kind in (kinds.NODE_FACTS, kinds.NODE_POOLS, kinds.NODE_HEARD, kinds.NODE_TOLD):
        if view.revision_of(kind, id):
            txn.delete(kind, id)
    for unknown in view.by(kinds.UNKNOWN, "node", id)[:REPORTS_MAX]:
        txn.delete(kinds.UNKNOWN, unknown)
    for observed in view.by(kinds.OBSERVED, "node", id)[: REPORTS_MAX - len(txn.deletes)]:
        txn.delete(kinds.OBSERVED, observed)
    if txn:
        txn.delete(kinds.NODE_LAST, id)
    return Outcome(txn, f"node {id} has left: what it reported is removed") if txn else NOTHING


def _erasure(view: View, id: str, now: datetime) -> Outcome:
    """The word that something may go."""
    record = view.get(kinds.ERASURE, id)
    if record is None:
        return NOTHING
    node, _, key = id.partition("/")
    if node == "-":
        left_s = (moment(record.create_time) + ERASURE_KEEP - now).total_seconds()
        if left_s > 0:
            return Outcome(None, "kept for nodes that cannot be reached now", again_after_s=left_s)
        return _drop(view, kinds.ERASURE, id, f"{key} was deleted long ago")
    seen = view.get(kinds.OBSERVED, id)
    kind = seen.report.WhichOneof("object") if seen is not None else None
    gone = seen is not None and kind is not None and getattr(seen.report, kind).state == _ABSENT[kind]
    if not gone and view.get(kinds.NODE, node) is not None:
        return Outcome(None, f"node {node} has not removed {key} yet")
    return _drop(view, kinds.ERASURE, id, f"node {node} does not hold {key} any more", because=((kinds.NODE, node),))


_ABSENT: Final[dict[str, int]] = {
    "vm": VmReport.STATE_ABSENT, "volume": VolumeReport.STATE_ABSENT, "image": ImageReport.STATE_ABSENT,
}  # fmt: skip
_RULES: Final[dict[str, Callable[[View, str, datetime], Outcome]]] = {
    kinds.VM.name: _vm,
    kinds.VOLUME.name: _volume,
    kinds.PURGE.name: _stray_purge,
    kinds.IMAGE_CONTENT.name: _image_content,
    kinds.VNI.name: _vni,
    kinds.NAME.name: _name,
    kinds.JOB.name: _job,
    kinds.JOB_STATE.name: _job,
    kinds.JOIN_TOKEN.name: _join_token,
    kinds.NODE.name: _node,
    kinds.ERASURE.name: _erasure,
    kinds.BINDING.name: _binding,
    kinds.API_TOKEN.name: _api_token,
}
