"""Is the audit what was written: all chains walked as they are at one revision, then this controller's files of them.

    async for answer in verified(store, archive): ...     # how far it is, now and then; in the last what was found

What is written or let go of meanwhile is not looked at: the store's part is read at that revision, and in files all up to where
the store had let go by then is compared with it. The walk is cut into looks (a record of the store, a file), after each of
which others may have their turn: a million records keep nobody waiting. Held meanwhile are a hash of each record in the store,
which are bounded (controller/audit_bound.py), the names of the files, and so many findings.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Final

from cairn.controller.api.chain import Ends, ends, first_break, hash_of, records
from cairn.controller.api.selection import Turns
from cairn.controller.api.stored import parsed
from cairn.controller.archive import Archive
from cairn.controller.audit_files import FilesError
from cairn.controller.segments import Segment, SegmentError
from cairn.controller.store.base import Item, Store
from cairn.proto import kinds
from cairn.proto.v1.audit_pb2 import (
    AuditChain,
    AuditCut,
    AuditHead,
    AuditProgress,
    AuditSegmentContent,
    AuditVerdict,
    VerifyAuditsResponse,
)

# Broken links told of, and of each chain what its files lack.
BROKEN_MAX: Final = 100
MISSING_MAX: Final = 20
# How many records are looked at between two words of how far it is.
TELL_EVERY: Final = 5_000


async def verified(store: Store, archive: Archive | None) -> AsyncGenerator[VerifyAuditsResponse, None]:
    """Walk all there is; yield how far it is, and in the end what was found. Raises Compacted, Unavailable."""
    revision = await store.revision()
    known = await ends(store, revision)
    files, lost = await _files(archive, known)
    whole = sum(known.held(chain) for chain in known.chains) + sum(each.records for kept in files.values() for each in kept)
    walk, turns = _Verification(store, revision, known, archive, files, lost), Turns()
    looked, told = 0, -TELL_EVERY
    async with aclosing(walk.looks()) as looks:
        async for look in looks:
            looked += look.records
            if looked - told >= TELL_EVERY:
                told = looked
                progress = AuditProgress(records=looked, whole=max(whole, looked), chain=look.chain, file=look.file)
                yield VerifyAuditsResponse(progress=progress)
            if turns.over:
                await turns.next()
    yield VerifyAuditsResponse(verdict=walk.verdict)


async def _files(archive: Archive | None, known: Ends) -> tuple[dict[str, list[Segment]], dict[str, str]]:
    """Return what there is of each chain in this controller's files, and why of some that is not known."""
    files, lost = dict[str, list[Segment]](), dict[str, str]()
    if archive is None:
        return files, lost
    for chain in known.chains:
        try:
            files[chain] = await archive.segments(chain, known.series(chain))
        except FilesError as error:
            lost[chain] = str(error)
    return files, lost


@dataclass(frozen=True, slots=True)
class _Look:
    """What was just looked at: so many records, of a chain, in a file; empty: in the store."""

    chain: str
    file: str = ""
    records: int = 0


class _Verification:
    """The walk. files, lost: as `_files` says."""

    def __init__(
        self,
        store: Store,
        revision: int,
        known: Ends,
        archive: Archive | None,
        files: dict[str, list[Segment]],
        lost: dict[str, str],
    ) -> None:
        self._store, self._revision, self._known, self._archive = store, revision, known, archive
        self._files, self._lost = files, lost
        self._walks = {chain: _Walk(chain, known.heads.get(chain), known.cut(chain)) for chain in known.chains}
        # (chain, number, the head of another chain that this record saw)
        self._seen: list[tuple[str, int, AuditHead]] = []
        self.verdict = AuditVerdict()

    async def looks(self) -> AsyncGenerator[_Look, None]:
        """Look at everything, bit by bit. Raises Compacted, Unavailable."""
        async with aclosing(self._in_store()) as looks:
            async for look in looks:
                yield look
        for chain in sorted(self._walks):
            walk = self._walks[chain]
            walk.end()
            self._broken(*walk.broken)
        for chain, number, head in self._seen:
            if head.chain not in self._walks or not self._walks[head.chain].knows(head):
                end = f"{head.number}, which is not there as it was"
                self._broken(f"chain {head.chain}: record {number} of chain {chain} saw it end with record {end}")
            yield _Look(chain)
        for chain in sorted(self._walks):
            found = self._walks[chain].found
            if self._archive is not None:
                async with aclosing(self._in_files(self._archive, found)) as looks:
                    async for look in looks:
                        yield look
            self.verdict.chains.append(found)

    async def _in_store(self) -> AsyncGenerator[_Look, None]:
        async with aclosing(records(self._store, self._revision)) as items:
            async for item in items:
                chain = item.key.removeprefix(kinds.AUDIT.prefix).rpartition("/")[0]
                if chain not in self._walks:
                    self._walks[chain] = _Walk(chain, None, AuditCut(chain=chain))
                self._walks[chain].take(item)
                audit = parsed(kinds.AUDIT, item.key, item.value)
                self._seen += [(chain, audit.number, head) for head in audit.seen] if audit is not None else []
                yield _Look(chain, records=1)

    async def _in_files(self, archive: Archive, found: AuditChain) -> AsyncGenerator[_Look, None]:
        """Add to what was found of a chain what this controller's files have of it."""
        walk = _FileWalk(found.chain, self._known.cut(found.chain))
        for segment in self._files.get(found.chain, ()):
            try:
                walk.take(segment, await archive.verified(segment))
            except (FilesError, SegmentError) as error:
                walk.unsound(segment, str(error))
            yield _Look(found.chain, segment.name, segment.records)
        walk.end(self._lost.get(found.chain, ""))
        self._broken(*walk.broken)
        found.filed_first, found.filed_last, found.records = walk.first, walk.last, found.records + walk.records
        found.missing.extend(walk.missing[:MISSING_MAX])
        if len(walk.missing) > MISSING_MAX:
            found.missing.append("and more")

    def _broken(self, *says: str) -> None:
        self.verdict.broken.extend(says[: BROKEN_MAX - len(self.verdict.broken)])


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
            _add(self.broken, wrong)
        audit = parsed(kinds.AUDIT, item.key, item.value)
        self.number = audit.number if audit is not None else self.number + 1
        self.hash = self._hashes[self.number] = hash_of(item.value)
        self.records += 1

    def end(self) -> None:
        """Compare with where the chain is said to end."""
        if self._head is None:
            _add(self.broken, f"chain {self.chain}: where it ends is not recorded")
        elif (self._head.number, self._head.hash) != (self.number, self.hash):
            say = f"chain {self.chain}: it ends with record {self.number}, and is said to end with {self._head.number}"
            if self._head.number == self.number:
                say = f"chain {self.chain}: record {self.number}, the last, is not what was written"
            _add(self.broken, say)

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

    def take(self, segment: Segment, content: AuditSegmentContent) -> None:
        """Look at the next file."""
        if self.last and segment.first != self.last + 1:
            say = f"records {self.last + 1} to {segment.first - 1} are in no file, and none says that they were not kept here"
            _add(self.broken, f"chain {self.chain}: {say}")
        elif segment.gap:
            _add(self.missing, f"records {segment.first} to {segment.last} were let go of while they were not kept here")
        elif self._hash and content.previous != self._hash:
            _add(self.broken, f"chain {self.chain}: file {segment.name} does not follow the one before")
        for each in content.records:
            if each.number == self._cut.number and hash_of(each.record) != self._cut.hash:
                say = f"record {each.number} in its file is not the one the store let go of"
                _add(self.broken, f"chain {self.chain}: {say}")
        self.records += sum(each.number <= self._cut.number for each in content.records)
        self._passed(segment, content.hash)

    def unsound(self, segment: Segment, why: str) -> None:
        """The next file is not what was written."""
        _add(self.broken, f"chain {self.chain}: file {segment.name}: {why}")
        self._passed(segment, b"")

    def end(self, lost: str) -> None:
        """Say what there should be besides. lost: why what there is is not known."""
        if lost:
            _add(self.missing, lost)
        elif self.last < self._cut.number:
            _add(self.missing, f"records {self.last + 1} to {self._cut.number} are not in this controller's files")

    def _passed(self, segment: Segment, hash: bytes) -> None:
        self._hash = hash
        self.first, self.last = self.first or segment.first, segment.last


def _add(findings: list[str], say: str) -> None:
    """Note what is worth a word; of very many no more than are told."""
    if len(findings) <= BROKEN_MAX:
        findings.append(say)
