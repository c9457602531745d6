"""Guests that controllers say no more of, many at once: doubted, so the node goes on managing them (docs/decisions/0025). Pure.

What must go is sent with `absent`; that a guest is not spoken of any more is never a wish, only a sign that records were lost.
Of a few the node lets go, and they are unknown (docs/decisions/0013): guests that crash then stay down until somebody looks.
Were that true of many, a fault of the records would become an outage at the next power cut. So those that would be one too many
stay desired as they were told last, until they are spoken of again or removed by word. A restored store is another matter: it
is known to lack what was made since its backup, and may know of another place for a guest.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from cairn.proto.v1.agent_pb2 import SyncResponse, Upsert

# So many unknown guests are too many for one node, whatever its size: no wish of anybody's makes even one.
DOUBTED_MIN: Final = 4

Objects = Mapping[str, Upsert]


def is_guest(key: str, objects: Objects) -> bool:
    """Tell whether there is a guest under a key that is to be."""
    return key in objects and objects[key].object.HasField("vm") and not objects[key].object.vm.absent


def doubted(dropped: Iterable[str], desired: Objects, unknown: Objects) -> set[str]:
    """Return which of the keys that are spoken of no more stay desired: all guests among them, or none."""
    guests = {key for key in dropped if is_guest(key, desired)}
    if not guests:
        return guests
    let_go = sum(is_guest(key, unknown) for key in unknown)
    return guests if len(guests) + let_go >= DOUBTED_MIN else set()


def taken_back(messages: Iterable[SyncResponse], desired: Objects) -> set[str]:
    """Return the keys that these messages, one after the other, end up saying no more of, and never said to be absent."""
    last = dict[str, Upsert | None]()
    for message in messages:
        if message.HasField("upsert"):
            last[message.upsert.key] = message.upsert
        elif message.HasField("remove"):
            key = message.remove.key
            known = last.get(key) or desired.get(key)
            last[key] = known if known is not None and known.object.vm.absent else None
    return {key for key, word in last.items() if word is None}
