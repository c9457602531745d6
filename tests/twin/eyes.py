"""Looks at the lab's servers and makes of each a `cloud.Host`, as the checkers know it. Asks no part of the product.

| what | read from |
|---|---|
| guests | QEMU processes: command line, open files and TAPs, all told by the kernel |
| executing | libvirt's state files, which it rewrites at each change and believes when it is started again |
| definitions | libvirt's configuration files |
| volumes, images, files | the pool's and the state's folders, heads of qcow2 files |
| networks | the namespaces of the VPCs, by iproute2 |
| ledger | its bytes, by a reader of the simulation's own |

A picture is consistent in itself: it is taken again while guests come or go, and its ledger is all that the ledger held from
before the look to after it. What polls cannot see but must have been is told as well: between two processes of one guest there
was none. Seen at once on two servers is only a guest that lives on both at one instant.
"""

from __future__ import annotations

import struct
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from tests.lab import hosts as lab
from tests.sim.cloud import Card, Definition, Guest, Host, LedgerReader, Position
from tests.twin.kernel import Network, Process, guest_of, network_in, pids_below

LOOKS_MAX: Final = 5
_QCOW2_SIZE: Final = struct.Struct(">24xQ")
_VPC_NAMESPACE: Final = "cairn-"


class Ledger(LedgerReader):
    """Also keeps what the ledger held at any time since it was asked last."""

    def __init__(self) -> None:
        super().__init__()
        self._passed: dict[str, Position] = {}

    def _take(self, kind: bytes, body: bytes) -> None:
        self._passed |= self.keys
        super()._take(kind, body)

    def passed(self) -> dict[str, Position]:
        """Return all keys it held since the last call, with their newest versions."""
        passed, self._passed = self._passed | self.keys, dict(self.keys)
        return passed


@dataclass
class Sight:
    """What is remembered of one server between two looks."""

    host: lab.Host
    node: str
    ledger: Ledger = field(default_factory=Ledger)
    processes: dict[str, Process] = field(default_factory=dict)
    picture: Host | None = None
    born: set[tuple[int, int]] = field(default_factory=set)
    # Guests whose process now is another one than at the last look.
    renewed: list[str] = field(default_factory=list)


class Eyes:
    """nodes: name -> node id."""

    def __init__(self, hosts: Sequence[lab.Host], nodes: dict[str, str]) -> None:
        self._sights = [Sight(host, nodes[host.name]) for host in hosts]
        self._pool = ThreadPoolExecutor(len(self._sights), thread_name_prefix="eyes")

    def process_of(self, guest: str) -> tuple[lab.Host, Process] | None:
        """Return where a guest was seen last, if it is still alive."""
        for sight in self._sights:
            process = sight.processes.get(guest)
            if process is not None and process.lives():
                return sight.host, process
        return None

    def look(self) -> list[tuple[Host, bool]]:
        """Return pictures to be shown in this order; True: one that nobody took (see the module). Blocks."""
        pictures = list(self._pool.map(_look, self._sights))
        dead = _dead(self._sights)
        pictures = [replace(each, guests=_without(each.guests, dead[each.node])) for each in pictures]
        shown: list[tuple[Host, bool]] = []
        for sight, picture in zip(self._sights, pictures, strict=True):
            before = sight.picture
            if before is not None and (gone := [id for id in sight.renewed if id in before.guests]):
                shown.append((replace(before, guests=_without(before.guests, gone)), True))
            effects = before.effects + _differ(before, picture) if before is not None else 0
            sight.picture = replace(picture, effects=effects)
            shown.append((sight.picture, False))
        return shown

    def close(self) -> None:
        """Let go of the threads."""
        self._pool.shutdown()


def _differ(before: Host, now: Host) -> bool:
    """Whether something else than the ledger, which is judged by itself, is another."""
    bare = [replace(each, ledger={}, held=(0, 0), effects=0) for each in (before, now)]
    return bare[0] != bare[1]


def _without(guests: Mapping[str, Guest], gone: Collection[str]) -> dict[str, Guest]:
    return {id: guest for id, guest in guests.items() if id not in gone}


def _dead(sights: Sequence[Sight]) -> dict[str, set[str]]:
    """Node -> guests also seen elsewhere whose process there is dead. Who lives at two looks lived at the instant between."""
    counts = Counter(id for sight in sights for id in sight.processes)
    dead: dict[str, set[str]] = {sight.node: set() for sight in sights}
    for _ in range(2):
        for sight in sights:
            dead[sight.node] |= {id for id, each in sight.processes.items() if counts[id] > 1 and not each.lives()}
    return dead


def _look(sight: Sight) -> Host:
    ledger = sight.host.folder / "data" / "lib" / "ledger" / "ledger"
    sight.ledger.read(_content(ledger))
    for _ in range(LOOKS_MAX):
        processes = _processes(sight.host)
        picture = _picture(sight, processes)
        if {each.identity for each in _processes(sight.host).values()} == {each.identity for each in processes.values()}:
            break
    sight.ledger.read(_content(ledger))
    sight.renewed = [
        id for id, each in processes.items() if id in sight.processes and sight.processes[id].identity != each.identity
    ]
    sight.processes = processes
    sight.born |= {each.identity for each in processes.values()}
    return replace(picture, ledger=sight.ledger.passed(), held=sight.ledger.held, boots=len(sight.born))


def _processes(host: lab.Host) -> dict[str, Process]:
    init = host.init_pid
    found = (guest_of(pid) for pid in sorted(pids_below(init))) if init else ()
    return {each.guest: each for each in found if each is not None}


def _picture(sight: Sight, processes: dict[str, Process]) -> Host:
    host, networks = sight.host, dict(_networks(sight.host))
    places = {port: place for each in networks.values() for port, place in each.ports.items()}
    library = host.folder / "data" / "lib"
    return Host(
        node=sight.node,
        name=host.name,
        guests={id: _guest(host, each, places) for id, each in processes.items()},
        definitions=dict(_definitions(host.folder / "libvirt" / "etc" / "qemu")),
        volumes=dict(_volumes(library / "volumes")),
        images=frozenset(f"sha256:{each.name}" for each in (library / "images").glob("[0-9a-f]*") if len(each.name) == 64),
        ports={vpc: frozenset(each.ports) for vpc, each in networks.items()},
        forwards={vpc: each.forwards for vpc, each in networks.items()},
        subnets={vpc: each.subnets for vpc, each in networks.items()},
        peers={vpc: each.peers for vpc, each in networks.items()},
        files=frozenset(each.stem for each in (*(library / "seeds").glob("i-*.iso"), *(library / "console").glob("i-*.log"))),
    )


def _guest(host: lab.Host, process: Process, places: dict[str, tuple[str, str, str]]) -> Guest:
    executing = _executes(host.folder / "libvirt" / "run" / "qemu" / f"{process.guest}.xml", process)
    cards = []
    for tap, mac in process.taps.items():
        port = "nic-" + tap.removeprefix("tap-")
        if port in places:
            subnet, address, _ = places[port]
            cards.append(Card(port, subnet, address, mac))
        elif executing:
            # One that executes has its cards plugged in: nowhere is a place, too.
            cards.append(Card(port, "", "", mac))
    return Guest(process.guest, executing, process.cpus, process.memory_bytes, tuple(cards), process.volumes)


def _executes(state: Path, process: Process) -> bool:
    """Whether libvirt noted of this very process that it runs."""
    if not (content := _content(state)):
        return False
    status = ET.fromstring(content)
    return status.get("state") == "running" and status.get("pid") == str(process.inner)


def _definitions(folder: Path) -> Iterator[tuple[str, Definition]]:
    for path in sorted(folder.glob("i-*.xml")):
        if not (content := _content(path)):
            continue
        domain = ET.fromstring(content)
        sources = domain.iterfind("devices/disk[@device='disk']/source")
        volumes = frozenset(Path(source.get("file", "")).stem for source in sources)
        memory_kib = int(domain.findtext("memory", "0"))
        yield path.stem, Definition(int(domain.findtext("vcpu", "0")), memory_kib << 10, volumes)


def _volumes(folder: Path) -> Iterator[tuple[str, int]]:
    for path in sorted(folder.glob("vol-*.qcow2")):
        head = _content(path, _QCOW2_SIZE.size)
        if len(head) == _QCOW2_SIZE.size:
            yield path.stem, int(_QCOW2_SIZE.unpack(head)[0])


def _networks(host: lab.Host) -> Iterator[tuple[str, Network]]:
    init = host.init_pid
    folder = Path(f"/proc/{init}/root/run/netns")
    try:
        names = sorted(path.name for path in folder.iterdir()) if init else []
    except (FileNotFoundError, ProcessLookupError):
        return
    for name in names:
        # A plain file is a name whose namespace is not there yet, or not any more.
        if name.startswith(_VPC_NAMESPACE) and not _is_plain(folder / name) and (network := network_in(folder / name)):
            yield "rtr-" + name.removeprefix(_VPC_NAMESPACE), network


def _is_plain(path: Path) -> bool:
    try:
        return path.stat().st_dev == path.parent.stat().st_dev
    except (FileNotFoundError, ProcessLookupError):
        return True


def _content(path: Path, size: int = -1) -> bytes:
    """The bytes of a file; none when it is gone."""
    try:
        with path.open("rb") as file:
            return file.read(size)
    except (FileNotFoundError, ProcessLookupError):
        return b""
