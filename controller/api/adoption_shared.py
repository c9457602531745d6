"""Volumes in shared pools that nodes administered and the store does not know: adopted, or removed, as the one volume each is.

Several nodes may tell of one, and any guest that reaches the pool may have it open. So the word that it goes is one for all
nodes (an Erasure "-/volume/<id>"), and excludes its adoption, as that excludes the word: each transaction checks that the other
was not written. Whoever is to administer it from then on acts in a generation above all that nodes tell of.
"""

from __future__ import annotations

from cairn.controller.model.administered import EVERYWHERE
from cairn.controller.model.assigned import VOLUME_WORK, assignment, work_key
from cairn.controller.model.nodes import node_name
from cairn.controller.model.opened import opened_by
from cairn.controller.model.restored import next_generation, unheard
from cairn.controller.store.base import Txn, View
from cairn.proto import kinds
from cairn.proto.errors import BadState
from cairn.proto.v1.agent_pb2 import Erasure, Unknown
from cairn.proto.v1.node_pb2 import Assignment
from google.protobuf.timestamp_pb2 import Timestamp


def administered(view: View, txn: Txn, told: Unknown, vm: str, now: Timestamp) -> None:
    """Add to a transaction of "assignments" that a node goes on with a volume. told: what is known of it, by all that tell.

    vm: the one that is adopted with it; empty: none. Raises BadState: it is to be removed, or a guest has it that no record
    speaks of: it could be given to another one besides.
    """
    given, word = told.desired.volume, f"{EVERYWHERE}/{told.key}"
    if using := unknown_user(view, given.id, but=vm):
        raise BadState("volume", given.id, f"{using} has it: adopt that one, which brings it, or let it go first")
    if view.get(kinds.ERASURE, word) is not None:
        raise BadState("volume", given.id, "it was let go with `cairn node forget`, and is being removed")
    before, key = assignment(view, VOLUME_WORK, given.id) or Assignment(), work_key(VOLUME_WORK, given.id)
    generation = next_generation(view, max(before.generation, given.generation))
    work = Assignment(kind=VOLUME_WORK, id=given.id, node=told.node, generation=generation, made=given.made, since_time=now)
    txn.check(kinds.ASSIGNMENT, key, view.revision_of(kinds.ASSIGNMENT, key)).put(kinds.ASSIGNMENT, key, work)
    txn.check(kinds.ERASURE, word, 0).check(kinds.NODE, told.node, view.revision_of(kinds.NODE, told.node))


def forget_everywhere(view: View, txn: Txn, told: Unknown, word: Erasure) -> None:
    """Make the word that a node may remove a volume one for all nodes. Raises BadState: a guest may have it open."""
    given = told.desired.volume
    if view.revision_of(kinds.VOLUME, given.id):
        # It is not known where it is, and it is somebody's.
        say = f"there is a record of volume {given.id}: adopt it, or delete it with `cairn volume delete {given.id}`"
        raise BadState("volume", given.id, say)
    if using := unknown_user(view, given.id) or _known_user(view, given.id):
        raise BadState("volume", given.id, f"{using} has it: adopt that one, or let it go first")
    if silent := unheard(view):
        names = ", ".join(node_name(view, node) for node in silent)
        raise BadState("volume", given.id, f"a guest on {names} may have it open: what is there has not been said yet")
    newest = max(
        each.desired.volume.generation
        for id in view.by(kinds.UNKNOWN, "key", told.key)
        if (each := view.get(kinds.UNKNOWN, id)) is not None
    )
    word.desired.volume.generation = next_generation(view, newest)
    everywhere = Erasure()
    everywhere.CopyFrom(word)
    everywhere.ClearField("node")
    txn.put(kinds.ERASURE, f"{told.node}/{told.key}", word)
    key = f"{EVERYWHERE}/{told.key}"
    txn.check(kinds.ERASURE, key, view.revision_of(kinds.ERASURE, key)).put(kinds.ERASURE, key, everywhere)
    txn.check(kinds.VOLUME, given.id, 0)


def unknown_user(view: View, volume: str, *, but: str = "") -> str:
    """Return which VM that no record speaks of has a volume, running or not; empty: none. but: one that does not count."""
    for id in view.ids(kinds.UNKNOWN):
        told = view.get(kinds.UNKNOWN, id)
        vm = told.desired.vm if told is not None else None
        if told is None or vm is None or vm.absent or vm.id == but:
            continue
        if any(disk.volume == volume for disk in vm.disks):
            return f"VM {vm.name} ({vm.id}) on {node_name(view, told.node)}"
    return ""


def _known_user(view: View, volume: str) -> str:
    seen = opened_by(view, volume)
    known = view.get(kinds.VM, seen) if seen else None
    return f"VM {known.name if known is not None else seen}" if seen else ""
