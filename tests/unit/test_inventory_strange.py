"""The inventory on strange machines: what breaks one part breaks no other, and what is counted is there."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from cairn.hardware.inventory.linux import LinuxInventory
from cairn.hardware.inventory.tree import NUMBERS_MAX, parse_list, parse_mask
from cairn.proto.v1.node_pb2 import NodeFacts

from tests.unit.test_inventory import link, write
from tests.unit.test_inventory_recorded import CORPORA

FAILING = sorted((CORPORA / "failing").glob("*.tar.gz"))


def small(root: Path) -> None:
    """Two CPUs, 4 GiB in one NUMA node, one SATA disk, one card."""
    write(root, {"proc/cpuinfo": "processor\t: 0\nflags\t: lm vmx\n\nprocessor\t: 1\nflags\t: lm vmx\n"})
    write(root, {"proc/meminfo": "MemTotal:        4194304 kB\n", "sys/devices/system/cpu/online": "0-1\n"})
    write(root, {"sys/devices/system/node/node0/cpulist": "0-1\n"})
    write(root, {"sys/devices/system/node/node0/meminfo": "Node 0 MemTotal:        4194304 kB\n"})
    for number in range(2):
        topology = f"sys/devices/system/cpu/cpu{number}/topology"
        write(root, {f"{topology}/physical_package_id": "0\n", f"{topology}/thread_siblings_list": f"{number}\n"})
    disk(root, "sda", "pci0000:00/0000:00:1f.2/ata1/host0/target0:0:0/0:0:0:0")
    card = "sys/devices/pci0000:00/0000:00:03.0/net/eth0"
    write(root, {f"{card}/address": "52:54:00:00:00:01\n", f"{card}/type": "1\n", f"{card}/mtu": "1500\n"})
    link(root, f"{card}/device", "sys/devices/pci0000:00/0000:00:03.0")
    link(root, "sys/class/net/eth0", card)


def disk(root: Path, name: str, device: str, **more: str) -> str:
    """Add a disk of 1 GiB; return its folder."""
    folder = f"sys/devices/{device}/block/{name}"
    write(root, {f"{folder}/size": "2097152\n", f"{folder}/queue/rotational": "1\n"})
    write(root, {f"{folder}/{key.replace('__', '/')}": value for key, value in more.items()})
    link(root, f"{folder}/device", f"sys/devices/{device}")
    link(root, f"sys/block/{name}", folder)
    return folder


def read(root: Path) -> NodeFacts:
    return LinuxInventory(root, arch="x86_64").read()


def test_the_small_machine_itself(tmp_path: Path) -> None:
    small(tmp_path)
    facts = read(tmp_path)
    assert (facts.cpu.sockets, facts.cpu.threads, facts.memory_bytes) == (1, 2, 4 << 30)
    assert [(each.name, each.transport, each.paths, each.remote) for each in facts.disks] == [("sda", "sata", 1, False)]
    assert [(card.name, card.pci_address) for card in facts.nics] == [("eth0", "0000:00:03.0")]
    assert not facts.faults


@pytest.mark.parametrize(
    ("name", "content", "fault"),
    [
        ("proc/meminfo", "MemTotal:\n", ""),
        ("proc/meminfo", f"MemTotal: {10**30} kB\n", ""),
        ("sys/class/net/eth0/mtu", "-1\n", ""),
        ("sys/class/net/eth0/mtu", f"{2**40}\n", "eth0/mtu"),
        ("sys/class/net/eth0/mtu", "\u0661\u0662\n", "eth0/mtu"),
        ("sys/block/sda/size", f"{2**62}\n", "sda/size"),
        ("sys/block/sda/queue/logical_block_size", "many\n", "logical_block_size"),
        ("sys/devices/system/cpu/cpu0/topology/thread_siblings_list", "0-4000000000\n", ""),
        ("sys/devices/system/cpu/cpu0/topology/thread_siblings_list", "f" * (1 << 18), "thread_siblings_list"),
        ("sys/devices/system/cpu/cpu1/topology/physical_package_id", "-1\n", ""),
    ],
)
def test_one_bad_value_harms_nothing_else(tmp_path: Path, name: str, content: str, fault: str) -> None:
    small(tmp_path)
    (tmp_path / name).write_text(content)
    facts = read(tmp_path)
    assert facts.cpu.threads == 2
    assert len(facts.nics) == 1
    assert facts.numa[0].memory_bytes == 4 << 30
    if fault:
        assert any(fault in said for said in facts.faults), list(facts.faults)
    else:
        assert not facts.faults


def test_masks_and_ranges_have_an_end() -> None:
    assert parse_mask("f" * (NUMBERS_MAX // 4 + 1)) == []
    assert len(parse_mask("f" * (NUMBERS_MAX // 4))) == NUMBERS_MAX
    assert parse_list("0-999999999") == list(range(NUMBERS_MAX))
    assert parse_list(",".join(["0-16000"] * 1000)) == []


def test_could_not_look_is_not_nothing_there(tmp_path: Path) -> None:
    small(tmp_path)
    shutil.rmtree(tmp_path / "sys/class/net")
    assert not read(tmp_path).faults
    # A link that leads back to itself is there, and cannot be read, by root neither.
    (tmp_path / "sys/class/net").symlink_to("net")
    facts = read(tmp_path)
    assert [said.partition(":")[0] for said in facts.faults] == ["sys/class/net"]
    assert facts.cpu.threads == 2


@pytest.mark.skipif(os.geteuid() != 0, reason="gives itself up to be nobody")
def test_a_folder_without_permission(tmp_path: Path) -> None:
    small(tmp_path)
    closed = tmp_path / "sys/devices/pci0000:00/0000:00:1f.2"
    disk(tmp_path, "sdb", "pci0000:00/0000:00:1f.3/ata2/host1/target1:0:0/1:0:0:0")
    closed.chmod(0)
    facts = as_nobody(tmp_path)
    assert [each.name for each in facts.disks] == ["sdb"]
    assert facts.cpu.threads == 2
    assert any("sda" in said and "denied" in said.lower() for said in facts.faults), list(facts.faults)


def as_nobody(root: Path) -> NodeFacts:
    """Read a tree in a process that has given up root."""
    for folder in (root, *root.parents):
        if folder.stat().st_uid == os.geteuid() and folder != Path("/"):
            folder.chmod(folder.stat().st_mode | 0o055)
    code = (
        "import os, sys; from pathlib import Path; from cairn.hardware.inventory.linux import LinuxInventory\n"
        "os.setgid(65534); os.setuid(65534)\n"
        "sys.stdout.buffer.write(LinuxInventory(Path(sys.argv[1]), arch='x86_64').read().SerializeToString())"
    )
    told = subprocess.run([sys.executable, "-c", code, str(root)], check=True, capture_output=True)
    return NodeFacts.FromString(told.stdout)


def test_two_paths_are_one_disk(tmp_path: Path) -> None:
    small(tmp_path)
    for number in (1, 2):
        folder = disk(tmp_path, f"sd{'xy'[number - 1]}", f"pci0000:00/0000:00:07.0/host2/target2:0:{number}/2:0:{number}:0")
        link(tmp_path, f"sys/devices/virtual/block/dm-0/slaves/sd{'xy'[number - 1]}", folder)
    write(tmp_path, {"sys/devices/virtual/block/dm-0/dm/uuid": "mpath-35000c50000000001\n"})
    link(tmp_path, "sys/block/dm-0", "sys/devices/virtual/block/dm-0")
    assert [(each.name, each.paths) for each in read(tmp_path).disks] == [("sda", 1), ("sdx", 2)]


def test_the_same_disk_seen_twice_without_multipath(tmp_path: Path) -> None:
    small(tmp_path)
    for number, wwid in ((1, "naa.5000c50000000001"), (2, "naa.5000c50000000001"), (3, "naa.5000c50000000002")):
        disk(tmp_path, f"sdx{number}", f"pci0000:00/0000:00:07.0/host2/target2:0:{number}/2:0:{number}:0", wwid=wwid)
    assert [(each.name, each.paths) for each in read(tmp_path).disks] == [("sda", 1), ("sdx1", 2), ("sdx3", 1)]


def test_what_comes_over_a_network_is_not_ours(tmp_path: Path) -> None:
    small(tmp_path)
    disk(tmp_path, "nvme1n1", "virtual/nvme-subsystem/nvme-subsys1", wwid="nvme.1b36-41-42-00000001")
    write(tmp_path, {"sys/devices/virtual/nvme-fabrics/ctl/nvme1/transport": "tcp\n"})
    link(tmp_path, "sys/devices/virtual/nvme-subsystem/nvme-subsys1/nvme1", "sys/devices/virtual/nvme-fabrics/ctl/nvme1")
    disk(tmp_path, "sdi", "platform/host3/session1/target3:0:0/3:0:0:0")
    disk(tmp_path, "sdf", "pci0000:00/0000:00:09.0/host4/rport-4:0-2/target4:0:0/4:0:0:0")
    disks = {each.name: (each.transport, each.remote) for each in read(tmp_path).disks}
    assert disks == {
        "sda": ("sata", False),
        "nvme1n1": ("nvme-tcp", True),
        "sdi": ("iscsi", True),
        "sdf": ("fc", True),
    }


def test_a_local_namespace_below_a_subsystem(tmp_path: Path) -> None:
    small(tmp_path)
    disk(tmp_path, "nvme0n1", "virtual/nvme-subsystem/nvme-subsys0", wwid="nvme.1b36-41-42-00000001")
    write(tmp_path, {"sys/devices/pci0000:00/0000:00:04.0/nvme/nvme0/transport": "pcie\n"})
    link(tmp_path, "sys/devices/virtual/nvme-subsystem/nvme-subsys0/nvme0", "sys/devices/pci0000:00/0000:00:04.0/nvme/nvme0")
    found = next(each for each in read(tmp_path).disks if each.name == "nvme0n1")
    assert (found.transport, found.remote, found.wwn) == ("nvme", False, "nvme.1b36-41-42-00000001")


def test_old_ports_and_virtual_disks(tmp_path: Path) -> None:
    small(tmp_path)
    disk(tmp_path, "sdp", "pci0000:00/0000:00:01.1/ata9/host9/target9:0:0/9:0:0:0")
    write(tmp_path, {"sys/devices/pci0000:00/0000:00:01.1/ata9/link9/ata_link/link9/sata_spd": "<unknown>\n"})
    disk(tmp_path, "vda", "pci0000:00/0000:00:05.0/virtio2")
    disks = {each.name: (each.transport, each.rotational) for each in read(tmp_path).disks}
    assert disks == {"sda": ("sata", True), "sdp": ("pata", True), "vda": ("virtio", False)}


def test_memory_that_guests_cannot_be_in(tmp_path: Path) -> None:
    small(tmp_path)
    write(tmp_path, {"sys/devices/system/node/node250/cpulist": "\n"})
    write(tmp_path, {"sys/devices/system/node/node250/meminfo": "Node 250 MemTotal:        1048576 kB\n"})
    facts = read(tmp_path)
    assert ([node.id for node in facts.numa], facts.memory_bytes) == ([0], 3 << 30)


def test_radios_and_usb_cards(tmp_path: Path) -> None:
    small(tmp_path)
    for name, device in (("wlan0", "pci0000:00/0000:00:06.0"), ("usb0", "pci0000:00/0000:00:0b.0/usb1/1-1/1-1:1.0")):
        card = f"sys/devices/{device}/net/{name}"
        write(tmp_path, {f"{card}/address": "52:54:00:00:00:02\n", f"{card}/type": "1\n"})
        link(tmp_path, f"{card}/device", f"sys/devices/{device}")
        link(tmp_path, f"sys/class/net/{name}", card)
    (tmp_path / "sys/class/net/wlan0/phy80211").mkdir()
    assert [(card.name, card.pci_address) for card in read(tmp_path).nics] == [("eth0", "0000:00:03.0"), ("usb0", "")]


def test_a_board_names_a_machine_nobody_named(tmp_path: Path) -> None:
    small(tmp_path)
    dmi = "sys/class/dmi/id"
    write(tmp_path, {f"{dmi}/sys_vendor": "To be filled by O.E.M.\n", f"{dmi}/product_name": "Default string\n"})
    write(tmp_path, {f"{dmi}/board_vendor": "TYAN\n", f"{dmi}/board_name": "S7012\n"})
    firmware = read(tmp_path).firmware
    assert (firmware.system_vendor, firmware.system_product) == ("TYAN", "S7012")


def test_clusters_of_a_device_tree_are_no_sockets(tmp_path: Path) -> None:
    small(tmp_path)
    write(tmp_path, {"sys/devices/system/cpu/cpu1/topology/physical_package_id": "1\n"})
    assert read(tmp_path).cpu.sockets == 2
    write(tmp_path, {"sys/firmware/devicetree/base/model": b"A board\0"})
    assert read(tmp_path).cpu.sockets == 1
    (tmp_path / "sys/firmware/acpi").mkdir()
    assert read(tmp_path).cpu.sockets == 2


def test_where_the_tree_lies_tells_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "nvme-lab" / "usb1"
    root.mkdir(parents=True)
    small(root)
    absolute = read(root)
    assert absolute.disks[0].transport == "sata"
    monkeypatch.chdir(tmp_path)
    assert read(Path("nvme-lab/usb1")) == absolute


@pytest.mark.parametrize("seed", range(40))
def test_rubbish_anywhere(tmp_path: Path, seed: int) -> None:
    """Whatever a file holds, whatever is a folder, a link or missing: facts come, and what was not touched is in them."""
    small(tmp_path)
    rubbish = random.Random(seed)
    values = ["", "\0", "-1", "9" * 400, "0x", "ff" * 5000, "0-999999999", "\u00e9\ud7ff", ":", "MemTotal:", "a:b\n\nc", "1\n2"]
    for path in sorted(path for path in tmp_path.rglob("*") if path.is_file() and "proc/cpuinfo" not in str(path)):
        draw = rubbish.random()
        if draw < 0.3:
            path.write_text(rubbish.choice(values))
        elif draw < 0.35:
            path.unlink()
            path.mkdir()
        elif draw < 0.4:
            path.unlink()
            path.symlink_to(path.name)
        elif draw < 0.45:
            path.write_bytes(rubbish.randbytes(200))
    assert read(tmp_path).cpu.virtualization == "vmx"


@pytest.mark.skipif(not FAILING, reason=f"no failing machines under {CORPORA}")
@pytest.mark.parametrize("archive", FAILING, ids=lambda archive: archive.name.partition(".")[0])
def test_machines_that_were_read_wrong(archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = json.loads(archive.with_name(archive.name.replace(".tar.gz", ".expected.json")).read_text())
    with tarfile.open(archive) as tar:
        tar.extractall(tmp_path, filter="fully_trusted")
    root = tmp_path / case["root"]
    if case["read_as"] == "nobody":
        if os.geteuid() != 0:
            pytest.skip("gives itself up to be nobody")
        facts = as_nobody(root)
    else:
        if case["relative_root"]:
            monkeypatch.chdir(tmp_path)
            root = Path(case["root"])
        facts = LinuxInventory(root).read()
    seen = {
        "sockets": facts.cpu.sockets, "cores": facts.cpu.cores, "threads": facts.cpu.threads, "model": facts.cpu.model,
        "system_vendor": facts.firmware.system_vendor, "system_product": facts.firmware.system_product,
        "memory_bytes": facts.memory_bytes, "memory_bytes_without_gpu": facts.memory_bytes,
        "numa_ids": [node.id for node in facts.numa], "numa_bytes": sum(node.memory_bytes for node in facts.numa),
        "disk_count": len(facts.disks), "bytes": sum(each.size_bytes for each in facts.disks),
        "local_nvme_disks": sum(each.transport == "nvme" and not each.remote for each in facts.disks),
        "wwns": [each.wwn for each in facts.disks], "disks": [each.name for each in facts.disks], "nics": len(facts.nics),
        "transport": facts.disks[0].transport if facts.disks else "",
        "pci_address": facts.nics[0].pci_address if facts.nics else "",
    }  # fmt: skip
    expected = {key: value for key, value in case["expected"].items() if key != "seconds_less_than"}
    assert {key: seen[key] for key in expected} == expected
