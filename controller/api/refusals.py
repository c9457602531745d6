"""What was refused, on record: who asked for what, and why not.

    refusals.note(caller, address, method, request, why)    # by the gate, of every call that was refused
    await refusals.run()                                     # for ever: what was noted is put on record, a moment later

A refusal changes nothing, so nothing waits for its record: those of a moment are one commit. The same refusal again is counted,
and the number is put on record once a minute, so that a program that asks in a loop fills nothing. How many different ones
there are in a minute is bounded, less for who has not said who he is: what comes besides is counted as one. Reads are on
record only when they were forbidden; what passes by itself (TryAgain, a stale etag), or was told of the same request before,
is not.

Nothing of what was sent is kept but the name of the object, if it is one: of an invalid field only its path. What is not on
record yet when a controller is killed is lost: a moment's, and the numbers of the last minute.
"""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, Protocol

import grpc
from cairn.controller.api import nouns, resolution
from cairn.controller.api.decision import Views
from cairn.controller.model.permits import Caller, is_root
from cairn.controller.store.base import StoreError, View
from cairn.proto.errors import Invalid, NotFound, Refused, Repeated
from cairn.proto.log import logger
from cairn.proto.permissions import METHODS
from cairn.proto.seams import Clock, timestamp
from cairn.proto.v1.audit_pb2 import Audit

_log = logger("audit")
# How long the first of its kind waits for others, and how long its repetitions are counted before they are told.
GATHER_S: Final = 1.0
WINDOW_S: Final = 60.0
# Different ones in a minute: of one caller, of all callers, and of all who have not said who they are.
OF_CALLER_MAX: Final = 20
OF_CALLERS_MAX: Final = 60
OF_STRANGERS_MAX: Final = 5
SAY_CHARACTERS_MAX: Final = 500
FIELD_CHARACTERS_MAX: Final = 100
# Verbs that change nothing and show no secret.
_READS: Final = frozenset({"see", "read", "ask", "verify", "sync", "get_blob", "put_blob"})
_FORBIDDEN: Final = frozenset({grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED})
_PASSING: Final = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.ABORTED, grpc.StatusCode.UNKNOWN})
# Ids and names, and nothing that is a secret pasted in their place.
_NAME: Final = re.compile(r"[a-z0-9][a-z0-9.-]{0,62}")
_MORE: Final = "others, too many to tell apart"

Key = tuple[str, ...]


class Recorder(Protocol):
    """Puts on record (Mutations)."""

    async def record(self, audits: Sequence[Audit]) -> None:
        """Put these on record, in this order. Raises StoreError, Refused."""
        ...


@dataclass(eq=False, slots=True)
class _Refusal:
    """One that is counted. due_s: when its number is told next, or when it is forgotten."""

    audit: Audit
    caller: str
    due_s: float
    count: int = 0


class Refusals:
    """See the module."""

    def __init__(self, recorder: Recorder, views: Views, clock: Clock) -> None:
        self._recorder, self._views, self._clock = recorder, views, clock
        self._known: dict[Key, _Refusal] = {}
        self._callers: Counter[str] = Counter()
        self._news = asyncio.Event()

    def note(self, caller: Caller | None, address: str, method: str, request: Any, why: Refused) -> None:
        """Take note of a refused call, if it is one to be told. caller: None: unknown; method: "/package.Service/Method"."""
        if not _is_told(METHODS[method], request, why):
            return
        audit = self._audit(caller, address, method, request, why)
        key: Key = (audit.caller, audit.who, audit.token, address, audit.method, audit.object, audit.object_name, audit.refusal)
        uri, now_s = caller.uri if caller is not None else "", asyncio.get_running_loop().time()
        if key not in self._known:
            self._forget(now_s)
        if key not in self._known and not self._has_room(uri):
            audit = Audit(caller=audit.caller, method=_MORE, refusal=audit.refusal)
            key = (audit.caller, audit.method)
        known = self._known.get(key)
        if known is None:
            known = self._known[key] = _Refusal(audit, uri, now_s + GATHER_S)
            self._callers[uri] += 1
        known.audit.time.CopyFrom(timestamp(self._clock.now()))
        known.count += 1
        if known.count == 1:
            self._news.set()

    async def run(self) -> None:
        """Put on record what was noted, for ever."""
        loop = asyncio.get_running_loop()
        while True:
            due_s = min((each.due_s for each in self._known.values() if each.count), default=None)
            with suppress(TimeoutError):
                async with asyncio.timeout_at(due_s):
                    await self._news.wait()
            self._news.clear()
            if due_s is not None and loop.time() >= due_s:
                await self.tell(loop.time())

    async def tell(self, until_s: float) -> None:
        """Put on record whatever is due until then (the loop's time)."""
        told = [(each, each.count) for each in self._known.values() if each.count and each.due_s <= until_s]
        audits = [_counted(each.audit, count) for each, count in told]
        for each, _ in told:
            each.count, each.due_s = 0, asyncio.get_running_loop().time() + WINDOW_S
        if not audits:
            return
        try:
            await self._recorder.record(audits)
        except (StoreError, Refused) as error:
            # Told with the next, a minute later.
            _log.warning("refusals_not_on_record", error=str(error), refusals=len(audits))
            for each, count in told:
                each.count += count

    def _forget(self, now_s: float) -> None:
        """Forget those that did not come again for a while."""
        for key, each in list(self._known.items()):
            if not each.count and each.due_s <= now_s:
                del self._known[key]
                self._callers -= Counter([each.caller])

    def _has_room(self, uri: str) -> bool:
        if not uri:
            return self._callers[""] < OF_STRANGERS_MAX
        known = self._callers.total() - self._callers[""]
        return self._callers[uri] < OF_CALLER_MAX and known < OF_CALLERS_MAX

    def _audit(self, caller: Caller | None, address: str, method: str, request: Any, why: Refused) -> Audit:
        view = self._views.view
        kind, text, project = _object(view, caller, method, request, why)
        is_id = kind is not None and text.startswith(f"{kind.id_prefix}-")
        audit = Audit(
            caller="nobody",
            address=address,
            method=method.rpartition("/")[2],
            object=f"{kind.name if kind is not None else ''}/{text if is_id else ''}",
            object_name="" if is_id else text,
            project=project,
            refusal=why.code.name,
            say=_say(why),
        )
        if caller is not None:
            audit.caller, audit.who, audit.token, audit.cause = caller.kind, caller.id, caller.token, caller.cause
            audit.first_administrator = is_root(caller)
        return audit


def _say(why: Refused) -> str:
    """Return why, without what the caller sent."""
    if isinstance(why, Invalid):
        return f"{why.field[:FIELD_CHARACTERS_MAX]} is invalid"
    return "" if isinstance(why, NotFound) else why.say[:SAY_CHARACTERS_MAX]


def _counted(audit: Audit, count: int) -> Audit:
    made = Audit()
    made.CopyFrom(audit)
    made.count = count
    return made


def _is_told(permission: str, request: Any, why: Refused) -> bool:
    if why.code in _PASSING or isinstance(why, Repeated):
        return False
    if why.code in _FORBIDDEN:
        return True
    return permission.partition(".")[2] not in _READS and not getattr(request, "validate_only", False)


def _object(view: View, caller: Caller | None, method: str, request: Any, why: Refused) -> tuple[Any, str, str]:
    """Return (kind, name or id, project's id) of what a request is about, as far as that can be told."""
    noun = nouns.BY_KIND.get(METHODS[method].partition(".")[0])
    given = getattr(request, noun.kind.name, request) if noun is not None else request
    texts = [str(getattr(each, field, "")) for each in (request, given) for field in ("id", "name", "node_name")]
    text = next((each for each in (*texts, str(getattr(why, "name", ""))) if _NAME.fullmatch(each)), "")
    if noun is None or noun.cluster_wide or caller is None:
        return noun.kind if noun is not None else None, text, ""
    named = next((str(each) for part in (request, given) if (each := getattr(part, "project", ""))), "")
    held = view.get(noun.kind, text)
    try:
        return noun.kind, text, held.project if held is not None else resolution.project_id(view, caller, named)
    except Refused:
        return noun.kind, text, ""
