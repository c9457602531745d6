"""A View that does not answer "there is none" for a record that cannot be read: it raises.

For questions whose wrong answer would destroy something. Lists and indexes are as in the view beneath: what they lack because
it cannot be read is for the asker to know (nodespec.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from cairn.controller.store.base import Record, Txn, Unreadable, View
from cairn.proto.kinds import Kind
from google.protobuf.message import Message

M = TypeVar("M", bound=Message)
T = TypeVar("T")


class CannotTell(Exception):
    """A question cannot be answered now; the text says why, and `record` ("vm/i-...") what must be read first, if it is one."""

    def __init__(self, say: str, record: str = "") -> None:
        super().__init__(say)
        self.record = record


class Readable:
    """See the module; otherwise the view it is made of."""

    def __init__(self, view: View) -> None:
        self._view = view

    @property
    def revision(self) -> int:
        """Store revision of the picture."""
        return self._view.revision

    def get(self, kind: Kind[M], id: str) -> M | None:
        """Return the record or None. Raises CannotTell."""
        found = self._view.get(kind, id)
        if found is None and id in self._view.unreadable(kind):
            raise CannotTell(f"{kind.name} {id} cannot be read", f"{kind.name}/{id}")
        return found

    def record(self, kind: Kind[M], id: str) -> Record[M] | None:
        """Return the record with its revisions, or None. Raises CannotTell."""
        self.get(kind, id)
        return self._view.record(kind, id)

    def revision_of(self, kind: Kind[M], id: str) -> int:
        """Return its mod revision, 0 when absent."""
        return self._view.revision_of(kind, id)

    def ids(self, kind: Kind[M]) -> Iterable[str]:
        """Return all ids of a kind, in no order."""
        return self._view.ids(kind)

    def all(self, kind: Kind[M]) -> Iterable[M]:
        """Return all records of a kind, in no order."""
        return self._view.all(kind)

    def by(self, kind: Kind[M], index: str, value: str) -> list[str]:
        """Return the ids whose index has that value, sorted."""
        return self._view.by(kind, index, value)

    def count(self, kind: Kind[M]) -> int:
        """Return how many records of a kind there are."""
        return self._view.count(kind)

    def count_by(self, kind: Kind[M], index: str, value: str) -> int:
        """Return how many ids have that value in an index."""
        return self._view.count_by(kind, index, value)

    def amounts(self, project: str) -> dict[str, int]:
        """Return what a project has."""
        return self._view.amounts(project)

    def values(self, kind: Kind[M], index: str) -> Iterable[str]:
        """Return the values there are in an index, in no order."""
        return self._view.values(kind, index)

    def pinned(self, kind: Kind[M], ids: Iterable[str]) -> Iterator[Record[M]]:
        """Yield those of these records that are there, as they all are at the call."""
        return self._view.pinned(kind, ids)

    def unreadable(self, kind: Kind[M]) -> Mapping[str, Unreadable]:
        """Return the records of a kind that cannot be decoded, by id."""
        return self._view.unreadable(kind)

    @property
    def harmed(self) -> bool:
        """Whether there is any record that cannot be decoded."""
        return self._view.harmed

    def recall(self, name: str, about: Sequence[Kind[Any]], make: Callable[[], T]) -> T:
        """Return make(), remembered by its name until a record of those kinds changes."""
        return self._view.recall(name, about, make)

    def fork(self, txn: Txn) -> View:
        """Return a picture as if txn had been committed."""
        return Readable(self._view.fork(txn))
