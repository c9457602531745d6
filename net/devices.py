"""Makes and removes the devices of a VPC namespace, through pyroute2. Blocking; called in a thread of net/namespace.py.

Invariant: `ensure` may be interrupted anywhere and repeated; it sets the mark on the transit device last. A pyroute2 socket is
opened and closed within one job on one thread: used from another thread, IPRoute (0.9) silently opens a new socket in that
thread's namespace.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Network
from typing import Any, Final

from cairn.net import entries, namespace, naming, rtnl, snapshot
from cairn.net.base import NetError
from cairn.net.nft import Rules
from cairn.proto.ids import GATEWAY_MAC, METADATA_ADDRESS
from cairn.proto.v1.agent_pb2 import DesiredNetwork, DesiredSubnet
from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

__all__ = ["NetlinkError", "clear", "ensure"]

_TTL: Final = 64


@contextmanager
def _route_socket(handle: int) -> Iterator[Any]:
    with namespace.entered(handle):
        socket = IPRoute()
        try:
            yield socket
        finally:
            socket.close()


@dataclass(frozen=True, slots=True)
class _Workshop:
    """What one `ensure` works with: sockets of both namespaces, and what was there before."""

    node: Any
    vpc: Any
    kernel: rtnl.Rtnl
    handle: int
    before: snapshot.Snapshot
    network: DesiredNetwork

    def index(self, name: str) -> int:
        """Return a device's index; NetError when it is absent."""
        link = self.kernel.link(name)
        if link is None:
            raise NetError(f"device {name} vanished while the network {self.network.vpc} was made")
        return link.index

    def set_mac(self, name: str, mac: str) -> None:
        """Set a device's MAC if it differs: setting it, even to the same, drops all its neighbours, permanent ones too."""
        have = self.before.links.get(name)
        if have is not None and have.address != mac:
            self.vpc.link("set", index=self.index(name), address=mac)


def ensure(node: int, vpc: int, network: DesiredNetwork) -> None:
    """Make or complete a namespace. node, vpc: open namespace files.

    Raises NetlinkError with code EEXIST while a VNI is still held by a namespace that is being torn down.
    """
    if not network.mtu or not network.vtep:
        raise NetError(f"network {network.vpc}: MTU and VTEP must be given", retryable=False)
    with namespace.entered(vpc):
        snapshot.apply_settings()
        Rules().ensure()
        before = snapshot.read(bindings_wanted=False)
    with _route_socket(node) as outside, _route_socket(vpc) as inside, rtnl.Rtnl() as kernel:
        shop = _Workshop(outside, inside, kernel, vpc, before, network)
        loopback = shop.index("lo")
        inside.link("set", index=loopback, state="up")
        _set_addresses(shop, "lo", [(METADATA_ADDRESS, 32)], keep=("127.0.0.1",))
        for subnet in network.subnets:
            _ensure_subnet(shop, subnet)
        _ensure_transit(shop)
        entries.set_peers(network)
        inside.link("set", index=shop.index(naming.TRANSIT), ifalias=snapshot.network_alias(network))


def _ensure_tunnel(shop: _Workshop, name: str, vni: int, address: str = "") -> int:
    """Make the VXLAN device unless the right one is there; return its index."""
    have, network = shop.before.links.get(name), shop.network
    if have is not None and (have.vxlan_id, have.vxlan_local) != (vni, network.vtep):
        shop.vpc.link("del", index=have.index)
        have = None
    if have is None:
        more = {"address": address} if address else {}
        shop.node.link(
            "add", ifname=name, kind="vxlan", vxlan_id=vni, vxlan_local=network.vtep, vxlan_port=naming.VXLAN_PORT,
            vxlan_learning=0, vxlan_ttl=_TTL, net_ns_fd=shop.handle, mtu=network.mtu, group=naming.LINK_GROUP, **more,
        )  # fmt: skip
        return shop.index(name)
    return have.index


def _ensure_subnet(shop: _Workshop, subnet: DesiredSubnet) -> None:
    network, name = shop.network, naming.bridge_of(subnet.id)
    if name not in shop.before.links:
        shop.vpc.link(
            "add", ifname=name, kind="bridge", address=GATEWAY_MAC, mtu=network.mtu, br_mcast_snooping=0,
            group=naming.LINK_GROUP,
        )  # fmt: skip
    bridge = shop.index(name)
    alias = f"cairn subnet={subnet.id}"
    shop.set_mac(name, GATEWAY_MAC)
    shop.vpc.link("set", index=bridge, ifalias=alias, mtu=network.mtu, state="up")
    tunnel = _ensure_tunnel(shop, naming.vxlan_of(subnet.id), subnet.vni)
    shop.vpc.link("set", index=tunnel, master=bridge, mtu=network.mtu, ifalias=alias)
    shop.kernel.must(rtnl.port_flags(tunnel, rtnl.TUNNEL_PORT), rtnl.set_link(tunnel, up=True))
    _set_addresses(shop, name, [(subnet.gateway, IPv4Network(subnet.cidr).prefixlen)])


def _ensure_transit(shop: _Workshop) -> None:
    network = shop.network
    index = _ensure_tunnel(shop, naming.TRANSIT, network.transit_vni, network.router_mac)
    shop.set_mac(naming.TRANSIT, network.router_mac)
    shop.vpc.link("set", index=index, mtu=network.mtu, state="up")
    _set_addresses(shop, naming.TRANSIT, [(network.transit_address, naming.TRANSIT_PREFIX_LENGTH)])


def _set_addresses(shop: _Workshop, name: str, wanted: list[tuple[str, int]], keep: tuple[str, ...] = ()) -> None:
    index = shop.index(name)
    have = [(a.address, a.prefix_length) for a in shop.before.addresses if a.index == index]
    for address, length in wanted:
        if (address, length) not in have:
            shop.vpc.addr("replace", index=index, address=address, prefixlen=length)
    for address, length in have:
        if (address, length) not in wanted and address not in keep:
            shop.vpc.addr("del", index=index, address=address, prefixlen=length)


def clear(vpc: str) -> None:
    """Remove our devices from the namespace the calling thread is in; NetError when a guest may hold a TAP there.

    The VXLAN devices go now, not when the kernel gets to tearing the namespace down: their VNIs are free at once.
    """
    with rtnl.Rtnl() as kernel:
        if held := sorted(link.name for link in kernel.links() if link.kind == "tun"):
            raise NetError(f"remove network {vpc}: a guest may hold {', '.join(held)}")
        kernel.must(rtnl.delete_group(naming.LINK_GROUP), missing_is_fine=True)
