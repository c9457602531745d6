"""What must be done so that this node's networking is what is wanted. Pure: (wanted, observed) -> ordered actions.

Invariants: the plan of the state a plan leads to is empty; nothing is ever planned that could take a TAP away from a guest: a
namespace that holds any TAP is not removed, a subnet that holds one is not either, and no action removes a TAP (the hypervisor
does, when the guest ends). Order: first what is stale goes, then networks, then ports, then forwards, then networks that went
out of use: a guest that moved here from another node loses its forward before it gets its port, as both use the same entries.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass

from cairn.net.base import Action, Observed, PortState, Wanted
from cairn.proto.ids import tap_of
from cairn.proto.v1.agent_pb2 import DesiredForward, DesiredNetwork, DesiredPort, DesiredSubnet


@dataclass(frozen=True, slots=True)
class EnsureNetwork(Action):
    """Make or complete a namespace: devices, addresses, rules, peers."""

    network: DesiredNetwork

    @property
    def key(self) -> str:
        """Key of the network."""
        return f"network/{self.network.vpc}"


@dataclass(frozen=True, slots=True)
class SetPeers(Action):
    """Make the transit entries exactly those of the network's peers."""

    network: DesiredNetwork

    @property
    def key(self) -> str:
        """Key of the network."""
        return f"network/{self.network.vpc}"


@dataclass(frozen=True, slots=True)
class RemoveSubnet(Action):
    """Remove a subnet's devices from a namespace."""

    vpc: str
    subnet: str

    @property
    def key(self) -> str:
        """Key of the network."""
        return f"network/{self.vpc}"


@dataclass(frozen=True, slots=True)
class RemoveNetwork(Action):
    """Remove a namespace and all in it; refused when a TAP is in it."""

    vpc: str

    @property
    def key(self) -> str:
        """Key of the network."""
        return f"network/{self.vpc}"


@dataclass(frozen=True, slots=True)
class BindPort(Action):
    """Put a port's TAP into its subnet's bridge, with its rules and entries."""

    port: DesiredPort

    @property
    def key(self) -> str:
        """Key of the port."""
        return f"port/{self.port.id}"


@dataclass(frozen=True, slots=True)
class UnbindPort(Action):
    """Take back a port's rules and entries; its TAP, if any, stays, cut off."""

    state: PortState

    @property
    def key(self) -> str:
        """Key of the port."""
        return f"port/{self.state.id}"


@dataclass(frozen=True, slots=True)
class AddForward(Action):
    """Program the entries of a guest's card on another node."""

    forward: DesiredForward

    @property
    def key(self) -> str:
        """Key of the forward."""
        return f"forward/{self.forward.vpc}/{self.forward.port}"


@dataclass(frozen=True, slots=True)
class RemoveForward(Action):
    """Remove exactly the observed entries; empty fields were not there."""

    forward: DesiredForward

    @property
    def key(self) -> str:
        """Key of the forward."""
        return f"forward/{self.forward.vpc}/{self.forward.port}"


def plan(wanted: Wanted, observed: Observed, *, started_taps: Collection[str] | None = None) -> list[Action]:
    """Return the actions, in order; empty when the world matches.

    started_taps: the TAPs of domains whose start has returned; only those are moved. None: every TAP that waits. A TAP
    moved while the hypervisor still sets it up makes the start fail, so callers that start guests must say which are ready.
    """
    wanted = _seen(wanted, observed)
    removable = {
        vpc for vpc in observed.networks if vpc not in wanted.networks and not _is_held(vpc, observed)
    }  # fmt: skip
    binds = list(_binds(wanted, observed, started_taps))
    return [
        *_stale_forwards(wanted, observed, removable),
        *_stale_ports(wanted, observed, removable),
        *_networks(wanted, observed),
        *binds,
        *_vacated(wanted, observed, binds),
        *_forwards(wanted, observed),
        *(RemoveNetwork(vpc) for vpc in sorted(removable)),
    ]


def _seen(wanted: Wanted, observed: Observed) -> Wanted:
    """Return what is wanted of the VPCs that could be looked at."""
    unseen = observed.unseen
    if not unseen:
        return wanted
    return Wanted(
        {vpc: each for vpc, each in wanted.networks.items() if vpc not in unseen},
        {id: each for id, each in wanted.ports.items() if each.vpc not in unseen},
        {id: each for id, each in wanted.forwards.items() if each.vpc not in unseen},
    )


def plan_forwards(wanted: Wanted, observed: Observed) -> list[Action]:
    """Return what of a plan is about forwards, where networks and ports are as wanted: costs what there is of forwards."""
    return [*_stale_forwards(wanted, observed, set()), *_forwards(wanted, observed)]


def normal(network: DesiredNetwork) -> DesiredNetwork:
    """Return the network as the kernel can show it: without names, everything in a fixed order."""
    result = DesiredNetwork()
    result.CopyFrom(network)
    result.domain = ""
    # Those of a release to come: messages are equal when their unknown fields are, and the kernel shows none.
    result.DiscardUnknownFields()
    peers, subnets = sorted(result.peers, key=lambda p: p.transit_address), sorted(result.subnets, key=lambda s: s.id)
    del result.peers[:], result.subnets[:]
    result.subnets.extend(subnets)
    for peer in peers:
        result.peers.add(vtep=peer.vtep, transit_address=peer.transit_address, router_mac=peer.router_mac)
    return result


def _is_held(vpc: str, observed: Observed) -> bool:
    return bool(observed.stray_taps.get(vpc)) or any(p.vpc == vpc and p.tap_present for p in observed.ports.values())


def _stale_forwards(wanted: Wanted, observed: Observed, removable: set[str]) -> Iterator[Action]:
    for id, forward in sorted(observed.forwards.items()):
        if forward.vpc not in removable and not _replaceable(forward, wanted.forwards.get(id)):
            yield RemoveForward(forward)


def _replaceable(forward: DesiredForward, want: DesiredForward | None) -> bool:
    """Whether programming what is wanted overwrites all of it, without a moment in between (a guest that migrated)."""
    if want is None or (forward.vpc, forward.mac) != (want.vpc, want.mac):
        return False
    return forward.subnet == want.subnet and set(forward.addresses) <= set(want.addresses)


def _is_stale(state: PortState, port: DesiredPort | None) -> bool:
    if port is None or (state.vpc, state.addresses, state.mac) != (port.vpc, tuple(sorted(port.addresses)), port.mac):
        return True
    return state.tap_present and state.subnet != port.subnet


def _stale_ports(wanted: Wanted, observed: Observed, removable: set[str]) -> Iterator[Action]:
    for id, state in sorted(observed.ports.items()):
        if state.vpc not in removable and _is_stale(state, wanted.ports.get(id)):
            yield UnbindPort(state)


def _networks(wanted: Wanted, observed: Observed) -> Iterator[Action]:
    for vpc, network in sorted(wanted.networks.items()):
        want, have = normal(network), observed.networks.get(vpc)
        if have is None:
            yield EnsureNetwork(network)
            continue
        have = normal(have)
        keep = {subnet.id for subnet in want.subnets}
        surplus = [s.id for s in have.subnets if s.id not in keep and not _has_tap(vpc, s.id, observed)]
        yield from (RemoveSubnet(vpc, subnet) for subnet in surplus)
        if vpc in observed.incomplete or not _same_devices(want, have, keep):
            yield EnsureNetwork(network)
        elif list(want.peers) != list(have.peers):
            yield SetPeers(network)


def _vacated(wanted: Wanted, observed: Observed, binds: Iterable[BindPort]) -> Iterator[Action]:
    """Remove subnets that are not wanted and whose every TAP has just been bound in another."""
    bound = {bind.port.tap for bind in binds}
    for vpc, network in sorted(wanted.networks.items()):
        have, keep = observed.networks.get(vpc), {subnet.id for subnet in network.subnets}
        strays = observed.stray_taps.get(vpc, frozenset())
        for subnet in () if have is None else normal(have).subnets:
            held = {tap_of(p.id) for p in observed.ports.values() if (p.vpc, p.subnet) == (vpc, subnet.id) and p.tap_present}
            if subnet.id not in keep and (held or strays) and held | strays <= bound:
                yield RemoveSubnet(vpc, subnet.id)


def _has_tap(vpc: str, subnet: str, observed: Observed) -> bool:
    if observed.stray_taps.get(vpc):
        return True
    return any(p.vpc == vpc and p.subnet == subnet and p.tap_present for p in observed.ports.values())


def _same_devices(want: DesiredNetwork, have: DesiredNetwork, keep: set[str]) -> bool:
    first, second = DesiredNetwork(), DesiredNetwork()
    first.CopyFrom(want)
    second.CopyFrom(have)
    del first.peers[:], second.peers[:], second.subnets[:]
    second.subnets.extend(subnet for subnet in have.subnets if subnet.id in keep)
    return first == second


def _subnet(network: DesiredNetwork | None, id: str) -> DesiredSubnet | None:
    return next((s for s in network.subnets if s.id == id), None) if network is not None else None


def _binds(wanted: Wanted, observed: Observed, started_taps: Collection[str] | None) -> Iterator[BindPort]:
    for id, port in sorted(wanted.ports.items()):
        network, have = wanted.networks.get(port.vpc), observed.networks.get(port.vpc)
        if network is None or _subnet(network, port.subnet) is None:
            continue
        state = observed.ports.get(id)
        same_mtu = have is not None and have.mtu == network.mtu
        if state is not None and state.bound and same_mtu and not _is_stale(state, port):
            continue
        inside = (state is not None and state.tap_present) or port.tap in observed.stray_taps.get(port.vpc, ())
        waiting = port.tap in observed.waiting_taps and (started_taps is None or port.tap in started_taps)
        if inside or waiting:
            yield BindPort(port)


def _forwards(wanted: Wanted, observed: Observed) -> Iterator[Action]:
    # (VPC, subnet) -> whether all its forwards are lost; None: it is not wanted. Looked up once: forwards are many.
    remade: dict[tuple[str, str], bool | None] = {}
    for id, forward in sorted(wanted.forwards.items()):
        place = (forward.vpc, forward.subnet)
        if place not in remade:
            network = wanted.networks.get(forward.vpc)
            subnet = _subnet(network, forward.subnet)
            remade[place] = None if network is None or subnet is None else _is_remade(network, subnet, observed)
        if remade[place] is not None and (remade[place] or not _is_same(observed.forwards.get(id), forward)):
            yield AddForward(forward)


def _is_same(have: DesiredForward | None, want: DesiredForward) -> bool:
    """Whether all of it is there; in which order addresses are told is nothing the kernel knows."""
    if have is None or have == want:
        return have is not None
    if sorted(have.addresses) != sorted(want.addresses):
        return False
    ordered = DesiredForward()
    ordered.CopyFrom(want)
    ordered.addresses[:] = have.addresses
    return have == ordered


def _is_remade(network: DesiredNetwork, subnet: DesiredSubnet, observed: Observed) -> bool:
    """Whether EnsureNetwork will make the device again that holds the subnet's forwards."""
    have = observed.networks.get(network.vpc)
    have_subnet = _subnet(have, subnet.id)
    if have is None or have_subnet is None:
        return True
    transit = (network.transit_vni, network.vtep, network.transit_address)
    return have_subnet.vni != subnet.vni or transit != (have.transit_vni, have.vtep, have.transit_address)
