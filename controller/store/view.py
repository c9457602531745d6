"""The View's two forms: the live picture the cache keeps, and the fork that shows it as if a transaction had been committed.

The live picture changes in place. Reconcilers are synchronous, so between two awaits nobody sees it move; whoever awaits
takes `cache.view` again. A fork holds only what its transaction touches and asks its parent for the rest, so it costs
O(transaction), and a fork may be forked.

Records are kept as the bytes they came in until somebody asks for them, then as the message: of a large cloud most records
(names, claims, request records) are hardly ever looked at, and a message takes ten times the memory of its bytes. They were
parsed once when they came, so looking never fails. Rejected: copying the picture for each decision (O(cluster)), and
persistent maps (a lookup costs ten times a dictionary's).
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

from cairn.controller.store.base import Record, Txn, View
from cairn.controller.store.indexes import INDEXES
from cairn.proto.kinds import Kind, split
from google.protobuf.message import Message

M = TypeVar("M", bound=Message)


class Slot:
    """One record: bytes until first looked at."""

    __slots__ = ("content", "create_revision", "mod_revision")

    def __init__(self, content: bytes | Message, mod_revision: int, create_revision: int) -> None:
        self.content = content
        self.mod_revision, self.create_revision = mod_revision, create_revision

    def message(self, kind: Kind[M]) -> M:
        """Return the message, the same object each time."""
        content: Any = self.content
        if type(content) is bytes:
            content = self.content = kind.message.FromString(content)
        message: M = content
        return message


class Table:
    """All records of one kind, with its indexes: index name -> value -> sorted ids."""

    def __init__(self, kind: Kind[Message]) -> None:
        self.kind = kind
        self.slots: dict[str, Slot] = {}
        self._extracts = INDEXES.get(kind.name, {})
        self._indexes: dict[str, dict[str, list[str]]] = {name: {} for name in self._extracts}

    def put(self, id: str, value: bytes, mod_revision: int, create_revision: int) -> None:
        """Write a record. Raises DecodeError, changing nothing."""
        message = self.kind.message.FromString(value)
        self.delete(id)
        self.slots[id] = Slot(value, mod_revision, create_revision)
        for name, extract in self._extracts.items():
            index = self._indexes[name]
            for found in set(extract(id, message)):
                insort(index.setdefault(found, []), id)

    def delete(self, id: str) -> None:
        """Remove a record if it is there."""
        slot = self.slots.pop(id, None)
        if slot is None or not self._extracts:
            return
        message = slot.message(self.kind)
        for name, extract in self._extracts.items():
            index = self._indexes[name]
            for found in set(extract(id, message)):
                ids = index[found]
                del ids[bisect_left(ids, id)]
                if not ids:
                    del index[found]

    def by(self, index: str, value: str) -> list[str]:
        """Return a copy of the sorted ids."""
        return list(self._indexes[index].get(value, ()))


class LiveView:
    """The whole picture; the cache writes it, everybody else reads."""

    def __init__(self) -> None:
        self._revision = 0
        self._tables: dict[str, Table] = {}

    @property
    def revision(self) -> int:
        """Store revision of the picture."""
        return self._revision

    def advance(self, revision: int) -> None:
        """Say that everything up to that revision has been written here."""
        self._revision = max(self._revision, revision)

    def table(self, kind: Kind[Any]) -> Table:
        """Return the records of a kind, to write them."""
        found = self._tables.get(kind.name)
        if found is None:
            found = self._tables[kind.name] = Table(kind)
        return found

    def tables(self) -> list[Table]:
        """Return every kind's records, to write them."""
        return list(self._tables.values())

    def slot(self, kind: Kind[Any], id: str) -> Slot | None:
        """Return a record's slot."""
        return self.table(kind).slots.get(id)

    def get(self, kind: Kind[M], id: str) -> M | None:
        """Return the record or None."""
        slot = self.table(kind).slots.get(id)
        return None if slot is None else slot.message(kind)

    def record(self, kind: Kind[M], id: str) -> Record[M] | None:
        """Return the record with its revisions, or None."""
        return _record(kind, self.slot(kind, id))

    def revision_of(self, kind: Kind[M], id: str) -> int:
        """Return its mod revision, 0 when absent."""
        slot = self.slot(kind, id)
        return 0 if slot is None else slot.mod_revision

    def ids(self, kind: Kind[M]) -> Iterable[str]:
        """Return all ids of a kind, in no order."""
        return self.table(kind).slots.keys()

    def all(self, kind: Kind[M]) -> Iterable[M]:
        """Return all records of a kind, in no order."""
        return (slot.message(kind) for slot in self.table(kind).slots.values())

    def by(self, kind: Kind[M], index: str, value: str) -> list[str]:
        """Return the ids whose index has that value, sorted."""
        return self.table(kind).by(index, value)

    def count(self, kind: Kind[M]) -> int:
        """Return how many records of a kind there are."""
        return len(self.table(kind).slots)

    def fork(self, txn: Txn) -> View:
        """Return a picture as if txn had been committed."""
        return Fork(self, txn)


class Fork:
    """A parent picture with one transaction laid over it."""

    def __init__(self, parent: LiveView | Fork, txn: Txn) -> None:
        self._parent = parent
        self._revision = parent.revision
        # Kind -> id -> slot, None where deleted.
        self._changed: dict[str, dict[str, Slot | None]] = {}
        self.extend(txn)

    def extend(self, txn: Txn) -> None:
        """Show from now on that txn was committed too. For the one who made the fork: a chain of forks is slow."""
        self._revision += 1
        for key in txn.deletes:
            kind, id = split(key)
            self._changed.setdefault(kind.name, {})[id] = None
        for key, put in txn.puts.items():
            kind, id = split(key)
            before = self.slot(kind, id)
            created = self._revision if before is None else before.create_revision
            self._changed.setdefault(kind.name, {})[id] = Slot(put.value, self._revision, created)

    @property
    def revision(self) -> int:
        """One more than the parent's had been."""
        return self._revision

    def slot(self, kind: Kind[Any], id: str) -> Slot | None:
        """Return a record's slot."""
        changed = self._changed.get(kind.name, {})
        return changed[id] if id in changed else self._parent.slot(kind, id)

    def get(self, kind: Kind[M], id: str) -> M | None:
        """Return the record or None."""
        slot = self.slot(kind, id)
        return None if slot is None else slot.message(kind)

    def record(self, kind: Kind[M], id: str) -> Record[M] | None:
        """Return the record with its revisions, or None."""
        return _record(kind, self.slot(kind, id))

    def revision_of(self, kind: Kind[M], id: str) -> int:
        """Return its mod revision, 0 when absent."""
        slot = self.slot(kind, id)
        return 0 if slot is None else slot.mod_revision

    def ids(self, kind: Kind[M]) -> Iterator[str]:
        """Return all ids of a kind, in no order."""
        changed = self._changed.get(kind.name, {})
        yield from (id for id in self._parent.ids(kind) if id not in changed)
        yield from (id for id, slot in changed.items() if slot is not None)

    def all(self, kind: Kind[M]) -> Iterator[M]:
        """Return all records of a kind, in no order."""
        if not self._changed.get(kind.name):
            yield from self._parent.all(kind)
            return
        for id in self.ids(kind):
            slot = self.slot(kind, id)
            if slot is not None:
                yield slot.message(kind)

    def by(self, kind: Kind[M], index: str, value: str) -> list[str]:
        """Return the ids whose index has that value, sorted."""
        found = self._parent.by(kind, index, value)
        changed = self._changed.get(kind.name)
        if not changed:
            return found
        extract = INDEXES[kind.name][index]
        kept = [id for id in found if id not in changed]
        kept += [id for id, slot in changed.items() if slot is not None and value in extract(id, slot.message(kind))]
        return sorted(kept)

    def count(self, kind: Kind[M]) -> int:
        """Return how many records of a kind there are."""
        changed = self._changed.get(kind.name, {})
        before = sum(self._parent.slot(kind, id) is not None for id in changed)
        after = sum(slot is not None for slot in changed.values())
        return self._parent.count(kind) - before + after

    def fork(self, txn: Txn) -> View:
        """Return a picture as if txn had been committed after this one's."""
        return Fork(self, txn)


def _record(kind: Kind[M], slot: Slot | None) -> Record[M] | None:
    return None if slot is None else Record(slot.message(kind), slot.mod_revision, slot.create_revision)
