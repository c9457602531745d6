"""What this node was told to hold: the desired state as last accepted, durable before anything is done about it.

One append-only log of frames: length and CRC-32 of the payload (two big-endian 32-bit numbers), then the payload, whose first
byte says what it is: an accepted SyncResponse, a note, a whole-snapshot marker or a warning. `accept` is durable when it
returns, so the agent can be killed at any time and its successor knows at least what it acted on. A torn tail (power was lost
during an append that nobody acted on) is cut on load.

Invariants: the version held never goes back, neither for the whole nor for a key; a snapshot is accepted whole or not at all
(it is a new file, renamed into place). `synced` says that a complete snapshot has ever been accepted: before that nothing is
known, so nothing may be undone. `trusted` says the log was never cut since the last snapshot: only then what is not in it
counts as not desired.

Notes are the agent's own memory per key, lost with the key: what the controller cannot know and the world does not show.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, Final

from cairn.proto.log import logger
from cairn.proto.seams import Disk
from cairn.proto.v1.agent_pb2 import Desired, SyncResponse, Upsert, Version

NAME: Final = "ledger"
# Rewritten when the log is this much, and this many times the size of what it says.
COMPACT_BYTES_MIN: Final = 1 << 20
COMPACT_FACTOR: Final = 4
# No frame is larger: a length beyond it is garbage.
FRAME_BYTES_MAX: Final = 8 << 20
_HEAD: Final = struct.Struct(">II")
_MESSAGE, _NOTE, _SYNCED, _CUT = b"M", b"N", b"S", b"C"

Order = tuple[int, int]
Note = Mapping[str, Any]


class StaleVersion(Exception):
    """The controller sent something older than what is held; nothing of it was accepted."""


def order(version: Version) -> Order:
    """Return a version as something that compares: epoch first."""
    return (version.epoch, version.revision)


class Ledger:
    """The log and what it says. Errors of the disk are OSError; after one nothing was accepted."""

    def __init__(self, disk: Disk) -> None:
        self._disk = disk
        self._desired: dict[str, Upsert] = {}
        self._notes: dict[str, Note] = {}
        self._size_bytes = 0
        # False after a failed append: the file may end in half a frame, so the next write makes it anew.
        self._whole = True
        self.held: Order = (0, 0)
        self.synced = False
        self.trusted = True

    @property
    def desired(self) -> Mapping[str, Upsert]:
        """The accepted objects by key, each with the version it came with."""
        return MappingProxyType(self._desired)

    def object(self, key: str) -> Desired | None:
        """Return a desired object, or None."""
        held = self._desired.get(key)
        return held.object if held is not None else None

    def note(self, key: str) -> Note:
        """Return what the agent noted about a key; empty when nothing."""
        return self._notes.get(key, {})

    def load(self) -> None:
        """Read the log, cut what is torn."""
        content = self._disk.read(NAME) or b""
        good = 0
        for payload, end in _frames(content):
            self._replay(payload)
            good = end
        self._size_bytes = good
        if good < len(content):
            logger("ledger").warning("tail_cut", kept_bytes=good, cut_bytes=len(content) - good)
            self._disk.truncate(NAME, good)
            self._append([_CUT])
            self.trusted = False

    def accept(self, messages: Iterable[SyncResponse]) -> set[str]:
        """Take upserts, removes and bookmarks in order, durably; return the keys that changed.

        StaleVersion when one is older than what is held: then none of them is taken.
        """
        held, taken = self.held, []
        for message in messages:
            at, key = _position(message)
            known = max(held, self._version_of(key))
            if at < known:
                raise StaleVersion(f"{key or 'a bookmark'} came with version {at}, {known} is held")
            held = at
            if key:
                taken.append(message)
        changed = set()
        if taken:
            self._append([_MESSAGE + message.SerializeToString() for message in taken])
            changed = {key for message in taken if (key := self._apply(message))}
        self.held = held
        self._compact_if_large()
        return changed

    def accept_snapshot(self, version: Version, upserts: Iterable[Upsert]) -> set[str]:
        """Make exactly these objects the desired state, durably; return the keys that changed or went.

        StaleVersion when the snapshot, or an object in it, is older than what is held.
        """
        at, objects = order(version), {each.key: each for each in upserts}
        if at < self.held:
            raise StaleVersion(f"the snapshot has version {at}, {self.held} is held")
        for key, each in objects.items():
            if order(each.version) < self._version_of(key):
                raise StaleVersion(f"{key} came with version {order(each.version)}, {self._version_of(key)} is held")
        before = self._desired
        notes = {key: note for key, note in self._notes.items() if key in objects}
        self._rewrite(_synced(at), objects, notes)
        self._desired, self._notes, self.held, self.synced, self.trusted = objects, notes, at, True, True
        gone = before.keys() - objects.keys()
        return gone | {key for key, each in objects.items() if key not in before or before[key] != each}

    def write_note(self, key: str, note: Note | None) -> None:
        """Remember something about a key, durably; None: forget it."""
        if dict(self.note(key)) == dict(note or {}):
            return
        self._append([_NOTE + json.dumps({"key": key, "note": note}, sort_keys=True).encode()])
        self._set_note(key, note)
        self._compact_if_large()

    def _version_of(self, key: str) -> Order:
        known = self._desired.get(key)
        return order(known.version) if known is not None else (0, 0)

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

    def _apply(self, message: SyncResponse) -> str:
        """Take one message; return the key it changed, empty when it said nothing new."""
        if message.WhichOneof("message") == "remove":
            self._notes.pop(message.remove.key, None)
            return message.remove.key if self._desired.pop(message.remove.key, None) is not None else ""
        if message.WhichOneof("message") == "upsert":
            before = self._desired.get(message.upsert.key)
            self._desired[message.upsert.key] = message.upsert
            return message.upsert.key if before != message.upsert else ""
        return ""

    def _set_note(self, key: str, note: Note | None) -> None:
        if note:
            self._notes[key] = note
        else:
            self._notes.pop(key, None)

    def _append(self, payloads: Iterable[bytes]) -> None:
        """Add frames and make them durable; one sync for all."""
        if not self._whole:
            self._rewrite(self._state(), self._desired, self._notes)
        content = b"".join(_frame(payload) for payload in payloads)
        self._whole = False
        self._disk.append(NAME, content)
        self._disk.sync(NAME)
        self._whole = True
        self._size_bytes += len(content)

    def _state(self) -> list[bytes]:
        """Return the frames that say how far this log is to be believed."""
        return (_synced(self.held) if self.synced else []) + ([] if self.trusted else [_CUT])

    def _rewrite(self, state: list[bytes], objects: Mapping[str, Upsert], notes: Mapping[str, Note]) -> None:
        """Write the whole log anew, in one step."""
        payloads = list(state)
        payloads += [_MESSAGE + SyncResponse(upsert=each).SerializeToString() for each in objects.values()]
        payloads += [_NOTE + json.dumps({"key": key, "note": dict(note)}).encode() for key, note in notes.items()]
        content = b"".join(_frame(payload) for payload in payloads)
        self._disk.replace(NAME, content)
        self._size_bytes, self._whole = len(content), True

    def _compact_if_large(self) -> None:
        if self._size_bytes < COMPACT_BYTES_MIN:
            return
        live = sum(each.ByteSize() for each in self._desired.values()) + sum(len(str(note)) for note in self._notes.values())
        if self._size_bytes <= COMPACT_FACTOR * live:
            return
        try:
            self._rewrite(self._state(), self._desired, self._notes)
        except OSError as error:
            logger("ledger").warning("compaction_failed", error=str(error), size_bytes=self._size_bytes)


def _position(message: SyncResponse) -> tuple[Order, str]:
    """Return where in the stream a message stands, and its key if it has one."""
    match message.WhichOneof("message"):
        case "upsert":
            return order(message.upsert.version), message.upsert.key
        case "remove":
            return order(message.remove.version), message.remove.key
        case _:
            return order(message.bookmark.version), ""


def _synced(held: Order) -> list[bytes]:
    return [_SYNCED + Version(epoch=held[0], revision=held[1]).SerializeToString()]


def _frame(payload: bytes) -> bytes:
    return _HEAD.pack(len(payload), zlib.crc32(payload)) + payload


def _frames(content: bytes) -> Iterator[tuple[bytes, int]]:
    """Yield the payloads that are whole, each with the offset of its end; stop at the first that is not."""
    at = 0
    while at + _HEAD.size <= len(content):
        length, checksum = _HEAD.unpack_from(content, at)
        payload = content[at + _HEAD.size : at + _HEAD.size + length]
        if not 0 < length <= FRAME_BYTES_MAX or len(payload) < length or zlib.crc32(payload) != checksum:
            return
        at += _HEAD.size + length
        yield payload, at
