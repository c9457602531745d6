"""The cloud as a stranger sees it: the records in the store, and what really is on each host. What checkers look at.

Both are pictures made of what was observed; nothing here asks the product. In the simulation they come from the store's
backend and from the machines; against real servers from etcd, libvirt and the kernel.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

from cairn.proto import kinds
from cairn.proto.v1.agent_pb2 import SyncResponse, Upsert, Version

Position = tuple[int, int]
_HEAD: Final = struct.Struct(">II")


@dataclass(frozen=True, slots=True)
class Card:
    """A network card of a guest, as its definition says."""

    port: str
    subnet: str
    address: str
    mac: str


@dataclass(frozen=True, slots=True)
class Guest:
    """A guest that exists as a process. executing: its first instruction was executed and it is not paused."""

    id: str
    executing: bool
    cpus: int
    memory_bytes: int
    cards: tuple[Card, ...] = ()
    # Volumes open read-write, and how large it sees those of which that is known.
    volumes: tuple[str, ...] = ()
    seen: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Definition:
    """What a guest will be the next time it is started."""

    cpus: int
    memory_bytes: int
    volumes: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Host:
    """What is on one node."""

    node: str
    name: str
    # Live guests by VM id, each as it was started; configurations without a process are in `definitions` only.
    guests: Mapping[str, Guest] = field(default_factory=dict)
    definitions: Mapping[str, Definition] = field(default_factory=dict)
    # Volume id -> size in bytes.
    volumes: Mapping[str, int] = field(default_factory=dict)
    # Volume id -> size its guest's own process gave it while it ran; None: not told.
    grown: Mapping[str, int] | None = None
    # Volume id in the shared pool -> size its guest's own process gave it, or is about to give it, when it looked anew.
    looked: Mapping[str, int] = field(default_factory=dict)
    # Digests of images.
    images: frozenset[str] = frozenset()
    # Of those that came in part only.
    partials: frozenset[str] = frozenset()
    # VPC id -> ports whose frames flow there, and ports elsewhere it can reach (port -> tunnel address).
    ports: Mapping[str, frozenset[str]] = field(default_factory=dict)
    forwards: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    # VPC id -> its subnets there, and tunnel addresses of the other nodes it knows of.
    subnets: Mapping[str, frozenset[str]] = field(default_factory=dict)
    peers: Mapping[str, frozenset[str]] = field(default_factory=dict)
    # VPCs whose rules somebody damaged.
    damaged: frozenset[str] = frozenset()
    # Asks what guests are told names mean there now: VPC id -> name -> addresses. None: nobody can tell.
    names: Callable[[], Mapping[str, Mapping[str, frozenset[str]]]] | None = None
    # VM id -> keys and user data in its seed image.
    seeds: Mapping[str, tuple[tuple[str, ...], bytes]] = field(default_factory=dict)
    # VM ids with a seed image or console log.
    files: frozenset[str] = frozenset()
    # What the node's ledger durably holds: key -> version it came with; and the version of the whole.
    ledger: Mapping[str, Position] = field(default_factory=dict)
    held: Position = (0, 0)
    # Keys of guests that it desires: True; of those that it desires to be absent: False.
    wanted: Mapping[str, bool] = field(default_factory=dict)
    # Volume id -> size that the node was last told to have its guest see.
    told: Mapping[str, int] = field(default_factory=dict)
    # First instructions executed there, and effects of any kind the host has ever felt.
    boots: int = 0
    effects: int = 0
    # It has left the cloud: nobody expects anything of it.
    away: bool = False
    # The process that did what changed last; empty: none, a hand or a power cut.
    by: str = ""

    @property
    def defined(self) -> frozenset[str]:
        """Guests that have a configuration, live or not."""
        return frozenset(self.definitions)


@dataclass(frozen=True, slots=True)
class Changed:
    """A record before and after; None: absent."""

    kind: str
    id: str
    before: Any
    after: Any

    @property
    def key(self) -> str:
        """Kind and id."""
        return f"{self.kind}/{self.id}"


@dataclass(frozen=True, slots=True)
class Commit:
    """One revision of the store.

    writers: "<kind>/<id>" -> component; empty when no transaction made it (a lease ran out). checked: the keys whose revision
    it named. None for both: nobody knows (a real etcd). whole: nothing happened, these are all records as they were found.
    """

    revision: int
    changes: tuple[Changed, ...]
    writers: Mapping[str, str] | None = None
    checked: frozenset[str] | None = None
    whole: bool = False


@dataclass
class Cloud:
    """Everything. Hosts are by node id."""

    records: dict[str, dict[str, Any]] = field(default_factory=lambda: {kind.name: {} for kind in kinds.ALL})
    revision: int = 0
    hosts: dict[str, Host] = field(default_factory=dict)
    # What the pool holds that all nodes reach: volume id -> size in bytes.
    shared: dict[str, int] = field(default_factory=dict)
    # Secrets that were made: none of them may be seen anywhere.
    secrets: set[str] = field(default_factory=set)
    # Whether some controller's files hold a record of the audit: chain, number, bytes. None: nobody can look into them.
    filed: Callable[[str, int, bytes], bool] | None = None
    # The true time; None: nobody knows it as exactly as checkers would need.
    clock: Callable[[], datetime] | None = None
    # When every lease in the store was last given its whole time again.
    leases_began: datetime | None = None

    def all(self, kind: str) -> dict[str, Any]:
        """Return the records of a kind by id."""
        return self.records[kind]

    def get(self, kind: str, id: str) -> Any:
        """Return a record or None."""
        return self.records[kind].get(id)

    def name_of(self, node: str) -> str:
        """Return a node's name, for sentences."""
        host = self.hosts.get(node)
        return host.name if host is not None else node

    def commit(
        self,
        revision: int,
        changes: Iterable[tuple[str, bytes | None]],
        writers: Mapping[str, str] | None = None,
        checked: Iterable[str] | None = None,
        *,
        whole: bool = False,
    ) -> Commit:
        """Take a revision in: (key, value or None where deleted). Keys are those of the store. whole: as in Commit."""
        taken = []
        for key, value in changes:
            if key.removeprefix(kinds.ROOT).partition("/")[0] not in kinds.BY_NAME:
                # A newer release's: nobody here can say what must be of it.
                continue
            kind, id = kinds.split(key)
            table = self.records[kind.name]
            before = table.pop(id, None)
            after = None if value is None else kind.message.FromString(value)
            if after is not None:
                table[id] = after
            taken.append(Changed(kind.name, id, before, after))
        self.revision = revision
        return Commit(
            revision,
            tuple(taken),
            {key.removeprefix(kinds.ROOT): writer for key, writer in writers.items()} if writers is not None else None,
            frozenset(key.removeprefix(kinds.ROOT) for key in checked) if checked is not None else None,
            whole,
        )

    def running(self) -> list[tuple[str, str]]:
        """Return (VM, node) of every guest that executes."""
        return sorted((id, node) for node, host in self.hosts.items() for id, guest in host.guests.items() if guest.executing)


class LedgerReader:
    """Reads a ledger's bytes: key -> version, and the newest version. A reader of our own, for agent/ledger.py's format.

    Frames of length and CRC-32 (two big-endian 32-bit numbers); a payload begins with M (SyncResponse), S (Version), U (Upsert
    of what is unknown, and stays), F (keys that were unknown and are not here any more), or a letter that says nothing about
    what the node may hold.
    """

    def __init__(self) -> None:
        self.keys: dict[str, Position] = {}
        # Of guests: whether it is to be there. What is only unknown is not among them.
        self.wanted: dict[str, bool] = {}
        self.told: dict[str, int] = {}
        self.held: Position = (0, 0)
        self._content, self._at = b"", 0

    def read(self, content: bytes) -> None:
        """Take in what the file durably holds now; what was only added to is read from there."""
        if content is self._content:
            return
        if not content.startswith(self._content):
            self.keys, self.wanted, self.told, self.held, self._at = {}, {}, {}, (0, 0), 0
        self._content = content
        while self._at + _HEAD.size <= len(content):
            length, checksum = _HEAD.unpack_from(content, self._at)
            payload = content[self._at + _HEAD.size : self._at + _HEAD.size + length]
            if len(payload) < length or zlib.crc32(payload) != checksum:
                return
            self._at += _HEAD.size + length
            self._take(payload[:1], payload[1:])

    def _take(self, kind: bytes, body: bytes) -> None:
        if kind == b"S":
            self.held = max(self.held, _position(Version.FromString(body)))
        elif kind == b"U":
            known = Upsert.FromString(body)
            self.keys.setdefault(known.key, _position(known.version))
        elif kind == b"F":
            for key in json.loads(body):
                self.keys.pop(key, None)
        elif kind == b"M":
            message = SyncResponse.FromString(body)
            if message.HasField("upsert"):
                at = self.keys[message.upsert.key] = _position(message.upsert.version)
                if message.upsert.object.HasField("vm"):
                    self.wanted[message.upsert.key] = not message.upsert.object.vm.absent
                    self.told |= {disk.volume: disk.size_bytes for disk in message.upsert.object.vm.disks if disk.size_bytes}
            else:
                at = _position(message.remove.version)
                self.keys.pop(message.remove.key, None)
                self.wanted.pop(message.remove.key, None)
            self.held = max(self.held, at)


def _position(version: Version) -> Position:
    return version.epoch, version.revision
