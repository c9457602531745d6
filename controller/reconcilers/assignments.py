"""Work that is no VM's has one node at a time that can do it, and another one when that is lost.

Keys are "<kind of work>/<id>", and "node/<id>" for how long a node has been away. A kind of work (WORK) says what there is to
do, what an agent must know for it, and which nodes are in the right place; nodespec.py turns an assignment into an object for
its node. Who gets it is drawn by rendezvous hashing over the connected nodes that can do it, those that are not cordoned
first; it stays where it is, also when nodes join, until

    its node was removed, is cordoned, has lost the capability or the way there    it moves at once, if there is another one
    its node has not been connected for MARGIN_S                                   it moves
    there is nothing to do any more                                                it is removed

The node it is taken from may live on and know nothing of it, so work is such that two nodes can do it at once without harm:
the generation, which grows with each move, tells whose word is the older. A restore raises it above all of before, which
pools remember and records do not. Rejected: leases that the node itself renews (a
commit per node and lease time; its session is one already), moving work to nodes that join (it would move for nothing).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from cairn.controller.model.assigned import VOLUME_WORK, work_key
from cairn.controller.model.capabilities import knows
from cairn.controller.model.happening import EventSpec
from cairn.controller.model.nodes import connected, hash_of, node_name
from cairn.controller.model.pools import reaching
from cairn.controller.model.readable import CannotTell, Readable
from cairn.controller.model.reports import volume_ready_report
from cairn.controller.model.restored import is_erased_since, is_generation_of_before, next_generation, settled
from cairn.controller.model.where import in_shared_pool, shared_volumes, volume_pool
from cairn.controller.reconcilers.base import NOTHING, Outcome
from cairn.controller.store.base import Record, Txn, View
from cairn.proto import kinds
from cairn.proto.capabilities import volume_type
from cairn.proto.kinds import AnyKind
from cairn.proto.seams import moment, timestamp
from cairn.proto.v1.node_pb2 import Assignment, NodeLoss

# How long a node may be away before its work goes to another: longer than an agent takes to be restarted, or a host to boot.
MARGIN_S: Final = 30.0
# Nobody is woken when all is decided that a restore left open.
SETTLED_AGAIN_S: Final = 5.0
_NODE: Final = kinds.NODE.name
_OF_NODES: Final = (kinds.NODE, kinds.NODE_FACTS, kinds.NODE_SESSION, kinds.NODE_LOSS)


@dataclass(frozen=True, slots=True)
class Work:
    """A kind of work. Functions are of (view, id of what it is about)."""

    # Kind of the object it is about.
    about: AnyKind
    # All there is to do; and whether that is.
    ids: Callable[[View], Iterable[str]]
    is_wanted: Callable[[View, str], bool]
    # What an agent must know.
    capability: Callable[[View, str], str]
    # Nodes in the right place, whatever their state.
    nodes: Callable[[View, str], Iterable[str]]
    # Whether what the work makes was made by the node that has it now.
    is_made: Callable[[View, str], bool]
    # Whether it is to undo what it made, by a word since the last restore: nothing that nodes know better changes that.
    is_over: Callable[[View, str], bool]
    # Phrases: what is done; what those nodes are.
    doing: str
    place: Callable[[View, str], str]


def _volume_type(view: View, id: str) -> str:
    volume = view.get(kinds.VOLUME, id)
    return volume_type(volume.spec.type if volume is not None else "")


WORK: Final[dict[str, Work]] = {
    VOLUME_WORK: Work(
        about=kinds.VOLUME,
        ids=shared_volumes,
        is_wanted=lambda view, id: in_shared_pool(view, id) and view.get(kinds.VOLUME, id) is not None,
        capability=_volume_type,
        nodes=lambda view, id: reaching(view, volume_pool(view, id)),
        is_made=lambda view, id: volume_ready_report(view, id) is not None,
        is_over=is_erased_since,
        doing="administers volume",
        place=lambda view, id: f"reaches pool {volume_pool(view, id)}",
    )
}


class Assignments:
    """Work that is no VM's has one node at a time that can do it."""

    name = "assignments"
    reads: tuple[AnyKind, ...] = (kinds.VOLUME, kinds.VOLUME_PLACEMENT, kinds.PURGE, kinds.ASSIGNMENT, *_OF_NODES)
    writes: tuple[AnyKind, ...] = (kinds.ASSIGNMENT, kinds.NODE_LOSS)

    def __init__(self) -> None:
        # Keys for which there was no node. A hint about which to wake when one comes; what is decided never depends on it.
        self._waiting: dict[str, None] = {}

    def keys(self, view: View, kind: AnyKind, id: str) -> Iterable[str]:
        """The work, and all of a node's when the node changed."""
        if kind in _OF_NODES:
            return (work_key(_NODE, id), *view.by(kinds.ASSIGNMENT, "node", id), *self._waiting)
        if kind is kinds.ASSIGNMENT:
            return (id,)
        volumes = (id, *view.by(kinds.VOLUME, "vm", id)) if kind is kinds.PURGE else (id,)
        there = {work_key(VOLUME_WORK, volume): volume for volume in volumes}
        return [key for key, each in there.items() if in_shared_pool(view, each) or view.get(kinds.ASSIGNMENT, key) is not None]

    def all_keys(self, view: View) -> Iterable[str]:
        """All work there is or was, and the nodes that have any."""
        for kind, work in WORK.items():
            yield from [work_key(kind, id) for id in work.ids(view)]
        yield from list(view.ids(kinds.ASSIGNMENT))
        yield from (work_key(_NODE, id) for id in (*view.ids(kinds.NODE), *view.ids(kinds.NODE_LOSS)))

    def shard(self, key: str) -> str:
        """By the key."""
        return key

    def reconcile(self, view: View, key: str, now: datetime) -> Outcome:
        """Look at one piece of work, or at how long a node has been away."""
        kind, _, id = key.partition("/")
        try:
            return _loss(Readable(view), id, now) if kind == _NODE else self._work(view, key, now)
        except CannotTell as error:
            # It may well be wanted, or its node be there: whoever has it keeps it, and its generation.
            return Outcome(None, f"{key}: {error}", held_up_by=(error.record,))

    def _work(self, view: View, key: str, now: datetime) -> Outcome:
        """Look at one piece of work. Raises CannotTell."""
        kind, _, id = key.partition("/")
        self._waiting.pop(key, None)
        held, readable = view.record(kinds.ASSIGNMENT, key), Readable(view)
        if not WORK[kind].is_wanted(readable, id):
            return _done(key, held)
        why, wait_s = _why_not(readable, kind, id, held.message.node, now) if held is not None else ("", 0.0)
        if held is not None and not why:
            return _stays(view, key, held, f"{node_name(view, held.message.node)} {WORK[kind].doing} {id}", now)
        if wait_s > 0:
            return Outcome(None, why, again_after_s=wait_s)
        chosen = _choose(view, kind, id)
        if held is not None and chosen == held.message.node:
            # Cordoned, and nobody else can.
            self._waiting[key] = None
            return _stays(view, key, held, f"{why}; there is no other node", now)
        if not chosen:
            self._waiting[key] = None
            return Outcome(None, f"no connected node {WORK[kind].place(view, id)} and knows {WORK[kind].capability(view, id)}")
        return _assign(view, key, held, chosen, why, now)


def _stays(view: View, key: str, held: Record[Assignment], say: str, now: datetime) -> Outcome:
    """Leave work with its node; of a backup, in a generation that no other has acted in since."""
    if not is_generation_of_before(view, held.message.generation):
        return Outcome(None, say)
    if not settled(view) and not WORK[held.message.kind].is_over(view, held.message.id):
        # What nodes know better comes first; if others acted in newer generations, the pool refuses this one meanwhile.
        return Outcome(None, f"{key}: what nodes know better is to be decided first", again_after_s=SETTLED_AGAIN_S)
    return _assign(view, key, held, held.message.node, "the records are those of a backup", now)


def _done(key: str, held: Record[Assignment] | None) -> Outcome:
    if held is None:
        return NOTHING
    txn = Txn("assignments").check(kinds.ASSIGNMENT, key, held.mod_revision).delete(kinds.ASSIGNMENT, key)
    return Outcome(txn, f"{key} needs no node any more")


def _why_not(view: View, kind: str, id: str, node: str, now: datetime) -> tuple[str, float]:
    """Return why work should not stay with a node, and for how many seconds that is borne; empty: it may stay."""
    record, work, name = view.get(kinds.NODE, node), WORK[kind], node_name(view, node)
    if record is None or record.HasField("delete_time"):
        return f"{name} was removed", 0.0
    if not connected(view, node):
        loss = view.get(kinds.NODE_LOSS, node)
        away_s = (now - moment(loss.since_time)).total_seconds() if loss is not None else 0.0
        return f"{name} does not answer", max(0.0, MARGIN_S - max(0.0, away_s))
    if not knows(view, node, work.capability(view, id)):
        return f"the agent of {name} does not know {work.capability(view, id)}", 0.0
    # Which pools it reaches is among its facts, and those who cannot be read are in no index. Raises CannotTell.
    view.get(kinds.NODE_FACTS, node)
    if node not in work.nodes(view, id):
        return f"{name} no longer {work.place(view, id)}", 0.0
    return (f"{name} is cordoned", 0.0) if record.spec.cordoned else ("", 0.0)


def _choose(view: View, kind: str, id: str) -> str:
    """Return the node by rendezvous over those that can do it, cordoned ones only if there are no others; empty: none."""
    work, free, cordoned = WORK[kind], list[str](), list[str]()
    for node in work.nodes(view, id):
        record = view.get(kinds.NODE, node)
        if record is None or record.HasField("delete_time") or not knows(view, node, work.capability(view, id)):
            continue
        (cordoned if record.spec.cordoned else free).append(node)
    return max(free or cordoned, key=lambda node: hash_of(f"{work_key(kind, id)} {node}"), default="")


def _assign(view: View, key: str, held: Record[Assignment] | None, node: str, why: str, now: datetime) -> Outcome:
    kind, _, id = key.partition("/")
    work, before = WORK[kind], held.message if held is not None else Assignment()
    after = Assignment(
        kind=kind, id=id, node=node, generation=next_generation(view, before.generation), since_time=timestamp(now)
    )
    after.made = before.made or (held is not None and work.is_made(view, id))
    txn = Txn("assignments").check(kinds.ASSIGNMENT, key, held.mod_revision if held is not None else 0)
    txn.put(kinds.ASSIGNMENT, key, after).check(kinds.NODE, node, view.revision_of(kinds.NODE, node))
    txn.check(work.about, id, view.revision_of(work.about, id))
    # Chosen among those that are connected: it is, and still knows what it said it knows.
    txn.check(kinds.NODE_SESSION, node, view.revision_of(kinds.NODE_SESSION, node))
    object, name = view.get(work.about, id), node_name(view, node)
    say = f"{name} {work.doing} {object.name if object is not None else id} now"
    if held is None or object is None:
        return Outcome(txn, say)
    event = EventSpec(id, object.name, object.project, "Reassigned", f"{say}: {why}", name)
    return Outcome(txn, event.message, events=(event,))


def _loss(view: View, node: str, now: datetime) -> Outcome:
    """Remember since when a node with work is away: the store forgets a session with its lease."""
    held = view.record(kinds.NODE_LOSS, node)
    # What it does for others, or has open that others can open.
    has = view.by(kinds.ASSIGNMENT, "node", node) or view.by(kinds.OPENING, "node", node)
    lost = not connected(view, node) and view.get(kinds.NODE, node) is not None and has
    if bool(lost) == (held is not None):
        return NOTHING
    txn = Txn("assignments").check(kinds.NODE_LOSS, node, held.mod_revision if held is not None else 0)
    if held is not None:
        return Outcome(txn.delete(kinds.NODE_LOSS, node), f"{node_name(view, node)} is back, or has no work any more")
    txn.put(kinds.NODE_LOSS, node, NodeLoss(node=node, since_time=timestamp(now)))
    txn.check(kinds.NODE_SESSION, node, 0)
    return Outcome(txn, f"{node_name(view, node)} does not answer; its work goes to others in {MARGIN_S:.0f} s")
