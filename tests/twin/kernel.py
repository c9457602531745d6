"""What the kernel of a lab server holds, read from outside: processes, QEMU among them, and the network of a VPC.

    for pid in pids_below(init): guest = guest_of(pid)        # None: it is no guest's QEMU
    network = network_in(namespace_file)                      # bridges, TAPs, forwarding and neighbour entries

Read from /proc and by iproute2, never through the product. A process may end while it is read: then it is not there.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import stat
import string
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

DIGITS: Final = string.digits + string.ascii_lowercase
ID_LENGTH: Final = 8
# The bits of a first octet that say "a port's" (the two above them belong to the id).
PORT_OCTET: Final = 0x2A
_SUFFIX = re.compile(f"[0-9a-z]{{{ID_LENGTH}}}")
_VOLUME = re.compile(r"/volumes/(vol-[0-9a-z]{8})\.qcow2")
_MEMORY = re.compile(r"(?:size=)?(\d+)([kmg]?)", re.IGNORECASE)
_UNITS: Final = {"k": 1 << 10, "": 1 << 20, "m": 1 << 20, "g": 1 << 30}
_GONE = (FileNotFoundError, ProcessLookupError)
_READ_NETWORK: Final = "set -e; ip -j link; echo @; bridge -j fdb; echo @; ip -j neigh"


@dataclass(frozen=True, slots=True)
class Process:
    """A guest's QEMU. pid: as the machine numbers it; inner: as the server does; born: ticks since the machine booted."""

    guest: str
    pid: int
    inner: int
    born: int
    cpus: int
    memory_bytes: int
    # TAP -> MAC of its cards.
    taps: Mapping[str, str] = field(default_factory=dict)
    # Volumes open for writing.
    volumes: tuple[str, ...] = ()

    @property
    def identity(self) -> tuple[int, int]:
        """No two processes ever have the same."""
        return self.pid, self.born

    def lives(self) -> bool:
        """Tell whether it runs now."""
        return born(self.pid) == self.born


@dataclass(frozen=True, slots=True)
class Network:
    """One VPC on one server."""

    subnets: frozenset[str]
    # Ports whose TAP is up in a bridge with all its entries -> (subnet, address, MAC).
    ports: Mapping[str, tuple[str, str, str]]
    # Ports elsewhere -> tunnel address; "" when a part of what leads there is missing.
    forwards: Mapping[str, str]
    peers: frozenset[str]


def born(pid: int) -> int:
    """Return when a process was started; 0 when there is none, or only its zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except _GONE:
        return 0
    return int(fields[19]) if fields[0] not in "ZX" else 0


def pids_below(init: int) -> Iterator[int]:
    """Yield all processes in the PID namespace of a server's process 1."""
    try:
        inside = os.readlink(f"/proc/{init}/ns/pid")
    except _GONE:
        return
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                if os.readlink(f"/proc/{name}/ns/pid") == inside:
                    yield int(name)
            # One that may not be looked at is nobody the lab started.
            except (*_GONE, PermissionError):
                continue


def guest_of(pid: int) -> Process | None:
    """Return the guest a process is; None for any other."""
    folder = Path(f"/proc/{pid}")
    try:
        words = (folder / "cmdline").read_bytes().decode(errors="replace").split("\0")
        if "qemu-system-" not in words[0] or "-name" not in words:
            return None
        guest = dict(each.partition("=")[::2] for each in _after(words, "-name")[0].split(",")).get("guest", "")
        began = born(pid)
        if not guest or not began:
            return None
        status = (folder / "status").read_text()
        inner = int(next(line for line in status.splitlines() if line.startswith("NSpid:")).split()[-1])
        number, unit = _MEMORY.findall(_after(words, "-m")[0])[0]
        return Process(
            guest,
            pid,
            inner,
            began,
            cpus=int(_after(words, "-smp")[0].partition(",")[0]),
            memory_bytes=int(number) * _UNITS[unit.lower()],
            taps=_taps(folder, words),
            volumes=_open_volumes(folder),
        )
    except _GONE:
        return None


def _after(words: list[str], option: str) -> list[str]:
    return [value for each, value in itertools.pairwise(words) if each == option]


def _taps(folder: Path, words: list[str]) -> dict[str, str]:
    """TAP -> MAC: a card names its back end, that its file descriptor, and the kernel which TAP that is."""
    devices = [json.loads(each) for each in _after(words, "-device") if each.startswith("{")]
    macs = {each["netdev"]: each["mac"] for each in devices if "netdev" in each}
    found = {}
    for each in (json.loads(text) for text in _after(words, "-netdev") if text.startswith("{")):
        for line in (folder / "fdinfo" / each["fd"]).read_text().splitlines():
            if line.startswith("iff:"):
                found[line.split()[1]] = macs[each["id"]]
    return found


def _open_volumes(folder: Path) -> tuple[str, ...]:
    found = set()
    for each in (folder / "fd").iterdir():
        try:
            match = _VOLUME.search(os.readlink(each))
            if match and each.lstat().st_mode & stat.S_IWUSR:
                found.add(match[1])
        except FileNotFoundError:
            continue
    return tuple(sorted(found))


# --- networks --------------------------------------------------------------------------------------------------------------


def network_in(namespace: Path) -> Network | None:
    """Read the namespace of a VPC; None when it went away meanwhile."""
    argv = ["nsenter", f"--net={namespace}", "sh", "-c", _READ_NETWORK]
    result = subprocess.run(argv, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        if not namespace.exists():
            return None
        raise RuntimeError(f"{' '.join(argv)}: exit {result.returncode}: {result.stderr.strip()}")
    links, fdb, neighbours = (json.loads(part) if part.strip() else [] for part in result.stdout.split("@"))
    return network_of(links, fdb, neighbours)


def network_of(links: list[dict[str, Any]], fdb: list[dict[str, Any]], neighbours: list[dict[str, Any]]) -> Network:
    """Return what three tables, as iproute2 tells them, mean."""
    subnets = {name: f"vxnet-{text}" for link in links if (text := _suffix(name := link["ifname"], "br-"))}
    masters = {link["ifname"]: link.get("master", "") for link in links}
    permanent = {(each["dev"], each.get("lladdr", "")): each["dst"] for each in neighbours if "PERMANENT" in each["state"]}
    # Entries as we make them: the bridge's own are permanent instead.
    static = {(each["ifname"], each["mac"]) for each in fdb if each.get("master") and each.get("state") == "static"}
    ports = {}
    for link in links:
        tap, bridge = link["ifname"], link.get("master", "")
        macs = [mac for name, mac in static if name == tap]
        if not (text := _suffix(tap, "tap-")) or bridge not in subnets or "UP" not in link["flags"]:
            continue
        ports |= {f"nic-{text}": (subnets[bridge], permanent[bridge, mac], mac) for mac in macs if (bridge, mac) in permanent}
    tunnels = {(each["ifname"], each["mac"]): each["dst"] for each in fdb if "dst" in each}
    ways = [key for key in sorted({*tunnels, *static}) if _suffix(key[0], "vx-") and port_of(key[1])]
    forwards = {}
    for name, mac in ways:
        whole = (name, mac) in static and (masters.get(name, ""), mac) in permanent
        forwards[port_of(mac)] = tunnels.get((name, mac), "") if whole else ""
    peers = frozenset(to for (name, _), to in tunnels.items() if name == "l3x")
    return Network(frozenset(subnets.values()), ports, forwards, peers)


def _suffix(name: str, prefix: str) -> str:
    text = name.removeprefix(prefix)
    return text if name.startswith(prefix) and _SUFFIX.fullmatch(text) else ""


def port_of(mac: str) -> str:
    """Return the port a MAC was made from (42 bits: two above those of PORT_OCTET, then five octets); "" for another's."""
    first, *rest = bytes.fromhex(mac.replace(":", ""))
    number = first >> 6 << 40 | int.from_bytes(bytes(rest), "big")
    if first & 0x3F != PORT_OCTET or number >= len(DIGITS) ** ID_LENGTH:
        return ""
    return "nic-" + "".join(DIGITS[number // len(DIGITS) ** place % len(DIGITS)] for place in reversed(range(ID_LENGTH)))
