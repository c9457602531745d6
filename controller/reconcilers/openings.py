"""One guest at a time may open a volume that several nodes reach, and another one only once that is over for the first.

Keys are volumes. The claim (model/openings.py) is given to the VM a volume is attached to, on the node that runs it, when

    nobody has it: no claim, and no node says that a guest of its has the volume open
    the VM may be started there: it has its addresses

and given up when the volume is attached to that VM there no more, and

    its node has said that the guest let go of it          in answer to the VM's record as it is now
    or the pool has shut the guest out                     asked for once the node has been away for MARGIN_S

A VM that is deleted, and may be brought back, keeps its disks until it may not.

Shutting out is work of the node that administers the volume: it has the pool refuse the claim for ever and everybody who has
the volume open lose it, and says so (VolumeReport.shut_out). The guest may run on, without that disk: it is kept in `outcasts`
until its node has said that it let go. Only claims whose agent asks the pool before it opens a volume (`asks`) can be shut out:
an older one could come late. Rejected: a claim that runs out with its node's lease (nobody knows what a silent node's guest
writes), and shutting out a whole node (its other disks are not asked for).
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Final, NamedTuple

from cairn.controller.model.assigned import VOLUME_WORK, assignment
from cairn.controller.model.capabilities import knows
from cairn.controller.model.happening import EventSpec
from cairn.controller.model.lifetime import kept_for_s
from cairn.controller.model.nodes import connected, node_name
from cairn.controller.model.openings import has_let_go, holders, is_free_of_former, is_told
from cairn.controller.model.owners import vm_of
from cairn.controller.model.readable import CannotTell, Readable
from cairn.controller.model.reports import report
from cairn.controller.model.restored import (
    heard,
    is_generation_of_before,
    is_restored,
    next_generation,
    settled,
    unheard,
)
from cairn.controller.model.where import in_shared_pool, shared_volumes, where
from cairn.controller.reconcilers.assignments import MARGIN_S
from cairn.controller.reconcilers.base import NOTHING, Outcome
from cairn.controller.store.base import Txn, View
from cairn.proto import kinds
from cairn.proto.capabilities import SHUT_OUT
from cairn.proto.kinds import AnyKind
from cairn.proto.seams import moment
from cairn.proto.v1.volume_pb2 import Opening, Outcast, Volume

# What is waited for may change without a record of a kind that is read here.
AGAIN_S: Final = 5.0
_OF_NODES: Final = (kinds.NODE, kinds.NODE_SESSION, kinds.NODE_LOSS, kinds.NODE_HEARD)


class Seat(NamedTuple):
    """A guest: its VM, and the node that runs it."""

    vm: str
    node: str


class Openings:
    """One guest at a time may open a shared volume."""

    name = "openings"
    reads: tuple[AnyKind, ...] = (
        kinds.VOLUME, kinds.VOLUME_PLACEMENT, kinds.OPENING, kinds.VM, kinds.PLACEMENT, kinds.PORT_BINDING, kinds.OBSERVED,
        kinds.UNKNOWN, kinds.ASSIGNMENT, *_OF_NODES,
    )  # fmt: skip
    writes: tuple[AnyKind, ...] = (kinds.OPENING,)

    def keys(self, view: View, kind: AnyKind, id: str) -> Iterable[str]:
        """The volume; the volumes of a VM; what guests of a node may have open."""
        if kind in (kinds.VOLUME, kinds.VOLUME_PLACEMENT, kinds.OPENING):
            return self._known(view, [id])
        if kind in (kinds.VM, kinds.PLACEMENT):
            return self._of_vm(view, id)
        if kind is kinds.PORT_BINDING:
            port = view.get(kinds.PORT, id)
            return self._of_vm(view, vm_of(port)) if port is not None else ()
        if kind is kinds.ASSIGNMENT:
            return self._known(view, [id.partition("/")[2]])
        if kind in _OF_NODES:
            return view.by(kinds.OPENING, "node", id)
        _node, about, object = [*id.split("/", 2), "", ""][:3]
        if about == kinds.VM.name:
            return self._of_vm(view, object)
        return self._known(view, [object]) if about == kinds.VOLUME.name else ()

    def _known(self, view: View, ids: Iterable[str]) -> list[str]:
        return [id for id in ids if in_shared_pool(view, id) or view.revision_of(kinds.OPENING, id)]

    def _of_vm(self, view: View, vm: str) -> list[str]:
        ids = (view.by(kinds.VOLUME, "vm", vm), view.by(kinds.OPENING, "vm", vm), view.by(kinds.VOLUME, "former_vm", vm))
        return self._known(view, dict.fromkeys(id for each in ids for id in each))

    def all_keys(self, view: View) -> Iterable[str]:
        """All volumes of shared pools, and what claims there are."""
        return list(dict.fromkeys((*shared_volumes(view), *view.ids(kinds.OPENING))))

    def shard(self, key: str) -> str:
        """By the volume."""
        return key

    def reconcile(self, view: View, key: str, now: datetime) -> Outcome:
        """Look at the claim to open one volume."""
        try:
            return _decided(Readable(view), key, now)
        except CannotTell as error:
            # Whoever has it keeps it.
            return Outcome(None, f"{key}: {error}", held_up_by=(error.record,))


def _decided(view: View, id: str, now: datetime) -> Outcome:
    """Raises CannotTell."""
    volume, held = view.get(kinds.VOLUME, id), view.record(kinds.OPENING, id)
    if volume is None:
        if held is None:
            return NOTHING
        # What is erased nobody has open.
        txn = Txn(Openings.name).check(kinds.VOLUME, id, 0).check(kinds.OPENING, id, held.mod_revision)
        return Outcome(txn.delete(kinds.OPENING, id), f"volume {id} is gone")
    if not in_shared_pool(view, id):
        return NOTHING
    claim = Opening(volume=id)
    if held is not None:
        claim.CopyFrom(held.message)
    wish = _wished(view, volume)
    kept = [each for each in claim.outcasts if not has_let_go(view, id, each.vm, each.node, given=False)]
    del claim.outcasts[:]
    claim.outcasts.extend(kept)
    say, wait_s, events = "", None, list[EventSpec]()
    if claim.vm and _is_over(claim, wish):
        why, how = _ended(view, volume, claim)
        if why:
            events += _shut_out(view, volume, claim) if how == "shut out" else []
            claim.vm = claim.node = ""
            claim.asks = claim.shutting_out = False
            say = why
        else:
            say, wait_s, events = _waiting(view, volume, claim, now)
    elif claim.vm:
        say = _renewed(view, claim)
    if not claim.vm and wish is not None:
        say, wait_s = _given(view, volume, claim, wish)
    return _outcome(view, volume, held.message if held is not None else None, claim, wish, say, wait_s, events)


def _wished(view: View, volume: Volume) -> Seat | None:
    """Return the guest that is to have it open; None: none is. Raises CannotTell."""
    vm = view.get(kinds.VM, volume.spec.vm) if volume.spec.vm else None
    if vm is None or vm.HasField("delete_time") or volume.HasField("delete_time"):
        return None
    node = where(view, vm.id).runs_on
    return Seat(vm.id, node) if node else None


def _is_over(claim: Opening, wish: Seat | None) -> bool:
    """Tell whether whoever has a volume is to have it no more: one that is being shut out cannot have it back before."""
    return claim.shutting_out or wish != (claim.vm, claim.node)


def _ended(view: View, volume: Volume, claim: Opening) -> tuple[str, str]:
    """Return what proves that a guest has a volume no more, and how it came; empty: nothing does."""
    name = node_name(view, claim.node)
    seen = report(view, _administrator(view, volume.id), f"{kinds.VOLUME.name}/{volume.id}")
    if claim.shutting_out and seen is not None and seen.volume.shut_out >= claim.generation:
        return f"the guest {claim.vm} of {name} was shut out of it", "shut out"
    if heard(view, claim.node) and has_let_go(view, volume.id, claim.vm, claim.node, given=not claim.shutting_out):
        return f"the guest {claim.vm} of {name} let go of it", "said"
    return "", ""


def _administrator(view: View, volume: str) -> str:
    work = assignment(view, VOLUME_WORK, volume)
    return work.node if work is not None else ""


def _shut_out(view: View, volume: Volume, claim: Opening) -> list[EventSpec]:
    """Keep in mind who was shut out, until its node has said that it let go."""
    claim.outcasts.append(Outcast(vm=claim.vm, node=claim.node, generation=claim.generation))
    vm, name = view.get(kinds.VM, claim.vm), node_name(view, claim.node)
    who = f"the guest of VM {vm.name}" if vm is not None else f"guest {claim.vm}"
    say = f"{who} on {name}, which does not answer, was shut out of it: it cannot write to it any more"
    return [EventSpec(volume.id, volume.name, volume.project, "ShutOut", say, name, warning=True)]


def _waiting(view: View, volume: Volume, claim: Opening, now: datetime) -> tuple[str, float | None, list[EventSpec]]:
    """Have a guest shut out that was taken a volume and whose node is lost; say what is waited for."""
    name = node_name(view, claim.node)
    if claim.shutting_out:
        return f"waits for {node_name(view, _administrator(view, volume.id))} to shut out the guest on {name}", None, []
    if connected(view, claim.node):
        return f"waits for {name} to say that guest {claim.vm} let go of it", None, []
    if not claim.asks:
        return f"waits for {name}, which does not answer: its agent is too old for its guest to be shut out", None, []
    if (kept_s := _kept_s(view, volume, claim, now)) > 0:
        return f"waits for {name}, which does not answer: what is deleted may be brought back", kept_s, []
    loss = view.get(kinds.NODE_LOSS, claim.node)
    left_s = MARGIN_S - (now - moment(loss.since_time)).total_seconds() if loss is not None else MARGIN_S
    if left_s > 0:
        return f"waits for {name}, which does not answer; its guest is shut out in {left_s:.0f} s", left_s, []
    claim.shutting_out = True
    return f"the guest {claim.vm} of {name} is to be shut out, as {name} does not answer", None, []


def _kept_s(view: View, volume: Volume, claim: Opening, now: datetime) -> float:
    """Return for how long the guest may be brought back that has a volume: until then nothing is done to it."""
    vm = view.get(kinds.VM, claim.vm)
    if vm is None or volume.spec.vm != claim.vm or not vm.HasField("delete_time"):
        return 0.0
    return kept_for_s(vm, now)


def _renewed(view: View, claim: Opening) -> str:
    """Give a claim of a backup a generation that no other of before was given: the pool remembers those."""
    name, alone = node_name(view, claim.node), not _others(view, claim, Seat(claim.vm, claim.node))
    if connected(view, claim.node):
        claim.asks = knows(view, claim.node, SHUT_OUT)
    if is_generation_of_before(view, claim.generation) and settled(view) and alone:
        claim.generation = next_generation(view, claim.generation)
        return f"{claim.vm} on {name} has it, by a new claim: the records are those of a backup"
    return f"{claim.vm} on {name} has it"


def _others(view: View, claim: Opening, wish: Seat) -> list[Seat]:
    outcasts = {(each.vm, each.node) for each in claim.outcasts}
    return [Seat(*each) for each in holders(view, claim.volume) if each not in outcasts and each != wish]


def _given(view: View, volume: Volume, claim: Opening, wish: Seat) -> tuple[str, float | None]:
    """Give the claim to a guest, unless something stands in the way; return what is said, and when to look again."""
    vm = view.get(kinds.VM, wish.vm)
    if vm is None or not is_told(view, vm):
        return f"waits for the addresses of VM {wish.vm}", None
    if others := _others(view, claim, wish):
        return f"waits for guest {others[0].vm} on {node_name(view, others[0].node)}, which has it open", AGAIN_S
    if any((each.vm, each.node) == wish for each in claim.outcasts):
        return f"waits for {node_name(view, wish.node)} to say that the guest that was shut out let go of it", None
    if not claim.generation and not is_free_of_former(view, volume):
        return "waits for the guest that an older release gave it to", AGAIN_S
    if is_restored(view, kinds.VOLUME, volume.id) and (missing := unheard(view)):
        return f"waits for {node_name(view, missing[0])} to say what its guests have open", AGAIN_S
    claim.vm, claim.node = wish
    claim.generation = next_generation(view, claim.generation)
    claim.asks = knows(view, wish.node, SHUT_OUT)
    return f"{vm.name} on {node_name(view, wish.node)} may open it", None


def _outcome(
    view: View,
    volume: Volume,
    before: Opening | None,
    claim: Opening,
    wish: Seat | None,
    say: str,
    wait_s: float | None,
    events: list[EventSpec],
) -> Outcome:
    if claim == (before if before is not None else Opening(volume=volume.id)):
        return Outcome(None, f"{volume.id}: {say}" if say else "", again_after_s=wait_s)
    # All that it was decided on.
    txn = Txn(Openings.name).check(kinds.VOLUME, volume.id, view.revision_of(kinds.VOLUME, volume.id))
    txn.check(kinds.OPENING, volume.id, view.revision_of(kinds.OPENING, volume.id)).put(kinds.OPENING, volume.id, claim)
    for seat in filter(None, (wish, Seat(before.vm, before.node) if before is not None and before.vm else None)):
        txn.check(kinds.PLACEMENT, seat.vm, view.revision_of(kinds.PLACEMENT, seat.vm))
        txn.check(kinds.VM, seat.vm, view.revision_of(kinds.VM, seat.vm))
        id = f"{seat.node}/{kinds.VM.name}/{seat.vm}"
        txn.check(kinds.OBSERVED, id, view.revision_of(kinds.OBSERVED, id))
    return Outcome(txn, f"{volume.name}: {say}", again_after_s=wait_s, events=events)
