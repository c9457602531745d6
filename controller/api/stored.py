"""Records that are in no view (Kind.cached): looked up in the store by the few who ask, as they are at one revision."""

from __future__ import annotations

from typing import TypeVar

from cairn.controller.store.base import Compacted, Store, Unavailable
from cairn.proto.errors import TryAgain
from cairn.proto.kinds import Kind
from cairn.proto.log import logger
from google.protobuf.message import DecodeError, Message

_log = logger("api")
M = TypeVar("M", bound=Message)


async def stored(store: Store, revision: int, kind: Kind[M], id: str) -> M | None:
    """Return a record as it is at a revision; None: there is none, or it cannot be read, which is logged. Raises TryAgain."""
    key = kind.key(id)
    try:
        items, _ = await store.read(key, end=key + "\0", limit=1, revision=revision)
    except (Compacted, Unavailable) as error:
        raise TryAgain(f"the store does not answer: {error}") from error
    try:
        return kind.message.FromString(items[0].value) if items else None
    except DecodeError as error:
        _log.error("record_unreadable", key=key, revision=items[0].mod_revision, error=str(error))
        return None
