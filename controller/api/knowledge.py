"""What nodes know better than the records: listed, and made the records' content (adoption.py), one object at a time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from cairn.controller.api import nouns, resolution
from cairn.controller.api.adoption import Adoption
from cairn.controller.api.adoption_image import adopted, kept_too
from cairn.controller.api.adoption_shared import forget_everywhere
from cairn.controller.api.core import Core
from cairn.controller.api.decision import Decided
from cairn.controller.api.mutation import Act
from cairn.controller.api.vms import delete_vm
from cairn.controller.api.volumes import delete_volume
from cairn.controller.model.administered import is_of_shared_pool, told_of_shared
from cairn.controller.model.nodes import node_name
from cairn.controller.model.permits import Caller, Verb, permits
from cairn.controller.model.readable import CannotTell, Readable
from cairn.controller.model.where import in_shared_pool, volume_node, where
from cairn.controller.store.base import Conflict, Indeterminate, Txn, View
from cairn.controller.unknowns import absent, title
from cairn.proto import kinds
from cairn.proto.errors import BadState, NotFound, TryAgain
from cairn.proto.seams import timestamp
from cairn.proto.v1.agent_pb2 import Erasure, Unknown
from cairn.proto.v1.cluster_pb2 import (
    AdoptImageRequest,
    AdoptVmRequest,
    AdoptVolumeRequest,
    ForgetUnknownRequest,
    ListUnknownResponse,
    UnknownObject,
)
from cairn.proto.v1.image_pb2 import Image
from cairn.proto.v1.vm_pb2 import DeleteVmRequest, Vm
from cairn.proto.v1.volume_pb2 import DeleteVolumeRequest, Volume

# Objects of one answer.
AT_ONCE: Final = 500
ATTEMPTS_MAX: Final = 16


def listed(view: View, caller: Caller, node: str = "") -> Iterator[ListUnknownResponse]:
    """Yield all of it that the caller may see, by node and key, in answers of bounded size.

    node: only of this one, an id or name. Raises NotFound.
    """
    answer, ids = ListUnknownResponse(), view.ids(kinds.UNKNOWN)
    if node:
        ids = view.by(kinds.UNKNOWN, "node", resolution.find(view, caller, nouns.NODE, "", node, field="node").message.id)
    for id in sorted(ids):
        record = view.get(kinds.UNKNOWN, id)
        if record is None or not permits(view, caller, Verb.SEE, record):
            continue
        answer.objects.append(_shown(view, record))
        if len(answer.objects) == AT_ONCE:
            yield answer
            answer = ListUnknownResponse()
    yield answer


def _shown(view: View, record: Unknown) -> UnknownObject:
    kind, _, id = record.key.partition("/")
    name = record.desired.vm.name
    if not name and kind in (kinds.VOLUME.name, kinds.IMAGE.name):
        known: Any = view.get(kinds.BY_NAME[kind], id)
        name = known.name if known is not None else ""
    return UnknownObject(
        node=record.node,
        node_name=node_name(view, record.node),
        key=record.key,
        name=name,
        running=record.running,
        contested=record.contested,
        doubted=record.doubted,
        removed=record.desired.vm.absent or record.desired.volume.absent,
        say=record.say,
        since_time=record.since_time,
    )


def adopt_vm(view: View, caller: Caller, core: Core, request: AdoptVmRequest) -> Decided[Vm]:
    """Decide what makes the records say of a VM what its node says. Raises Refused."""
    record = _told(view, caller, request.node, f"{kinds.VM.name}/{request.id}")
    if _is_known_again(view, record):
        # Whatever was changed since then is newer than what its node told.
        known = view.record(kinds.VM, request.id)
        assert known is not None
        txn, told = Txn("api").check(kinds.VM, request.id, known.mod_revision), known.message
        return Decided(txn, nouns.VM, told.id, told.name, told.project)
    if not record.desired.vm.absent:
        return _sized(view, record.node, Adoption(view, caller, core, record).vm())
    vm = view.get(kinds.VM, request.id)
    root = view.get(kinds.UNKNOWN, f"{record.node}/{kinds.VOLUME.name}/{vm.spec.root_volume}") if vm is not None else None
    # Without its root disk there is nothing to bring back.
    gone = root is not None and root.desired.volume.absent
    return _sized(view, record.node, delete_vm(view, caller, core, DeleteVmRequest(id=request.id, purge=gone)))


def _sized(view: View, node: str, decided: Decided[Vm]) -> Decided[Vm]:
    """Give known volumes that are written with their VM the sizes their nodes were told: the record is a word of today now."""
    for key, put in list(decided.txn.puts.items()):
        if not key.startswith(kinds.VOLUME.prefix):
            continue
        volume = Volume.FromString(put.value)
        told, shared = view.get(kinds.UNKNOWN, f"{node}/{kinds.VOLUME.name}/{volume.id}"), told_of_shared(view, volume.id)
        if told is not None and not told.desired.volume.absent:
            volume.spec.size_bytes = told.desired.volume.size_bytes
        if shared is not None:
            volume.spec.size_bytes = max(volume.spec.size_bytes, shared.desired.volume.size_bytes)
        decided.txn.put(kinds.VOLUME, volume.id, volume)
    return decided


def adopt_volume(view: View, caller: Caller, core: Core, request: AdoptVolumeRequest) -> Decided[Volume]:
    """The same of a volume."""
    record = _told(view, caller, request.node, f"{kinds.VOLUME.name}/{request.id}")
    if record.desired.volume.absent:
        return delete_volume(view, caller, core, DeleteVolumeRequest(id=request.id, purge=True), gone=True)
    return Adoption(view, caller, core, record).volume()


def adopt_image(view: View, caller: Caller, core: Core, request: AdoptImageRequest) -> Decided[Image]:
    """The same of an image: its record, or one more node that keeps it. Raises Refused."""
    record = _told(view, caller, request.node, f"{kinds.IMAGE.name}/{request.id}")
    if view.get(kinds.IMAGE, request.id) is not None:
        return kept_too(view, record)
    return adopted(view, caller, core, record, request.name, request.arch)


async def forget(core: Core, caller: Caller, request: ForgetUnknownRequest) -> str:
    """Write down that a node may remove something no record speaks of; return what it is called. Raises Refused."""
    for _ in range(ATTEMPTS_MAX):
        view = await core.mutations.freshen()
        record = _told(view, caller, request.node, request.key, Verb.FORGET)
        if _is_known_again(view, record):
            raise NotFound("node", request.node, f"the records know {title(record)} again: its node hears of it in a moment")
        id, name = f"{record.node}/{record.key}", title(record)
        if record.contested:
            kind, _, object = record.key.partition("/")
            raise BadState(kind, object, f"there is a record of {name}: delete it with `cairn {kind} delete {object}`")
        if view.get(kinds.ERASURE, id) is not None:
            return name
        now = timestamp(core.clock.now())
        word = Erasure(key=record.key, node=record.node, desired=absent(record), actor=caller.id, create_time=now)
        txn = Txn("api").check(kinds.UNKNOWN, id, view.revision_of(kinds.UNKNOWN, id)).create(kinds.ERASURE, id, word)
        if is_of_shared_pool(record.desired.volume):
            forget_everywhere(view, txn, record, word)
        try:
            await core.cache.wait_for(await core.mutations.write(view, caller, txn, Act("ForgetUnknown", record.key, name)))
        except (Conflict, Indeterminate):
            continue
        return name
    raise TryAgain("too many others change the same object; try again")


def _is_known_again(view: View, record: Unknown) -> bool:
    """Tell whether the records say by now that its node holds it: a VM adopted a moment ago, or a volume with it.

    Raises TryAgain when one of them cannot be read.
    """
    try:
        return _is_held(Readable(view), record)
    except CannotTell as why:
        raise TryAgain(f"whether the records know {title(record)} again cannot be told: {why}") from why


def _is_held(view: View, record: Unknown) -> bool:
    kind, _, id = record.key.partition("/")
    if record.contested:
        return False
    if kind == kinds.VM.name:
        return view.get(kinds.VM, id) is not None and record.node in where(view, id).nodes
    if kind != kinds.VOLUME.name or view.get(kinds.VOLUME, id) is None:
        return False
    return volume_node(view, id) == record.node or in_shared_pool(view, id)


def _told(view: View, caller: Caller, node: str, key: str, verb: Verb = Verb.ADOPT) -> Unknown:
    """Return what a node told. Raises NotFound, TryAgain."""
    id = resolution.find(view, caller, nouns.NODE, "", node, field="node").message.id
    record = view.get(kinds.UNKNOWN, f"{id}/{key}")
    if f"{id}/{key}" in view.unreadable(kinds.UNKNOWN) and record is None:
        raise TryAgain(f"what {node_name(view, id)} says of {key} cannot be read; `cairn cluster fsck` lists what is damaged")
    if record is None or not permits(view, caller, verb, record):
        raise NotFound("node", node, f"{node_name(view, id)} says nothing of {key} that the records do not know")
    return record
