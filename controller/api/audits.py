"""The audit, read and verified: who changed what, in the order in which it happened, and whether the records are those written.

Listing looks at every record in the store, which are bounded (controller/audit_bound.py), and at the files of this controller
that may have what is asked for: those are opened in the order of revisions, until a page is full. What the store has let go
of is taken from files, all else from the store, at one revision, so nothing is shown twice. A page walk goes on behind the
revision and number it has shown. What a caller may not read the audit of is in no page.
"""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any, Final

from cairn.controller.api import resolution
from cairn.controller.api.authorise import caller_of
from cairn.controller.api.chain import Ends, ends, first_break, hash_of, number_of
from cairn.controller.api.core import Core
from cairn.controller.api.listing import PAGE_BYTES_MAX, PAGE_SIZE_DEFAULT, PAGE_SIZE_MAX, Token, read_token, write_token
from cairn.controller.api.selection import ALL_PROJECTS, Turns
from cairn.controller.api.stored import READ_MAX, parsed
from cairn.controller.archive import Archive
from cairn.controller.audit_files import FilesError
from cairn.controller.model.permits import Caller, Verb, permits
from cairn.controller.segments import Segment, SegmentError, items_of
from cairn.controller.store.base import Item, Store, View
from cairn.proto import kinds
from cairn.proto.errors import Denied, Invalid
from cairn.proto.v1 import audit_pb2, audit_pb2_grpc
from cairn.proto.v1.audit_pb2 import Audit, AuditChain, AuditCut, AuditHead, AuditSegmentContent
from google.protobuf.timestamp_pb2 import Timestamp

# Of the number, in the token of a page.
_NUMBER_DIGITS: Final = 12
# Records held, beside those of the page, before those that come later are put away.
_SORTED_MAX: Final = 1000
# Broken links told of, and files that could not be searched.
BROKEN_MAX: Final = 100
MISSING_MAX: Final = 20
SOME_MISSING: Final = "some files of the audit could not be searched"


class AuditService(audit_pb2_grpc.AuditServiceServicer):
    """AuditService of proto/v1/audit.proto."""

    def __init__(self, core: Core) -> None:
        self._core = core

    async def ListAudits(self, request: audit_pb2.ListAuditsRequest, context: Any) -> audit_pb2.ListAuditsResponse:
        """Return a page, oldest first."""
        if request.page_size < 0:
            raise Invalid("page_size", f"{request.page_size} is negative")
        size = min(request.page_size or PAGE_SIZE_DEFAULT, PAGE_SIZE_MAX)
        caller = caller_of(context)
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

    async def VerifyAudits(self, request: audit_pb2.VerifyAuditsRequest, context: Any) -> audit_pb2.VerifyAuditsResponse:
        """Walk every chain as it is at one revision."""
        caller, view = caller_of(context), self._core.cache.view
        if not permits(view, caller, Verb.VERIFY, Audit()):
            raise Denied(f"{caller.kind} {caller.id!r} may not verify the audit")
        return await verified(self._core.store, await self._core.store.revision(), self._core.archive)


class _Search:
    """The first records that pass, behind a place. times: seconds that they are within; missing: what could not be searched."""

    def __init__(self, count: int, after: Token, passes: Callable[[Audit], bool], times: tuple[float, float]) -> None:
        self._count, self._after, self._passes, self._times = count, after, passes, times
        self._found, self._turns = list[Audit](), Turns()
        self.missing: list[str] = []

    async def run(self, store: Store, archive: Archive | None) -> list[Audit]:
        """Look through the store and the files. Raises Compacted, Unavailable."""
        revision = await store.revision()
        async with aclosing(_records(store, revision)) as records:
            async for item in records:
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


async def _records(store: Store, revision: int = 0) -> AsyncGenerator[Item, None]:
    """Yield all records of the audit, chain by chain. Raises Compacted, Unavailable."""
    start = ""
    while True:
        items, revision = await store.read(kinds.AUDIT.prefix, start=start, limit=READ_MAX, revision=revision)
        for item in items:
            yield item
        if len(items) < READ_MAX:
            return
        start = items[-1].key + "\0"


class _Walk:
    """A chain on its way: what was looked at, and the first that was wrong with it."""

    def __init__(self, chain: str, head: AuditHead | None, cut: AuditCut) -> None:
        self.chain, self._head, self._cut = chain, head, cut
        self.number, self.hash, self.records = cut.number, cut.hash, 0
        self.broken = [cut.broken] if cut.broken else []
        self._hashes = {cut.number: cut.hash}

    def take(self, item: Item) -> None:
        """Look at the next record. After the first that is wrong the following are compared with it, not with what was."""
        wrong = first_break(self.chain, self.number, self.hash, [item])
        if wrong:
            self.broken.append(wrong)
        audit = parsed(kinds.AUDIT, item.key, item.value)
        self.number = audit.number if audit is not None else self.number + 1
        self.hash = self._hashes[self.number] = hash_of(item.value)
        self.records += 1

    def end(self) -> None:
        """Compare with where the chain is said to end."""
        if self._head is None:
            self.broken.append(f"chain {self.chain}: where it ends is not recorded")
        elif (self._head.number, self._head.hash) != (self.number, self.hash):
            say = f"chain {self.chain}: it ends with record {self.number}, and is said to end with {self._head.number}"
            if self._head.number == self.number:
                say = f"chain {self.chain}: record {self.number}, the last, is not what was written"
            self.broken.append(say)

    def knows(self, seen: AuditHead) -> bool:
        """Tell whether another chain's record saw this one as it is."""
        return seen.number < self._cut.number or self._hashes.get(seen.number) == seen.hash

    @property
    def found(self) -> AuditChain:
        """What is told of it."""
        return AuditChain(chain=self.chain, number=self.number, cut=self._cut.number, records=self.records)


class _FileWalk:
    """The files of one chain, in order: what is wrong with them, and what they lack."""

    def __init__(self, chain: str, cut: AuditCut) -> None:
        self.chain, self._cut = chain, cut
        self.first = self.last = self.records = 0
        self._hash = b""
        self.broken, self.missing = list[str](), list[str]()

    async def run(self, archive: Archive, series: str) -> None:
        """Look at each file. Raises FilesError when none can be read."""
        for segment in await archive.segments(self.chain, series):
            try:
                self._take(segment, await archive.verified(segment))
            except (FilesError, SegmentError) as error:
                self.broken.append(f"chain {self.chain}: file {segment.name}: {error}")
                self._hash = b""
            self.first, self.last = self.first or segment.first, segment.last
        if self.last < self._cut.number:
            self.missing.append(f"records {self.last + 1} to {self._cut.number} are not in this controller's files")

    def _take(self, segment: Segment, content: AuditSegmentContent) -> None:
        if self.last and segment.first != self.last + 1:
            say = f"records {self.last + 1} to {segment.first - 1} are in no file, and none says that they were not kept here"
            self.broken.append(f"chain {self.chain}: {say}")
        elif segment.gap:
            self.missing.append(f"records {segment.first} to {segment.last} were let go of while they were not kept here")
        elif self._hash and content.previous != self._hash:
            self.broken.append(f"chain {self.chain}: file {segment.name} does not follow the one before")
        for each in content.records:
            if each.number == self._cut.number and hash_of(each.record) != self._cut.hash:
                self.broken.append(f"chain {self.chain}: record {each.number} in its file is not the one the store let go of")
        self._hash = content.hash
        self.records += sum(each.number <= self._cut.number for each in content.records)


async def verified(store: Store, revision: int, archive: Archive | None) -> audit_pb2.VerifyAuditsResponse:
    """Walk all chains as they are at a revision, and this controller's files of them. Raises Compacted, Unavailable."""
    known: Ends = await ends(store, revision)
    walks = {chain: _Walk(chain, known.heads.get(chain), known.cut(chain)) for chain in known.chains}
    seen, turns = list[tuple[str, int, AuditHead]](), Turns()
    async with aclosing(_records(store, revision)) as records:
        async for item in records:
            if turns.over:
                await turns.next()
            chain = item.key.removeprefix(kinds.AUDIT.prefix).rpartition("/")[0]
            walk = walks.setdefault(chain, _Walk(chain, None, AuditCut(chain=chain)))
            walk.take(item)
            audit = parsed(kinds.AUDIT, item.key, item.value)
            seen += [(chain, audit.number, head) for head in audit.seen] if audit is not None else []
    for walk in walks.values():
        walk.end()
    broken = [say for chain in sorted(walks) for say in walks[chain].broken]
    for chain, number, head in seen:
        if head.chain not in walks or not walks[head.chain].knows(head):
            end = f"{head.number}, which is not there as it was"
            broken.append(f"chain {head.chain}: record {number} of chain {chain} saw it end with record {end}")
    chains = {chain: walks[chain].found for chain in sorted(walks)}
    if archive is not None:
        broken += [say for found in chains.values() for say in await _verified_files(archive, known, found)]
    return audit_pb2.VerifyAuditsResponse(chains=chains.values(), broken=broken[:BROKEN_MAX])


async def _verified_files(archive: Archive, known: Ends, found: AuditChain) -> list[str]:
    """Add to what was found of a chain what this controller's files have of it; return what is broken."""
    files = _FileWalk(found.chain, known.cut(found.chain))
    try:
        await files.run(archive, known.series(found.chain))
    except FilesError as error:
        files.missing.append(str(error))
    found.filed_first, found.filed_last, found.records = files.first, files.last, found.records + files.records
    found.missing.extend(files.missing)
    return files.broken
