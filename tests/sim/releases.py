"""Processes of another release than this one, as their neighbours see them.

An agent of an older release says in its Hello nothing of what it knows, and must be sent nothing that came later; of a guest
it says nothing of which volumes it has open. A process
of a newer one writes fields this release does not know into all it sends and stores, records of a kind nobody here knows, and
more into the notes of its ledger; protobuf keeps such fields, and so must whoever writes a record back. Going back to this
release leaves all of that behind for it to read.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from cairn.controller.store.base import Put, Txn
from cairn.proto import kinds
from cairn.proto.v1.agent_pb2 import Desired, SyncRequest, SyncResponse, Upsert

from tests.sim.checkers.base import Violation

if TYPE_CHECKING:
    from tests.sim.loop import SimLoop
    from tests.sim.network import Connection

# A field 2047 of type string that says "novelty" (protobuf's wire format: tag, length, bytes).
NOVELTY: Final = b"\xfa\x7f\x07novelty"
KIND: Final = "novelty"
# What the first agents that did not speak of it could be sent.
_FIRST: Final = ("image", "volume", "network", "port", "forward", "vm")
_HEAD: Final = struct.Struct(">II")
_NOTE: Final = b"N"


class Releases:
    """Which processes, by name, are of which release; all others of this one."""

    def __init__(self, loop: SimLoop) -> None:
        self._loop = loop
        self.older: set[str] = set()
        self.newer: set[str] = set()

    def asks(self, host: str, method: str, data: bytes) -> bytes:
        """Return what an agent or user really sends."""
        if not method.endswith("/Sync") or host not in self.older | self.newer:
            return data
        request = SyncRequest.FromString(data)
        if host in self.older:
            _earlier(request)
        elif request.HasField("hello"):
            request.hello.capabilities.append(f"desired:{KIND}")
        return request.SerializeToString() + (NOVELTY if host in self.newer else b"")

    def answers(self, connection: Connection, method: str, data: bytes) -> bytes:
        """Return what a controller really answers; what an older agent would not understand is a violation."""
        to, host = connection.hosts
        if method.endswith("/Sync") and connection.of_older_client:
            response = SyncResponse.FromString(data)
            what = response.WhichOneof("message") or ""
            kind = response.upsert.object.WhichOneof("object") if what == "upsert" else ""
            if what == "changes" or (kind and kind not in _FIRST):
                self._loop.fail(Violation("releases", f"{to} is of an older release, and was sent {kind or what} by {host}"))
            if later := _later(response.upsert.object):
                say = f"{to} is of an older release, and was sent {later} in {response.upsert.key} by {host}"
                self._loop.fail(Violation("releases", say))
        elif method.endswith("/Sync") and host in self.newer:
            data = _novel(SyncResponse.FromString(data)).SerializeToString()
        return data + NOVELTY if host in self.newer else data

    def commits(self, name: str, txn: Txn) -> Txn:
        """Return what a controller really stores."""
        if name not in self.newer:
            return txn
        # In place, and not only in this copy: what it shows of its own commits before the store does is what it wrote.
        for key, put in txn.puts.items():
            # It would have hashed what it adds to the audit.
            if not key.startswith(kinds.AUDIT.prefix) and NOVELTY not in put.value:
                object.__setattr__(put, "value", put.value + NOVELTY)
        return replace(txn, puts={**txn.puts, f"{kinds.ROOT}{KIND}/{name}": Put(NOVELTY)}) if txn.puts else txn


def _earlier(request: SyncRequest) -> None:
    """Leave out what an older agent does not know to say."""
    if request.HasField("hello"):
        request.hello.ClearField("capabilities")
    if request.report.HasField("vm"):
        for field in ("open_volumes", "volume_troubles", "volumes_generation", "seen"):
            request.report.vm.ClearField(field)


def _later(object: Desired) -> str:
    """Return the name of a field that the first agents did not know: they program what differs in it for ever."""
    cards = [object.port, object.forward, *object.vm.nics]
    if any(card.addresses for card in cards):
        return "addresses"
    if any(disk.size_bytes for disk in object.vm.disks):
        return "sizes of disks"
    return "hostname" if object.forward.hostname else "domain" if object.network.domain else ""


def _novel(response: SyncResponse) -> SyncResponse:
    """Write fields nobody here knows into all objects of a message."""
    if response.HasField("upsert"):
        _written(response.upsert)
    for at, content in enumerate(response.changes.upserts if response.HasField("changes") else ()):
        upsert = Upsert.FromString(content)
        _written(upsert)
        response.changes.upserts[at] = upsert.SerializeToString(deterministic=True)
    return response


def _written(upsert: Upsert) -> None:
    kind = upsert.object.WhichOneof("object")
    if kind is not None:
        getattr(upsert.object, kind).MergeFromString(NOVELTY)


def noted(ledger: bytes) -> bytes:
    """Return a ledger as an agent of a newer release leaves it: with more in each note."""
    return b"".join(_frame(_noted(payload)) for payload in _payloads(ledger))


def _noted(payload: bytes) -> bytes:
    if payload[:1] != _NOTE:
        return payload
    document: dict[str, Any] = json.loads(payload[1:])
    note = document["note"]
    return _NOTE + json.dumps({**document, "note": {**note, KIND: 1} if note else note, KIND: 1}, sort_keys=True).encode()


def _payloads(ledger: bytes) -> Iterator[bytes]:
    at = 0
    while at + _HEAD.size <= len(ledger):
        length, checksum = _HEAD.unpack_from(ledger, at)
        payload = ledger[at + _HEAD.size : at + _HEAD.size + length]
        if len(payload) < length or zlib.crc32(payload) != checksum:
            return
        yield payload
        at += _HEAD.size + length


def _frame(payload: bytes) -> bytes:
    return _HEAD.pack(len(payload), zlib.crc32(payload)) + payload
