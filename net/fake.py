"""The dataplane that touches nothing: a model of the kernel's tables with fault knobs, shipped for tests and simulation.

`FakeNetHost` is the kernel: it survives the agent (drop the FakeDataplane, make another on the same host). Its `taps` are what
the hypervisor made on this host; a TAP that is taken out of the set vanishes wherever it is, one that is put in again is a new
device in the node's namespace. tests/conformance/test_dataplane.py runs on this and on the kernel.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from cairn.net import naming
from cairn.net.base import Action, NetError, Observed, PortState, Result, Wanted
from cairn.net.names import Named, Names
from cairn.net.plan import (
    AddForward,
    BindPort,
    EnsureNetwork,
    RemoveForward,
    RemoveNetwork,
    RemoveSubnet,
    SetPeers,
    UnbindPort,
    normal,
)
from cairn.proto.v1.agent_pb2 import DesiredForward, DesiredNetwork, DesiredPort


@dataclass(slots=True)
class FaultKnobs:
    """How it fails on purpose. Each entry: "observe", "apply" or the class name of an action -> how many more times."""

    # Raise before anything happened.
    fail_before: dict[str, int] = field(default_factory=dict)
    # Do it, then raise: the outcome is unknown to the caller.
    fail_after: dict[str, int] = field(default_factory=dict)
    # Do not return until let go.
    hang: dict[str, int] = field(default_factory=dict)
    hanging: list[asyncio.Event] = field(default_factory=list, repr=False)

    def take(self, knob: Mapping[str, int], name: str) -> bool:
        """Use up one of a knob's failures; whether there was one."""
        left = knob.get(name, 0)
        if left and isinstance(knob, dict):
            knob[name] = left - 1
        return left > 0

    async def wait(self, name: str) -> None:
        """Hang, if it is to."""
        if self.take(self.hang, name):
            self.hanging.append(asyncio.Event())
            await self.hanging[-1].wait()

    def let_go(self) -> None:
        """Nothing hangs any more; what hung goes on."""
        self.hang.clear()
        while self.hanging:
            self.hanging.pop().set()


class FakeTaps(set[str]):
    """TAP devices on a host. Adding one makes a device with an index of its own, as the kernel does."""

    def __init__(self, names: Iterable[str] = ()) -> None:
        super().__init__()
        self.indexes: dict[str, int] = {}
        self.listeners: list[Callable[[str], None]] = []
        self._next = 1
        for name in names:
            self.add(name)

    def add(self, name: str) -> None:
        """Make a TAP; there already: no change."""
        if name not in self:
            self._next += 1
            self.indexes[name] = self._next
            super().add(name)
            self._tell(name)

    def discard(self, name: object) -> None:
        """Remove a TAP; absent: no error."""
        if isinstance(name, str) and name in self:
            super().discard(name)
            del self.indexes[name]
            self._tell(name)

    def remove(self, name: str) -> None:
        """Remove a TAP; KeyError when absent."""
        if name not in self:
            raise KeyError(name)
        self.discard(name)

    def update(self, *others: Iterable[str]) -> None:
        """Make several."""
        for name in [name for other in others for name in other]:
            self.add(name)

    def difference_update(self, *others: Iterable[object]) -> None:
        """Remove several."""
        for name in [name for other in others for name in other]:
            self.discard(name)

    def clear(self) -> None:
        """Remove all."""
        for name in list(self):
            self.discard(name)

    def _tell(self, name: str) -> None:
        for listener in self.listeners:
            listener(name)


@dataclass(slots=True)
class _FakeNetwork:
    """A namespace: what it realises, who is bound in it, which TAPs (name -> index) were moved into it."""

    network: DesiredNetwork
    ports: dict[str, DesiredPort] = field(default_factory=dict)
    bound: set[str] = field(default_factory=set)
    forwards: dict[str, DesiredForward] = field(default_factory=dict)
    moved: dict[str, int] = field(default_factory=dict)
    complete: bool = True


@dataclass(slots=True)
class FakeNetHost:
    """One host's kernel."""

    taps: FakeTaps = field(default_factory=FakeTaps)
    networks: dict[str, _FakeNetwork] = field(default_factory=dict)

    def inside(self, vpc: str) -> set[str]:
        """TAPs that are in a VPC's namespace now."""
        have = self.networks.get(vpc)
        return {tap for tap in have.moved if self._is_inside(have, tap)} if have else set()

    def waiting(self) -> set[str]:
        """TAPs in the node's own namespace."""
        return set(self.taps) - {tap for vpc in self.networks for tap in self.inside(vpc)}

    def damage(self, vpc: str) -> None:
        """Do what a careless operator does: flush the rules of a network."""
        self.networks[vpc].complete = False

    def is_bound(self, port: str) -> bool:
        """Whether frames of that port flow."""
        return any(self._flows(vpc, port) for vpc in self.networks)

    def _flows(self, vpc: str, port: str) -> bool:
        have = self.networks[vpc]
        return port in have.bound and self._is_inside(have, have.ports[port].tap)

    def _is_inside(self, have: _FakeNetwork, tap: str) -> bool:
        moved = have.moved.get(tap)
        return moved is not None and self.taps.indexes.get(tap) == moved

    def observe(self) -> Observed:
        """Tell all that is there."""
        networks, forwards, strays = {}, {}, {}
        ports: dict[str, PortState] = {}
        for vpc, have in self.networks.items():
            networks[vpc] = normal(have.network)
            forwards.update(have.forwards)
            inside = self.inside(vpc)
            for id, port in have.ports.items():
                state = PortState(
                    id, vpc, port.subnet, tuple(sorted(port.addresses)), port.mac, self._flows(vpc, id), port.tap in inside
                )
                ports[id] = state
            if stray := frozenset(inside - {port.tap for port in have.ports.values()}):
                strays[vpc] = stray
        incomplete = frozenset(vpc for vpc, have in self.networks.items() if not have.complete)
        waiting = frozenset(tap for tap in self.waiting() if naming.port_of_tap(tap))
        return Observed(networks, ports, dict(forwards), waiting, strays, incomplete)

    def perform(self, action: Action) -> None:
        """Do one action to the model; NetError when the kernel would refuse."""
        match action:
            case EnsureNetwork(network=network):
                self._ensure(network)
            case SetPeers(network=network):
                have = self._network(network.vpc)
                del have.network.peers[:]
                have.network.peers.extend(network.peers)
            case RemoveSubnet(vpc=vpc, subnet=subnet):
                self._remove_subnet(vpc, subnet)
            case RemoveNetwork(vpc=vpc):
                if held := self.inside(vpc):
                    raise NetError(f"remove network {vpc}: a guest may hold {', '.join(sorted(held))}")
                self.networks.pop(vpc, None)
            case BindPort(port=port):
                self._bind(port)
            case UnbindPort(state=state):
                if (found := self.networks.get(state.vpc)) is not None:
                    found.ports.pop(state.id, None)
                    found.bound.discard(state.id)
            case AddForward(forward=forward):
                have = self._network(forward.vpc)
                if forward.subnet not in {subnet.id for subnet in have.network.subnets}:
                    raise NetError(f"{action.key}: no subnet {forward.subnet}")
                have.forwards[forward.port] = _shown(forward)
            case RemoveForward(forward=forward):
                if (found := self.networks.get(forward.vpc)) is not None:
                    found.forwards.pop(forward.port, None)
            case _:
                raise TypeError(f"not an action of net/plan.py: {action!r}")

    def _network(self, vpc: str) -> _FakeNetwork:
        if vpc not in self.networks:
            raise NetError(f"network {vpc} is not there")
        return self.networks[vpc]

    def _ensure(self, network: DesiredNetwork) -> None:
        copy = DesiredNetwork()
        copy.CopyFrom(network)
        have = self.networks.setdefault(network.vpc, _FakeNetwork(copy))
        before, have.network, have.complete = have.network, copy, True
        wanted = {subnet.id for subnet in network.subnets}
        copy.subnets.extend(subnet for subnet in before.subnets if subnet.id not in wanted)
        transit = [(n.transit_vni, n.vtep, n.transit_address) for n in (before, copy)]
        vnis = {subnet.id: subnet.vni for subnet in before.subnets}
        remade = {s.id for s in copy.subnets if transit[0] != transit[1] or vnis.get(s.id, s.vni) != s.vni}
        have.forwards = {id: f for id, f in have.forwards.items() if f.subnet not in remade}
        if before.mtu != copy.mtu:
            have.bound.clear()

    def _remove_subnet(self, vpc: str, subnet: str) -> None:
        have = self.networks.get(vpc)
        if have is None:
            return
        held = [port.tap for port in have.ports.values() if port.subnet == subnet and port.tap in self.inside(vpc)]
        if held:
            raise NetError(f"remove subnet {subnet}: a guest may hold {', '.join(held)}")
        kept = [item for item in have.network.subnets if item.id != subnet]
        del have.network.subnets[:]
        have.network.subnets.extend(kept)
        have.forwards = {id: forward for id, forward in have.forwards.items() if forward.subnet != subnet}

    def _bind(self, port: DesiredPort) -> None:
        have = self._network(port.vpc)
        if port.subnet not in {subnet.id for subnet in have.network.subnets}:
            raise NetError(f"bind port {port.id}: no subnet {port.subnet}")
        if port.tap not in self.inside(port.vpc) and port.tap not in self.waiting():
            raise NetError(f"bind port {port.id}: its TAP {port.tap} is not there yet")
        have.moved[port.tap] = self.taps.indexes[port.tap]
        have.ports[port.id] = port
        have.bound.add(port.id)


def _shown(forward: DesiredForward) -> DesiredForward:
    """Return what the kernel shows of a forward: no name, and nothing of a release to come."""
    result = DesiredForward()
    result.CopyFrom(forward)
    result.hostname = ""
    result.DiscardUnknownFields()
    return result


class FakeDataplane:
    """Dataplane on a FakeNetHost. latency_s: how long each call takes (on the loop's clock)."""

    def __init__(self, host: FakeNetHost, faults: FaultKnobs | None = None, *, latency_s: float = 0.0) -> None:
        self.host = host
        self.faults = faults if faults is not None else FaultKnobs()
        self.latency_s = latency_s
        self._pending: dict[str, None] = {}
        self._wake = asyncio.Event()
        self._closed = False
        host.taps.listeners.append(self._changed)

    async def observe(self) -> Observed:
        """Tell what is there."""
        await self._enter("observe")
        observed = self.host.observe()
        self._leave("observe")
        return observed

    async def apply(self, actions: Sequence[Action]) -> list[Result]:
        """Do them in order."""
        await self._enter("apply")
        results = [await self._perform(action) for action in actions]
        self._leave("apply")
        return results

    async def _perform(self, action: Action) -> Result:
        name = type(action).__name__
        try:
            await self._enter(name)
            self.host.perform(action)
            self._leave(name)
        except NetError as error:
            return Result(action, error)
        return Result(action)

    async def _enter(self, name: str) -> None:
        await asyncio.sleep(self.latency_s)
        await self.faults.wait(name)
        if self.faults.take(self.faults.fail_before, name):
            raise NetError(f"{name}: failed on purpose, nothing was done")

    def _leave(self, name: str) -> None:
        if self.faults.take(self.faults.fail_after, name):
            raise NetError(f"{name}: failed on purpose after it was done")

    async def events(self) -> AsyncIterator[str]:
        """Yield the keys of ports whose TAPs came or went."""
        while not self._closed:
            await self._wake.wait()
            self._wake.clear()
            while self._pending:
                key = next(iter(self._pending))
                del self._pending[key]
                yield key

    def _changed(self, tap: str) -> None:
        if port := naming.port_of_tap(tap):
            self._pending[f"port/{port}"] = None
            self._wake.set()

    async def close(self) -> None:
        """Let go; the host stays as it is."""
        self._closed = True
        self._wake.set()
        if self._changed in self.host.taps.listeners:
            self.host.taps.listeners.remove(self._changed)


class FakeGuestServices:
    """GuestServices that remembers what it was told to serve."""

    def __init__(self) -> None:
        self.wanted = Wanted()
        self.vms: Mapping[str, object] = {}
        self.names = Names()

    async def update(self, wanted: Wanted, vms: Mapping[str, object]) -> None:
        """Remember."""
        self.wanted = replace(wanted)
        self.vms = dict(vms)

    def named(self, key: str, card: Named | None) -> None:
        """Remember."""
        self.names.put(key, card)

    async def close(self) -> None:
        """Forget."""
        self.wanted, self.vms, self.names = Wanted(), {}, Names()
