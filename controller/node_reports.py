"""What one node reports: kept as the latest per object, written together, only what differs from what is stored.

Nothing is written while nothing changed: heartbeats and repeated reports cost the store nothing. The life of a guest is
told as events in the same transaction as the report that shows it, so each is told once. Reports about objects this node
was not told to hold are refused: a node speaks for itself only.
"""

from __future__ import annotations

import asyncio
from collections.abc import Container, Sequence
from datetime import datetime
from typing import Any, Final

from cairn.controller.events import RECORDS, Leases, add, bytes_of, event_id, tell
from cairn.controller.model.facts import figures, figures_changed, inventory_changed
from cairn.controller.model.happening import EventSpec
from cairn.controller.model.nodes import node_name
from cairn.controller.model.unreadable import newest_revision
from cairn.controller.node_session import RETRY_S, WRITER, Session
from cairn.controller.store.base import (
    Conflict,
    Gathering,
    Indeterminate,
    LeaseLost,
    Put,
    Store,
    StoreError,
    Txn,
    Unavailable,
    View,
)
from cairn.controller.store.cache import Cache
from cairn.proto import kinds
from cairn.proto.capabilities import ABSENT_IMAGES
from cairn.proto.keys import covers
from cairn.proto.kinds import AnyKind
from cairn.proto.log import logger
from cairn.proto.seams import Clock, Ids, timestamp
from cairn.proto.v1.agent_pb2 import AgentEvent, ImageReport, Observed, PortReport, Report, VmReport, VolumeReport
from cairn.proto.v1.event_pb2 import Event
from cairn.proto.v1.node_pb2 import NodeFacts

_log = logger("sync")
# What comes in one breath goes together, and what comes so soon after a lot; what comes while one is written gathers anyway.
BREATH_S: Final = 0.001
COALESCE_S: Final = 0.005
# Largest message that is kept: several fit one transaction.
MESSAGE_BYTES_MAX: Final = 256 << 10
EVENTS_PENDING_MAX: Final = 256
TEXT_MAX: Final = 1000
_KINDS: Final[dict[str, AnyKind]] = {"vm": kinds.VM, "volume": kinds.VOLUME, "image": kinds.IMAGE, "port": kinds.PORT}
_FAILED: Final = {
    "volume": VolumeReport.STATE_FAILED,
    "image": ImageReport.STATE_FAILED,
    "port": PortReport.STATE_FAILED,
}
# Of an image that an older agent need not hold.
_UNTOLD: Final = "was held; this release of the agent does not say whether it still is"


class Told:
    """The keys a node is told to hold, or keeps because nobody can tell; what it says of others is refused."""

    def __init__(self, sent: Container[str], kept: Container[str]) -> None:
        self._sent, self._kept = sent, kept

    def __contains__(self, key: object) -> bool:
        return key in self._sent or (isinstance(key, str) and covers(self._kept, key))


class Reports:
    """What one stream has taken in and not written yet. `known`: the keys the node was told to hold."""

    def __init__(
        self, cache: Cache, store: Store, clock: Clock, ids: Ids, leases: Leases, session: Session, known: Container[str]
    ) -> None:
        self._cache, self._store, self._clock, self._ids, self._leases = cache, store, clock, ids, leases
        self._session, self._node, self._known = session, session.node, known
        self._reports: dict[str, Report] = {}
        self._gone: dict[str, None] = {}
        self._facts: NodeFacts | None = None
        self._events: dict[str, Event] = {}
        self._some = asyncio.Event()

    def report(self, report: Report) -> bool:
        """Take a report; False when it is about nothing this node was told to hold, or too large to keep."""
        kind = report.key.partition("/")[0]
        if report.key not in self._known or kind not in _KINDS or report.WhichOneof("object") != kind:
            return False
        clipped = _clipped(report)
        if clipped.ByteSize() > MESSAGE_BYTES_MAX:
            return False
        self._reports[report.key] = clipped
        self._gone.pop(report.key, None)
        self._some.set()
        return True

    def forget(self, key: str) -> None:
        """The node need not hold that any more: what it reported goes."""
        self._reports.pop(key, None)
        self._gone[key] = None
        self._some.set()

    def facts(self, facts: NodeFacts) -> bool:
        """Take new facts; False when they are too large to keep."""
        if facts.ByteSize() > MESSAGE_BYTES_MAX:
            return False
        self._facts = facts
        self._some.set()
        return True

    def event(self, event: AgentEvent) -> bool:
        """Take an event; False when there are too many, or it is too large to keep."""
        if len(self._events) >= EVENTS_PENDING_MAX or event.ByteSize() > MESSAGE_BYTES_MAX:
            return False
        # What it is about is looked up once: a write that is repeated must write the same.
        told = self._event(self._cache.view, event_id(self._clock.now(), self._ids), event)
        self._events[told.id] = told
        self._some.set()
        return True

    @property
    def pending(self) -> int:
        """How much waits to be written."""
        return len(self._reports) + len(self._gone) + len(self._events) + (self._facts is not None)

    async def run(self) -> None:
        """Write what comes in until cancelled."""
        loop = asyncio.get_running_loop()
        gathers_until_s = loop.time()
        while True:
            await self._some.wait()
            self._some.clear()
            await asyncio.sleep(max(BREATH_S, gathers_until_s - loop.time()))
            while self.pending:
                await self._write()
            gathers_until_s = loop.time() + COALESCE_S

    async def _write(self) -> None:
        """Write as much of what waits as one transaction takes; what could not be written waits on."""
        lot = _Lot(self._node, self._session.revision)
        self._gather(lot)
        try:
            if lot.txn:
                await self._tell(lot)
                await self._cache.wait_for(await self._store.commit(lot.txn))
        except (Conflict, Indeterminate, LeaseLost) as error:
            if isinstance(error, LeaseLost):
                self._leases.forget()
            await self._freshen(error)
            return
        except Unavailable as error:
            _log.warning("reports_wait", node=self._node, error=str(error))
            await asyncio.sleep(RETRY_S)
            return
        # Newer ones may have come meanwhile: those stay.
        for key, report in lot.reports.items():
            if self._reports.get(key) is report:
                del self._reports[key]
        for key in lot.gone:
            self._gone.pop(key, None)
        for id in lot.events:
            self._events.pop(id, None)
        if self._facts is lot.facts:
            self._facts = None

    async def _freshen(self, error: StoreError) -> None:
        """Look at what is stored before deciding again. If another stream speaks for the node now, this one ends soon."""
        _log.info("reports_again", node=self._node, error=str(error))
        try:
            await self._cache.wait_for(await self._store.revision())
        except Unavailable:
            _log.warning("reports_wait", node=self._node)
            await asyncio.sleep(RETRY_S)
        await asyncio.sleep(COALESCE_S)

    def _gather(self, lot: _Lot) -> None:
        """Put what differs from the view into a lot, until it is full."""
        view, now = self._cache.view, self._clock.now()
        for key, report in self._reports.items():
            before = view.get(kinds.OBSERVED, f"{self._node}/{key}")
            damaged = f"{self._node}/{key}" in view.unreadable(kinds.OBSERVED)
            part, told = Txn(WRITER), list[EventSpec]()
            if before is None or damaged or not _same(before.report, report):
                observed = Observed(key=key, node=self._node, report=report, observe_time=timestamp(now))
                # Checked, though nobody else writes it: a commit given up as in doubt may still arrive, after newer reports.
                _over(view, part, kinds.OBSERVED, f"{self._node}/{key}").put(kinds.OBSERVED, f"{self._node}/{key}", observed)
                told = lifecycle(view, self._node, before.report if before is not None else Report(), report)
            if not lot.add(part, told):
                return
            lot.reports[key] = report
        for key in self._gone:
            if not lot.add(self._without(view, key, now)):
                return
            lot.gone.append(key)
        if self._facts is not None:
            part = Txn(WRITER)
            if inventory_changed(view.get(kinds.NODE_FACTS, self._node), self._facts):
                _over(view, part, kinds.NODE_FACTS, self._node).put(kinds.NODE_FACTS, self._node, self._facts)
            if figures_changed(view, self._node, self._facts):
                _over(view, part, kinds.NODE_POOLS, self._node).put(kinds.NODE_POOLS, self._node, figures(self._facts))
            if not lot.add(part):
                return
            lot.facts = self._facts
        for id, event in self._events.items():
            part = Txn(WRITER)
            add(part, event, lease=0)
            if not lot.add(part):
                return
            lot.events[id] = part

    def _without(self, view: View, key: str, now: datetime) -> Txn:
        """Return what removes a report; of an image at an agent that cannot be told `absent`, what makes it say nothing.

        The agent may have been told `absent` before it was put back to its release, and will be no older one day: until one
        has said ABSENT, it is to be told (nodespec.py).
        """
        id, txn = f"{self._node}/{key}", Txn(WRITER)
        if not newest_revision(view, kinds.OBSERVED, id):
            return txn
        if not key.startswith(f"{kinds.IMAGE.name}/") or ABSENT_IMAGES in self._session.message.capabilities:
            return _over(view, txn, kinds.OBSERVED, id).delete(kinds.OBSERVED, id)
        before = view.get(kinds.OBSERVED, id)
        if before is None or before.report.image.say == _UNTOLD:
            return txn
        report = Report(key=key, version=before.report.version, image=ImageReport(say=_UNTOLD))
        observed = Observed(key=key, node=self._node, report=report, observe_time=timestamp(now))
        return _over(view, txn, kinds.OBSERVED, id).put(kinds.OBSERVED, id, observed)

    async def _tell(self, lot: _Lot) -> None:
        """Put the events of a lot under a lease, and write those that tell of its reports. Raises Unavailable."""
        if not lot.told and not lot.events:
            return
        lease = await self._leases.lease(RECORDS * (len(lot.events) + len(lot.told)))
        for part in lot.events.values():
            lot.txn.puts |= {key: Put(put.value, lease) for key, put in part.puts.items()}
        tell(lot.txn, lot.told, now=self._clock.now(), ids=self._ids, lease=lease)

    def _event(self, view: View, id: str, told: AgentEvent) -> Event:
        key = told.object if "/" in told.object else f"/{told.object}"
        about = _about(view, key) if told.object else EventSpec(self._node, node_name(view, self._node), "", "", "")
        return Event(
            id=id,
            project=about.project,
            event_time=told.event_time,
            object=about.object[:TEXT_MAX],
            object_name=about.name,
            reason=told.reason[:TEXT_MAX],
            message=told.message[:TEXT_MAX],
            node=node_name(view, self._node),
            actor=f"node {node_name(view, self._node)}",
            warning=told.warning,
        )


class _Lot:
    """What is written at once: a transaction that checks the session, and what it was made of."""

    def __init__(self, node: str, session: int) -> None:
        self._gathering = Gathering(Txn(WRITER).check(kinds.NODE_SESSION, node, session))
        self.txn = self._gathering.txn
        self.reports: dict[str, Report] = {}
        self.gone: list[str] = []
        # Id -> what writes it.
        self.events: dict[str, Txn] = {}
        self.facts: NodeFacts | None = None
        self.told: list[EventSpec] = []

    def add(self, part: Txn, told: Sequence[EventSpec] = ()) -> bool:
        """Take a part in, with the events that tell of it; False when there is no room for it."""
        if not self._gathering.add(part, puts=RECORDS * len(told), put_bytes=bytes_of(told)):
            return False
        self.told += told
        return True


def _over(view: View, txn: Txn, kind: AnyKind, id: str) -> Txn:
    """Have a transaction check the record that is there."""
    return txn.check(kind, id, newest_revision(view, kind, id))


def _same(first: Report, second: Report) -> bool:
    """Whether two reports say the same, whichever version they answer to."""
    kind = first.WhichOneof("object")
    return kind == second.WhichOneof("object") and (kind is None or getattr(first, kind) == getattr(second, kind))


def _clipped(report: Report) -> Report:
    """Return it with its sentences cut to what is reasonable."""
    said = getattr(report, report.WhichOneof("object") or "")
    for name in ("say", "error"):
        if len(getattr(said, name, "")) > TEXT_MAX:
            setattr(said, name, getattr(said, name)[:TEXT_MAX])
    return report


def _about(view: View, key: str) -> EventSpec:
    """Return an event without a message about the object of a key."""
    kind_name, _, id = key.partition("/")
    kind = _KINDS.get(kind_name)
    object: Any = view.get(kind, id) if kind is not None else None
    if object is None:
        return EventSpec(id, "", "", "", "")
    return EventSpec(id, object.name, object.project, "", "")


def lifecycle(view: View, node: str, before: Report, after: Report) -> list[EventSpec]:
    """Return what to tell of an object whose report changed."""
    kind, about, where = after.key.partition("/")[0], _about(view, after.key), node_name(view, node)
    told: tuple[str, str, bool] | None = None
    if kind == "vm":
        told = _guest(before.vm, after.vm, about.name, where)
    elif kind in _FAILED:
        said, was = getattr(after, kind), getattr(before, kind)
        if said.state == _FAILED[kind] and (was.state != said.state or was.error != said.error):
            told = "Failed", f"{kind} {about.name} on {where}: {said.error}", True
    if told is None:
        return []
    reason, message, warning = told
    return [EventSpec(about.object, about.name, about.project, reason, message, where, warning)]


def _guest(before: VmReport, after: VmReport, name: str, where: str) -> tuple[str, str, bool] | None:
    """Return (reason, sentence, warning) of a step in a guest's life, or None."""
    if after.state == VmReport.STATE_RUNNING:
        again = before.state == VmReport.STATE_RUNNING and before.start_time == after.start_time
        return None if again else ("Started", f"VM {name} runs on {where}", False)
    if after.exit == VmReport.EXIT_CRASHED and before.exit != VmReport.EXIT_CRASHED:
        return "Crashed", f"the guest of VM {name} crashed on {where}: {after.error or after.say}", True
    if after.state == VmReport.STATE_FAILED and (before.state != after.state or before.error != after.error):
        return "Failed", f"VM {name} on {where}: {after.error or after.say}", True
    if after.state == VmReport.STATE_STOPPED and before.state not in (VmReport.STATE_STOPPED, VmReport.STATE_UNSPECIFIED):
        if after.exit == VmReport.EXIT_GUEST:
            return "Exited", f"the guest of VM {name} shut itself down", False
        return "Stopped", f"VM {name} was stopped", False
    return None
