"""What one VPC namespace holds, read from the kernel and told in the nouns of net/base.py.

Two steps: `read` dumps the tables (blocking, a few milliseconds for 1,000 ports), the rest is pure. Nothing is remembered
between observations: an agent that was killed sees the same as one that never was. An entry that lacks a part is told without
it, so it differs from what is wanted and is made again.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable
from dataclasses import dataclass, field
from ipaddress import IPv4Interface
from pathlib import Path
from typing import Final, TypeAlias

from cairn.net import naming, rtnl
from cairn.net.base import PortState
from cairn.net.nft import Binding, Rules
from cairn.proto.ids import GATEWAY_MAC, METADATA_ADDRESS
from cairn.proto.v1.agent_pb2 import DesiredForward, DesiredNetwork

IPV4 = socket.AF_INET
# Addresses of a guest, sorted, and the next hop to them.
_Reached: TypeAlias = tuple[tuple[str, ...], str]
# Path under /proc/sys -> value inside every VPC namespace. A path that does not exist (module absent) is left out.
SETTINGS: Final = {
    "net/ipv4/conf/all/send_redirects": "0",
    "net/ipv4/conf/default/send_redirects": "0",
    "net/ipv4/conf/all/accept_redirects": "0",
    "net/ipv4/conf/all/rp_filter": "0",
    "net/ipv4/conf/default/rp_filter": "0",
    "net/ipv6/conf/all/disable_ipv6": "1",
    "net/ipv6/conf/default/disable_ipv6": "1",
    # The frames were judged by the bridge family; do not hand them to the IP hooks a second time.
    "net/bridge/bridge-nf-call-iptables": "0",
    "net/bridge/bridge-nf-call-ip6tables": "0",
    "net/bridge/bridge-nf-call-arptables": "0",
    # Last: nothing is forwarded before the rest is in place.
    "net/ipv4/ip_forward": "1",
}


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The raw tables of a namespace."""

    links: dict[str, rtnl.Link] = field(default_factory=dict)
    addresses: tuple[rtnl.Address, ...] = ()
    neighbours: tuple[rtnl.Neighbour, ...] = ()
    fdb: tuple[rtnl.Neighbour, ...] = ()
    routes: tuple[rtnl.Route, ...] = ()
    rules_current: bool = False
    bindings: frozenset[Binding] = frozenset()
    settings_right: bool = False

    def addresses_of(self, name: str) -> list[rtnl.Address]:
        """Return the addresses of a device; none when it is absent."""
        link = self.links.get(name)
        return [address for address in self.addresses if link is not None and address.index == link.index]


def read(bindings_wanted: bool = True) -> Snapshot:
    """Dump the namespace the calling thread is in."""
    with rtnl.Rtnl() as kernel:
        links = {link.name: link for link in kernel.links()}
        addresses, neighbours = tuple(kernel.addresses()), tuple(kernel.neighbours(IPV4))
        fdb, routes = tuple(kernel.neighbours(rtnl.AF_BRIDGE)), tuple(kernel.routes())
    current, bindings = Rules().read() if bindings_wanted else (True, set[Binding]())
    return Snapshot(links, addresses, neighbours, fdb, routes, current, frozenset(bindings), _settings_right())


def _settings_right() -> bool:
    for name, value in SETTINGS.items():
        path = Path("/proc/sys") / name
        if path.exists() and path.read_text().strip() != value:
            return False
    return True


def apply_settings() -> None:
    """Set the namespace's parameters."""
    for name, value in SETTINGS.items():
        path = Path("/proc/sys") / name
        if path.exists() and path.read_text().strip() != value:
            path.write_text(value)


def network_alias(network: DesiredNetwork) -> str:
    """Return the mark of a transit device; being set last, it also says the network was completed once."""
    return f"cairn network={network.vpc} cidr={network.cidr}"


def port_alias(port: str, addresses: Iterable[str], mac: str) -> str:
    """Return the mark of a TAP."""
    return f"cairn port={port} address={','.join(addresses)} mac={mac}"


def alias_fields(alias: str) -> dict[str, str]:
    """Return what a mark of ours says; empty for anything else."""
    words = alias.split()
    if not words or words[0] != "cairn":
        return {}
    return dict(word.split("=", 1) for word in words[1:] if "=" in word)


def taps(snapshot: Snapshot) -> set[str]:
    """Return the TAP devices, whoever made them."""
    return {link.name for link in snapshot.links.values() if link.kind == "tun"}


def network(vpc: str, snapshot: Snapshot) -> DesiredNetwork:
    """Return the network as the kernel realises it."""
    result = DesiredNetwork(vpc=vpc)
    transit = snapshot.links.get(naming.TRANSIT)
    if transit is not None:
        result.cidr = alias_fields(transit.alias).get("cidr", "")
        result.transit_vni, result.vtep = transit.vxlan_id, transit.vxlan_local
        result.router_mac, result.mtu = transit.address, transit.mtu
        for address in snapshot.addresses_of(naming.TRANSIT):
            result.transit_address = address.address
        for transit_address, (mac, vtep) in sorted(peers(transit.index, snapshot).items()):
            result.peers.add(transit_address=transit_address, router_mac=mac, vtep=vtep)
    for id in sorted({naming.subnet_of(name) for name in snapshot.links} - {""}):
        subnet = result.subnets.add(id=id)
        tunnel = snapshot.links.get(naming.vxlan_of(id))
        subnet.vni = tunnel.vxlan_id if tunnel is not None else 0
        for address in snapshot.addresses_of(naming.bridge_of(id)):
            interface = IPv4Interface(f"{address.address}/{address.prefix_length}")
            subnet.gateway, subnet.cidr = address.address, str(interface.network)
    return result


def peers(transit: int, snapshot: Snapshot) -> dict[str, tuple[str, str]]:
    """Return transit address -> (router MAC, VTEP); parts that are missing are empty."""
    vteps = {entry.mac: entry.dst for entry in snapshot.fdb if entry.index == transit and entry.dst}
    found = {}
    for entry in snapshot.neighbours:
        if entry.index == transit and entry.state & rtnl.NUD_PERMANENT:
            found[entry.dst] = (entry.mac, vteps.pop(entry.mac, ""))
    # A VTEP without its neighbour: known by its MAC only.
    found.update({f"?{mac}": (mac, vtep) for mac, vtep in vteps.items()})
    return found


def is_complete(observed: DesiredNetwork, snapshot: Snapshot) -> bool:
    """Whether all that DesiredNetwork has no field for is as it should be."""
    transit = snapshot.links.get(naming.TRANSIT)
    if transit is None or not transit.up or not transit.alias or not snapshot.rules_current or not snapshot.settings_right:
        return False
    if METADATA_ADDRESS not in {address.address for address in snapshot.addresses_of("lo")}:
        return False
    return all(_subnet_complete(subnet.id, observed, snapshot) for subnet in observed.subnets)


def _subnet_complete(subnet: str, observed: DesiredNetwork, snapshot: Snapshot) -> bool:
    bridge, tunnel = snapshot.links.get(naming.bridge_of(subnet)), snapshot.links.get(naming.vxlan_of(subnet))
    if bridge is None or tunnel is None or not (bridge.up and tunnel.up) or tunnel.master != bridge.index:
        return False
    if bridge.address != GATEWAY_MAC or tunnel.port_flags != rtnl.TUNNEL_PORT or tunnel.vxlan_local != observed.vtep:
        return False
    return bridge.mtu == tunnel.mtu == observed.mtu


def forwards(vpc: str, snapshot: Snapshot) -> dict[str, DesiredForward]:
    """Return the forwards by port id; entries of one guest are told together, found by its MAC."""
    tunnels: dict[int, str] = {}
    bridges: dict[int, str] = {}
    for link in snapshot.links.values():
        if id := naming.subnet_of(link.name):
            (tunnels if link.name.startswith(naming.VXLAN_PREFIX) else bridges)[link.index] = id
    static = {
        (entry.index, entry.mac) for entry in snapshot.fdb if entry.index in tunnels and _is_static(entry)
    }  # fmt: skip
    addresses = _forward_addresses(bridges, snapshot)
    found: dict[str, DesiredForward] = {}
    for entry in snapshot.fdb:
        port = naming.port_of_mac(entry.mac)
        if entry.index not in tunnels or not entry.dst or not port:
            continue
        subnet = tunnels[entry.index]
        forward = DesiredForward(port=port, vpc=vpc, subnet=subnet, mac=entry.mac, vtep=entry.dst)
        if (entry.index, entry.mac) not in static:
            forward.vtep = ""
        held, forward.transit_address = addresses.get((subnet, entry.mac), ((), ""))
        forward.addresses.extend(held)
        found[port] = forward
    _add_remains(vpc, found, static, tunnels, addresses, snapshot)
    return found


def _is_static(entry: rtnl.Neighbour) -> bool:
    """Whether it is an entry as we make them in a bridge; the bridge's own, for its ports' MACs, are permanent instead."""
    return bool(entry.master) and entry.state == rtnl.NUD_NOARP


def _forward_addresses(bridges: dict[int, str], snapshot: Snapshot) -> dict[tuple[str, str], _Reached]:
    """(subnet, MAC) -> addresses of permanent neighbours, and the transit address all of them are routed to, "" if not all."""
    transit = snapshot.links.get(naming.TRANSIT)
    gateways = {
        route.dst: route.gateway
        for route in snapshot.routes
        if transit is not None and route.index == transit.index and route.prefix_length == 32
    }
    found: dict[tuple[str, str], _Reached] = {}
    for entry in snapshot.neighbours:
        if entry.index in bridges and entry.state & rtnl.NUD_PERMANENT:
            place, gateway = (bridges[entry.index], entry.mac), gateways.get(entry.dst, "")
            before, same = found.get(place, ((), gateway))
            found[place] = (tuple(sorted((*before, entry.dst))), gateway if gateway == same else "")
    return found


def _add_remains(
    vpc: str,
    found: dict[str, DesiredForward],
    static: Iterable[tuple[int, str]],
    tunnels: dict[int, str],
    addresses: dict[tuple[str, str], _Reached],
    snapshot: Snapshot,
) -> None:
    """Tell also entries whose VXLAN part is gone: bridge entries, and neighbours with a route."""
    for index, mac in static:
        if (port := naming.port_of_mac(mac)) and port not in found:
            held, transit = addresses.get((tunnels[index], mac), ((), ""))
            found[port] = DesiredForward(
                port=port, vpc=vpc, subnet=tunnels[index], mac=mac, addresses=held, transit_address=transit
            )
    for (subnet, mac), (held, transit) in addresses.items():
        port = naming.port_of_mac(mac)
        if port and transit and port not in found:
            found[port] = DesiredForward(port=port, vpc=vpc, subnet=subnet, mac=mac, addresses=held, transit_address=transit)
    known = {address for forward in found.values() for address in forward.addresses}
    transit_link = snapshot.links.get(naming.TRANSIT)
    for route in snapshot.routes:
        ours = transit_link is not None and route.index == transit_link.index and route.protocol == naming.ROUTE_PROTOCOL
        if ours and route.dst not in known:
            # A route alone, its guest unknown: removable, and it explains nothing that is wanted.
            found[f"?{vpc}/{route.dst}"] = DesiredForward(vpc=vpc, addresses=[route.dst], transit_address=route.gateway)


def ports(vpc: str, snapshot: Snapshot) -> dict[str, PortState]:
    """Return the ports by id: marked TAPs, and entries left by TAPs that are gone."""
    bridges = {link.index: naming.subnet_of(link.name) for link in snapshot.links.values() if link.kind == "bridge"}
    static = {(entry.index, entry.mac) for entry in snapshot.fdb if _is_static(entry)}
    permanent = {
        (entry.index, entry.dst, entry.mac) for entry in snapshot.neighbours if entry.state & rtnl.NUD_PERMANENT
    }  # fmt: skip
    found = {}
    for link in snapshot.links.values():
        fields = alias_fields(link.alias)
        if link.kind != "tun" or "port" not in fields:
            continue
        addresses, mac = tuple(filter(None, fields.get("address", "").split(","))), fields.get("mac", "")
        bridge = next((b for b in snapshot.links.values() if b.index == link.master), None)
        bound = (
            bridge is not None
            and link.up
            and link.mtu == bridge.mtu
            and link.port_flags == rtnl.GUEST_PORT
            and (link.index, mac) in static
            and bool(addresses)
            and all((link.master, address, mac) in permanent for address in addresses)
            and all(Binding(link.name, mac, address) in snapshot.bindings for address in addresses)
        )
        found[fields["port"]] = PortState(fields["port"], vpc, bridges.get(link.master, ""), addresses, mac, bound)
    for binding in sorted(snapshot.bindings):
        port = naming.port_of_tap(binding.tap)
        before = found.get(port)
        if port and (before is None or (not before.tap_present and before.mac == binding.mac)):
            behind = [bridges[i] for i, a, m in permanent if i in bridges and (a, m) == (binding.address, binding.mac)]
            subnet = behind[0] if behind else before.subnet if before is not None else ""
            addresses = (*(before.addresses if before is not None else ()), binding.address)
            found[port] = PortState(port, vpc, subnet, addresses, binding.mac, bound=False, tap_present=False)
    return found


def stray_taps(snapshot: Snapshot, ports: Iterable[PortState]) -> frozenset[str]:
    """Return TAPs no port explains."""
    explained = {"tap-" + naming.suffix(port.id) for port in ports if port.tap_present}
    return frozenset(taps(snapshot) - explained)
