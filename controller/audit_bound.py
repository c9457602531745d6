"""The bound on what the audit takes of the store: the oldest records are let go of, whichever chain they are of.

    file     each controller that has a place for files copies what is new there, a segment at a time (archive.py)
    cut      when there are more than so many, the oldest go: only what is in this controller's files, and is old enough for the
             others to have it in theirs. Without a place for files they are gone then
    refuse   files that cannot be written let nothing go: beyond a second bound nothing is changed any more, rather than
             unrecorded; reads go on

How many there are follows from where chains end and begin, so looking costs two reads. What goes is checked once more before it
goes, and the record of the cut says what was found broken; it has the hash of the last that went, so that what stays is still
known to follow. Every controller does it: two at once conflict on the record of the cut, and one of them has done it.

Rejected: leases (they end by time, a busy day fills the store; and what vanishes by itself is not checked before); one
controller that files for all (its host is lost, and the past with it).
"""

from __future__ import annotations

import asyncio
from datetime import timedelta
from itertools import takewhile
from typing import Final

from cairn.controller.api.chain import Ends, ends, first_break, hash_of, number_of, record_id
from cairn.controller.api.stored import parsed
from cairn.controller.archive import SEGMENT_MAX, Archive
from cairn.controller.audit_files import FilesError
from cairn.controller.outage import AuditFull
from cairn.controller.segments import SegmentError
from cairn.controller.store.base import Conflict, Indeterminate, Item, Store, Txn, Unavailable
from cairn.proto import kinds
from cairn.proto.errors import Refused
from cairn.proto.log import logger
from cairn.proto.seams import Clock, moment, timestamp
from cairn.proto.v1.audit_pb2 import AuditCut

_log = logger("audit")
# Records kept; what comes between two looks may be there besides.
KEPT_MAX: Final = 20_000
LOOK_S: Final = 30.0
# Let go in one transaction.
CUT_MAX: Final = 100
# How old a record is before it is let go of: every controller that runs has looked meanwhile.
YOUNG: Final = timedelta(seconds=3 * LOOK_S)
# How many more there may be, while files cannot be written, before nothing is changed any more.
OVER_MAX: Final = 20_000


class AuditBound:
    """See the module. over_max: beside kept_max. archive: this controller's files; None: it has no place for any."""

    def __init__(
        self,
        store: Store,
        clock: Clock,
        kept_max: int = KEPT_MAX,
        over_max: int = OVER_MAX,
        archive: Archive | None = None,
    ) -> None:
        self._store, self._clock, self._kept_max, self._over_max = store, clock, kept_max, over_max
        self._archive = archive
        # How many there were at the last look, and why what is old could not be put into files; empty: it could.
        self._held = 0
        self._why = ""

    def closed(self) -> Refused | None:
        """Return why nothing may be changed now."""
        if not self._why or self._held <= self._kept_max + self._over_max:
            return None
        say = f"the audit cannot be kept: {self._why}; nothing is changed until it can be, rather than unrecorded"
        return AuditFull("audit", f"{say} (docs/operations/audit.md)")

    async def run(self) -> None:
        """Look now and then, for ever."""
        while True:
            await asyncio.sleep(LOOK_S)
            await self.look()

    async def look(self) -> None:
        """Put into files what is new, and let go of what is too much."""
        try:
            await self.file()
            while await self.cut():
                pass
            self._why = ""
        except (Conflict, Indeterminate) as error:
            _log.info("audit_cut_elsewhere", error=str(error))
        except Unavailable as error:
            _log.warning("store_unavailable", error=str(error))
        except (FilesError, SegmentError) as error:
            self._why = str(error)
            _log.error("audit_not_filed", error=self._why)

    async def file(self) -> None:
        """Put into files whatever makes whole ones. Raises FilesError, SegmentError, Unavailable."""
        known = await ends(self._store)
        self._held = sum(known.held(chain) for chain in known.chains)
        for chain in known.chains if self._archive is not None else ():
            await self._file(known, chain)

    async def _file(self, known: Ends, chain: str, upto: int = 0) -> None:
        """The same of one chain; upto: the number that is to be in files afterwards, whole or not."""
        assert self._archive is not None
        series, cut = known.series(chain), known.cut(chain)
        number, hash = await self._archive.end(chain, series)
        if number < cut.number:
            if number:
                await self._archive.pass_over(chain, series, number + 1, cut.number, cut.hash)
            number, hash = cut.number, cut.hash
        while True:
            start = kinds.AUDIT.key(record_id(chain, number + 1))
            items, _ = await self._store.read(kinds.AUDIT.key(f"{chain}/"), start=start, limit=SEGMENT_MAX)
            items = [item for item in items if number_of(item.key)]
            if not items or (len(items) < SEGMENT_MAX and number >= upto):
                return
            if number_of(items[0].key) != number + 1 and (now := await ends(self._store)).cut(chain).number > number:
                # Others let go meanwhile of what comes next.
                await self._file(now, chain, upto)
                return
            await self._archive.keep(chain, series, hash, items)
            number, hash = number_of(items[-1].key), hash_of(items[-1].value)

    async def cut(self) -> int:
        """Let the oldest go, some of one chain; return how many. Raises what `look` answers for."""
        known = await ends(self._store)
        self._held = sum(known.held(chain) for chain in known.chains)
        over = self._held - self._kept_max
        if over <= 0:
            return 0
        found = [(items[0].mod_revision, chain, items) for chain in known.chains if (items := await self._oldest(known, chain))]
        if not found:
            return 0
        _, chain, items = min(found, key=lambda each: each[:2])
        items = items[:over]
        if self._archive is not None:
            await self._file(known, chain, number_of(items[-1].key))
        txn = self._transaction(known, chain, items)
        await self._store.commit(txn)
        _log.info("audit_cut", chain=chain, records=len(txn.deletes))
        return len(txn.deletes)

    async def _oldest(self, known: Ends, chain: str) -> list[Item]:
        start = kinds.AUDIT.key(record_id(chain, known.cut(chain).number + 1))
        items, _ = await self._store.read(kinds.AUDIT.key(f"{chain}/"), start=start, limit=CUT_MAX)
        # What follows a young one stays with it, whatever another life's clock said.
        return items if self._archive is None else list(takewhile(lambda item: not self._is_young(item), items))

    def _is_young(self, item: Item) -> bool:
        audit = parsed(kinds.AUDIT, item.key, item.value)
        return audit is not None and moment(audit.time) > self._clock.now() - YOUNG

    def _transaction(self, known: Ends, chain: str, items: list[Item]) -> Txn:
        was, last = known.cut(chain), items[-1]
        broken = was.broken or first_break(chain, was.number, was.hash, items)
        if broken and not was.broken:
            _log.error("audit_broken", found=broken)
        cut = AuditCut(
            chain=chain,
            number=number_of(last.key) or was.number,
            hash=hash_of(last.value),
            time=timestamp(self._clock.now()),
            broken=broken,
            series=known.series(chain),
        )
        txn = Txn("audit").check(kinds.AUDIT_CUT, chain, known.revisions.get(chain, 0)).put(kinds.AUDIT_CUT, chain, cut)
        for item in items:
            txn.delete(kinds.AUDIT, item.key.removeprefix(kinds.AUDIT.prefix))
        return txn
