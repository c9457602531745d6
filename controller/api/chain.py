"""The chain of audit records that a controller writes: one for each controller, by its name, from its first mutation on.

    link = await found(store, chain)      # where the chain ends, as the store has it
    record, link = link.added(audit)      # numbered, with the hash of the one before
    link.head                             # put, and checked as `revision` says, by the commit that has the records

Whoever writes records checks the head, so nothing comes between, whatever becomes of a commit in doubt: the next finds the head
where it stands. Hashes are of records as they are stored, so that nothing has to be written the same way twice. Where the
head was read the heads of other chains are noted in the next record: a chain that is cut short is missed by another.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, replace
from typing import Final, TypeVar

from cairn.controller.api.stored import READ_MAX, parsed
from cairn.controller.store.base import Item, Store, Txn
from cairn.proto import kinds
from cairn.proto.kinds import Kind
from cairn.proto.v1.audit_pb2 import Audit, AuditCut, AuditHead
from google.protobuf.message import Message

M = TypeVar("M", bound=Message)

# Bytes that the head's record takes in a transaction, at most: names of controllers are short.
HEAD_BYTES: Final = 256
# Heads of other chains that a record notes.
SEEN_MAX: Final = 8
# Bytes that a record has besides, once it is in its chain, with its key; and the head, its check, and heads of others, at most.
LINK_BYTES: Final = 512
ENDS_BYTES: Final = HEAD_BYTES * (SEEN_MAX + 3)


def record_id(chain: str, number: int) -> str:
    """Return the id of a record: they sort by number."""
    return f"{chain}/{number:012d}"


def number_of(key: str) -> int:
    """Return the number in a record's key; 0: there is none."""
    digits = key.rpartition("/")[2]
    return int(digits) if digits.isdecimal() else 0


def hash_of(stored: bytes) -> bytes:
    """Return the hash that the next record has of one."""
    return hashlib.sha256(stored).digest()


@dataclass(frozen=True, slots=True)
class Link:
    """The end of a chain. revision: of the head's record, 0: there is none; seen: heads of others, for the next record."""

    chain: str
    number: int = 0
    hash: bytes = b""
    revision: int = 0
    seen: tuple[AuditHead, ...] = ()
    # Of the chain, made with it.
    series: str = ""

    def added(self, audit: Audit) -> tuple[Audit, Link]:
        """Return the record as it follows this one, and the end of the chain then."""
        record = Audit()
        record.CopyFrom(audit)
        record.chain, record.number, record.previous = self.chain, self.number + 1, self.hash
        record.seen.extend(self.seen)
        hash = hash_of(record.SerializeToString(deterministic=True))
        return record, replace(self, number=record.number, hash=hash, seen=())

    @property
    def head(self) -> AuditHead:
        """The record of where it ends."""
        return AuditHead(chain=self.chain, number=self.number, hash=self.hash, series=self.series)


def append(txn: Txn, link: Link, audits: Sequence[Audit]) -> Link:
    """Let a transaction carry records; return the end of the chain once it is committed, but for its revision."""
    txn.check(kinds.AUDIT_HEAD, link.chain, link.revision)
    for audit in audits:
        record, link = link.added(audit)
        txn.put(kinds.AUDIT, record_id(record.chain, record.number), record)
    txn.put(kinds.AUDIT_HEAD, link.chain, link.head)
    return link


async def found(store: Store, chain: str, series: str) -> Link:
    """Return the end of a chain as the store has it; series: if it is only beginning. Raises Unavailable."""
    items, _ = await store.read(kinds.AUDIT_HEAD.prefix)
    heads = _readable(kinds.AUDIT_HEAD, items)
    own = heads.pop(chain, None)
    revision = next((item.mod_revision for item in items if item.key == kinds.AUDIT_HEAD.key(chain)), 0)
    # A head that is gone, or cannot be read, is written anew: where the records end.
    head = own or await _last(store, chain)
    if not head.number:
        head.series = series
    return Link(chain, head.number, head.hash, revision, tuple(heads.values())[:SEEN_MAX], head.series)


async def _last(store: Store, chain: str) -> AuditHead:
    """Return where the records of a chain end, or where they were cut."""
    cut = (await ends(store)).cut(chain)
    head, start = AuditHead(chain=chain, number=cut.number, hash=cut.hash, series=cut.series), ""
    while True:
        items, _ = await store.read(kinds.AUDIT.key(f"{chain}/"), start=start, limit=READ_MAX)
        for item in items:
            if number := number_of(item.key):
                head.number, head.hash = number, hash_of(item.value)
        if len(items) < READ_MAX:
            return head
        start = items[-1].key + "\0"


def _readable(kind: Kind[M], items: Sequence[Item]) -> dict[str, M]:
    """Return the records by id, without those that cannot be read."""
    found = ((item.key.removeprefix(kind.prefix), parsed(kind, item.key, item.value)) for item in items)
    return {id: message for id, message in found if message is not None}


@dataclass(frozen=True, slots=True)
class Ends:
    """Where chains end and begin: heads and cuts by chain."""

    heads: dict[str, AuditHead]
    cuts: dict[str, AuditCut]
    # Mod revisions of the cuts.
    revisions: dict[str, int]

    @property
    def chains(self) -> list[str]:
        """Return all there are."""
        return sorted(self.heads.keys() | self.cuts.keys())

    def cut(self, chain: str) -> AuditCut:
        """Return up to where a chain was let go."""
        return self.cuts.get(chain) or AuditCut(chain=chain)

    def series(self, chain: str) -> str:
        """Return which chain of that name it is."""
        head = self.heads.get(chain)
        return head.series if head is not None else self.cut(chain).series

    def held(self, chain: str) -> int:
        """Return how many records of a chain are to be there."""
        head = self.heads.get(chain)
        return max(0, head.number - self.cut(chain).number) if head is not None else 0


async def ends(store: Store, revision: int = 0) -> Ends:
    """Return where all chains begin and end; revision 0: now. Raises Compacted, Unavailable."""
    heads, cuts = await asyncio.gather(
        store.read(kinds.AUDIT_HEAD.prefix, revision=revision), store.read(kinds.AUDIT_CUT.prefix, revision=revision)
    )
    return Ends(
        _readable(kinds.AUDIT_HEAD, heads[0]),
        _readable(kinds.AUDIT_CUT, cuts[0]),
        {item.key.removeprefix(kinds.AUDIT_CUT.prefix): item.mod_revision for item in cuts[0]},
    )


async def records(store: Store, revision: int) -> AsyncGenerator[Item, None]:
    """Yield the records of all chains as they are at a revision, chain by chain. Raises Compacted, Unavailable."""
    start = ""
    while True:
        items, _ = await store.read(kinds.AUDIT.prefix, start=start, limit=READ_MAX, revision=revision)
        for item in items:
            yield item
        if len(items) < READ_MAX:
            return
        start = items[-1].key + "\0"


def first_break(chain: str, number: int, hash: bytes, items: Sequence[Item]) -> str:
    """Return what is wrong with records that are to follow the one of that number and hash; empty: nothing."""
    for item in items:
        number += 1
        if item.key != kinds.AUDIT.key(record_id(chain, number)):
            return f"chain {chain}: record {number} is missing: {item.key.rpartition('/')[2].lstrip('0')} is in its place"
        try:
            record = Audit.FromString(item.value)
        except ValueError:
            return f"chain {chain}: record {number} cannot be read"
        if (record.chain, record.number) != (chain, number):
            return f"chain {chain}: record {number} says that it is record {record.number} of chain {record.chain}"
        if record.previous != hash:
            return f"chain {chain}: record {number} does not follow record {number - 1}: one of them is not what was written"
        hash = hash_of(item.value)
    return ""
