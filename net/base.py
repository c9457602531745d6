"""The dataplane: tenant networks on this node. The nouns, and one example walked.

A *network* is one VPC's presence on this node: a network namespace with one bridge and VXLAN device per subnet, a transit
VXLAN device for routed traffic between nodes, and the gateway addresses. A *port* is a guest's card here: its TAP sits in the
subnet's bridge, and rules bind it to its MAC and address. A *forward* is a guest's card on another node: static forwarding,
neighbour and host-route entries, from the control plane, so nothing is flooded or learned.

    wanted = Wanted(networks={…}, ports={…}, forwards={…})
    actions = plan(wanted, await dataplane.observe())     # net/plan.py: pure; empty when the world matches
    results = await dataplane.apply(actions)              # one result per action; idempotent

A TAP is made by the hypervisor in the node's namespace; BindPort moves it into the VPC's. Never remove a namespace or TAP a
running guest holds: the plan refuses to (field experience: QEMU aborts). Drivers: netlink.py and fake.py;
tests/conformance/test_dataplane.py runs on both.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from cairn.net.names import Named
from cairn.proto.v1.agent_pb2 import DesiredForward, DesiredNetwork, DesiredPort


class NetError(Exception):
    """What was attempted on what, and why it failed."""

    def __init__(self, say: str, *, retryable: bool = True) -> None:
        super().__init__(say)
        self.retryable = retryable


@dataclass(frozen=True, slots=True)
class Wanted:
    """What this node must hold, by id: networks by VPC id, ports and forwards by port id."""

    networks: Mapping[str, DesiredNetwork] = field(default_factory=dict)
    ports: Mapping[str, DesiredPort] = field(default_factory=dict)
    forwards: Mapping[str, DesiredForward] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class PortState:
    """A port as observed. bound: its TAP is in the bridge, its rules are in place."""

    id: str
    vpc: str
    subnet: str
    # Each of either family, sorted.
    addresses: tuple[str, ...]
    mac: str
    bound: bool
    # False: its TAP is gone (the guest stopped) and what is left are entries that name it.
    tap_present: bool = True


@dataclass(frozen=True, slots=True)
class Observed:
    """What is in the kernel, as far as it is ours. Equality with the wanted objects is what net/plan.py decides on."""

    # Networks are observed as the desired object they realise; a half-made one lacks what is missing.
    networks: Mapping[str, DesiredNetwork] = field(default_factory=dict)
    ports: Mapping[str, PortState] = field(default_factory=dict)
    forwards: Mapping[str, DesiredForward] = field(default_factory=dict)
    # TAPs of guests present in the node's own namespace, waiting to be bound.
    waiting_taps: frozenset[str] = frozenset()
    # TAPs in a VPC namespace that no observed port explains, by VPC id: a guest may hold them.
    stray_taps: Mapping[str, frozenset[str]] = field(default_factory=dict)
    # VPCs whose namespace lacks something no field of DesiredNetwork shows (rules, settings, flags of devices).
    incomplete: frozenset[str] = frozenset()
    # VPCs that could not be looked at, and why: what is there of them is not known, and nothing is planned for them.
    unseen: Mapping[str, NetError] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Action:
    """Base of what a plan consists of. Subclasses are in net/plan.py: one per verb and noun."""

    @property
    def key(self) -> str:
        """Key of the desired object it serves ("network/…", "port/…", "forward/…")."""
        raise TypeError(f"{type(self).__name__} must say which object it serves")


@dataclass(frozen=True, slots=True)
class Result:
    """Outcome of one action; error None: done."""

    action: Action
    error: NetError | None = None


class Dataplane(Protocol):
    """What the agent needs of the node's networking."""

    async def observe(self) -> Observed:
        """Return what is there."""
        ...

    async def apply(self, actions: Sequence[Action]) -> list[Result]:
        """Do them in order; a failed one does not stop those of other keys."""
        ...

    def events(self) -> AsyncIterator[str]:
        """Yield the key of an object whose kernel state changed behind our back ("": look at all)."""
        ...

    async def close(self) -> None:
        """Let go; the networks keep working."""
        ...


class GuestServices(Protocol):
    """DHCP, names and metadata, answered on the node for every network present. net/services.py; needs only sockets."""

    async def update(self, wanted: Wanted, vms: Mapping[str, object]) -> None:
        """Serve exactly these networks, ports and VMs (by VM id, DesiredVm) from now on."""
        ...

    def named(self, key: str, card: Named | None) -> None:
        """Answer for what a card is called from now on; None: no longer. key: of the desired object that says so."""
        ...

    async def close(self) -> None:
        """Stop serving."""
        ...
