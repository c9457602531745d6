"""Event records: ids that sort by time, and the transaction part that writes them.

An event is written in the transaction it explains, so there is none of something that did not happen, and it vanishes with its
lease. Beside it a reference is written under the id of its object, so that what happened to one object is found without looking
at the rest. No view has either (decision 0024); neither is checked, since ids are unique and a repeated write writes the same.
The id is "ev-", eight base-36 digits of milliseconds since 1970 (enough until 2059) and four random ones.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Final, Protocol

from cairn.controller.model.happening import EventSpec
from cairn.controller.store.base import Txn
from cairn.proto import kinds
from cairn.proto.seams import ID_ALPHABET, Ids, timestamp
from cairn.proto.v1.event_pb2 import Event, EventRef

_TIME_DIGITS: Final = 8
_RANDOM_DIGITS: Final = 4
# Records of an event.
RECORDS: Final = 2
# Of both besides their texts: keys, ids, time, actor, fields' tags.
_FRAME_BYTES: Final = 256


class Leases(Protocol):
    """Where leases for records that vanish by themselves come from. controller/retention.py is one."""

    async def lease(self, records: int = 1) -> int:
        """Return a lease id for that many records of one commit. Raises Unavailable."""
        ...

    def forget(self) -> None:
        """The store does not know that lease any more: take another next time."""
        ...


def event_id(now: datetime, ids: Ids) -> str:
    """Return a fresh id; ids made later sort later."""
    number, digits = int(now.timestamp() * 1000), ""
    for _ in range(_TIME_DIGITS):
        number, digit = divmod(number, len(ID_ALPHABET))
        digits = ID_ALPHABET[digit] + digits
    return f"{kinds.EVENT.id_prefix}-{digits}{ids.new('')[-_RANDOM_DIGITS:]}"


def bytes_of(specs: Iterable[EventSpec]) -> int:
    """Return at most how many bytes the records of events take."""
    return sum(_FRAME_BYTES + sum(len(text.encode()) for text in _texts(spec)) for spec in specs)


def _texts(spec: EventSpec) -> tuple[str, ...]:
    # The object is in the event, and in the reference's key.
    return spec.object, spec.object, spec.name, spec.project, spec.reason, spec.message, spec.node


def add(txn: Txn, event: Event, lease: int) -> None:
    """Add an event to a transaction, and the reference to it."""
    txn.put(kinds.EVENT, event.id, event, lease=lease)
    if event.object:
        txn.put(kinds.EVENT_OF, f"{event.object}/{event.id}", EventRef(event=event.id), lease=lease)


def tell(txn: Txn, specs: Iterable[EventSpec], *, now: datetime, ids: Ids, lease: int) -> None:
    """Add events to a transaction; its writer is who tells."""
    stamp = timestamp(now)
    for spec in specs:
        event = Event(
            id=event_id(now, ids),
            project=spec.project,
            event_time=stamp,
            object=spec.object,
            object_name=spec.name,
            reason=spec.reason,
            message=spec.message,
            node=spec.node,
            actor=txn.writer,
            warning=spec.warning,
        )
        add(txn, event, lease)
