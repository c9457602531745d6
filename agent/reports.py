"""What is to be told to the controller: the latest report per object, events, facts. Survives the stream, not the process.

A report that says what was said last is not sent again; after a snapshot everything is said once more.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Final

from cairn.proto.log import logger
from cairn.proto.seams import Clock, timestamp
from cairn.proto.v1.agent_pb2 import AgentEvent, Report, SyncRequest, Unknown, UnknownKeys, VmReport
from cairn.proto.v1.node_pb2 import NodeFacts

EVENTS_MAX: Final = 256


class Reports:
    """The outbox. `some` is set while there is something to send."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._latest: dict[str, Report] = {}
        self._unsent: dict[str, None] = {}
        # None: not looked yet, so nothing can be said to be gone.
        self._unknown: dict[str, Unknown] | None = None
        self._unknown_unsent: dict[str, None] | None = None
        # Of the snapshot it was compared with.
        self._unknown_epoch = 0
        self._events: deque[AgentEvent] = deque(maxlen=EVENTS_MAX)
        self._facts_unsent = False
        self.facts = NodeFacts()
        self.some = asyncio.Event()
        self.sent = 0
        # Called with the key of each report that says something new.
        self.listener: Callable[[str], None] = _ignore

    def latest(self, key: str) -> Report | None:
        """Return the last report about an object."""
        return self._latest.get(key)

    def put(self, report: Report) -> None:
        """Take a report; the same as before is dropped."""
        before = self._latest.get(report.key)
        if before == report:
            return
        self._latest[report.key] = report
        self._unsent[report.key] = None
        self.some.set()
        if before is None or not _same_object(before, report):
            self.listener(report.key)

    def forget(self, key: str) -> None:
        """Drop the report about an object that is no longer desired."""
        self._latest.pop(key, None)
        self._unsent.pop(key, None)

    def put_unknown(self, found: dict[str, Unknown], *, epoch: int) -> None:
        """Take all that is unknown here, by key; epoch: of what it was compared with."""
        before, self._unknown = self._unknown, found
        if before == found and self._unknown_epoch == epoch:
            return
        self._unknown_epoch = epoch
        changed = {key: None for key, each in found.items() if before is None or before.get(key) != each}
        self._unknown_unsent = {**(self._unknown_unsent or {}), **changed}
        self.some.set()

    def put_facts(self, facts: NodeFacts) -> None:
        """Take new facts, also into what was told of guests before they were known."""
        self.facts, self._facts_unsent = facts, True
        accelerator = facts.hypervisor.accelerator
        for report in list(self._latest.values()):
            if report.vm.state == VmReport.STATE_RUNNING and report.vm.accelerator != accelerator:
                again = Report()
                again.CopyFrom(report)
                again.vm.accelerator = accelerator
                self.put(again)
        self.some.set()

    def event(self, object: str, reason: str, message: str, *, warning: bool = False) -> None:
        """Take something worth an event; the oldest are lost when nobody listens for long."""
        logger("agent").info("event", object=object, reason=reason, message=message, warning=warning)
        stamp = timestamp(self._clock.now())
        self._events.append(AgentEvent(object=object, reason=reason, message=message, warning=warning, event_time=stamp))
        self.some.set()

    def begin(self) -> None:
        """A stream opens with our facts in its hello: of what else is unsent, only events will be sent before the snapshot."""
        self._unsent.clear()
        self._unknown_unsent = None
        self._facts_unsent = False

    def resend_all(self) -> None:
        """Everything is to be said once more."""
        self._unsent = dict.fromkeys(self._latest)
        self._unknown_unsent = dict.fromkeys(self._unknown) if self._unknown is not None else None
        self.some.set()

    def take(self) -> list[SyncRequest]:
        """Return what is to be sent, oldest first, and count it as sent."""
        messages = [SyncRequest(facts=self.facts)] if self._facts_unsent else []
        messages += [SyncRequest(report=self._latest[key]) for key in self._unsent]
        messages += self._take_unknown()
        messages += [SyncRequest(event=event) for event in self._events]
        self._unsent.clear()
        self._events.clear()
        self._facts_unsent = False
        self.some.clear()
        self.sent += len(messages)
        return messages

    def _take_unknown(self) -> list[SyncRequest]:
        """Return what is new of the unknown, then the keys of all of it."""
        unsent, known = self._unknown_unsent, self._unknown
        self._unknown_unsent = None
        if unsent is None or known is None:
            return []
        told = [SyncRequest(unknown=known[key]) for key in unsent if key in known]
        return [*told, SyncRequest(unknown_keys=UnknownKeys(keys=sorted(known), epoch=self._unknown_epoch))]


def _same_object(first: Report, second: Report) -> bool:
    """Whether two reports differ in nothing but the version they answer to."""
    kind = first.WhichOneof("object")
    return kind == second.WhichOneof("object") and (kind is None or getattr(first, kind) == getattr(second, kind))


def _ignore(_key: str) -> None:
    return None
