"""What all nodes of a VPC are told alike: its forwards and peers. Made once for all of them, when something changes.

    shared.put(key, node, object)        the object of a card, or of a node, on `node`: every node but that one is told it
    difference(old, number, new, node)   what to send to a node that was sent `old` up to `number`

A VPC with N nodes and P cards would otherwise be N x P objects, each computed, serialised, hashed and remembered for each node.
Here an entry is its bytes and a number that grows with each change, and a stream remembers one number per VPC: what it has to
send are the entries behind it. What is gone stays as an entry without bytes until too many are; then the whole is copied
without them (`compacted`), and streams come over from the old one by comparing. So do those that join a VPC (from an empty
one) and those that leave it (to an empty one).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

from cairn.controller.model.seats import Transit
from cairn.proto.addresses import addresses_of, set_addresses
from cairn.proto.ids import router_mac, transit_address
from cairn.proto.v1.agent_pb2 import Desired, DesiredForward, DesiredPeer, Upsert
from cairn.proto.v1.port_pb2 import PortBinding

# Entries without bytes that are kept, whatever the number of others.
GONE_MAX: Final = 1000


class Entry(NamedTuple):
    """One object."""

    number: int
    # Where it is: that node is not told.
    node: str
    # It was on another node before: this one has to be told that it need not hold it any more.
    moved: bool
    # An Upsert without a version; empty: gone.
    upsert: bytes


class Shared:
    """One VPC's entries, in the order in which they changed."""

    __slots__ = ("_entries", "_gone", "last")

    def __init__(self) -> None:
        self._entries: dict[str, Entry] = {}
        self._gone = 0
        # Number of the newest change.
        self.last = 0

    def put(self, key: str, node: str, object: Desired | None) -> bool:
        """Say what an object is now, None: it is gone. Return whether that is new."""
        before = self._entries.get(key)
        upsert = b"" if object is None else Upsert(key=key, object=object).SerializeToString(deterministic=True)
        if (b"" if before is None else before.upsert) == upsert and (before is None or not upsert or before.node == node):
            return False
        moved = before is not None and (before.moved or before.node != node)
        if before is not None:
            # To the end: entries stand in the order of their numbers.
            del self._entries[key]
            self._gone -= not before.upsert
        self._gone += not upsert
        self.last += 1
        self._entries[key] = Entry(self.last, node, moved, upsert)
        return True

    @property
    def is_bloated(self) -> bool:
        """Whether too much of it is about what is gone."""
        return self._gone > max(GONE_MAX, len(self._entries) // 2)

    def compacted(self) -> Shared:
        """Return a new one without what is gone."""
        result = Shared()
        result._entries = {key: entry for key, entry in self._entries.items() if entry.upsert}
        result.last = self.last
        return result

    def get(self, key: str) -> Entry | None:
        """Return an entry; one without bytes is gone."""
        return self._entries.get(key)

    def entries(self) -> Iterable[tuple[str, Entry]]:
        """Return all entries, in the order in which they changed."""
        return self._entries.items()

    def since(self, number: int, node: str) -> Iterator[tuple[str, bytes]]:
        """Yield (key, upsert) of what changed after a number, for a node; no bytes: to be removed."""
        for key, entry in reversed(self._entries.items()):
            if entry.number <= number:
                return
            if entry.node != node:
                yield key, entry.upsert
            elif entry.moved:
                yield key, b""


NOTHING: Final = Shared()


def difference(old: Shared, number: int, new: Shared, node: str) -> Iterator[tuple[str, bytes]]:
    """Yield (key, upsert) of what differs for a node that was sent `old` up to a number; no bytes: to be removed."""
    if old is new:
        yield from new.since(number, node)
        return
    for key, entry in new.entries():
        before = old.get(key)
        if entry.node != node and entry.upsert and (before is None or before.number > number or before != entry):
            yield key, entry.upsert
    for key, before in old.entries():
        entry_now = new.get(key)
        shown = entry_now is not None and entry_now.upsert and entry_now.node != node
        # What was gone before, or was this node's own ever since, it does not hold.
        held = (before.upsert and before.node != node) or before.number > number or before.moved
        if held and not shown:
            yield key, b""


def forward_of(vpc: str, port: str, binding: PortBinding | None, there: Transit, hostname: str) -> Desired | None:
    """Return how a card is reached from other nodes, or None when it is not."""
    if binding is None or not there.index or not there.vtep:
        return None
    result = DesiredForward(
        port=port,
        vpc=vpc,
        subnet=binding.subnet,
        mac=binding.mac,
        vtep=there.vtep,
        transit_address=transit_address(there.index),
        hostname=hostname,
    )
    set_addresses(result, addresses_of(binding))
    return Desired(forward=result)


def peer_of(vpc: str, node: str, there: Transit) -> Desired | None:
    """Return how a node is reached from the others of a VPC, or None when it is not."""
    if not there.index or not there.vtep:
        return None
    address, mac = transit_address(there.index), router_mac(there.index)
    return Desired(peer=DesiredPeer(vpc=vpc, node=node, vtep=there.vtep, transit_address=address, router_mac=mac))
