"""How the twin reads processes and networks: on a process that looks like a guest's, and on tables as iproute2 tells them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from cairn.proto.ids import mac_of

from tests.lab.hosts import wait_until
from tests.twin.kernel import born, guest_of, network_of, port_of

PORT, FAR = "nic-7pblyq7q", "nic-zzzzzzzz"
LINKS = [
    {"ifname": "br-vsvhbmzh", "flags": ["UP"]},
    {"ifname": "vx-vsvhbmzh", "flags": ["UP"], "master": "br-vsvhbmzh"},
    {"ifname": "l3x", "flags": ["UP"]},
    {"ifname": "tap-7pblyq7q", "flags": ["BROADCAST", "UP"], "master": "br-vsvhbmzh"},
]
FDB = [
    {"mac": mac_of(PORT), "ifname": "tap-7pblyq7q", "flags": [], "master": "br-vsvhbmzh", "state": "static"},
    {"mac": "fe:8c:8d:94:4a:36", "ifname": "tap-7pblyq7q", "flags": [], "master": "br-vsvhbmzh", "state": "permanent"},
    {"mac": mac_of(FAR), "ifname": "vx-vsvhbmzh", "flags": [], "master": "br-vsvhbmzh", "state": "static"},
    {"mac": mac_of(FAR), "ifname": "vx-vsvhbmzh", "dst": "172.31.0.13", "flags": ["self"], "state": "permanent"},
    {"mac": "02:00:5e:10:00:03", "ifname": "l3x", "dst": "172.31.0.13", "flags": ["self"], "state": "permanent"},
]
NEIGHBOURS = [
    {"dst": "10.1.1.2", "dev": "br-vsvhbmzh", "lladdr": mac_of(PORT), "state": ["PERMANENT"]},
    {"dst": "10.1.1.3", "dev": "br-vsvhbmzh", "lladdr": mac_of(FAR), "state": ["PERMANENT"]},
    {"dst": "10.1.1.9", "dev": "br-vsvhbmzh", "state": ["FAILED"]},
]


def test_a_network_is_what_its_tables_say() -> None:
    network = network_of(LINKS, FDB, NEIGHBOURS)
    assert network.subnets == {"vxnet-vsvhbmzh"}
    assert network.ports == {PORT: ("vxnet-vsvhbmzh", "10.1.1.2", mac_of(PORT))}
    assert network.forwards == {FAR: "172.31.0.13"}
    assert network.peers == {"172.31.0.13"}


@pytest.mark.parametrize("entry", [0, 2, 3])
def test_what_lacks_an_entry_leads_nowhere(entry: int) -> None:
    network = network_of(LINKS, [each for position, each in enumerate(FDB) if position != entry], NEIGHBOURS)
    assert (network.ports.keys(), network.forwards.get(FAR)) == ((set(), "172.31.0.13") if entry == 0 else ({PORT}, ""))


@pytest.mark.parametrize("missing", [PORT, FAR])
def test_what_lacks_its_address_leads_nowhere(missing: str) -> None:
    network = network_of(LINKS, FDB, [each for each in NEIGHBOURS if each.get("lladdr") != mac_of(missing)])
    assert (PORT in network.ports, network.forwards[FAR]) == (missing != PORT, "172.31.0.13" if missing != FAR else "")


def test_a_card_that_is_down_or_in_no_bridge_is_no_port() -> None:
    for change in ({"flags": []}, {"master": ""}):
        assert network_of([*LINKS[:3], LINKS[3] | change], FDB, NEIGHBOURS).ports == {}


@pytest.mark.parametrize("port", ["nic-00000000", PORT, FAR])
def test_the_port_of_a_mac_is_told_by_arithmetic_of_our_own(port: str) -> None:
    assert port_of(mac_of(port)) == port


@pytest.mark.parametrize("mac", ["02:00:5e:00:00:01", "02:00:5e:10:00:03", "fe:8c:8d:94:4a:36", "33:33:00:00:00:01"])
def test_other_macs_are_no_ports(mac: str) -> None:
    assert port_of(mac) == ""


def test_a_guest_is_read_off_its_process(tmp_path: Path) -> None:
    volume, image = tmp_path / "volumes" / "vol-00000001.qcow2", tmp_path / "volumes" / "vol-00000002.qcow2"
    volume.parent.mkdir()
    volume.touch()
    image.touch()
    code = f"a, b = open({str(volume)!r}, 'r+'), open({str(image)!r}); print('open', flush=True); input()"
    device = {"driver": "virtio-net-pci", "netdev": "hostnet0", "mac": mac_of(PORT)}
    argv = ["/usr/bin/qemu-system-x86_64", "-c", code, "-name", "guest=i-00000001,process=qemu:i-00000001", "-m", "size=98304k"]
    argv += ["-smp", "2,sockets=1", "-device", json.dumps(device)]
    with subprocess.Popen(argv, executable=sys.executable, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "open\n"
        guest = guest_of(process.pid)
        assert guest is not None
        assert (guest.guest, guest.cpus, guest.memory_bytes) == ("i-00000001", 2, 96 << 20)
        assert guest.volumes == ("vol-00000001",)
        assert guest.lives()
        process.kill()
        wait_until("it to be dead", lambda: born(process.pid) == 0)
        assert not guest.lives()
        assert guest_of(process.pid) is None


def test_another_process_is_no_guest() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        assert guest_of(process.pid) is None
