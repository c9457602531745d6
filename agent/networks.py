"""The node's networks, ports and forwards: one pass serves them all, through net/plan.py.

A pass over everything reads the kernel and compares all of it. When only forwards changed since one that found nothing to do,
the next is about those alone (net/belief.py); events, failures and the periodic scan have everything looked at again.

Passes never overlap; who asks while one runs shares the next. After a pass its results are believed (a port whose bind
succeeded is bound) and checked by a second look that nobody waits for: a guest's start does not pay for it.

A guest that was just started waits for its card: when the last pass had nothing left to do for what is wanted now, its TAP is
put into its bridge by itself, without another look at everything; else, or if that fails, in a pass. A moment later everything
is looked at, once for each start.

A TAP is moved only once the start that made it has returned (net/plan.py: started_taps). The starts of this process are
known by `begin_start` and `end_start`; those of a predecessor are over.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from typing import TypeVar

from cairn.agent.hypervisor.base import DomainState
from cairn.agent.kept import with_subnets
from cairn.agent.ledger import Ledger
from cairn.agent.reports import Reports
from cairn.agent.work import Again
from cairn.agent.world import Part, World
from cairn.net.base import Action, Dataplane, GuestServices, NetError, Observed, Wanted
from cairn.net.belief import Belief
from cairn.net.names import Named
from cairn.net.plan import (
    BindPort,
    EnsureNetwork,
    RemoveForward,
    RemoveNetwork,
    RemoveSubnet,
    UnbindPort,
    plan,
    plan_forwards,
)
from cairn.proto.addresses import current
from cairn.proto.ids import tap_of
from cairn.proto.log import logger
from cairn.proto.v1.agent_pb2 import DesiredForward, DesiredNetwork, DesiredPeer, DesiredPort, DesiredVm, PortReport, Report

T = TypeVar("T")
KEY = "net"
# A pass that changed something is checked this much later.
CHECK_AFTER_S = 0.25


class Networks:
    """Observe, plan, apply, report for all networking of the node."""

    def __init__(self, dataplane: Dataplane, services: GuestServices, world: World, ledger: Ledger, reports: Reports) -> None:
        self._dataplane, self._services = dataplane, services
        self._world, self._ledger, self._reports = world, ledger, reports
        # As told, without peers; VPC -> node -> its peer; and both together, made when asked for.
        self._told: dict[str, DesiredNetwork] = {}
        # VPC -> subnets that cards here are in and its network, as told, lacks (kept.py).
        self._lacked: dict[str, DesiredNetwork] = {}
        self._peers: dict[str, dict[str, DesiredPeer]] = {}
        self._joined: dict[str, DesiredNetwork] = {}
        self._ports: dict[str, DesiredPort] = {}
        self._forwards: dict[str, DesiredForward] = {}
        self._vms: dict[str, DesiredVm] = {}
        self._services_stale = True
        self._lock = asyncio.Lock()
        self._asked = self._done = 0
        # What the kernel holds, since a pass over everything had nothing to do; None: not known.
        self._belief: Belief | None = None
        # Ids of forwards and ports that changed since the last pass; and whether a network has.
        self._changed: tuple[set[str], set[str]] = set(), set()
        self._wide = True
        # Something was done since the kernel was read.
        self._drifted = False
        # Has a pass run that much later.
        self.again: Callable[[float], None] = _ignore
        # The last pass left nothing to do for what is wanted now, but cards that are not there yet.
        self._clean = False
        self._errors: dict[str, NetError] = {}
        self._again = Again()
        self._starting: set[str] = set()
        self._started: set[str] = set()
        # What the last pass left: programmed networks, bound ports.
        self._ready: set[str] = set()
        self._bound: set[str] = set()
        # Ports that were bound when last seen, and could not be looked at since.
        self._unseen: set[str] = set()
        self.actions = 0

    def accept(self, keys: Iterable[str]) -> None:
        """Take up what changed in the ledger."""
        for key in keys:
            # Also of what is unknown: the guests that need it run on.
            object = self._ledger.last(key)
            kind, _, id = key.partition("/")
            if kind == "network":
                _put(self._told, id, object.network if object is not None else None)
                self._joined.pop(id, None)
            elif kind == "subnets":
                _put(self._lacked, id, object.network if object is not None else None)
                self._joined.pop(id, None)
            elif kind == "peer":
                vpc, _, node = id.partition("/")
                _put(self._peers.setdefault(vpc, {}), node, object.peer if object is not None else None)
                if not self._peers[vpc]:
                    del self._peers[vpc]
                self._joined.pop(vpc, None)
            elif kind == "port":
                port = current(object.port) if object is not None else None
                _put(self._ports, id, port)
                self._services.named(key, _named(port))
                self._changed[1].add(id)
            elif kind == "forward":
                forward = current(object.forward) if object is not None else None
                self._services.named(key, _named(forward))
                _put(self._forwards, id.rpartition("/")[2], _way(forward))
                self._changed[0].add(id.rpartition("/")[2])
            elif kind == "vm":
                _put(self._vms, id, object.vm if object is not None else None)
            self._wide |= kind in ("network", "subnets", "peer")
            self._clean &= kind not in ("network", "subnets", "peer", "port", "forward")
            self._services_stale |= kind in ("network", "subnets", "port", "vm")

    @property
    def _networks(self) -> dict[str, DesiredNetwork]:
        """The networks with their peers in them, as the dataplane makes and observes them."""
        for vpc in sorted(self._told.keys() - self._joined.keys()):
            lacked = self._lacked[vpc].subnets if vpc in self._lacked else ()
            self._joined[vpc] = _with_peers(with_subnets(self._told[vpc], lacked), self._peers.get(vpc, {}))
        for vpc in sorted(self._joined.keys() - self._told.keys()):
            del self._joined[vpc]
        return self._joined

    def trouble(self, port: str) -> str:
        """Return what a guest's port still lacks, as a sentence; empty: its guest can start."""
        desired = self._ports.get(port)
        if desired is None:
            return f"waits for port {port}"
        error = self._errors.get(f"port/{port}") or self._errors.get(f"network/{desired.vpc}")
        if error is not None:
            return f"its network could not be programmed: {error}"
        return "" if self._is_programmed(desired) else f"waits for the network of port {port}"

    def is_bound(self, port: str) -> bool:
        """Whether a guest's TAP is in its bridge, as of the last pass."""
        return port in self._bound

    def is_starting(self, key: str) -> bool:
        """Whether a key ("port/...") is that of a card whose guest is just being started: of its TAP there is no news."""
        port = self._ports.get(key.partition("/")[2]) if key.startswith("port/") else None
        return port is not None and port.tap in self._starting

    def begin_start(self, taps: Iterable[str]) -> None:
        """The hypervisor is about to make these TAPs: leave them alone."""
        self._starting.update(taps)
        self._started.difference_update(taps)

    def end_start(self, taps: Iterable[str], *, made: bool) -> None:
        """The hypervisor is done with these TAPs. made: they are there, ready to be moved."""
        self._starting.difference_update(taps)
        if made:
            self._started.update(taps)
        else:
            self._world.mark(Part.NETWORKS)

    async def bind(self, ports: Iterable[str]) -> None:
        """Bind what a start has just made; NetError when one of the ports is not bound after it."""
        ports = tuple(ports)
        async with self._lock:
            at_once = await self._bind_at_once(ports)
        if not at_once:
            self._world.mark(Part.NETWORKS)
            await self.settle()
        for port in ports:
            if port not in self._bound:
                error = self._errors.get(f"port/{port}")
                raise error or NetError(f"port {port} is not bound: its TAP {tap_of(port)} is not there")

    async def _bind_at_once(self, ports: Sequence[str]) -> bool:
        """Bind ports by themselves; False when that was not allowed, or did not work."""
        wanted = [self._ports[id] for id in ports if id in self._ports]
        allowed = self._clean and not self._services_stale and len(wanted) == len(ports)
        if not (allowed and all(port.tap in self._started and self._is_programmed(port) for port in wanted)):
            return False
        self._belief, self._drifted = None, True
        results = await self._dataplane.apply([BindPort(port) for port in wanted])
        self.actions += len(wanted)
        self.again(CHECK_AFTER_S)
        self._bound |= {port.id for port, result in zip(wanted, results, strict=True) if result.error is None}
        self._report()
        return self._bound.issuperset(ports)

    async def settle(self, _key: str = KEY) -> Again:
        """Run a pass that begins after this call, or share one."""
        self._asked += 1
        ticket = self._asked
        async with self._lock:
            if self._done < ticket:
                upto = self._asked
                self._again = await self._pass()
                self._done = upto
        return self._again

    async def _pass(self) -> Again:
        if not self._ledger.synced:
            return Again()
        (forwards, ports), wide = self._changed, self._wide
        self._changed, self._wide, belief = (set(), set()), False, self._belief
        # Believed again only once this pass has gone well.
        self._belief = None
        if belief is not None and not wide and self._ledger.trusted and self._world.is_fresh(Part.NETWORKS):
            wanted = Wanted(self._networks, self._ports, self._forwards)
            part = belief.part(wanted, forwards, ports)
            if part is not None:
                return await self._pass_part(belief, plan_forwards(*part), ports)
        return await self._pass_whole()

    async def _pass_part(self, belief: Belief, actions: list[Action], ports: set[str]) -> Again:
        """Do what a few forwards need; when that fails, the next pass looks at everything."""
        self._clean = True
        self._drifted |= bool(actions)
        results = await self._dataplane.apply(actions) if actions else []
        self.actions += len(actions)
        errors = {result.action.key: result.error for result in results if result.error is not None}
        for key, error in errors.items():
            logger("networks").warning("action_failed", key=key, error=str(error))
        belief.did(actions)
        self._clean &= not errors
        self._belief = belief if not errors and belief.holds else None
        self._errors |= errors
        try:
            await self._serve()
        finally:
            self._report(ports)
        if errors:
            return Again(failed=True, retryable=any(error.retryable for error in errors.values()))
        return Again(after_s=0.0 if self._belief is not None else CHECK_AFTER_S)

    async def _pass_whole(self) -> Again:
        if self._drifted:
            self._world.mark(Part.NETWORKS)
            self._drifted = False
        await self._world.refresh(Part.DOMAINS, Part.NETWORKS)
        self._clean = True
        wanted = self._wanted()
        observed = self._world.networks
        planned = plan(wanted, observed, started_taps=self._started_taps())
        actions = [action for action in planned if self._is_allowed(action)]
        self._clean &= len(actions) == len(planned)
        done: list[Action] = []
        errors = {f"network/{vpc}": error for vpc, error in observed.unseen.items()}
        for key, error in errors.items():
            logger("networks").warning("not_seen", key=key, error=str(error))
        if actions:
            self._world.mark(Part.NETWORKS)
            for result in await self._dataplane.apply(actions):
                if result.error is None:
                    done.append(result.action)
                else:
                    errors.setdefault(result.action.key, result.error)
                    logger("networks").warning("action_failed", key=result.action.key, error=str(result.error))
            self._world.mark(Part.NETWORKS)
            self.actions += len(actions)
        self._clean &= not errors
        if not planned and not errors:
            self._belief = Belief(observed)
        self._take(observed, done, errors)
        try:
            await self._serve()
        finally:
            self._report()
        if errors:
            return Again(failed=True, retryable=any(error.retryable for error in errors.values()))
        return Again(after_s=CHECK_AFTER_S if actions else 0.0)

    def _wanted(self) -> Wanted:
        return Wanted(dict(self._networks), dict(self._ports), dict(self._forwards))

    async def _serve(self) -> None:
        """Have DHCP and metadata answer for what is wanted now, not when the pass began; before any guest of it runs."""
        if not self._services_stale:
            return
        vms = {id: vm for id, vm in self._vms.items() if not vm.absent}
        self._services_stale = False
        try:
            await self._services.update(self._wanted(), vms)
        except (NetError, OSError):
            self._services_stale = True
            raise

    def _started_taps(self) -> set[str]:
        running = {t for d in self._world.domains.values() if d.state is not DomainState.SHUT_OFF for t in d.taps}
        self._started &= {port.tap for port in self._ports.values()}
        return (running | self._started) - self._starting

    def _is_allowed(self, action: Action) -> bool:
        """A guest the ledger never heard of keeps its cards. While the ledger was cut, only what is desired is touched."""
        if isinstance(action, UnbindPort) and tap_of(action.state.id) in self._strangers_taps():
            return False
        if self._ledger.trusted:
            return True
        match action:
            case RemoveNetwork() | RemoveSubnet():
                return False
            case UnbindPort():
                return action.state.id in self._ports
            case RemoveForward():
                return action.forward.port in self._forwards
            case _:
                return True

    def _strangers_taps(self) -> set[str]:
        """Return the TAPs of guests that are neither desired nor remembered."""
        return {tap for id, domain in self._world.domains.items() if id not in self._vms for tap in domain.taps}

    def _take(self, observed: Observed, done: list[Action], errors: dict[str, NetError]) -> None:
        """Conclude from what was there and what was done."""
        made = {action.network.vpc for action in done if isinstance(action, EnsureNetwork)}
        self._ready = {vpc for vpc in {*observed.networks, *made} if f"network/{vpc}" not in errors}
        bound = {id for id, state in observed.ports.items() if state.bound and id in self._ports}
        # Of what could not be looked at, what was seen before stays.
        self._unseen = {id for id, port in self._ports.items() if port.vpc in observed.unseen and id in self._bound}
        bound |= self._unseen
        bound -= {action.state.id for action in done if isinstance(action, UnbindPort)}
        bound |= {action.port.id for action in done if isinstance(action, BindPort)}
        self._bound = {id for id in bound if f"port/{id}" not in errors}
        self._errors = errors

    def _is_programmed(self, port: DesiredPort) -> bool:
        network = self._networks.get(port.vpc)
        if network is None or port.vpc not in self._ready:
            return False
        return any(subnet.id == port.subnet for subnet in network.subnets)

    def _report(self, ports: Set[str] | None = None) -> None:
        """Tell of ports; of all unless some are named."""
        for id in self._ports.keys() if ports is None else sorted(ports & self._ports.keys()):
            port = self._ports[id]
            held = self._ledger.desired.get(f"port/{id}")
            if held is None or id in self._unseen:
                continue
            error = self._errors.get(f"port/{id}") or self._errors.get(f"network/{port.vpc}")
            state = PortReport.STATE_UNSPECIFIED
            if error is not None:
                state = PortReport.STATE_FAILED
            elif self._is_programmed(port):
                state = PortReport.STATE_ACTIVE if id in self._bound else PortReport.STATE_READY
            body = PortReport(state=state, error=str(error) if error is not None else "")
            self._reports.put(Report(key=held.key, version=held.version, port=body))


def _ignore(_after_s: float) -> None:
    return None


def _with_peers(network: DesiredNetwork, peers: Mapping[str, DesiredPeer]) -> DesiredNetwork:
    """Return a network with peers added; it has some already when the controller does not know them as objects."""
    result = DesiredNetwork()
    result.CopyFrom(network)
    for node, peer in sorted(peers.items()):
        address, mac = peer.transit_address, peer.router_mac
        result.peers.add(node=node, vtep=peer.vtep, transit_address=address, router_mac=mac)
    return result


def _named(card: DesiredPort | DesiredForward | None) -> Named | None:
    return Named(card.vpc, card.hostname, tuple(card.addresses)) if card is not None else None


def _way(forward: DesiredForward | None) -> DesiredForward | None:
    """Return what of a forward is in the kernel, which knows no names."""
    if forward is not None:
        forward.hostname = ""
    return forward


def _put(where: dict[str, T], id: str, object: T | None) -> None:
    if object is None:
        where.pop(id, None)
    else:
        where[id] = object
