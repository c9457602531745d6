"""What this node was told to hold: the desired state as last accepted, durable before anything is done about it.

One append-only log (journal.py) of payloads whose first byte says what they are: an accepted SyncResponse, a note, a
whole-snapshot marker or a warning. Nothing that is changed here shows before it is durable, so the agent can be killed at any
time and its successor knows at least what it acted on. A torn tail (power was lost during an append that nobody acted on) is
cut on load. Changes are written in the order they were handed in, many with one sync, and the loop goes on meanwhile.

Invariants: the version held never goes back, neither for the whole nor for a key; a snapshot is accepted whole or not at all
(it is a new file, renamed into place). `synced` says that a complete snapshot has ever been accepted: before that nothing is
known, so nothing may be undone. `trusted` says the log was never cut since the last snapshot: only then what is not in it
counts as not desired.

What was desired and is no longer, without having been said to be `absent`, is *unknown*: its last object is kept, as is all
that a guest among it needs of networks, until it is desired again or forgotten: kept.py decides (docs/decisions/0013). Of
many guests at once that is not believed: they stay desired, and are `doubted` (doubt.py, docs/decisions/0025).

After a restore the last word of before may stay in force where a restored object contradicts it (last_word.py): then that is
the desired object, and the restored one waits in `overruled`. For the same reason the last words that had something removed
are remembered, the newest few thousand of them.

Notes are the agent's own memory per key, lost with the key: what the controller cannot know and the world does not show.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

from cairn.agent.doubt import doubted, is_guest, taken_back
from cairn.agent.journal import Entry, Journal
from cairn.agent.kept import SUBNETS, concerned, is_administered, lacking, leads_elsewhere, left_over, stays, subnets_needed
from cairn.agent.last_word import is_absent, overrules
from cairn.proto.keys import UNSETTLED, covers
from cairn.proto.seams import Disk
from cairn.proto.v1.agent_pb2 import Desired, SyncResponse, Upsert, Version

NAME: Final = "ledger"
# Last words about what was removed that are remembered.
REMOVED_MAX: Final = 5000
_MESSAGE, _NOTE, _SYNCED, _CUT, _UNKNOWN, _FORGET = b"M", b"N", b"S", b"C", b"U", b"F"
_OVERRULED, _REMOVED, _YIELD, _DOUBT = b"O", b"R", b"Y", b"D"

Order = tuple[int, int]
Note = Mapping[str, Any]
Objects = Mapping[str, Upsert]
Changed = Callable[[set[str]], None]


class StaleVersion(Exception):
    """The controller sent something older than what is held; nothing of it was accepted."""


def order(version: Version) -> Order:
    """Return a version as something that compares: epoch first."""
    return (version.epoch, version.revision)


@dataclass(frozen=True, slots=True)
class _Said:
    """All that a ledger holds, by key."""

    desired: dict[str, Upsert]
    unknown: dict[str, Upsert]
    overruled: dict[str, Upsert]
    removed: dict[str, Upsert]
    notes: dict[str, Note]
    doubted: frozenset[str]


class Ledger:
    """The log and what it says. Errors of the disk are OSError; after one nothing was accepted, noted or forgotten."""

    def __init__(self, disk: Disk) -> None:
        self._journal = Journal(disk, NAME, self._whole, self._live_bytes)
        self._desired: dict[str, Upsert] = {}
        self._unknown: dict[str, Upsert] = {}
        self._overruled: dict[str, Upsert] = {}
        self._removed: dict[str, Upsert] = {}
        self._notes: dict[str, Note] = {}
        self._doubted: frozenset[str] = frozenset()
        self.held: Order = (0, 0)
        self.synced = False
        self.trusted = True

    @property
    def desired(self) -> Mapping[str, Upsert]:
        """The accepted objects by key, each with the version it came with."""
        return MappingProxyType(self._desired)

    @property
    def unknown(self) -> Mapping[str, Upsert]:
        """What was desired once, was never said to be absent, and is not desired now: its last objects by key."""
        return MappingProxyType(self._unknown)

    @property
    def overruled(self) -> Mapping[str, Upsert]:
        """Restored objects that are not in force: what was told before the restore is desired in their place."""
        return MappingProxyType(self._overruled)

    @property
    def doubted(self) -> frozenset[str]:
        """Keys of guests that are desired though controllers say no more of them: too many to be believed."""
        return self._doubted

    def last(self, key: str) -> Desired | None:
        """Return a desired object, or the last one of what is unknown."""
        held = self._desired.get(key) or self._unknown.get(key)
        return held.object if held is not None else None

    def object(self, key: str) -> Desired | None:
        """Return a desired object, or None."""
        held = self._desired.get(key)
        return held.object if held is not None else None

    def note(self, key: str) -> Note:
        """Return what the agent noted about a key; empty when nothing."""
        return self._notes.get(key, {})

    async def load(self) -> None:
        """Read the log, cut what is torn. What cannot be made durable is known and not acted on, until a snapshot came."""
        durable = await self._journal.load(self._replay, _CUT)
        self.synced = self.synced and durable

    def watch(self, slow: Callable[[], None]) -> None:
        """Have it told, once for each write, that the disk takes longer than SLOW_S for it."""
        self._journal.slow = slow

    def waits_s(self, now_s: float) -> float:
        """Return for how long the disk has been busy with the write that runs at that loop time; 0: none does."""
        return self._journal.waits_s(now_s)

    async def close(self) -> None:
        """Write nothing more."""
        await self._journal.close()

    async def accept(self, messages: Iterable[SyncResponse], then: Changed | None = None) -> set[str]:
        """Take upserts, removes and bookmarks in order, durably; return the keys that changed.

        then: told the same in the step in which they changed, also when the caller was cancelled before. StaleVersion when one
        is older than what is held: then none of them is taken.
        """
        said, taken = list(messages), list[SyncResponse]()
        doubts: list[frozenset[str]] = []

        def begin() -> list[bytes]:
            self._check(said)
            back = doubted(taken_back(said, self._desired), self._desired, self._unknown)
            taken.extend(each for each in said if _position(each)[1] and each.remove.key not in back)
            doubts.append((self._doubted - {each.upsert.key for each in said}) | back)
            return [_MESSAGE + message.SerializeToString() for message in taken] + (_doubts(doubts[0]) if back else [])

        def end() -> set[str]:
            changed = set[str]().union(*(self._apply(message) for message in taken), doubts[0] - self._doubted)
            self._doubt(doubts[0])
            self.held = max([self.held, *(_position(message)[0] for message in said)])
            return _told(changed, then)

        return await self._journal.write(Entry(begin, end, first=True))

    def _check(self, messages: Iterable[SyncResponse]) -> None:
        held = self.held
        for message in messages:
            at, key = _position(message)
            known = max(held, self._version_of(key))
            if at < known:
                raise StaleVersion(f"{key or 'a bookmark'} came with version {at}, {known} is held")
            held = at

    async def accept_snapshot(
        self, version: Version, upserts: Iterable[Upsert], kept: Iterable[str] = (), then: Changed | None = None
    ) -> set[str]:
        """Make these objects the desired state, durably; return the keys that changed or went.

        kept: keys and kinds ("forward/") that stay desired as they were. then: as in `accept`. StaleVersion when the snapshot,
        or an object in it, is older than what is held.
        """
        at, objects, names = order(version), {each.key: each for each in upserts}, frozenset(kept)
        made: list[_Said] = []

        def begin() -> list[bytes]:
            made.append(self._said(at, objects, names))
            return _payloads(_synced(at), made[0])

        def end() -> set[str]:
            return _told(self._become(at, made[0]), then)

        return await self._journal.write(Entry(begin, end, anew=True))

    def _said(self, at: Order, objects: dict[str, Upsert], names: frozenset[str]) -> _Said:
        """Return what is held once a snapshot counts."""
        if at < self.held:
            raise StaleVersion(f"the snapshot has version {at}, {self.held} is held")
        for key, each in objects.items():
            if order(each.version) < self._version_of(key):
                raise StaleVersion(f"{key} came with version {order(each.version)}, {self._version_of(key)} is held")
        before = self._desired
        overruled = {key: each for key, each in objects.items() if overrules(self._known(key), each)}
        objects = objects | {key: known for key in overruled if (known := self._known(key)) is not None}
        objects |= {key: each for key, each in before.items() if key not in objects and covers(names, key)}
        doubts = self._doubts_of(objects, at)
        objects |= {key: before[key] for key in sorted(doubts)}
        restored, settled = at[0] > self.held[0], UNSETTLED not in names
        unknown = left_over(before, self._unknown, objects, self._overruled, restored=restored, settled=settled)
        notes = {key: note for key, note in self._notes.items() if key in objects or key in unknown}
        removed = {key: each for key, each in before.items() if key not in objects and is_absent(each.object)}
        removed = _newest({**{key: each for key, each in self._removed.items() if key not in objects}, **removed})
        return _Said(objects, unknown, overruled, removed, notes, doubts)

    def _doubts_of(self, objects: Objects, at: Order) -> frozenset[str]:
        """Return which guests that a snapshot lacks stay desired; those that were doubted before do in any case."""
        if at[0] > self.held[0]:
            return frozenset()
        dropped = self._desired.keys() - objects.keys()
        return frozenset(doubted(dropped, self._desired, self._unknown) | (self._doubted & dropped))

    def _become(self, at: Order, said: _Said) -> set[str]:
        before, unknown_before, doubted_before = self._desired, self._unknown, self._doubted
        self._doubted = said.doubted
        self._desired, self._unknown, self._notes = said.desired, said.unknown, said.notes
        self._overruled, self._removed = said.overruled, said.removed
        self.held, self.synced, self.trusted = at, True, True
        gone = (before.keys() - said.desired.keys()) | (unknown_before.keys() - said.unknown.keys())
        gone |= said.doubted ^ doubted_before
        gone |= {key for key, each in said.unknown.items() if key.startswith(SUBNETS) and unknown_before.get(key) != each}
        return gone | {key for key, each in said.desired.items() if key not in before or before[key] != each}

    async def yield_to(self, key: str) -> bool:
        """Let a restored object be in force after all, durably: what was to be removed is still there. False: it is already."""
        if key not in self._overruled:
            return False
        return await self._journal.write(Entry(lambda: [_YIELD + key.encode()], lambda: self._yield_to(key)))

    async def forget(self, keys: Iterable[str]) -> set[str]:
        """Forget, durably, what is unknown and not here any more; return the keys that went, also those that stayed for it."""
        gone = sorted(set(keys) & self._unknown.keys())
        if not gone:
            return set()
        return await self._journal.write(Entry(lambda: [_FORGET + json.dumps(gone).encode()], lambda: self._forget(gone)))

    async def write_note(self, key: str, note: Note | None) -> None:
        """Remember something about a key that is desired or unknown, durably; None: forget it. Else nothing is remembered."""
        if dict(self.note(key)) == dict(note or {}):
            return
        payload = _NOTE + json.dumps({"key": key, "note": note}, sort_keys=True).encode()
        await self._journal.write(Entry(lambda: [payload], lambda: self._set_note(key, note)))

    def _version_of(self, key: str) -> Order:
        known = self._overruled.get(key) or self._desired.get(key) or self._unknown.get(key)
        return order(known.version) if known is not None else (0, 0)

    def _known(self, key: str) -> Upsert | None:
        """Return the last word about something: what is in force, what is unknown, or that it be removed."""
        return self._desired.get(key) or self._unknown.get(key) or self._removed.get(key)

    def _replay(self, payload: bytes) -> None:
        kind, body = payload[:1], payload[1:]
        if kind == _MESSAGE:
            message = SyncResponse.FromString(body)
            self.held = max(self.held, _position(message)[0])
            self._apply(message)
        elif kind == _NOTE:
            document = json.loads(body)
            self._set_note(document["key"], document["note"])
        elif kind == _SYNCED:
            self.synced, self.held = True, max(self.held, order(Version.FromString(body)))
        elif kind == _CUT:
            self.trusted = False
        elif kind == _UNKNOWN:
            known = Upsert.FromString(body)
            self._unknown[known.key] = known
        elif kind == _FORGET:
            self._forget(json.loads(body))
        elif kind == _OVERRULED:
            waits = Upsert.FromString(body)
            self._overruled[waits.key] = waits
        elif kind == _REMOVED:
            word = Upsert.FromString(body)
            self._removed[word.key] = word
        elif kind == _DOUBT:
            self._doubt(json.loads(body))
        elif kind == _YIELD:
            self._yield_to(body.decode())

    def _apply(self, message: SyncResponse) -> set[str]:
        """Take one message; return the keys it changed: none when it said nothing new."""
        before = self._desired.get(_position(message)[1])
        if message.WhichOneof("message") == "remove" and before is not None:
            key = message.remove.key
            del self._desired[key]
            self._doubted -= {key}
            known_better = self._overruled.pop(key, None) is not None
            if is_absent(before.object):
                self._removed = _newest({**self._removed, key: before})
            if known_better or not (leads_elsewhere(before.object) or is_administered(before.object)):
                self._unknown[key] = before
            gone = self._prune([key, *concerned(before.object, self._unknown)])
            self._drop([] if key in self._unknown else [key])
            return gone | {key}
        if message.WhichOneof("message") == "upsert":
            return self._put(message.upsert, before)
        return set()

    def _put(self, upsert: Upsert, before: Upsert | None) -> set[str]:
        """Make an object desired, unless what was told before a restore stays in force; return the keys that changed."""
        key, known = upsert.key, self._known(upsert.key)
        self._doubted -= {key}
        self._overruled.pop(key, None)
        self._removed.pop(key, None)
        wins = upsert
        if known is not None and overrules(known, upsert):
            self._overruled[key], wins = upsert, known
        was_unknown = self._unknown.pop(key, None)
        self._desired[key] = wins
        if before == wins and was_unknown is None:
            return set()
        lacks = self._keep_subnets(wins, before, was_unknown) if key.startswith("network/") else set()
        return {key} | lacks | self._prune(concerned(wins.object, self._unknown))

    def _keep_subnets(self, network: Upsert, before: Upsert | None, unknown: Upsert | None) -> set[str]:
        """Keep what a network lacks that was part of it, while unknown cards are in there; return the key if that changed."""
        vpc = network.object.network.vpc
        kept = self._unknown.pop(SUBNETS + vpc, None)
        sources = [each for each in (before, unknown, kept) if each is not None]
        lacks = lacking(vpc, subnets_needed(vpc, self._unknown), sources, network.object)
        if lacks is not None:
            self._unknown[lacks.key] = lacks
        return {SUBNETS + vpc} if lacks != kept else set()

    def _forget(self, keys: Iterable[str]) -> set[str]:
        gone = {key: self._unknown[key].object for key in keys if key in self._unknown}
        self._drop(gone)
        return set(gone).union(*(self._prune(concerned(each, self._unknown)) for each in gone.values()))

    def _prune(self, keys: Iterable[str]) -> set[str]:
        """Forget those of these keys that do not stay unknown, and what stayed for them; return all of them."""
        gone: dict[str, Upsert] = {}
        for key in keys:
            if key in self._unknown and not stays(key, self._desired, self._unknown):
                gone[key] = self._unknown[key]
        self._drop(gone)
        more = [self._prune(concerned(each.object, self._unknown)) for each in gone.values()]
        return set(gone).union(*more)

    def _drop(self, keys: Iterable[str]) -> None:
        for key in keys:
            self._unknown.pop(key, None)
            if key not in self._desired:
                self._notes.pop(key, None)

    def _doubt(self, keys: Iterable[str]) -> None:
        self._doubted = frozenset(key for key in keys if is_guest(key, self._desired))

    def _yield_to(self, key: str) -> bool:
        if key not in self._overruled:
            return False
        self._desired[key] = self._overruled.pop(key)
        return True

    def _set_note(self, key: str, note: Note | None) -> None:
        """Notes go with their key, which may have gone while the note was written."""
        if note and (key in self._desired or key in self._unknown):
            self._notes[key] = note
        else:
            self._notes.pop(key, None)

    def _whole(self) -> list[bytes]:
        """Return the payloads that say all there is to say, first how far this log is to be believed."""
        state = (_synced(self.held) if self.synced else []) + ([] if self.trusted else [_CUT])
        return _payloads(state, _Said(self._desired, self._unknown, self._overruled, self._removed, self._notes, self._doubted))

    def _live_bytes(self) -> int:
        held = (self._desired, self._unknown, self._overruled, self._removed)
        live_bytes = sum(each.ByteSize() for objects in held for each in objects.values())
        return live_bytes + sum(len(str(note)) for note in self._notes.values())


def _payloads(state: list[bytes], said: _Said) -> list[bytes]:
    """Return the whole log."""
    payloads = list(state)
    payloads += [_MESSAGE + SyncResponse(upsert=each).SerializeToString() for each in said.desired.values()]
    payloads += [_UNKNOWN + each.SerializeToString() for each in said.unknown.values()]
    payloads += [_OVERRULED + each.SerializeToString() for each in said.overruled.values()]
    payloads += [_REMOVED + each.SerializeToString() for each in said.removed.values()]
    payloads += _doubts(said.doubted) if said.doubted else []
    notes = said.notes.items()
    return payloads + [_NOTE + json.dumps({"key": key, "note": dict(note)}).encode() for key, note in notes]


def _doubts(keys: Iterable[str]) -> list[bytes]:
    return [_DOUBT + json.dumps(sorted(keys)).encode()]


def _told(changed: set[str], then: Changed | None) -> set[str]:
    if then is not None:
        then(changed)
    return changed


def _position(message: SyncResponse) -> tuple[Order, str]:
    """Return where in the stream a message stands, and its key if it has one."""
    match message.WhichOneof("message"):
        case "upsert":
            return order(message.upsert.version), message.upsert.key
        case "remove":
            return order(message.remove.version), message.remove.key
        case _:
            return order(message.bookmark.version), ""


def _newest(words: dict[str, Upsert]) -> dict[str, Upsert]:
    """Return the last so many of what was removed."""
    return dict(list(words.items())[-REMOVED_MAX:])


def _synced(held: Order) -> list[bytes]:
    return [_SYNCED + Version(epoch=held[0], revision=held[1]).SerializeToString()]
