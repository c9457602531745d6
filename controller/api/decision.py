"""What a mutation decides, and what it decides on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from cairn.controller.api.nouns import Noun
from cairn.controller.model.permits import Caller
from cairn.controller.store.base import Txn, View
from google.protobuf.message import Message

M = TypeVar("M", bound=Message)


class Views(Protocol):
    """What the API needs of the cache."""

    @property
    def view(self) -> View:
        """The newest picture."""
        ...

    async def wait_for(self, revision: int) -> None:
        """Return once view.revision is at least that."""
        ...

    def committed(self, txn: Txn, revision: int) -> None:
        """Show a commit of ours at once, if it is the next after what the view shows."""
        ...


@dataclass(slots=True)
class Decided(Generic[M]):
    """A transaction and the object it is about.

    erased: the object as it last was, when the transaction removes it; it is the answer then. events: (reason, sentence).
    who: name of the user whose doing it is, when that is found out by deciding; empty: the caller.
    """

    txn: Txn
    noun: Noun[M]
    id: str
    name: str = ""
    project: str = ""
    erased: M | None = None
    events: list[tuple[str, str]] = field(default_factory=list)
    who: str = ""


# A function of the picture and of who asks: what he may not see does not exist in it.
Decide = Callable[[View, Caller], Decided[M]]
