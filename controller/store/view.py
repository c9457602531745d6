"""The View's two forms: the live picture the cache keeps, and the fork that shows it as if a transaction had been committed.

The live picture changes in place. Reconcilers are synchronous, so between two awaits nobody sees it move; whoever awaits
takes `cache.view` again. A fork holds only what its transaction touches and asks its parent for the rest, so it costs
O(transaction), and a fork may be forked.

A record of the live picture is one string of bytes: its revisions, then the value as it came. A message takes ten times the
memory, so only those looked at lately are kept, a bounded number per kind; another look parses again (half a microsecond for
most). They were parsed once when they came, so looking never fails. Plain bytes are also nothing the garbage collector has to
walk: a million records cost its pauses nothing. Rejected: copying the picture for each decision (O(cluster)), persistent maps
(a lookup costs ten times a dictionary's), messages kept for ever once seen (one full scan, and all records are messages).
"""

from __future__ import annotations

import struct
from bisect import bisect_left, insort
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, TypeVar

from cairn.controller.store.base import Record, Txn, Unreadable, View
from cairn.controller.store.indexes import INDEXES
from cairn.controller.store.sums import COUNTED, Sums, added, holders
from cairn.proto import kinds
from cairn.proto.kinds import Kind, split
from google.protobuf.message import Message

M = TypeVar("M", bound=Message)
T = TypeVar("T")
# Messages kept of a kind: between once and twice as many.
RECENT_MAX: Final = 2048
# Before each value: the revisions that changed and made the record, as little-endian 64-bit numbers.
_REVISIONS: Final = struct.Struct("<qq")


class Recent:
    """The messages looked at lately, by id: two generations; the older one goes when the younger is full."""

    __slots__ = ("_old", "_young")

    def __init__(self) -> None:
        self._young: dict[str, Any] = {}
        self._old: dict[str, Any] = {}

    def get(self, id: str) -> Any:
        """Return a message or None."""
        found = self._young.get(id)
        if found is None and (found := self._old.pop(id, None)) is not None:
            self._young[id] = found
        return found

    def put(self, id: str, message: Any) -> None:
        """Keep a message for a while."""
        if len(self._young) >= RECENT_MAX:
            self._young, self._old = {}, self._young
        self._young[id] = message

    def forget(self, id: str) -> None:
        """It is another one now."""
        self._young.pop(id, None)
        self._old.pop(id, None)


class Table:
    """All records of one kind, with its indexes: index name -> value -> id, or sorted ids where there are several."""

    def __init__(self, kind: Kind[Message]) -> None:
        self.kind = kind
        self._parse = kind.message.FromString
        self._rows: dict[str, bytes] = {}
        self._recent = Recent()
        self._extracts = INDEXES.get(kind.name, {})
        self._indexes: dict[str, dict[str, str | list[str]]] = {name: {} for name in self._extracts}
        self.sums = Sums(kind.name) if kind.name in COUNTED else None
        self.unreadable: dict[str, Unreadable] = {}
        # Grows with each change.
        self.changes = 0

    def put(self, id: str, value: bytes, mod_revision: int, create_revision: int) -> Any:
        """Write a record; return how it looked, None: it was not there, or no index. Raises DecodeError, changing nothing."""
        message, before = self._parse(value), None
        self.changes += 1
        if id in self._rows:
            before = self.get(id) if self._extracts else None
            for name, extract in self._extracts.items():
                self._move(self._indexes[name], id, set(extract(id, before)), set(extract(id, message)))
            self._recent.forget(id)
        else:
            before = None
            for name, extract in self._extracts.items():
                _add(self._indexes[name], extract(id, message), id)
        if self.sums is not None:
            self.sums.move(before, message)
        self._rows[id] = _REVISIONS.pack(mod_revision, create_revision) + value
        self.unreadable.pop(id, None)
        return before

    def keep(self, id: str, revision: int, error: str) -> None:
        """Take note that a record cannot be decoded: what it was before, if anything, stays."""
        self.unreadable[id] = Unreadable(revision, error, kept=id in self._rows)
        self.changes += 1

    def seen(self, id: str) -> int:
        """Return the revision it is at in the store, readable or not; 0 when absent."""
        found = self.unreadable.get(id)
        return self.revision_of(id) if found is None else found.revision

    def stored(self) -> Iterable[str]:
        """Return all ids the store has, readable or not."""
        return self._rows.keys() | self.unreadable.keys() if self.unreadable else self._rows.keys()

    def delete(self, id: str) -> Any:
        """Remove a record; return its message, None when it was not there."""
        self.unreadable.pop(id, None)
        self.changes += 1
        before = self.get(id)
        if before is None:
            return None
        for name, extract in self._extracts.items():
            self._move(self._indexes[name], id, set(extract(id, before)), set())
        if self.sums is not None:
            self.sums.move(before, None)
        self._recent.forget(id)
        del self._rows[id]
        return before

    @staticmethod
    def _move(index: dict[str, str | list[str]], id: str, old: set[str], new: set[str]) -> None:
        """Find a record under other values from now on. A list for a single id would take as much as the record."""
        for value in old - new:
            ids = index[value]
            if isinstance(ids, str):
                del index[value]
                continue
            del ids[bisect_left(ids, id)]
            if len(ids) == 1:
                index[value] = ids[0]
        _add(index, new - old, id)

    def get(self, id: str) -> Any:
        """Return the message or None; the same object as long as it is looked at."""
        found = self._recent.get(id)
        if found is None and (row := self._rows.get(id)) is not None:
            found = self._parse(row[_REVISIONS.size :])
            self._recent.put(id, found)
        return found

    def record(self, id: str) -> Record[Any] | None:
        """Return the message with its revisions, or None."""
        row = self._rows.get(id)
        return None if row is None else Record(self.get(id), *_REVISIONS.unpack_from(row))

    def revision_of(self, id: str) -> int:
        """Return the revision that changed it, 0 when absent."""
        row = self._rows.get(id)
        revision: int = 0 if row is None else _REVISIONS.unpack_from(row)[0]
        return revision

    def ids(self) -> Iterable[str]:
        """Return all ids, in no order."""
        return self._rows.keys()

    def all(self) -> Iterator[Any]:
        """Yield all messages, in no order. Who looks at all of them looks at none again soon: none is kept for that."""
        for id, row in self._rows.items():
            found = self._recent.get(id)
            yield self._parse(row[_REVISIONS.size :]) if found is None else found

    def pinned(self, ids: Iterable[str]) -> Iterator[Record[Any]]:
        """Yield records as they are now: rows are replaced, never changed, so holding them is a picture."""
        # No pairs: a hundred thousand of them are work for the garbage collector before the first is looked at.
        all_ids = list(ids)
        rows = list(map(self._rows.get, all_ids))
        return (self._pinned(id, row) for id, row in zip(all_ids, rows, strict=True) if row is not None)

    def _pinned(self, id: str, row: bytes) -> Record[Any]:
        found = self._recent.get(id) if self._rows.get(id) is row else None
        message = self._parse(row[_REVISIONS.size :]) if found is None else found
        return Record(message, *_REVISIONS.unpack_from(row))

    def by(self, index: str, value: str) -> list[str]:
        """Return a copy of the sorted ids."""
        ids = self._indexes[index].get(value, ())
        return [ids] if isinstance(ids, str) else list(ids)

    def count_by(self, index: str, value: str) -> int:
        """Return how many ids there are."""
        ids = self._indexes[index].get(value, ())
        return 1 if isinstance(ids, str) else len(ids)

    def values(self, index: str) -> Iterable[str]:
        """Return the values there are."""
        return self._indexes[index].keys()

    def __contains__(self, id: str) -> bool:
        return id in self._rows

    def __len__(self) -> int:
        return len(self._rows)


def _add(index: dict[str, str | list[str]], values: Iterable[str], id: str) -> None:
    """Find a record under these values, too."""
    for value in values:
        ids = index.setdefault(value, id)
        if ids is id:
            continue
        if isinstance(ids, str):
            if ids != id:
                index[value] = sorted((ids, id))
        elif ids[-1] < id:
            ids.append(id)
        elif ids[bisect_left(ids, id)] != id:
            insort(ids, id)


class LiveView:
    """The whole picture; the cache writes it, everybody else reads."""

    def __init__(self) -> None:
        self._revision = 0
        self._tables: dict[str, Table] = {}
        # Name -> (states of the tables it was made from, what was made).
        self._recalled: dict[str, tuple[tuple[int, ...], Any]] = {}

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

    def get(self, kind: Kind[M], id: str) -> M | None:
        """Return the record or None."""
        message: M | None = self.table(kind).get(id)
        return message

    def record(self, kind: Kind[M], id: str) -> Record[M] | None:
        """Return the record with its revisions, or None."""
        return self.table(kind).record(id)

    def revision_of(self, kind: Kind[M], id: str) -> int:
        """Return its mod revision, 0 when absent."""
        return self.table(kind).revision_of(id)

    def ids(self, kind: Kind[M]) -> Iterable[str]:
        """Return all ids of a kind, in no order."""
        return self.table(kind).ids()

    def all(self, kind: Kind[M]) -> Iterable[M]:
        """Return all records of a kind, in no order."""
        return self.table(kind).all()

    def by(self, kind: Kind[M], index: str, value: str) -> list[str]:
        """Return the ids whose index has that value, sorted."""
        return self.table(kind).by(index, value)

    def count(self, kind: Kind[M]) -> int:
        """Return how many records of a kind there are."""
        return len(self.table(kind))

    def count_by(self, kind: Kind[M], index: str, value: str) -> int:
        """Return how many ids have that value in an index."""
        return self.table(kind).count_by(index, value)

    def values(self, kind: Kind[M], index: str) -> Iterable[str]:
        """Return the values there are in an index, in no order."""
        return self.table(kind).values(index)

    def amounts(self, project: str) -> dict[str, int]:
        """Return what a project has, by the names of quotas (sums.py)."""
        found: dict[str, int] = {}
        for name in COUNTED:
            table = self._tables.get(name)
            if table is not None and table.sums is not None:
                added(found, table.sums.of(project))
        return found

    def pinned(self, kind: Kind[M], ids: Iterable[str]) -> Iterator[Record[M]]:
        """Yield those of these records that are there as they are now, also when the picture moves on meanwhile."""
        return self.table(kind).pinned(ids)

    def unreadable(self, kind: Kind[M]) -> Mapping[str, Unreadable]:
        """Return the records of a kind that cannot be decoded, by id."""
        return self.table(kind).unreadable

    @property
    def harmed(self) -> bool:
        """Whether there is any record that cannot be decoded."""
        return any(table.unreadable for table in self._tables.values())

    def recall(self, name: str, about: Sequence[Kind[Any]], make: Callable[[], T]) -> T:
        """Return make(), remembered by its name until a record of those kinds changes."""
        states = tuple([self.table(kind).changes for kind in about])
        found = self._recalled.get(name)
        if found is None or found[0] != states:
            if len(self._recalled) >= RECENT_MAX:
                self._recalled.clear()
            found = self._recalled[name] = (states, make())
        made: T = found[1]
        return made

    def fork(self, txn: Txn) -> View:
        """Return a picture as if txn had been committed."""
        return Fork(self, txn)


class Slot:
    """One record a fork shows: bytes until first looked at."""

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
            before = self.record(kind, id)
            created = self._revision if before is None else before.create_revision
            self._changed.setdefault(kind.name, {})[id] = Slot(put.value, self._revision, created)

    @property
    def revision(self) -> int:
        """One more than the parent's had been."""
        return self._revision

    def get(self, kind: Kind[M], id: str) -> M | None:
        """Return the record or None."""
        changed = self._changed.get(kind.name)
        if changed is None or id not in changed:
            return self._parent.get(kind, id)
        slot = changed[id]
        return None if slot is None else slot.message(kind)

    def record(self, kind: Kind[M], id: str) -> Record[M] | None:
        """Return the record with its revisions, or None."""
        changed = self._changed.get(kind.name)
        if changed is None or id not in changed:
            return self._parent.record(kind, id)
        slot = changed[id]
        return None if slot is None else Record(slot.message(kind), slot.mod_revision, slot.create_revision)

    def revision_of(self, kind: Kind[M], id: str) -> int:
        """Return its mod revision, 0 when absent."""
        changed = self._changed.get(kind.name)
        if changed is None or id not in changed:
            return self._parent.revision_of(kind, id)
        slot = changed[id]
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
            message = self.get(kind, id)
            if message is not None:
                yield message

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
        before = sum(self._parent.revision_of(kind, id) != 0 for id in changed)
        after = sum(slot is not None for slot in changed.values())
        return self._parent.count(kind) - before + after

    def count_by(self, kind: Kind[M], index: str, value: str) -> int:
        """Return how many ids have that value in an index. O(what the transaction changed)."""
        extract, changed = INDEXES[kind.name][index], self._changed.get(kind.name, {})
        before = sum(old is not None and value in extract(id, old) for id in changed for old in (self._parent.get(kind, id),))
        after = sum(slot is not None and value in extract(id, slot.message(kind)) for id, slot in changed.items())
        return self._parent.count_by(kind, index, value) - before + after

    def values(self, kind: Kind[M], index: str) -> Iterable[str]:
        """Return the values there are in an index, in no order; those that the transaction took away, too."""
        extract, changed = INDEXES[kind.name][index], self._changed.get(kind.name, {})
        came = (value for id, slot in changed.items() if slot is not None for value in extract(id, slot.message(kind)))
        return dict.fromkeys((*self._parent.values(kind, index), *came))

    def amounts(self, project: str) -> dict[str, int]:
        """Return what a project has, by the names of quotas. O(what the transaction changed)."""
        found = self._parent.amounts(project)
        for name, counted in COUNTED.items():
            kind = kinds.BY_NAME[name]
            for id, slot in self._changed.get(name, {}).items():
                before: Any = self._parent.get(kind, id)
                after: Any = slot.message(kind) if slot is not None else None
                for message, sign in ((before, -1), (after, 1)):
                    if message is not None and project in holders(name, message):
                        added(found, counted(message), sign)
        return {name: amount for name, amount in found.items() if amount}

    def pinned(self, kind: Kind[M], ids: Iterable[str]) -> Iterator[Record[M]]:
        """Yield those of these records that are there as they are now."""
        return iter([record for id in ids if (record := self.record(kind, id)) is not None])

    def unreadable(self, kind: Kind[M]) -> Mapping[str, Unreadable]:
        """Return the records of a kind that cannot be decoded, by id: nothing that is decided changes that."""
        return self._parent.unreadable(kind)

    @property
    def harmed(self) -> bool:
        """Whether there is any record that cannot be decoded."""
        return self._parent.harmed

    def recall(self, name: str, about: Sequence[Kind[Any]], make: Callable[[], T]) -> T:
        """Return make(): what the parent remembers, unless the transaction changed a record of those kinds."""
        return make() if any(self._changed.get(kind.name) for kind in about) else self._parent.recall(name, about, make)

    def fork(self, txn: Txn) -> View:
        """Return a picture as if txn had been committed after this one's."""
        return Fork(self, txn)
