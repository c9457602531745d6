"""What one node reports: kept as the latest per object, written together, only what differs from what is stored.

Nothing is written while nothing changed: heartbeats and repeated reports cost the store nothing. The life of a guest is
told as events in the same transaction as the report that shows it, so each is told once. Reports about objects this node
was not told to hold are refused: a node speaks for itself only.
"""

from __future__ import annotations

import asyncio
from collections.abc import Container
from typing import Any, Final

from cairn.controller.events import Leases, event_id, tell
from cairn.controller.model.happening import EventSpec
from cairn.controller.model.nodes import node_name
from cairn.controller.node_session import RETRY_S, WRITER, Session
from cairn.controller.store.base import Conflict, Indeterminate, LeaseLost, Store, StoreError, Txn, Unavailable, View
from cairn.controller.store.cache import Cache
from cairn.proto import kinds
from cairn.proto.kinds import AnyKind
from cairn.proto.log import logger
from cairn.proto.seams import Clock, Ids, timestamp
from cairn.proto.v1.agent_pb2 import AgentEvent, ImageReport, Observed, PortReport, Report, VmReport, VolumeReport
from cairn.proto.v1.event_pb2 import Event
from cairn.proto.v1.node_pb2 import NodeFacts

_log = logger("sync")
# Reports of one moment go together; while one lot is being written the next gathers anyway.
COALESCE_S: Final = 0.005
# Of at most 128 operations: a report may bring an event.
REPORTS_MAX: Final = 50
EVENTS_MAX: Final = 20
EVENTS_PENDING_MAX: Final = 256
TEXT_MAX: Final = 1000
_KINDS: Final[dict[str, AnyKind]] = {"vm": kinds.VM, "volume": kinds.VOLUME, "image": kinds.IMAGE, "port": kinds.PORT}
_FAILED: Final = {
    "volume": VolumeReport.STATE_FAILED,
    "image": ImageReport.STATE_FAILED,
    "port": PortReport.STATE_FAILED,
}


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
        self._events: dict[str, AgentEvent] = {}
        self._some = asyncio.Event()

    def report(self, report: Report) -> bool:
        """Take a report; False when it is about nothing this node was told to hold."""
        kind = report.key.partition("/")[0]
        if report.key not in self._known or kind not in _KINDS or report.WhichOneof("object") != kind:
            return False
        self._reports[report.key] = _clipped(report)
        self._gone.pop(report.key, None)
        self._some.set()
        return True

    def forget(self, key: str) -> None:
        """The node need not hold that any more: what it reported goes."""
        self._reports.pop(key, None)
        self._gone[key] = None
        self._some.set()

    def facts(self, facts: NodeFacts) -> None:
        """Take new facts."""
        self._facts = facts
        self._some.set()

    def event(self, event: AgentEvent) -> bool:
        """Take an event; False when there are too many."""
        if len(self._events) >= EVENTS_PENDING_MAX:
            return False
        self._events[event_id(self._clock.now(), self._ids)] = event
        self._some.set()
        return True

    @property
    def pending(self) -> int:
        """How much waits to be written."""
        return len(self._reports) + len(self._gone) + len(self._events) + (self._facts is not None)

    async def run(self) -> None:
        """Write what comes in until cancelled."""
        while True:
            await self._some.wait()
            self._some.clear()
            await asyncio.sleep(COALESCE_S)
            while self.pending:
                await self._write()

    async def _write(self) -> None:
        """Write some of what waits; what could not be written waits on."""
        reports = dict(list(self._reports.items())[:REPORTS_MAX])
        gone = list(self._gone)[:REPORTS_MAX]
        events = dict(list(self._events.items())[:EVENTS_MAX])
        facts = self._facts
        try:
            txn = await self._txn(reports, gone, events, facts)
            if txn:
                txn.check(kinds.NODE_SESSION, self._node, self._session.revision)
                await self._cache.wait_for(await self._store.commit(txn))
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
        for key, report in reports.items():
            if self._reports.get(key) is report:
                del self._reports[key]
        for key in gone:
            self._gone.pop(key, None)
        for id in events:
            self._events.pop(id, None)
        if self._facts is facts:
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

    async def _txn(
        self, reports: dict[str, Report], gone: list[str], events: dict[str, AgentEvent], facts: NodeFacts | None
    ) -> Txn:
        """Return what differs from the view."""
        view, txn, told = self._cache.view, Txn(WRITER), list[EventSpec]()
        now = self._clock.now()
        for key, report in reports.items():
            id = f"{self._node}/{key}"
            before = view.get(kinds.OBSERVED, id)
            if before is not None and _same(before.report, report):
                continue
            observed = Observed(key=key, node=self._node, report=report, observe_time=timestamp(now))
            # Checked, though nobody else writes it: a commit given up as in doubt may still arrive, after newer reports.
            txn.check(kinds.OBSERVED, id, view.revision_of(kinds.OBSERVED, id)).put(kinds.OBSERVED, id, observed)
            told += lifecycle(view, self._node, before.report if before is not None else Report(), report)
        for key in gone:
            id = f"{self._node}/{key}"
            if view.get(kinds.OBSERVED, id) is not None:
                txn.check(kinds.OBSERVED, id, view.revision_of(kinds.OBSERVED, id)).delete(kinds.OBSERVED, id)
        if facts is not None and view.get(kinds.NODE_FACTS, self._node) != facts:
            revision = view.revision_of(kinds.NODE_FACTS, self._node)
            txn.check(kinds.NODE_FACTS, self._node, revision).put(kinds.NODE_FACTS, self._node, facts)
        fresh = {id: event for id, event in events.items() if view.get(kinds.EVENT, id) is None}
        if told or fresh:
            lease = await self._leases.lease()
            tell(txn, told, now=now, ids=self._ids, lease=lease)
            for id, event in fresh.items():
                txn.create(kinds.EVENT, id, self._event(view, id, event), lease=lease)
        return txn

    def _event(self, view: View, id: str, told: AgentEvent) -> Event:
        key = told.object if "/" in told.object else f"/{told.object}"
        about = _about(view, key) if told.object else EventSpec(self._node, "", "", "", "")
        return Event(
            id=id,
            project=about.project,
            event_time=told.event_time,
            object=about.object,
            object_name=about.name,
            reason=told.reason[:TEXT_MAX],
            message=told.message[:TEXT_MAX],
            node=node_name(view, self._node),
            actor=f"node {node_name(view, self._node)}",
            warning=told.warning,
        )


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
