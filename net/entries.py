"""Ports, forwards and peers of a VPC namespace: many small entries, sent as raw messages. Blocking; idempotent.

Every function but `fetch_tap` works in the namespace the calling thread is in. Indexes are looked up each time: a TAP that was
made again has the same name and another index.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Sequence
from ipaddress import IPv4Address

from cairn.net import namespace, naming, rtnl, snapshot
from cairn.net.base import NetError, PortState
from cairn.net.nft import Binding, Rules
from cairn.proto.addresses import is_ipv6
from cairn.proto.v1.agent_pb2 import DesiredForward, DesiredNetwork, DesiredPort

_GONE = {0, errno.ENOENT, errno.ESRCH, errno.ENODEV}


def fetch_tap(node: int, vpc: int, port: DesiredPort) -> None:
    """Move a port's TAP from the node's namespace into the VPC's, unless it is there already; NetError: it is in neither."""
    with namespace.entered(vpc), rtnl.Rtnl() as kernel:
        if kernel.link(port.tap) is not None:
            return
    with namespace.entered(node), rtnl.Rtnl() as kernel:
        tap = kernel.link(port.tap)
        if tap is None:
            raise NetError(f"bind port {port.id}: its TAP {port.tap} is not there yet")
        kernel.must(rtnl.set_link(tap.index, rtnl.attribute(rtnl.IFLA_NET_NS_FD, struct.pack("=I", vpc))))


def bind(port: DesiredPort) -> None:
    """Put a TAP into its bridge. Rules first, up last: at no moment does an unfiltered frame pass."""
    _only_ipv4(port)
    with rtnl.Rtnl() as kernel:
        tap, bridge = kernel.link(port.tap), kernel.link(naming.bridge_of(port.subnet))
        if tap is None or bridge is None:
            raise NetError(f"bind port {port.id}: {port.tap if tap is None else naming.bridge_of(port.subnet)} is not there")
        before = snapshot.alias_fields(tap.alias)
        held = before.get("address", "").split(",") if {"mac", "address"} <= set(before) else []
        stale = [Binding(port.tap, before["mac"], address) for address in held]
        Rules().bind([Binding(port.tap, port.mac, address) for address in port.addresses], stale)
        alias = snapshot.port_alias(port.id, sorted(port.addresses), port.mac).encode()
        kernel.must(
            rtnl.set_link(tap.index, rtnl.attribute(rtnl.IFLA_IFALIAS, alias)),
            rtnl.set_link(tap.index, rtnl.attribute(rtnl.IFLA_MTU, struct.pack("=I", bridge.mtu))),
            rtnl.set_link(tap.index, rtnl.attribute(rtnl.IFLA_MASTER, struct.pack("=I", bridge.index))),
            rtnl.port_flags(tap.index, rtnl.GUEST_PORT),
            rtnl.bridge_fdb(tap.index, port.mac),
            *(rtnl.neighbour(bridge.index, address, port.mac) for address in port.addresses),
            rtnl.set_link(tap.index, up=True),
        )


def unbind(state: PortState) -> None:
    """Take back a port's entries. A TAP that is still there is cut off and loses our mark, but stays."""
    name = "tap-" + naming.suffix(state.id)
    with rtnl.Rtnl() as kernel:
        tap = kernel.link(name)
        if tap is not None:
            kernel.must(
                rtnl.set_link(tap.index, up=False),
                rtnl.set_link(tap.index, rtnl.attribute(rtnl.IFLA_MASTER, struct.pack("=I", 0))),
                rtnl.set_link(tap.index, rtnl.attribute(rtnl.IFLA_IFALIAS, b"")),
                missing_is_fine=True,
            )
        bridge = kernel.link(naming.bridge_of(state.subnet)) if state.subnet else None
        if bridge is not None and state.addresses:
            there = {(entry.index, entry.dst, entry.mac) for entry in kernel.neighbours(snapshot.IPV4)}
            ours = [address for address in state.addresses if (bridge.index, address, state.mac) in there]
            gone = [rtnl.neighbour(bridge.index, address, state.mac, add=False) for address in ours]
            kernel.must(*gone, missing_is_fine=True)
    if state.mac and state.addresses:
        Rules().bind([], [Binding(name, state.mac, address) for address in state.addresses])


def _only_ipv4(port: DesiredPort) -> None:
    """Refuse what this dataplane does not carry. Raises NetError; ValueError for what is no address."""
    for address in port.addresses:
        if is_ipv6(address):
            raise NetError(f"bind port {port.id}: its address {address} is IPv6, which is not carried yet", retryable=False)
        IPv4Address(address)


def set_forwards(forwards: Sequence[DesiredForward], *, add: bool) -> list[int]:
    """Add or remove forwards; return one errno each, 0 for done."""
    messages: list[rtnl.Message] = []
    owners: list[int] = []
    results = [0] * len(forwards)
    with rtnl.Rtnl() as kernel:
        links = {link.name: link.index for link in kernel.links()}
        for position, forward in enumerate(forwards):
            if any(is_ipv6(address) for address in forward.addresses):
                # Not carried yet.
                results[position] = errno.EAFNOSUPPORT
                continue
            parts = _added(forward, links) if add else _removed(forward, links)
            if parts is None:
                results[position] = errno.ENODEV
                continue
            messages += parts
            owners += [position] * len(parts)
        for owner, number in zip(owners, kernel.request(messages), strict=True):
            if number and not results[owner] and (add or number not in _GONE):
                results[owner] = number
    return results


def _indexes(forward: DesiredForward, links: dict[str, int]) -> tuple[int, int, int]:
    transit = links.get(naming.TRANSIT, 0)
    if not forward.subnet:
        return 0, 0, transit
    return links.get(naming.vxlan_of(forward.subnet), 0), links.get(naming.bridge_of(forward.subnet), 0), transit


def _added(forward: DesiredForward, links: dict[str, int]) -> list[rtnl.Message] | None:
    tunnel, bridge, transit = _indexes(forward, links)
    if not (tunnel and bridge and transit):
        return None
    messages = [rtnl.tunnel_fdb(tunnel, forward.mac, forward.vtep), rtnl.bridge_fdb(tunnel, forward.mac)]
    for address in forward.addresses:
        messages.append(rtnl.neighbour(bridge, address, forward.mac))
        messages.append(rtnl.host_route(transit, address, forward.transit_address, naming.ROUTE_PROTOCOL))
    return messages


def _removed(forward: DesiredForward, links: dict[str, int]) -> list[rtnl.Message]:
    tunnel, bridge, transit = _indexes(forward, links)
    messages = []
    if tunnel and forward.mac:
        # Without a VTEP: whatever it points to.
        messages += [rtnl.tunnel_fdb(tunnel, forward.mac, "", add=False), rtnl.bridge_fdb(tunnel, forward.mac, add=False)]
    for address in forward.addresses:
        if bridge:
            messages.append(rtnl.neighbour(bridge, address, forward.mac, add=False))
        if transit and forward.transit_address:
            messages.append(rtnl.host_route(transit, address, "", naming.ROUTE_PROTOCOL, add=False))
    return messages


def set_peers(network: DesiredNetwork) -> None:
    """Make the transit entries exactly those of the peers: neighbour and VTEP of each router MAC."""
    with rtnl.Rtnl() as kernel:
        transit = kernel.link(naming.TRANSIT)
        if transit is None:
            raise NetError(f"set the peers of network {network.vpc}: its transit device is not there")
        neighbours = [n for n in kernel.neighbours(snapshot.IPV4) if n.index == transit.index and n.state & rtnl.NUD_PERMANENT]
        tunnels = [n for n in kernel.neighbours(rtnl.AF_BRIDGE) if n.index == transit.index and n.dst]
        addresses = {peer.transit_address for peer in network.peers}
        macs = {peer.router_mac for peer in network.peers}
        stale = [rtnl.neighbour(transit.index, n.dst, n.mac, add=False) for n in neighbours if n.dst not in addresses]
        stale += [rtnl.tunnel_fdb(transit.index, n.mac, "", add=False) for n in tunnels if n.mac not in macs]
        kernel.must(*stale, missing_is_fine=True)
        for peer in network.peers:
            kernel.must(
                rtnl.neighbour(transit.index, peer.transit_address, peer.router_mac),
                rtnl.tunnel_fdb(transit.index, peer.router_mac, peer.vtep),
            )


def remove_subnet(subnet: str) -> None:
    """Remove a subnet's devices; NetError when a TAP is still in its bridge."""
    with rtnl.Rtnl() as kernel:
        links = kernel.links()
        bridge = next((link for link in links if link.name == naming.bridge_of(subnet)), None)
        held = [link.name for link in links if bridge and link.master == bridge.index and link.kind == "tun"]
        if held:
            raise NetError(f"remove subnet {subnet}: a guest may hold {', '.join(held)}")
        for name in (naming.vxlan_of(subnet), naming.bridge_of(subnet)):
            link = next((link for link in links if link.name == name), None)
            if link is not None and (number := kernel.request([rtnl.delete_link(link.index)])[0]) not in _GONE:
                raise OSError(number, f"remove {name}: {os.strerror(number)}")
