"""The dataplane on Linux: one network namespace per VPC, bridges and VXLAN, forwarding entries without learning or flooding.

    node's own namespace                    namespace cairn-<vpc>
      underlay card  <=== UDP 4789 ===  vx-<subnet> ─┐
      tap-<port>  ── moved by BindPort ──> tap-<port> ┴ br-<subnet>  gateway address, the same MAC on every node
                     <=== UDP 4789 ===  l3x   transit: /32 routes to guests on other nodes (symmetric routing, RFC 9135)
                                        lo    169.254.169.254

A VXLAN device is made from the node's namespace straight into the VPC's: its UDP socket stays on the underlay, its frames never
see the node's own stack. Nothing is remembered: observe() reads the kernel (net/snapshot.py), every action is idempotent, and
what we make carries our names and marks. Blocking work runs in a few threads, one job per namespace at a time.
Forwards go down in batches of raw messages (net/rtnl.py), devices through pyroute2 (net/devices.py), rules through net/nft.py.
"""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Final, TypeVar

from cairn.net import devices, entries, namespace, naming, rtnl, snapshot
from cairn.net.base import Action, NetError, Observed, PortState, Result
from cairn.net.nft import RulesError
from cairn.net.plan import (
    AddForward,
    BindPort,
    EnsureNetwork,
    RemoveForward,
    RemoveNetwork,
    RemoveSubnet,
    SetPeers,
    UnbindPort,
)
from cairn.net.watch import Watch
from cairn.proto.log import logger
from cairn.proto.v1.agent_pb2 import DesiredForward, DesiredNetwork

T = TypeVar("T")
_BATCH: Final = 500
# A namespace is torn down in the background; until then its VNIs are taken (seen: up to 3.4 s).
_BUSY_TIMEOUT_S: Final = 8.0
_BUSY_POLL_S: Final = 0.2


class NetlinkDataplane:
    """Programs this node's kernel.

    node: the file of the node's own namespace (None: the one this process is in). prefix: of the names of namespaces, so that
    several nodes can be tried on one machine.
    """

    def __init__(self, *, node: Path | None = None, prefix: str = naming.NAMESPACE_PREFIX) -> None:
        self._node = os.open(node or Path("/proc/self/ns/net"), os.O_RDONLY | os.O_CLOEXEC)
        self._prefix = prefix
        self._threads = namespace.Threads()
        self._watch = Watch(self._node, prefix)
        if not namespace.are_lasting():
            logger("dataplane").warning(
                "namespaces_not_lasting",
                say="this process has a mount namespace of its own: its network namespaces end with it, and with them guests'"
                " networks; run the agent without mount sandboxing (systemd: ProtectSystem, PrivateTmp and the like)",
            )
        self._closed = False

    def namespace_of(self, vpc: str) -> str:
        """Return the name of a VPC's namespace on this node."""
        return self._prefix + naming.suffix(vpc)

    async def observe(self) -> Observed:
        """Read the kernel: every namespace of ours, and the TAPs that wait in the node's own."""
        found = [(name, vpc) for name in namespace.names(self._prefix) if (vpc := naming.vpc_of(name, self._prefix))]
        taps = await self._threads.run("", self._waiting_taps)
        parts = await asyncio.gather(*(self._look(name, vpc) for name, vpc in found))
        networks: dict[str, DesiredNetwork] = {}
        ports: dict[str, PortState] = {}
        forwards: dict[str, DesiredForward] = {}
        strays: dict[str, frozenset[str]] = {}
        incomplete: set[str] = set()
        unseen: dict[str, NetError] = {}
        for part in parts:
            networks |= part.networks
            ports |= part.ports
            forwards |= part.forwards
            strays |= part.stray_taps
            incomplete |= part.incomplete
            unseen |= part.unseen
        self._watch.follow(name for name, _ in found)
        return Observed(networks, ports, forwards, taps, strays, frozenset(incomplete), unseen)

    async def apply(self, actions: Sequence[Action]) -> list[Result]:
        """Do them; those of one VPC in order, VPCs beside each other."""
        queues: dict[str, list[int]] = {}
        for position, action in enumerate(actions):
            queues.setdefault(_vpc_of(action), []).append(position)
        results: dict[int, Result] = {}

        async def work(vpc: str, positions: list[int]) -> None:
            for _, group in groupby(positions, key=lambda position: type(actions[position])):
                queue = list(group)
                size = _BATCH if isinstance(actions[queue[0]], AddForward | RemoveForward) else 1
                for start in range(0, len(queue), size):
                    batch = queue[start : start + size]
                    errors = await self._perform(vpc, [actions[position] for position in batch])
                    results.update({p: Result(actions[p], error) for p, error in zip(batch, errors, strict=True)})

        async with asyncio.TaskGroup() as group:
            for vpc, positions in queues.items():
                group.create_task(work(vpc, positions))
        return [results[position] for position in range(len(actions))]

    def events(self) -> AsyncIterator[str]:
        """Yield keys of objects whose devices changed: a guest's TAP that came or went, a device of ours that vanished."""
        return self._watch.events()

    async def close(self) -> None:
        """Let go; everything stays in the kernel."""
        if not self._closed:
            self._closed = True
            self._watch.close()
            await self._threads.close()
            os.close(self._node)

    # --- observing ---------------------------------------------------------------------------------------------------------

    def _waiting_taps(self) -> frozenset[str]:
        """TAPs of guests in the node's namespace. One that is down is still being made, or being torn down by libvirt."""
        with namespace.entered(self._node), rtnl.Rtnl() as kernel:
            links = kernel.links()
        return frozenset(link.name for link in links if link.kind == "tun" and link.up and naming.port_of_tap(link.name))

    async def _look(self, name: str, vpc: str) -> Observed:
        """Look at one VPC; one that cannot be looked at hides none of the others."""
        try:
            return await self._threads.run(name, partial(self._observe, name, vpc))
        except NetError as error:
            return Observed(unseen={vpc: error})

    def _observe(self, name: str, vpc: str) -> Observed:
        try:
            view = self._inside(name, snapshot.read) if namespace.exists(name) else snapshot.Snapshot()
        except FileNotFoundError:
            return Observed()
        except (OSError, RulesError) as error:
            raise NetError(f"read the network namespace {name}: {error}") from error
        network, ports = snapshot.network(vpc, view), snapshot.ports(vpc, view)
        strays = snapshot.stray_taps(view, ports.values())
        return Observed(
            networks={vpc: network},
            ports=ports,
            forwards=snapshot.forwards(vpc, view),
            stray_taps={vpc: strays} if strays else {},
            incomplete=frozenset() if snapshot.is_complete(network, view) else frozenset({vpc}),
        )

    def _inside(self, name: str, job: Callable[[], T]) -> T:
        with namespace.opened(namespace.FOLDER / name) as handle, namespace.entered(handle):
            return job()

    # --- acting ------------------------------------------------------------------------------------------------------------

    async def _perform(self, vpc: str, batch: list[Action]) -> list[NetError | None]:
        """Do a batch of one VPC; one outcome per action."""
        name = self.namespace_of(vpc)
        if isinstance(batch[0], RemoveNetwork):
            self._watch.unfollow(name)
        deadline = asyncio.get_running_loop().time() + _BUSY_TIMEOUT_S
        while True:
            try:
                with self._watch.expecting(name):
                    return await self._threads.run(name, lambda: self._perform_blocking(name, batch))
            except NetError as error:
                return [error] * len(batch)
            except ValueError as error:
                # No address, no id, or of a family not carried: what one asks for must not end the pass of all others.
                wrapped = NetError(f"{_say(batch[0])}: {error}", retryable=False)
                wrapped.__cause__ = error
                return [wrapped] * len(batch)
            except (OSError, RulesError, devices.NetlinkError) as error:
                number = getattr(error, "errno", None) or getattr(error, "code", None)
                if number == errno.EEXIST and asyncio.get_running_loop().time() < deadline:
                    await asyncio.sleep(_BUSY_POLL_S)
                    continue
                wrapped = NetError(f"{_say(batch[0])}: {error}")
                wrapped.__cause__ = error
                return [wrapped] * len(batch)

    def _perform_blocking(self, name: str, batch: list[Action]) -> list[NetError | None]:
        action = batch[0]
        if isinstance(action, EnsureNetwork):
            namespace.create(name)
            with namespace.opened(namespace.FOLDER / name) as handle:
                devices.ensure(self._node, handle, action.network)
            return [None]
        if isinstance(action, RemoveNetwork):
            self._remove(name, action.vpc)
            return [None]
        if not namespace.exists(name):
            if isinstance(action, RemoveSubnet | RemoveForward | UnbindPort):
                return [None] * len(batch)
            raise NetError(f"{_say(action)}: the network namespace {name} is not there")
        if isinstance(action, BindPort):
            with namespace.opened(namespace.FOLDER / name) as handle:
                entries.fetch_tap(self._node, handle, action.port)
            self._inside(name, lambda: entries.bind(action.port))
            return [None]
        return self._inside(name, lambda: _perform_inside(batch))

    def _remove(self, name: str, vpc: str) -> None:
        if namespace.exists(name):
            self._inside(name, lambda: devices.clear(vpc))
        namespace.remove(name)


def _perform_inside(batch: list[Action]) -> list[NetError | None]:
    action = batch[0]
    if isinstance(action, SetPeers):
        entries.set_peers(action.network)
    elif isinstance(action, RemoveSubnet):
        entries.remove_subnet(action.subnet)
    elif isinstance(action, UnbindPort):
        entries.unbind(action.state)
    else:
        forwards = [item for item in batch if isinstance(item, AddForward | RemoveForward)]
        numbers = entries.set_forwards([item.forward for item in forwards], add=isinstance(action, AddForward))
        return [
            NetError(f"{_say(item)}: {os.strerror(number)}") if number else None
            for item, number in zip(forwards, numbers, strict=True)
        ]
    return [None]


def _vpc_of(action: Action) -> str:
    match action:
        case EnsureNetwork(network=network) | SetPeers(network=network):
            return network.vpc
        case RemoveSubnet(vpc=vpc) | RemoveNetwork(vpc=vpc):
            return vpc
        case BindPort(port=port):
            return port.vpc
        case UnbindPort(state=state):
            return state.vpc
        case AddForward(forward=forward) | RemoveForward(forward=forward):
            return forward.vpc
    raise TypeError(f"not an action of net/plan.py: {action!r}")


def _say(action: Action) -> str:
    return f"{type(action).__name__} {action.key}"
