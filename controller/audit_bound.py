"""The bound on what the audit takes of the store: the oldest records are let go of, whichever chain they are of.

How many there are follows from where chains end and begin, so looking costs two reads. What goes is checked once more before it
goes, and the record of the cut says what was found broken; it has the hash of the last that went, so that what stays is still
known to follow. Every controller does it: two at once conflict on the record of the cut, and one of them has done it.

Rejected: leases (they end by time, a busy day fills the store; and what vanishes by itself is not checked before).
"""

from __future__ import annotations

import asyncio
from typing import Final

from cairn.controller.api.chain import Ends, ends, first_break, hash_of, number_of, record_id
from cairn.controller.store.base import Conflict, Indeterminate, Item, Store, Txn, Unavailable
from cairn.proto import kinds
from cairn.proto.log import logger
from cairn.proto.seams import Clock, timestamp
from cairn.proto.v1.audit_pb2 import AuditCut

_log = logger("audit")
# Records kept; what comes between two looks may be there besides.
KEPT_MAX: Final = 20_000
LOOK_S: Final = 30.0
# Let go in one transaction.
CUT_MAX: Final = 100


class AuditBound:
    """See the module."""

    def __init__(self, store: Store, clock: Clock, kept_max: int = KEPT_MAX) -> None:
        self._store, self._clock, self._kept_max = store, clock, kept_max

    async def run(self) -> None:
        """Look now and then, for ever."""
        while True:
            await asyncio.sleep(LOOK_S)
            try:
                while await self.cut():
                    pass
            except (Conflict, Indeterminate) as error:
                _log.info("audit_cut_elsewhere", error=str(error))
            except Unavailable as error:
                _log.warning("store_unavailable", error=str(error))

    async def cut(self) -> int:
        """Let the oldest go, some of one chain; return how many. Raises Conflict, Indeterminate, Unavailable."""
        known = await ends(self._store)
        over = sum(known.held(chain) for chain in known.chains) - self._kept_max
        if over <= 0:
            return 0
        found = [(items[0].mod_revision, chain, items) for chain in known.chains if (items := await self._oldest(known, chain))]
        if not found:
            return 0
        _, chain, items = min(found, key=lambda each: each[:2])
        txn = self._transaction(known, chain, items[:over])
        await self._store.commit(txn)
        _log.info("audit_cut", chain=chain, records=len(txn.deletes))
        return len(txn.deletes)

    async def _oldest(self, known: Ends, chain: str) -> list[Item]:
        start = kinds.AUDIT.key(record_id(chain, known.cut(chain).number + 1))
        items, _ = await self._store.read(kinds.AUDIT.key(f"{chain}/"), start=start, limit=CUT_MAX)
        return items

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
        )
        txn = Txn("audit").check(kinds.AUDIT_CUT, chain, known.revisions.get(chain, 0)).put(kinds.AUDIT_CUT, chain, cut)
        for item in items:
            txn.delete(kinds.AUDIT, item.key.removeprefix(kinds.AUDIT.prefix))
        return txn
