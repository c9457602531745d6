"""Records read from the store as they are at one revision: those that are in no view (Kind.cached), and later pages of a list.

Events about one object are found by their references (controller/events.py): a look at each of them, at none of others.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any, Final, TypeVar

from cairn.controller.api.selection import Selection, Turns
from cairn.controller.outage import refusal
from cairn.controller.store.base import Compacted, Item, Record, Store, Unavailable
from cairn.proto import kinds
from cairn.proto.errors import OutOfRange
from cairn.proto.kinds import Kind
from cairn.proto.log import logger
from google.protobuf.message import DecodeError, Message

_log = logger("api")
M = TypeVar("M", bound=Message)
# Records read at a time, and those looked up at a time by their keys.
READ_MAX: Final = 256
KEYED_MAX: Final = 64


def parsed(kind: Kind[M], key: str, value: bytes) -> M | None:
    """Return a record's message; None, and a line in the log, when its bytes are none."""
    try:
        return kind.message.FromString(value)
    except DecodeError as error:
        _log.error("record_unreadable", key=key, error=str(error))
        return None


async def stored(store: Store, revision: int, kind: Kind[M], id: str) -> M | None:
    """Return a record as it is at a revision; None: there is none, or it cannot be read. Raises OutOfRange, TryAgain."""
    items = await _keyed(store, [kind.key(id)], revision)
    return parsed(kind, items[0].key, items[0].value) if items else None


async def selected(store: Store, selection: Selection, revision: int, after: str = "") -> AsyncGenerator[Record[Any], None]:
    """Yield the records to look at, after an id, in the order of ids. Raises OutOfRange, TryAgain."""
    kind, turns = selection.noun.kind, Turns()
    async with aclosing(_pages(store, selection, revision, after)) as pages:
        async for items in pages:
            for item in items:
                if turns.over:
                    await turns.next()
                message: Any = parsed(kind, item.key, item.value)
                if message is not None:
                    yield Record(message, item.mod_revision, item.create_revision)


async def _pages(store: Store, selection: Selection, revision: int, after: str) -> AsyncGenerator[list[Item], None]:
    kind = selection.noun.kind
    if selection.only:
        yield await _keyed(store, [kind.key(selection.only)] if selection.only > after else [], revision)
        return
    about = kinds.EVENT_OF.key(f"{selection.about}/") if selection.about else ""
    prefix, limit = about or kind.prefix, KEYED_MAX if about else READ_MAX
    start = f"{prefix}{after}\0"
    while True:
        items = await _read(store, prefix, start, limit, revision)
        yield await _keyed(store, [kind.key(item.key.rpartition("/")[2]) for item in items], revision) if about else items
        if len(items) < limit:
            return
        start = items[-1].key + "\0"


async def _keyed(store: Store, keys: Sequence[str], revision: int) -> list[Item]:
    """Return the records that are there of these keys."""
    found = await asyncio.gather(*(_read(store, key, key, 1, revision) for key in keys))
    return [item for key, items in zip(keys, found, strict=True) for item in items if item.key == key]


async def _read(store: Store, prefix: str, start: str, limit: int, revision: int) -> list[Item]:
    try:
        items, _ = await store.read(prefix, start=start, limit=limit, revision=revision)
    except Compacted as error:
        raise OutOfRange(f"revision {revision} is no longer kept: list again from the first page") from error
    except Unavailable as error:
        raise refusal(error) from error
    return items
