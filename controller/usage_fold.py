"""What is old of usage becomes less: pieces of days long past become sums of days, sums long past go.

Each step is one transaction that checks the cursor, like all that metering writes: whoever was about to count meanwhile reads
again. A part of a day is removed with what it adds to the sums, so nothing is in both, or in none.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, Final

from cairn.controller.model import usage_days
from cairn.controller.model.usage_days import (
    DAYS_KEPT,
    SUMS_KEPT,
    day_before,
    day_of,
    month_id,
    months_of,
    us_of,
)
from cairn.controller.store.base import Item, Store, Txn
from cairn.controller.usage_books import Books, Damaged, one, parsed
from cairn.proto import kinds
from cairn.proto.kinds import AnyKind
from cairn.proto.log import logger
from cairn.proto.v1.usage_pb2 import UsageDay, UsageMonth

_log = logger("metering")
# Gaps told of; older ones go.
GAPS_MAX: Final = 100
# Removed in one transaction.
_REMOVED_MAX: Final = 50


async def fold(books: Books, store: Store, now: datetime) -> None:
    """Fold and remove what is old. Nothing is to be stored of the books. Raises StoreError, Damaged."""
    today = day_of(us_of(now))
    kept, summed = day_before(today, DAYS_KEPT), day_before(today, SUMS_KEPT)
    start = kinds.USAGE_DAY.prefix
    while True:
        items, _ = await store.read(kinds.USAGE_DAY.prefix, start=start, end=kinds.USAGE_DAY.key(f"{kept:08d}/"), limit=1)
        if not items:
            break
        try:
            await _fold_part(books, store, items[0], kept, summed)
        except Damaged as error:
            # It stays, for whoever can tell what it was.
            _log.error("usage_unreadable", error=str(error))
        start = items[0].key + "\0"
    await _remove(books, store, kinds.USAGE_MONTH, kinds.USAGE_MONTH.key(f"{summed // 100:06d}/"))
    await _remove(books, store, kinds.USAGE_GAP, await _gaps_end(store, us_of(now)))


async def _fold_part(books: Books, store: Store, item: Item, kept: int, summed: int) -> None:
    part: UsageDay = parsed(kinds.USAGE_DAY, item)
    months = dict[tuple[int, str], UsageMonth]()
    for month, project in months_of(part, summed):
        found, _ = await one(store, kinds.USAGE_MONTH.key(month_id(month, project)))
        new = UsageMonth(project=project, month=month)
        months[month, project] = parsed(kinds.USAGE_MONTH, found) if found is not None else new
    usage_days.fold(months, part, summed)

    def besides(txn: Txn) -> None:
        txn.delete(kinds.USAGE_DAY, item.key.removeprefix(kinds.USAGE_DAY.prefix))
        for (month, project), sums in months.items():
            txn.put(kinds.USAGE_MONTH, month_id(month, project), sums)

    books.history.cursor.folded_before = max(books.history.cursor.folded_before, kept)
    books.forget(part.day, part.project)
    await books.commit(store, besides)


async def _remove(books: Books, store: Store, kind: AnyKind, end: str) -> None:
    """Remove records of a kind up to a key, without it."""
    while True:
        items, _ = await store.read(kind.prefix, end=end, limit=_REMOVED_MAX)
        if not items:
            return

        def besides(txn: Txn, items: list[Item] = items) -> None:
            for item in items:
                txn.delete(kind, item.key.removeprefix(kind.prefix))

        await books.commit(store, besides)


async def _gaps_end(store: Store, now_us: int) -> str:
    """Return the key of the first gap that stays."""
    old = kinds.USAGE_GAP.key(f"{now_us - SUMS_KEPT * 86_400_000_000:016d}")
    items, _ = await store.read(kinds.USAGE_GAP.prefix)
    many: Any = items[-GAPS_MAX].key if len(items) > GAPS_MAX else old
    return max(old, str(many))
