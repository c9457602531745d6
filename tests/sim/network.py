"""A network without sockets: connections between named processes that are slow, break, or fall silent, as the seed says.

    network = Network(loop, seed)
    transport = network.transport("c1", Identity("controller", "c1"), ids)      # a seams.Transport
    network.block("c1", "n2")                                                   # one way only; heal() ends it

What was sent over one connection arrives in order and once, as over TCP; between connections there is no order. Over a
blocked link it waits; when the block outlasts the keepalive each side gives the connection up in its own time, so one may
believe in it while the other does not. A request that carries a request_id may arrive twice, the second time at any controller
and long after it was answered. An address is "host:port"; links are between hosts.
"""

from __future__ import annotations

import contextvars
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from cairn.controller.openid import FakeIssuer
from cairn.proto.pki import Identity

from tests.sim.loop import SimLoop
from tests.sim.releases import Releases

# How long a silent connection is believed in: proto/rpc.py's keepalive, more or less.
KEEPALIVE_S: Final = (3.0, 13.0)
CONNECT_S: Final = 2.0


@dataclass
class Faults:
    """How the network is now. Shares are chances per message or per call."""

    delay_s: tuple[float, float] = (0.0002, 0.002)
    # A message in so many is late by up to `late_s`.
    late: float = 0.0
    late_s: float = 1.0
    # The connection is reset, what was under way on it is lost.
    reset: float = 0.0
    # A call is accepted and never answered.
    silence: float = 0.0
    # A request that carries a request_id arrives a second time, up to `duplicate_s` later, at any controller.
    duplicate: float = 0.0
    duplicate_s: float = 1.0
    # How long a silent connection is believed in.
    keepalive_s: tuple[float, float] = KEEPALIVE_S
    # Host -> by how much all it sends and is sent is late.
    slow_s: dict[str, float] = field(default_factory=dict)
    # Nodes to which controllers say nothing of their guests, but that they be absent.
    forgotten: set[str] = field(default_factory=set)


class Party(Protocol):
    """One side of a call."""

    def broken(self, why: str) -> None:
        """The connection is gone."""


class Listener(Protocol):
    """Whoever accepts calls at an address."""

    host: str
    identity: Identity
    mutual: bool


class Connection:
    """A pair of ordered pipes between a client and a server."""

    def __init__(self, network: Network, client: str, server: str, caller: Identity, listener: Any) -> None:
        self.network, self.hosts, self.caller, self.listener = network, (client, server), caller, listener
        self.number = network.next_number()
        # What speaks here stays what it is when its host has another release later.
        self.of_older_client = client in network.releases.older
        self.open = [True, True]
        # One side has given it up and the other cannot hear that: what either sends is lost.
        self.parted = False
        self._parties: tuple[dict[Party, None], dict[Party, None]] = ({}, {})
        self._arrive_s = [0.0, 0.0]
        self._under_way: tuple[deque[Callable[[], None]], deque[Callable[[], None]]] = (deque(), deque())
        self._held: tuple[list[Callable[[], None]], list[Callable[[], None]]] = ([], [])

    def __str__(self) -> str:
        return f"connection {self.number} {self.hosts[0]}->{self.hosts[1]}"

    def join(self, side: int, party: Party) -> None:
        """Tell a party when its side breaks."""
        self._parties[side][party] = None

    def leave(self, side: int, party: Party) -> None:
        """Forget it."""
        self._parties[side].pop(party, None)

    def send(self, side: int, deliver: Callable[[], None]) -> None:
        """Have something done at the other side, after what was sent before; nothing if it breaks first."""
        network = self.network
        if not self.open[side]:
            return
        if self.parted:
            return
        if network.strikes("reset", network.faults.reset):
            network.note(f"reset {self}")
            self.fail(0, "connection reset")
            self.fail(1, "connection reset")
        elif network.blocked(self.hosts[side], self.hosts[1 - side]):
            self._held[side].append(deliver)
        else:
            self._pass_on(side, deliver)

    def _pass_on(self, side: int, deliver: Callable[[], None]) -> None:
        loop, network = self.network.loop, self.network
        self._under_way[side].append(deliver)
        self._arrive_s[side] = max(self._arrive_s[side], loop.time() + network.delay_s(*self.hosts))
        network.after(self._arrive_s[side] - loop.time(), self._arrive, side)

    def _arrive(self, side: int) -> None:
        # The first that was sent, whichever timer this is: timers of the same moment have no order.
        deliver = self._under_way[side].popleft()
        if self.parted:
            return
        if self.open[1 - side]:
            deliver()
        elif self.open[side]:
            self.network.after(self.network.delay_s(), self.fail, side, "connection reset")

    def release(self) -> None:
        """Let what waited pass, where the links are open again."""
        for side in (0, 1):
            if not self.network.blocked(self.hosts[side], self.hosts[1 - side]):
                held = self._held[side][:]
                self._held[side].clear()
                for deliver in held:
                    self._pass_on(side, deliver)

    def part(self, side: int) -> None:
        """One side gives it up; the other believes in it until its keepalive has run out."""
        if all(self.open):
            self.parted = True
            self.fail(side, "given up")
            self.network.after(self.network.keepalive_s(), self.fail, 1 - side, "keepalive timed out")

    def sober(self) -> None:
        """A side that still believes in it does so no longer than a keepalive lasts, whatever it was when the other gave up."""
        for side in (0, 1):
            if self.open[side] and not self.open[1 - side]:
                self.network.after(KEEPALIVE_S[1], self.fail, side, "keepalive timed out")

    def doubt(self) -> None:
        """The link is blocked: unless that ends, each side gives up in its own time."""
        for side in (0, 1):
            self.network.after(self.network.keepalive_s(), self._give_up, side, self.network.blocks)

    def _give_up(self, side: int, blocks: int) -> None:
        first, second = self.hosts
        still = self.network.blocked(first, second) or self.network.blocked(second, first)
        if still and blocks == self.network.blocks:
            self.fail(side, "keepalive timed out")
        elif still:
            self.network.after(self.network.keepalive_s(), self._give_up, side, self.network.blocks)
        elif not self.open[1 - side]:
            # The other side gave it up meanwhile: its kernel answers the next ping with a reset.
            self.fail(side, "connection reset")

    def fail(self, side: int, why: str) -> None:
        """This side knows that it is over; the other hears of it as far as the network lets it."""
        if not self.open[side]:
            return
        self.open[side] = False
        self._held[side].clear()
        if not any(self.open):
            self.network.connections.pop(self.number, None)
        for party in list(self._parties[side]):
            party.broken(why)
        self._parties[side].clear()
        first, second = self.hosts[side], self.hosts[1 - side]
        if self.open[1 - side] and not self.parted and not self.network.blocked(first, second):
            self.network.after(self.network.delay_s(), self.fail, 1 - side, "connection closed by the other side")


class Network:
    """All links, connections and listeners. See the module."""

    def __init__(self, loop: SimLoop, seed: int | str) -> None:
        self.loop, self.random = loop, random.Random(f"{seed}/network")
        self.faults = Faults()
        self.listeners: dict[str, Any] = {}
        self.connections: dict[int, Connection] = {}
        # Calls that reached a server.
        self.served = 0
        # How often each fault struck.
        self.struck: dict[str, int] = {}
        self.releases = Releases(loop)
        # An identity provider, outside of the cloud.
        self.issuer = FakeIssuer()
        self.issuer.noticed = lambda what: self.count(f"issuer {what}")
        # Why nobody makes a connection with a host now; empty: they do.
        self.refuses: Callable[[str], str] = lambda _host: ""
        # Counts changes of what is blocked.
        self.blocks = 0
        self._blocked: dict[tuple[str, str], None] = {}
        self._forgotten = 0
        self._number = 0
        # Messages under way belong to nobody: they outlive their sender.
        self._context = contextvars.copy_context()

    def next_number(self) -> int:
        """Return a fresh number."""
        self._number += 1
        return self._number

    def note(self, text: str) -> None:
        """Tell the trace."""
        self.loop.trace.note(self.loop.time(), "net", text)

    def happens(self, share: float) -> bool:
        """Draw whether a fault happens; nothing is drawn for what never does."""
        return share > 0 and self.random.random() < share

    def strikes(self, kind: str, share: float) -> bool:
        """The same, counted."""
        struck = self.happens(share)
        if struck:
            self.count(kind)
        return struck

    def count(self, kind: str) -> None:
        """Count a fault of any kind that struck, also of other than the network's."""
        self.struck[kind] = self.struck.get(kind, 0) + 1

    def delay_s(self, *hosts: str) -> float:
        """Draw how long a message between hosts takes."""
        late_s = self.random.uniform(0, self.faults.late_s) if self.strikes("late", self.faults.late) else 0.0
        slow_s = sum(self.faults.slow_s.get(host, 0.0) for host in hosts) if self.faults.slow_s else 0.0
        return self.random.uniform(*self.faults.delay_s) + late_s + slow_s

    def keepalive_s(self) -> float:
        """Draw how long a silent connection is believed in."""
        return self.random.uniform(*self.faults.keepalive_s)

    def once_more(self, arrive: Callable[[], None]) -> None:
        """Have a request arrive a second time, after a while."""
        forgotten = self._forgotten
        self.after(self.random.uniform(0, self.faults.duplicate_s), lambda: arrive() if self._forgotten == forgotten else None)

    def forget_requests(self) -> None:
        """What was sent arrives no second time: a restored store does not know that it was answered (decision 0029)."""
        self._forgotten += 1

    def after(self, delay_s: float, act: Callable[..., None], *arguments: Any) -> None:
        """Do something a little later, whoever lives then."""
        self.loop.call_later(max(delay_s, 0.0), act, *arguments, context=self._context)

    # --- faults ----------------------------------------------------------------------------------------------------------

    def blocked(self, source: str, target: str) -> bool:
        """Tell whether nothing passes from one host to another; "*" stands for any."""
        blocks = self._blocked
        if not blocks or source == target:
            return False
        return (source, target) in blocks or (source, "*") in blocks or ("*", target) in blocks

    def block(self, source: str, target: str, *, both: bool = False) -> None:
        """Let nothing pass from one host to another, or both ways."""
        self.note(f"block {source} {'<->' if both else '->'} {target}")
        self.blocks += 1
        self._blocked[source, target] = None
        if both:
            self._blocked[target, source] = None
        for connection in list(self.connections.values()):
            first, second = connection.hosts
            if self.blocked(first, second) or self.blocked(second, first):
                connection.doubt()

    def heal(self, host: str = "") -> None:
        """Open all links, or those of one host."""
        self.note(f"heal {host or 'everything'}")
        self.blocks += 1
        self._blocked = {link: None for link in self._blocked if host and host not in link}
        for connection in list(self.connections.values()):
            connection.release()
            if not host:
                connection.sober()
        if not host:
            self.issuer.gone, self.issuer.slow_s = False, 0.0

    def part(self, host: str, count: int) -> None:
        """A host gives up some of its connections, and those at their other ends do not hear of it."""
        theirs = [each for each in self.connections.values() if host in each.hosts and all(each.open)]
        for connection in self.random.sample(theirs, min(count, len(theirs))):
            self.note(f"part {connection}")
            self.count("parted")
            connection.part(connection.hosts.index(host))

    def lose(self, host: str, *, silently: bool) -> None:
        """A process is gone: its kernel resets its connections, or the power went and nobody says anything."""
        self.listeners = {address: each for address, each in self.listeners.items() if each.host != host}
        for connection in list(self.connections.values()):
            if host not in connection.hosts:
                continue
            side = connection.hosts.index(host)
            if silently:
                connection.open[side] = False
                self.after(self.keepalive_s(), connection.fail, 1 - side, "keepalive timed out")
            else:
                connection.open[side] = False
                self.after(self.delay_s(), connection.fail, 1 - side, "connection reset")
