"""Network cards: physical or virtio Ethernet. No bridges, tunnels, TAPs, virtual functions, representors or radios."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from cairn.hardware.inventory.tree import Tree
from cairn.proto.v1.node_pb2 import NicFacts

# Linux include/uapi/linux/if_arp.h.
_ARPHRD_ETHER: Final = 1
_PCI_ADDRESS: Final = re.compile(r"[0-9a-f]{4,}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]")
_REPRESENTOR: Final = re.compile(r"(c\d+)?pf\d+[vs]f\d+")
_SPEED_MBPS_MAX: Final = 10_000_000


def read_nics(tree: Tree) -> list[NicFacts]:
    """Return the cards in the order of their names."""
    return [_nic(tree, path) for path in tree.folders("sys/class/net") if _is_card(tree, path)]


def _is_card(tree: Tree, path: Path) -> bool:
    return (
        tree.exists(path / "device")
        and not tree.exists(path / "device/physfn")
        and not tree.exists(path / "wireless")
        and not tree.exists(path / "phy80211")
        and tree.number(path / "type", _ARPHRD_ETHER) == _ARPHRD_ETHER
        and not _REPRESENTOR.fullmatch(tree.text(path / "phys_port_name"))
    )


def _nic(tree: Tree, path: Path) -> NicFacts:
    device = tree.device(path / "device")
    # A USB card sits behind the address of its controller, which all its devices share.
    pci = [part for part in device.split("/") if _PCI_ADDRESS.fullmatch(part)] if "/usb" not in device else []
    speed = tree.number(path / "speed")
    return NicFacts(
        name=path.name,
        # In a bond all cards show the bond's MAC; their own is kept here.
        mac=(tree.text(path / "bonding_slave/perm_hwaddr") or tree.text(path / "address")).lower(),
        driver=tree.link_name(path / "device/driver"),
        speed_mbps=speed if 0 < speed < _SPEED_MBPS_MAX else 0,
        mtu=tree.number(path / "mtu"),
        link_up=tree.number(path / "carrier") == 1 or tree.text(path / "operstate") == "up",
        pci_address=pci[-1] if pci else "",
    )
