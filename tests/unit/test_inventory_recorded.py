"""The inventory against machines recorded by others, and against what lscpu and lstopo say of them."""

from __future__ import annotations

import os
import re
import tarfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from cairn.hardware.inventory.linux import LinuxInventory
from cairn.hardware.inventory.tree import parse_list
from cairn.proto.v1.node_pb2 import NodeFacts

HWLOC = Path(__file__).parent.parent / "corpora" / "hwloc"
CORPORA = Path(os.environ.get("CAIRN_CORPORA") or Path(__file__).parents[3] / "shared" / "corpora" / "hardware")
LSCPU = sorted((CORPORA / "lscpu").glob("*.tar.gz"))


def unpack(archive: Path, folder: Path) -> NodeFacts:
    with tarfile.open(archive) as tar:
        # Links inside recorded trees are relative; whatever points out of the folder is left out.
        def inside(member: tarfile.TarInfo, path: str) -> tarfile.TarInfo | None:
            try:
                return tarfile.data_filter(member, path)
            except tarfile.FilterError:
                return None

        tar.extractall(folder, filter=inside)
    for path in folder.rglob("*"):
        if not path.is_symlink():
            path.chmod(0o755)
    (root,) = folder.iterdir()
    return LinuxInventory(root).read()


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], NodeFacts]:
    return cache(lambda name: unpack(HWLOC / f"{name}.tar.bz2", tmp_path_factory.mktemp("machine")))


def depth(name: str, kind: str) -> int:
    """How many objects of a kind lstopo counts."""
    match = re.search(rf"(\d+) {kind} \(type", (HWLOC / f"{name}.console").read_text())
    return int(match[1]) if match else 0


@pytest.mark.parametrize("name", ["40intel64-4n10c+pci-conflicts", "64amd64-4s2n4ca2co"])
def test_as_lstopo_counts(name: str, recorded: Callable[[str], NodeFacts]) -> None:
    facts = recorded(name)
    assert (facts.cpu.threads, len(facts.numa)) == (depth(name, "PU"), depth(name, "NUMANode"))
    assert facts.arch == "x86_64"
    assert sorted(cpu for node in facts.numa for cpu in parse_list(node.cpus)) == list(range(facts.cpu.threads))
    assert sum(node.memory_bytes for node in facts.numa) == pytest.approx(facts.memory_bytes, rel=0.05)


def test_a_dell_server(recorded: Callable[[str], NodeFacts]) -> None:
    facts = recorded("32em64t-2n8c+dax+nvme+mic+dimms")
    cpu = facts.cpu
    assert (cpu.model, cpu.vendor) == ("Intel(R) Xeon(R) CPU E5-2680 0 @ 2.70GHz", "GenuineIntel")
    assert (cpu.sockets, cpu.cores, cpu.threads, cpu.virtualization, cpu.mhz_max) == (2, 16, 16, "vmx", 2701)
    assert "avx" in cpu.flags
    (disk,) = facts.disks
    assert (disk.name, disk.model, disk.serial, disk.size_bytes) == ("sda", "ST9250610NS", "14090C05022B", 250059350016)
    assert (disk.rotational, disk.transport, disk.wwn) == (True, "sata", "naa.500a07510c05022b")
    up, down = facts.nics
    assert (up.name, up.mac, up.driver, up.speed_mbps, up.link_up) == ("eth0", "84:8f:69:fe:cc:40", "igb", 1000, True)
    assert up.pci_address == "0000:02:00.0"
    assert (down.name, down.speed_mbps, down.link_up) == ("eth1", 0, False)
    firmware = facts.firmware
    assert (firmware.vendor, firmware.version, firmware.date) == ("Dell Inc.", "1.0.30", "08/06/2012")
    assert (firmware.system_vendor, firmware.system_product, firmware.uefi) == ("Dell", "DCS8000Z", False)


def test_a_raid_volume_behind_a_controller(recorded: Callable[[str], NodeFacts]) -> None:
    facts = recorded("40intel64-4n10c+pci-conflicts")
    assert (facts.cpu.sockets, facts.cpu.cores) == (4, 40)
    assert [(disk.name, disk.model) for disk in facts.disks] == [("sda", "DELL PERC H700")]


def test_modules_of_two_threads(recorded: Callable[[str], NodeFacts]) -> None:
    facts = recorded("64amd64-4s2n4ca2co")
    assert (facts.cpu.sockets, facts.cpu.cores, facts.cpu.threads, facts.cpu.virtualization) == (4, 32, 64, "svm")


def test_32_bit_arm(recorded: Callable[[str], NodeFacts]) -> None:
    facts = recorded("2arm-2c")
    assert (facts.arch, facts.cpu.model, facts.cpu.vendor) == ("arm", "Cortex-A9", "ARM")
    assert (facts.cpu.sockets, facts.cpu.cores, facts.cpu.threads, facts.cpu.mhz_max) == (1, 2, 2, 800)
    assert facts.memory_bytes == 280840 * 1024


@pytest.mark.skipif(not LSCPU, reason=f"no lscpu dumps under {CORPORA}")
@pytest.mark.parametrize("archive", LSCPU, ids=lambda archive: archive.name.partition(".")[0])
def test_as_lscpu_says(archive: Path, tmp_path: Path) -> None:
    said = archive.with_name(archive.name.replace(".tar.gz", ".expected")).read_text().split("\n\n")[0]
    expected = {key.strip(): " ".join(value.split()) for key, _, value in (line.partition(":") for line in said.splitlines())}
    facts = unpack(archive, tmp_path)
    cpu = facts.cpu
    assert cpu.threads == len(parse_list(expected["On-line CPU(s) list"]))
    assert cpu.sockets == int(expected["Socket(s)"])
    assert cpu.cores == int(expected["Core(s) per socket"]) * cpu.sockets
    assert cpu.model == expected["Model name"]
    assert cpu.vendor == expected["Vendor ID"]
    assert list(cpu.flags) == expected["Flags"].split()
    assert cpu.virtualization == {"VT-x": "vmx", "AMD-V": "svm"}.get(expected.get("Virtualization", ""), "")
    if "CPU max MHz" in expected:
        assert cpu.mhz_max == int(float(expected["CPU max MHz"]))
    assert len(facts.numa) == int(expected.get("NUMA node(s)", 0))
    for node in facts.numa:
        assert parse_list(node.cpus) == parse_list(expected[f"NUMA node{node.id} CPU(s)"])
