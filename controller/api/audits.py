"""The audit, read and verified: who changed what, in the order in which it happened, and whether the records are those written.

Listing looks at every record in the store, which are bounded (controller/audit_bound.py), and at the files of this controller
that may have what is asked for: those are opened in the order of revisions, until a page is full. What the store has let go
of is taken from files, all else from the store, at one revision, so nothing is shown twice. A page walk goes on behind the
revision and number it has shown. What a caller may not read the audit of is in no page. Verifying: verification.py.
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from typing import Any, Final

from cairn.controller.api import resolution
from cairn.controller.api.authorise import caller_of
from cairn.controller.api.chain import Ends, ends, number_of, records
from cairn.controller.api.core import Core
from cairn.controller.api.listing import PAGE_BYTES_MAX, Token, page_size_of, read_token, write_token
from cairn.controller.api.selection import ALL_PROJECTS, Turns
from cairn.controller.api.stored import parsed
from cairn.controller.api.verification import MISSING_MAX, verified
from cairn.controller.archive import Archive
from cairn.controller.audit_files import FilesError
from cairn.controller.model.permits import Caller, Verb, permits
from cairn.controller.segments import Segment, SegmentError, items_of
from cairn.controller.store.base import Item, Store, View
from cairn.proto import kinds
from cairn.proto.errors import Denied
from cairn.proto.v1 import audit_pb2, audit_pb2_grpc
from cairn.proto.v1.audit_pb2 import Audit
from google.protobuf.timestamp_pb2 import Timestamp

# Of the number, in the token of a page.
_NUMBER_DIGITS: Final = 12
# Records held, beside those of the page, before those that come later are put away.
_SORTED_MAX: Final = 1000
SOME_MISSING: Final = "some files of the audit could not be searched"


class AuditService(audit_pb2_grpc.AuditServiceServicer):
    """AuditService of proto/v1/audit.proto."""

    def __init__(self, core: Core) -> None:
        self._core = core

    async def ListAudits(self, request: audit_pb2.ListAuditsRequest, context: Any) -> audit_pb2.ListAuditsResponse:
        """Return a page, oldest first."""
        size, caller = page_size_of(request), caller_of(context)
        view = await self._core.mutations.freshen()
        scope = f"audits\0{caller.uri}\0{_asked(request)}"
        token = read_token(request.page_token, scope) if request.page_token else Token(0, "")
        answer, size_bytes = audit_pb2.ListAuditsResponse(), 0
        search = _Search(size + 1, token, _filter(view, caller, request), _times(request))
        found = await search.run(self._core.store, self._core.archive)
        everywhere = permits(view, caller, Verb.READ, Audit())
        # Files, as machines, are shown to who may read all.
        answer.missing.extend(search.missing if everywhere else [SOME_MISSING] if search.missing else [])
        for audit in found:
            size_bytes += audit.ByteSize()
            if len(answer.audits) == size or (answer.audits and size_bytes > PAGE_BYTES_MAX):
                last = answer.audits[-1]
                answer.next_page_token = write_token(Token(last.revision, f"{last.number:0{_NUMBER_DIGITS}d}"), scope)
                break
            if not everywhere:
                # From where others work is not a project's to know, nor what they were told of machines.
                audit.ClearField("address")
                audit.ClearField("say")
            answer.audits.append(audit)
        return answer

    async def VerifyAudits(
        self, request: audit_pb2.VerifyAuditsRequest, context: Any
    ) -> AsyncIterator[audit_pb2.VerifyAuditsResponse]:
        """Walk every chain as it is at one revision, telling how far it is."""
        caller, view = caller_of(context), self._core.cache.view
        if not permits(view, caller, Verb.VERIFY, Audit()):
            raise Denied(f"{caller.kind} {caller.id!r} may not verify the audit")
        async with aclosing(verified(self._core.store, self._core.archive)) as answers:
            async for answer in answers:
                yield answer


class _Search:
    """The first records that pass, behind a place. times: seconds that they are within; missing: what could not be searched."""

    def __init__(self, count: int, after: Token, passes: Callable[[Audit], bool], times: tuple[float, float]) -> None:
        self._count, self._after, self._passes, self._times = count, after, passes, times
        self._found, self._turns = list[Audit](), Turns()
        self.missing: list[str] = []

    async def run(self, store: Store, archive: Archive | None) -> list[Audit]:
        """Look through the store and the files. Raises Compacted, Unavailable."""
        revision = await store.revision()
        async with aclosing(records(store, revision)) as items:
            async for item in items:
                await self._take(item)
        if archive is not None:
            try:
                await self._look_into(archive, await ends(store, revision))
            except FilesError as error:
                self.missing.append(str(error))
        return _in_order(self._found)[: self._count]

    async def _look_into(self, archive: Archive, known: Ends) -> None:
        segments = [each for chain in known.chains for each in await archive.segments(chain, known.series(chain))]
        for segment in sorted(segments, key=lambda each: each.revisions):
            cut = known.cut(segment.chain).number
            if segment.first > cut or not self._may_have(segment):
                continue
            if self._turns.over:
                await self._turns.next()
            self._found = _in_order(self._found)[: self._count]
            if len(self._found) == self._count and self._found[-1].revision < segment.revisions[0]:
                return
            try:
                content = await archive.content(segment)
            except (FilesError, SegmentError) as error:
                self._not_searched(f"{segment.name}: {error}")
                continue
            for item in items_of(content):
                if number_of(item.key) <= cut:
                    await self._take(item)

    def _not_searched(self, say: str) -> None:
        if len(self.missing) < MISSING_MAX:
            self.missing.append(say)
        elif len(self.missing) == MISSING_MAX:
            self.missing.append("and more files")

    def _may_have(self, segment: Segment) -> bool:
        since, until = self._times
        within = segment.times[1] >= since and segment.times[0] <= until
        return within and not segment.gap and segment.revisions[1] >= self._after.revision

    async def _take(self, item: Item) -> None:
        if self._turns.over:
            await self._turns.next()
        audit, after = parsed(kinds.AUDIT, item.key, item.value), self._after
        if audit is None or _place(item) <= (after.revision, after.after) or not self._passes(audit):
            return
        audit.revision = item.mod_revision
        self._found.append(audit)
        if len(self._found) >= 2 * self._count + _SORTED_MAX:
            self._found = _in_order(self._found)[: self._count]


def _in_order(audits: list[Audit]) -> list[Audit]:
    return sorted(audits, key=lambda each: (each.revision, each.number))


def _asked(request: audit_pb2.ListAuditsRequest) -> str:
    """Return what is asked for, whatever the page."""
    bare = audit_pb2.ListAuditsRequest()
    bare.CopyFrom(request)
    bare.ClearField("page_token")
    bare.ClearField("page_size")
    return bare.SerializeToString(deterministic=True).hex()


def _filter(view: View, caller: Caller, request: audit_pb2.ListAuditsRequest) -> Callable[[Audit], bool]:
    """Return what tells whether a record is asked for, and the caller's to read. Raises NotFound."""
    project = "" if request.project in ("", ALL_PROJECTS) else resolution.project_id(view, caller, request.project)
    since = _moment(request.since) if request.HasField("since") else None
    until = _moment(request.until) if request.HasField("until") else None

    def passes(audit: Audit) -> bool:
        time = _moment(audit.time)
        return (
            (not request.who or audit.who == request.who)
            and (not request.object or request.object in (audit.object.partition("/")[2], audit.object_name))
            and (not project or audit.project == project)
            and (not request.method or audit.method == request.method)
            and (not request.cause or audit.cause == request.cause)
            and (request.refused == request.done or bool(audit.refusal) == request.refused)
            and (since is None or time >= since)
            and (until is None or time < until)
            and permits(view, caller, Verb.READ, audit)
        )

    return passes


def _times(request: audit_pb2.ListAuditsRequest) -> tuple[float, float]:
    """Return from which second to which one is asked for."""
    since = float(request.since.seconds) if request.HasField("since") else -math.inf
    return since, float(request.until.seconds) if request.HasField("until") else math.inf


def _moment(stamp: Timestamp) -> tuple[int, int]:
    """Return what moments are compared by, also of those that no calendar has."""
    return stamp.seconds, stamp.nanos


def _place(item: Item) -> tuple[int, str]:
    """Return where a record comes: those of one revision are of one chain."""
    return item.mod_revision, item.key.rpartition("/")[2]
