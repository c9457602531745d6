"""The inventory on small machines made here, and on this one."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from cairn.hardware.base import Inventory
from cairn.hardware.inventory.linux import LinuxInventory
from cairn.hardware.inventory.tree import format_list, parse_list, parse_mask, told
from hypothesis import given
from hypothesis import strategies as st

SECURE_BOOT = "sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c"


def write(root: Path, files: dict[str, str | bytes]) -> None:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())


def link(root: Path, name: str, target: str) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    (root / target).mkdir(parents=True, exist_ok=True)
    path.symlink_to(os.path.relpath(root / target, path.parent))


def arm_server(root: Path) -> None:
    """Two sockets of four Kunpeng cores, clusters of two with repeating core ids; a device tree beside DMI."""
    cpu = "BogoMIPS\t: 200.00\nFeatures\t: fp asimd aes\nCPU implementer\t: 0x48\nCPU architecture: 8\nCPU part\t: 0xd01\n"
    write(root, {"proc/cpuinfo": "\n".join(f"processor\t: {number}\n{cpu}" for number in range(8))})
    write(root, {"proc/meminfo": "MemTotal:       65536 kB\nMemFree: 1 kB\n", "sys/devices/system/cpu/online": "0-7\n"})
    for number in range(8):
        topology = f"sys/devices/system/cpu/cpu{number}/topology"
        write(root, {f"{topology}/physical_package_id": f"{number // 4}\n", f"{topology}/core_id": f"{number % 2}\n"})
        write(root, {f"{topology}/thread_siblings": f"{1 << number:08x}\n"})
        write(root, {f"sys/devices/system/cpu/cpu{number}/cpufreq/cpuinfo_max_freq": "2600000\n"})
    for node in range(2):
        write(root, {f"sys/devices/system/node/node{node}/cpumap": f"{0xF << 4 * node:08x}\n"})
        write(root, {f"sys/devices/system/node/node{node}/meminfo": f"Node {node} MemTotal:       32768 kB\n"})
    write(root, {"dev/kvm": ""})


def test_aarch64_server(tmp_path: Path) -> None:
    arm_server(tmp_path)
    facts = LinuxInventory(tmp_path).read()
    assert (facts.arch, facts.cpu.vendor, facts.cpu.model) == ("aarch64", "HiSilicon", "TaiShan-v110")
    assert (facts.cpu.sockets, facts.cpu.cores, facts.cpu.threads, facts.cpu.mhz_max) == (2, 8, 8, 2600)
    assert (list(facts.cpu.flags), facts.cpu.virtualization) == (["fp", "asimd", "aes"], "el2")
    assert [(node.id, node.cpus, node.memory_bytes) for node in facts.numa] == [(0, "0-3", 32 << 20), (1, "4-7", 32 << 20)]
    (tmp_path / "dev/kvm").unlink()
    assert LinuxInventory(tmp_path).read().cpu.virtualization == ""


def test_cores_of_two_kinds_and_unknown_ones(tmp_path: Path) -> None:
    parts = [(0x41, 0xD05), (0x41, 0xD05), (0x41, 0xD0B)]
    text = "\n".join(f"processor: {n}\nCPU implementer: {i:#x}\nCPU part: {p:#x}\n" for n, (i, p) in enumerate(parts))
    write(tmp_path, {"proc/cpuinfo": text})
    assert LinuxInventory(tmp_path).read().cpu.model == "Cortex-A55 + Cortex-A76"
    write(tmp_path, {"proc/cpuinfo": "processor: 0\nCPU implementer: 0x99\nCPU part: 0x123\n"})
    cpu = LinuxInventory(tmp_path).read().cpu
    assert (cpu.vendor, cpu.model) == ("implementer 0x99", "part 0x123")


def test_a_cpu_taken_offline_does_not_count(tmp_path: Path) -> None:
    arm_server(tmp_path)
    write(tmp_path, {"sys/devices/system/cpu/online": "0-3,5\n"})
    cpu = LinuxInventory(tmp_path).read().cpu
    assert (cpu.sockets, cpu.cores, cpu.threads) == (2, 5, 5)


def test_device_tree_names_a_machine_without_dmi(tmp_path: Path) -> None:
    base = "sys/firmware/devicetree/base"
    write(tmp_path, {f"{base}/model": b"Phytium FT-2000+/64\0", f"{base}/compatible": b"phytium,ft2000\0phytium\0"})
    write(tmp_path, {f"{base}/serial-number": b"PH123\0"})
    firmware = LinuxInventory(tmp_path).read().firmware
    assert (firmware.system_product, firmware.system_vendor) == ("Phytium FT-2000+/64", "phytium")
    assert firmware.system_serial == "PH123"


def test_uefi_and_secure_boot(tmp_path: Path) -> None:
    assert not LinuxInventory(tmp_path).read().firmware.uefi
    write(tmp_path, {SECURE_BOOT: b"\6\0\0\0\0"})
    firmware = LinuxInventory(tmp_path).read().firmware
    assert (firmware.uefi, firmware.secure_boot) == (True, False)
    write(tmp_path, {SECURE_BOOT: b"\6\0\0\0\1"})
    assert LinuxInventory(tmp_path).read().firmware.secure_boot


@pytest.mark.parametrize(
    "text", ["To Be Filled By O.E.M.", "Default string", "0123456789", "  ", "None", "Not Specified", "0000"]
)
def test_placeholders_tell_nothing(text: str) -> None:
    assert told(text) == ""


def disk(root: Path, name: str, where: str, files: dict[str, str | bytes]) -> None:
    folder = f"sys/devices/{where}/block/{name}"
    write(root, {f"{folder}/size": "2048\n", f"{folder}/queue/logical_block_size": "4096\n"})
    write(root, {f"{folder}/{file}": content for file, content in files.items()})
    link(root, f"{folder}/device", f"sys/devices/{where}")
    link(root, f"sys/block/{name}", folder)


def test_disks(tmp_path: Path) -> None:
    nvme = "pci0000:3a/0000:3a:00.0/0000:3b:00.0/nvme/nvme0"
    disk(tmp_path, "nvme0n1", nvme, {"wwid": "eui.0025385\n", "queue/rotational": "0\n", "hidden": "0\n"})
    write(tmp_path, {f"sys/devices/{nvme}/model": "SAMSUNG MZQLB\n", f"sys/devices/{nvme}/serial": "S4  \n"})
    disk(tmp_path, "nvme0c0n1", nvme, {"hidden": "1\n"})
    sas = "pci0000:00/0000:00:02.0/host0/port-0:0/end_device-0:0/target0:0:0/0:0:0:0"
    disk(tmp_path, "sdb", sas, {"queue/rotational": "1\n"})
    page83 = b"\0\x83\0\x14\2\1\0\4ABCD\1\3\0\x08" + bytes.fromhex("5000c500a1b2c3d4")
    write(tmp_path, {f"sys/devices/{sas}/vendor": "SEAGATE \n", f"sys/devices/{sas}/model": "ST1200MM0099\n"})
    write(tmp_path, {f"sys/devices/{sas}/vpd_pg80": b"\0\x80\0\4WXYZ", f"sys/devices/{sas}/vpd_pg83": page83})
    disk(tmp_path, "sdc", "pci0000:00/usb1/1-2/host3/target3:0:0/3:0:0:0", {"removable": "1\n"})
    disk(tmp_path, "sdd", "pci0000:00/usb1/1-3/host4/target4:0:0/4:0:0:0", {"size": "0\n"})
    disk(tmp_path, "sr0", "pci0000:00/ata2/host2/target2:0:0/2:0:0:0", {})
    disk(tmp_path, "vda", "pci0000:00/0000:00:03.0/virtio0", {"serial": "vol-00000001\n"})
    for name in ("loop0", "zram0", "dm-0", "ram0"):
        write(tmp_path, {f"sys/block/{name}/size": "2048\n"})
    nvme_disk, sas_disk, usb_disk, virtio_disk = LinuxInventory(tmp_path).read().disks
    assert (nvme_disk.name, nvme_disk.model, nvme_disk.serial) == ("nvme0n1", "SAMSUNG MZQLB", "S4")
    assert (nvme_disk.transport, nvme_disk.wwn, nvme_disk.rotational) == ("nvme", "eui.0025385", False)
    assert (sas_disk.model, sas_disk.serial, sas_disk.wwn) == ("SEAGATE ST1200MM0099", "WXYZ", "naa.5000c500a1b2c3d4")
    assert (sas_disk.transport, sas_disk.rotational, sas_disk.logical_block_bytes) == ("sas", True, 4096)
    assert (usb_disk.name, usb_disk.transport, usb_disk.removable) == ("sdc", "usb", True)
    assert (virtio_disk.transport, virtio_disk.serial, virtio_disk.size_bytes) == ("virtio", "vol-00000001", 1 << 20)


def card(root: Path, name: str, where: str | None, files: dict[str, str]) -> None:
    write(root, {f"sys/class/net/{name}/{file}": content for file, content in files.items()})
    if where:
        link(root, f"sys/class/net/{name}/device", f"sys/devices/{where}")


def test_nics(tmp_path: Path) -> None:
    port = "pci0000:17/0000:17:00.0/0000:18:00.0"
    card(tmp_path, "ens1f0", port, {"address": "AA:BB:CC:00:00:01\n", "speed": "25000\n", "mtu": "9000\n", "carrier": "1\n"})
    link(tmp_path, f"sys/devices/{port}/driver", "sys/bus/pci/drivers/mlx5_core")
    down = {"address": "02:00:00:00:00:99\n", "speed": "-1\n", "operstate": "down\n", "mtu": "1500\n"}
    card(tmp_path, "ens1f1", "pci0000:17/0000:17:00.0/0000:18:00.1", down)
    write(tmp_path, {"sys/class/net/ens1f1/bonding_slave/perm_hwaddr": "aa:bb:cc:00:00:02\n"})
    card(tmp_path, "ens1f0v0", "pci0000:17/0000:17:00.0/0000:18:00.2", {"address": "x\n"})
    link(tmp_path, "sys/devices/pci0000:17/0000:17:00.0/0000:18:00.2/physfn", f"sys/devices/{port}")
    card(tmp_path, "rep0", port, {"phys_port_name": "pf0vf3\n"})
    card(tmp_path, "ib0", "pci0000:17/0000:19:00.0", {"type": "32\n"})
    for name in ("lo", "br0", "vxlan7", "tap-00000001"):
        card(tmp_path, name, None, {"address": "00:00:00:00:00:00\n"})
    first, second = LinuxInventory(tmp_path).read().nics
    assert (first.name, first.mac, first.driver, first.pci_address) == (
        "ens1f0",
        "aa:bb:cc:00:00:01",
        "mlx5_core",
        "0000:18:00.0",
    )
    assert (first.speed_mbps, first.mtu, first.link_up) == (25000, 9000, True)
    assert (second.name, second.mac, second.speed_mbps, second.link_up) == ("ens1f1", "aa:bb:cc:00:00:02", 0, False)


def test_a_machine_that_tells_nothing(tmp_path: Path) -> None:
    facts = LinuxInventory(tmp_path).read()
    assert (facts.arch, facts.memory_bytes, facts.cpu.threads, list(facts.disks)) == ("", 0, 0, [])


@pytest.mark.parametrize(
    "rubbish", [b"", b"\0" * 64, b"\xff\xfe:\n\n:::\n", b"processor\nflags: \n" * 9, b"0-,,-3,5-1\n"], ids=range(5)
)
def test_rubbish_is_no_error(tmp_path: Path, rubbish: bytes) -> None:
    arm_server(tmp_path)
    disk(tmp_path, "sda", "x/0:0:0:0", {"dev": rubbish})
    write(tmp_path, {"sys/devices/x/0:0:0:0/vpd_pg83": rubbish, "sys/devices/x/0:0:0:0/vpd_pg80": rubbish})
    for path in [path for path in tmp_path.rglob("*") if path.is_file() and path.name != "size"]:
        path.write_bytes(rubbish)
        LinuxInventory(tmp_path).read()


async def test_this_machine() -> None:
    inventory: Inventory = LinuxInventory()
    facts = await inventory.collect()
    assert facts.arch == os.uname().machine
    assert facts.hostname == os.uname().nodename
    assert facts.kernel == os.uname().release
    assert facts.memory_bytes == os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert facts.cpu.threads == os.sysconf("SC_NPROCESSORS_ONLN")
    assert 1 <= facts.cpu.sockets <= facts.cpu.cores <= facts.cpu.threads
    assert facts.os


@pytest.mark.skipif(not shutil.which("lscpu"), reason="no lscpu")
def test_this_machine_as_lscpu_counts_it() -> None:
    rows = subprocess.run(["lscpu", "-p=CPU,CORE,SOCKET"], capture_output=True, text=True, check=True).stdout.splitlines()
    table = [tuple(row.split(",")) for row in rows if not row.startswith("#")]
    cpu = LinuxInventory().read().cpu
    assert cpu.threads == len(table)
    assert cpu.cores == len({row[1:] for row in table})
    assert cpu.sockets == len({row[2] for row in table})


@given(st.sets(st.integers(0, 300)))
def test_kernel_lists_and_masks(numbers: set[int]) -> None:
    assert parse_list(format_list(list(numbers))) == sorted(numbers)
    assert parse_mask(f"{sum(1 << n for n in numbers):x}") == sorted(numbers)


def test_kernel_lists_with_steps() -> None:
    assert parse_list("0-6:2,9") == [0, 2, 4, 6, 9]
    assert parse_mask("00000001,00000003") == [0, 1, 32]
