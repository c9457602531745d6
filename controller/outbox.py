"""What one node was sent, and what it has to be sent now. Pure: no stream, no clock.

    outbox.touch(keys)                               these objects of its own may be different
    parcel = outbox.take(view, presence)             what differs, of some of them, and all that is shared and new
    for message in outbox.messages(parcel, version): ...    as gRPC carries it, bounded in bytes

Of a node's own objects the hash of what was sent last is remembered; of what it shares with the other nodes of a VPC only how
far it was sent (shared.py).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final

from cairn.controller.model.readable import CannotTell
from cairn.controller.nodespec import desired, own_keys, unsure, with_peers
from cairn.controller.presence import Presence
from cairn.controller.shared import NOTHING, Shared, difference
from cairn.controller.store.base import View
from cairn.proto.capabilities import BEFORE_CAPABILITIES, CARDS, CHANGES, DISK_SIZES, desired_kind, without_cards, without_sizes
from cairn.proto.v1.agent_pb2 import Bookmark, Changes, Desired, Remove, SyncResponse, Upsert, Version

Opened = Callable[[str, Desired], Desired | None]
# Own objects computed before others may run.
CHUNK: Final = 200
# Of upserts in one message: gRPC's limit is some MiB, and an agent takes in a message at once.
MESSAGE_BYTES_MAX: Final = 256 << 10
REMOVES_MAX: Final = 2000
# What is needed first, first.
_ORDER: Final = {kind: rank for rank, kind in enumerate(("image", "volume", "network", "port", "forward", "vm"))}


@dataclass(slots=True)
class Parcel:
    """What to send: upserts without versions, serialised; keys to remove, of which `own` are the node's alone."""

    upserts: list[bytes] = field(default_factory=list)
    removes: list[str] = field(default_factory=list)
    own: list[str] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.upserts or self.removes)


class Outbox:
    """One node's."""

    def __init__(self, node: str, capabilities: Collection[str], opened: Opened = lambda _key, object: object) -> None:
        """opened: gives an object with its secrets, None when it cannot and the node is to be told nothing of it."""
        self._opened = opened
        self._node = node
        known = frozenset(capabilities) or BEFORE_CAPABILITIES
        self._whole, self._peers = CHANGES in known, desired_kind("peer") in known
        self._cards, self._sizes = CARDS in known, DISK_SIZES in known
        # Beginnings of shared keys that its agent knows.
        self._known = tuple(f"{kind}/" for kind in ("forward", "peer") if desired_kind(kind) in known)
        # Key -> hash of what was sent last, of the node's own objects.
        self.sent: dict[str, int] = {}
        # VPC -> what of it was sent, and how far.
        self._shared: dict[str, tuple[Shared, int]] = {}
        self._touched: dict[str, None] = {}
        # Keys and kinds ("forward/") of which cannot be told whether the node must hold them: it keeps what it has.
        self.kept: set[str] = set()
        # What of that is because of records that cannot be read: once that changes, a snapshot tells more.
        self.unsure: frozenset[str] = frozenset()

    @property
    def pending(self) -> bool:
        """Whether own objects wait to be looked at."""
        return bool(self._touched)

    def touch(self, keys: Iterable[str]) -> None:
        """These objects may be different now."""
        self._touched.update(dict.fromkeys(keys))

    def touch_shared(self, vpcs: Iterable[str]) -> list[str]:
        """What these VPCs share is different now. Return those of which the next change has to be told, too.

        An agent that does not know peers has them in its networks, which are looked at key by key: once is not enough.
        """
        told = [vpc for vpc in vpcs if vpc in self._shared] if not self._peers else []
        self.touch(f"network/{vpc}" for vpc in told)
        return told

    def begin(self, view: View, presence: Presence) -> None:
        """Look at everything, as if nothing had been sent: the node is to be sent a snapshot."""
        self.sent.clear()
        self._shared.clear()
        self.unsure = unsure(view)
        self.kept.clear()
        self.kept.update(self.unsure)
        self._touched = dict.fromkeys(sorted(set(own_keys(view, presence, self._node)), key=_rank))

    def is_sure_again(self, view: View) -> bool:
        """Tell whether more can be told now than when the snapshot was sent, of records that could not be read then."""
        return bool(self.unsure) and self.unsure != unsure(view)

    def take(self, view: View, presence: Presence) -> Parcel:
        """Return what differs of some of the touched objects, and all that is new of what is shared."""
        parcel = Parcel()
        for key in sorted(self._touched, key=_rank)[:CHUNK]:
            del self._touched[key]
            try:
                self._take(key, self._object(view, presence, key), parcel)
            except CannotTell:
                self.kept.add(key)
        if not self._touched:
            self._take_shared(presence, parcel)
        return parcel

    def _object(self, view: View, presence: Presence, key: str) -> Desired | None:
        object = desired(view, presence, self._node, key, told=key in self.sent)
        if object is not None and not self._peers and object.HasField("network"):
            object = Desired(network=with_peers(view, presence, self._node, object.network))
        return object if object is None or self._sizes else without_sizes(object)

    def _take(self, key: str, object: Desired | None, parcel: Parcel) -> None:
        kept = key in self.kept
        self.kept.discard(key)
        if object is None:
            if self.sent.pop(key, None) is not None or kept:
                parcel.removes.append(key)
                parcel.own.append(key)
            return
        digest = hash(object.SerializeToString(deterministic=True))
        if self.sent.get(key) == digest:
            return
        self.sent[key] = digest
        told = self._opened(key, object)
        if told is None:
            self.kept.add(key)
        else:
            parcel.upserts.append(Upsert(key=key, object=told).SerializeToString(deterministic=True))

    def _take_shared(self, presence: Presence, parcel: Parcel) -> None:
        here = presence.vpcs_on(self._node)
        for vpc in here:
            now, (sent, number) = presence.shared(vpc), self._shared.get(vpc, (NOTHING, 0))
            if now is not sent or now.last != number:
                self._send_difference(sent, number, now, parcel)
                self._shared[vpc] = now, now.last
        if len(self._shared) > len(here):
            for vpc in [vpc for vpc in self._shared if vpc not in here]:
                self._send_difference(*self._shared.pop(vpc), NOTHING, parcel)

    def _send_difference(self, sent: Shared, number: int, now: Shared, parcel: Parcel) -> None:
        for key, upsert in difference(sent, number, now, self._node):
            if not upsert:
                parcel.removes.append(key)
            elif key.startswith(self._known):
                parcel.upserts.append(upsert)

    def messages(self, parcel: Parcel, version: Version, *, complete: bool) -> Iterator[SyncResponse]:
        """Yield what to send. complete: with it, everything up to the version has been sent."""
        if not self._cards:
            # Parsed and made again for each such node, as long as there are any.
            parcel = Parcel([_without_cards(each) for each in parcel.upserts], parcel.removes, parcel.own)
        if not self._whole:
            yield from _single(parcel, version, complete=complete)
            return
        removes = [parcel.removes[at : at + REMOVES_MAX] for at in range(0, len(parcel.removes), REMOVES_MAX)]
        upserts = list(_lots(parcel.upserts))
        count = max(len(removes), len(upserts), 1 if complete else 0)
        for number in range(count):
            yield SyncResponse(
                changes=Changes(
                    version=version,
                    upserts=upserts[number] if number < len(upserts) else (),
                    removes=removes[number] if number < len(removes) else (),
                    complete=complete and number == count - 1,
                )
            )


def _without_cards(content: bytes) -> bytes:
    upsert = Upsert.FromString(content)
    upsert.object.CopyFrom(without_cards(upsert.object))
    return upsert.SerializeToString(deterministic=True)


def _lots(upserts: list[bytes]) -> Iterator[list[bytes]]:
    """Divide what is too much for one message."""
    lot: list[bytes] = []
    size_bytes = 0
    for upsert in upserts:
        if lot and size_bytes + len(upsert) > MESSAGE_BYTES_MAX:
            yield lot
            lot, size_bytes = [], 0
        lot.append(upsert)
        size_bytes += len(upsert)
    if lot:
        yield lot


def _single(parcel: Parcel, version: Version, *, complete: bool) -> Iterator[SyncResponse]:
    """Yield a message per object, for agents that know no other."""
    for key in parcel.removes:
        yield SyncResponse(remove=Remove(key=key, version=version))
    for content in parcel.upserts:
        upsert = Upsert.FromString(content)
        upsert.version.CopyFrom(version)
        yield SyncResponse(upsert=upsert)
    if complete:
        yield SyncResponse(bookmark=Bookmark(version=version))


def _rank(key: str) -> tuple[int, str]:
    return _ORDER[key.partition("/")[0]], key
