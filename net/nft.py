"""Packet rules of a VPC namespace: what a guest may send, and what may enter the namespace's own sockets.

Invariant: a frame from a guest passes only with the MAC and IPv4 address of its port, on its port's TAP; what nobody programmed
is dropped, so a TAP that is not bound yet is mute. A port is one element in two sets: binding costs the same for the first and
the thousandth. The rules themselves never change after a network was made; their digest is the name of an empty set, so rules
of an older version are seen and replaced, in one transaction together with the elements in force.

Bridge family (frames, before any forwarding decision): anti-spoofing. VXLAN ports are trusted: the far node filtered its own
guests. IPv6 and VLAN tags are dropped: they match no accept. Guests may ask DHCP (from 0.0.0.0) but never answer it.
Inet family: only DHCP, names, metadata and echo requests to a gateway enter; only guests' traffic between bridges and the
transit device is forwarded, and never to link-local addresses (RFC 3927), so nobody reaches other nodes' transit addresses.
No connection tracking: security groups will bring it for those who use them.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any, Final

import nftables
from cairn.net.naming import BRIDGE_PREFIX, TABLE, TRANSIT, VXLAN_PREFIX
from cairn.proto.ids import METADATA_ADDRESS

_FRAMES: Final = f"""
  set macs {{ type ifname . ether_addr; }}
  set bound {{ type ifname . ether_addr . ipv4_addr; }}
  chain spoof {{
    type filter hook prerouting priority -300; policy drop;
    iifname "{VXLAN_PREFIX}*" accept
    iifname . ether saddr != @macs drop
    ether type arp iifname . arp saddr ether . arp saddr ip @bound accept
    ether type arp iifname . arp saddr ether @macs arp operation request arp saddr ip 0.0.0.0 accept
    ether type ip ip protocol udp udp sport 67 drop
    ether type ip ip saddr 0.0.0.0 ip daddr 255.255.255.255 udp sport 68 udp dport 67 accept
    ether type ip iifname . ether saddr . ip saddr @bound accept
  }}
"""
_PACKETS: Final = f"""
  chain input {{
    type filter hook input priority 0; policy drop;
    iifname "{BRIDGE_PREFIX}*" udp sport 68 udp dport 67 accept
    iifname "{BRIDGE_PREFIX}*" ip daddr {METADATA_ADDRESS} tcp dport 80 accept
    iifname "{BRIDGE_PREFIX}*" udp dport 53 accept
    iifname "{BRIDGE_PREFIX}*" tcp dport 53 accept
    iifname "{BRIDGE_PREFIX}*" icmp type echo-request accept
  }}
  chain forward {{
    type filter hook forward priority 0; policy drop;
    ip daddr 169.254.0.0/16 drop
    iifname "{BRIDGE_PREFIX}*" oifname "{BRIDGE_PREFIX}*" accept
    iifname "{BRIDGE_PREFIX}*" oifname "{TRANSIT}" accept
    iifname "{TRANSIT}" oifname "{BRIDGE_PREFIX}*" accept
  }}
"""
DIGEST: Final = "rules-" + hashlib.sha256((_FRAMES + _PACKETS).encode()).hexdigest()[:12]

# libnftables keeps some parser state per process, so contexts of several threads take turns; a turn is about a millisecond.
_turn = threading.Lock()


class RulesError(Exception):
    """libnftables refused; the text says what."""


@dataclass(frozen=True, slots=True, order=True)
class Binding:
    """What one TAP may send as."""

    tap: str
    mac: str
    address: str


class Rules:
    """The rules of the namespace the calling thread is in, when made; usable from there on for a short while."""

    def __init__(self) -> None:
        with _turn:
            self._context = nftables.Nftables()
            self._context.set_json_output(True)

    def _command(self, text: str) -> str:
        with _turn:
            code, output, error = self._context.cmd(text)
        if code != 0:
            raise RulesError(error.strip().replace("\n", " "))
        return str(output)

    def _table(self, family: str) -> list[dict[str, Any]]:
        try:
            answer = json.loads(self._command(f"list table {family} {TABLE}"))
        except RulesError as error:
            if "No such file or directory" in str(error):
                return []
            raise
        return list(answer["nftables"])

    def read(self) -> tuple[bool, set[Binding]]:
        """Return whether the rules are those of this version, complete, and the bindings in force."""
        frames, packets = self._table("bridge"), self._table("inet")
        sets = {item["set"]["name"]: item["set"] for item in frames if "set" in item}
        current = DIGEST in sets and any("set" in item and item["set"]["name"] == DIGEST for item in packets)
        macs = {tuple(element["concat"]) for element in sets.get("macs", {}).get("elem", ())}
        bound = {Binding(*element["concat"]) for element in sets.get("bound", {}).get("elem", ())}
        return current, {binding for binding in bound if (binding.tap, binding.mac) in macs}

    def ensure(self) -> None:
        """Put the rules of this version in place; bindings in force stay in force."""
        current, bindings = self.read()
        if not current:
            self._command(ruleset(bindings))

    def bind(self, bindings: Iterable[Binding], stale: Collection[Binding] = ()) -> None:
        """Add bindings and remove stale ones, in one transaction; those already there, or already gone, are no error."""
        added = list(bindings)
        lines = []
        for binding in stale:
            if binding not in added:
                # 1.0.6 has no "destroy": adding first makes removal succeed whether it was there or not.
                lines += [f"{verb} element {_element(binding)}" for verb in ("add", "delete")]
                if all((binding.tap, binding.mac) != (kept.tap, kept.mac) for kept in added):
                    lines += [f"{verb} element {_mac_element(binding)}" for verb in ("add", "delete")]
        lines += [f"add element {text(binding)}" for binding in added for text in (_element, _mac_element)]
        if lines:
            self._command("\n".join(lines) + "\n")


def _element(binding: Binding) -> str:
    return f'bridge {TABLE} bound {{ "{binding.tap}" . {binding.mac} . {binding.address} }}'


def _mac_element(binding: Binding) -> str:
    return f'bridge {TABLE} macs {{ "{binding.tap}" . {binding.mac} }}'


def ruleset(bindings: Collection[Binding]) -> str:
    """Return the text that replaces both tables at once."""
    mark = f"\n  set {DIGEST} {{ type mark; }}\n"
    lines = []
    for family, body in (("bridge", _FRAMES), ("inet", _PACKETS)):
        lines += [f"table {family} {TABLE}", f"delete table {family} {TABLE}", f"table {family} {TABLE} {{{mark}{body}}}"]
    lines += [f"add element {text(binding)}" for binding in sorted(bindings) for text in (_element, _mac_element)]
    return "\n".join(lines) + "\n"
