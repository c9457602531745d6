"""What the dataplane's conformance suite needs: nodes to program, guests to put into them, ids and desired objects.

A *guest* is a TAP held open by this process, as QEMU holds one; on the kernel its other end is a second TAP, "eth0" in a
network namespace of its own, and a thread carries frames between the two: a guest has a real IP stack and moves with its TAP.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import os
import select
import socket
import struct
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from ipaddress import IPv4Interface
from pathlib import Path

from cairn.net import namespace
from cairn.net.base import Action, Dataplane, Observed, Wanted
from cairn.net.fake import FakeDataplane, FakeNetHost
from cairn.net.netlink import NetlinkDataplane
from cairn.net.plan import plan
from cairn.proto.ids import mac_of, router_mac, tap_of, transit_address
from cairn.proto.seams import ID_ALPHABET
from cairn.proto.v1.agent_pb2 import DesiredForward, DesiredNetwork, DesiredPort, NetworkPeer

MTU = 1450
TUNSETIFF = 0x400454CA
IFF_TAP, IFF_NO_PI = 0x0002, 0x1000


def id_of(prefix: str, number: int) -> str:
    """An id that is the same in every run: 'rtr-0000000a'."""
    text = ""
    for _ in range(8):
        number, digit = divmod(number, len(ID_ALPHABET))
        text = ID_ALPHABET[digit] + text
    return f"{prefix}-{text}"


def run(*argv: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    result = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=30)
    assert not check or result.returncode == 0, f"{' '.join(argv)}: {result.stderr or result.stdout}"
    return result


@dataclass
class Card:
    """A guest's card: where it is, and what it may call itself."""

    number: int
    vpc: str
    subnet: str
    address: str
    node: int

    @property
    def id(self) -> str:
        return id_of("nic", self.number)

    @property
    def mac(self) -> str:
        return mac_of(self.id)

    @property
    def tap(self) -> str:
        return tap_of(self.id)

    def port(self) -> DesiredPort:
        ip = str(IPv4Interface(self.address).ip)
        return DesiredPort(
            id=self.id, vpc=self.vpc, subnet=self.subnet, addresses=[ip], mac=self.mac, tap=self.tap,
            vm=id_of("i", self.number), hostname=f"guest-{self.number}",
        )  # fmt: skip

    def forward(self, vtep: str) -> DesiredForward:
        ip = str(IPv4Interface(self.address).ip)
        return DesiredForward(
            port=self.id, vpc=self.vpc, subnet=self.subnet, addresses=[ip], mac=self.mac, vtep=vtep,
            transit_address=transit_address(self.node),
        )  # fmt: skip


@dataclass
class Vpc:
    """A VPC and the subnets in it: id -> CIDR; the gateway is the first address."""

    number: int
    subnets: dict[str, str]
    base_vni: int

    @property
    def id(self) -> str:
        return id_of("rtr", self.number)

    def network(self, node: int, nodes: dict[int, str]) -> DesiredNetwork:
        result = DesiredNetwork(
            vpc=self.id, transit_vni=self.base_vni, transit_address=transit_address(node), router_mac=router_mac(node),
            vtep=nodes[node], mtu=MTU, cidr="10.0.0.0/16",
        )  # fmt: skip
        for offset, (id, cidr) in enumerate(sorted(self.subnets.items()), 1):
            gateway = str(IPv4Interface(cidr).network[1])
            result.subnets.add(id=id, vni=self.base_vni + offset, cidr=cidr, gateway=gateway)
        for other, vtep in nodes.items():
            if other != node:
                peer = NetworkPeer(vtep=vtep, transit_address=transit_address(other), router_mac=router_mac(other))
                peer.node = id_of("node", other)
                result.peers.append(peer)
        return result


def wanted_on(node: int, nodes: dict[int, str], vpcs: list[Vpc], cards: list[Card]) -> Wanted:
    """What nodespec would send to that node."""
    here = {card.vpc for card in cards if card.node == node}
    return Wanted(
        networks={vpc.id: vpc.network(node, nodes) for vpc in vpcs if vpc.id in here},
        ports={card.id: card.port() for card in cards if card.node == node},
        forwards={card.id: card.forward(nodes[card.node]) for card in cards if card.node != node and card.vpc in here},
    )


async def settle(dataplane: Dataplane, wanted: Wanted) -> Observed:
    """One round: observe, plan, apply without errors; then nothing is left to do."""
    results = await dataplane.apply(plan(wanted, await dataplane.observe()))
    errors = [str(result.error) for result in results if result.error is not None]
    assert not errors, errors
    observed = await dataplane.observe()
    left: list[Action] = plan(wanted, observed)
    assert left == [], left
    return observed


@dataclass
class FakeNode:
    """A node without a kernel."""

    index: int
    host: FakeNetHost = field(default_factory=FakeNetHost)
    is_real = False

    def dataplane(self) -> Dataplane:
        return FakeDataplane(self.host)

    def start_guest(self, card: Card) -> None:
        self.host.taps.add(card.tap)

    def stop_guest(self, card: Card) -> None:
        self.host.taps.discard(card.tap)

    def namespaces(self) -> list[str]:
        return sorted(self.host.networks)

    def damage(self, vpc: str) -> None:
        self.host.damage(vpc)


def open_tap(name: str, up: bool = False) -> int:
    """Make a TAP in the calling thread's namespace, without queueing headers; it lives as long as the descriptor."""
    handle = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    fcntl.ioctl(handle, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TAP | IFF_NO_PI))
    if up:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
            fcntl.ioctl(control, 0x8914, struct.pack("16sH22x", name.encode(), 0x1043))
    return handle


class Cable:
    """Carries frames between pairs of TAP descriptors, for all guests of a test, in one thread."""

    def __init__(self) -> None:
        self._peers: dict[int, int] = {}
        self._poll = select.epoll()
        self._wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._poll.register(self._wake[0], select.EPOLLIN)
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._pump, daemon=True)
        self._thread.start()

    def join(self, one: int, other: int) -> None:
        with self._lock:
            self._peers |= {one: other, other: one}
            for handle in (one, other):
                self._poll.register(handle, select.EPOLLIN)

    def cut(self, one: int) -> None:
        with self._lock:
            other = self._peers.pop(one)
            del self._peers[other]
            for handle in (one, other):
                self._poll.unregister(handle)
                os.close(handle)

    def close(self) -> None:
        os.write(self._wake[1], b"x")
        self._thread.join(5)
        while self._peers:
            self.cut(next(iter(self._peers)))
        self._poll.close()
        for handle in self._wake:
            os.close(handle)

    def _pump(self) -> None:
        while True:
            for handle, _ in self._poll.poll():
                if handle == self._wake[0]:
                    return
                with self._lock:
                    other = self._peers.get(handle)
                    if other is not None:
                        self._carry(handle, other)

    def _carry(self, source: int, target: int) -> None:
        for _ in range(64):
            try:
                frame = os.read(source, 65536)
            except OSError:
                return
            # The far end is down: a real cable loses the frame, too.
            with contextlib.suppress(OSError):
                os.write(target, frame)


@dataclass
class RealNode:
    """A node of its own: a network namespace with one card on the underlay."""

    index: int
    prefix: str
    address: str
    cable: Cable
    taps: dict[str, int] = field(default_factory=dict)
    is_real = True

    @property
    def name(self) -> str:
        return f"{self.prefix}n{self.index}"

    @property
    def vpc_prefix(self) -> str:
        return f"{self.prefix}v{self.index}-"

    def dataplane(self) -> NetlinkDataplane:
        return NetlinkDataplane(node=namespace.FOLDER / self.name, prefix=self.vpc_prefix)

    def guest(self, card: Card) -> str:
        """The namespace that is the guest's inside."""
        return f"{self.prefix}g{card.number}"

    def start_guest(self, card: Card) -> None:
        """As libvirt: a TAP in the node's namespace, up. The guest's own address is set, as if by DHCP."""
        namespace.create(self.guest(card))
        with namespace.opened(namespace.FOLDER / self.guest(card)) as handle, namespace.entered(handle):
            inner = open_tap("eth0")
        with namespace.opened(namespace.FOLDER / self.name) as handle, namespace.entered(handle):
            outer = open_tap(card.tap, up=True)
        self.cable.join(outer, inner)
        self.taps[card.tap] = outer
        address, gateway = IPv4Interface(card.address), IPv4Interface(card.address).network[1]
        commands = [
            "link set lo up", f"link set eth0 address {card.mac} mtu {MTU} up", f"addr add {address} dev eth0",
            f"route add default via {gateway}",
        ]  # fmt: skip
        for command in commands:
            run("ip", "-n", self.guest(card), *command.split())

    def stop_guest(self, card: Card) -> None:
        """QEMU is gone: its descriptor is closed, so the TAP vanishes."""
        self.cable.cut(self.taps.pop(card.tap))
        namespace.remove(self.guest(card))

    def namespaces(self) -> list[str]:
        return namespace.names(self.vpc_prefix)

    def damage(self, vpc: str) -> None:
        run("ip", "netns", "exec", self.vpc_prefix + vpc.rpartition("-")[2], "nft", "delete", "table", "inet", "cairn")


@contextlib.contextmanager
def real_nodes(prefix: str, count: int) -> Iterator[list[RealNode]]:
    """Nodes on an underlay bridge in a namespace of its own; every trace is removed, also on failure."""
    underlay = f"{prefix}u"
    cable = Cable()
    nodes = [RealNode(index, prefix, f"172.31.0.{index}", cable) for index in range(1, count + 1)]
    try:
        namespace.create(underlay)
        run("ip", "-n", underlay, "link", "add", "underlay", "mtu", "1600", "type", "bridge", "mcast_snooping", "0")
        run("ip", "-n", underlay, "link", "set", "underlay", "up")
        for node in nodes:
            namespace.create(node.name)
            port = f"u{node.index}"
            run("ip", "-n", underlay, "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", node.name)
            run("ip", "-n", underlay, "link", "set", port, "mtu", "1600", "master", "underlay", "up")
            run("ip", "-n", node.name, "addr", "add", f"{node.address}/24", "dev", "eth0")
            run("ip", "-n", node.name, "link", "set", "eth0", "mtu", "1600", "up")
            run("ip", "-n", node.name, "link", "set", "lo", "up")
        yield nodes
    finally:
        cable.close()
        for name in namespace.names(prefix):
            namespace.remove(name)


serial = itertools.count(1)


def fresh_prefix() -> str:
    """A prefix for namespaces no other test run on this machine uses."""
    return f"ctn{os.getpid()}x{next(serial)}-"


def missing() -> str:
    """Why the kernel cannot be programmed here; empty: it can."""
    if os.geteuid() != 0:
        return "not root"
    if not Path("/dev/net/tun").exists():
        return "no /dev/net/tun"
    return ""
